//! Runs one command, with its output in the log and a limit to its time.

use anyhow::Result;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Lines of output shown of a step that failed, and of a benchmark.
const TAIL_LINES: usize = 40;

/// What became of one command.
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) passed: bool,
    pub(super) seconds: f64,
    /// Why it did not pass, or what it says of itself.
    pub(super) note: String,
    /// The last lines of its output.
    pub(super) tail: String,
}

/// Runs a command with its output in the log, and stops it when it takes too long: a kernel that waits for a barrier that
/// never comes does not end by itself.
pub(super) fn watch(name: String, mut command: Command, log: &mut File, limit: Duration) -> Result<Outcome> {
    writeln!(log, "\n==== {name}: {command:?}")?;
    let from = log.seek(SeekFrom::End(0))?;
    let start = Instant::now();
    // A group of its own, so that stopping it stops what it started: a sanitizer's program would go on using the GPU.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn();
    let (passed, mut note) = match child {
        Err(error) => (false, format!("cannot run it: {error}")),
        Ok(mut child) => loop {
            match child.try_wait()? {
                Some(status) if status.success() => break (true, String::new()),
                Some(status) => break (false, status.to_string()),
                None if start.elapsed() > limit => {
                    #[cfg(unix)]
                    let _ = Command::new("kill")
                        .args(["-KILL", "--", &format!("-{}", child.id())])
                        .status();
                    child.kill()?;
                    child.wait()?;
                    break (false, format!("stopped after {} s", limit.as_secs()));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        },
    };
    let seconds = start.elapsed().as_secs_f64();
    log.seek(SeekFrom::Start(from))?;
    let mut output = Vec::new();
    log.read_to_end(&mut output)?;
    let output = String::from_utf8_lossy(&output);
    // The lines in which tests, compute-sanitizer and the benchmark sum up; and what was left out.
    let says = |line: &&str| {
        ["test result:", "SUMMARY:", "skipped:"]
            .iter()
            .any(|mark| line.contains(mark))
    };
    let lines: Vec<&str> = output.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    for line in output.lines().filter(says) {
        if !note.contains(line) {
            note = if note.is_empty() {
                line.to_owned()
            } else {
                format!("{note}; {line}")
            };
        }
    }
    Ok(Outcome {
        name,
        passed,
        seconds,
        note,
        tail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_step_passes_fails_or_is_stopped_and_its_summary_is_kept() {
        let mut log = tempfile();
        let mut run = |script: &str| {
            watch(
                script.to_owned(),
                shell(script),
                &mut log,
                Duration::from_millis(500),
            )
            .unwrap()
        };
        let passed = run("echo noise; echo 'test result: ok. 1 passed'");
        assert!(
            passed.passed && passed.note == "test result: ok. 1 passed",
            "{}",
            passed.note
        );
        let failed = run("echo 'ERROR SUMMARY: 3 errors' >&2; exit 99");
        assert!(
            !failed.passed && failed.note.contains("99") && failed.note.ends_with("3 errors"),
            "{}",
            failed.note
        );
        let stuck = run("exec sleep 60");
        assert!(
            !stuck.passed && stuck.seconds < 30.0 && stuck.note.starts_with("stopped"),
            "{}",
            stuck.note
        );
    }

    /// A file that is gone when it is closed.
    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("gpu-check-{}.log", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        fs::remove_file(path).unwrap();
        file
    }
}
