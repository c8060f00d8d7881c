//! `bitnet batch`: answer a file of requests.

mod ask;

mod answer;
mod output;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use bitnet_model::schedule::{Event, Id, ScheduleOptions};
use bitnet_model::{ChatTemplate, GenerateOptions, Model, Scheduler};
use serde_json::Value;

use crate::args::{self, CacheArgs, DeviceArgs, ModelArgs, SamplingArgs};
use crate::failure::hinted;
use crate::interrupt::{self, Guard};
use crate::model;
use crate::progress::Bar;
use crate::terminal::{Terminal, say};
use answer::Answer;
use ask::{Ask, Refusal};
use output::Answers;

/// Answer a file of requests
///
/// Each line of the input is one: OpenAI's batch format (custom_id, method, url, body) for /v1/chat/completions and
/// /v1/completions, or {"prompt": "..."} or {"messages": [...]} alone. Each line of the output answers one, in the order in
/// which they end; custom_id, or else line-N, says which. What a request leaves open is taken from the flags. Answers are
/// kept in OUTPUT.part until all are there: after an interruption the same command goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// File of requests, one a line
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// File to write the answers to, one a line
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Most tokens of an answer that asks for no number; -1 goes on until the model stops or the context is full
    #[arg(
        short,
        long,
        visible_alias = "max-tokens",
        value_name = "N",
        default_value = "-1",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..)
    )]
    n_predict: i64,
    /// Answers to compute at a time
    #[arg(
        long,
        visible_alias = "max-num-seqs",
        value_name = "N",
        default_value = "16",
        value_parser = args::at_least_one,
        help_heading = "Device"
    )]
    parallel: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Print no statistics
    #[arg(long, short)]
    quiet: bool,
}

/// A line of the input.
struct Line {
    number: usize,
    custom_id: String,
    /// What stands there, or what is wrong with it.
    request: Result<Value, Refusal>,
}

/// Runs `bitnet batch`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(&args.input).with_context(|| args.input.display().to_string())?;
    let lines = lines(&text);
    let mut seen = HashMap::new();
    for line in &lines {
        if let Some(before) = seen.insert(&line.custom_id, line.number) {
            return Err(hinted(
                format!(
                    "{}: lines {before} and {} have the custom_id {:?}",
                    args.input.display(),
                    line.number,
                    line.custom_id
                ),
                "give each request a custom_id of its own: it is how its answer is found",
            ));
        }
    }
    let terminal = Terminal::detect(false);
    interrupt::install()?;
    let (mut answers, done) = Answers::open(&args.output)?;
    let todo: Vec<&Line> = lines
        .iter()
        .filter(|line| !done.contains(&line.custom_id))
        .collect();
    let n_before = lines.len() - todo.len();
    if todo.is_empty() {
        answers.complete()?;
        if !args.quiet {
            say!("{}: all {} answers are there", args.output.display(), lines.len());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = args.device.options(args.cache.ctx_size, args.cache.kv_type);
    options.n_seqs = args.parallel;
    options.kv_memory = args.cache.kv_memory.unwrap_or_default();
    let loaded = model::load(&args.model.files()?, options, terminal)?;
    let mut batch = Batch::new(args, loaded);
    let bar = terminal.draws().then(|| Bar::requests("answers"));
    let progress = |n: usize| {
        if let Some(bar) = &bar {
            bar.set((n_before + n) as u64, lines.len() as u64);
        }
    };
    if let Some(bar) = &bar {
        bar.resume(n_before as u64, lines.len() as u64);
    }
    let begun = Instant::now();
    let guard = Guard::working();
    let all_done = batch.answer(&todo, &mut answers, &guard, progress)?;
    drop(bar);
    let stats = batch.scheduler.stats();
    if !args.quiet {
        let seconds = begun.elapsed().as_secs_f64();
        say!(
            "{} answers, {} of them errors | {} prompt tokens (+{} found in the cache), {} tokens of answers in {seconds:.1} s, \
             {:.1} tokens/s | {}",
            batch.n_answers,
            batch.n_errors,
            stats.prompt_tokens,
            stats.cached_tokens,
            stats.tokens,
            (stats.prompt_tokens + stats.tokens) as f64 / seconds.max(1e-9),
            batch.scheduler.backend().spec().name
        );
    }
    if all_done {
        answers.complete()?;
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{} of {} answers are in {}; the same command goes on",
        n_before + batch.n_answers,
        lines.len(),
        answers.path().display()
    );
    Ok(interrupt::status())
}

/// The requests of a file; empty lines are none.
fn lines(text: &str) -> Vec<Line> {
    let lines = (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let parsed: Result<Value, _> = serde_json::from_str(line);
            let custom_id = parsed
                .as_ref()
                .ok()
                .and_then(|value| value.get("custom_id")?.as_str());
            Line {
                number,
                custom_id: custom_id.map_or_else(|| format!("line-{number}"), str::to_owned),
                request: parsed.map_err(|e| Refusal::not_json(&e)),
            }
        })
        .collect()
}

