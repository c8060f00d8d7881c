//! Answers too large for the buffers of sockets, and texts too large for an answer.

use std::io::Read;
use std::time::Duration;

use bitnet_server::ServeOptions;
use serde_json::json;

use crate::support::{options, start};

#[test]
fn a_large_answer_comes_whole_and_waits_for_nobody_for_long() {
    let server = start(ServeOptions {
        slow_client_timeout: Duration::from_millis(200),
        ..options()
    });
    let ask = json!({ "content": "a1 ".repeat(80_000), "with_pieces": true });
    let answer = server.post("/tokenize", &ask);
    let size: usize = answer.header("content-length").unwrap().parse().unwrap();
    assert!(answer.status == 200 && size > 3_000_000, "{size}");
    let said = answer.json();
    assert_eq!(said["count"], said["tokens"].as_array().unwrap().len());

    // One that reads nothing for a while has the beginning, and the connection's end.
    let mut client = server.client();
    client.ask_json("/tokenize", &ask);
    assert_eq!(client.head().status, 200);
    std::thread::sleep(Duration::from_secs(2));
    let (mut read, mut buffer) = (0, vec![0; 1 << 16]);
    while let Ok(n) = client.reader.read(&mut buffer)
        && n > 0
    {
        read += n;
    }
    assert!(read < size, "{read} of {size} bytes were kept for it");

    // A connection that is read goes on.
    let mut client = server.client();
    for _ in 0..2 {
        assert_eq!(client.post("/tokenize", &ask).text().len(), size);
    }
    let head = client.send("HEAD", "/openapi.json", &[], "");
    assert_eq!((head.status, head.text().len()), (200, 0));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(client.send("GET", "/health", &[], "").status, 200);
    server.stop();
}

#[test]
fn texts_beyond_every_context_are_not_made_tokens_of() {
    let server = start(options());
    let long = "a1 ".repeat(100_000);
    for body in [
        json!({ "content": long }),
        json!({ "prompt": long }),
        json!({ "messages": [{ "role": "user", "content": long }] }),
    ] {
        let answer = server.post("/tokenize", &body);
        assert_eq!(answer.status, 400);
        let name = body.as_object().unwrap().keys().next().unwrap();
        assert_eq!(answer.json()["error"]["param"], json!(name));
    }
    server.stop();
}
