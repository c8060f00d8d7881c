//! Files that are no files, outputs that must not be replaced, signals in the middle of work, and full outputs.
#![cfg(unix)]

mod program;

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use program::{bitnet, failure, oracle, run, run_with_input, stdout};

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// The output of a command that must end by itself.
fn ends(mut child: Child) -> Output {
    let end = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn every_file_that_is_named_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    pipe(&fifo);
    let folder = oracle("bitnet-packed");
    let answers = dir.path().join("answers").display().to_string();
    let flags = [
        vec!["generate", "-n", "1", "-f"],
        vec!["generate", "-n", "1", "-p", "a", "--config"],
        vec![
            "generate",
            "-n",
            "1",
            "-p",
            "a",
            "--chat-format",
            "--chat-template-file",
        ],
        vec!["tokenize", "-f"],
        vec!["perplexity", "-f"],
        vec!["serve", "--port", "0", "--api-key-file"],
        vec!["batch", "-o", &answers, "-i"],
    ];
    for place in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
        for flags in &flags {
            let output = ends(spawn(bitnet().args(flags).arg(place).arg("-m").arg(&folder)));
            let message = failure(&output);
            assert!(
                message.contains("where a file is expected"),
                "{flags:?} {}: {message}",
                place.display()
            );
        }
    }
    // What the environment names, and what lies in the cache of models.
    let refs = dir.path().join("models--a--b/refs");
    std::fs::create_dir_all(&refs).unwrap();
    pipe(&refs.join("main"));
    for (name, value, args) in [
        ("HF_TOKEN_PATH", fifo.as_path(), &["list"][..]),
        ("SSL_CERT_FILE", &fifo, &["pull", "a/b"]),
        ("HF_HUB_CACHE", dir.path(), &["list"]),
    ] {
        let message = failure(&ends(spawn(bitnet().args(args).env(name, value))));
        assert!(message.contains("where a file is expected"), "{name}: {message}");
    }
    // A pipe that the shell opened has another end.
    let mut shell = Command::new("bash");
    let shell = shell.arg("-c").arg("\"$0\" tokenize -m \"$1\" -f <(printf abc)");
    match shell
        .arg(env!("CARGO_BIN_EXE_bitnet"))
        .arg(&folder)
        .env("BITNET_CONFIG", "")
        .output()
    {
        Ok(output) => assert_eq!(stdout(&output), stdout(&run("tokenize", &folder, &["-p", "abc"]))),
        Err(error) => println!("not tested: bash: {error}"),
    }
}

#[test]
fn outputs_replace_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (victim, link, fifo) = (
        dir.path().join("victim"),
        dir.path().join("link"),
        dir.path().join("fifo"),
    );
    std::fs::write(&victim, "kept").unwrap();
    symlink(&victim, &link).unwrap();
    pipe(&fifo);
    let out = |path: &Path| {
        run(
            "logits",
            &oracle("odd-shape"),
            &["--prompt-ids", "1,2", "-o", path.to_str().unwrap()],
        )
    };
    assert!(failure(&out(&link)).contains("is a link to"));
    assert!(failure(&out(&fifo)).contains("is a pipe or device"));
    assert!(failure(&out(dir.path())).contains("is a folder"));
    assert!(failure(&out(&dir.path().join("no/such"))).contains("no such folder"));
    // A device stays one even where this program may do anything: whoever may also make one loses no other here.
    let made = dir.path().join("null");
    let is_made = Command::new("mknod").arg(&made).args(["c", "1", "3"]).output();
    let device = match is_made.is_ok_and(|output| output.status.success()) {
        true => &*made,
        false => Path::new("/dev/null"),
    };
    assert!(failure(&out(device)).contains("is a pipe or device"));
    assert!(std::fs::metadata(device).unwrap().file_type().is_char_device());
    let _ = std::fs::remove_file(&made);
    assert_eq!(std::fs::read(&victim).unwrap(), b"kept");
    assert!(link.is_symlink() && std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
    let output = out(&victim);
    assert!(output.status.success() && std::fs::metadata(&victim).unwrap().len() > 1000);
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["fifo", "link", "victim"]);
    // Answers go to OUTPUT.part first.
    let requests = dir.path().join("in.jsonl");
    std::fs::write(&requests, "{\"prompt\": \"a\"}\n").unwrap();
    let batch = |output: &str| {
        let mut command = bitnet();
        command.args(["batch", "-n", "1", "-q", "-i"]).arg(&requests);
        ends(spawn(command.arg("-o").arg(dir.path().join(output))))
    };
    std::fs::write(&victim, "kept").unwrap();
    for (name, reason) in [
        ("link", "is a link to"),
        ("fifo", "is a pipe or device"),
        (".", "is a folder"),
    ] {
        let message = failure(&batch(name));
        assert!(message.contains(reason) || name == ".", "{message}");
    }
    symlink(&victim, dir.path().join("planted.part")).unwrap();
    symlink("nowhere", dir.path().join("dangling.part")).unwrap();
    pipe(&dir.path().join("piped.part"));
    for (name, reason) in [
        ("planted", "is a link to"),
        ("dangling", "is a link to"),
        ("piped", "is a pipe or device"),
    ] {
        let message = failure(&batch(name));
        assert!(message.contains(reason), "{message}");
        assert!(!dir.path().join(name).exists());
    }
    assert_eq!(std::fs::read(&victim).unwrap(), b"kept");
    assert!(link.is_symlink() && std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
    assert!(!dir.path().join("nowhere").exists());
    // Of two runs with one output the second is refused.
    let part = dir.path().join("shared.part");
    let other = File::create(&part).unwrap();
    other.lock().unwrap();
    assert!(failure(&batch("shared")).contains("another run writes it"));
    drop(other);
    assert!(batch("shared").status.success() && !part.exists());
    for flags in [["-i", "-", "-o", "x"], ["-i", "x", "-o", "-"]] {
        let output = bitnet().arg("batch").args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("/dev/stdin"));
    }
    let saved = bitnet()
        .args([
            "bench", "model", "-p", "2", "-n", "1", "-r", "1", "--cpu", "--save",
        ])
        .arg(dir.path().join("link.json"))
        .output()
        .unwrap();
    assert!(saved.status.success() && dir.path().join("link.json").is_file());
}