/// What is under way.
struct Batch {
    scheduler: Scheduler<'static>,
    chat: Option<ChatTemplate>,
    defaults: GenerateOptions,
    model: String,
    parallel: usize,
    running: HashMap<Id, Answer>,
    n_answers: usize,
    n_errors: usize,
}

impl Batch {
    fn new(args: &Args, model: Model) -> Self {
        let defaults = GenerateOptions {
            sampling: args.sampling.apply(model.generate_options().sampling),
            max_tokens: usize::try_from(args.n_predict).ok(),
            ..model.generate_options()
        };
        let options = ScheduleOptions {
            // Nobody waits for a token: prompts are computed in as large pieces as a step takes.
            chunk: Some(usize::MAX),
            ..ScheduleOptions::default()
        };
        let name = model.files().to_string();
        let (scheduler, chat) = model.into_parts(options);
        Self {
            scheduler,
            chat,
            defaults,
            model: name,
            parallel: args.parallel,
            running: HashMap::new(),
            n_answers: 0,
            n_errors: 0,
        }
    }

    /// Answers `todo`; false where a signal ended it before.
    fn answer(
        &mut self,
        todo: &[&Line],
        answers: &mut Answers,
        guard: &Guard,
        progress: impl Fn(usize),
    ) -> anyhow::Result<bool> {
        let mut todo = todo.iter();
        loop {
            // Enough wait that whoever ends is followed at once.
            while self.running.len() < 2 * self.parallel {
                let Some(line) = todo.next() else { break };
                if let Err(refusal) = self.submit(line) {
                    self.n_answers += 1;
                    self.n_errors += 1;
                    answers.write(&answer::refused(line.number, &line.custom_id, &refusal))?;
                }
            }
            progress(self.n_answers);
            if self.scheduler.is_idle() {
                return Ok(true);
            }
            if guard.flow().is_break() {
                return Ok(false);
            }
            for (id, event) in self.scheduler.step() {
                self.take(id, event, answers)?;
            }
        }
    }

    fn submit(&mut self, line: &Line) -> Result<(), Refusal> {
        let value = line.request.as_ref().map_err(Clone::clone)?;
        let mut defaults = self.defaults.clone();
        // The same prompt twice is two answers.
        defaults.sampling = defaults.sampling.of_choice(line.number);
        let tokenizer = self.scheduler.tokenizer();
        let ask = Ask::read(value, &defaults, tokenizer, self.chat.as_ref())?;
        let answer = Answer::new(line.number, &line.custom_id, &self.model, &ask);
        let id = self.scheduler.submit(ask.request).map_err(|e| Refusal::of(&e))?;
        self.running.insert(id, answer);
        Ok(())
    }

    fn take(&mut self, id: Id, event: Event, answers: &mut Answers) -> anyhow::Result<()> {
        let Some(answer) = self.running.get_mut(&id) else {
            return Ok(());
        };
        if !answer.take(event, self.scheduler.tokenizer()) {
            return Ok(());
        }
        if let Some(answer) = self.running.remove(&id) {
            self.n_answers += 1;
            self.n_errors += usize::from(answer.is_error());
            answers.write(&answer.line())?;
        }
        Ok(())
    }
}
