//! `bitnet bench`: what the kernels and models reach on this machine.

mod report;
mod shapes;

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod model;
mod plot;

mod kernels;

#[cfg(feature = "cuda")]
mod on_gpu;

#[cfg(feature = "cuda")]
mod grids;
mod schedule;
#[cfg(feature = "cuda")]
mod step;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_model::{Device, Error, LoadOptions, replace_file};

use crate::failure::advised_by_command;
use crate::machine;
use crate::terminal::{harmless_json, visible};
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
    Schedule(schedule::Args),
    #[cfg(feature = "cuda")]
    Step(step::Args),
    #[cfg(feature = "cuda")]
    Grids(grids::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Kernels(args) => kernels::run(args),
        What::Model(args) => model::run(args).map_err(|error| advised_by_command(error, smaller)),
        What::Schedule(args) => schedule::run(args).map_err(|error| advised_by_command(error, fewer)),
        #[cfg(feature = "cuda")]
        What::Step(args) => step::run(args).map_err(|error| advised_by_command(error, needs_a_gpu)),
        #[cfg(feature = "cuda")]
        What::Grids(args) => grids::run(args).map_err(|error| advised_by_command(error, needs_a_gpu)),
    }
}

fn smaller(error: &Error) -> Option<&'static str> {
    matches!(error, Error::OutOfMemory { .. }).then_some("-p, -n, -d and -b make the tests smaller")
}

fn fewer(error: &Error) -> Option<&'static str> {
    matches!(error, Error::OutOfMemory { .. }).then_some("--requests and --prefix make it smaller")
}

#[cfg(feature = "cuda")]
fn needs_a_gpu(error: &Error) -> Option<&'static str> {
    matches!(error, Error::NoDevice(_))
        .then_some("a GPU is what it times; `bitnet bench model --device cpu` times the processor")
}

/// Writes results to stdout and to files.
fn publish(
    text: &dyn Fn(Format) -> String,
    output: Format,
    saves: &[(&PathBuf, Format)],
) -> anyhow::Result<()> {
    for (path, format) in saves {
        replace_file(path, text(*format).as_bytes())?;
    }
    // Model and device names stand in the table.
    let text = text(output);
    let text = match output {
        Format::Json => harmless_json(&text),
        Format::Md | Format::Csv => visible(&text),
    };
    write!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// The formats of files to write: what cannot be written is said before minutes of measuring.
fn formats(save: &[PathBuf]) -> anyhow::Result<Vec<(&PathBuf, Format)>> {
    save.iter()
        .map(|path| Ok((path, Format::of_file(path)?)))
        .collect()
}

/// What a device can do at most, measured in the same run.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Bandwidth of a plain read of its memory.
    gb_per_s: f64,
    /// 8-bit products, added up, with nothing to wait for; of processors only.
    g_products_per_s: Option<f64>,
}

impl Limits {
    /// Measures again, reads of as many bytes as a step reads: those of a small model come from a cache, and what neighbors leave of the
    /// machine changes. On a processor; the limits of a GPU stay.
    fn look_again(&mut self, options: &LoadOptions, bytes: u64) -> anyhow::Result<()> {
        if let Some(most) = self.g_products_per_s {
            let again = cpu::limits(options, bytes)?;
            self.gb_per_s = self.gb_per_s.max(again.gb_per_s);
            self.g_products_per_s = again.g_products_per_s.map(|products| products.max(most));
        }
        Ok(())
    }
}

/// The limits of the device that the model will run on, with as many threads.
fn limits(options: &LoadOptions) -> anyhow::Result<Limits> {
    let of_gpu = |index| {
        Ok(Limits {
            gb_per_s: kernels::gpu_peak(index)?,
            g_products_per_s: None,
        })
    };
    match options.device {
        Device::Cuda(index) => of_gpu(index),
        Device::Auto if kernels::has_gpu() => of_gpu(0),
        Device::Auto | Device::Cpu => cpu::limits(options, machine::READ_BYTES),
    }
}
