//! `bitnet batch`: answer a file of requests.

mod answer;
mod output;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use bitnet_api::{Answers, ApiError, Served};
use bitnet_model::schedule::{Event, Id, ScheduleOptions};
use bitnet_model::{GenerateOptions, Model, Scheduler};
use serde_json::{Map, Value};

use crate::args::{self, CacheArgs, DeviceArgs, ModelArgs, SamplingArgs};
use crate::failure::{hinted, usage};
use crate::interrupt::{self, Guard};
use crate::model;
use crate::progress::Bar;
use crate::terminal::{Terminal, say};
use output::Output;

/// Answer a file of requests
///
/// Each line of the input is one: OpenAI's batch format (custom_id, method, url, body) for /v1/chat/completions and
/// /v1/completions, or {"prompt": "..."} or {"messages": [...]} alone. Each line of the output answers one, in the order in
/// which they end; custom_id, or else line-N, says which. Fields are those of the server, streams apart. What a request leaves open is taken from the flags. Answers are
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
    /// [default: the model's own max_new_tokens, else -1]
    #[arg(
        short,
        long,
        visible_alias = "max-tokens",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-2..)
    )]
    n_predict: Option<i64>,
    /// Answers to compute at a time
    #[arg(
        long,
        visible_alias = "max-num-seqs",
        value_name = "N",
        default_value = "16",
        value_parser = args::count(1, args::MAX_SEQUENCES),
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
    request: Result<Map<String, Value>, ApiError>,
}

/// Runs `bitnet batch`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for (flag, path) in [("--input", &args.input), ("--output", &args.output)] {
        if path.as_os_str() == "-" {
            return Err(usage(
                format!(
                    "{flag} -: a run that was interrupted goes on with the same files, and a pipe is none"
                ),
                "name a file; -i /dev/stdin reads what is piped in, and `cat FILE` shows the answers",
            ));
        }
    }
    let text = text(&args.input)?;
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
    let (mut output, done) = Output::open(&args.output)?;
    let todo: Vec<&Line> = lines
        .iter()
        .filter(|line| !done.contains(&line.custom_id))
        .collect();
    let n_before = lines.len() - todo.len();
    if todo.is_empty() {
        output.complete()?;
        if !args.quiet {
            say!("{}: all {} answers are there", args.output.display(), lines.len());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = args.device.options(args.cache.ctx_size, args.cache.kv_type);
    options.n_seqs = args.parallel;
    options.kv_memory = args.cache.kv_memory.unwrap_or_default();
    let loaded = model::load(&args.model.files()?, options, terminal)?;
    model::require_text(&loaded)?;
    let mut batch = Batch::new(args, loaded)?;
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
    let all_done = batch.answer(&todo, &mut output, &guard, progress)?;
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
        output.complete()?;
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{} of {} answers are in {}; the same command goes on",
        n_before + batch.n_answers,
        lines.len(),
        output.path().display()
    );
    Ok(interrupt::status())
}

/// The text of the input, without the mark that some editors put before it.
fn text(path: &Path) -> anyhow::Result<String> {
    let mut bytes = args::read_bytes(path)?;
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
        hinted(
            format!("{}: line {line} is not UTF-8", path.display()),
            "JSON is UTF-8: convert the file, as with `iconv -t UTF-8`",
        )
    })
}

/// The requests of a file; empty lines are none.
fn lines(text: &str) -> Vec<Line> {
    let lines = (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let request = answer::line(line);
            let custom_id = request
                .as_ref()
                .ok()
                .and_then(|line| line.get("custom_id")?.as_str());
            Line {
                number,
                custom_id: custom_id.map_or_else(|| format!("line-{number}"), str::to_owned),
                request,
            }
        })
        .collect()
}

/// A line that is being answered.
struct Running {
    custom_id: String,
    answers: Answers,
    /// Its requests, one a prompt.
    ids: Vec<Id>,
}

