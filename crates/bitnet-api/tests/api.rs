//! Requests to the demo model, answered in one piece and as streams.

mod asking;

use asking::{ask, chat, completion, events, refused, server};
use serde_json::{Value, json};

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn question() -> Value {
    json!([{ "role": "user", "content": "What is 17 + 25?" }])
}

#[test]
fn an_answer_has_every_field_of_openais() {
    let answer = chat(json!({ "messages": question() }));
    assert_eq!(content(&answer), "17 + 25 = 42");
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    assert_eq!(answer["model"], "demo");
    assert!(
        answer["system_fingerprint"]
            .as_str()
            .unwrap()
            .starts_with("bitnet-")
    );
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({ "role": "assistant", "content": "17 + 25 = 42", "refusal": null })
    );
    assert_eq!(
        (&choice["finish_reason"], &choice["logprobs"]),
        (&json!("stop"), &Value::Null)
    );
    assert_eq!(choice["stop_reason"], Value::Null);
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
}

#[test]
fn a_stream_says_the_same_in_openais_bytes() {
    let whole = chat(json!({ "messages": question() }));
    let chunks = events(
        "chat",
        json!({
            "messages": question(), "stream": true, "stream_options": { "include_usage": true }
        }),
    );
    let head = |chunk: &Value| {
        (
            chunk["id"].clone(),
            chunk["created"].clone(),
            chunk["model"].clone(),
        )
    };
    assert!(
        chunks
            .iter()
            .all(|chunk| head(chunk) == head(&chunks[0]) && chunk["object"] == "chat.completion.chunk")
    );
    let choice = |i: usize| chunks[i]["choices"][0].clone();
    assert_eq!(
        choice(0),
        json!({
            "index": 0, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null
        })
    );
    let n = chunks.len();
    assert_eq!(
        choice(n - 2),
        json!({
            "index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop", "stop_reason": null
        })
    );
    let text: String = (1..n - 2)
        .map(|i| choice(i)["delta"]["content"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(text, content(&whole));
    assert_eq!(chunks[n - 1]["choices"], json!([]));
    let same = ["prompt_tokens", "completion_tokens", "total_tokens"];
    assert!(
        same.iter()
            .all(|name| chunks[n - 1]["usage"][name] == whole["usage"][name])
    );
    assert!(chunks[..n - 1].iter().all(|chunk| chunk.get("usage").is_none()));
    // Without being asked, no chunk has counts and each has a choice.
    let chunks = events("chat", json!({ "messages": question(), "stream": true }));
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["choices"][0].is_object() && chunk.get("usage").is_none())
    );
}

#[test]
fn counts_of_tokens_grow_in_every_event_where_that_is_asked() {
    let chunks = events(
        "chat",
        json!({
            "messages": question(), "stream": true,
            "stream_options": { "include_usage": true, "continuous_usage_stats": true }
        }),
    );
    let counts: Vec<u64> = chunks
        .iter()
        .map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap())
        .collect();
    assert!(
        counts.is_sorted() && counts[0] == 0 && counts.last() > Some(&5),
        "{counts:?}"
    );
}

#[test]
fn every_choice_is_counted_and_the_prompt_once() {
    let one = chat(json!({ "messages": question(), "max_tokens": 4 }));
    let three = chat(json!({ "messages": question(), "max_tokens": 4, "n": 3 }));
    assert_eq!(three["choices"].as_array().unwrap().len(), 3);
    assert_eq!(three["choices"][2]["message"], one["choices"][0]["message"]);
    assert_eq!(three["choices"][2]["index"], 2);
    assert_eq!(three["choices"][2]["finish_reason"], "length");
    assert_eq!(three["usage"]["completion_tokens"], 12);
    assert_eq!(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    let chunks = events(
        "chat",
        json!({ "messages": question(), "max_tokens": 4, "n": 2, "stream": true }),
    );
    for index in 0..2 {
        let own = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().unwrap())
            .filter(|c| c["index"] == index);
        let text: String = own
            .clone()
            .filter_map(|c| c["delta"]["content"].as_str())
            .collect();
        assert_eq!(text, content(&one));
        assert_eq!(own.filter(|c| c["finish_reason"] == "length").count(), 1);
    }
}

