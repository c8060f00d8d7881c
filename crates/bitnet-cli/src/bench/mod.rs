//! `bitnet bench`: what the kernels and models reach on this machine.

mod report;

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod plot;

mod kernels;

use std::process::ExitCode;

/// Measure speed
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Kernels(kernels::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Kernels(args) => kernels::run(args),
    }
}