/// What is under way.
struct Batch {
    scheduler: Scheduler<'static>,
    served: Served,
    parallel: usize,
    /// By number of line.
    running: HashMap<usize, Running>,
    /// The line and the prompt of each request.
    requests: HashMap<Id, (usize, usize)>,
    n_answers: usize,
    n_errors: usize,
}

impl Batch {
    fn new(args: &Args, model: Model) -> anyhow::Result<Self> {
        let options = ScheduleOptions {
            // Nobody waits for a token: prompts are computed in as large pieces as a step takes.
            chunk: Some(usize::MAX),
            ..ScheduleOptions::default()
        };
        let mut served = Served::new(&model, vec![model.files().to_string()])?;
        served.max_n = 128;
        served.has_priorities = true;
        served.defaults = GenerateOptions {
            sampling: args.sampling.apply(model.generate_options().sampling),
            ..model.generate_options()
        };
        if let Some(n) = args.n_predict {
            served.defaults.max_tokens = usize::try_from(n).ok();
        }
        Ok(Self {
            scheduler: model.into_scheduler(options),
            served,
            parallel: args.parallel,
            running: HashMap::new(),
            requests: HashMap::new(),
            n_answers: 0,
            n_errors: 0,
        })
    }

    /// Answers `todo`; false where a signal ended it before.
    fn answer(
        &mut self,
        todo: &[&Line],
        output: &mut Output,
        guard: &Guard,
        progress: impl Fn(usize),
    ) -> anyhow::Result<bool> {
        let mut todo = todo.iter();
        loop {
            // Enough wait that whoever ends is followed at once.
            while self.requests.len() < 2 * self.parallel {
                let Some(line) = todo.next() else { break };
                if let Err(error) = self.submit(line) {
                    self.n_answers += 1;
                    self.n_errors += 1;
                    output.write(&answer::written(line.number, &line.custom_id, Err(&error)))?;
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
                self.take(id, event, output)?;
            }
        }
    }

    fn submit(&mut self, line: &Line) -> Result<(), ApiError> {
        let fields = line.request.as_ref().map_err(Clone::clone)?;
        let mut job = answer::read(fields, &mut self.served)?;
        // The same prompt twice is two answers.
        let seed = self.served.defaults.sampling.of_choice(line.number).seed;
        let answers = Answers::new(&self.served, &job, &line.number.to_string());
        for request in &mut job.requests {
            if !job.is_seeded {
                request.options.sampling.seed = seed;
            }
            self.scheduler
                .check_request(request)
                .map_err(|e| ApiError::from(&e))?;
        }
        let mut ids = Vec::with_capacity(job.requests.len());
        for (prompt, request) in job.requests.into_iter().enumerate() {
            match self.scheduler.submit(request) {
                Ok(id) => {
                    ids.push(id);
                    self.requests.insert(id, (line.number, prompt));
                }
                Err(error) => {
                    self.cancel(&ids);
                    return Err(ApiError::from(&error));
                }
            }
        }
        let custom_id = line.custom_id.clone();
        let running = Running {
            custom_id,
            answers,
            ids,
        };
        self.running.insert(line.number, running);
        Ok(())
    }

    /// Ends requests whose answers nobody wants any more.
    fn cancel(&mut self, ids: &[Id]) {
        for &id in ids {
            self.scheduler.cancel(id);
            self.requests.remove(&id);
        }
    }

    fn take(&mut self, id: Id, event: Event, output: &mut Output) -> anyhow::Result<()> {
        let Some(&(number, prompt)) = self.requests.get(&id) else {
            return Ok(());
        };
        let Some(running) = self.running.get_mut(&number) else {
            return Ok(());
        };
        running.answers.take(prompt, event);
        if !running.answers.is_over() {
            return Ok(());
        }
        if let Some(running) = self.running.remove(&number) {
            self.cancel(&running.ids);
            let answer = running.answers.whole();
            self.n_answers += 1;
            self.n_errors += usize::from(answer.is_err());
            let line = answer::written(number, &running.custom_id, answer.as_deref());
            output.write(&line)?;
        }
        Ok(())
    }
}