#[test]
fn prompts_are_texts_or_ids_one_or_several() {
    let text = "User:20 + 3<|eot_id|>Assistant:";
    let answer = completion(json!({ "prompt": text }));
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["choices"][0]["text"], "20 + 3 = 23");
    let tokens = ask("tokenize", json!({ "prompt": text })).unwrap();
    assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
    assert_eq!(tokens["max_model_len"], server().served.context);
    let ids = &tokens["tokens"];
    let several = completion(json!({ "prompt": [ids, ids], "n": 2, "max_tokens": 3 }));
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(
        choices
            .iter()
            .map(|c| c["index"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert!(choices.iter().all(|c| c["text"] == choices[0]["text"]));
    assert_eq!(
        several["usage"]["prompt_tokens"].as_u64(),
        Some(2 * ids.as_array().unwrap().len() as u64)
    );
    assert_eq!(several["usage"]["completion_tokens"], 12);
    let mixed = completion(json!({ "prompt": [text, "User:1 + 1<|eot_id|>Assistant:"], "max_tokens": 32 }));
    assert_eq!(mixed["choices"][0]["text"], "20 + 3 = 23");
    assert_eq!(mixed["choices"][1]["text"], "1 + 1 = 2");
    // 16 tokens where nothing is said, and an empty prompt is the token that begins a text.
    let free = completion(json!({ "prompt": "", "ignore_eos": true }));
    assert_eq!(
        (
            &free["usage"]["completion_tokens"],
            &free["usage"]["prompt_tokens"]
        ),
        (&json!(16), &json!(1))
    );
    for bad in [
        json!([]),
        json!([[]]),
        json!([1e9]),
        json!([-1]),
        json!([1.5]),
        json!([[1], "a", null]),
        json!([true]),
        json!({}),
    ] {
        assert_eq!(
            refused("completion", json!({ "prompt": bad }))["param"],
            "prompt",
            "{bad}"
        );
    }
}

#[test]
fn what_ended_an_answer_is_told() {
    let ask = |more: Value| {
        let mut body = json!({ "messages": question() });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let choice = chat(body)["choices"][0].clone();
        (
            choice["message"]["content"].as_str().unwrap().to_owned(),
            choice["finish_reason"].clone(),
            choice["stop_reason"].clone(),
        )
    };
    assert_eq!(
        ask(json!({ "stop": ["never", " = "] })),
        ("17 + 25".to_owned(), json!("stop"), json!(" = "))
    );
    assert_eq!(
        ask(json!({ "stop": "+", "include_stop_str_in_output": true })),
        ("17 +".to_owned(), json!("stop"), json!("+"))
    );
    let ids = asking::ask("tokenize", json!({ "content": "=" })).unwrap()["tokens"][0].clone();
    let (text, reason, stop) = ask(json!({ "stop_token_ids": [ids] }));
    // The tokenizer may join the sign with its space.
    if stop != Value::Null {
        assert_eq!((reason, stop), (json!("stop"), ids));
        assert!(text.starts_with("17 + 25"));
    }
    assert_eq!(ask(json!({ "max_tokens": 2 })).1, "length");
    assert_eq!(
        ask(json!({ "max_completion_tokens": 2, "max_tokens": 9 })).1,
        "length"
    );
    // Beyond the context is as much as fits.
    assert_eq!(ask(json!({ "max_tokens": 1_000_000_000 })).0, "17 + 25 = 42");
    let context = server().served.context;
    for (n, made) in [(context - 3, 3), (context - 1, 1), (context, 1)] {
        let usage = completion(
            json!({ "prompt": vec![66; n], "max_tokens": 1_000_000_000, "ignore_eos": true }),
        )["usage"]
            .clone();
        assert_eq!(
            (&usage["prompt_tokens"], &usage["completion_tokens"]),
            (&json!(n), &json!(made))
        );
    }
}

#[test]
fn seeds_and_greedy_choices_are_repeatable() {
    let ask = |more: Value| {
        let mut body = json!({ "messages": question(), "temperature": 9, "n": 3, "max_tokens": 12 });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        chat(body)["choices"].clone()
    };
    let texts = |choices: &Value| -> Vec<String> {
        choices
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["message"]["content"].as_str().unwrap().to_owned())
            .collect()
    };
    let one = texts(&ask(json!({ "seed": -5 })));
    assert_eq!(one, texts(&ask(json!({ "seed": -5 }))));
    assert!(one[0] != one[1] || one[1] != one[2]);
    assert_ne!(one, texts(&ask(json!({ "seed": 5.0 }))));
    assert_ne!(texts(&ask(json!({}))), texts(&ask(json!({}))));
    assert!(
        texts(&ask(json!({ "top_k": 1, "seed": null })))
            .iter()
            .all(|text| text == "17 + 25 = 42")
    );
    assert!(
        texts(&ask(json!({ "temperature": 1e-6 })))
            .iter()
            .all(|text| text == "17 + 25 = 42")
    );
}

#[test]
fn biases_force_and_forbid() {
    let ask = |bias: Value| {
        let answer = chat(json!({
            "messages": question(), "logit_bias": bias, "logprobs": true, "max_tokens": 3, "ignore_eos": true,
            "return_token_ids": true
        }));
        assert_eq!(
            answer["prompt_token_ids"].as_array().unwrap().len() as u64,
            answer["usage"]["prompt_tokens"].as_u64().unwrap()
        );
        answer["choices"][0]["token_ids"].clone()
    };
    assert_eq!(ask(json!({ "66": 100 })), json!([66, 66, 66]));
    let two = ask(json!({ "66": 100, "67": 100.0 }))[0].clone();
    let (first, other) = if two == 66 { ("66", 67) } else { ("67", 66) };
    assert_eq!(ask(json!({ "66": 100, "67": 100, first: -100 }))[0], other);
}

#[test]
fn log_probabilities_join_to_the_text() {
    let answer = chat(json!({ "messages": question(), "logprobs": true, "top_logprobs": 3 }));
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(
        entries.len() as u64,
        answer["usage"]["completion_tokens"].as_u64().unwrap()
    );
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "17 + 25 = 42");
    assert_eq!(entries.last().unwrap()["token"], "<|eot_id|>");
    for entry in entries {
        let top = entry["top_logprobs"].as_array().unwrap();
        let values: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(values.len() == 3 && values.is_sorted_by(|a, b| a >= b) && values[0] <= 0.0);
        assert_eq!(entry["logprob"], top[0]["logprob"]);
    }
    let chunks = events(
        "chat",
        json!({ "messages": question(), "logprobs": true, "top_logprobs": 3, "stream": true }),
    );
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(&streamed, entries);
}

