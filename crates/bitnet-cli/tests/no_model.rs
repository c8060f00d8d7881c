//! The model inside the program: every command uses it where none is named, and says so.

mod program;

use std::path::Path;

use program::{bitnet, run, stdout};
use serde_json::Value;

const QUESTION: &str = "What is 123 + 456?";

#[test]
fn without_a_model_there_is_one() {
    let generate = |args: &[&str]| {
        let mut command = bitnet();
        command.args(["generate", "--chat-format", "--temp", "0", "-p", QUESTION]);
        command.args(args).output().unwrap()
    };
    let answer = generate(&[]);
    let named = run(
        "generate",
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model")),
        &["--chat-format", "--temp", "0", "-p", QUESTION],
    );
    assert_eq!(stdout(&answer), "123 + 456 = 579");
    assert_eq!(stdout(&answer), stdout(&named));
    let stderr = String::from_utf8(answer.stderr).unwrap();
    assert!(
        stderr.starts_with("no model given: using the demo model inside this program, which "),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    assert!(!String::from_utf8_lossy(&named.stderr).contains("demo model"));
    let quiet = generate(&["-q"]);
    assert_eq!((stdout(&quiet), quiet.stderr.len()), (stdout(&named), 0));
}

#[test]
fn every_command_knows_it() {
    let json = |args: &[&str]| -> Value {
        let output = bitnet().args(args).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("no model given: using the demo model"));
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    let inspected = json(&["inspect", "--json", "--verify"]);
    assert_eq!(inspected["architecture"], "BitNetForCausalLM");
    let ids = json(&["tokenize", "-p", "1 + 2", "--json"]);
    assert!(ids["ids"].as_array().unwrap().len() > 1, "{ids}");
    let scored = json(&["perplexity", "-p", QUESTION, "--json"]);
    assert!(scored["perplexity"].as_f64().unwrap() > 1.0, "{scored}");
    let timed = json(&["bench", "model", "-p", "4", "-n", "2", "-r", "1", "-o", "json"]);
    assert_eq!(timed["model"], "demo-model");
}
