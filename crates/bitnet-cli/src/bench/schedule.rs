//! `bitnet bench schedule`: many requests that arrive at random, beside the same requests one after the other and beside what a
//! plain batch reaches.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bitnet_layout::random::Random;
use bitnet_model::schedule::{Event, Request, ScheduleOptions, Scheduler};
use bitnet_model::{Checkpoint, GenerateOptions, KvType, Sampling, WeightSource};
use serde_json::json;

use super::model::{Test, measure};
use super::report::Format;
use crate::args::{DeviceArgs, MAX_SEQUENCES, ModelArgs, count};

/// Time many requests that arrive at random and share the beginning of their prompts
///
/// Prompts are a shared prefix and 32 to 1,024 tokens of their own, answers 16 to 256 tokens, all drawn by a seed. The same requests
/// also run one after the other. The plain batch is what the model reaches without a scheduler: all prompts in full steps, then
/// all answers with every sequence decoding all the time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Requests
    #[arg(long, value_name = "N", default_value = "64", value_parser = count(1, MAX_SEQUENCES))]
    requests: usize,
    /// Tokens that all prompts begin with
    #[arg(long, value_name = "N", default_value = "512", value_parser = count(0, MAX_PREFIX))]
    prefix: usize,
    /// Seconds over which the requests arrive
    #[arg(long, value_name = "SECONDS", default_value = "0.25", allow_negative_numbers = true, value_parser = arrivals)]
    arrivals: f64,
    /// Seed of lengths and arrivals
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// What to print
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
    /// Also write the results to this file, in the format of its ending (.md, .json or .csv); can be repeated
    #[arg(long, value_name = "FILE")]
    save: Vec<PathBuf>,
}

/// Most tokens of the prefix; no context is longer.
const MAX_PREFIX: usize = 1 << 24;

fn arrivals(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds| (0.0..=3600.0).contains(seconds))
        .ok_or_else(|| "expected seconds from 0 to 3600, such as 0.25".to_owned())
}

/// Tokens of a prompt's own, and of an answer.
const OWN: (usize, usize) = (32, 1024);
const ANSWER: (usize, usize) = (16, 256);

/// A request before it is made.
struct Planned {
    /// Seconds after the start.
    arrives: f64,
    prompt: Vec<u32>,
    answer: usize,
}

/// The requests, in the order in which they arrive.
fn plan(args: &Args, vocab: usize) -> Vec<Planned> {
    let mut random = Random::new(args.seed);
    let mut between = |(least, most): (usize, usize)| least + random.word() as usize % (most - least + 1);
    let mut id = 0usize;
    let mut ids = |n: usize| -> Vec<u32> {
        let next = |_| {
            id += 1;
            (id * 7919 % vocab) as u32
        };
        (0..n).map(next).collect()
    };
    let prefix = ids(args.prefix);
    let mut planned: Vec<Planned> = (0..args.requests)
        .map(|_| Planned {
            arrives: args.arrivals * between((0, 1 << 20)) as f64 / f64::from(1 << 20),
            prompt: [&prefix[..], &ids(between(OWN))].concat(),
            answer: between(ANSWER),
        })
        .collect();
    planned.sort_by(|a, b| a.arrives.total_cmp(&b.arrives));
    planned
}

/// What a run took and computed.
#[derive(Clone, Copy, Debug)]
struct Run {
    time: Duration,
    /// Time from the arrival to the first token, the median and the longest.
    first: [Duration; 2],
    prompt_tokens: u64,
    cached_tokens: u64,
    tokens: u64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64()
    }
}

