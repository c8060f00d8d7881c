//! Any chat template, any conversation: a text or an error, within bounded time and memory.
//!
//! An input is a template and, behind a zero byte, the message of a user; where that is a JSON object, the template's variables.
//!
//! ```text
//! cargo +nightly fuzz run template fuzz/corpus/template fuzz/seeds/template -- -dict=fuzz/template.dict -max_len=4096 -max_total_time=120
//! ```
#![no_main]

use std::collections::BTreeMap;

use bitnet_model::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let source = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let Ok(template) = ChatTemplate::from_source(&source, tokens) else {
        return;
    };
    let rendered = match serde_json::from_str(&text) {
        Ok(Value::Object(variables)) => template.render_with(variables),
        _ => template.render(&[Message::system("Be brief."), Message::user(text.as_ref())]),
    };
    match rendered {
        Ok(text) => assert!(text.len() < 2 << 20),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
