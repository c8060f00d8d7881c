//! `bitnet convert`: a Hugging Face folder becomes one small folder that loads fast.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bitnet_model::{Checkpoint, Existing, convert};

use crate::hub;
use crate::interrupt::{self, Guard};
use crate::progress;
use crate::terminal::say;

/// Convert a Hugging Face checkpoint to packed 2-bit weights
///
/// Writes one model.safetensors with a checksum for each tensor, the configuration and the tokenizer: everything that the
/// other commands need. Nothing is left behind when it fails or is interrupted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder to convert, with config.json and the safetensors files, or a model of the Hugging Face Hub: owner/name
    #[arg(value_name = "MODEL")]
    source: PathBuf,
    /// The folder to write
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace the model in a folder that is not empty
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let source = Checkpoint::open(hub::files(&args.source)?)?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    interrupt::install()?;
    let working = Guard::working();
    let bar = progress::Bar::bytes("converting");
    let converted = convert(&source, &args.out, existing, |progress| {
        bar.set(progress.done_bytes, progress.total_bytes);
        bar.say(progress.tensor);
        working.flow()
    })?;
    drop(bar);
    say!(
        "wrote {}: {} of weights, from {}, in {:.1} s",
        args.out.display(),
        progress::human_bytes(converted.written_bytes),
        progress::human_bytes(converted.source_bytes),
        start.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}
