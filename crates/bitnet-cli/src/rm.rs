//! `bitnet rm`: models leave the cache of the Hugging Face Hub.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use bitnet_hub::ModelName;

use crate::failure::hinted;
use crate::hub;
use crate::progress::human_bytes;
use crate::pull::model_name;
use crate::terminal::say;

/// Remove models from the cache
///
/// owner/name removes every revision, owner/name@revision that one, owner/name:file.gguf or owner/name:I2_S that file. Bytes that
/// another revision uses stay. Python's huggingface_hub shares the cache: what is removed here is removed there.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model, as `bitnet list` names it
    #[arg(value_name = "MODEL", required = true, value_parser = model_name)]
    models: Vec<ModelName>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let hub = hub::open()?;
    for name in &args.models {
        let removal = hub.removal(name).map_err(hub::advised)?;
        let what = format!("{} files, {}", removal.files(), human_bytes(removal.bytes()));
        if !args.yes && !confirmed(name, &what)? {
            say!("{name}: kept");
            continue;
        }
        removal.carry_out().map_err(hub::advised)?;
        say!("{name}: removed {what}");
    }
    Ok(ExitCode::SUCCESS)
}

fn confirmed(name: &ModelName, what: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(hinted(
            format!("{name}: nobody can be asked whether to remove {what}"),
            "--yes removes it without asking",
        ));
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "remove {name}, {what}? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
