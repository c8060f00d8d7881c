//! Flags that several subcommands share.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Context;
use bitnet_model::{Device, Files, KvType, LmHead, LoadOptions, Sampling, Simd};

use crate::demo;
use crate::failure::hinted;

/// Which model.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model folder: a Hugging Face BitNet checkpoint as downloaded, or what `bitnet convert` wrote
    /// [default: the demo model inside this program]
    #[arg(short, long, value_name = "FOLDER")]
    model: Option<PathBuf>,
}

impl ModelArgs {
    /// The model's files.
    pub(crate) fn files(&self) -> Files {
        self.model.as_ref().map_or_else(demo::files, Files::from)
    }

    /// Says which model it is, where nobody named one.
    pub(crate) fn introduce(&self) {
        if self.model.is_none() {
            eprintln!("{}", demo::INTRODUCTION);
        }
    }
}

/// Where and how a model runs.
#[derive(Debug, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Device")]
    device: Device,
    /// Run on the processor, whatever --device and the environment say
    #[arg(long, help_heading = "Device")]
    cpu: bool,
    /// Processor threads [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = at_least_one, help_heading = "Device")]
    threads: Option<usize>,
    /// Processor instruction set: scalar, avx2, avx-vnni, avx512-vnni, amx, neon, neon-dotprod [default: the best there is]
    #[arg(long, value_name = "PATH", help_heading = "Device")]
    simd: Option<Simd>,
    /// Most prompt tokens computed at once; changes speed and memory, never the result
    #[arg(short, long, value_name = "N", default_value = "512", value_parser = at_least_one, help_heading = "Device")]
    batch_size: usize,
    /// Output head: stored, or int8 (half the bytes of bf16 to read for a token, and logits that differ)
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "stored",
        value_parser = lm_head,
        help_heading = "Device"
    )]
    lm_head: LmHead,
}

impl DeviceArgs {
    /// What they ask for, with one sequence of `context` tokens.
    pub(crate) fn options(&self, context: Option<usize>, kv_type: KvType) -> LoadOptions {
        LoadOptions {
            device: if self.cpu { Device::Cpu } else { self.device },
            threads: self.threads,
            simd: self.simd,
            context,
            max_batch: self.batch_size,
            kv_type,
            lm_head: self.lm_head,
            ..LoadOptions::default()
        }
    }
}

/// The cache of commands that generate.
#[derive(Debug, clap::Args)]
pub(crate) struct CacheArgs {
    /// Tokens of context, prompt and answer together, such as 4096 or 4k; 0 is all the model was trained for
    /// [default: that, but at most 4096]
    #[arg(
        short,
        long,
        visible_alias = "max-model-len",
        value_name = "N",
        value_parser = tokens,
        help_heading = "Device"
    )]
    pub(crate) ctx_size: Option<usize>,
    /// Element type of the cache of keys and values: bf16 or f32
    #[arg(
        long,
        visible_alias = "kv-cache-dtype",
        value_name = "TYPE",
        default_value = "bf16",
        value_parser = kv_type,
        help_heading = "Device"
    )]
    pub(crate) kv_type: KvType,
}

/// Where a text comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct PromptArgs {
    /// Text of the prompt; without -p and -f it is read from stdin
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Read the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
}

impl PromptArgs {
    /// The text of -p or -f.
    pub(crate) fn given(&self) -> anyhow::Result<Option<String>> {
        match (&self.prompt, &self.file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                Ok(Some(text))
            }
            (None, None) => Ok(None),
        }
    }

    /// The text of -p, -f or stdin; `hint` is for those at a terminal who gave none.
    pub(crate) fn read(&self, hint: &str) -> anyhow::Result<String> {
        if let Some(text) = self.given()? {
            return Ok(text);
        }
        if std::io::stdin().is_terminal() {
            return Err(hinted("no prompt given", hint));
        }
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("stdin")?;
        Ok(text)
    }
}

