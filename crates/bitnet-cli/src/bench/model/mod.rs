//! `bitnet bench model`: prompts and decoding of a whole model, in the columns of llama-bench.

mod measure;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bitnet_model::{Checkpoint, Config, KvType, LoadOptions, Spec, WeightForm, WeightSource};

pub(super) use measure::{Test, measure};
use report::{Report, Run};

use super::limits;
use super::report::Format;
use crate::args::{DeviceArgs, MAX_SEQUENCES, ModelArgs, count, one_of};
use crate::failure::usage;

/// Time a model: prompts (pp), decoded tokens (tg), at a depth of context, several sequences at once
///
/// Tests are named as llama-bench names them: pp512, tg128, tg128 @ d1024. Token ids are drawn by a fixed seed. Decoding
/// takes the most likely token each time. With --weights bf16 the same model runs with bfloat16 weights as well, as the baseline
/// of the speedup.
#[derive(Debug, clap::Args)]
#[command(mut_arg("batch_size", |arg| arg.short(None)))]
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
        default_value = "512",
        value_parser = count(0, MAX_TOKENS)
    )]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to decode, separated by commas; 0 for none
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "128", value_parser = count(0, MAX_TOKENS))]
    n_gen: Vec<usize>,
    /// Tokens of context before the timed ones, separated by commas
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "0", value_parser = count(0, MAX_TOKENS))]
    depth: Vec<usize>,
    /// Sequences decoded side by side, separated by commas
    #[arg(
        short,
        long,
        visible_aliases = ["sequences", "parallel"],
        value_name = "N",
        value_delimiter = ',',
        default_value = "1",
        value_parser = count(1, MAX_SEQUENCES)
    )]
    batch: Vec<usize>,
    /// ternary, or bf16: time the same model with bf16 weights too, as the baseline (GPU only, eight times the memory)
    #[arg(long, value_name = "FORM", default_value = "ternary", value_parser = one_of(&WEIGHTS))]
    weights: WeightForm,
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = count(1, 1_000_000))]
    repetitions: usize,
    /// What to print
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
    /// Also write the results to this file, in the format of its ending (.md, .json or .csv); can be repeated
    #[arg(long, value_name = "FILE")]
    save: Vec<PathBuf>,
}

/// Most tokens of a test; no context is longer.
const MAX_TOKENS: usize = 1 << 24;

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tests = tests(args);
    if tests.is_empty() {
        return Err(usage(
            "no test is left: -p and -n are both 0",
            "-p gives lengths of prompts, -n numbers of tokens to decode",
        ));
    }
    args.model.introduce();
    let saves = super::formats(&args.save)?;
    let files = args.model.files()?;
    crate::model::require(&files)?;
    let source = args.device.options(None, KvType::Bf16).source;
    let checkpoint = Checkpoint::open_with(&files, source)?;
    let config = checkpoint.config().clone();
    let context = tests
        .iter()
        .map(|t| t.depth + t.n_prompt + t.n_gen + 1)
        .max()
        .unwrap_or(1);
    let mut options = args.device.options(Some(context), KvType::Bf16);
    options.n_seqs = tests.iter().map(|t| t.sequences).max().unwrap_or(1);
    options.max_batch = options.max_batch.max(options.n_seqs);
    let mut limits = limits(&options)?;
    let forms = match args.weights {
        WeightForm::Ternary => vec![WeightForm::Ternary],
        WeightForm::Bf16 => vec![WeightForm::Bf16, WeightForm::Ternary],
    };
    let mut runs = Vec::new();
    for weights in forms {
        let options = LoadOptions {
            weights,
            ..options.clone()
        };
        let loading = Instant::now();
        let mut backend = crate::model::open(&checkpoint, &options)?;
        let load = loading.elapsed();
        let bytes = weight_bytes(backend.spec(), weights);
        limits.look_again(&options, bytes)?;
        let mut outcomes = Vec::new();
        for &test in &tests {
            let step_bytes = if test.n_gen > 0 {
                bytes + cache_bytes(&config, (test.depth + test.n_gen / 2) * test.sequences)
            } else {
                0
            };
            let mut outcome = measure(backend.as_mut(), test, args.repetitions, step_bytes)?;
            let left_out = 1.0 - outcome.zeros.map_or(1.0, |zeros| zeros.read);
            outcome.step_bytes -= (left_out * (config.linear_weights() / 4) as f64) as u64;
            outcomes.push(outcome);
        }
        limits.look_again(&options, bytes)?;
        runs.push(Run {
            weights,
            backend: backend.spec().name.clone(),
            memory_bytes: backend.spec().memory_bytes,
            weight_bytes: bytes,
            load,
            outcomes,
        });
    }
    let report = Report {
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        model: args.model.title(|| {
            let name = files.root().file_name();
            name.map_or_else(|| files.to_string(), |n| n.to_string_lossy().into_owned())
        }),
        parameters: parameters(&config),
        linear_weights: config.linear_weights(),
        limits,
        runs,
    };
    let text = |format| match format {
        Format::Md => report.markdown(),
        Format::Json => format!("{:#}\n", report.json()),
        Format::Csv => report.csv(),
    };
    super::publish(&text, args.output, &saves)?;
    Ok(ExitCode::SUCCESS)
}

/// Prompts, then decoding, at every depth.
fn tests(args: &Args) -> Vec<Test> {
    let mut tests = Vec::new();
    for &depth in &args.depth {
        let prompts = args.n_prompt.iter().filter(|&&n| n > 0);
        tests.extend(prompts.map(|&n_prompt| Test {
            n_prompt,
            n_gen: 0,
            depth,
            sequences: 1,
        }));
        for &sequences in &args.batch {
            let decoded = args.n_gen.iter().filter(|&&n| n > 0);
            tests.extend(decoded.map(|&n_gen| Test {
                n_prompt: 0,
                n_gen,
                depth,
                sequences,
            }));
        }
    }
    tests
}

const WEIGHTS: [(&str, WeightForm); 2] = [("ternary", WeightForm::Ternary), ("bf16", WeightForm::Bf16)];

/// Weights of all layers and of embedding and output head, in elements.
fn parameters(c: &Config) -> u64 {
    let heads = if c.tied_head { 1 } else { 2 };
    c.linear_weights() + (heads * c.vocab * c.d_model) as u64
}

/// Bytes of weights that a decode step reads: of the linear layers, and of the output head.
fn weight_bytes(spec: &Spec, weights: WeightForm) -> u64 {
    let linear = match weights {
        WeightForm::Ternary => spec.config.linear_weights() / 4,
        WeightForm::Bf16 => spec.config.linear_weights() * 2,
    };
    linear + spec.head_bytes
}

/// Bytes of keys and values of this many tokens of context.
fn cache_bytes(c: &Config, tokens: usize) -> u64 {
    (c.n_layers * 2 * c.d_kv() * 2 * tokens) as u64
}