#[test]
fn completions_have_columns_and_echo_scores_a_text() {
    let answer =
        completion(json!({ "prompt": "User:20 + 3<|eot_id|>Assistant:", "logprobs": 2, "max_tokens": 4 }));
    let columns = &answer["choices"][0]["logprobs"];
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(columns[name].as_array().unwrap().len(), 4, "{name}");
    }
    assert!((1..=3).contains(&columns["top_logprobs"][0].as_object().unwrap().len()));
    assert_eq!(columns["text_offset"][0], 0);

    let text = "1 + 1 = 2, é 2 + 2 = 4";
    let scored = completion(json!({ "prompt": text, "echo": true, "logprobs": 1, "max_tokens": 0 }));
    let choice = &scored["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!(text), &json!("length"))
    );
    let columns = &choice["logprobs"];
    let tokens = columns["tokens"].as_array().unwrap();
    assert_eq!(
        tokens.len() as u64,
        scored["usage"]["prompt_tokens"].as_u64().unwrap()
    );
    assert_eq!(
        (&columns["token_logprobs"][0], &columns["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    let values = columns["token_logprobs"].as_array().unwrap();
    assert!(values[1..].iter().all(|value| value.as_f64().unwrap() <= 0.0));
    let offsets: Vec<u64> = columns["text_offset"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o.as_u64().unwrap())
        .collect();
    assert!(offsets.is_sorted() && offsets[1] == 0 && *offsets.last().unwrap() < text.chars().count() as u64);

    // The echo of an answer too, in one piece and in a stream.
    let prompt = "User:20 + 3<|eot_id|>Assistant:";
    let whole = completion(json!({ "prompt": prompt, "echo": true, "logprobs": 0, "n": 2 }));
    assert_eq!(whole["choices"][1]["text"], format!("{prompt}20 + 3 = 23"));
    let chunks = events(
        "completion",
        json!({ "prompt": prompt, "echo": true, "logprobs": 0, "n": 2, "stream": true }),
    );
    let (mut text, mut names) = (String::new(), Vec::new());
    for choice in chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
        .filter(|c| c["index"] == 1)
    {
        text.push_str(choice["text"].as_str().unwrap());
        names.extend(
            choice["logprobs"]["tokens"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
    }
    assert_eq!(text, whole["choices"][1]["text"].as_str().unwrap());
    assert_eq!(json!(names), whole["choices"][1]["logprobs"]["tokens"]);
    let offsets = whole["choices"][1]["logprobs"]["text_offset"].as_array().unwrap();
    let n = whole["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(offsets[n], prompt.chars().count());
}

#[test]
fn a_message_can_be_continued() {
    let messages = json!([{ "role": "user", "content": "What is 17 + 25?" }, { "role": "assistant", "content": "17 + 25 " }]);
    let answer = chat(json!({ "messages": messages, "continue_final_message": true }));
    assert_eq!(
        format!("17 + 25{}", content(&answer)).replace("  ", " "),
        "17 + 25 = 42"
    );
    let text = ask(
        "apply_template",
        json!({ "messages": question(), "add_generation_prompt": false }),
    )
    .unwrap();
    assert_eq!(text["prompt"], "User:What is 17 + 25?<|eot_id|>");
    for bad in [
        json!({ "messages": messages, "continue_final_message": true, "add_generation_prompt": true }),
        json!({ "messages": question(), "continue_final_message": true }),
    ] {
        assert_eq!(refused("chat", bad)["param"], "continue_final_message");
    }
}

#[test]
fn tokens_go_there_and_back() {
    let text = "Hello,  world 123 naïve 漢字 😀\n\tend";
    for body in [
        json!({ "prompt": text, "add_special_tokens": false }),
        json!({ "content": text, "add_special": false, "model": "other" }),
    ] {
        let tokens = ask("tokenize", body).unwrap();
        assert_eq!(
            tokens["count"].as_u64().unwrap() as usize,
            tokens["tokens"].as_array().unwrap().len()
        );
        let back = ask("detokenize", json!({ "tokens": tokens["tokens"] })).unwrap();
        assert_eq!(back, json!({ "prompt": text, "content": text }));
    }
    let pieces = ask("tokenize", json!({ "content": "a é", "with_pieces": true })).unwrap();
    let bytes: Vec<u8> = pieces["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|token| match &token["piece"] {
            Value::String(text) => text.clone().into_bytes(),
            list => list
                .as_array()
                .unwrap()
                .iter()
                .map(|byte| byte.as_u64().unwrap() as u8)
                .collect(),
        })
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "a é");
    let tokens = ask("tokenize", json!({ "messages": question() })).unwrap();
    assert_eq!(
        tokens["count"],
        chat(json!({ "messages": question(), "max_tokens": 1 }))["usage"]["prompt_tokens"]
    );
    assert_eq!(refused("tokenize", json!({}))["param"], "prompt");
    assert_eq!(
        refused("detokenize", json!({ "tokens": [768] }))["param"],
        "tokens"
    );
}

#[test]
fn models_have_names() {
    let models = server().served.models();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(models["data"][1]["root"], "demo");
    assert_eq!(server().served.model("other").unwrap()["object"], "model");
    assert_eq!(server().served.model("nothing").unwrap_err().status, 404);
    let error = refused("chat", json!({ "messages": question(), "model": "nothing" }));
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("model_not_found"), &json!("model"))
    );
}