/// How tokens are chosen. What is not given comes from the model's generation_config.json, else from the defaults named.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 always takes the most likely token [default: the model's own, else 0.8]
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "T",
        help_heading = "Sampling"
    )]
    temp: Option<f32>,
    /// Draw from the K most likely tokens; 0 from all [default: the model's own, else 40]
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    top_k: Option<usize>,
    /// Draw from the most likely tokens that together have probability P; 1 from all [default: the model's own, else 0.95]
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    top_p: Option<f32>,
    /// Draw from tokens at least P times as likely as the most likely one [default: the model's own, else 0.05]
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    min_p: Option<f32>,
    /// Divide the logits of recent tokens; 1 is off [default: the model's own, else 1]
    #[arg(
        long,
        visible_alias = "repetition-penalty",
        value_name = "X",
        help_heading = "Sampling"
    )]
    repeat_penalty: Option<f32>,
    /// How many recent tokens the penalties look at; 0 none, -1 all [default: 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = last_n, help_heading = "Sampling")]
    repeat_last_n: Option<usize>,
    /// Lower the logits of recent tokens by X
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    presence_penalty: Option<f32>,
    /// Lower the logits of recent tokens by X for each time they occurred
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    frequency_penalty: Option<f32>,
    /// Change the logit of a token, such as 15043+1.5, 15043-2 or 15043-inf (never); may be repeated
    #[arg(short, long, value_name = "ID(+/-)BIAS", value_parser = logit_bias, help_heading = "Sampling")]
    logit_bias: Vec<(u32, f32)>,
    /// Seed; the same seed gives the same text [default: a new one each time]
    #[arg(short, long, value_name = "N", help_heading = "Sampling")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The model's own settings, changed by what was given.
    pub(crate) fn apply(&self, model: Sampling) -> Sampling {
        let mut logit_bias = model.logit_bias;
        logit_bias.extend_from_slice(&self.logit_bias);
        Sampling {
            temperature: self.temp.unwrap_or(model.temperature),
            top_k: self.top_k.unwrap_or(model.top_k),
            top_p: self.top_p.unwrap_or(model.top_p),
            min_p: self.min_p.unwrap_or(model.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(model.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(model.repeat_last_n),
            presence_penalty: self.presence_penalty.unwrap_or(model.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(model.frequency_penalty),
            logit_bias,
            penalize_prompt: model.penalize_prompt,
            seed: self.seed.unwrap_or_else(random_seed),
        }
    }
}

/// llama.cpp's flags of several letters after one dash, which clap would read as several flags.
pub(crate) fn expand(arg: OsString) -> OsString {
    match arg.to_str() {
        Some("-sys") => "--system".into(),
        Some("-ctk") => "--kv-type".into(),
        _ => arg,
    }
}

/// A seed short enough to be typed again.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) & 0xffff_ffff
}

/// Token ids separated by commas, spaces or both: `1,2,3`.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    text.split([',', ' ', '\n', '\t'])
        .filter(|field| !field.is_empty())
        .map(|field| {
            field
                .parse()
                .map_err(|_| format!("`{field}` is not a token id; expected numbers such as 1,2,3"))
        })
        .collect()
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, 1 or more".to_owned()),
        Ok(n) => Ok(n),
    }
}

/// A count with an optional `k` for 1024.
pub(crate) fn tokens(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let n: Option<usize> = digits.parse().ok();
    n.and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| "expected a number of tokens such as 4096 or 4k".to_owned())
}

fn last_n(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(usize::MAX),
        Ok(n) => usize::try_from(n).map_err(|_| "expected -1 (all) or more".to_owned()),
        Err(_) => Err("expected a whole number, -1 (all) or more".to_owned()),
    }
}

pub(crate) fn kv_type(text: &str) -> Result<KvType, String> {
    match text {
        "bf16" => Ok(KvType::Bf16),
        "f32" => Ok(KvType::F32),
        _ => Err("expected bf16 or f32".to_owned()),
    }
}

fn lm_head(text: &str) -> Result<LmHead, String> {
    match text {
        "stored" => Ok(LmHead::Stored),
        "int8" => Ok(LmHead::Int8),
        _ => Err("expected stored or int8".to_owned()),
    }
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parse = || {
        let (id, bias) = text.split_at_checked(text.find(['+', '-'])?)?;
        Some((id.trim().parse().ok()?, bias.parse().ok()?))
    };
    parse().ok_or_else(|| "expected a token id, a sign and a number, such as 15043+1 or 15043-inf".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_documented() {
        assert_eq!(tokens("4k"), Ok(4096));
        assert_eq!(tokens("100"), Ok(100));
        assert!(
            tokens("k").is_err()
                && tokens("99999999999999999999").is_err()
                && tokens("18014398509481984k").is_err()
        );
        assert_eq!(last_n("-1"), Ok(usize::MAX));
        assert!(last_n("-2").is_err());
        assert_eq!(logit_bias("15043+1"), Ok((15043, 1.0)));
        assert_eq!(logit_bias("2-inf"), Ok((2, f32::NEG_INFINITY)));
        assert!(logit_bias("2").is_err() && logit_bias("+1").is_err() && logit_bias("é+1").is_err());
        assert_eq!(parse_ids("1, 2,3\n"), Ok(vec![1, 2, 3]));
        assert!(parse_ids("1,-2").is_err());
    }
}
