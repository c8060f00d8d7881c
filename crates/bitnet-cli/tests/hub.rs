//! `pull`, `list`, `rm` and `-m owner/name`, against a hub on this machine.

mod program;
#[path = "../../bitnet-hub/tests/server/mod.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use program::{bitnet, failure, stdout};
use serde_json::Value;
use server::{Fault, Server, etag};

/// Whether whoever runs the tests may have set the variable for other hubs.
fn is_of_the_hub(name: &str) -> bool {
    name.starts_with("HF_") || name == "SSL_CERT_FILE" || name.to_lowercase().ends_with("_proxy")
}

/// A hub and an empty cache.
struct Bench {
    server: Server,
    home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            server: Server::start(),
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = bitnet();
        for (name, _) in std::env::vars().filter(|(name, _)| is_of_the_hub(name)) {
            command.env_remove(name);
        }
        command
            .env("HF_HOME", self.home.path())
            .env("HF_ENDPOINT", &self.server.url)
            .args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn blobs(&self, repository: &str) -> PathBuf {
        self.home.path().join("hub").join(repository).join("blobs")
    }
}

/// The demo model as a repository.
fn demo(server: &Server) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
    let names = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    ];
    let files = names.map(|name| (name, std::fs::read(folder.join(name)).unwrap()));
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()))
        .collect();
    server.commit("a/demo", &files)
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stderr.clone())
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_model_of_the_hub_is_fetched_once_and_answers() {
    let bench = Bench::new();
    let commit = demo(&bench.server);
    let question = ["--chat-format", "--temp", "0", "-q", "-p", "What is 123 + 456?"];
    let answer = |name: &str| bench.run(&[&["generate", "-m", name], &question[..]].concat());
    let first = answer("a/demo");
    assert_eq!(stdout(&first), "123 + 456 = 579");
    let said = lines(&first);
    assert!(
        said[0].starts_with("a/demo: fetching ") && said[1].starts_with("a/demo: fetched "),
        "{said:?}"
    );
    assert!(bench.server.seen().len() > 5);
    // Now nothing is asked any more.
    let second = answer(&format!("a/demo@{commit}"));
    assert_eq!(
        (stdout(&second), second.stderr.len()),
        ("123 + 456 = 579".to_owned(), 0)
    );
    stdout(&bench.run(&["inspect", "a/demo", "--json"]));
    stdout(&bench.run(&["tokenize", "-m", "https://huggingface.co/a/demo", "-p", "1"]));
    let timed = bench.run(&[
        "bench", "model", "-m", "a/demo", "-p", "4", "-n", "2", "-r", "1", "-o", "json",
    ]);
    let timed: Value = serde_json::from_str(&stdout(&timed)).unwrap();
    assert_eq!(timed["model"], "a/demo");
    assert!(bench.server.seen().is_empty());
    let snapshot = PathBuf::from(stdout(&bench.run(&["pull", "a/demo"])).trim());
    assert!(snapshot.ends_with(&commit) && !snapshot.join("README.md").exists());
}

