//! Command lines of the programs that people come from: what has a meaning here works, and the rest is refused by its name.

mod program;

use std::process::Output;

use program::{bitnet, oracle};
use serde_json::Value;

fn generate(args: &[&str]) -> Output {
    let mut command = bitnet();
    command.args(["generate", "-q", "--json", "-p", "Hi", "-m"]);
    command.arg(oracle("odd-shape")).args(args).output().unwrap()
}

#[test]
fn what_has_the_same_meaning_works() {
    for args in [
        &["-n", "1", "-s", "-1"][..],
        &["-n", "1", "--top-k", "-1"],
        &["--max-new-tokens", "1", "--top_k", "5"],
        &["-n", "1", "-ctk", "f32"],
        &["-n", "1", "--grammar", "root ::= [a-z]+"],
        &["-n", "1", "-j", "{}"],
        &[
            "-n",
            "1",
            "--cache-type-v",
            "bf16",
            "-fa",
            "on",
            "-fa",
            "--jinja",
            "--mmap",
        ],
        &["--predict", "1", "-ub", "64", "-no-cnv", "--no-display-prompt"],
        &["-temp", "0", "-n", "1", "-seed", "3", "-threads", "1"],
    ] {
        let output = generate(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}");
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["ids"].as_array().unwrap().len(), 1, "{args:?}");
    }
    let hf = bitnet()
        .args(["tokenize", "-p", "a", "-hf"])
        .arg(oracle("odd-shape"))
        .output()
        .unwrap();
    assert!(hf.status.success());
    let random = |seed: &str| {
        let object: Value = serde_json::from_slice(&generate(&["-n", "0", "-s", seed]).stdout).unwrap();
        object["seed"].clone()
    };
    assert_eq!(random("7"), 7);
    assert_ne!(random("-1"), random("-1"));
}

#[test]
fn the_rest_is_refused_by_its_name() {
    for (args, name, counterpart) in [
        (&["-ngl", "99"][..], "-ngl", "--device"),
        (&["-cnv"], "-cnv", "bitnet chat"),
        (&["-fa", "off"], "-fa", "attention"),
        (&["--n-gpu-layers", "99"], "--n-gpu-layers", "--device"),
        (&["--mirostat", "2"], "--mirostat", "--top-p"),
        (&["--lora", "a"], "--lora", "merge"),
        (&["-sysf", "a"], "-sysf", "--system"),
        (&["--do_sample"], "--do_sample", "--temp"),
        (&["--device-map", "auto"], "--device-map", "--device"),
        (&["-hff", "x.gguf"], "-hff", "-m"),
        (&["-n", "-ngl"], "-ngl", "--device"),
        (&["-nonsense"], "-nonsense", "--help"),
        (&["-help-me"], "-help-me", "--help"),
    ] {
        let output = generate(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty());
        let first = stderr.lines().next().unwrap();
        assert!(
            first.starts_with("error: ") && first.contains(name),
            "{args:?}: {stderr}"
        );
        assert!(
            stderr.contains("hint: ") && stderr.contains(counterpart),
            "{args:?}: {stderr}"
        );
    }
    // A text that looks like a flag is a text.
    assert!(generate(&["-n", "0", "--stop", "-ngl"]).status.success());
    for verb in ["run", "llama-cli", "server", "show"] {
        let output = bitnet().args([verb, "model"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{verb}");
        assert!(
            stderr.contains(verb) && stderr.contains("hint: ") && stderr.contains("`bitnet "),
            "{verb}: {stderr}"
        );
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_with_what_can() {
    for threads in ["1025", "1000000000", "1000000000000000000", "9223372036854775807"] {
        let output = generate(&["-n", "1", "-t", threads]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.contains("--threads") && stderr.contains("at most 1024 threads"),
            "{stderr}"
        );
    }
    for (args, most) in [
        (&["bench", "schedule", "--arrivals", "-1"][..], "3600"),
        (&["bench", "schedule", "--arrivals", "nan"], "3600"),
        (&["bench", "schedule", "--arrivals", "inf"], "3600"),
        (&["bench", "schedule", "--arrivals", "1e20"], "3600"),
        (&["bench", "schedule", "--prefix", "99999999999"], "16777216"),
        (&["bench", "schedule", "--requests", "99999999999"], "4096"),
        (&["bench", "model", "-r", "99999999999"], "1000000"),
        (&["bench", "model", "-p", "99999999999"], "16777216"),
        (&["bench", "model", "-b", "99999999999"], "4096"),
        (&["bench", "model", "-p", "0", "-n", "0"], "no test is left"),
        (&["batch", "-i", "x", "-o", "y", "--parallel", "99999999"], "4096"),
        (&["serve", "--parallel", "99999999999999999999"], "4096"),
        (&["serve", "--threads-http", "99999999"], "256"),
    ] {
        let output = bitnet().args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(most), "{args:?}: {stderr}");
    }
    if cfg!(target_os = "linux") {
        for context in ["1000000000000", "18014398509481983k"] {
            let output = generate(&["-n", "1", "-c", context]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            let (_, fits) = stderr
                .split_once("of which ")
                .unwrap_or_else(|| panic!("{stderr}"));
            let fits: u64 = fits.split(' ').next().unwrap().parse().unwrap();
            assert!(fits > 0 && stderr.contains("hint: "), "{stderr}");
        }
    }
}

#[test]
fn completions_offer_values() {
    let script = |shell| {
        let output = bitnet().args(["completions", shell]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(script("bash").contains("avx512-vnni") && script("bash").contains("\"auto cpu cuda\""));
    assert!(script("zsh").contains("neon-dotprod") && script("fish").contains("stored"));
    // What has a number is a device too.
    let output = generate(&["-n", "0", "--device", "cuda:99"]);
    assert_eq!(output.status.code(), Some(1));
}
