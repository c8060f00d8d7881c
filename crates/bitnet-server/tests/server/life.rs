//! A server's life: loading, draining, being cut, and losing its engine.

use std::time::Duration;

use bitnet_server::{Ended, ServeOptions};
use serde_json::json;

use crate::support::{CHAT, chat, long, options, start, start_unloaded, streamed, under_way, wait};

#[test]
fn while_it_loads_it_says_so() {
    let server = start_unloaded(options());
    for (path, status) in [
        ("/health", 503),
        ("/readyz", 503),
        ("/livez", 200),
        ("/v1/models", 503),
        ("/metrics", 200),
        ("/version", 200),
    ] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    let answer = server.chat(&json!({}));
    assert_eq!((answer.status, answer.code().as_str()), (503, "loading"));
    assert!(answer.header("retry-after").is_some());
    server.load.send(()).unwrap();
    wait("it is loaded", || server.get("/health").status == 200);
    assert_eq!(server.chat(&json!({})).status, 200);
    assert_eq!(server.stop(), Ended::Drained);
}

#[test]
fn told_to_stop_it_gives_every_answer_to_its_end() {
    let mut server = start(ServeOptions {
        slots: 1,
        ..options()
    });
    let mut kept = server.client();
    assert_eq!(kept.send("GET", "/health", &[], "").status, 200);
    server.gate.hold();
    // One that runs, and two that wait.
    let mut clients = [server.client(), server.client(), server.client()];
    for (i, client) in clients.iter_mut().enumerate() {
        client.ask_json(CHAT, &chat(&json!({"stream": i != 1})));
    }
    wait("all are there", || under_way(&server) == 3.0);
    server.handle.stop();
    wait("it drains", || server.get("/health").status == 503);
    let answer = server.chat(&json!({}));
    assert_eq!((answer.status, answer.code().as_str()), (503, "shutting_down"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(server.get("/livez").status, 200);
    let answer = kept.post(CHAT, &chat(&json!({})));
    assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
    server.gate.release();
    for (i, client) in clients.iter_mut().enumerate() {
        let answer = client.answer();
        let text = match i {
            1 => answer.json()["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned(),
            _ => streamed(&answer.events()),
        };
        assert_eq!(text, "17 + 25 = 42", "{i}");
    }
    assert_eq!(server.join(), Ended::Drained);
}

#[test]
fn told_twice_or_out_of_time_it_cuts_and_says_so() {
    for is_told_twice in [true, false] {
        let mut server = start(ServeOptions {
            shutdown_timeout: if is_told_twice {
                Duration::from_secs(600)
            } else {
                Duration::from_millis(50)
            },
            ..options()
        });
        let mut client = server.client();
        client.ask_json(CHAT, &long(&json!({"stream": true})));
        let mut answer = client.head();
        answer.body = client.chunk();
        server.gate.hold();
        let mut whole = server.client();
        whole.ask_json(CHAT, &long(&json!({})));
        wait("both are there", || under_way(&server) == 2.0);
        server.handle.stop();
        if is_told_twice {
            server.handle.stop();
        }
        client.rest(&mut answer, false);
        let events = answer.events();
        let last = events
            .last()
            .unwrap()
            .as_ref()
            .expect("no [DONE] where an answer is cut");
        assert_eq!(last["error"]["code"], "shutting_down");
        let answer = whole.answer();
        assert_eq!((answer.status, answer.code().as_str()), (503, "shutting_down"));
        server.gate.release();
        assert_eq!(server.join(), Ended::Cut);
    }
}

#[test]
fn a_failed_step_fails_its_requests_and_three_in_a_row_the_server() {
    let mut server = start(options());
    let mut client = server.client();
    client.ask_json(CHAT, &long(&json!({"stream": true})));
    let mut answer = client.head();
    answer.body = client.chunk();
    server.gate.fail(true);
    client.rest(&mut answer, false);
    let events = answer.events();
    let error = &events.last().unwrap().as_ref().expect("no [DONE]")["error"];
    assert_eq!(error["code"], "internal");
    assert!(
        !error["message"].as_str().unwrap().contains("unplugged"),
        "{error}"
    );
    server.gate.fail(false);
    assert_eq!(server.chat(&json!({})).status, 200, "the next one is computed");
    assert_eq!(server.get("/livez").status, 200);
    server.gate.fail(true);
    for _ in 0..3 {
        let answer = server.chat(&json!({}));
        let id = answer.header("x-request-id").unwrap().to_owned();
        assert_eq!((answer.status, answer.code().as_str()), (500, "internal"));
        assert!(answer.text().contains(&id));
    }
    let ended = server.join();
    assert!(
        matches!(&ended, Ended::Lost(why) if why.contains("3 steps")),
        "{ended:?}"
    );
}

#[test]
fn an_engine_that_makes_no_step_is_ill_and_not_dead() {
    let server = start(ServeOptions {
        engine_timeout: Duration::from_millis(50),
        ..options()
    });
    server.gate.hold();
    let mut client = server.client();
    client.ask_json(CHAT, &chat(&json!({})));
    wait("it is noticed", || server.get("/health").status == 503);
    assert_eq!(server.get("/health").code(), "engine");
    assert_eq!(server.get("/livez").status, 200);
    server.gate.release();
    assert_eq!(client.answer().status, 200);
    wait("it is well again", || server.get("/health").status == 200);
}
