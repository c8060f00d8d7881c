//! `bitnet bench kernels`: the products of a decoded token, one shape after the other.

use std::path::PathBuf;
use std::process::ExitCode;

#[cfg(feature = "cuda")]
use bitnet_model::Error;
use bitnet_model::{Device, Simd, replace_file};

use super::report::{Format, Report};
use super::{cpu, plot};
use crate::failure::hinted;

/// Time the matrix products of a decoded token: ternary, reference layout and bfloat16
///
/// "W2A8" is the product alone, "W2A8 layer" what a model runs on a GPU for a decoded token: it quantizes the activations and
/// multiplies in one kernel. Every kernel is compared with the exact integer product before it is timed. Cold products take their weights from
/// copies that no cache holds; hot ones use the same weights again and again. On a GPU the products run inside a CUDA
/// graph, each launched so that it can start before its predecessor ends.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = crate::args::DeviceParser)]
    device: Device,
    /// Processor threads [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = crate::args::threads)]
    threads: Option<usize>,
    /// Processor instruction set [default: the best there is]
    #[arg(long, value_name = "PATH", value_parser = crate::args::simd())]
    simd: Option<Simd>,
    /// What to print
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
    /// Also write the results to this file, in the format of its ending (.md, .json or .csv); can be repeated
    #[arg(long, value_name = "FILE")]
    save: Vec<PathBuf>,
    /// Also draw a bar chart with the bandwidth limit of each product
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Commit to record [default: the one this program was built from]
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let saves = super::formats(&args.save)?;
    let mut report = match args.device {
        Device::Cpu => cpu::measure(args.simd, args.threads)?,
        Device::Cuda(index) => on_gpu(index)?,
        Device::Auto if has_gpu() => on_gpu(0)?,
        Device::Auto => cpu::measure(args.simd, args.threads)?,
    };
    let commit = args.commit.as_deref().unwrap_or(env!("BITNET_COMMIT"));
    let command: Vec<String> = std::env::args().skip(1).collect();
    report
        .facts
        .insert(0, ("command", format!("bitnet {}", command.join(" "))));
    report.facts.insert(
        1,
        (
            "version",
            format!("{} {commit}", env!("CARGO_PKG_VERSION"))
                .trim()
                .to_owned(),
        ),
    );
    if let Some(path) = &args.plot {
        let chart = plot::bars(&report)?;
        replace_file(path, chart.as_bytes())?;
    }
    super::publish(&|format| report.text(format), args.output, &saves)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "cuda")]
pub(super) fn has_gpu() -> bool {
    bitnet_cuda::probe(0).is_ok()
}

#[cfg(not(feature = "cuda"))]
pub(super) fn has_gpu() -> bool {
    false
}

#[cfg(feature = "cuda")]
fn on_gpu(index: usize) -> anyhow::Result<Report> {
    super::cuda::measure(index)
        .map_err(|error| hinted(error.to_string(), "--device cpu measures the processor"))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: usize) -> anyhow::Result<Report> {
    Err(hinted(
        "this program was built without CUDA",
        "build it with --features cuda, or use --device cpu",
    ))
}

#[cfg(feature = "cuda")]
pub(super) fn gpu_peak(index: usize) -> anyhow::Result<f64> {
    super::cuda::peak(index).map_err(|error| Error::NoDevice(error.into()).into())
}

#[cfg(not(feature = "cuda"))]
pub(super) fn gpu_peak(index: usize) -> anyhow::Result<f64> {
    on_gpu(index).map(|report| report.peak_gb_per_s)
}
