//! Any tokenizer and chat template files, any text: errors at most.
//!
//! An input is tokenizer.json, tokenizer_config.json, chat_template.jinja and a text, separated by zero bytes.
//!
//! ```text
//! cargo +nightly fuzz run tokenizer fuzz/corpus/tokenizer fuzz/seeds/tokenizer -- -max_len=4096 -max_total_time=120
//! ```
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use bitnet_model::{ChatTemplate, Detokenizer, Message, SpecialTokens, StopStrings, Tokenizer};
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    // libFuzzer's hook aborts where a panic begins. Those of the tokenizers crate are caught and become errors; one that
    // is not caught still ends the process, at the edge to C.
    std::panic::set_hook(Box::new(|_| ()));
    tempfile::tempdir().expect("a temporary folder")
});

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(4, |byte| *byte == 0);
    let folder = FOLDER.path();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let path = folder.join(name);
        match parts.next() {
            Some(content) if !content.is_empty() => std::fs::write(path, content).expect("a writable folder"),
            _ => drop(std::fs::remove_file(path)),
        }
    }
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let Ok(tokenizer) = Tokenizer::from_folder(folder, Some(1), &[2]) else {
        return;
    };
    let text = prompt(folder, &tokenizer, &text).unwrap_or(text.into_owned());
    let Ok(ids) = tokenizer.encode_prompt(&text) else {
        return;
    };
    for special in [SpecialTokens::Hide, SpecialTokens::Show] {
        let mut detokenizer = Detokenizer::new(&tokenizer, special);
        let mut stops = StopStrings::new(&["a".repeat(3), "\n".to_owned()]);
        for &id in ids.iter().chain(&[0, 1, 2, 3, u32::MAX]) {
            if let Ok(text) = detokenizer.push(id) {
                stops.push(&text);
            }
        }
        if let Ok(rest) = detokenizer.finish() {
            stops.push(&rest);
        }
    }
});

fn prompt(folder: &Path, tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let template = ChatTemplate::from_folder(folder, tokenizer).ok()??;
    template.render(&[Message::system("Be brief."), Message::user(text)]).ok()
}
