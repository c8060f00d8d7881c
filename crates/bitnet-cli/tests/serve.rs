//! `bitnet serve` and `bitnet health`, as they are started and ended.
#![cfg(unix)]

mod program;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use program::{bitnet, failure, stdout};
use serde_json::Value;

/// A server, and what it says.
struct Server {
    child: Child,
    address: String,
    lines: BufReader<ChildStderr>,
    /// What it said before it was ready.
    said: Vec<String>,
}

impl Server {
    /// Starts it at a free port and waits until it is ready.
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let (mut said, mut address) = (Vec::new(), String::new());
        loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "it ended: {said:?}");
            if let Some((_, place)) = line.split_once("http://") {
                address = place.split(['"', '/', '\n']).next().unwrap().to_owned();
            }
            said.push(line);
            if said.last().unwrap().contains("ready") {
                break;
            }
        }
        Self {
            child,
            address,
            lines,
            said,
        }
    }

    fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end; its exit status and the rest of what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve() -> Command {
    let mut command = bitnet();
    command.args(["serve", "--port", "0", "-t", "1"]);
    command
}

/// The program, asking the server at `address` how it is.
fn health(address: &str) -> Command {
    let (host, port) = address.rsplit_once(':').unwrap();
    let mut command = bitnet();
    command.args(["health", "--host", host, "--port", port]);
    command
}

#[test]
fn a_stream_that_runs_at_sigterm_is_given_to_its_end() {
    let server = Server::start(&mut serve());
    assert!(health(&server.address).status().unwrap().success());
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let body = r#"{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 800, "ignore_eos": true, "stream": true}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut first = [0; 15];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    server.signal(Signal::SIGTERM);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("\"finish_reason\":\"length\"") && answer.contains("data: [DONE]\n\n"),
        "{answer}"
    );
    let address = server.address.clone();
    let (status, log) = server.end();
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("stopping") && log.contains("tokens=800"), "{log}");
    let output = health(&address).output().unwrap();
    assert!(
        failure(&output).contains("no server answers at 127.0.0.1:"),
        "{output:?}"
    );
}

#[test]
fn settings_flags_and_flags_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(
        &file,
        "[serve]\nport = 0\nparallel = 2\napi-prefix = '/llm'\nlog-format = 'json'\n",
    )
    .unwrap();
    let mut command = bitnet();
    command.args([
        "serve",
        "-t",
        "1",
        "-np",
        "3",
        "-to",
        "60",
        "--metrics",
        "-cb",
        "-a",
        "one,two",
        "--config",
    ]);
    command
        .arg(&file)
        .env("BITNET_API_KEY", "short,another-key-of-the-env")
        .env("BITNET_MAX_N", "2");
    let server = Server::start(&mut command);
    for line in &server.said {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    let said = server.said.concat();
    assert!(
        said.contains("5 characters") && said.contains("\"slots\":3"),
        "{said}"
    );
    assert!(!said.contains("another-key-of-the-env"));
    assert!(server.get("/llm/v1/models", "").starts_with("HTTP/1.1 401 "));
    let models = server.get(
        "/llm/v1/models",
        "Authorization: Bearer another-key-of-the-env\r\n",
    );
    assert!(
        models.contains("\"id\":\"one\"") && models.contains("\"id\":\"two\""),
        "{models}"
    );
    assert!(server.get("/health", "").starts_with("HTTP/1.1 404 "));
    assert!(!health(&server.address).status().unwrap().success());
    assert!(
        health(&server.address)
            .args(["--api-prefix", "/llm"])
            .status()
            .unwrap()
            .success()
    );
    server.signal(Signal::SIGINT);
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn help_and_errors_show_no_key() {
    let key = "a-key-that-nobody-sees";
    let with_key = |args: &[&str]| bitnet().args(args).env("BITNET_API_KEY", key).output().unwrap();
    let help = stdout(&with_key(&["serve", "--help"]));
    assert!(help.contains("BITNET_API_KEY") && !help.contains(key), "{help}");
    let output = with_key(&["serve", "--api-key-file", "/nowhere/api-key"]);
    let error = failure(&output);
    assert!(
        error.contains("/nowhere/api-key") && !error.contains(key),
        "{error}"
    );
}

#[test]
fn what_cannot_be_served_is_refused() {
    let server = Server::start(&mut serve());
    let port = server.address.rsplit_once(':').unwrap().1;
    let taken = bitnet().args(["serve", "--port", port]).output().unwrap();
    assert_eq!(taken.status.code(), Some(1));
    assert!(failure(&taken).contains("--port names another"), "{taken:?}");
    for args in [
        &["--cors-origins", "chat.example"][..],
        &["--request-timeout", "-1"],
        &["--api-prefix", "llm"],
        &["--parallel", "0"],
        &["--log-format", "xml"],
        &["--port", "70000"],
        &["--ssl-key-file", "x"],
    ] {
        let output = bitnet().arg("serve").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    }
    let missing = bitnet()
        .args(["serve", "--port", "0", "-m", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("error: /nowhere"),
        "{missing:?}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_for_the_log_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bitnet.sock");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = serve();
    command.arg("--host").arg(&path).stderr(full);
    let mut child = command.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let mut health = bitnet();
    health.args(["health", "-q", "--host"]).arg(&path);
    while !health.output().unwrap().status.success() {
        assert!(
            Instant::now() < end && child.try_wait().unwrap().is_none(),
            "it is not there"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // Lines are written by a thread of their own, when it gets to run.
    loop {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let lost = answer
            .lines()
            .find_map(|line| line.strip_prefix("bitnet_log_lines_lost_total "))
            .map(|n| n.parse::<u64>().unwrap());
        if lost.is_some_and(|n| n > 0) {
            break;
        }
        assert!(lost.is_some() && Instant::now() < end, "{answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!path.exists());
}
