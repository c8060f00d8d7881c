//! Answers, whole and streamed: their bytes, their ends, and what becomes of those that nobody waits for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bitnet_server::ServeOptions;
use serde_json::{Map, Value, json};

use crate::support::{Answer, CHAT, Client, Running, chat, long, options, start, streamed, under_way, wait};

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let server = start(options());
    let whole = server.chat(&json!({}));
    assert_eq!(
        (whole.status, whole.header("content-type")),
        (200, Some("application/json"))
    );
    let whole = whole.json();
    assert_eq!(whole["choices"][0]["message"]["content"], "17 + 25 = 42");
    let mut client = server.client();
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = client.post(CHAT, &chat(&usage));
    assert_eq!(
        answer.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let events = answer.events();
    assert_eq!(events.last(), Some(&None), "[DONE] is the last");
    assert_eq!(events.iter().filter(|event| event.is_none()).count(), 1);
    let first = events[0].as_ref().unwrap();
    assert_eq!(
        first["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(streamed(&events), "17 + 25 = 42");
    let last = events[events.len() - 2].as_ref().unwrap();
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &whole["usage"]["completion_tokens"])
    );
    // The connection is used again, also after an error.
    assert_eq!(client.post(CHAT, &json!({"messages": []})).status, 400);
    let text = json!({"prompt": "User:1 + 1<|eot_id|>Assistant:", "max_tokens": 9, "temperature": 0, "n": 2, "stream": true});
    let events = client.post("/v1/completions", &text).events();
    for choice in 0..2 {
        let chunks = events.iter().flatten().map(|chunk| &chunk["choices"][0]);
        let of_choice = chunks.filter(|own| own["index"] == choice);
        let text: String = of_choice.filter_map(|own| own["text"].as_str()).collect();
        assert_eq!(text, "1 + 1 = 2");
    }
    server.wait_idle();
}

#[test]
fn a_silent_stream_pings() {
    let server = start(ServeOptions {
        ping_interval: Duration::from_millis(20),
        ..options()
    });
    let mut client = server.client();
    server.gate.hold_after(3);
    client.ask_json(CHAT, &chat(&json!({"stream": true})));
    let mut answer = client.head();
    let mut pings = 0;
    while pings < 3 {
        let chunk = client.chunk();
        assert!(!chunk.is_empty(), "the answer ended before the engine was held");
        pings += usize::from(chunk == b":\n\n");
        answer.body.extend(chunk);
    }
    server.gate.release();
    client.rest(&mut answer, false);
    assert_eq!(streamed(&answer.events()), "17 + 25 = 42");
}

#[test]
fn who_goes_away_takes_the_work_along() {
    let server = start(ServeOptions {
        slots: 2,
        ..options()
    });
    let expected = server.chat(&json!({})).text();
    // One in the middle of a stream, one that waits for an answer in one piece, and two in the queue, a stream and a whole one.
    let mut clients: Vec<Client> = Vec::new();
    for streams in [true, false, true, false] {
        let mut client = server.client();
        client.ask_json(CHAT, &long(&json!({"stream": streams, "max_tokens": 600})));
        if clients.is_empty() {
            client.head();
            client.chunk();
        }
        clients.push(client);
    }
    wait("all are there", || under_way(&server) == 4.0);
    server.gate.hold();
    let before = server.metric("vllm:request_success_total");
    drop(clients);
    wait("all are noticed", || {
        server.metric("bitnet_requests_aborted_total") == 4.0
    });
    server.gate.release();
    server.wait_idle();
    assert_eq!(server.metric("vllm:request_success_total"), before);
    assert_eq!(
        server.metric("bitnet_requests_aborted_total{cause=\"disconnect\"}"),
        4.0
    );
    let after: Value = serde_json::from_str(&server.chat(&json!({})).text()).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    assert_eq!(after["choices"], expected["choices"]);
}

