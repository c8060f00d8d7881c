//! Completions and manual pages.

mod program;

use std::io::Write;
use std::process::{Command, Stdio};

use program::{bitnet, failure, stdout};

#[test]
fn shells_learn_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&bitnet().args(["completions", shell]).output().unwrap());
        for word in ["generate", "repeat-penalty", "perplexity"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // Where there is a bash, it must take its script.
    let script = stdout(&bitnet().args(["completions", "bash"]).output().unwrap());
    let bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn();
    match bash {
        Ok(mut bash) => {
            bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            assert!(bash.wait().unwrap().success());
        }
        Err(error) => println!("not tested: bash: {error}"),
    }
}

#[test]
fn every_command_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let written = bitnet().args(["man", "--dir"]).arg(&pages).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    for (page, content) in [
        ("bitnet.1", r"bitnet\-chat(1)"),
        ("bitnet-generate.1", "BITNET_TEMP"),
        ("bitnet-bench-model.1", r"\-\-repetitions"),
    ] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(content), "{page}: {text}");
    }
    let names: Vec<String> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
    let text = std::fs::read_to_string(pages.join("bitnet-bench-model.1")).unwrap();
    assert!(
        text.contains(concat!("\"bitnet ", env!("CARGO_PKG_VERSION"), "\"")),
        "{text}"
    );
    let text = std::fs::read_to_string(pages.join("bitnet-generate.1")).unwrap();
    assert!(text.contains(r"(also \-\-max\-tokens)"), "{text}");
    let page = stdout(&bitnet().args(["man", "bench", "model"]).output().unwrap());
    assert!(page.contains(r"\-\-repetitions"), "{page}");
    let unknown = bitnet().args(["man", "bench", "models"]).output().unwrap();
    assert!(failure(&unknown).contains("there is no command `bench models`\nhint: "));
}
