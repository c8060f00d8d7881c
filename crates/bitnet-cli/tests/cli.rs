//! The program itself, run as a user runs it.

mod program;

use std::path::Path;
use std::process::{Output, Stdio};

use program::{bitnet, expected, failure, oracle, run, run_with_input, stdout};
use serde_json::Value;

#[test]
fn text_goes_to_stdout_and_statistics_to_stderr() {
    let folder = oracle("bitnet-bf16");
    let chat = expected(&folder, "chat");
    let question = chat["messages"][0]["content"].as_str().unwrap();
    let plain = run(
        "generate",
        &folder,
        &["-p", chat["text"].as_str().unwrap(), "--temp", "0"],
    );
    assert_eq!(stdout(&plain), "No. A pair of storks lives on it now.");
    let line = String::from_utf8_lossy(&plain.stderr);
    for part in [
        "prompt 27 tokens",
        "first token",
        "answer 16 tokens",
        "tokens/s",
        "memory",
        "cpu",
    ] {
        assert!(line.contains(part), "{line}");
    }

    let formatted = run(
        "generate",
        &folder,
        &["--chat-format", "-p", question, "--temp", "0", "-q"],
    );
    assert_eq!((stdout(&formatted), formatted.stderr.len()), (stdout(&plain), 0));
    let echoed = run(
        "generate",
        &folder,
        &["--chat-format", "-p", question, "--temp", "0", "--echo"],
    );
    let whole = format!(
        "<|begin_of_text|>{}{}",
        chat["text"].as_str().unwrap(),
        stdout(&plain)
    );
    assert_eq!(stdout(&echoed), whole);
    let limited = run(
        "generate",
        &folder,
        &["--chat-format", "-p", question, "--temp", "0", "-n", "3"],
    );
    assert!(stdout(&plain).starts_with(&stdout(&limited)));
    let stopped = run(
        "generate",
        &folder,
        &["--chat-format", "-p", question, "--temp", "0", "--stop", "of st"],
    );
    assert_eq!(stdout(&stopped), "No. A pair ");
}

#[test]
fn the_prompt_comes_from_the_flag_a_file_or_stdin() {
    let folder = oracle("odd-shape");
    let prompt = expected(&folder, "code");
    let text = prompt["text"].as_str().unwrap();
    let ids = |output: Output| {
        let object: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(object["prompt_ids"], prompt["ids"]);
    };
    let common = ["-n", "0", "--json"];
    ids(run("generate", &folder, &[&["-p", text][..], &common].concat()));
    ids(run_with_input("generate", &folder, &common, text));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    ids(run(
        "generate",
        &folder,
        &[&["-f", file.path().to_str().unwrap()][..], &common].concat(),
    ));
    let tokenized = run_with_input("tokenize", &folder, &["--json"], text);
    let object: Value = serde_json::from_str(&stdout(&tokenized)).unwrap();
    assert_eq!(object["ids"], prompt["ids"]);
}

#[test]
fn token_ids_need_no_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(oracle("odd-shape").join(file), folder.path().join(file)).unwrap();
    }
    let short = expected(&oracle("odd-shape"), "short");
    let ids = short["ids"].to_string();
    let ids = ids.trim_matches(['[', ']']);
    let output = run(
        "generate",
        folder.path(),
        &["--prompt-ids", ids, "-n", "32", "--temp", "0", "--json"],
    );
    let object: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (&object["ids"], &object["text"]),
        (&short["f32"]["greedy_ids"], &Value::from(""))
    );
    assert!(failure(&run("generate", folder.path(), &["-p", "a"])).contains("no tokenizer.json"));
    assert!(failure(&run("chat", folder.path(), &[])).contains("hint: give one with --chat-template-file"));
}