#[test]
fn a_signal_leaves_nothing_of_a_file() {
    // Under nohup a hang-up is ignored, and in the background of a shell an interrupt, by what is started here too.
    for ignored in [Signal::SIGHUP, Signal::SIGINT] {
        // SAFETY: no handler is installed.
        unsafe { signal(ignored, SigHandler::SigDfl) }.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    for (signal, status) in [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ] {
        let out = dir.path().join("logits");
        let ids = vec!["1"; 2000].join(",");
        let mut command = bitnet();
        command
            .args(["logits", "-t", "1", "-b", "1", "--prompt-ids", &ids, "-o"])
            .arg(&out);
        let child = spawn(&mut command);
        let end = Instant::now() + Duration::from_secs(60);
        while std::fs::read_dir(dir.path()).unwrap().next().is_none() {
            assert!(Instant::now() < end, "nothing is written");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let output = ends(child);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains("error: interrupted"), "{stderr}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{signal}");
    }
}

#[test]
fn a_limit_of_file_size_leaves_nothing_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let folder = oracle("odd-shape");
    for args in [
        &["convert", "SOURCE", "-o", "OUT"][..],
        &["convert", "SOURCE", "--to", "gguf", "-o", "OUT"],
        &["logits", "-m", "SOURCE", "--prompt-ids", "1,2,3,4,5", "-o", "OUT"],
    ] {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ulimit -f 8; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_bitnet"),
        ]);
        let args = args.iter().map(|&arg| match arg {
            "SOURCE" => folder.as_os_str(),
            "OUT" => out.as_os_str(),
            arg => arg.as_ref(),
        });
        command
            .args(args)
            .env("BITNET_CONFIG", "")
            .env("BITNET_DEVICE", "cpu");
        let message = failure(&ends(spawn(&mut command)));
        assert!(message.contains("File too large"), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{message}");
    }
}

