//! Loading a model the way every subcommand does.

use std::path::Path;

use bitnet_model::{Config, LoadOptions, Model};

use crate::failure::hinted;
use crate::terminal::Terminal;

/// Loads the model in `folder`, with a spinner on a terminal, and prints what the user should know about it.
pub(crate) fn load(folder: &Path, options: LoadOptions, terminal: Terminal) -> anyhow::Result<Model> {
    require(folder)?;
    let asked = options.context;
    let spinner = terminal.spinner(format!("loading {}", folder.display()));
    let model = Model::load(folder, options);
    spinner.finish_and_clear();
    let model = model?;
    if let Some(context) = asked {
        warn_past_training(context, model.config());
    }
    Ok(model)
}

/// Refuses a folder that is not there.
pub(crate) fn require(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    Err(hinted(
        format!("{}: no such folder", folder.display()),
        "-m names a folder with config.json, the *.safetensors and the tokenizer files of a BitNet model",
    ))
}

/// Says so when `context` tokens are more than the model knows.
pub(crate) fn warn_past_training(context: usize, config: &Config) {
    let trained = config.max_context;
    if context > trained {
        eprintln!(
            "warning: the model was trained for {trained} tokens of context; beyond them it may write nonsense"
        );
    }
}