#[test]
fn a_client_that_does_not_read_holds_little_and_not_for_long() {
    let server = start(ServeOptions {
        slow_client_timeout: Duration::from_millis(300),
        ..options()
    });
    let mut client = server.client();
    let small = socket2::SockRef::from(client.reader.get_ref()).set_recv_buffer_size(4096);
    small.unwrap();
    // Some 4 kB a token: more than all buffers between the two hold.
    let body = long(&json!({"stream": true, "logprobs": true, "top_logprobs": 20, "n": 4}));
    client.ask_json(CHAT, &body);
    assert_eq!(client.head().status, 200);
    let begun = server.gate.steps.load(Ordering::SeqCst);
    wait("it is given up", || {
        server.metric("bitnet_requests_aborted_total{cause=\"slow_client\"}") == 1.0
    });
    assert!(
        server.gate.steps.load(Ordering::SeqCst) - begun < 900,
        "it was held before its end"
    );
    server.wait_idle();
    // What was in the buffers can be read; then the connection has ended.
    while !client.is_closed() {
        let n = client.reader.buffer().len();
        std::io::BufRead::consume(&mut client.reader, n);
    }
    assert_eq!(server.chat(&json!({})).status, 200);
}

#[test]
fn a_full_queue_refuses() {
    let server = start(ServeOptions {
        slots: 1,
        max_queue: 2,
        ..options()
    });
    server.gate.hold();
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.ask_json(CHAT, &chat(&json!({"stream": i == 1})));
    }
    wait("all are there", || under_way(&server) == 3.0);
    for streams in [true, false] {
        let answer = server.chat(&json!({"stream": streams}));
        assert_eq!((answer.status, answer.code().as_str()), (429, "queue_full"));
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=30).contains(&seconds));
    }
    assert_eq!(
        server.metric("bitnet_requests_rejected_total{cause=\"queue_full\"}"),
        2.0
    );
    assert_eq!(
        server.get("/health").status,
        200,
        "a full server is a healthy one"
    );
    server.gate.release();
    for (i, client) in clients.iter_mut().enumerate() {
        let answer = client.answer();
        let text = match i {
            1 => streamed(&answer.events()),
            _ => answer.json()["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned(),
        };
        assert_eq!(text, "17 + 25 = 42");
    }
    assert_eq!(server.chat(&json!({})).status, 200);
}

#[test]
fn waiting_and_working_have_their_limits() {
    let server = start(ServeOptions {
        slots: 1,
        max_queue_time: Duration::from_millis(100),
        ..options()
    });
    let mut first = server.client();
    first.ask_json(CHAT, &long(&json!({"stream": true})));
    assert_eq!(first.head().status, 200);
    server.gate.hold();
    let answer = server.chat(&json!({"stream": true}));
    assert_eq!((answer.status, answer.code().as_str()), (429, "queue_timeout"));
    assert!(answer.header("retry-after").is_some());
    server.gate.release();

    let server = start(ServeOptions {
        request_timeout: Some(Duration::from_secs(1)),
        ..options()
    });
    let mut client = server.client();
    client.ask_json(CHAT, &long(&json!({"stream": true})));
    let mut answer = client.head();
    server.gate.hold();
    client.rest(&mut answer, false);
    let events = answer.events();
    let last = events.last().unwrap().as_ref().unwrap();
    assert_eq!(last["error"]["code"], "timeout", "no [DONE] after an error");
    let whole = server.chat(&json!({}));
    assert_eq!((whole.status, whole.code().as_str()), (504, "timeout"));
    server.gate.release();
    server.wait_idle();
    assert_eq!(
        server.metric("bitnet_requests_aborted_total{cause=\"timeout\"}"),
        2.0
    );
}

#[test]
fn a_key_has_its_share() {
    let server = start(ServeOptions {
        keys: vec!["key-one".to_owned(), "key-two".to_owned()],
        max_per_key: Some(1),
        ..options()
    });
    let asks = |client: &mut Client, key: &str| {
        let headers = [("Content-Type", "application/json"), ("api-key", key)];
        client.ask("POST", CHAT, &headers, &chat(&json!({})).to_string());
    };
    server.gate.hold();
    let mut first = server.client();
    asks(&mut first, "key-one");
    wait("it is there", || under_way(&server) == 1.0);
    let mut second = server.client();
    asks(&mut second, "key-one");
    assert_eq!(second.answer().status, 429);
    let mut other = server.client();
    asks(&mut other, "key-two");
    server.gate.release();
    assert_eq!((first.answer().status, other.answer().status), (200, 200));
}

#[test]
fn prompts_share_what_was_computed_unless_they_may_not() {
    for (shares, cached) in [(true, true), (false, false)] {
        let server = start(ServeOptions {
            shares_prompts: shares,
            ..options()
        });
        let prompt = json!({"messages": [{"role": "user", "content": "What is 17 + 25? ".repeat(20)}], "max_tokens": 2});
        let cached_tokens = || {
            server.chat(&prompt).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap()
        };
        assert_eq!(cached_tokens(), 0);
        assert_eq!(cached_tokens() > 0, cached);
    }
}

