//! Bodies that nobody means: an error each, and soon.

mod asking;

use std::time::{Duration, Instant};

use asking::{ask, refused, server};
use bitnet_api::parse;
use serde_json::{Value, json};

#[test]
fn what_is_no_json_object_is_refused() {
    let deep = |open: &str, n: usize| open.repeat(n).into_bytes();
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b" \n".to_vec(),
        b"[]".to_vec(),
        b"\"text\"".to_vec(),
        b"{\"messages\": [".to_vec(),
        b"{\"a\": NaN}".to_vec(),
        b"{\"a\": Infinity}".to_vec(),
        b"{\"a\": 1e999}".to_vec(),
        b"{\"a\": \"\xff\"}".to_vec(),
        b"\xff".to_vec(),
        b"{\"a\": \"\\ud800\"}".to_vec(),
        b"{\"a\": 1} x".to_vec(),
        [b"{\"a\":".to_vec(), deep("[", 200)].concat(),
        deep("{\"a\":", 100_000),
        deep("[", 4 << 20),
    ];
    for body in bodies {
        let begun = Instant::now();
        let error = parse(&body).unwrap_err();
        assert_eq!((error.status, error.code), (400, Some("invalid_json")));
        assert!(error.message.len() < 300 && begun.elapsed() < Duration::from_secs(2));
    }
    // Of two fields of a name the last counts.
    assert_eq!(parse(b"{\"n\": 1, \"n\": 2}").unwrap()["n"], 2);
}

fn with(name: &str, value: &Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "1 + 1" }], "max_tokens": 2 });
    body[name] = value.clone();
    body
}

#[test]
fn fields_of_a_wrong_type_or_range_are_named() {
    let cases = json!({
        "temperature": ["hot", -1, 101, true, [], {}, 1e308],
        "top_p": [0, 1.5, -0.1, "x"],
        "top_k": [-2, 1.5, "x", true, 1e30],
        "min_p": [-0.1, 2],
        "frequency_penalty": [5, "x"],
        "presence_penalty": [-5],
        "repetition_penalty": [0, -1],
        "n": [0, -1, 17, 1_000_000, "two", 1.5],
        "max_tokens": [0, -5, "ten", 8.5],
        "max_completion_tokens": [0],
        "min_tokens": [-1, 3],
        "seed": ["x", 1.5, 1e30],
        "stop": ["", ["x", ""], 5, [5], {}, "x".repeat(257), vec!["x"; 17]],
        "stop_token_ids": [5, [768], [-1], ["a"], vec![1; 2000]],
        "logit_bias": [[1], { "abc": 1 }, { "5": 200 }, { "-1": 1 }, { "+5": 1 }, { "999999999": 1 }, { "768": 1 }, { "5": "x" }, { "5": true }, { "": 1 }],
        "logprobs": [5, "yes"],
        "top_logprobs": [2, 21, -2],
        "stream": ["yes", 1],
        "stream_options": [{ "include_usage": true }, 3],
        "response_format": ["json", 5],
        "tools": ["none", [1]],
        "tool_choice": [5, "x"],
        "parallel_tool_calls": ["x"],
        "echo": [true],
        "chat_template": ["{{ 1 }}"],
        "chat_template_kwargs": [5],
        "add_generation_prompt": ["x"],
        "ignore_eos": [1],
        "priority": [1, "x"],
        "cache_salt": [5],
        "model": [5],
        "messages": [[], "hello", {}, 5],
    });
    for (name, values) in cases.as_object().unwrap() {
        for value in values.as_array().unwrap() {
            let error = refused("chat", with(name, value));
            let param = error["param"].as_str().unwrap();
            assert!(param.starts_with(name.as_str()), "{name} = {value}: {error}");
        }
    }
    let error = refused("chat", with("stream_options", &json!({ "include_usage": 5 })));
    assert_eq!(error["param"], "stream_options");
    for message in [
        json!(1),
        json!({ "role": "user" }),
        json!({ "content": "hello" }),
        json!({ "role": "user", "content": 5 }),
    ] {
        let error = refused("chat", with("messages", &json!([message])));
        assert!(
            error["param"].as_str().unwrap().starts_with("messages[0]"),
            "{message}: {error}"
        );
    }
    // -1 of a temperature, in the words of the specification.
    assert_eq!(
        refused("chat", with("temperature", &json!(-1))),
        json!({
            "message": "temperature is -1: a number from 0 to 100 is expected", "type": "invalid_request_error",
            "param": "temperature", "code": null
        })
    );
    for (name, value) in [
        ("best_of", json!(2)),
        ("suffix", json!("x")),
        ("max_tokens", json!(0)),
        ("logprobs", json!(21)),
        ("tools", json!([1])),
    ] {
        assert_eq!(
            refused("completion", json!({ "prompt": "a", name: value }))["param"],
            name
        );
    }
    assert_eq!(refused("completion", json!({}))["param"], "prompt");
    assert_eq!(refused("chat", json!({}))["param"], "messages");
}

