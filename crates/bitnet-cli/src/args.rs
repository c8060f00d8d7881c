//! Flags that several subcommands share.

use std::ffi::OsStr;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bitnet_cpu::Cpu;
use bitnet_model::{
    ActQuant, Device, Files, I2sLayout, KvMemory, KvType, LmHead, LoadOptions, Numa, OpenOptions, Sampling,
    Simd, SkipZeros, read_file,
};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::demo;
use crate::failure::hinted;
use crate::hub;
use crate::terminal::say;

/// Which model.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model: a folder with a Hugging Face BitNet checkpoint as downloaded or what `bitnet convert` wrote, or a GGUF file. Or a
    /// model of the Hugging Face Hub: owner/name, owner/name:I2_S, each also with @revision; what the cache does not have is fetched
    /// [default: the demo model inside this program]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
}

impl ModelArgs {
    /// The model's files, fetched where the hub has them and the cache does not.
    pub(crate) fn files(&self) -> anyhow::Result<Files> {
        self.model
            .as_ref()
            .map_or_else(|| Ok(demo::files()), |given| hub::files(given))
    }

    /// What people call it: its name on the hub where it comes from there, else what `here` says.
    pub(crate) fn title(&self, here: impl FnOnce() -> String) -> String {
        let name = self.model.as_deref().and_then(hub::name);
        name.map_or_else(here, |name| name.to_string())
    }

    /// What programs call it: its name on the hub, or that of its folder or file.
    #[cfg(feature = "serve")]
    pub(crate) fn short_name(&self) -> String {
        let here = || {
            let path = self.model.as_deref()?;
            let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let is_gguf = path
                .extension()
                .is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
            let name = if is_gguf {
                path.file_stem()
            } else {
                path.file_name()
            };
            Some(name?.to_string_lossy().into_owned())
        };
        self.title(|| here().unwrap_or_else(|| "demo".to_owned()))
    }

    /// Says which model it is, where nobody named one.
    pub(crate) fn introduce(&self) {
        if self.model.is_none() {
            say!("{}", demo::INTRODUCTION);
        }
    }
}

/// Where and how a model runs.
#[derive(Debug, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = DeviceParser, help_heading = "Device")]
    device: Device,
    /// Run on the processor, whatever --device and the environment say
    #[arg(long, help_heading = "Device")]
    cpu: bool,
    /// Processor threads, 1024 at most; no more run than there are cores [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = threads, help_heading = "Device")]
    threads: Option<usize>,
    /// On a machine with several memory nodes (sockets): threads on all of them, each with its part of the weights in its node's memory
    /// (distribute), threads on this one alone (isolate), or where numactl has put the program (numactl) [default: where the system puts
    /// threads and weights]
    #[arg(long, value_name = "HOW", value_parser = one_of(&NUMA), help_heading = "Device")]
    numa: Option<Numa>,
    /// Processor instruction set [default: the best there is]
    #[arg(long, value_name = "PATH", value_parser = simd(), help_heading = "Device")]
    simd: Option<Simd>,
    /// Most prompt tokens computed at once; changes speed and memory, never the result
    #[arg(
        short,
        long,
        visible_alias = "max-num-batched-tokens",
        value_name = "N",
        default_value = "512",
        value_parser = at_least_one,
        help_heading = "Device"
    )]
    batch_size: usize,
    /// Output head: stored, certified (the same tokens from about half the bytes, with an 8-bit copy beside it), int8 (half the bytes,
    /// and logits that differ), or auto (certified where that pays)
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "auto",
        value_parser = one_of(&LM_HEADS),
        help_heading = "Device"
    )]
    lm_head: LmHead,
    /// Leave out what squared ReLU makes zero when one token is computed: the same bits from less reading, with copies of two thirds of
    /// the feed-forward weights beside them (on, off, or auto: where that pays; processor alone)
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        value_parser = one_of(&SKIP_ZEROS),
        help_heading = "Device"
    )]
    skip_zeros: SkipZeros,
    #[command(flatten)]
    source: SourceArgs,
}

impl DeviceArgs {
    /// What they ask for, with one sequence of `context` tokens.
    pub(crate) fn options(&self, context: Option<usize>, kv_type: KvType) -> LoadOptions {
        LoadOptions {
            device: if self.cpu { Device::Cpu } else { self.device },
            threads: self.threads,
            simd: self.simd,
            numa: self.numa.unwrap_or_default(),
            context,
            max_batch: self.batch_size,
            kv_type,
            lm_head: self.lm_head,
            skip_zeros: self.skip_zeros,
            source: self.source.options(),
            ..LoadOptions::default()
        }
    }
}

/// How a model is read where its files leave it open.
#[derive(Debug, clap::Args)]
pub(crate) struct SourceArgs {
    /// Layout of the I2_S tensors of a GGUF file: canonical, or what bitnet.cpp's llama-quantize writes on ARM (arm64) or on
    /// x86 without ACT_PARALLEL (rows4); nothing in a file tells, and the wrong one gives noise
    #[arg(
        long,
        value_name = "LAYOUT",
        default_value = "canonical",
        value_parser = one_of(&I2S_LAYOUTS),
        help_heading = "Model files"
    )]
    i2s_layout: I2sLayout,
    /// Inputs of linear layers: int8, or float as weight-only models have them [default: what the files say; int8 for GGUF]
    #[arg(long, value_name = "TYPE", value_parser = one_of(&ACTIVATIONS), help_heading = "Model files")]
    activations: Option<ActQuant>,
}

