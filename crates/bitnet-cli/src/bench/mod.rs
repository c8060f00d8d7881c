//! `bitnet bench`: what the kernels and models reach on this machine.

mod report;

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod plot;

mod kernels;
mod model;

use std::process::ExitCode;

use bitnet_model::Device;

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
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Kernels(args) => kernels::run(args),
        What::Model(args) => model::run(args),
    }
}

/// Bandwidth of a plain read of the memory of `device`, in GB/s, with as many threads as the model will use.
fn peak(device: Device, threads: Option<usize>) -> anyhow::Result<f64> {
    match device {
        Device::Cuda(index) => kernels::gpu_peak(index),
        Device::Auto if kernels::has_gpu() => kernels::gpu_peak(0),
        Device::Auto | Device::Cpu => cpu::peak(threads),
    }
}
