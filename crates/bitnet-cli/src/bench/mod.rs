//! `bitnet bench`: what the kernels and models reach on this machine.

mod report;

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod plot;

mod kernels;
mod model;
#[cfg(feature = "cuda")]
mod step;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bitnet_model::Device;

use report::Format;

/// Measure speed
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Kernels(kernels::Args),
    Model(model::Args),
    #[cfg(feature = "cuda")]
    Step(step::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Kernels(args) => kernels::run(args),
        What::Model(args) => model::run(args),
        #[cfg(feature = "cuda")]
        What::Step(args) => step::run(args),
    }
}

/// Writes results to stdout and to files.
fn publish(
    text: &dyn Fn(Format) -> String,
    output: Format,
    saves: &[(&PathBuf, Format)],
) -> anyhow::Result<()> {
    for (path, format) in saves {
        fs::write(path, text(*format)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", text(output));
    Ok(())
}

/// The formats of files to write: what cannot be written is said before minutes of measuring.
fn formats(save: &[PathBuf]) -> anyhow::Result<Vec<(&PathBuf, Format)>> {
    save.iter()
        .map(|path| Ok((path, Format::of_file(path)?)))
        .collect()
}

/// Bandwidth of a plain read of the memory of `device`, in GB/s, with as many threads as the model will use.
fn peak(device: Device, threads: Option<usize>) -> anyhow::Result<f64> {
    match device {
        Device::Cuda(index) => kernels::gpu_peak(index),
        Device::Auto if kernels::has_gpu() => kernels::gpu_peak(0),
        Device::Auto | Device::Cpu => cpu::peak(threads),
    }
}
