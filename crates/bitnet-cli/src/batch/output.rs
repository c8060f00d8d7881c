//! The file of answers: whole lines alone, and none lost by whatever ends the program.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

/// Answers that are written one after the other to a file beside the one they are for, which gets that name when all are there.
pub(super) struct Output {
    output: PathBuf,
    part: PathBuf,
    file: File,
}

impl Output {
    /// Goes on with what an earlier run has written; the custom ids that are answered.
    pub(super) fn open(output: &Path) -> anyhow::Result<(Self, HashSet<String>)> {
        let mut name = output
            .file_name()
            .context("the output is no file name")?
            .to_owned();
        name.push(".part");
        let part = output.with_file_name(name);
        // What an earlier run completed stays, where the input has grown since.
        let source = if part.exists() { &part } else { output };
        let mut text = match fs::read(source) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).with_context(|| source.display().to_string()),
        };
        // A line that was cut off is not there.
        let whole = text
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        text.truncate(whole);
        let mut done = HashSet::new();
        for (i, line) in text
            .split(|&byte| byte == b'\n')
            .enumerate()
            .filter(|(_, l)| !l.is_empty())
        {
            let value: Option<Value> = serde_json::from_slice(line).ok();
            let id = value.as_ref().and_then(|value| value.get("custom_id")?.as_str());
            let id = id.with_context(|| {
                format!(
                    "{}: line {} is no answer of this command; move the file away, or name another output",
                    source.display(),
                    i + 1
                )
            })?;
            done.insert(id.to_owned());
        }
        let open = || -> std::io::Result<File> {
            if source == output {
                fs::write(&part, &text)?;
            }
            let file = OpenOptions::new().append(true).create(true).open(&part)?;
            file.set_len(text.len() as u64)?;
            Ok(file)
        };
        let file = open().with_context(|| part.display().to_string())?;
        let output = output.to_owned();
        Ok((Self { output, part, file }, done))
    }

    /// Where they are until all are there.
    pub(super) fn path(&self) -> &Path {
        &self.part
    }

    pub(super) fn write(&mut self, line: &Value) -> anyhow::Result<()> {
        let line = format!("{line}\n");
        self.file
            .write_all(line.as_bytes())
            .with_context(|| self.part.display().to_string())
    }

    /// All are there.
    pub(super) fn complete(self) -> anyhow::Result<()> {
        self.file
            .sync_all()
            .with_context(|| self.part.display().to_string())?;
        fs::rename(&self.part, &self.output).with_context(|| self.output.display().to_string())
    }
}
