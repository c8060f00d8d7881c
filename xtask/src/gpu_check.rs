//! `gpu-check`: every GPU test, NVIDIA's compute-sanitizer over them, and the benchmarks, in one command.
//!
//! Building and running are separate steps, so that a machine with a GPU needs no compiler: `--pack` puts everything into
//! a folder, and the copy of this program in that folder runs it with `--run`.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Run the GPU tests, compute-sanitizer and the kernel benchmark
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only build what a GPU machine needs, into this folder; run FOLDER/xtask gpu-check --run FOLDER there
    #[arg(long, value_name = "FOLDER", conflicts_with = "run")]
    pack: Option<PathBuf>,
    /// Run what was packed into this folder instead of building
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// Where the log, the summary and the benchmark's results go
    #[arg(long, value_name = "FOLDER", default_value = "target/gpu-check/out")]
    out: PathBuf,
    /// Steps to run, separated by commas; all when not given
    #[arg(long, value_delimiter = ',')]
    only: Vec<Step>,
    /// Seconds after which a step is stopped and counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

/// One thing that is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// The tests themselves
    Tests,
    /// Accesses out of bounds or misaligned
    Memcheck,
    /// Two threads of a block at one shared word, one writing, with no barrier between
    Racecheck,
    /// Reads of device memory that nothing wrote
    Initcheck,
    /// Barriers that not all of their threads reach
    Synccheck,
    /// `bitnet bench kernels`
    Bench,
}

const STEPS: [Step; 6] = [
    Step::Tests,
    Step::Memcheck,
    Step::Racecheck,
    Step::Initcheck,
    Step::Synccheck,
    Step::Bench,
];

/// Lines of output shown of a step that failed, and of the benchmark.
const TAIL_LINES: usize = 40;

/// What compute-sanitizer returns when it found something.
const FOUND: &str = "99";

impl Step {
    /// The tool of compute-sanitizer, for the steps that are one.
    fn sanitizer_tool(self) -> Option<&'static str> {
        match self {
            Self::Memcheck => Some("memcheck"),
            Self::Racecheck => Some("racecheck"),
            Self::Initcheck => Some("initcheck"),
            Self::Synccheck => Some("synccheck"),
            Self::Tests | Self::Bench => None,
        }
    }
}

/// Builds, runs, or both.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(folder) = &args.pack {
        pack(folder)?;
        println!(
            "run there: {0}/xtask gpu-check --run {0} --out FOLDER",
            folder.display()
        );
        return Ok(());
    }
    let folder = match &args.run {
        Some(folder) => folder.clone(),
        None => {
            let folder = crate::workspace_root().join("target/gpu-check");
            pack(&folder)?;
            folder
        }
    };
    check(&folder, args)
}

