//! What the program computes, however it is computed: what depends on the processor, and is run in emulators of others.

mod program;

use program::{failure, greedy, oracle, run, stdout};
use serde_json::Value;

/// Greedy answers of every prompt of a folder are transformers'.
fn gives_the_references(name: &str) {
    let folder = oracle(name);
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    for prompt in all["prompts"].as_array().unwrap() {
        let ids = prompt["ids"].to_string();
        let object = greedy(&folder, ids.trim_matches(['[', ']']));
        assert_eq!(object["prompt_ids"], prompt["ids"]);
        assert_eq!(
            object["ids"], prompt["f32"]["greedy_ids"],
            "{name} {}",
            prompt["name"]
        );
        assert_eq!(object["text"], prompt["f32"]["greedy_text"]);
        assert_eq!(object["finish_reason"], "length");
    }
}

#[test]
fn master_weights() {
    gives_the_references("bitnet-bf16");
}

#[test]
fn packed_weights() {
    gives_the_references("bitnet-packed");
}

#[test]
fn layers_of_llama() {
    gives_the_references("llama-bitnet");
}

#[test]
fn shapes_off_every_tile() {
    gives_the_references("odd-shape");
}

#[test]
fn statistics_say_what_was_spared() {
    let folder = oracle("bitnet-bf16");
    let answer = |zeros, head| {
        // Guesses would be computed several at a time.
        let args = [
            "-p",
            "a",
            "-n",
            "8",
            "--temp",
            "0",
            "--ignore-eos",
            "--draft-max",
            "0",
            "--json",
            "--skip-zeros",
            zeros,
            "--lm-head",
            head,
        ];
        let output = run("generate", &folder, &args);
        let object: Value = serde_json::from_str(&stdout(&output)).unwrap();
        (object, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (all, line) = answer("off", "stored");
    assert!(all["weights_read_share"].is_null() && all["logits_per_token"].is_null());
    assert!(
        !line.contains("weights read") && !line.contains("logits a token"),
        "{line}"
    );
    let (some, line) = answer("on", "certified");
    assert_eq!(some["ids"], all["ids"]);
    let (share, logits) = (&some["weights_read_share"], &some["logits_per_token"]);
    assert!(
        share.as_f64().is_some_and(|share| 0.0 < share && share < 1.0),
        "{share}"
    );
    assert!(logits.as_f64().is_some_and(|logits| logits >= 1.0), "{logits}");
    assert!(
        line.contains("of the weights read") && line.contains("logits a token"),
        "{line}"
    );
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let folder = oracle("bitnet-packed");
    let sample = |args: &[&str]| {
        let common = [
            "-p",
            "The keeper",
            "-n",
            "24",
            "--temp",
            "4",
            "--top-p",
            "1",
            "--min-p",
            "0",
            "--json",
            "--ignore-eos",
        ];
        let output = run("generate", &folder, &[&common, args].concat());
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let first = sample(&["-s", "5"]);
    assert_eq!(first["seed"], 5);
    // Nothing that only changes the way it is computed changes the text.
    for args in [
        &["-t", "1"][..],
        &["--simd", "scalar"],
        &["-b", "1"],
        &["-c", "64"],
    ] {
        assert_eq!(
            sample(&[&["-s", "5"], args].concat())["ids"],
            first["ids"],
            "{args:?}"
        );
    }
    let unseeded = sample(&[]);
    let seed = unseeded["seed"].to_string();
    assert_ne!(unseeded["ids"], first["ids"]);
    assert_eq!(sample(&["-s", &seed])["ids"], unseeded["ids"]);
    let banned = format!("{}-inf", first["ids"][0]);
    assert_ne!(sample(&["-s", "5", "-l", &banned])["ids"][0], first["ids"][0]);
}

#[test]
fn places_of_threads_change_no_token() {
    let folder = oracle("bitnet-packed");
    let tokens = |flags: &[&str]| {
        let flags = [&["-p", "The", "-n", "4", "--temp", "0", "-t", "2"], flags].concat();
        run("generate", &folder, &flags)
    };
    let expected = stdout(&tokens(&[]));
    for numa in ["distribute", "isolate", "numactl"] {
        let output = tokens(&["--numa", numa]);
        if cfg!(target_os = "linux") || numa == "numactl" {
            assert_eq!(stdout(&output), expected, "{numa}");
        } else {
            assert!(
                failure(&output).contains("leave their places to the system"),
                "{output:?}"
            );
        }
    }
    let output = tokens(&["--numa", "everywhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("distribute, isolate, numactl"),
        "{output:?}"
    );
}
