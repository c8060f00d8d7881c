//! A client that sees every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::PATIENCE;

/// A connection.
pub(crate) struct Client {
    pub(crate) reader: BufReader<TcpStream>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// Sends a request whole.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += "Host: localhost\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.write(format!("{head}\r\n{body}").as_bytes());
    }

    pub(crate) fn ask_json(&mut self, path: &str, body: &Value) {
        self.ask(
            "POST",
            path,
            &[("Content-Type", "application/json")],
            &body.to_string(),
        );
    }

    /// The status and headers that come.
    pub(crate) fn head(&mut self) -> Answer {
        let line = self.line();
        assert!(line.starts_with("HTTP/1.1 "), "{line:?}");
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Answer {
            status,
            headers,
            body: Vec::new(),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end_matches("\r\n").to_owned()
    }

    /// A chunk of a body; empty at its end.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let line = self.line();
        let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("{line:?} is no size"));
        let mut bytes = vec![0; size + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        bytes.truncate(size);
        bytes
    }

    /// The rest of an answer whose head came.
    pub(crate) fn rest(&mut self, answer: &mut Answer, is_head: bool) {
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    break;
                }
                answer.body.extend(chunk);
            }
        } else if !is_head && let Some(length) = answer.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            self.reader.read_exact(&mut body).unwrap();
            answer.body = body;
        }
    }

    /// A whole answer.
    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        self.rest(&mut answer, false);
        answer
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.ask(method, path, headers, body);
        let mut answer = self.head();
        self.rest(&mut answer, method == "HEAD");
        answer
    }

    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.ask_json(path, body);
        self.answer()
    }

    /// Whether the server has ended the connection by now.
    pub(crate) fn was_closed(&self) -> bool {
        let stream = self.reader.get_ref();
        stream.set_nonblocking(true).unwrap();
        let read = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        match read {
            Ok(n) => n == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Waits for bytes or the end of the connection; whether it is the end.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The code of its error, having checked the object.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let value = self.json();
        let error = &value["error"];
        assert!(
            error["message"].as_str().is_some_and(|m| !m.is_empty()) && error["type"].is_string(),
            "{value}"
        );
        error["code"].as_str().unwrap_or("none").to_owned()
    }

    /// The events of a stream, parsed strictly; `None` is `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Option<Value>> {
        let text = self.text();
        let events = text
            .strip_suffix("\n\n")
            .unwrap_or_else(|| panic!("not closed: {text:?}"));
        let events = events.split("\n\n").filter(|event| *event != ":");
        events
            .map(|event| match event.strip_prefix("data: ").unwrap() {
                "[DONE]" => None,
                data => Some(serde_json::from_str(data).unwrap()),
            })
            .collect()
    }
}