#[test]
fn the_list_has_what_runs_and_rm_removes_it() {
    let bench = Bench::new();
    demo(&bench.server);
    bench.server.commit(
        "a/other",
        &[
            ("config.json", br#"{"model_type": "gpt2"}"#),
            ("model.safetensors", b"x"),
        ],
    );
    let empty = bench.run(&["list"]);
    assert!(stdout(&empty).is_empty() && lines(&empty)[0].starts_with("no models in "));
    stdout(&bench.run(&["pull", "a/demo", "a/other"]));
    let list = bench.run(&["list"]);
    let rows = stdout(&list);
    assert_eq!(rows.lines().count(), 1, "{rows}");
    assert!(
        rows.starts_with("a/demo  safetensors, BitNetForCausalLM  "),
        "{rows}"
    );
    assert!(lines(&list)[0].starts_with("1 more in "));
    let all: Value = serde_json::from_str(&stdout(&bench.run(&["list", "--all", "--json"]))).unwrap();
    assert_eq!(
        (&all[0]["model"], &all[0]["problem"]),
        (&"a/demo".into(), &Value::Null)
    );
    assert_eq!(all[1]["model"], "a/other");
    assert!(all[1]["problem"].as_str().unwrap().contains("gpt2"), "{all}");

    let asked = failure(&bench.run(&["rm", "a/demo"]));
    assert!(
        asked.starts_with("error: a/demo: nobody can be asked whether to remove 5 files, "),
        "{asked}"
    );
    let removed = bench.run(&["rm", "--yes", "a/demo", "a/other"]);
    assert!(
        lines(&removed)[0].starts_with("a/demo: removed 5 files, "),
        "{removed:?}"
    );
    assert!(stdout(&bench.run(&["list", "--all"])).is_empty());
    assert!(failure(&bench.run(&["rm", "-y", "a/demo"])).starts_with("error: a/demo: not in "));
}

/// Bytes as large as a pull that takes a while.
fn large() -> Vec<u8> {
    (0..6_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[test]
fn a_pull_that_was_killed_goes_on() {
    let bench = Bench::new();
    let weights = large();
    bench.server.commit("a/m", &[("m-i2_s.gguf", &weights)]);
    bench.server.pace(Duration::from_millis(20));
    let mut child = bench.command(&["pull", "a/m"]).spawn().unwrap();
    let partial = bench
        .blobs("models--a--m")
        .join(format!("{}.incomplete", etag(&weights)));
    let start = Instant::now();
    while partial.metadata().map_or(0, |file| file.len()) < 1_000_000 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    // SIGKILL: nothing of it can clean up.
    child.kill().unwrap();
    child.wait().unwrap();
    let arrived = partial.metadata().unwrap().len();
    assert!((1_000_000..6_000_000).contains(&arrived));
    let list = stdout(&bench.run(&["list"]));
    assert!(list.starts_with("a/m  incomplete  "), "{list}");
    let offline = failure(
        &bench
            .command(&["generate", "-m", "a/m", "-p", "x"])
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap(),
    );
    assert!(
        offline.contains("HF_HUB_OFFLINE forbids to fetch it"),
        "{offline}"
    );
    bench.server.seen();
    bench.server.pace(Duration::ZERO);
    let path = PathBuf::from(stdout(&bench.run(&["pull", "a/m"])).trim());
    assert_eq!(std::fs::read(path).unwrap(), weights);
    let ranges: Vec<_> = bench
        .server
        .seen()
        .into_iter()
        .filter_map(|seen| seen.range)
        .collect();
    assert!(ranges.contains(&format!("bytes={arrived}-")), "{ranges:?}");
    assert!(!partial.exists());
}

#[test]
fn two_processes_fetch_a_model_once() {
    let bench = Bench::new();
    let weights = large();
    bench.server.commit("a/m", &[("m-i2_s.gguf", &weights)]);
    bench.server.pace(Duration::from_millis(10));
    let spawn = || {
        let mut command = bench.command(&["pull", "a/m"]);
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children = [spawn(), spawn()];
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    for output in &outputs {
        assert_eq!(std::fs::read(stdout(output).trim()).unwrap(), weights);
    }
    let waited = "a/m: waiting: another process is fetching m-i2_s.gguf".to_owned();
    assert!(
        outputs.iter().any(|output| lines(output).contains(&waited)),
        "{outputs:?}"
    );
    let fetched = bench
        .server
        .seen()
        .into_iter()
        .filter(|seen| seen.path.starts_with("cdn/"));
    assert_eq!(fetched.count(), 1);
}

#[test]
fn what_goes_wrong_is_one_line_and_a_hint() {
    let bench = Bench::new();
    let weights = vec![7; 9000];
    bench.server.commit("a/m", &[("m.gguf", &weights)]);
    bench.server.commit("a/gated", &[("m.gguf", &weights)]);
    bench.server.protect("a/gated", "hf_good", true);
    bench.server.fault("GET cdn/", Fault::Wrong);
    let offline = bench
        .command(&["pull", "a/m"])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let unplugged = bench
        .command(&["pull", "a/m"])
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .output()
        .unwrap();
    let wrong = bench
        .command(&["pull", "a/m"])
        .env("HF_ENDPOINT", "huggingface.co")
        .output()
        .unwrap();
    for (output, error, hint) in [
        (
            bench.run(&["generate", "-m", "no/such-folder", "-p", "x"]),
            "or does not show it without a token; there is no such folder either",
            "check the spelling",
        ),
        (
            bench.run(&["pull", "a/gated"]),
            "a/gated: the model is gated; it needs a token",
            "agree to its terms at http://",
        ),
        (
            bench.run(&["pull", "a/m"]),
            "a/m: m.gguf arrived damaged: its digest is ",
            "fetch it again",
        ),
        (offline, "a/m: not in ", "fetch it once with a connection"),
        (unplugged, "a/m: cannot reach 127.0.0.1:9: ", "check the network"),
        (
            wrong,
            "HF_ENDPOINT must begin with https:// or http://",
            "correct it",
        ),
    ] {
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        // What was begun was told before.
        let mut said = lines(&output);
        said.retain(|line| !line.contains(": fetching "));
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].starts_with("error: ") && said[0].contains(error),
            "{said:?}"
        );
        assert!(
            said[1].starts_with("hint: ") && said[1].contains(hint),
            "{said:?}"
        );
    }
    // With the token of its file, the gated model comes.
    std::fs::write(bench.home.path().join("token"), "hf_good\n").unwrap();
    assert!(bench.run(&["pull", "a/gated"]).status.success());
}
