//! What stands in the place of a file of a model: only a regular file of a sensible size is read.
#![cfg(unix)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use bitnet_model::{ChatTemplate, Device, Model, read_file};

const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// A copy of a model whose file `name` is missing.
fn without(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/bitnet-packed");
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        // The index is only asked for where there is no single file.
        let index = name == "model.safetensors.index.json" && entry.file_name() == "model.safetensors";
        if entry.file_name() != name && !index {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn refusal(dir: &Path) -> String {
    match Model::load(dir, Device::Cpu) {
        // What is wrong with a template is told when it is used.
        Ok(model) => match model.chat_template().map(ChatTemplate::check) {
            Some(Err(error)) => error.to_string(),
            _ => panic!("{} was loaded", dir.display()),
        },
        Err(error) => error.to_string(),
    }
}

#[test]
fn nothing_but_a_file_stands_in_for_one() {
    for name in FILES {
        let dir = without(name);
        let path = dir.path().join(name);
        let expect = |found: &str| {
            let message = refusal(dir.path());
            assert!(
                message.contains(name) && message.contains(found),
                "{name}: {message}"
            );
        };
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        expect("is a pipe or device, where a file is expected");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        expect("is a folder, where a file is expected");
        std::fs::remove_dir(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        expect("is a pipe or device");
        std::fs::remove_file(&path).unwrap();
        symlink("nowhere", &path).unwrap();
        expect("is a link to nowhere, which is not there");
        std::fs::remove_file(&path).unwrap();
        symlink(name, &path).unwrap();
        expect("symbolic links");
    }
}

#[test]
fn a_file_of_no_sensible_size_is_not_read() {
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        let dir = without(name);
        // A hole of a terabyte takes no room.
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(1 << 40).unwrap();
        let message = refusal(dir.path());
        assert!(
            message.contains(name) && message.contains("has 1099511627776 bytes"),
            "{message}"
        );
    }
}

#[test]
fn a_template_of_its_own_is_a_file_as_well() {
    let dir = without("");
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let error = ChatTemplate::from_file(&pipe, dir.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("is a pipe or device"), "{error}");
}

#[test]
fn a_file_that_claims_to_be_empty_is_bounded_too() {
    // It is a regular file of 0 bytes, as its attributes say.
    let status = Path::new("/proc/self/status");
    if status.exists() {
        assert!(!read_file(status, 1 << 20).unwrap().is_empty());
        let error = read_file(status, 10).unwrap_err().to_string();
        assert!(error.contains("has 11 bytes or more"), "{error}");
    }
}
