//! GGUF files in place of folders, in every command.

mod program;

use std::path::{Path, PathBuf};
use std::process::Output;

use program::{bitnet, expected, run, run_with_input};
use serde_json::Value;

fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../bitnet-model/tests/oracle-gguf")
        .join(name)
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn text_chats_and_ids_of_the_official_kind_of_file() {
    let folder = oracle("b158-i2s");
    let file = folder.join("model.gguf");
    let prompt = expected(&folder, "short");
    let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
    let text = prompt["text"].as_str().unwrap();
    let tokenized = run("tokenize", &file, &["-p", text]);
    let joined: Vec<String> = ids.iter().map(u32::to_string).collect();
    assert_eq!(stdout(&tokenized).trim(), joined.join(","));

    let args = [
        "-p",
        text,
        "-n",
        "12",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
        "--kv-type",
        "f32",
    ];
    let generated = run("generate", &file, &args);
    let json: Value = serde_json::from_str(&stdout(&generated)).unwrap();
    let greedy: Vec<u32> = serde_json::from_value(prompt["f32"]["greedy_ids"].clone()).unwrap();
    let found: Vec<u32> = serde_json::from_value(json["ids"].clone()).unwrap();
    assert_eq!(found, greedy[..12]);
    let stderr = String::from_utf8(generated.stderr).unwrap();
    for note in ["relu2", "<|eot_id|>", "placeholder"] {
        assert_eq!(stderr.matches(note).count(), 1, "said once: {stderr}");
    }

    // The conversation is put into the model's own template, not into the file's.
    let chat = expected(&folder, "chat");
    let question = chat["messages"][0]["content"].as_str().unwrap();
    let args = [
        "-n",
        "8",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
        "--kv-type",
        "f32",
        "--chat-format",
        "-p",
        question,
    ];
    let json: Value = serde_json::from_str(&stdout(&run("generate", &file, &args))).unwrap();
    let greedy: Vec<u32> = serde_json::from_value(chat["f32"]["greedy_ids"].clone()).unwrap();
    let found: Vec<u32> = serde_json::from_value(json["ids"].clone()).unwrap();
    assert_eq!(found, greedy[..8]);
}

#[test]
fn the_wrong_layout_gives_other_weights() {
    let file = oracle("b158-i2s").join("model.gguf");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    let logits = |layout: &str| {
        let args = [
            "--prompt-ids",
            "1,2,3",
            "--i2s-layout",
            layout,
            "-o",
            out.to_str().unwrap(),
        ];
        stdout(&run("logits", &file, &args));
        std::fs::read(&out).unwrap()
    };
    assert!(logits("canonical") == logits("canonical"));
    assert!(logits("canonical") != logits("arm64"));
    assert!(logits("canonical") != logits("rows4"));
}

#[test]
fn inspected_converted_and_back() {
    let file = oracle("llama-tq1-q4k-q6k").join("model.gguf");
    let dir = tempfile::tempdir().unwrap();
    let (words, back) = (dir.path().join("words"), dir.path().join("back.gguf"));
    let convert = |from: &Path, to: &Path, args: &[&str]| {
        let output = bitnet()
            .arg("convert")
            .arg(from)
            .arg("-o")
            .arg(to)
            .args(args)
            .output()
            .unwrap();
        stdout(&output);
    };
    convert(&file, &words, &[]);
    convert(&words, &back, &["--to", "gguf", "--gguf-type", "tq1_0"]);
    let inspect = |path: &Path| -> Value {
        serde_json::from_str(&stdout(&run("inspect", path, &["--json", "--verify"]))).unwrap()
    };
    let (first, second, last) = (inspect(&file), inspect(&words), inspect(&back));
    assert_eq!(first["storage"], "GGUF, TQ1_0");
    assert_eq!(last["storage"], "GGUF, TQ1_0");
    for found in [&second, &last] {
        assert_eq!(found["values"], first["values"]);
        assert_eq!(found["scales"], first["scales"]);
    }
    assert_eq!(first["warnings"], Value::Array(Vec::new()));
    let scored = |path: &Path| {
        stdout(&run(
            "perplexity",
            path,
            &["-p", "The keeper counted the ships", "--json"],
        ))
    };
    let nll = |text: String| {
        serde_json::from_str::<Value>(&text).unwrap()["perplexity"]
            .as_f64()
            .unwrap()
    };
    let (a, b) = (nll(scored(&file)), nll(scored(&words)));
    assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
}

#[test]
fn embeddings() {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../bitnet-model/tests/oracle-models/embed-qwen3");
    let vectors = |path: &Path, args: &[&str]| -> Vec<Vec<f64>> {
        let output = run_with_input("embed", path, args, "one text\nanother one\n");
        let lines = stdout(&output);
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let each = vectors(&folder, &["--lines"]);
    assert_eq!((each.len(), each[0].len()), (2, 256));
    for vector in &each {
        assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    }
    assert_ne!(each[0], each[1]);
    assert_ne!(vectors(&folder, &["--lines", "--pooling", "mean"]), each);
    let requests = tempfile::tempdir().unwrap();
    let [input, output] = ["in", "out"].map(|name| requests.path().join(name).display().to_string());
    std::fs::write(&input, "{\"prompt\": \"a\"}\n").unwrap();
    // What writes text does not begin.
    let batch = ["-i", input.as_str(), "-o", &output];
    let mut all = vec![("generate", &[][..]), ("batch", &batch)];
    if cfg!(feature = "serve") {
        all.push(("serve", &["--port", "0"]));
    }
    for (command, args) in all {
        let refused = run_with_input(command, &folder, args, "text");
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert!(
            refused.status.code() == Some(1) && stderr.contains("bitnet embed"),
            "{command}: {stderr}"
        );
    }
}
