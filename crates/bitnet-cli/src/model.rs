//! Loading a model the way every subcommand does.

use bitnet_model::{
    Backend, ChatTemplate, Checkpoint, Config, Files, LoadOptions, Model, Watched, open_backend,
};

use crate::failure::hinted;
use crate::progress::Bar;
use crate::terminal::{Terminal, say};

/// Loads the model of `files`, with a progress bar on a terminal, and prints what the user should know about it.
pub(crate) fn load(files: &Files, options: LoadOptions, terminal: Terminal) -> anyhow::Result<Model> {
    require(files)?;
    let asked = options.context;
    let bar = Bar::loading(files, terminal);
    let model = Model::load_watched(files, options, &mut |done, total| bar.set(done, total))?;
    drop(bar);
    say_notes(model.notes());
    if let Some(context) = asked {
        warn_past_training(context, model.config());
    }
    Ok(model)
}

/// Puts the weights of `checkpoint` on a device, with a progress bar on a terminal.
pub(crate) fn open(checkpoint: &Checkpoint, options: &LoadOptions) -> anyhow::Result<Box<dyn Backend>> {
    let bar = Bar::loading(checkpoint.files(), Terminal::detect(false));
    let mut report = |done, total| bar.set(done, total);
    say_notes(checkpoint.notes());
    Ok(open_backend(
        &Watched::new(checkpoint, &mut report),
        options.clone(),
    )?)
}

/// Refuses a model that is not there.
pub(crate) fn require(files: &Files) -> anyhow::Result<()> {
    match files {
        Files::Folder(folder) if !folder.exists() => Err(hinted(
            format!("{files}: no such file or folder"),
            "-m names a GGUF file, or a folder with config.json, the *.safetensors and the tokenizer files of a BitNet model",
        )),
        _ => Ok(()),
    }
}

/// Refuses a model that writes no text.
pub(crate) fn require_text(model: &Model) -> anyhow::Result<()> {
    match model.config().has_head {
        true => Ok(()),
        false => Err(hinted(
            format!(
                "{}: this is an embedding model, which writes no text",
                model.files()
            ),
            "`bitnet embed` gives the vector of a text",
        )),
    }
}

/// Says what was decided that the model's files do not say.
pub(crate) fn say_notes(notes: &[String]) {
    for note in notes {
        say!("note: {note}");
    }
}

/// Says so when `context` tokens are more than the model knows.
pub(crate) fn warn_past_training(context: usize, config: &Config) {
    let trained = config.max_context;
    if context > trained {
        say!(
            "warning: the model was trained for {trained} tokens of context; beyond them it may write nonsense"
        );
    }
}

/// Says so when a model is asked in a template that is not its own.
pub(crate) fn warn_built_in(template: &ChatTemplate) {
    if template.is_built_in() {
        say!(
            "warning: the model has no chat template; using the one of BitNet b1.58 2B-4T \
             (--chat-template-file names another)"
        );
    }
}