impl SourceArgs {
    /// What they ask for.
    pub(crate) fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::default();
        options.i2s_layout = self.i2s_layout;
        options.activations = self.activations;
        options
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
    /// Element type of the cache of keys and values: bf16, f32, or int8 with scales (half of bf16, and results that differ)
    #[arg(
        long,
        visible_alias = "kv-cache-dtype",
        value_name = "TYPE",
        default_value = "bf16",
        value_parser = one_of(&KV_TYPES),
        help_heading = "Device"
    )]
    pub(crate) kv_type: KvType,
    /// Memory for keys and values, such as 2G or 512M, or 32768t for that many tokens
    /// [default: what the context needs, at most 90 % of what is free]
    #[arg(long, visible_alias = "cache-memory", value_name = "SIZE", value_parser = kv_memory, help_heading = "Device")]
    pub(crate) kv_memory: Option<KvMemory>,
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
            (None, Some(path)) => read_text(path).map(Some),
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
        let bytes = bounded(Ok(std::io::stdin().lock()), Path::new("stdin"))?;
        String::from_utf8(bytes).context("stdin")
    }
}

/// The text of a file, or of what a shell put in the place of one.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read_bytes(path)?).with_context(|| path.display().to_string())
}

/// As [`read_text`], whatever the bytes are.
pub(crate) fn read_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    match is_open_already(path) {
        true => bounded(std::fs::File::open(path), path),
        false => Ok(read_file(path, MAX_PROMPT)?),
    }
}

/// Most bytes of a prompt; the longest context has room for fewer, but texts that are scored are longer than a context.
const MAX_PROMPT: u64 = 1 << 30;

/// Whether the path names what the program was started with, such as the pipe of a shell's `<(command)`. Only such a pipe
/// is known to have another end.
fn is_open_already(path: &Path) -> bool {
    path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd") || path == Path::new("/dev/stdin")
}

/// All bytes of what may never end.
fn bounded(open: std::io::Result<impl Read>, name: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open.and_then(|input| input.take(MAX_PROMPT + 1).read_to_end(&mut bytes))
        .with_context(|| name.display().to_string())?;
    anyhow::ensure!(
        bytes.len() as u64 <= MAX_PROMPT,
        "{}: has more than {MAX_PROMPT} bytes, which no prompt has",
        name.display()
    );
    Ok(bytes)
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
    /// Draw from the K most likely tokens; 0 or -1 from all [default: the model's own, else 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = top_k, help_heading = "Sampling")]
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
    /// Seed; the same seed gives the same text, and -1 is a new one each time [default: -1]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = seed, help_heading = "Sampling")]
    seed: Option<Seed>,
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
            bad_words: model.bad_words,
            no_repeat_ngram: model.no_repeat_ngram,
            seed: match self.seed {
                Some(Seed::Fixed(seed)) => seed,
                Some(Seed::Random) | None => random_seed(),
            },
        }
    }
}

/// Where draws begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seed {
    Random,
    Fixed(u64),
}

fn seed(text: &str) -> Result<Seed, String> {
    match (text, text.parse()) {
        ("-1", _) => Ok(Seed::Random),
        (_, Ok(seed)) => Ok(Seed::Fixed(seed)),
        _ => Err("expected a whole number, or -1 for a new seed each time".to_owned()),
    }
}

fn top_k(text: &str) -> Result<usize, String> {
    match (text, text.parse()) {
        ("-1", _) => Ok(0),
        (_, Ok(k)) => Ok(k),
        _ => Err("expected a whole number, 0 or -1 for all tokens".to_owned()),
    }
}

/// A seed short enough to be typed again.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) & 0xffff_ffff
}

/// Token ids separated by commas, spaces or both: `1,2,3`.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    if parts.len() > 1 && parts.contains(&"") {
        return Err("there is no number beside a comma; expected numbers such as 1,2,3".to_owned());
    }
    parts
        .iter()
        .flat_map(|part| part.split_whitespace())
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

/// A whole number from `least` to `most`.
pub(crate) fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse::<u128>().map(usize::try_from) {
        Ok(Ok(n)) if (least..=most).contains(&n) => Ok(n),
        // A number that is longer than any machine's is too large as well.
        Ok(_) => Err(format!("it must be from {least} to {most}")),
        Err(_) => Err(format!("expected a whole number from {least} to {most}")),
    }
}

/// Most sequences that are computed side by side: each has a row in every buffer of a step.
pub(crate) const MAX_SEQUENCES: usize = 4096;

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

fn kv_memory(text: &str) -> Result<KvMemory, String> {
    const EXPECTED: &str = "expected bytes such as 2G or 512M, or tokens such as 32768t";
    if let Some(n) = text.strip_suffix('t') {
        return n.parse().map(KvMemory::Tokens).map_err(|_| EXPECTED.to_owned());
    }
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let n: Option<u64> = digits.parse().ok();
    let bytes = n.and_then(|n| n.checked_mul(1 << shift));
    bytes.map(KvMemory::Bytes).ok_or_else(|| EXPECTED.to_owned())
}

