//! `bitnet perplexity`: how well the model predicts a text.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use bitnet_model::Chunking;
use serde_json::json;

use crate::args;
use crate::measure::{MeasureArgs, Subject};
use crate::progress::Bar;
use crate::report;
use crate::terminal::say;

/// Tokens of a chunk unless something else is asked for, as in llama.cpp: figures with this size can be compared.
const DEFAULT_CHUNK: usize = 512;

/// Measure how well the model predicts a text
///
/// A text longer than a chunk is cut into chunks of --ctx-size tokens; what is left at its end does not count. Each chunk
/// begins with the beginning-of-sequence token, in place of its first one, and the tokens of its second half are scored:
/// the rule of llama.cpp's perplexity tool. Of a text that fits one chunk, and with --whole, every token after the first
/// is scored.
///
/// Prints the perplexity and its standard error. On the processor keys and values are kept in f32, while `generate` keeps
/// bf16.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    measure: MeasureArgs,
    /// Tokens of a chunk, such as 512 or 2k, at least 3; 0 is all the model was trained for
    /// [default: 512, but at most that]
    #[arg(short, long, value_name = "N", value_parser = chunk)]
    ctx_size: Option<usize>,
    /// Take the text as one piece, however long it is
    #[arg(long, conflicts_with = "ctx_size")]
    whole: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut chunk = DEFAULT_CHUNK;
    let subject = args.measure.open(|config, n_tokens| {
        let trained = config.max_context.max(3);
        chunk = match args.ctx_size {
            _ if args.whole => n_tokens.max(3),
            None => DEFAULT_CHUNK.min(trained),
            Some(0) => trained,
            Some(chunk) => chunk,
        };
        // A chunk that is too short is refused below.
        Chunking::new(chunk, None).map_or(n_tokens, |chunking| chunking.plan(n_tokens).1)
    })?;
    let Subject {
        mut backend,
        ids,
        bos,
        ..
    } = subject;
    let chunking = Chunking::new(chunk, bos)?;
    let start = Instant::now();
    let bar = Bar::tokens("scoring");
    let (n_chunks, len) = chunking.plan(ids.len());
    let n_computed = n_chunks * len;
    let result = chunking.perplexity(backend.as_mut(), &ids, |done, so_far| {
        bar.set(done as u64, n_computed as u64);
        bar.say(format!("perplexity {:.4}", so_far.value()));
    })?;
    drop(bar);
    let seconds = start.elapsed().as_secs_f64();
    let rate = n_computed as f64 / seconds.max(1e-9);
    let left_out = ids.len() - n_computed;
    if args.json {
        let object = json!({
            "perplexity": result.value(),
            "perplexity_error": result.value_error(),
            "nll": result.mean,
            "nll_error": result.mean_error(),
            "n_tokens": ids.len(),
            "n_scored": result.n_scored,
            "n_left_out": left_out,
            "n_chunks": n_chunks,
            "chunk_tokens": len,
            "seconds": seconds,
            "tokens_per_s": rate,
            "device": backend.spec().name,
            "memory_bytes": backend.spec().memory_bytes,
        });
        report::print(&object)?;
    } else {
        let mut out = std::io::stdout().lock();
        match result.value_error() {
            Some(error) => writeln!(out, "perplexity = {:.4} +/- {error:.4}", result.value())?,
            None => writeln!(out, "perplexity = {:.4}", result.value())?,
        }
        let plural = if n_chunks == 1 { "" } else { "s" };
        say!(
            "{} tokens: {n_chunks} chunk{plural} of {len}, {} tokens scored, {left_out} left out | {seconds:.1} s, \
             {rate:.1} tokens/s | {}",
            ids.len(),
            result.n_scored,
            backend.spec().name
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn chunk(text: &str) -> Result<usize, String> {
    match args::tokens(text)? {
        1 | 2 => Err("a chunk needs at least 3 tokens".to_owned()),
        n => Ok(n),
    }
}
