//! `bitnet embed`: texts as vectors.

use std::process::ExitCode;

use bitnet_model::{KvType, Pooling};
use serde_json::json;

use crate::args::{DeviceArgs, ModelArgs, PromptArgs, one_of, tokens};
use crate::failure::hinted;
use crate::terminal::Terminal;
use crate::{model, report};

/// Print the vector of a text, of an embedding model
///
/// Prints a JSON array of as many numbers as the model is wide; the vector has length 1, so that the product of two is the cosine
/// of their angle. Queries of most models carry an instruction before the text: give it with the text.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Take each line of the text as a text of its own, and print a vector a line
    #[arg(long)]
    lines: bool,
    /// How the vectors of a text's tokens become one: mean, first or last [default: what the model's files say]
    #[arg(long, value_name = "HOW", value_parser = one_of(&POOLINGS))]
    pooling: Option<Pooling>,
    /// Print JSON objects: text, pooling, embedding
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tokens of context, such as 4096 or 4k, which a text must fit; 0 is all the model was trained for
    /// [default: that, but at most 4096]
    #[arg(short, long, visible_alias = "max-model-len", value_name = "N", value_parser = tokens, help_heading = "Device")]
    ctx_size: Option<usize>,
}

const POOLINGS: [(&str, Pooling); 3] = [
    ("mean", Pooling::Mean),
    ("first", Pooling::First),
    ("last", Pooling::Last),
];

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = args.prompt.read("give a text with -p, -f or on stdin")?;
    let options = args.device.options(args.ctx_size, KvType::F32);
    let mut model = model::load(&args.model.files()?, options, Terminal::detect(false))?;
    if args.pooling.or(model.pooling()).is_none() && model.tokenizer().is_some() {
        return Err(hinted(
            format!(
                "{}: no file says how the vectors of a text's tokens become one",
                model.files()
            ),
            "--pooling mean, first or last does",
        ));
    }
    let texts = match args.lines {
        true => text.lines().collect(),
        false => vec![text.as_str()],
    };
    for text in texts {
        let embedding = model.embed(text, args.pooling)?;
        if args.json {
            let pooling = args
                .pooling
                .or(model.pooling())
                .map(|pooling| pooling.to_string());
            report::print(&json!({ "text": text, "pooling": pooling, "embedding": embedding }))?;
        } else {
            report::print(&json!(embedding))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
