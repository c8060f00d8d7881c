//! `bitnet logits`: what the model thinks of every next token, in a file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bitnet_model::write_logits;

use crate::interrupt::{self, Guard};
use crate::measure::{MeasureArgs, Subject};
use crate::progress::{self, Bar};
use crate::terminal::say;

/// Write the logits of every position of a text to a file
///
/// The file is safetensors with one tensor, `logits`: float32, (tokens, vocabulary), row i for the token that follows
/// tokens 0 to i. The text is computed at once, as one sequence. On the processor keys and values are kept
/// in f32, while `generate` keeps bf16.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    measure: MeasureArgs,
    /// The file to write; one of that name is replaced when the new one is complete
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Subject { mut backend, ids, .. } = args.measure.open(|_, n_tokens| n_tokens)?;
    let start = Instant::now();
    interrupt::install()?;
    let working = Guard::working();
    let bar = Bar::tokens("computing");
    write_logits(backend.as_mut(), &ids, &args.out, |n_rows| {
        bar.set(n_rows as u64, ids.len() as u64);
        working.flow()
    })?;
    drop(bar);
    let vocab = backend.spec().config.vocab;
    let plural = if ids.len() == 1 { "" } else { "s" };
    say!(
        "wrote {}: {} token{plural} x {vocab} logits, {}, in {:.1} s on {}",
        args.out.display(),
        ids.len(),
        progress::human_bytes((ids.len() * vocab * 4) as u64),
        start.elapsed().as_secs_f64(),
        backend.spec().name
    );
    Ok(ExitCode::SUCCESS)
}
