//! `bitnet logits` and `bitnet perplexity` against what transformers computes, and `convert` against its source.

mod program;
#[path = "../../bitnet-model/tests/prompts/mod.rs"]
mod prompts;

use std::path::{Path, PathBuf};

use program::{bitnet, failure, greedy, oracle, run, run_with_input, stdout};
use prompts::{Expected, FOLDERS, bounds, errors, expected, floats};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn comma_separated(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(",")
}

/// Runs `bitnet logits` and reads what it wrote: shape and values.
fn logits(folder: &Path, args: &[&str]) -> (Vec<usize>, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    let args = [args, &["-o", out.to_str().unwrap()]].concat();
    assert!(stdout(&run("logits", folder, &args)).is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let bytes = std::fs::read(out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["logits"]);
    let logits = file.tensor("logits").unwrap();
    assert_eq!(logits.dtype(), Dtype::F32);
    (logits.shape().to_vec(), floats(logits.data()))
}

fn perplexity(folder: &Path, args: &[&str]) -> Value {
    let output = run("perplexity", folder, &[&["--json"], args].concat());
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn logits_are_those_of_transformers() {
    for name in FOLDERS {
        let folder = oracle(name);
        for prompt in expected(&folder) {
            let (shape, found) = logits(&folder, &["--prompt-ids", &comma_separated(&prompt.ids)]);
            let vocab = prompt.last.len();
            assert_eq!(shape, [prompt.ids.len(), vocab]);
            let (max, rms) = errors(&found[found.len() - vocab..], &prompt.last);
            let (max_bound, rms_bound) = bounds(&prompt);
            let label = format!("{name}, {}: off by {max} (rms {rms})", prompt.name);
            assert!(max <= max_bound && rms <= rms_bound, "{label}");
            if let Some(all) = &prompt.all {
                let (max, _) = errors(&found, all);
                assert!(max <= max_bound, "{name}, {}: off by {max}", prompt.name);
            }
        }
    }
}

#[test]
fn perplexities_are_those_of_transformers() {
    for name in FOLDERS {
        let folder = oracle(name);
        let texts = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let texts: Value = serde_json::from_str(&texts).unwrap();
        for (index, prompt) in expected(&folder).iter().enumerate() {
            let n = prompt.token_nll.len();
            if n == 0 {
                continue;
            }
            let text = &texts["prompts"][index];
            let nll = prompt.token_nll.iter().sum::<f64>() / n as f64;
            let squares: f64 = prompt.token_nll.iter().map(|x| (x - nll).powi(2)).sum();
            let error = (squares / n as f64 / (n - 1).max(1) as f64).sqrt();
            let by_ids = perplexity(&folder, &["--prompt-ids", &comma_separated(&prompt.ids)]);
            // A logit may be off by its bound, and a mean of log probabilities hardly by more than its noise.
            let bound = f64::from(bounds(prompt).1);
            let label = format!("{name}, {}: {by_ids}, expected {nll}", prompt.name);
            assert!((number(&by_ids["nll"]) - nll).abs() <= bound, "{label}");
            assert!((number(&by_ids["nll_error"]) - error).abs() <= bound, "{label}");
            assert!(
                (number(&by_ids["perplexity"]).ln() - nll).abs() <= bound,
                "{label}"
            );
            assert_eq!(by_ids["n_scored"], n);
            assert_eq!(
                (&by_ids["n_chunks"], &by_ids["n_left_out"]),
                (&1.into(), &0.into())
            );
            // Of a text whose ids bring no beginning-of-sequence token none is added here either.
            let begins = prompt.ids[0] == expected(&folder)[0].ids[0];
            let bos: &[&str] = if begins { &[] } else { &["--no-bos"] };
            let by_text = perplexity(&folder, &[&["-p", text["text"].as_str().unwrap()], bos].concat());
            assert_eq!(by_text["perplexity"], by_ids["perplexity"], "{label}");
        }
    }
}

fn prompt(folder: &Path, name: &str) -> Expected {
    let mut prompts = expected(folder).into_iter();
    prompts.find(|prompt| prompt.name == name).unwrap()
}

#[test]
fn nothing_but_the_request_changes_the_logits() {
    let folder = oracle("odd-shape");
    let ids = comma_separated(&prompt(&folder, "code").ids);
    let common = ["--prompt-ids", &ids];
    let (_, once) = logits(&folder, &common);
    for args in [&["-b", "7"][..], &["-t", "1"], &["--simd", "scalar"]] {
        let (_, again) = logits(&folder, &[&common, args].concat());
        assert!(
            once.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{args:?}"
        );
    }
    let (_, bf16) = logits(&folder, &[&common[..], &["--kv-type", "bf16"]].concat());
    assert_ne!(once, bf16);
}

#[test]
fn a_long_text_is_scored_as_llama_cpp_does() {
    let folder = oracle("bitnet-packed");
    let ids = prompt(&folder, "xlong").ids;
    let chunk = 50;
    let found = perplexity(&folder, &["--prompt-ids", &comma_separated(&ids), "-c", "50"]);
    // The same by hand: each chunk alone, its first token replaced, tokens 26 to 49 from the logits before them.
    let mut nll = Vec::new();
    for part in ids.chunks_exact(chunk) {
        let part: Vec<u32> = [&ids[..1], &part[1..]].concat();
        let (shape, logits) = logits(&folder, &["--prompt-ids", &comma_separated(&part)]);
        for position in chunk / 2..chunk - 1 {
            let row = &logits[position * shape[1]..][..shape[1]];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            nll.push(sum.ln() - f64::from(row[part[position + 1] as usize]));
        }
    }
    let mean = nll.iter().sum::<f64>() / nll.len() as f64;
    assert!(
        (number(&found["nll"]) - mean).abs() < 1e-9,
        "{found}, expected {mean}"
    );
    assert_eq!(found["n_chunks"], ids.len() / chunk);
    assert_eq!(found["n_scored"], nll.len());
    assert_eq!(found["n_left_out"], ids.len() % chunk);

    let whole = perplexity(&folder, &["--prompt-ids", &comma_separated(&ids), "--whole"]);
    assert_eq!(whole["n_scored"], ids.len() - 1);
    let output = run_with_input(
        "perplexity",
        &folder,
        &["-c", "8"],
        "The keeper said that the ships were late.",
    );
    let line = stdout(&output);
    assert!(
        line.starts_with("perplexity = ") && line.contains(" +/- "),
        "{line}"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("tokens scored"));
}

#[test]
fn a_converted_folder_computes_the_same() {
    for name in FOLDERS {
        let (folder, dir) = (oracle(name), tempfile::tempdir().unwrap());
        let converted: PathBuf = dir.path().join("converted");
        let output = bitnet()
            .arg("convert")
            .arg(&folder)
            .arg("-o")
            .arg(&converted)
            .output();
        stdout(&output.unwrap());
        for prompt in expected(&folder) {
            let object = greedy(&converted, &comma_separated(&prompt.ids));
            let found: Vec<u32> = serde_json::from_value(object["ids"].clone()).unwrap();
            assert_eq!(found, prompt.greedy, "{name} {}", prompt.name);
        }
        let ids = comma_separated(&prompt(&folder, "long").ids);
        let bits = |folder: &Path| {
            let (_, logits) = logits(folder, &["--prompt-ids", &ids]);
            logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(bits(&folder) == bits(&converted), "{name}");
    }
}

#[test]
fn failures_leave_no_file() {
    let folder = oracle("odd-shape");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    let out = out.to_str().unwrap();
    let fails = |args: &[&str]| failure(&run("logits", &folder, &[&["-o", out], args].concat()));
    assert!(fails(&["--prompt-ids", "1,777"]).contains("token id 777 is not below the vocabulary size 777"));
    assert!(fails(&["--prompt-ids", ""]).contains("empty"));
    let unread = run("logits", &folder, &["-o", out, "--prompt-ids", "1,a"]);
    assert_eq!(unread.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unread.stderr).contains("--prompt-ids: `a` is not a token id"));
    assert!(fails(&["-f", "/nonexistent"]).contains("/nonexistent"));
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    let onto = |path: &str| failure(&run("logits", &folder, &["--prompt-ids", "1", "-o", path]));
    assert!(onto(dir.path().to_str().unwrap()).contains("is a folder"));
    assert!(onto("/proc/nonexistent/x").contains("/proc/nonexistent"));
    assert!(onto("/dev/null/x").contains("/dev/null"));
    assert!(onto("..").contains("not the name of a file"));

    let fails = |args: &[&str]| failure(&run("perplexity", &folder, args));
    assert!(fails(&["--prompt-ids", "1"]).contains("needs at least 2"));
    assert!(fails(&["--prompt-ids", "1,777"]).contains("token 777 is not below"));
    let output = run("perplexity", &folder, &["--prompt-ids", "1,2", "-c", "2"]);
    assert_eq!(output.status.code(), Some(2));
}
