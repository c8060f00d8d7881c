//! `bitnet batch`: files of requests, and what is left when it is killed.

mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use program::{bitnet, stdout};
use serde_json::{Value, json};

fn batch(folder: &Path, more: &[&str]) -> Output {
    let mut command = bitnet();
    command.arg("batch").arg("-i").arg(folder.join("in.jsonl"));
    command
        .arg("-o")
        .arg(folder.join("out.jsonl"))
        .args(["--temp", "0"])
        .args(more);
    command.output().unwrap()
}

fn chat(id: &str, question: &str) -> Value {
    json!({
        "custom_id": id, "method": "POST", "url": "/v1/chat/completions",
        "body": { "model": "any", "messages": [{ "role": "user", "content": question }] }
    })
}

fn write(folder: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(folder.join("in.jsonl"), text).unwrap();
}

/// The answers by custom id; each line must be whole.
fn answers(folder: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(folder.join("out.jsonl")).unwrap();
    assert!(text.ends_with('\n'));
    let answer = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        (value["custom_id"].as_str().unwrap().to_owned(), value)
    };
    text.lines().map(answer).collect()
}

fn content(answer: &Value) -> &str {
    answer["response"]["body"]["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
}

#[test]
fn each_line_is_answered_in_openais_form() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let completion = json!({
        "custom_id": "c", "url": "/v1/completions",
        "body": { "prompt": "User:20 + 3<|eot_id|>Assistant:", "max_tokens": 64, "logprobs": 2, "n": 2 }
    });
    write(
        folder,
        &[
            chat("a", "What is 17 + 25?"),
            json!({ "prompt": "User:1 + 1<|eot_id|>Assistant:" }),
            completion,
            json!({ "custom_id": "bad", "body": { "messages": [], "temperature": 0 } }),
            json!({ "custom_id": "long", "body": { "prompt": vec![5; 5000] } }),
        ],
    );
    // Some editors put a mark before the text.
    let mut input = format!("\u{feff}{}", fs::read_to_string(folder.join("in.jsonl")).unwrap());
    input.push_str("\n{\"custom_id\": \"cut\n");
    fs::write(folder.join("in.jsonl"), input).unwrap();
    let output = batch(folder, &[]);
    assert_eq!(stdout(&output), "");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("6 answers, 3 of them errors"), "{stderr}");

    let answers = answers(folder);
    assert_eq!(content(&answers["a"]), "17 + 25 = 42");
    let body = &answers["a"]["response"]["body"];
    assert_eq!(
        (&body["object"], &body["choices"][0]["finish_reason"]),
        (&json!("chat.completion"), &json!("stop"))
    );
    assert_eq!(body["usage"]["total_tokens"], {
        let tokens = |name: &str| body["usage"][name].as_u64().unwrap();
        json!(tokens("prompt_tokens") + tokens("completion_tokens"))
    });
    assert_eq!(
        answers["line-2"]["response"]["body"]["choices"][0]["text"],
        "1 + 1 = 2"
    );
    let choices = &answers["c"]["response"]["body"]["choices"];
    assert_eq!(
        (&choices[0]["text"], &choices[1]["text"]),
        (&json!("20 + 3 = 23"), &json!("20 + 3 = 23"))
    );
    let logprobs = &choices[0]["logprobs"];
    let n = logprobs["tokens"].as_array().unwrap().len();
    assert!(n > 5 && logprobs["token_logprobs"].as_array().unwrap().len() == n);
    assert!(logprobs["top_logprobs"][0].as_object().unwrap().len() >= 2);

    let error = |id: &str| {
        let response = &answers[id]["response"];
        assert_eq!(
            (&response["status_code"], &answers[id]["error"]),
            (&json!(400), &Value::Null)
        );
        response["body"]["error"].clone()
    };
    assert_eq!(error("bad")["param"], "messages");
    assert_eq!(error("long")["code"], "context_length_exceeded");
    assert_eq!(error("line-7")["code"], "invalid_json");
}

