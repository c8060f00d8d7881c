//! The program, run as a user runs it, and the reference folders.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub(crate) fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../bitnet-model/tests/oracle")
        .join(name)
}

pub(crate) fn expected(folder: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let mut prompts = expected["prompts"].as_array().unwrap().iter();
    prompts.find(|prompt| prompt["name"] == name).unwrap().clone()
}

pub(crate) fn bitnet() -> Command {
    // What runs a program of another processor, as `cargo xtask test-target` sets it: the tests themselves are run by it already.
    let runner = std::env::var("TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace().chain([env!("CARGO_BIN_EXE_bitnet")]);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BITNET_")) {
        command.env_remove(name);
    }
    // Whoever runs the tests may have settings.
    command.env("BITNET_CONFIG", "");
    // Where there is a GPU, `auto` is the GPU: what is compared bit by bit is the processor.
    command.env("BITNET_DEVICE", "cpu").stdin(Stdio::null());
    command
}

/// `bitnet <command> -m <folder> <args>`.
pub(crate) fn run(command: &str, folder: &Path, args: &[&str]) -> Output {
    bitnet()
        .arg(command)
        .arg("-m")
        .arg(folder)
        .args(args)
        .output()
        .unwrap()
}

pub(crate) fn run_with_input(command: &str, folder: &Path, args: &[&str], input: &str) -> Output {
    let mut child = bitnet()
        .arg(command)
        .arg("-m")
        .arg(folder)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What `generate` says of 32 greedy tokens after a prompt of these ids, separated by commas.
pub(crate) fn greedy(folder: &Path, ids: &str) -> Value {
    let args = [
        "--prompt-ids",
        ids,
        "-n",
        "32",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ];
    serde_json::from_str(&stdout(&run("generate", folder, &args))).unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a failing run says; it must say nothing on stdout.
pub(crate) fn failure(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}
