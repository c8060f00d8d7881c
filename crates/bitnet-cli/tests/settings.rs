//! Defaults of flags: the command line, else the environment, else the file, else the program.

mod program;

use std::path::Path;
use std::process::Output;

use program::{bitnet, failure, oracle, stdout};

/// The tokens that `bitnet generate` makes with these variables and flags.
fn generated(environment: &[(&str, &Path)], flags: &[&str]) -> usize {
    let mut command = bitnet();
    command.args(["generate", "-p", "The", "--json", "--ignore-eos"]);
    command.arg("-m").arg(oracle("bitnet-packed"));
    let output = command.args(flags).envs(environment.iter().copied()).output();
    let object: serde_json::Value = serde_json::from_str(&stdout(&output.unwrap())).unwrap();
    object["ids"].as_array().unwrap().len()
}

fn with_file(text: &str) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let mut command = bitnet();
    command
        .args(["generate", "-p", "The", "--config"])
        .arg(file.path());
    command.output().unwrap()
}

#[test]
fn what_is_nearer_wins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bitnet/config.toml");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "quiet = true\nn-predict = 9\n[generate]\nn-predict = 3\n").unwrap();
    let flag = ["-n", "1"];
    let variable = ("BITNET_N_PREDICT", Path::new("2"));
    let named = ("BITNET_CONFIG", file.as_path());
    assert_eq!(generated(&[named, variable], &flag), 1);
    assert_eq!(generated(&[named, variable], &[]), 2);
    assert_eq!(generated(&[named], &[]), 3);
    let file = ["--config", file.to_str().unwrap()];
    assert_eq!(generated(&[], &file), 3);

    // Where nobody names a file, it is the one in the folder for settings.
    let mut command = bitnet();
    command
        .env_remove("BITNET_CONFIG")
        .env(
            if cfg!(windows) {
                "APPDATA"
            } else {
                "XDG_CONFIG_HOME"
            },
            folder.path(),
        )
        .args(["generate", "-p", "The"]);
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    command.env("BITNET_QUIET", "0");
    assert!(!command.output().unwrap().stderr.is_empty());
}

#[test]
fn a_variable_of_one_command_is_no_file_of_another() {
    // `bench --output json` can be a setting; `batch --output` names a file of one run.
    let folder = tempfile::tempdir().unwrap();
    let mut command = bitnet();
    command.env("BITNET_OUTPUT", "json").current_dir(folder.path());
    let output = command
        .args(["batch", "--input", "requests.jsonl"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("--output <FILE>"),
        "{output:?}"
    );
}

#[test]
fn a_mistake_in_the_file_is_named() {
    for (text, expected) in [
        ("tempp = 1\n", "unknown key `tempp`"),
        ("temp = 'warm'\n", "invalid value 'warm' for '--temp <T>'"),
        ("temp = 1\nquiet = \n", " line 2: "),
    ] {
        let output = with_file(text);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(
            message.starts_with("error: ") && message.contains(expected),
            "{text}: {message}"
        );
    }
    // What is of the right kind and cannot be had is told with its place.
    let message = failure(&with_file("model = '/nope'\n"));
    assert!(
        message.contains("that is a setting: model = /nope in "),
        "{message}"
    );
    let missing = bitnet()
        .args(["tokenize", "-p", "a", "--config", "/nonexistent"])
        .output();
    assert!(failure(&missing.unwrap()).contains("/nonexistent: "));
}
