//! The file of answers: whole lines alone, and none lost by whatever ends the program.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use crate::failure::hinted;

/// Answers that are written one after the other to a file beside the one they are for, which gets that name when all are there.
pub(super) struct Output {
    output: PathBuf,
    part: PathBuf,
    /// The part, which is locked as long as it is open.
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
        check_replaceable(output)?;
        let file = locked(&part, output)?;
        let output = output.to_owned();
        let mut opened = Self { output, part, file };
        match opened.gather() {
            Ok(done) => Ok((opened, done)),
            Err(error) => {
                // What this run made, it removes; an earlier one's answers stay.
                if opened.file.metadata().is_ok_and(|part| part.len() == 0) {
                    let _ = fs::remove_file(&opened.part);
                }
                Err(error)
            }
        }
    }

    /// The custom ids of the part and of what an earlier run completed, which is taken over where the input has grown since.
    fn gather(&mut self) -> anyhow::Result<HashSet<String>> {
        let mut done = HashSet::new();
        let mut whole = 0;
        answers(&self.file, &self.part, |line, id| {
            whole += line.len() as u64;
            done.insert(id);
            Ok(())
        })?;
        // A line that was cut off is not there.
        let mut file = &self.file;
        let cut = file
            .set_len(whole)
            .and_then(|()| file.seek(SeekFrom::Start(whole)));
        cut.with_context(|| self.part.display().to_string())?;
        if self.output.symlink_metadata().is_ok() {
            let earlier =
                bitnet_files::open(&self.output).with_context(|| self.output.display().to_string())?;
            // All of it is read before any of it is written: what is none of this command's is left alone.
            let mut missing = Vec::new();
            answers(&earlier, &self.output, |line, id| {
                if done.insert(id) {
                    missing.extend_from_slice(line);
                }
                Ok(())
            })?;
            file.write_all(&missing)
                .with_context(|| self.part.display().to_string())?;
        }
        Ok(done)
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
        check_replaceable(&self.output)?;
        fs::rename(&self.part, &self.output).with_context(|| self.output.display().to_string())
    }
}

fn check_replaceable(path: &Path) -> anyhow::Result<()> {
    bitnet_files::check_replaceable(path).with_context(|| path.display().to_string())
}

/// The part, which no other run writes while this one has it open.
fn locked(part: &Path, output: &Path) -> anyhow::Result<File> {
    loop {
        let file = bitnet_files::open_to_write(part).with_context(|| part.display().to_string())?;
        match file.try_lock() {
            // Another run may have completed and renamed it between the two.
            Ok(()) if !bitnet_files::is_at(&file, part) => {}
            // File systems without locks have this program's word alone.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                return Err(hinted(
                    format!("{}: another run writes it", part.display()),
                    format!("let it finish, or name another file than {}", output.display()),
                ));
            }
        }
    }
}

/// Reads the answers in `file`, and gives each line with its custom id; a last line without an end is left out.
fn answers(
    file: &File,
    path: &Path,
    mut each: impl FnMut(&[u8], String) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader
            .read_until(b'\n', &mut line)
            .with_context(|| path.display().to_string())?;
        if !line.ends_with(b"\n") {
            break;
        }
        let value: Option<Value> = serde_json::from_slice(&line).ok();
        let id = value.as_ref().and_then(|value| value.get("custom_id")?.as_str());
        let id = id.with_context(|| {
            format!(
                "{}: line {number} is no answer of this command; move the file away, or name another output",
                path.display()
            )
        })?;
        each(&line, id.to_owned())?;
    }
    Ok(())
}
