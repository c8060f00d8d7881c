//! `bitnet pull`: a model of the Hugging Face Hub comes into the cache.

use std::io::Write;
use std::process::ExitCode;

use bitnet_hub::{ModelName, Verify};

use crate::hub;

/// Fetch models from the Hugging Face Hub into the cache, and print where they are
///
/// The cache is that of Python's huggingface_hub: HF_HOME and HF_HUB_CACHE place it, HF_TOKEN or `hf auth login` opens gated and
/// private models, HF_ENDPOINT names another hub. Only the files that running a model needs are fetched, each is compared with
/// its digest, and a pull that was interrupted goes on where it ended. -m owner/name does the same in every command, for models
/// that are not in the cache.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: owner/name, owner/name:file.gguf or owner/name:I2_S (a GGUF file by its name or quantization), each also with
    /// @revision
    #[arg(value_name = "MODEL", required = true, value_parser = model_name)]
    models: Vec<ModelName>,
    /// Compare the files in the cache with their digests, too, and fetch damaged ones again
    #[arg(long)]
    verify: bool,
}

/// A name that clap can refuse.
pub(crate) fn model_name(text: &str) -> Result<ModelName, String> {
    text.parse()
        .map_err(|error: bitnet_hub::Error| format!("{error}; {}", error.remedy()))
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let hub = hub::open()?;
    let verify = if args.verify {
        Verify::All
    } else {
        Verify::Arriving
    };
    for name in &args.models {
        let found = hub::fetch(&hub, name, verify).map_err(hub::advised)?;
        writeln!(std::io::stdout(), "{}", found.path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