#[test]
fn a_conversation_over_a_pipe() {
    let folder = oracle("llama-bitnet");
    let chat = expected(&folder, "chat");
    let question = chat["messages"][0]["content"].as_str().unwrap();
    let answer = "No. A pair of storks lives on it now.\n";
    let input = format!(
        "{question}\n/clear\n/system Be brief.\n/system\n/clear\n/temp 0\n/nonsense\n/exit\nnever read\n"
    );
    let output = run_with_input("chat", &folder, &["--temp", "0"], &input);
    assert_eq!(stdout(&output), answer);
    let stderr = String::from_utf8(output.stderr).unwrap();
    for part in ["first token", "Be brief.", "error: there is no command /nonsense"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    // The second turn computes what is new alone, and /retry repeats itself.
    let output = run_with_input(
        "chat",
        &folder,
        &["--temp", "0", "-p", question, "-n", "40"],
        "/retry\nAnd\nnow?",
    );
    assert!(stdout(&output).starts_with(&answer.repeat(2)));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("first token").count(), 4, "{stderr}");
    assert_eq!(stderr.matches(" reused)").count(), 3, "{stderr}");
    let interactive = run_with_input(
        "generate",
        &folder,
        &["-i", "--chat-format", "--temp", "0"],
        question,
    );
    assert_eq!(stdout(&interactive), answer);
}

#[test]
fn a_long_conversation_forgets_its_beginning() {
    let folder = oracle("bitnet-bf16");
    let input = "How many ships were there?\n".repeat(8);
    let output = run_with_input("chat", &folder, &["--temp", "0", "-n", "8", "-c", "96"], &input);
    assert!(stdout(&output).lines().count() >= 8);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("forgot the oldest 2 messages"), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
}

#[test]
fn failures_say_what_to_do() {
    let folder = oracle("odd-shape");
    assert!(
        failure(&run("generate", Path::new("/nonexistent"), &["-p", "a"]))
            .contains("/nonexistent: no such file or folder\nhint: ")
    );
    let gpu = failure(&run("generate", &folder, &["-p", "a", "--device", "cuda:99"]));
    assert!(gpu.contains("NVIDIA") || gpu.contains("GPU"), "{gpu}");
    assert!(
        failure(&run("generate", &folder, &["--prompt-ids", "9999"])).contains("token 9999 is not below")
    );
    assert!(failure(&run("generate", &folder, &["--prompt-ids", ""])).contains("the prompt is empty"));
    assert!(
        failure(&run("generate", &folder, &["-p", "a b c d e", "-c", "3"]))
            .contains("raise it with --ctx-size")
    );
    assert!(
        failure(&run("generate", &folder, &["-p", "a", "--top-p", "2"]))
            .contains("top-p is 2; expected 0 to 1")
    );
    assert!(failure(&run("generate", &folder, &["-p", "a", "-l", "777+1"])).contains("token 777"));
    assert!(failure(&run("generate", &folder, &["-p", "a", "--system", "b"])).contains("add --chat-format"));
    assert!(failure(&run("generate", &folder, &["-f", "/nonexistent"])).contains("/nonexistent"));
    // What no context holds is refused by its length, before anything is made of it.
    let long = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(long.path(), "far too long ".repeat(1 << 17)).unwrap();
    for more in [&[][..], &["--chat-format"]] {
        let args = [&["-f", long.path().to_str().unwrap()], more].concat();
        let message = failure(&run("generate", &oracle("bitnet-bf16"), &args));
        assert!(
            message.contains("the context holds") && message.contains("--ctx-size"),
            "{message}"
        );
    }
    assert!(failure(&run("generate", &folder.join("config.json"), &["-p", "a"])).contains("config.json"));

    for args in [
        &["--bogus"][..],
        &["-n", "-3"],
        &["-t", "0"],
        &["--device", "tpu"],
        &["-l", "1"],
        &["--kv-type", "q8"],
    ] {
        let output = run("generate", &folder, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_flag_outranks_the_environment() {
    let prompt = ["-p", "a", "-n", "1", "--json", "-m"];
    let ids = |args: &[&str]| {
        let mut command = bitnet();
        command
            .env("BITNET_DEVICE", "cuda:99")
            .arg("generate")
            .args(prompt)
            .arg(oracle("odd-shape"));
        command.args(args).output().unwrap()
    };
    stdout(&ids(&["--cpu"]));
    stdout(&ids(&["--device", "cpu"]));
    stdout(&ids(&["--device", "cuda:99", "--cpu"]));
    failure(&ids(&[]));
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let mut child = bitnet()
        .args(["generate", "-p", "The", "--ignore-eos", "-m"])
        .arg(oracle("odd-shape"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