/// Runs the requests as they arrive, or each when the one before is over. `salt` keeps a run from finding another's prompts.
fn serve(
    scheduler: &mut Scheduler<'_>,
    planned: &[Planned],
    in_turn: bool,
    salt: u64,
) -> anyhow::Result<Run> {
    let before = scheduler.stats();
    let start = Instant::now();
    let mut asked = Vec::new();
    let mut first = Vec::new();
    loop {
        while let Some(next) = planned.get(asked.len()) {
            let is_due = if in_turn {
                scheduler.is_idle()
            } else {
                start.elapsed().as_secs_f64() >= next.arrives
            };
            if !is_due {
                break;
            }
            let options = GenerateOptions {
                sampling: Sampling::greedy(),
                max_tokens: Some(next.answer),
                ignore_eos: true,
                ..GenerateOptions::default()
            };
            let mut request = Request::new(next.prompt.clone(), options);
            request.salt = salt;
            let arrived = if in_turn {
                start.elapsed()
            } else {
                Duration::from_secs_f64(next.arrives)
            };
            asked.push((scheduler.submit(request)?, arrived, false));
        }
        if scheduler.is_idle() {
            if asked.len() == planned.len() {
                break;
            }
            std::hint::spin_loop();
            continue;
        }
        for (id, event) in scheduler.step() {
            match event {
                Event::Token { .. } => {
                    let of = asked.iter_mut().find(|(asked, ..)| *asked == id);
                    if let Some((_, arrived, has_begun @ false)) = of {
                        *has_begun = true;
                        first.push(start.elapsed().saturating_sub(*arrived));
                    }
                }
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
    }
    let time = start.elapsed();
    let after = scheduler.stats();
    first.sort_unstable();
    let at = |i: usize| first.get(i).copied().unwrap_or_default();
    Ok(Run {
        time,
        first: [at(first.len() / 2), at(first.len().saturating_sub(1))],
        prompt_tokens: after.prompt_tokens - before.prompt_tokens,
        cached_tokens: after.cached_tokens - before.cached_tokens,
        tokens: after.tokens - before.tokens,
    })
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.model.introduce();
    let saves = super::formats(&args.save)?;
    let files = args.model.files()?;
    crate::model::require(&files)?;
    let checkpoint = Checkpoint::open(&files)?;
    let planned = plan(args, checkpoint.config().vocab);
    let longest = planned
        .iter()
        .map(|p| p.prompt.len() + p.answer)
        .max()
        .unwrap_or(1);
    // Room for the plain batch, whose answers are all computed at one depth.
    let mut options = args.device.options(Some(longest + 64), KvType::Bf16);
    options.n_seqs = args.requests;
    options.max_batch = options.max_batch.max(options.n_seqs);
    let mut backend = crate::model::open(&checkpoint, &options)?;

    let own: usize = planned.iter().map(|p| p.prompt.len() - args.prefix).sum();
    let prompt_tokens = args.prefix + own;
    let answers: usize = planned.iter().map(|p| p.answer).sum();
    let depth = prompt_tokens / args.requests + args.prefix + answers / args.requests / 2;
    let test = |n_prompt, n_gen, depth, sequences| Test {
        n_prompt,
        n_gen,
        depth,
        sequences,
    };
    let full = backend.spec().max_batch.min(longest);
    let prompts = measure(backend.as_mut(), test(full, 0, 0, 1), 3, 0)?.mean();
    let decoded = measure(
        backend.as_mut(),
        test(0, 32, depth.min(longest), args.requests),
        3,
        0,
    )?
    .mean();
    let plain = prompt_tokens as f64 / prompts + answers as f64 / decoded;

    let name = backend.spec().name.clone();
    let mut scheduler = Scheduler::new(backend, None, ScheduleOptions::default());
    // Once for recordings and caches, then what counts.
    serve(&mut scheduler, &planned, false, 1)?;
    let together = serve(&mut scheduler, &planned, false, 2)?;
    let in_turn = serve(&mut scheduler, &planned, true, 3)?;
    let report = Report {
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        backend: name,
        requests: args.requests,
        prompt_tokens,
        answers,
        prompts,
        decoded,
        plain: Duration::from_secs_f64(plain),
        together,
        in_turn,
    };
    super::publish(&|format| report.text(format), args.output, &saves)?;
    Ok(ExitCode::SUCCESS)
}

struct Report {
    command: String,
    backend: String,
    requests: usize,
    /// Prompt tokens to compute, the prefix once.
    prompt_tokens: usize,
    answers: usize,
    /// Tokens a second of the plain batch: of prompts, and of answers.
    prompts: f64,
    decoded: f64,
    plain: Duration,
    together: Run,
    in_turn: Run,
}

impl Report {
    /// How many times faster than one after the other, and which part of the plain batch's rate.
    fn ratios(&self) -> [f64; 2] {
        let of = |time: Duration| time.as_secs_f64() / self.together.time.as_secs_f64();
        [of(self.in_turn.time), of(self.plain)]
    }

    fn rows(&self) -> [(&'static str, f64, Option<Run>); 3] {
        let plain = self.answers as f64 / self.plain.as_secs_f64();
        [
            ("as they arrive", self.together.rate(), Some(self.together)),
            ("one after the other", self.in_turn.rate(), Some(self.in_turn)),
            ("plain batch", plain, None),
        ]
    }

    fn text(&self, format: Format) -> String {
        let [faster, of_plain] = self.ratios();
        let seconds = |of: Option<Run>| of.map_or(self.plain, |run| run.time).as_secs_f64();
        match format {
            Format::Md => {
                let mut out = format!(
                    "- command: bitnet {}\n- backend: {}\n- {} requests: {} prompt tokens, the prefix counted once, {} tokens of \
                     answers\n- plain batch: {:.0} prompt tokens/s, {:.0} tokens/s\n\n\
                     | run | seconds | tokens/s | prompt tokens computed | found | first token ms, median | longest |\n\
                     |---|---:|---:|---:|---:|---:|---:|\n",
                    self.command,
                    self.backend,
                    self.requests,
                    self.prompt_tokens,
                    self.answers,
                    self.prompts,
                    self.decoded,
                );
                for (name, rate, run) in self.rows() {
                    let rest = run.map_or(" | - | - | - | -".to_owned(), |run| {
                        let [median, longest] = run.first.map(|time| time.as_secs_f64() * 1e3);
                        format!(
                            " | {} | {} | {median:.1} | {longest:.1}",
                            run.prompt_tokens, run.cached_tokens
                        )
                    });
                    out += &format!("| {name} | {:.3} | {rate:.0}{rest} |\n", seconds(run));
                }
                out + &format!(
                    "\n{faster:.2} times as fast as one after the other, {:.0} % of the plain batch's rate\n",
                    100.0 * of_plain
                )
            }
            Format::Json => {
                let run = |(name, rate, run): (&str, f64, Option<Run>)| {
                    json!({
                        "run": name,
                        "seconds": seconds(run),
                        "tokens_per_s": rate,
                        "prompt_tokens": run.map(|run| run.prompt_tokens),
                        "cached_tokens": run.map(|run| run.cached_tokens),
                        "first_token_ms": run.map(|run| run.first.map(|time| time.as_secs_f64() * 1e3)),
                    })
                };
                let object = json!({
                    "command": format!("bitnet {}", self.command),
                    "backend": self.backend,
                    "requests": self.requests,
                    "prompt_tokens": self.prompt_tokens,
                    "answer_tokens": self.answers,
                    "plain_prompt_tokens_per_s": self.prompts,
                    "plain_tokens_per_s": self.decoded,
                    "times_one_after_the_other": faster,
                    "of_plain_batch": of_plain,
                    "runs": self.rows().map(run),
                });
                format!("{object:#}\n")
            }
            Format::Csv => {
                let mut out = "run,seconds,tokens_per_s\n".to_owned();
                for (name, rate, run) in self.rows() {
                    out += &format!("{name},{:.6},{rate:.2}\n", seconds(run));
                }
                out
            }
        }
    }
}
