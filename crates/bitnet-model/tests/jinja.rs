//! Chat templates render as Jinja2 renders them with the settings of transformers, or are refused where it refuses.
//! `tools/record-templates` has recorded what is right.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_model::ChatTemplate;
use serde_json::{Map, Value, json};

fn recorded(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/jinja")
        .join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn fnv1a(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

fn render(source: &str, variables: &Map<String, Value>) -> Result<String, String> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
    ChatTemplate::from_source(source, BTreeMap::from(tokens))
        .and_then(|template| template.render_with(variables.clone()))
        .map_err(|e| e.to_string())
}

#[test]
fn conversations_render_as_in_jinja2() {
    let recorded = recorded("templates.json");
    let conversations = recorded["conversations"].as_array().unwrap();
    let (mut rendered, mut refused) = (0, 0);
    for (name, template) in recorded["templates"].as_object().unwrap() {
        let source = template["source"].as_str().unwrap();
        for (n, (conversation, expected)) in conversations
            .iter()
            .zip(template["texts"].as_array().unwrap())
            .enumerate()
        {
            let found = render(source, conversation.as_object().unwrap());
            match expected.as_str() {
                Some(hash) => {
                    let text = found.unwrap_or_else(|e| panic!("{name}, conversation {n}: {e}"));
                    assert_eq!(fnv1a(&text), hash, "{name}, conversation {n}: {text}");
                    rendered += 1;
                }
                None => {
                    assert!(
                        found.is_err(),
                        "{name}, conversation {n} must be refused: {found:?}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(
        rendered > 800 && refused > 50,
        "{rendered} rendered, {refused} refused"
    );
}

#[test]
fn values_filters_tests_methods_and_operators_are_those_of_jinja2() {
    let recorded = recorded("tables.json");
    let variables = recorded["variables"].as_object().unwrap();
    let (mut compared, mut wrong) = (0, Vec::new());
    for table in recorded["tables"].as_array().unwrap() {
        let names = |key: &str| {
            table[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|name| name.as_str().unwrap())
        };
        for (row, texts) in names("rows").zip(table["texts"].as_array().unwrap()) {
            for (column, expected) in names("columns").zip(texts.as_array().unwrap()) {
                let source = table["pattern"].as_str().unwrap();
                let source = source.replace("ROW", row).replace("COLUMN", column);
                // What prints an address has no right text.
                if *expected == json!(false) {
                    continue;
                }
                let found = render(&source, variables);
                if found.as_deref().ok() != expected.as_str() {
                    wrong.push(format!("{source:?}: {found:?}, expected {expected}"));
                }
                compared += 1;
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(compared > 8000, "{compared}");
}
