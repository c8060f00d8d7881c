//! `bitnet convert`: a Hugging Face folder becomes one small folder that loads fast.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bitnet_model::{Checkpoint, ConvertProgress, Existing, GgufTernary, convert, convert_to_gguf};

use crate::args::{SourceArgs, one_of};
use crate::failure::usage;
use crate::hub;
use crate::interrupt::{self, Guard};
use crate::progress;
use crate::terminal::say;

/// Convert a checkpoint to packed 2-bit weights, or to a GGUF file
///
/// Writes one model.safetensors with a checksum for each tensor, the configuration and the tokenizer: everything that the
/// other commands need. Nothing is left behind when it fails or is interrupted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to convert: a folder with config.json and the safetensors files, a GGUF file, or a model of the Hugging Face Hub:
    /// owner/name
    #[arg(value_name = "MODEL")]
    source: PathBuf,
    /// The folder to write, or the file with --to gguf
    #[arg(short, long, value_name = "PATH")]
    out: PathBuf,
    /// What to write: words, this program's own folder; or gguf, a file that other programs read
    #[arg(long, value_name = "FORMAT", default_value = "words", value_parser = one_of(&FORMATS))]
    to: Format,
    /// Type of the ternary tensors of a GGUF file: i2_s, tq2_0 or tq1_0 [default: i2_s for BitNet models, tq2_0 for Llama ones]
    #[arg(long, value_name = "TYPE", value_parser = one_of(&GGUF_TYPES))]
    gguf_type: Option<GgufTernary>,
    /// Make real weights ternary by their mean, although nothing in the files says that they are a BitNet model's
    #[arg(long)]
    ternarize: bool,
    /// Replace the model in a folder that is not empty
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    read: SourceArgs,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Words,
    Gguf,
}

const FORMATS: [(&str, Format); 2] = [("words", Format::Words), ("gguf", Format::Gguf)];

const GGUF_TYPES: [(&str, GgufTernary); 3] = [
    ("i2_s", GgufTernary::I2S),
    ("tq2_0", GgufTernary::Tq2_0),
    ("tq1_0", GgufTernary::Tq1_0),
];

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.to == Format::Words {
        if args.gguf_type.is_some() {
            return Err(usage("--gguf-type has no place in a folder", "add --to gguf"));
        }
        if args
            .out
            .extension()
            .is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
        {
            return Err(usage(
                format!(
                    "{}: is the name of a GGUF file, and a folder was to be written",
                    args.out.display()
                ),
                "add --to gguf, or name a folder",
            ));
        }
    }
    let start = Instant::now();
    let mut options = args.read.options();
    options.ternarize = args.ternarize;
    let source = Checkpoint::open_with(hub::files(&args.source)?, options)?;
    crate::model::say_notes(source.notes());
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    interrupt::install()?;
    let working = Guard::working();
    let bar = progress::Bar::bytes("converting");
    let report = |progress: ConvertProgress<'_>| {
        bar.set(progress.done_bytes, progress.total_bytes);
        bar.say(progress.tensor);
        working.flow()
    };
    let converted = match args.to {
        Format::Words => convert(&source, &args.out, existing, report)?,
        Format::Gguf => {
            let (converted, notes) = convert_to_gguf(&source, &args.out, args.gguf_type, existing, report)?;
            crate::model::say_notes(&notes);
            converted
        }
    };
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
