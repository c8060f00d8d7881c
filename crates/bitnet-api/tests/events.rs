//! Events that no model gives when it is asked to: gathered, cut, failed, cancelled.

mod asking;

use std::collections::BTreeMap;
use std::time::Duration;

use asking::{job, refused, server};
use bitnet_api::{Answers, ApiError, Served, apply_template};
use bitnet_model::schedule::{EndedBy, Event, FinishReason, Timings};
use bitnet_model::{ChatTemplate, Device, Error, Model};
use serde_json::{Value, json};

fn token(text: &str) -> Event {
    Event::Token {
        choice: 0,
        id: 66,
        text: text.to_owned(),
        logprob: None,
    }
}

fn end(reason: FinishReason, text: &str) -> Event {
    Event::Finished {
        choice: 0,
        reason,
        ended_by: (reason == FinishReason::Stop).then_some(EndedBy::StopId(66)),
        text: text.to_owned(),
        timings: Timings {
            queued: Duration::ZERO,
            ..Timings::default()
        },
    }
}

fn body(more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "a" }] });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

fn answers(more: Value) -> Answers {
    Answers::new(&server().served, &job("chat", body(more)).unwrap(), "x")
}

fn choices(answers: &mut Answers) -> Vec<Value> {
    let chunks = answers.chunks();
    let choice = |chunk: &String| serde_json::from_str::<Value>(chunk).unwrap()["choices"][0].clone();
    chunks.iter().map(choice).collect()
}

#[test]
fn what_gathers_is_one_event() {
    let mut answers = answers(json!({ "stream": true }));
    assert_eq!(answers.id(), "chatcmpl-x");
    answers.take(0, Event::Started { cached: 3 });
    answers.take(0, token("a"));
    answers.take(0, token(""));
    answers.take(0, token("b"));
    let chunks = choices(&mut answers);
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[1]["delta"], json!({ "content": "ab" }));
    // A token without text is no event.
    answers.take(0, token(""));
    assert!(answers.chunks().is_empty() && !answers.is_over());
    answers.take(0, end(FinishReason::Stop, "c"));
    let chunks = choices(&mut answers);
    assert_eq!(chunks[0]["delta"], json!({ "content": "c" }));
    assert_eq!(
        (&chunks[1]["finish_reason"], &chunks[1]["stop_reason"]),
        (&json!("stop"), &json!(66))
    );
    assert!(answers.is_over() && answers.chunks().is_empty());
    assert_eq!((answers.cached_tokens(), answers.completion_tokens()), (3, 4));
    assert_eq!(answers.choices().collect::<Vec<_>>(), [(4, Some("stop"))]);
}

#[test]
fn a_call_that_gathers_begins_with_an_event_of_its_own() {
    let tool = json!([{ "type": "function", "function": { "name": "f" } }]);
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    let mut streamed = answers(json!({ "tools": tool, "stream": true }));
    streamed.take(0, token("So: "));
    // One character is one token.
    for c in call.chars() {
        streamed.take(0, token(&c.to_string()));
    }
    streamed.take(0, end(FinishReason::Stop, ""));
    let deltas: Vec<Value> = choices(&mut streamed)
        .iter()
        .map(|choice| choice["delta"].clone())
        .collect();
    assert_eq!(deltas[0]["content"], "So: ");
    let began = &deltas[1]["tool_calls"][0];
    assert_eq!(
        (&began["function"]["arguments"], &began["index"]),
        (&json!(""), &json!(0))
    );
    assert_eq!(
        deltas[2]["tool_calls"],
        json!([{ "index": 0, "function": { "arguments": "{\"a\": 1}" } }])
    );
    assert_eq!(deltas[3], json!({}));

    let mut whole = answers(json!({ "tools": tool }));
    whole.take(0, token(call));
    whole.take(0, token(call));
    whole.take(0, end(FinishReason::Stop, ""));
    let answer: Value = serde_json::from_str(&whole.whole().unwrap()).unwrap();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&Value::Null, &json!("tool_calls"))
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(
        (calls.len(), &calls[1]["function"]["arguments"]),
        (2, &json!("{\"a\": 1}"))
    );
    assert_ne!(calls[0]["id"], calls[1]["id"]);
}