fn last_n(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(usize::MAX),
        Ok(n) => usize::try_from(n).map_err(|_| "expected -1 (all) or more".to_owned()),
        Err(_) => Err("expected a whole number, -1 (all) or more".to_owned()),
    }
}

/// The element types of keys and values.
pub(crate) const KV_TYPES: [(&str, KvType); 3] = [
    ("bf16", KvType::Bf16),
    ("f32", KvType::F32),
    ("int8", KvType::Int8),
];

const I2S_LAYOUTS: [(&str, I2sLayout); 3] = [
    ("canonical", I2sLayout::Canonical),
    ("arm64", I2sLayout::Arm64),
    ("rows4", I2sLayout::Rows4),
];

const ACTIVATIONS: [(&str, ActQuant); 2] = [("int8", ActQuant::Int8), ("float", ActQuant::None)];

pub(crate) const LM_HEADS: [(&str, LmHead); 4] = [
    ("auto", LmHead::Auto),
    ("certified", LmHead::Certified),
    ("stored", LmHead::Stored),
    ("int8", LmHead::Int8),
];

/// As llama.cpp names them.
const NUMA: [(&str, Numa); 3] = [
    ("distribute", Numa::Distribute),
    ("isolate", Numa::Isolate),
    ("numactl", Numa::System),
];

const SKIP_ZEROS: [(&str, SkipZeros); 3] = [
    ("auto", SkipZeros::Auto),
    ("on", SkipZeros::On),
    ("off", SkipZeros::Off),
];

/// A value with a name of its own, which completions offer and messages list.
pub(crate) fn one_of<T: Copy + Send + Sync + 'static>(
    values: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(values.iter().map(|(name, _)| *name)).map(move |name| {
        let found = values.iter().find(|(known, _)| *known == name);
        found.expect("the parser lets only known names pass").1
    })
}

/// An instruction set.
pub(crate) fn simd() -> impl TypedValueParser<Value = Simd> {
    PossibleValuesParser::new(Simd::ALL.map(Simd::name)).try_map(|name| name.parse::<Simd>())
}

/// Reads a device. Completions offer the names that have no number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceParser;

impl TypedValueParser for DeviceParser {
    type Value = Device;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Device, clap::Error> {
        let parse = |text: &str| text.parse::<Device>();
        TypedValueParser::parse_ref(&parse, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = ["auto", "cpu", "cuda"];
        Some(Box::new(names.into_iter().map(PossibleValue::new)))
    }
}

/// A number of threads. More than can be useful on any machine would only run out of memory.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    const MAX: usize = Cpu::MAX_THREADS;
    match text.parse::<u128>().map(usize::try_from) {
        Ok(Ok(n @ 1..=MAX)) => Ok(n),
        Ok(Ok(0)) => Err(format!("expected a whole number from 1 to {MAX}")),
        Err(_) if !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("expected a whole number from 1 to {MAX}"))
        }
        _ => Err(format!(
            "at most {MAX} threads can be used; this machine has {cores} cores"
        )),
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
        assert_eq!(kv_memory("32768t"), Ok(KvMemory::Tokens(32768)));
        assert_eq!(kv_memory("2G"), Ok(KvMemory::Bytes(2 << 30)));
        assert_eq!(kv_memory("512m"), Ok(KvMemory::Bytes(512 << 20)));
        for text in ["", "t", "G", "2T", "-1", "99999999999G"] {
            assert!(kv_memory(text).is_err(), "{text}");
        }
        assert_eq!(last_n("-1"), Ok(usize::MAX));
        assert!(last_n("-2").is_err());
        assert_eq!((top_k("-1"), top_k("0"), top_k("7")), (Ok(0), Ok(0), Ok(7)));
        assert!(top_k("-2").is_err() && seed("-2").is_err() && seed("x").is_err());
        assert_eq!((seed("-1"), seed("7")), (Ok(Seed::Random), Ok(Seed::Fixed(7))));
        assert_eq!(threads("1024"), Ok(1024));
        for text in [
            "0",
            "-1",
            "x",
            "1025",
            "1000000000000000000",
            "99999999999999999999999999",
        ] {
            assert!(threads(text).unwrap_err().contains("1024"), "{text}");
        }
        assert_eq!(logit_bias("15043+1"), Ok((15043, 1.0)));
        assert_eq!(logit_bias("2-inf"), Ok((2, f32::NEG_INFINITY)));
        assert!(logit_bias("2").is_err() && logit_bias("+1").is_err() && logit_bias("é+1").is_err());
        assert_eq!(parse_ids("1, 2,3\n"), Ok(vec![1, 2, 3]));
        assert_eq!((parse_ids("1 2"), parse_ids("")), (Ok(vec![1, 2]), Ok(vec![])));
        assert!(parse_ids("1,-2").is_err() && parse_ids("1,,2").is_err() && parse_ids("1,").is_err());
    }
}