#[test]
fn null_is_as_if_absent_and_unknown_fields_are_ignored() {
    let plain = ask("chat", with("max_tokens", &json!(8))).unwrap();
    let mut body = with("max_tokens", &json!(8));
    for name in [
        "stop",
        "n",
        "top_p",
        "seed",
        "tools",
        "tool_choice",
        "response_format",
        "logit_bias",
        "user",
        "stream",
        "stream_options",
        "frequency_penalty",
        "presence_penalty",
        "logprobs",
        "top_logprobs",
        "max_completion_tokens",
        "model",
        "structured_outputs",
    ] {
        body[name] = Value::Null;
    }
    body["verbosity"] = json!("low");
    body["metadata"] = json!({ "a": "b" });
    body["store"] = json!(false);
    body["logprob_token_ids"] = json!([1]);
    body["messages"][0]["name"] = Value::Null;
    body["messages"][0]["tool_calls"] = Value::Null;
    let answer = ask("chat", body).unwrap();
    assert_eq!(answer["choices"][0]["message"], plain["choices"][0]["message"]);
    // Whole numbers may have a point.
    assert_eq!(
        ask("chat", with("max_tokens", &json!(1.0))).unwrap()["usage"]["completion_tokens"],
        1
    );
    let body = json!({ "messages": [{ "role": "user", "content": "1 + 1" }], "stream": true, "stream_options": { "include_usage": null } });
    let chunks = asking::events("chat", body);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn prompts_that_do_not_fit_say_both_numbers() {
    let context = server().served.context;
    let long = "a b c d e f g h ".repeat(context);
    let error = refused(
        "chat",
        json!({ "messages": [{ "role": "user", "content": long }] }),
    );
    assert_eq!(
        (&error["code"], &error["n_ctx"]),
        (&json!("context_length_exceeded"), &json!(context))
    );
    let needed = error["n_prompt_tokens"].as_u64().unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains(&needed.to_string()) && message.contains(&context.to_string()),
        "{message}"
    );
    let error = refused("completion", json!({ "prompt": [[1], vec![1; context + 1]] }));
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("prompt"))
    );
}

#[test]
fn large_bodies_end_soon() {
    let many = json!({ "role": "user", "content": "a" });
    let bodies = [
        ("chat", json!({ "messages": vec![many; 50_000] })),
        ("chat", with("stop", &json!(vec!["a"; 500_000]))),
        ("chat", with("temperature", &json!("x".repeat(3 << 20)))),
        (
            "chat",
            with("tool_choice", &json!({ "type": "x".repeat(3 << 20) })),
        ),
        ("chat", with("model", &json!("\u{1}".repeat(1 << 20)))),
        ("completion", json!({ "prompt": vec![json!([1]); 300_000] })),
        ("completion", json!({ "prompt": vec![json!([[]]); 1000] })),
        ("chat", with("guided_regex", &json!("(".repeat(1 << 20)))),
        (
            "chat",
            with("guided_choice", &json!(vec!["a".repeat(20); 100_000])),
        ),
        ("chat", with("tools", &json!(vec![json!({}); 100_000]))),
    ];
    for (endpoint, body) in bodies {
        let begun = Instant::now();
        refused(endpoint, body);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