#[test]
fn slots_tell_what_runs_and_no_text() {
    let server = start(options());
    let mut client = server.client();
    client.ask_json(CHAT, &long(&json!({"stream": true})));
    client.head();
    client.chunk();
    server.gate.hold();
    let answer = server.get("/slots");
    let slots = answer.json();
    assert_eq!(slots.as_array().unwrap().len(), 1, "{slots}");
    assert_eq!(
        (&slots[0]["is_processing"], &slots[0]["n_predict"]),
        (&json!(true), &json!(900))
    );
    // Neither of the question nor of the answer, whatever the ids and times are.
    assert!(
        ["What is", " = 42"]
            .iter()
            .all(|text| !answer.text().contains(text)),
        "{slots}"
    );
    drop(client);
    server.gate.release();
    wait("nothing runs", || server.get("/slots").json() == json!([]));
}

#[test]
fn metrics_count_each_request_once() {
    let server = start(options());
    let usage = server.chat(&json!({})).json()["usage"].clone();
    let number = |name: &str| usage[name].as_f64().unwrap();
    assert_eq!(server.metric("vllm:prompt_tokens_total"), number("prompt_tokens"));
    assert_eq!(
        server.metric("vllm:generation_tokens_total"),
        number("completion_tokens")
    );
    for name in [
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_count",
        "vllm:request_prefill_time_seconds_count",
        "vllm:request_decode_time_seconds_count",
        "vllm:request_inference_time_seconds_count",
        "vllm:request_time_per_output_token_seconds_count",
        "vllm:request_prompt_tokens_count",
        "vllm:request_generation_tokens_count",
        "vllm:cache_config_info",
        "bitnet_build_info",
    ] {
        assert_eq!(server.metric(name), 1.0, "{name}");
    }
    let gaps = number("completion_tokens") - 1.0;
    for name in [
        "vllm:inter_token_latency_seconds_count",
        "vllm:time_per_output_token_seconds_count",
    ] {
        assert_eq!(server.metric(name), gaps, "{name}");
    }
    let steps = server.metric("bitnet_step_seconds_count");
    assert!(steps >= gaps && server.metric("vllm:iteration_tokens_total_count") == steps);
    assert!(server.metric("bitnet_weights_bytes") > 1e5 && server.metric("bitnet_cache_bytes") > 1e4);
    assert!(server.metric("bitnet_engine_last_step_timestamp_seconds") > 1.7e9);
    let answer = server.get("/metrics");
    assert!(
        answer
            .header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    for line in answer.text().lines().filter(|line| line.starts_with("vllm:")) {
        assert!(line.contains("model_name=\"demo\",engine=\"0\""), "{line}");
    }
}

#[test]
fn nobody_else_waits_for_grammars() {
    let large = |i: usize| {
        let names: Map<String, Value> = (0..1_000)
            .map(|k| (format!("{i}_{k}"), json!({"type": "string"})))
            .collect();
        chat(
            &json!({"max_tokens": 1, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"properties": names}}}}),
        )
    };
    let ask = |server: &Running, n: usize| -> Vec<Client> {
        let asked = (0..n).map(|i| {
            let mut client = server.client();
            client.ask_json(CHAT, &large(i));
            client
        });
        asked.collect()
    };
    let server = start(options());
    // The vocabulary is made ready with the first one.
    assert_eq!(server.post(CHAT, &large(99)).status, 200);
    let compiled = || server.metric("bitnet_grammar_compile_seconds_count");
    let mut clients = ask(&server, 24);
    assert_eq!(server.chat(&json!({})).status, 200);
    assert!(compiled() < 20.0, "one had to wait for {} grammars", compiled());
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    server.stop();

    let server = start(ServeOptions {
        max_queue_time: Duration::from_millis(50),
        slots: 32,
        ..options()
    });
    assert_eq!(server.post(CHAT, &large(99)).status, 200);
    let mut clients = ask(&server, 24);
    let answers: Vec<Answer> = clients.iter_mut().map(Client::answer).collect();
    let late: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(
        !late.is_empty() && late.len() < 24,
        "{} of 24 came too late",
        late.len()
    );
    assert!(
        late.iter()
            .all(|answer| answer.code() == "queue_timeout" && answer.header("retry-after").is_some())
    );
    server.stop();
}
