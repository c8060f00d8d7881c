//! Answers that must be something: JSON, choices, patterns, calls of tools.

mod asking;

use asking::{chat, completion, events, job, refused, server};
use bitnet_model::schedule::{Event, Request};
use serde_json::{Value, json};

fn city() -> Value {
    json!({
        "type": "object",
        "properties": { "city": { "enum": ["Rome", "Oslo"] }, "days": { "type": "integer", "minimum": 1, "maximum": 7 } },
        "required": ["city", "days"], "additionalProperties": false
    })
}

fn format(schema: &Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "answer", "strict": true, "schema": schema } })
}

fn check_city(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    assert!(value["city"] == "Rome" || value["city"] == "Oslo", "{text}");
    assert!((1..=7).contains(&value["days"].as_u64().unwrap()), "{text}");
}

fn body(more: Value) -> Value {
    let mut body =
        json!({ "messages": [{ "role": "user", "content": "Weather in Rome?" }], "max_tokens": 200 });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

fn tool(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name, "description": "Weather of a city", "parameters": city() } })
}

#[test]
fn a_schema_is_obeyed_at_any_temperature_and_in_streams() {
    for seed in 0..3 {
        let answer = chat(body(
            json!({ "response_format": format(&city()), "temperature": 2, "seed": seed }),
        ));
        let choice = &answer["choices"][0];
        check_city(choice["message"]["content"].as_str().unwrap());
        assert_eq!(choice["finish_reason"], "stop");
    }
    let chunks = events(
        "chat",
        body(json!({ "response_format": format(&city()), "stream": true })),
    );
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    check_city(&text);
    // Several prompts and choices each have a constraint of their own.
    let answer = completion(
        json!({ "prompt": ["a", "b"], "n": 2, "guided_choice": ["red", "green"], "max_tokens": 20 }),
    );
    for choice in answer["choices"].as_array().unwrap() {
        assert!(
            ["red", "green"].contains(&choice["text"].as_str().unwrap()),
            "{choice}"
        );
    }
}

#[test]
fn guesses_of_what_is_forced_change_no_token() {
    for seed in 0..3 {
        let asked = || {
            let body = body(json!({ "response_format": format(&city()), "temperature": 1.5, "seed": seed }));
            job("chat", body).unwrap().requests.remove(0)
        };
        let tokens = |request: Request| -> Vec<u32> {
            let events = server().client.stream(request).unwrap();
            let ids = events.filter_map(|event| match event {
                Event::Token { id, .. } => Some(id),
                _ => None,
            });
            ids.collect()
        };
        let mut plain = asked();
        assert!(plain.options.draft_max > 0);
        plain.options.draft_max = 0;
        assert_eq!(tokens(plain), tokens(asked()));
    }
    let free = job("chat", body(json!({}))).unwrap();
    assert_eq!(
        free.requests[0].options.draft_max,
        server().served.defaults.draft_max
    );
}

#[test]
fn every_name_of_a_constraint_works_and_two_do_not() {
    for more in [
        json!({ "structured_outputs": { "regex": "[0-9]{3}", "json": null } }),
        json!({ "guided_regex": "[0-9]{3}" }),
        json!({ "structured_outputs": { "grammar": "start: /[0-9]{3}/" } }),
        json!({ "grammar": "root ::= [0-9] [0-9] [0-9]" }),
        json!({ "guided_json": { "type": "integer", "minimum": 100, "maximum": 999 } }),
        json!({ "json_schema": "{\"type\": \"integer\", \"minimum\": 100, \"maximum\": 999}" }),
    ] {
        let answer = chat(body(more.clone()));
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(
            text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit()),
            "{more}: {text}"
        );
    }
    let object = chat(body(json!({ "response_format": { "type": "json_object" } })));
    assert!(
        object["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .trim_start()
            .starts_with('{')
    );
    let plain = chat(body(
        json!({ "response_format": { "type": "text" }, "grammar": "" }),
    ));
    assert_eq!(
        plain["choices"][0]["message"],
        chat(body(json!({})))["choices"][0]["message"]
    );
    refused(
        "chat",
        body(json!({ "guided_regex": "a", "guided_choice": ["a"] })),
    );
}

#[test]
fn bad_constraints_are_refused() {
    for bad in [
        format(&json!({ "type": "nosuch" })),
        format(&json!({ "$ref": "#/nowhere" })),
        json!({ "type": "json_schema" }),
        json!({ "type": "json_schema", "json_schema": { "name": "x" } }),
        json!({ "type": "yaml" }),
        json!({}),
    ] {
        assert_eq!(
            refused("chat", body(json!({ "response_format": bad })))["param"],
            "response_format",
            "{bad}"
        );
    }
    assert_eq!(
        refused("chat", body(json!({ "guided_regex": "((((" })))["code"],
        "invalid_schema"
    );
    for bad in [
        json!({}),
        json!({ "regex": 5 }),
        json!({ "choice": [] }),
        json!({ "regex": "a", "choice": ["a"] }),
    ] {
        assert_eq!(
            refused("chat", body(json!({ "structured_outputs": bad })))["param"],
            "structured_outputs",
            "{bad}"
        );
    }
}

fn check_call(call: &Value, name: &str) {
    assert!(
        call["id"].as_str().unwrap().starts_with("call_") && call["id"].as_str().unwrap().len() == 29,
        "{call}"
    );
    assert_eq!(
        (&call["type"], &call["function"]["name"]),
        (&json!("function"), &json!(name))
    );
    check_city(call["function"]["arguments"].as_str().unwrap());
}

