//! Loading a model the way every subcommand does.

use std::path::Path;

use bitnet_model::{LoadOptions, Model};

use crate::failure::hinted;
use crate::terminal::Terminal;

/// Loads the model in `folder`, with a spinner on a terminal, and prints what the user should know about it.
pub(crate) fn load(folder: &Path, options: LoadOptions, terminal: Terminal) -> anyhow::Result<Model> {
    if !folder.exists() {
        return Err(hinted(
            format!("{}: no such folder", folder.display()),
            "-m names a folder with config.json, the *.safetensors and the tokenizer files of a BitNet model",
        ));
    }
    let asked = options.context;
    let spinner = terminal.spinner(format!("loading {}", folder.display()));
    let model = Model::load(folder, options);
    spinner.finish_and_clear();
    let model = model?;
    let trained = model.config().max_context;
    if asked.is_some_and(|context| context > trained) {
        eprintln!(
            "warning: the model was trained for {trained} tokens of context; beyond them it may write nonsense"
        );
    }
    Ok(model)
}