#[test]
fn lines_may_have_schemas_tools_and_several_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [7, 8] } }, "required": ["n"], "additionalProperties": false });
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": schema } });
    let mut shaped = chat("shaped", "1 + 1");
    shaped["body"]["response_format"] =
        json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    let mut called = chat("called", "1 + 1");
    called["body"]["tools"] = json!([tool]);
    called["body"]["tool_choice"] = json!("required");
    let mut streamed = chat("streamed", "1 + 1");
    streamed["body"]["stream"] = json!(true);
    let scored = json!({ "custom_id": "scored", "url": "/v1/completions", "body": {
        "prompt": ["1 + 1 = 2", "2 + 2 = 4"], "echo": true, "logprobs": 1, "max_tokens": 0
    } });
    write(folder, &[shaped, called, streamed, scored]);
    stdout(&batch(folder, &[]));
    let answers = answers(folder);
    let value: Value = serde_json::from_str(content(&answers["shaped"])).unwrap();
    assert!(value["n"] == 7 || value["n"] == 8, "{value}");
    let choice = &answers["called"]["response"]["body"]["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "f");
    assert_eq!(
        answers["streamed"]["response"]["body"]["error"]["param"],
        "stream"
    );
    let choices = answers["scored"]["response"]["body"]["choices"]
        .as_array()
        .unwrap();
    assert_eq!(
        (&choices[0]["text"], &choices[1]["text"]),
        (&json!("1 + 1 = 2"), &json!("2 + 2 = 4"))
    );
    assert!(choices[1]["logprobs"]["token_logprobs"][3].as_f64().unwrap() <= 0.0);
}

#[test]
fn an_interrupted_run_goes_on_and_answers_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sums: Vec<Value> = (10..40)
        .map(|i| chat(&format!("q{i}"), &format!("What is {i} + 7?")))
        .collect();
    write(folder, &sums);
    stdout(&batch(folder, &["--parallel", "4"]));
    let whole = answers(folder);
    assert_eq!(whole.len(), 30);
    for (id, answer) in &whole {
        let i: u32 = id[1..].parse().unwrap();
        assert_eq!(content(answer), format!("{i} + 7 = {}", i + 7));
    }
    // Killed in the middle of a line: the output is not there yet, and what is whole of the part is kept.
    let text = fs::read_to_string(folder.join("out.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut part = format!("{}\n{}\n", lines[4], lines[9]);
    part.push_str(&lines[11][..30]);
    fs::remove_file(folder.join("out.jsonl")).unwrap();
    fs::write(folder.join("out.jsonl.part"), part).unwrap();
    let output = batch(folder, &[]);
    stdout(&output);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("28 answers, 0 of them errors"), "{stderr}");
    assert!(!folder.join("out.jsonl.part").exists());
    let again = answers(folder);
    assert_eq!(
        again.len(),
        fs::read_to_string(folder.join("out.jsonl"))
            .unwrap()
            .lines()
            .count()
    );
    for (id, answer) in &whole {
        assert_eq!(content(&again[id]), content(answer));
    }
    // Nothing is left to do, until the file grows.
    let output = batch(folder, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("all 30 answers are there"));
    write(folder, &[&sums[..], &[chat("new", "What is 3 + 4?")]].concat());
    stdout(&batch(folder, &[]));
    let grown = answers(folder);
    assert_eq!((grown.len(), content(&grown["new"])), (31, "3 + 4 = 7"));
}

#[test]
fn killed_at_any_time_it_leaves_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sums: Vec<Value> = (10..99)
        .map(|i| chat(&format!("q{i}"), &format!("What is {i} + 1?")))
        .collect();
    write(folder, &sums);
    for wait in [150, 300, 450] {
        let mut command = bitnet();
        command.arg("batch").arg("-i").arg(folder.join("in.jsonl"));
        command
            .arg("-o")
            .arg(folder.join("out.jsonl"))
            .args(["--temp", "0", "-q", "--parallel", "2"]);
        let mut child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        if folder.join("out.jsonl").exists() {
            assert_eq!(answers(folder).len(), sums.len());
        }
    }
    stdout(&batch(folder, &[]));
    assert_eq!(answers(folder).len(), sums.len());
}

#[test]
fn what_cannot_be_told_apart_is_refused_before_a_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(
        folder,
        &[
            chat("same", "1 + 1"),
            chat("other", "1 + 1"),
            chat("same", "1 + 2"),
        ],
    );
    let stderr = program::failure(&batch(folder, &["-m", "no/such/folder"]));
    assert!(
        stderr.contains("lines 1 and 3 have the custom_id \"same\""),
        "{stderr}"
    );
    fs::write(folder.join("in.jsonl"), b"{}\n\n{\"prompt\": \"\xff\"}\n").unwrap();
    let stderr = program::failure(&batch(folder, &["-m", "no/such/folder"]));
    assert!(stderr.contains("line 3 is not UTF-8"), "{stderr}");
    fs::write(folder.join("out.jsonl"), "notes of mine\n").unwrap();
    write(folder, &[chat("a", "1 + 1")]);
    let stderr = program::failure(&batch(folder, &[]));
    assert!(stderr.contains("line 1 is no answer of this command"), "{stderr}");
    assert_eq!(
        fs::read_to_string(folder.join("out.jsonl")).unwrap(),
        "notes of mine\n"
    );
    assert!(!folder.join("out.jsonl.part").exists());
}
