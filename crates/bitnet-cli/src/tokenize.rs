//! `bitnet tokenize`: token ids of a text, and text of token ids.

use std::io::Write;
use std::process::ExitCode;

use bitnet_model::Tokenizer;
use serde_json::json;

use crate::args::{self, ModelArgs, PromptArgs};
use crate::failure::{hinted, usage};
use crate::report;
use crate::terminal::Terminal;

/// Print the token ids of a text, or the text of token ids
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Token ids to turn into text, such as 1,2,3
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file"])]
    ids: Option<String>,
    /// Add no beginning-of-sequence token
    #[arg(long, conflicts_with = "ids")]
    no_bos: bool,
    /// Print one JSON object: ids, tokens, text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.model.introduce();
    let tokenizer = Tokenizer::of_model(args.model.files()?)?;
    let ids = match &args.ids {
        Some(ids) => {
            let ids = args::parse_ids(ids)
                .map_err(|e| usage(format!("--ids: {e}"), "commas or spaces separate the numbers"))?;
            if let Some(id) = ids.iter().find(|&&id| tokenizer.id_to_token(id).is_none()) {
                return Err(hinted(
                    format!("--ids: token {id} is none of the vocabulary's"),
                    "`bitnet inspect` shows how many tokens there are",
                ));
            }
            ids
        }
        None => {
            let text = args
                .prompt
                .read("give one with -p, -f or on stdin, or token ids with --ids")?;
            if args.no_bos {
                tokenizer.encode_plain(&text)?
            } else {
                tokenizer.encode_prompt(&text)?
            }
        }
    };
    if args.json {
        let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_token(id)).collect();
        let text = tokenizer.decode(&ids)?;
        report::print(&json!({ "ids": ids, "tokens": tokens, "text": text }))?;
    } else if args.ids.is_some() {
        let text = tokenizer.decode(&ids)?;
        writeln!(std::io::stdout(), "{}", Terminal::detect(false).printable(&text))?;
    } else {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(std::io::stdout(), "{}", ids.join(","))?;
    }
    Ok(ExitCode::SUCCESS)
}