#[test]
fn failures_and_cancelled_answers_have_no_finish() {
    let mut failed = answers(json!({ "stream": true }));
    failed.take(0, token("a"));
    failed.take(
        0,
        Event::Failed(Error::Device("/secret/path: CUDA_ERROR".to_owned())),
    );
    assert!(failed.is_over());
    assert_eq!(choices(&mut failed).len(), 1);
    let error = failed.failure().unwrap();
    assert_eq!((error.status, error.code), (500, Some("internal")));
    assert!(!error.message.contains("secret"));
    assert!(failed.whole().is_err());

    let mut cancelled = answers(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    cancelled.take(0, token("a"));
    cancelled.take(0, end(FinishReason::Cancelled, ""));
    assert!(cancelled.is_over() && cancelled.failure().is_none());
    assert!(
        choices(&mut cancelled)
            .iter()
            .all(|choice| choice["finish_reason"].is_null())
    );
    assert_eq!(cancelled.choices().collect::<Vec<_>>(), [(1, None)]);
}

#[test]
fn a_template_that_knows_tools_gets_them_as_they_are() {
    let model = Model::load("../bitnet-cli/demo-model", Device::Cpu).unwrap();
    let mut served = Served::new(&model, vec!["demo".to_owned()]).unwrap();
    let source = "{% if tools %}[{{ tools[0].function.name }}]{% endif %}{% for m in messages %}\
                  {{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments.a }}{% endfor %};{% endfor %}{{ mood }}";
    served.chat_template = Some(ChatTemplate::from_source(source, BTreeMap::new()).unwrap());
    let request = json!({
        "messages": [
            { "role": "user", "content": "q" },
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 7}" } }] },
            { "role": "tool", "content": "r", "tool_call_id": "1" }
        ],
        "tools": [{ "type": "function", "function": { "name": "f" } }],
        "chat_template_kwargs": { "mood": "!", "messages": [] }
    });
    let prompt = |served: &Served, request: &Value| {
        let fields = bitnet_api::parse(request.to_string().as_bytes())?;
        apply_template(served, fields).map(|answer| answer["prompt"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        prompt(&served, &request).unwrap(),
        "[f]user:q;assistant:None7;tool:r;!"
    );
    // One that refuses, and none at all.
    served.chat_template =
        Some(ChatTemplate::from_source("{{ raise_exception('no') }}", BTreeMap::new()).unwrap());
    let error: ApiError = prompt(&served, &request).unwrap_err();
    assert_eq!((error.status, error.param.as_deref()), (400, Some("messages")));
    served.chat_template = None;
    let error = prompt(&served, &request).unwrap_err();
    assert!(error.message.contains("no chat template"), "{error}");
    // Without a tokenizer ids are all that can be asked with.
    served.tokenizer = None;
    served.compiler = None;
    let ask = |more: Value| {
        let mut body = json!({ "prompt": [1, 2] });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        bitnet_api::completion(&served, bitnet_api::parse(body.to_string().as_bytes()).unwrap())
            .map(|job| job.requests.len())
    };
    assert_eq!(ask(json!({})), Ok(1));
    for (more, param) in [
        (json!({ "prompt": "a" }), "prompt"),
        (json!({ "stop": "a" }), "stop"),
        (json!({ "echo": true }), "echo"),
        (json!({ "guided_regex": "a" }), "guided_regex"),
    ] {
        assert_eq!(ask(more).unwrap_err().param.as_deref(), Some(param));
    }
    assert_eq!(refused("chat", body(json!({ "tools": 1 })))["param"], "tools");
}