#[test]
fn required_and_named_tools_are_called() {
    let answer = chat(body(
        json!({ "tools": [tool("get_weather")], "tool_choice": "required" }),
    ));
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&Value::Null, &json!("tool_calls"))
    );
    assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), 1);
    check_call(&choice["message"]["tool_calls"][0], "get_weather");
    for choice in [
        json!({ "type": "function", "function": { "name": "second" } }),
        json!({ "type": "allowed_tools", "allowed_tools": {
            "mode": "required", "tools": [{ "type": "function", "function": { "name": "second" } }]
        } }),
    ] {
        let answer = chat(body(
            json!({ "tools": [tool("get_weather"), tool("second")], "tool_choice": choice }),
        ));
        check_call(&answer["choices"][0]["message"]["tool_calls"][0], "second");
    }
    // Cut arguments are no call that can be made.
    let answer = chat(body(
        json!({ "tools": [tool("get_weather")], "tool_choice": "required", "max_tokens": 30 }),
    ));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_streamed_call_begins_with_its_name_and_goes_on_with_arguments() {
    let request = body(
        json!({ "tools": [tool("get_weather")], "tool_choice": "required", "stream": true, "logprobs": true }),
    );
    let chunks = events("chat", request);
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": null })
    );
    let deltas: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array())
        .inspect(|calls| assert_eq!(calls.len(), 1))
        .map(|calls| &calls[0])
        .collect();
    assert!(deltas[0]["id"].is_string());
    assert_eq!(
        deltas[0]["function"],
        json!({ "name": "get_weather", "arguments": "" })
    );
    let mut arguments = String::new();
    for delta in &deltas[1..] {
        assert_eq!(
            delta.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["index", "function"]
        );
        arguments.push_str(delta["function"]["arguments"].as_str().unwrap());
    }
    check_city(&arguments);
    let last = chunks.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]),
        (&json!({}), &json!("tool_calls"))
    );
}

#[test]
fn tools_may_be_called_or_not() {
    let answer = chat(body(json!({ "tools": [tool("get_weather")], "max_tokens": 60 })));
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"].get("tool_calls").is_some(),
        choice["finish_reason"] == "tool_calls"
    );
    let answer = chat(body(
        json!({ "tools": [tool("get_weather")], "tool_choice": "none", "max_tokens": 8 }),
    ));
    assert!(answer["choices"][0]["message"].get("tool_calls").is_none());
    // With a schema the answer is a call or what obeys it.
    for seed in 0..4 {
        let answer = chat(body(json!({
            "tools": [tool("get_weather")], "response_format": format(&city()), "temperature": 3, "seed": seed
        })));
        let choice = &answer["choices"][0];
        match choice["message"]["content"].as_str() {
            Some(text) => check_city(text),
            None => check_call(&choice["message"]["tool_calls"][0], "get_weather"),
        }
    }
    for (more, param) in [
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (
            json!({ "tools": [tool("a")], "tool_choice": "sometimes" }),
            "tool_choice",
        ),
        (
            json!({ "tools": [tool("a")], "tool_choice": { "type": "function", "function": { "name": "b" } } }),
            "tool_choice",
        ),
        (
            json!({ "tools": [tool("a")], "tool_choice": { "type": "function" } }),
            "tool_choice",
        ),
        (
            json!({ "tools": [tool("a"), tool("a")] }),
            "tools[1].function.name",
        ),
        (json!({ "tools": [tool("a b")] }), "tools[0].function.name"),
        (json!({ "tools": [{ "type": "web" }] }), "tools[0].type"),
        (json!({ "tools": ["a"] }), "tools[0].type"),
        (
            json!({ "tools": [{ "type": "function", "function": { "name": "a", "parameters": { "type": "nosuch" } } }] }),
            "tools",
        ),
        (json!({ "tools": "none" }), "tools"),
        (
            json!({ "tools": [tool("a")], "guided_regex": "a" }),
            "guided_regex",
        ),
    ] {
        assert_eq!(refused("chat", body(more.clone()))["param"], param, "{more}");
    }
}

#[test]
fn calls_and_results_are_part_of_a_conversation() {
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "get_weather", "arguments": "{\"city\": \"Rome\", \"days\": 1}" } });
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "Weather " }, { "type": "text", "text": "in Rome?" }] },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
        { "role": "tool", "tool_call_id": "call_2", "content": "warm" }
    ]);
    chat(json!({ "messages": messages, "tools": [tool("get_weather")], "max_tokens": 4 }));
    let prompt = asking::ask(
        "apply_template",
        json!({ "messages": messages, "tools": [tool("get_weather")] }),
    )
    .unwrap();
    let prompt = prompt["prompt"].as_str().unwrap();
    assert!(
        prompt.starts_with("System:Be brief.\n\nYou can call these functions"),
        "{prompt}"
    );
    assert!(
        prompt.contains("{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", "),
        "{prompt}"
    );
    assert!(prompt.ends_with(
        "User:Weather in Rome?<|eot_id|>\
         Assistant:<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 1}}\n</tool_call><|eot_id|>\
         User:<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response><|eot_id|>Assistant:"
    ), "{prompt}");
    for (bad, param) in [
        (
            json!([{ "role": "assistant", "content": null }]),
            "messages[0].content",
        ),
        (
            json!([{ "role": "user", "content": "a" }, { "role": "wizard", "content": "a" }]),
            "messages[1].role",
        ),
        (
            json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]),
            "messages[0].content",
        ),
        (
            json!([{ "role": "assistant", "tool_calls": [{ "id": "x" }] }]),
            "messages[0].tool_calls[0].function",
        ),
    ] {
        assert_eq!(
            refused("chat", json!({ "messages": bad }))["param"],
            param,
            "{bad}"
        );
    }
}
