//! Loading a model the way every subcommand does.

use bitnet_model::{Config, Files, LoadOptions, Model};

use crate::failure::hinted;
use crate::terminal::Terminal;

/// Loads the model of `files`, with a spinner on a terminal, and prints what the user should know about it.
pub(crate) fn load(files: &Files, options: LoadOptions, terminal: Terminal) -> anyhow::Result<Model> {
    require(files)?;
    let asked = options.context;
    let spinner = terminal.spinner(format!("loading {files}"));
    let model = Model::load(files, options);
    spinner.finish_and_clear();
    let model = model?;
    if let Some(context) = asked {
        warn_past_training(context, model.config());
    }
    Ok(model)
}

/// Refuses a folder that is not there.
pub(crate) fn require(files: &Files) -> anyhow::Result<()> {
    match files {
        Files::Folder(folder) if !folder.exists() => Err(hinted(
            format!("{files}: no such folder"),
            "-m names a folder with config.json, the *.safetensors and the tokenizer files of a BitNet model",
        )),
        _ => Ok(()),
    }
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
