//! What is HTTP: paths, methods, bodies, headers, keys and origins.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bitnet_server::{Cors, ServeOptions};
use serde_json::json;

use crate::support::{CHAT, Client, Running, chat, options, start, start_unloaded, wait};

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn paths_and_methods() {
    let server = start(options());
    for path in ["/health", "/v1/health", "/readyz", "/livez", "/ping"] {
        let answer = server.get(path);
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"status": "ok"})),
            "{path}"
        );
    }
    assert!(server.get("/version").json()["version"].is_string());
    assert_eq!(server.get("/v1/models").json()["data"][1]["id"], "also/demo");
    for path in ["/v1/models/also/demo", "/v1/models/also%2Fdemo"] {
        assert_eq!(server.get(path).json()["id"], "also/demo", "{path}");
    }
    for path in ["/v1/models/other", "/v1/models/%ff"] {
        assert_eq!(server.get(path).code(), "model_not_found");
    }
    assert_eq!(server.get("/props").json()["n_ctx"], 1024);
    assert_eq!(server.get("/slots").json(), json!([]));
    assert!(server.get("/openapi.json").json()["paths"][CHAT].is_object());
    for (method, path, status, code) in [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/nothing", 404, "not_found"),
        ("GET", "/v1//models", 404, "not_found"),
        ("POST", "/v1/responses", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 501, "not_supported"),
    ] {
        let answer = server.send(method, path, &[], "");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{method} {path}"
        );
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}");
    }
    let head = server.send("HEAD", "/health", &[], "");
    assert_eq!((head.status, head.header("content-length")), (200, Some("15")));
    let page = server.send("GET", "/", &[("Accept-Encoding", "gzip, br")], "");
    assert_eq!(
        (page.status, page.header("content-encoding")),
        (200, Some("gzip"))
    );
    assert_eq!(page.body[..2], [0x1f, 0x8b]);
    let tag = page.header("etag").unwrap();
    assert_eq!(server.send("GET", "/", &[("If-None-Match", tag)], "").status, 304);
    assert!(
        server.get("/").text().starts_with("<!DOCTYPE html>")
            || server.get("/").text().starts_with("<!doctype html>")
    );
}

