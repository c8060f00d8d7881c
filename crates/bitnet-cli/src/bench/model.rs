//! `bitnet bench model`: prompts and decoding of a whole model, in the columns of llama-bench.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bitnet_model::{
    Backend, Checkpoint, Config, KvType, Sampler, Sampling, Token, WeightSource, open_backend,
};
use serde_json::{Value, json};

use super::peak;
use super::report::Format;
use crate::args::{DeviceArgs, ModelArgs};

/// Time a model: prompts (pp), decoded tokens (tg), at a depth of context, several sequences at once
///
/// Tests are named as llama-bench names them: pp512, tg128, tg128 @ d1024. Token ids are drawn by a fixed seed. Decoding
/// takes the most likely token each time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Prompt lengths to time, separated by commas; 0 for none
    #[arg(
        short = 'p',
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "512"
    )]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to decode, separated by commas; 0 for none
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Tokens of context before the timed ones, separated by commas
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences decoded side by side, separated by commas
    #[arg(
        long,
        visible_alias = "parallel",
        value_name = "N",
        value_delimiter = ',',
        default_value = "1"
    )]
    sequences: Vec<usize>,
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = crate::args::at_least_one)]
    repetitions: usize,
    /// What to print
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
}

/// One test: tokens of context, then a prompt or decoded tokens.
#[derive(Clone, Copy, Debug)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    depth: usize,
    sequences: usize,
}

/// What a test took.
struct Outcome {
    test: Test,
    /// Tokens a second, by repetition.
    rates: Vec<f64>,
    /// Time from the start of the test to its first token, by repetition.
    first: Vec<Duration>,
    /// Time between tokens of one sequence, all repetitions together.
    between: Vec<Duration>,
    /// Bytes a decode step must move, in the middle of the test.
    step_bytes: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.model.introduce();
    let files = args.model.files();
    crate::model::require(&files)?;
    let checkpoint = Checkpoint::open(&files)?;
    let config = checkpoint.config().clone();
    let mut tests = Vec::new();
    for &depth in &args.depth {
        let prompts = args.n_prompt.iter().filter(|&&n| n > 0);
        tests.extend(prompts.map(|&n_prompt| Test {
            n_prompt,
            n_gen: 0,
            depth,
            sequences: 1,
        }));
        for &sequences in &args.sequences {
            let decoded = args.n_gen.iter().filter(|&&n| n > 0);
            tests.extend(decoded.map(|&n_gen| Test {
                n_prompt: 0,
                n_gen,
                depth,
                sequences: sequences.max(1),
            }));
        }
    }
    let context = tests
        .iter()
        .map(|t| t.depth + t.n_prompt + t.n_gen + 1)
        .max()
        .unwrap_or(1);
    let mut options = args.device.options(Some(context), KvType::Bf16);
    options.n_seqs = tests.iter().map(|t| t.sequences).max().unwrap_or(1);
    options.max_batch = options.max_batch.max(options.n_seqs);
    let peak_gb_per_s = peak(options.device, options.threads)?;
    let loading = Instant::now();
    let mut backend = open_backend(&checkpoint, &options)?;
    let load = loading.elapsed();
    let outcomes = tests
        .iter()
        .map(|test| measure(backend.as_mut(), &config, *test, args.repetitions))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let report = Report {
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        model: files
            .root()
            .file_name()
            .map_or_else(|| files.to_string(), |n| n.to_string_lossy().into_owned()),
        backend: backend.name(),
        memory_bytes: backend.memory_bytes(),
        weight_bytes: weight_bytes(&config),
        parameters: parameters(&config),
        load,
        peak_gb_per_s,
        outcomes,
    };
    match args.output {
        Format::Md => print!("{}", report.markdown()),
        Format::Json => println!("{:#}", report.json()),
        Format::Csv => print!("{}", report.csv()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Token ids that look like text to a cache: spread over the vocabulary, the same every time.
fn ids(n: usize, vocab: usize) -> Vec<u32> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize % vocab) as u32
    };
    (0..n).map(|_| next()).collect()
}

fn prefill(backend: &mut dyn Backend, ids: &[u32], first: usize, seq: u32) -> anyhow::Result<u32> {
    let mut best = 0;
    let batch = backend.max_batch();
    for (i, part) in ids.chunks(batch).enumerate() {
        let last = (i + 1) * batch >= ids.len();
        let rows = if last { vec![part.len() - 1] } else { Vec::new() };
        let logits = backend.step(&Token::run(part, first + i * batch, seq), &rows)?;
        if last {
            best = arg_max(logits);
        }
    }
    Ok(best)
}

