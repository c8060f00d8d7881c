//! `gpu-check`: every GPU test, NVIDIA's compute-sanitizer over them, and the benchmarks, in one command. With a model, its
//! speed, where the time of a decoded token goes, and its tokens beside the CPU's.
//!
//! Building and running are separate steps, so that a machine with a GPU needs no compiler: `--pack` puts everything into
//! a folder, and the copy of this program in that folder runs it with `--run`.

mod pack;
mod watch;

use anyhow::{Context, Result, bail};
use pack::pack;
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use watch::{Outcome, watch};

/// Run the GPU tests, compute-sanitizer and the benchmarks
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
    /// Model folder for the tests and benchmarks of whole models: the 2B shape, of random weights or real; without it they are
    /// left out
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
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
    /// Greedy tokens of the model on GPU and CPU
    Tokens,
    /// `bitnet bench model`, with bf16 weights as the baseline, and with several sequences
    Model,
    /// `bitnet bench step`, of one sequence and of 32
    Profile,
}

const STEPS: [Step; 9] = [
    Step::Tests,
    Step::Memcheck,
    Step::Racecheck,
    Step::Initcheck,
    Step::Synccheck,
    Step::Bench,
    Step::Tokens,
    Step::Model,
    Step::Profile,
];

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
            Self::Tests | Self::Bench | Self::Tokens | Self::Model | Self::Profile => None,
        }
    }

    /// Whether its output is worth showing although it passed.
    fn is_measurement(self) -> bool {
        matches!(self, Self::Bench | Self::Tokens | Self::Model | Self::Profile)
    }

    /// Whether it needs a model.
    fn is_of_model(self) -> bool {
        matches!(self, Self::Tokens | Self::Model | Self::Profile)
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
        if step.is_of_model() && args.model.is_none() {
            println!("left out: {step:?}, which needs --model");
            continue;
        }
        let model = args.model.as_deref().unwrap_or(Path::new(""));
        let commands = match (step, step.sanitizer_tool()) {
            (Step::Bench, _) => vec![("bench kernels".to_owned(), bench(folder, &args.out, &commit))],
            (Step::Tokens, _) => vec![("tokens".to_owned(), tokens(folder, model))],
            (Step::Model, _) => models(folder, model, &args.out),
            (Step::Profile, _) => [1, 32]
                .map(|batch| {
                    (
                        format!("bench step x{batch}"),
                        profile(folder, model, &args.out, batch),
                    )
                })
                .into(),
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
                // Without a model, the test of whole models never calls the driver, which the checker takes for a failure; with
                // one, it would take hours.
                let small = tests.iter().filter(|test| !test.ends_with("cuda_model"));
                small
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
            if !outcome.passed || step.is_measurement() {
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
    command.env("BITNET_GPU", "required");
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

/// The test that compares whole models; it looks for its model in the environment.
fn tokens(folder: &Path, model: &Path) -> Command {
    let mut command = under_test(Command::new(folder.join("tests/cuda_model")));
    command.env("BITNET_GPU_MODEL", model);
    command
}

/// Speed of a whole model: one sequence beside bf16 weights, at depths; several; and with a head of 8 bits.
fn models(folder: &Path, model: &Path, out: &Path) -> Vec<(String, Command)> {
    let runs: [(&str, &[&str]); 3] = [
        (
            "bench-model",
            &[
                "-p",
                "512,2048",
                "-n",
                "256",
                "-d",
                "64,2048",
                "--weights",
                "bf16",
            ],
        ),
        (
            "bench-model-batch",
            &["-p", "0", "-n", "64", "-d", "64", "-b", "2,8,32"],
        ),
        (
            "bench-model-int8",
            &["-p", "0", "-n", "256", "-d", "64", "--lm-head", "int8"],
        ),
    ];
    runs.map(|(name, flags)| {
        let mut command = Command::new(folder.join("bitnet"));
        command.args([
            "bench",
            "model",
            "--device",
            "cuda:0",
            "--batch-size",
            "2048",
            "-m",
        ]);
        command.arg(model).args(flags);
        command.arg("--save").arg(out.join(name).with_extension("json"));
        (name.to_owned(), command)
    })
    .into()
}

fn profile(folder: &Path, model: &Path, out: &Path, batch: u32) -> Command {
    let mut command = Command::new(folder.join("bitnet"));
    command
        .args(["bench", "step", "-b", &batch.to_string(), "-m"])
        .arg(model);
    command
        .arg("--save")
        .arg(out.join(format!("bench-step-x{batch}.json")));
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