/// Builds the tests and programs, and copies them without their symbols.
fn pack(folder: &Path) -> Result<()> {
    let tests = folder.join("tests");
    if tests.is_dir() {
        fs::remove_dir_all(&tests).with_context(|| format!("cannot empty {}", tests.display()))?;
    }
    fs::create_dir_all(&tests).with_context(|| format!("cannot make {}", tests.display()))?;
    let built = build(&[
        "test",
        "--no-run",
        "--package",
        "bitnet-cuda",
        "--package",
        "bitnet-model",
        "--features",
        "bitnet-model/cuda",
        "--tests",
    ])?;
    for (name, kind, executable) in built {
        // Integration tests that need a GPU: all of bitnet-cuda's, and those of other crates that say so in their name.
        let of_cuda = crate::workspace_root()
            .join(format!("crates/bitnet-cuda/tests/{name}.rs"))
            .is_file();
        if kind == "test" && (of_cuda || name.starts_with("cuda")) {
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

/// What became of one command.
struct Outcome {
    name: String,
    passed: bool,
    seconds: f64,
    /// Why it did not pass, or what it says of itself.
    note: String,
    /// The last lines of its output.
    tail: String,
}

/// Runs the packed steps and fails when one of them does.
fn check(folder: &Path, args: &Args) -> Result<()> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let commit = fs::read_to_string(folder.join("commit")).unwrap_or_default();
    let log_path = args.out.join("gpu-check.log");
    let mut log = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&log_path)?;
    let mut tests: Vec<PathBuf> = fs::read_dir(folder.join("tests"))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    tests.sort();
    if tests.is_empty() {
        bail!("{} holds no tests; make it with --pack", folder.display());
    }
    let wanted = |step: &Step| args.only.is_empty() || args.only.contains(step);
    let sanitizer = sanitizer();
    let mut outcomes = Vec::new();
    for step in STEPS.into_iter().filter(wanted) {
        let commands = match (step, step.sanitizer_tool()) {
            (Step::Bench, _) => vec![("bench kernels".to_owned(), bench(folder, &args.out, &commit))],
            (_, None) => tests
                .iter()
                .map(|test| (label("test", test), under_test(Command::new(test))))
                .collect(),
            (_, Some(tool)) => {
                let Some(sanitizer) = &sanitizer else {
                    let note = "compute-sanitizer is not installed; it comes with the CUDA toolkit";
                    println!("FAILED {tool}: {note}");
                    outcomes.push(Outcome {
                        name: tool.to_owned(),
                        passed: false,
                        seconds: 0.0,
                        note: note.to_owned(),
                        tail: String::new(),
                    });
                    continue;
                };
                tests
                    .iter()
                    .map(|test| (label(tool, test), sanitized(sanitizer, tool, test)))
                    .collect()
            }
        };
        for (name, command) in commands {
            let outcome = watch(name, command, &mut log, Duration::from_secs(args.timeout))?;
            println!(
                "{:<6} {:>7.1} s  {}  {}",
                word(&outcome),
                outcome.seconds,
                outcome.name,
                outcome.note
            );
            if !outcome.passed || step == Step::Bench {
                println!("{}", outcome.tail);
            }
            outcomes.push(outcome);
        }
    }
    let summary = json!({
        "commit": commit,
        "gpu": gpu(),
        "steps": outcomes.iter().map(|o| json!({
            "name": o.name, "passed": o.passed, "seconds": o.seconds, "note": o.note,
        })).collect::<Vec<_>>(),
    });
    fs::write(args.out.join("gpu-check.json"), format!("{summary:#}\n"))?;
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|o| !o.passed)
        .map(|o| o.name.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}; see {}", failed.join(", "), log_path.display());
    }
    println!("all passed; {}", args.out.display());
    Ok(())
}

fn label(what: &str, test: &Path) -> String {
    format!(
        "{what} {}",
        test.file_name().unwrap_or_default().to_string_lossy()
    )
}

fn word(outcome: &Outcome) -> &'static str {
    if outcome.passed { "ok" } else { "FAILED" }
}

/// One test at a time: tests share the device's memory, and a message belongs to the test before it.
fn under_test(mut command: Command) -> Command {
    command.args(["--test-threads", "1", "--nocapture"]);
    command
}

fn sanitized(sanitizer: &Path, tool: &str, test: &Path) -> Command {
    let mut command = Command::new(sanitizer);
    command.args(["--tool", tool, "--error-exitcode", FOUND, "--print-limit", "20"]);
    if tool == "memcheck" {
        // A test fills the device on purpose.
        command.args(["--report-api-errors", "no"]);
    }
    command.arg(test);
    // Tests draw fewer random inputs under a checker, which is a hundred times slower, and plant no faults.
    command.env("BITNET_GPU_CHECKED", "1");
    under_test(command)
}

fn bench(folder: &Path, out: &Path, commit: &str) -> Command {
    let mut command = Command::new(folder.join("bitnet"));
    command.args([
        "bench", "kernels", "--device", "cuda:0", "-o", "md", "--commit", commit,
    ]);
    command.arg("--save").arg(out.join("bench-kernels.json"));
    command.arg("--plot").arg(out.join("bench-kernels.svg"));
    command
}

/// compute-sanitizer on PATH, or a toolkit's.
fn sanitizer() -> Option<PathBuf> {
    ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| {
            Command::new(path)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok()
        })
}

/// Name, driver and memory, as the driver's own tool says.
fn gpu() -> String {
    let query = [
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ];
    let output = Command::new("nvidia-smi").args(query).output();
    output
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// Runs a command with its output in the log, and stops it when it takes too long: a kernel that waits for a barrier that
/// never comes does not end by itself.
fn watch(name: String, mut command: Command, log: &mut File, limit: Duration) -> Result<Outcome> {
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