#[test]
fn bodies_that_are_refused_leave_the_connection_open() {
    let server = start(ServeOptions {
        max_body: 100_000,
        ..options()
    });
    let mut client = server.client();
    let good = chat(&json!({"max_tokens": 2})).to_string();
    let large = format!("{{\"user\": \"{}\"}}", "x".repeat(1 << 20));
    for (kind, body, status, code) in [
        ("text/plain", good.as_str(), 415, "unsupported_media_type"),
        ("application/json", "{", 400, "invalid_json"),
        ("application/json", "[]", 400, "invalid_json"),
        ("application/json", "{\"messages\": 5}", 400, "none"),
        ("application/json", &large, 413, "body_too_large"),
    ] {
        let answer = client.send("POST", CHAT, &[("Content-Type", kind)], body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
        assert_eq!(answer.header("connection"), None, "{code}");
    }
    let json = ("Content-Type", "application/json");
    let answer = client.send("POST", CHAT, &[json, ("Content-Encoding", "gzip")], &good);
    assert_eq!(answer.status, 415);
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.contains("Content-Encoding: gzip"), "{text}");
    let answer = client.send(
        "POST",
        CHAT,
        &[("Content-Type", "application/json; charset=utf-8")],
        &good,
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("keep-alive"), Some("timeout=75"));

    // In chunks, whose size nobody says before.
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: a.localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes());
    for piece in large.as_bytes().chunks(50_000) {
        client.write(format!("{:x}\r\n", piece.len()).as_bytes());
        client.write(piece);
        client.write(b"\r\n");
    }
    client.write(b"0\r\n\r\n");
    assert_eq!(client.answer().code(), "body_too_large");

    // Who asks before sending is told before.
    let size = large.len().to_string();
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{}: {}\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n", JSON.0, JSON.1).as_bytes());
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
    assert!(client.is_closed());

    // One that ends before its end is nobody's harm.
    let mut client = server.client();
    client.write(format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{").as_bytes());
    drop(client);
    assert_eq!(server.chat(&json!({"max_tokens": 2})).status, 200);
}

#[test]
fn a_body_that_is_on_its_way_is_waited_for() {
    let server = start(ServeOptions {
        keys: vec!["a-key-of-some-length".to_owned()],
        ..options()
    });
    let key = "Authorization: Bearer a-key-of-some-length\r\n";
    let body = chat(&json!({"max_tokens": 2})).to_string();
    let mut client = server.client();
    for (method, path, key, status) in [
        ("POST", CHAT, "", 401),
        ("POST", CHAT, "Authorization: Bearer wrong\r\n", 401),
        ("POST", "/v1/nothing", key, 404),
        ("PUT", CHAT, key, 405),
        ("POST", "/v1/models", key, 405),
        ("POST", "/v1/embeddings", key, 501),
        ("POST", CHAT, key, 200),
    ] {
        let size = body.len();
        client.write(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{key}{}: {}\r\nContent-Length: {size}\r\n\r\n", JSON.0, JSON.1).as_bytes());
        // The answer is known by now, and the body comes in a packet of its own.
        std::thread::sleep(Duration::from_millis(50));
        client.write(body.as_bytes());
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (status, None),
            "{method} {path}"
        );
    }
}

#[test]
fn headers() {
    let server = start(options());
    let answer = server.send("GET", "/health", &[("X-Request-Id", "kit-1")], "");
    assert_eq!(answer.header("x-request-id"), Some("kit-1"));
    let [a, b] = [0, 1].map(|_| server.get("/health").header("x-request-id").unwrap().to_owned());
    assert!(a != b && !a.is_empty());
    let answer = server.send("GET", "/health", &[("X-Long", &"x".repeat(20_000))], "");
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (431, "headers_too_large")
    );
    assert_eq!(
        server.send("GET", "/health", &[("X-A", "b"); 300], "").status,
        200
    );
    let mut client = server.client();
    client.ask("GET", "/health", &[("X-Long", &"x".repeat(200_000))], "");
    assert_eq!(client.head().status, 431, "hyper's own");
    let answer = server
        .client()
        .send("GET", "/health", &[("Connection", "close")], "");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[test]
fn keys() {
    let server = start(ServeOptions {
        keys: vec!["a-key-of-the-first".to_owned(), "another".to_owned()],
        metrics_key: Some("watcher".to_owned()),
        ..options()
    });
    let body = chat(&json!({"max_tokens": 1})).to_string();
    for (header, status) in [
        (("X-Nothing", ""), 401),
        (("Authorization", "Bearer wrong"), 401),
        (("Authorization", "Bearer a-key-of-the-first"), 200),
        (("Authorization", "bearer another"), 200),
        (("api-key", "another"), 200),
        (("Authorization", "Bearer watcher"), 401),
    ] {
        let answer = server.send("POST", CHAT, &[header, JSON], &body);
        assert_eq!(answer.status, status, "{header:?}");
        if status == 401 {
            assert_eq!(answer.code(), "invalid_api_key");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    for path in ["/health", "/livez", "/version", "/", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/props", "/slots", "/nothing"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(
        server
            .send("GET", "/metrics", &[("Authorization", "Bearer watcher")], "")
            .status,
        200
    );
    // A key lets other names than localhost in.
    let answer = server.send(
        "GET",
        "/v1/models",
        &[("Host", "pc.example"), ("api-key", "another")],
        "",
    );
    assert_eq!(answer.status, 200);
}

#[test]
fn a_file_of_keys_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "one-of-the-file\n").unwrap();
    let server = start(ServeOptions {
        key_file: Some(file.clone()),
        ..options()
    });
    let with = |key: &str| server.send("GET", "/v1/models", &[("api-key", key)], "").status;
    assert_eq!((with("one-of-the-file"), with("two")), (200, 401));
    std::fs::write(&file, "two\n").unwrap();
    server.handle.reload();
    wait("the new key", || with("two") == 200);
    assert_eq!(with("one-of-the-file"), 401);
}

#[test]
fn origins_and_hosts() {
    let server = start(options());
    let asks = ("Access-Control-Request-Method", "POST");
    let answer = server.send("OPTIONS", CHAT, &[("Origin", "http://localhost:3000"), asks], "");
    assert_eq!(answer.status, 204);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("http://localhost:3000")
    );
    assert!(
        answer
            .header("access-control-allow-headers")
            .unwrap()
            .contains("x-stainless-os")
    );
    assert_eq!(
        answer.header("access-control-allow-methods"),
        Some("GET, POST, OPTIONS")
    );
    for (origin, body) in [
        ("http://127.0.0.1:1", json!({})),
        ("http://[::1]", json!({"messages": 1})),
    ] {
        let answer = server.send(
            "POST",
            CHAT,
            &[("Origin", origin), JSON],
            &chat(&body).to_string(),
        );
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        assert_eq!(answer.header("vary"), Some("origin"));
    }
    let answer = server.send("GET", "/health", &[("Origin", "http://evil.example")], "");
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, None)
    );
    // A page of another name that resolves to 127.0.0.1.
    let answer = server.send("GET", "/v1/models", &[("Host", "evil.example")], "");
    assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden_host"));
    let preflight = [("Host", "evil.example"), ("Origin", "http://localhost"), asks];
    assert_eq!(server.send("OPTIONS", CHAT, &preflight, "").status, 403);

    let server = start(ServeOptions {
        cors: Cors::Any,
        ..options()
    });
    let answer = server.send("GET", "/health", &[("Origin", "https://any.example")], "");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[test]
