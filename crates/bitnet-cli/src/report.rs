//! Numbers about a generation: the line after an answer, and the JSON object.

use std::io::Write;

use bitnet_model::{Generation, Model, Timings};
use serde_json::{Value, json};

use crate::terminal::harmless_json;

/// What a command knows beside the generation.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// What ran the model.
    pub(crate) device: String,
    /// Bytes that the back end holds.
    pub(crate) memory_bytes: u64,
    /// Seed of the draws.
    pub(crate) seed: u64,
}

/// What an answer was spared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spared {
    /// Share of the linear layers' weights that was read by the steps of a few tokens, which leave zeros out; `None` where all is read.
    pub(crate) weights_read: Option<f64>,
    /// Logits that were computed for a token, where the best are found without the others.
    pub(crate) logits: Option<f64>,
}

impl Facts {
    pub(crate) fn new(model: &Model, seed: u64) -> Self {
        Self {
            device: model.backend().spec().name.clone(),
            memory_bytes: model.backend().spec().memory_bytes,
            seed,
        }
    }
}

/// The line after an answer: of its parts, the first ones, as many as fit a terminal of `width` columns.
pub(crate) fn line(generation: &Generation, facts: &Facts, spared: Spared, width: Option<usize>) -> String {
    let Timings {
        prefill_tokens,
        reused_tokens,
        first_token,
        drafted,
        accepted,
        ..
    } = generation.timings;
    let reused = match reused_tokens {
        0 => String::new(),
        n => format!(" (+{n} reused)"),
    };
    let prompt_rate = rate(generation.timings.prefill_rate());
    let guessed = match drafted {
        0 => String::new(),
        _ => format!(" ({accepted} of {drafted} guessed)"),
    };
    let answer = format!(
        "answer {} tokens{guessed}, {} tokens/s",
        generation.ids.len(),
        rate(generation.timings.decode_rate())
    );
    let memory = match peak_resident_bytes() {
        Some(peak) => format!("{} (process at most {})", size(facts.memory_bytes), size(peak)),
        None => size(facts.memory_bytes),
    };
    let read = spared
        .weights_read
        .map(|share| format!(" | {:.0} % of the weights read", 100.0 * share));
    let logits = spared
        .logits
        .map(|logits| format!(" | {logits:.0} logits a token"));
    let (read, logits) = (read.unwrap_or_default(), logits.unwrap_or_default());
    let first = format!("first token {:.2} s", first_token.as_secs_f64());
    let prompt = format!("prompt {prefill_tokens} tokens{reused}, {prompt_rate} tokens/s");
    let whole = format!(
        "{prompt} | {first} | {answer}{read}{logits} | memory {memory} | {}",
        facts.device
    );
    let long = format!(
        "{prompt} | {first} | {answer} | memory {memory} | {}",
        facts.device
    );
    let short = format!("{prompt} | {answer}");
    let shorter = format!("prompt {prefill_tokens} tokens{reused} | {answer}");
    let fits = |line: &String| width.is_none_or(|width| line.chars().count() <= width);
    [whole, long, short, shorter]
        .into_iter()
        .find(fits)
        .unwrap_or(answer)
}

/// A rate with the digits that a measurement has.
fn rate(per_second: f64) -> String {
    if per_second < 1000.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

/// Prints a value as one line of JSON.
pub(crate) fn print(value: &Value) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{}", harmless_json(&value.to_string()))
}

/// The one object that `--json` prints.
pub(crate) fn object(generation: &Generation, facts: &Facts, spared: Spared) -> Value {
    let timings = &generation.timings;
    json!({
        "prompt_ids": generation.prompt_ids,
        "ids": generation.ids,
        "text": generation.text,
        "finish_reason": generation.finish_reason.as_str(),
        "seed": facts.seed,
        "device": facts.device,
        "timings": {
            "prefill_tokens": timings.prefill_tokens,
            "reused_tokens": timings.reused_tokens,
            "prefill_s": timings.prefill.as_secs_f64(),
            "prefill_tokens_per_s": timings.prefill_rate(),
            "first_token_s": timings.first_token.as_secs_f64(),
            "decode_tokens": timings.decode_tokens,
            "decode_s": timings.decode.as_secs_f64(),
            "decode_tokens_per_s": timings.decode_rate(),
            "drafted_tokens": timings.drafted,
            "accepted_tokens": timings.accepted,
        },
        "weights_read_share": spared.weights_read,
        "logits_per_token": spared.logits,
        "memory_bytes": facts.memory_bytes,
        "peak_resident_bytes": peak_resident_bytes(),
    })
}

/// The most memory this process ever had, where the system says.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1024.0 * 1024.0);
    if mib < 1024.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}
