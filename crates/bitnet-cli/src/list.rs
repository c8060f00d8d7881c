//! `bitnet list`: the models in the cache of the Hugging Face Hub.

use std::io::Write;
use std::process::ExitCode;

use bitnet_hub::{Cached, Format};
use bitnet_model::Checkpoint;
use serde_json::json;

use crate::hub;
use crate::progress::human_bytes;
use crate::terminal::say;

/// List the models in the cache that this program can run
///
/// The cache is that of Python's huggingface_hub, so what Python fetched is in the list. The names are those that -m takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// List the others, too, and why they do not run
    #[arg(short, long)]
    all: bool,
    /// Print one JSON array: model, format, architecture, bytes, path, commit, problem
    #[arg(long)]
    json: bool,
}

/// A model and what the engine says to it.
struct Listed {
    cached: Cached,
    /// What its configuration calls it, or why it does not run.
    verdict: Result<String, String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let hub = hub::open()?;
    let listed: Vec<Listed> = hub
        .models()
        .map_err(hub::advised)?
        .into_iter()
        .map(judge)
        .collect();
    // A model that was begun is worth to be seen: it can be pulled on, or removed.
    let is_shown = |listed: &&Listed| args.all || listed.verdict.is_ok() || listed.cached.format.is_none();
    let shown: Vec<&Listed> = listed.iter().filter(is_shown).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        let objects: Vec<_> = shown.iter().map(|listed| object(listed)).collect();
        writeln!(out, "{}", json!(objects))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 4]> = shown.iter().map(|listed| row(listed)).collect();
    let widths = [0, 1, 2].map(|column| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    for [model, kind, size, path] in &rows {
        let [a, b, c] = widths;
        writeln!(out, "{model:a$}  {kind:b$}  {size:>c$}  {path}")?;
    }
    let place = hub.settings().cache.display();
    match (shown.len(), listed.len() - shown.len()) {
        (0, 0) => say!("no models in {place}; bitnet pull owner/name fetches one"),
        (_, 0) => {}
        (_, hidden) => say!("{hidden} more in {place} that this program cannot run; --all tells why"),
    }
    Ok(ExitCode::SUCCESS)
}

fn judge(cached: Cached) -> Listed {
    let verdict = match cached.format {
        None => Err("only a part of it has arrived; bitnet pull goes on".to_owned()),
        Some(_) => Checkpoint::open(&cached.path)
            .map(|checkpoint| checkpoint.architecture().to_owned())
            .map_err(|error| error.to_string()),
    };
    Listed { cached, verdict }
}

fn row(listed: &Listed) -> [String; 4] {
    let cached = &listed.cached;
    let kind = match (&listed.verdict, format(cached)) {
        (Ok(architecture), Some(format)) => format!("{format}, {architecture}"),
        (Err(_), Some(format)) => format!("{format}, does not run"),
        (_, None) => "incomplete".to_owned(),
    };
    let path = match &listed.verdict {
        Err(why) if cached.format.is_some() => why.clone(),
        _ => cached.path.display().to_string(),
    };
    [cached.name.to_string(), kind, human_bytes(cached.bytes), path]
}

fn object(listed: &Listed) -> serde_json::Value {
    let cached = &listed.cached;
    json!({
        "model": cached.name.to_string(),
        "format": format(cached),
        "architecture": listed.verdict.as_ref().ok(),
        "bytes": cached.bytes,
        "path": cached.path,
        "commit": cached.commit,
        "problem": listed.verdict.as_ref().err(),
    })
}

fn format(cached: &Cached) -> Option<&'static str> {
    cached.format.map(|format| match format {
        Format::Safetensors => "safetensors",
        Format::Gguf => "GGUF",
    })
}