#[test]
fn several_conversions_into_one_folder_leave_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for _ in 0..10 {
        let start = || {
            spawn(
                bitnet()
                    .arg("convert")
                    .arg(oracle("bitnet-packed"))
                    .arg("--force")
                    .arg("-o")
                    .arg(&out),
            )
        };
        let runs = [start(), start(), start()];
        let codes = runs.map(|run| ends(run).status.code());
        assert!(codes.contains(&Some(0)), "{codes:?}");
        let checked = bitnet().args(["inspect", "--verify"]).arg(&out).output().unwrap();
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let left = std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(left.into_iter().all(|name| !name.starts_with('.')));
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn full_and_closed_outputs_are_no_bug() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let commands: [&[&str]; 8] = [
        &["bench", "model", "-p", "4", "-n", "2", "-r", "1"],
        &["generate", "--prompt-ids", "1", "-n", "3", "--ignore-eos"],
        &["generate", "-p", "a", "-n", "0", "--echo"],
        &["tokenize", "-p", "a"],
        &["inspect"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
    ];
    for args in commands {
        let output = bitnet()
            .args(args)
            .stdout(full())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(
            stderr
                .lines()
                .any(|line| line.starts_with("error: No space left"))
                && stderr.contains("stdout")
                && !stderr.contains("internal"),
            "{args:?}: {stderr}"
        );
        // Nobody hears of it; the work is done all the same.
        let output = bitnet().args(args).stderr(full()).output().unwrap();
        assert!(output.status.success(), "{args:?}");
    }
    let closed = "exec \"$0\" tokenize -p a >&- 2>&-";
    let status = Command::new("sh")
        .args(["-c", closed, env!("CARGO_BIN_EXE_bitnet")])
        .env("BITNET_CONFIG", "")
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn control_characters_of_a_file_are_shown_not_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(oracle("odd-shape")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    for key in ["model_type", "architectures"] {
        let mut value: serde_json::Value = serde_json::from_str(&config).unwrap();
        value[key] = match key {
            "architectures" => serde_json::json!(["\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}2J"]),
            _ => "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}2J".into(),
        };
        std::fs::write(&path, value.to_string()).unwrap();
        for args in [
            &["inspect"][..],
            &["inspect", "--json"],
            &["generate", "--prompt-ids", "1", "-n", "0"],
        ] {
            let output = bitnet().args(args).arg("-m").arg(dir.path()).output().unwrap();
            for text in [output.stdout, output.stderr] {
                let text = String::from_utf8(text).unwrap();
                assert!(
                    !text.contains(['\u{1b}', '\u{7}', '\u{9b}']),
                    "{key} {args:?}: {text:?}"
                );
            }
        }
    }
}

#[test]
fn flags_without_effect_are_refused() {
    let folder = oracle("bitnet-bf16");
    let template = folder.join("tokenizer_config.json");
    let template = ["-p", "a", "--chat-template-file", template.to_str().unwrap()];
    assert!(
        failure(&run("generate", &folder, &template))
            .contains("--chat-template-file has no place in plain text")
    );
    let both = run("inspect", &folder, &[folder.to_str().unwrap()]);
    assert_eq!(both.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&both.stderr).contains("FOLDER and --model are both given"));
    // The form that is written is the one that was named.
    let converted = |args: &[&str]| bitnet().arg("convert").arg(&folder).args(args).output().unwrap();
    for args in [&["-o", "x.gguf"][..], &["-o", "x", "--gguf-type", "i2_s"]] {
        let output = converted(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("add --to gguf"));
    }
    for (ids, status) in [("1,,2", 2), ("x", 2), ("99999999", 1)] {
        let output = run("tokenize", &folder, &["--ids", ids]);
        assert_eq!(output.status.code(), Some(status), "{ids}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("error: --ids: "));
    }
    // A variable is outranked, not contradicted.
    let ranked = bitnet()
        .arg("inspect")
        .arg(&folder)
        .env("BITNET_MODEL", "/nonexistent")
        .output()
        .unwrap();
    assert!(ranked.status.success());
    assert_eq!(
        run("tokenize", &folder, &["--ids", "1", "--no-bos"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn a_piped_conversation_tells_its_failures() {
    let chat = |input: &str| run_with_input("chat", Path::new(DEMO), &["--temp", "0", "-q"], input);
    let long = "a ".repeat(3000);
    let output = chat(&format!("What is 1 + 1?\n{long}\nplus 5?\n"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 + 1 = 2\n2 + 5 = 7\n");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("error: the message has ") && !stderr.contains("forgot"),
        "{stderr}"
    );
    // A number out of range is refused where it is set, and changes nothing.
    let output = chat("What is 1 + 1?\n/topp 2\n/temp -1\nplus 5?\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 + 1 = 2\n2 + 5 = 7\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("error: top-p is 2") && stderr.contains("error: temperature is -1"),
        "{stderr}"
    );

    let mut child = bitnet();
    child.args(["chat", "--temp", "0", "-q"]).stdin(Stdio::piped());
    let mut child = spawn(&mut child);
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"What is 1 + 1?\n\xff\xfe\nplus 5?\n").unwrap();
    drop(stdin);
    let output = ends(child);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 + 1 = 2\n2 + 5 = 7\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not UTF-8"));
    assert!(chat("//etc\n/help\n").status.success());
}

/// The model inside the program, as a folder.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model");

#[test]
fn settings_are_named_where_they_are_wrong() {
    let with = |name: &str, value: &str, args: &[&str]| {
        let mut command = bitnet();
        command
            .args(["generate", "-p", "a", "-n", "1", "-q"])
            .args(args)
            .env(name, value);
        command.output().unwrap()
    };
    for (name, value) in [
        ("BITNET_TEMP", "zzz"),
        ("BITNET_THREADS", "0"),
        ("BITNET_DEVICE", "tpu"),
        ("BITNET_IGNORE_EOS", "maybe"),
    ] {
        let output = with(name, value, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.starts_with(&format!("error: {name}: ")) && stderr.contains(value),
            "{stderr}"
        );
    }
    // A flag that is wrong is not the variable's fault.
    let output = with("BITNET_SEED", "1", &["--temp", "zzz"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("BITNET_"));
    for (name, value) in [
        ("BITNET_TOP_P", "2"),
        ("BITNET_MODEL", "/nonexistent"),
        ("BITNET_DEVICE", "cuda:99"),
    ] {
        let output = with(name, value, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains(&format!("hint: that is a setting: {name}={value}")),
            "{stderr}"
        );
    }
    for name in [
        "MODEL", "SEED", "TEMP", "THREADS", "DEVICE", "CTX_SIZE", "SIMD", "QUIET", "STOP", "HISTORY",
    ] {
        let output = with(&format!("BITNET_{name}"), "", &["--cpu"]);
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let help = bitnet()
        .args(["generate", "--help"])
        .env("BITNET_TEMP", "")
        .output()
        .unwrap();
    assert!(stdout(&help).contains("[env: BITNET_TEMP=]"));
}
