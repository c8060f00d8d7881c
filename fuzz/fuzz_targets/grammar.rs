//! Compiles the input as a schema, a pattern or a grammar, and follows it for some tokens: errors are welcome; panics, hangs and
//! memory that the input does not justify are not.
//!
//! The first byte says what the rest is: a JSON schema, a regular expression, a grammar of llama.cpp, a grammar of Lark, or the
//! parameters of a tool. The second is where the walk through the mask begins.
//!
//! ```text
//! cargo +nightly fuzz run grammar fuzz/corpus/grammar fuzz/seeds/grammar -- -max_len=4096 -rss_limit_mb=2048 -timeout=25
//! ```
#![no_main]

use std::sync::LazyLock;

use bitnet_grammar::{Calls, Compiler, Grammar, Tool, ToolUse};
use bitnet_model::Tokenizer;
use libfuzzer_sys::fuzz_target;

const VOCAB: usize = 768;

static COMPILER: LazyLock<Compiler> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/bitnet-cli/demo-model");
    let tokenizer = Tokenizer::of_model(folder).expect("the demo model");
    Compiler::new(&tokenizer, VOCAB, tokenizer.end_ids())
});

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, start], rest)) = data.split_first_chunk() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    let grammar = match kind % 5 {
        0 | 4 => {
            let Ok(schema) = serde_json::from_str(text) else {
                return;
            };
            if kind % 5 == 0 {
                Grammar::JsonSchema(schema)
            } else {
                Grammar::Calls(Calls {
                    tools: vec![Tool {
                        name: "f".to_owned(),
                        parameters: Some(schema),
                    }],
                    choice: ToolUse::Required,
                    parallel: true,
                })
            }
        }
        1 => Grammar::Regex(text.to_owned()),
        2 => Grammar::Gbnf(text.to_owned()),
        _ => Grammar::Lark(text.to_owned()),
    };
    let Ok(mut mask) = COMPILER.compile(&grammar) else {
        return;
    };
    let mut at = usize::from(start);
    for _ in 0..24 {
        let mut bits = [0u32; VOCAB / 32];
        if mask.allowed(&mut bits).is_err() {
            return;
        }
        let is_allowed = |id: &usize| bits[id / 32] >> (id % 32) & 1 == 1;
        let allowed: Vec<usize> = (0..VOCAB).filter(is_allowed).collect();
        assert!(!allowed.is_empty(), "a mask allows something or fails");
        let id = allowed[at % allowed.len()];
        at = at.wrapping_mul(31).wrapping_add(7);
        // Ahead and back, and on.
        if mask.accept(id as u32).is_err() {
            return;
        }
        if mask.rollback(1).is_err() {
            return;
        }
        let mut again = [0u32; VOCAB / 32];
        if mask.allowed(&mut again).is_err() {
            return;
        }
        assert_eq!(bits, again, "going back leaves no trace");
        match mask.accept(id as u32) {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
    }
});
