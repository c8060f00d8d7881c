//! The terminal sessions in the README and in docs/ are what the program says.
#![cfg(unix)]

mod program;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use program::bitnet;

/// A command of a session, what the document shows of its output, and what is typed into it.
#[derive(Debug, Default)]
struct Step {
    command: String,
    shown: Vec<String>,
    typed: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The steps of every ```console block.
fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = document.lines();
    while lines.by_ref().any(|line| line == "```console") {
        let block = lines.by_ref().take_while(|line| *line != "```");
        for line in block {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step::default());
                steps.last_mut().unwrap().command = command.to_owned();
                continue;
            }
            let step = steps.last_mut().expect("a session begins with a command");
            if let Some(typed) = line.strip_prefix("> ") {
                step.typed.push(typed.to_owned());
            } else {
                step.shown.push(line.to_owned());
            }
        }
    }
    steps
}

/// Without what differs from machine to machine: figures and names in lines that tell a measurement.
fn comparable(line: &str) -> String {
    if !line.contains("tokens/s") && !line.starts_with("wrote ") {
        return line.to_owned();
    }
    let line = line.split(" | cpu").next().unwrap_or_default();
    let line = line.split(" on cpu").next().unwrap_or_default();
    line.chars()
        .filter(|c| !c.is_ascii_digit() && *c != '.')
        .collect()
}

/// Runs a command in `folder` as a shell would, and compares.
fn check(name: &str, step: &Step, folder: &Path) {
    let program = bitnet();
    let mut shell = Command::new("sh");
    // What the program's own tests clear from the environment, cleared here too.
    for (variable, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(variable, value),
            None => shell.env_remove(variable),
        };
    }
    let bin = Path::new(program.get_program()).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path))).unwrap();
    let mut shell = shell
        .args(["-c", &format!("exec 2>&1; {}", step.command)])
        .env("PATH", path)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let typed: String = step.typed.iter().map(|line| format!("{line}\n")).collect();
    shell.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name}: {}: {found}", step.command);
    // A pipe is not greeted.
    let greeting = |line: &&String| line.contains("demo-model on cpu") || line.starts_with("/help lists");
    let mut found = found.lines();
    for shown in step.shown.iter().filter(|line| !greeting(line)) {
        if shown == "..." {
            return;
        }
        let line = found.next().map(comparable);
        assert_eq!(line, Some(comparable(shown)), "{name}: {}", step.command);
    }
    assert_eq!(found.next(), None, "{name}: {}", step.command);
}

/// README.md and the files of docs/.
fn documents() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    let mut documents: Vec<PathBuf> = docs.map(|entry| entry.unwrap().path()).collect();
    documents.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    documents.push(root().join("README.md"));
    documents
}

/// The registry's packages of these names are other people's.
#[test]
fn nobody_is_sent_to_a_package_of_somebody_else() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for name in [
            "install bitnet",
            "add bitnet",
            "bitnet-cli = \"",
            "bitnet-model = \"",
        ] {
            assert!(!text.contains(name), "{}: {name}", document.display());
        }
    }
}

#[test]
fn sessions_are_as_shown() {
    let mut n_steps = 0;
    for document in documents() {
        let name = document.display().to_string();
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root().join("crates"), folder.path().join("crates")).unwrap();
        for step in steps(&std::fs::read_to_string(&document).unwrap()) {
            check(&name, &step, folder.path());
            n_steps += 1;
        }
    }
    assert!(n_steps > 5, "only {n_steps} commands were found");
}
