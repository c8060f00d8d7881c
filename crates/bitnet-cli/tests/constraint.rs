//! Answers that obey a schema or a grammar.

mod program;

use std::process::Output;

use program::{bitnet, oracle, run, run_with_input};
use serde_json::{Value, json};

const CITY: &str = r#"{"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]},
    "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["city", "days"], "additionalProperties": false}"#;

/// The demo model asked for one JSON report.
fn generate(args: &[&str]) -> Output {
    let mut command = bitnet();
    command.args(["generate", "-q", "--json", "-p", "Weather?", "-n", "200"]);
    command.args(args).output().unwrap()
}

fn answer(args: &[&str]) -> Value {
    let output = generate(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn is_city(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let days = value["days"].as_i64().unwrap_or(0);
    value.as_object().unwrap().len() == 2
        && [json!("Rome"), json!("Oslo")].contains(&value["city"])
        && (1..=7).contains(&days)
}

#[test]
fn json_obeys_its_schema_at_any_temperature_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("schema.json");
    std::fs::write(&file, CITY).unwrap();
    let file = file.to_str().unwrap();
    for args in [
        &["-j", CITY, "--temp", "0"][..],
        &["--json-schema", CITY, "--temp", "2", "-s", "1"],
        &["-j", file, "--temp", "2", "-s", "2"],
        &["-jf", file, "--temp", "2", "-s", "3"],
        &[
            "--json-schema-file",
            file,
            "--temp",
            "0",
            "--chat-format",
            "--ignore-eos",
        ],
    ] {
        let object = answer(args);
        assert!(is_city(object["text"].as_str().unwrap()), "{args:?}: {object}");
        assert_eq!(object["finish_reason"], "stop", "{args:?}");
    }
}

#[test]
fn guesses_of_what_is_forced_change_no_token() {
    for seed in ["1", "2", "3"] {
        let args = |n: &'static str| ["-j", CITY, "--temp", "1.5", "-s", seed, "--draft-max", n];
        let (plain, guessed) = (answer(&args("0")), answer(&args("16")));
        assert_eq!(plain["ids"], guessed["ids"]);
    }
}

#[test]
fn texts_obey_grammars_of_both_notations() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list.gbnf");
    std::fs::write(&file, "root ::= \"(\" (root | [a-c]{2}) \")\" # a list\n").unwrap();
    let object = answer(&[
        "--grammar",
        "root ::= (\"yes\" | \"no\") \"!\"",
        "--temp",
        "2",
        "-s",
        "5",
    ]);
    assert!(
        ["yes!", "no!"].contains(&object["text"].as_str().unwrap()),
        "{object}"
    );
    let object = answer(&[
        "--grammar",
        "start: /[0-9]{3}/ \"-\" WORD\nWORD: \"ab\" | \"cd\"\n",
        "--temp",
        "0",
    ]);
    let text = object["text"].as_str().unwrap();
    assert!(
        text.len() == 6
            && text[..3].bytes().all(|b| b.is_ascii_digit())
            && ["-ab", "-cd"].contains(&&text[3..]),
        "{text}"
    );
    let object = answer(&["--grammar-file", file.to_str().unwrap(), "--temp", "2", "-s", "7"]);
    let text = object["text"].as_str().unwrap();
    assert!(
        text.starts_with('(') && (object["finish_reason"] == "length" || text.ends_with(')')),
        "{text}"
    );
}

#[test]
fn each_answer_of_a_chat_obeys() {
    let args = [
        "-q",
        "--grammar",
        "root ::= \"yes\" | \"no\"",
        "--temp",
        "1",
        "-s",
        "3",
        "--simple-io",
    ];
    let output = run_with_input(
        "chat",
        std::path::Path::new("demo-model"),
        &args,
        "Is it?\nIs it not?\n",
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text:?}");
    assert!(lines.iter().all(|line| ["yes", "no"].contains(line)), "{text:?}");
}

#[test]
fn mistakes_are_told_and_nothing_is_generated() {
    let long = format!("{{\"enum\": [\"{}\"]}}", "x".repeat(100_000));
    let large = "[\"aaaaaaaaaa\"]".repeat(3_000);
    for (args, status, part) in [
        (&["-j", "{\"type\":"][..], 1, "--json-schema: not valid JSON"),
        (
            &["-j", "{\"type\": \"nosuch\"}"],
            1,
            "--json-schema: Invalid type: nosuch",
        ),
        (&["-j", "{\"$ref\": \"#\"}"], 1, "--json-schema: no token"),
        (&["-j", "/nonexistent.json"], 1, "/nonexistent.json"),
        (&["-j", &long], 0, ""),
        (&["--grammar", &large], 1, "--grammar:"),
        (
            &["--grammar", "root ::= other"],
            1,
            "--grammar: the grammar's rule `other` is not defined",
        ),
        (
            &["--grammar", "start: /((/"],
            1,
            "--grammar: line 1, column 8: invalid regex",
        ),
        (&["--grammar-file", "/nonexistent.gbnf"], 1, "/nonexistent.gbnf"),
        (
            &["--grammar", "root ::= \"a\"", "-j", "{}"],
            2,
            "cannot be used with",
        ),
    ] {
        let output = generate(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:.60?}: {stderr}");
        assert!(stderr.contains(part), "{args:.60?}: {stderr}");
        assert!(status == 0 || output.stdout.is_empty());
    }
    // A model that knows no text.
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(oracle("odd-shape")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && !name.starts_with("tokenizer") {
            std::fs::copy(&path, folder.path().join(name)).unwrap();
        }
    }
    let output = run("generate", folder.path(), &["--prompt-ids", "1,2", "-j", "{}"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && stderr.contains("tokenizer.json"),
        "{stderr}"
    );
}