fn what_is_turned_off_is_not_there_and_a_prefix_stands_before_all() {
    let server = start_with_prefix(ServeOptions {
        has_metrics: false,
        has_slots: false,
        has_page: false,
        api_prefix: "/llm".to_owned(),
        ..options()
    });
    for path in ["/metrics", "/slots", "/", ""] {
        let answer = server.get(&format!("/llm{path}"));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "not_found"),
            "{path}"
        );
    }
    assert_eq!(server.get("/llm/v1/models").status, 200);
    for path in ["/health", "/v1/models", "/llmx/health"] {
        assert_eq!(server.get(path).code(), "not_found", "{path}");
    }
    let answer = server.post(&format!("/llm{CHAT}"), &chat(&json!({})));
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "17 + 25 = 42");
}

fn start_with_prefix(options: ServeOptions) -> Running {
    let server = start_unloaded(options);
    server.load.send(()).unwrap();
    wait("the server is ready", || server.get("/llm/health").status == 200);
    server
}

#[test]
fn with_all_connections_taken_a_silent_one_makes_room() {
    let server = start(ServeOptions {
        max_connections: 3,
        ..options()
    });
    let steps = server.gate.steps.load(Ordering::SeqCst);
    server.gate.hold();
    let mut busy = server.client();
    busy.ask_json(CHAT, &chat(&json!({})));
    // The server knows from here on that this one works, and before each of the others is opened, that those before it are silent:
    // a request that has not been read yet does not show.
    wait("the request is under way", || {
        server.gate.steps.load(Ordering::SeqCst) > steps
    });
    let mut silent = vec![server.client()];
    assert_eq!(silent[0].send("GET", "/health", &[], "").status, 200);
    silent.push(server.client());
    for _ in 0..5 {
        assert_eq!(server.get("/health").status, 200);
    }
    server.gate.release();
    assert_eq!(busy.answer().status, 200, "the one that works stays");
    wait("a silent one made room", || silent.iter().any(Client::was_closed));
}

#[cfg(unix)]
#[test]
fn a_unix_socket() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bitnet.sock");
    let server = bitnet_server::Server::bind(ServeOptions {
        host: path.to_str().unwrap().to_owned(),
        ..options()
    })
    .unwrap();
    assert_eq!(server.address(), format!("unix:{}", path.display()));
    let handle = server.handle();
    let (_loads, held) = std::sync::mpsc::channel::<()>();
    let load = move || -> Result<bitnet_server::Serving, String> {
        let _ = held.recv();
        Err("no model".to_owned())
    };
    let thread = std::thread::spawn(move || server.run(load));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"loading\""),
        "{answer}"
    );
    handle.stop();
    assert_eq!(thread.join().unwrap(), Ok(bitnet_server::Ended::Drained));
    assert!(!path.exists(), "the socket is removed");
}
