//! Builds what a GPU machine needs, and puts it into a folder.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Builds the tests and programs, and copies them without their symbols.
pub(super) fn pack(folder: &Path) -> Result<()> {
    let tests = folder.join("tests");
    if tests.is_dir() {
        fs::remove_dir_all(&tests).with_context(|| format!("cannot empty {}", tests.display()))?;
    }
    fs::create_dir_all(&tests).with_context(|| format!("cannot make {}", tests.display()))?;
    // Integration tests that need a GPU: all of bitnet-cuda's, and those of bitnet-model that say so in their name.
    let mut arguments: Vec<String> = [
        "test",
        "--no-run",
        "--package",
        "bitnet-cuda",
        "--package",
        "bitnet-model",
        "--features",
        "bitnet-model/cuda",
    ]
    .map(str::to_owned)
    .into();
    for (of, prefix) in [("bitnet-cuda", ""), ("bitnet-model", "cuda")] {
        for name in tests_of(of)? {
            if name.starts_with(prefix) {
                arguments.extend(["--test".to_owned(), name]);
            }
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for (name, kind, executable) in build(&arguments)? {
        if kind == "test" {
            copy_stripped(&executable, &tests.join(&name))?;
        }
    }
    for (name, kind, executable) in build(&["build", "--package", "bitnet-cli"])? {
        if kind == "bin" {
            copy_stripped(&executable, &folder.join(name))?;
        }
    }
    copy_stripped(&std::env::current_exe()?, &folder.join("xtask"))?;
    fs::write(folder.join("commit"), commit())?;
    Ok(())
}

/// Names of a crate's integration tests.
fn tests_of(package: &str) -> Result<Vec<String>> {
    let folder = crate::workspace_root().join("crates").join(package).join("tests");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> = files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Runs cargo and returns name, kind and path of every executable of the workspace that it made.
fn build(arguments: &[&str]) -> Result<Vec<(String, String, PathBuf)>> {
    let output = Command::new(crate::cargo())
        .current_dir(crate::workspace_root())
        .args(arguments)
        .args(["--release", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    let text = String::from_utf8(output.stdout)?;
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages
        .filter_map(|message| {
            let executable = message["executable"].as_str()?;
            let target = &message["target"];
            Some((
                target["name"].as_str()?.into(),
                target["kind"][0].as_str()?.into(),
                executable.into(),
            ))
        })
        .collect())
}

fn copy_stripped(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    // Smaller to carry; a machine without binutils carries more.
    let _ = Command::new("strip").arg(to).status();
    Ok(())
}

/// The commit that is built, with a `+` when files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git")
            .current_dir(crate::workspace_root())
            .args(arguments)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|files| !files.is_empty());
    if changed { commit + "+" } else { commit }
}