fn arg_max(logits: &[f32]) -> u32 {
    let best = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
    best as u32
}

fn measure(
    backend: &mut dyn Backend,
    config: &Config,
    test: Test,
    repetitions: usize,
) -> anyhow::Result<Outcome> {
    let Test {
        n_prompt,
        n_gen,
        depth,
        sequences,
    } = test;
    // A sequence begins with one token at least, so that there is something to decode from.
    let context = ids(depth.max(1), config.vocab);
    let prompt = ids(n_prompt, config.vocab);
    let mut outcome = Outcome {
        test,
        rates: Vec::new(),
        first: Vec::new(),
        between: Vec::new(),
        step_bytes: step_bytes(config, depth + n_gen / 2, sequences),
    };
    if n_prompt == 0 {
        for seq in 0..sequences {
            prefill(backend, &context, 0, seq as u32)?;
        }
    } else if depth > 0 {
        prefill(backend, &context, 0, 0)?;
    }
    // One more than is counted: the first finds caches cold and recordings not made.
    for repetition in 0..=repetitions {
        let start = Instant::now();
        let mut times = Vec::new();
        if n_prompt > 0 {
            prefill(backend, &prompt, depth, 0)?;
            times.push(start.elapsed());
        } else {
            let first: Vec<Token> = (0..sequences)
                .map(|seq| Token::run(&context[..1], context.len(), seq as u32)[0])
                .collect();
            decode(backend, &first, n_gen, || times.push(start.elapsed()))?;
        }
        let elapsed = start.elapsed().as_secs_f64();
        if repetition > 0 {
            outcome
                .rates
                .push((n_prompt + n_gen * sequences) as f64 / elapsed);
            outcome.first.extend(times.first());
            outcome
                .between
                .extend(times.windows(2).map(|pair| pair[1] - pair[0]));
        }
    }
    Ok(outcome)
}

/// Decodes `n` tokens of each sequence greedily, on the device where it can.
fn decode(
    backend: &mut dyn Backend,
    first: &[Token],
    n: usize,
    mut done: impl FnMut(),
) -> anyhow::Result<()> {
    let mut samplers = vec![Sampler::new(Sampling::greedy())?; first.len()];
    let mut on_tokens = |_: &[u32]| {
        done();
        ControlFlow::Continue(())
    };
    if backend.decode(first, &mut samplers, n, &mut on_tokens)? {
        return Ok(());
    }
    let vocab = backend.config().vocab;
    let rows: Vec<usize> = (0..first.len()).collect();
    let mut batch = first.to_vec();
    for _ in 0..n {
        let logits = backend.step(&batch, &rows)?;
        for (token, logits) in batch.iter_mut().zip(logits.chunks_exact(vocab)) {
            token.id = arg_max(logits);
            token.pos += 1;
        }
        done();
    }
    Ok(())
}

/// Weights of all layers and of the output head, in elements.
fn parameters(c: &Config) -> u64 {
    let linear = c.d_model * (2 * c.d_q() + 2 * c.d_kv()) + 3 * c.d_model * c.d_ffn;
    let heads = if c.tied_head { 1 } else { 2 };
    (c.n_layers * linear + heads * c.vocab * c.d_model) as u64
}

/// Bytes of weights that a decode step reads: two bits an element, and the head in 16.
fn weight_bytes(c: &Config) -> u64 {
    let linear = c.d_model * (2 * c.d_q() + 2 * c.d_kv()) + 3 * c.d_model * c.d_ffn;
    (c.n_layers * linear / 4 + 2 * c.vocab * c.d_model) as u64
}

/// Bytes that a decode step of `sequences` sequences reads at `depth` tokens of context.
fn step_bytes(c: &Config, depth: usize, sequences: usize) -> u64 {
    weight_bytes(c) + (c.n_layers * 2 * c.d_kv() * 2 * depth * sequences) as u64
}

impl Test {
    fn name(self) -> String {
        let Self {
            n_prompt,
            n_gen,
            depth,
            sequences,
        } = self;
        let mut name = if n_prompt > 0 {
            format!("pp{n_prompt}")
        } else {
            format!("tg{n_gen}")
        };
        if sequences > 1 {
            name += &format!(" x{sequences}");
        }
        if depth > 0 {
            name += &format!(" @ d{depth}");
        }
        name
    }
}

impl Outcome {
    fn mean(&self) -> f64 {
        self.rates.iter().sum::<f64>() / self.rates.len().max(1) as f64
    }

    fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.rates.iter().map(|r| (r - mean).powi(2)).sum();
        (squares / (self.rates.len().max(2) - 1) as f64).sqrt()
    }

    /// Bandwidth of decoding; none for prompts, which are not bound by it.
    fn gb_per_s(&self) -> Option<f64> {
        (self.test.n_gen > 0).then(|| self.mean() / self.test.sequences as f64 * self.step_bytes as f64 / 1e9)
    }

    fn first_ms(&self) -> f64 {
        percentile(&self.first, 0.5)
    }
}

/// A quantile in milliseconds; 0 where there is nothing.
fn percentile(times: &[Duration], quantile: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len().saturating_sub(1)) as f64 * quantile;
    times
        .get(at.round() as usize)
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

struct Report {
    command: String,
    model: String,
    backend: String,
    memory_bytes: u64,
    weight_bytes: u64,
    parameters: u64,
    load: Duration,
    peak_gb_per_s: f64,
    outcomes: Vec<Outcome>,
}

impl Report {
    fn markdown(&self) -> String {
        let mut out = format!(
            "- command: bitnet {}\n- backend: {}\n- memory: {:.0} MB, loaded in {:.2} s\n- plain read: {:.1} GB/s\n\n\
             | model | size | params | backend | test | t/s | GB/s | of plain read | first ms | p50 ms | p99 ms |\n\
             |---|---:|---:|---|---|---:|---:|---:|---:|---:|---:|\n",
            self.command,
            self.backend,
            self.memory_bytes as f64 / 1e6,
            self.load.as_secs_f64(),
            self.peak_gb_per_s,
        );
        for o in &self.outcomes {
            let bandwidth = o.gb_per_s().map_or(("-".to_owned(), "-".to_owned()), |gb| {
                (
                    format!("{gb:.1}"),
                    format!("{:.0} %", gb / self.peak_gb_per_s * 100.0),
                )
            });
            out += &format!(
                "| {} | {:.2} GB | {:.2} B | {} | {} | {:.2} ± {:.2} | {} | {} | {:.2} | {:.3} | {:.3} |\n",
                self.model,
                self.weight_bytes as f64 / 1e9,
                self.parameters as f64 / 1e9,
                self.backend,
                o.test.name(),
                o.mean(),
                o.deviation(),
                bandwidth.0,
                bandwidth.1,
                o.first_ms(),
                percentile(&o.between, 0.5),
                percentile(&o.between, 0.99),
            );
        }
        out
    }

    fn json(&self) -> Value {
        let test = |o: &Outcome| {
            json!({
                "test": o.test.name(),
                "n_prompt": o.test.n_prompt,
                "n_gen": o.test.n_gen,
                "n_depth": o.test.depth,
                "n_sequences": o.test.sequences,
                "avg_ts": o.mean(),
                "stddev_ts": o.deviation(),
                "samples_ts": o.rates,
                "eff_gbps": o.gb_per_s(),
                "pct_peak": o.gb_per_s().map(|gb| gb / self.peak_gb_per_s * 100.0),
                "ttft_ms": o.first_ms(),
                "tpot_p50_ms": percentile(&o.between, 0.5),
                "tpot_p99_ms": percentile(&o.between, 0.99),
            })
        };
        json!({
            "command": format!("bitnet {}", self.command),
            "build_commit": env!("BITNET_COMMIT"),
            "model": self.model,
            "model_size": self.weight_bytes,
            "model_n_params": self.parameters,
            "backends": self.backend,
            "memory_bytes": self.memory_bytes,
            "load_s": self.load.as_secs_f64(),
            "plain_read_gbps": self.peak_gb_per_s,
            "tests": self.outcomes.iter().map(test).collect::<Vec<_>>(),
        })
    }

    fn csv(&self) -> String {
        let mut out = String::from(
            "model,backend,test,avg_ts,stddev_ts,eff_gbps,pct_peak,ttft_ms,tpot_p50_ms,tpot_p99_ms\n",
        );
        for o in &self.outcomes {
            let gb = o.gb_per_s();
            let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.3}"));
            out += &format!(
                "{:?},{:?},{},{:.3},{:.3},{},{},{:.3},{:.4},{:.4}\n",
                self.model,
                self.backend,
                o.test.name(),
                o.mean(),
                o.deviation(),
                number(gb),
                number(gb.map(|gb| gb / self.peak_gb_per_s * 100.0)),
                o.first_ms(),
                percentile(&o.between, 0.5),
                percentile(&o.between, 0.99),
            );
        }
        out
    }
}
