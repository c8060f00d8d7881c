//! `bitnet tokenize`: token ids of a text, and text of token ids.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bitnet_model::Tokenizer;
use serde_json::json;

use crate::args::{self, ModelArgs};

/// Print the token ids of a text, or the text of token ids
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; without -p, -f or --ids it is read from stdin
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Read the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Token ids to turn into text, such as 1,2,3
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file"])]
    ids: Option<String>,
    /// Add no beginning-of-sequence token
    #[arg(long)]
    no_bos: bool,
    /// Print one JSON object: ids, tokens, text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tokenizer = Tokenizer::from_folder(args.model.folder()?, None, &[])?;
    let ids = match &args.ids {
        Some(ids) => args::parse_ids(ids).map_err(anyhow::Error::msg)?,
        None => {
            let text = match (&args.prompt, &args.file) {
                (Some(text), _) => text.clone(),
                (None, Some(path)) => {
                    std::fs::read_to_string(path).with_context(|| path.display().to_string())?
                }
                (None, None) => {
                    let mut text = String::new();
                    std::io::stdin().read_to_string(&mut text).context("stdin")?;
                    text
                }
            };
            if args.no_bos {
                tokenizer.encode_plain(&text)?
            } else {
                tokenizer.encode_prompt(&text)?
            }
        }
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_token(id)).collect();
        let text = tokenizer.decode(&ids)?;
        writeln!(out, "{}", json!({ "ids": ids, "tokens": tokens, "text": text }))?;
    } else if args.ids.is_some() {
        writeln!(out, "{}", tokenizer.decode(&ids)?)?;
    } else {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", ids.join(","))?;
    }
    Ok(ExitCode::SUCCESS)
}
