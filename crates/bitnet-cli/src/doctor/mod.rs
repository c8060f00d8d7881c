//! `bitnet doctor`: whether this machine runs models, how fast it could, and whether what it computes is right.

mod check;

#[cfg(feature = "cuda")]
mod gpu;
mod processor;
mod selftest;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use bitnet_model::Device;
use serde_json::json;

use crate::terminal::{Terminal, harmless_json};
use check::{Check, Verdict};

/// Check this machine: processor, memory, GPU, and a self-test of all of them
///
/// The self-test runs the model inside this program on every instruction set of the processor, whose logits must agree bit
/// by bit, and on every GPU, whose logits must agree but for rounding. Each line is ok, a warning or a failure with its
/// remedy. The exit status is 1 when something fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to check: auto is the processor and every GPU there is; cpu, cuda or cuda:N is that alone, which must work
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = crate::args::DeviceParser)]
    device: Device,
    /// Processor threads [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = crate::args::threads)]
    threads: Option<usize>,
    /// Print one JSON object: ok, version, commit, checks
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// `settings` is the file with the user's defaults.
pub(crate) fn run(args: &Args, settings: Option<&Path>) -> anyhow::Result<ExitCode> {
    let terminal = Terminal::detect(false);
    let mut out = std::io::stdout().lock();
    let mut checks = Vec::new();
    // A line as soon as it is known: measuring takes its time.
    let mut report = |check: Check| {
        if !args.json {
            writeln!(out, "{}", check.text(terminal))?;
        }
        checks.push(check);
        std::io::Result::Ok(())
    };
    let spinner = terminal.spinner("checking".to_owned());
    let mut report = |check: Check| spinner.suspend(|| report(check));
    if let Some(path) = settings {
        report(Check::ok("settings", path.display().to_string()))?;
    }
    let usable = !matches!(args.device, Device::Cuda(_));
    if usable {
        for check in processor::checks(args.threads) {
            report(check)?;
        }
    }
    let gpus = gpus(args.device, &mut report)?;
    match selftest::Reference::new(args.threads) {
        Ok(mut reference) => {
            report(reference.answer())?;
            if usable {
                for simd in bitnet_model::Simd::available() {
                    report(reference.path(simd))?;
                }
            }
            for index in gpus {
                report(reference.gpu(index))?;
            }
        }
        Err(error) => report(selftest::broken(&error))?,
    }
    spinner.finish_and_clear();
    let worst = checks.iter().map(|check| check.verdict).max();
    let ok = worst != Some(Verdict::Failure);
    if args.json {
        let checks: Vec<_> = checks.iter().map(Check::json).collect();
        let object = json!({
            "ok": ok,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("BITNET_COMMIT"),
            "checks": checks,
        });
        writeln!(out, "{}", harmless_json(&format!("{object:#}")))?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reports on the GPUs that `device` means, and gives those that can be used.
#[cfg(feature = "cuda")]
fn gpus(device: Device, report: &mut dyn FnMut(Check) -> std::io::Result<()>) -> std::io::Result<Vec<usize>> {
    let mut usable = Vec::new();
    for (index, check) in gpu::checks(device) {
        if check.verdict != Verdict::Failure {
            usable.extend(index);
        }
        report(check)?;
    }
    Ok(usable)
}

/// As above, in a program without GPUs.
#[cfg(not(feature = "cuda"))]
fn gpus(device: Device, report: &mut dyn FnMut(Check) -> std::io::Result<()>) -> std::io::Result<Vec<usize>> {
    let (message, remedy) = (
        "this program was built without CUDA",
        "build it with --features cuda to use a GPU",
    );
    match device {
        Device::Cpu => {}
        Device::Auto => report(Check::warning("gpu", message, remedy))?,
        Device::Cuda(_) => report(Check::failure("gpu", message, remedy))?,
    }
    Ok(Vec::new())
}
