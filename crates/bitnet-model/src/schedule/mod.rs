//! Many requests on one back end: who is computed when, and what each is told.
//!
//! A request waits until there is room, then its prompt is computed in chunks beside the tokens of others, then its answers are
//! decoded with all other answers in one step. It gets the tokens that it would get alone, to the bit. `docs/scheduling.md` tells
//! how a request travels.

mod request;
mod speculate;
mod stats;

mod sequence;

mod device;

mod choose;

mod step;

use std::time::Instant;

pub(crate) use request::Bounds;
pub use request::{EndedBy, Event, FinishReason, GenerateOptions, Id, Mask, Request, Timings};
use sequence::Sequence;
use speculate::Pace;
pub use stats::{Stats, StepKind, StepReport};

use crate::error::{Error, Result};
use crate::pages::{Pages, Seq};
use crate::tokenizer::Tokenizer;
use crate::transformer::Backend;

/// When guesses are computed, see [`GenerateOptions::draft_max`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafts {
    /// Where the time that steps took says that they pay.
    #[default]
    Paying,
    /// Wherever there is one, for tests.
    All,
}

/// How a scheduler shares a back end. None of it changes a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleOptions {
    /// Most tokens of a step, at most [`crate::Spec::max_batch`].
    pub budget: usize,
    /// Most prompt tokens of a step while others decode: what a long prompt delays their next token by. `None` is 64 on a processor
    /// and 1,024 on a device that decodes by itself.
    pub chunk: Option<usize>,
    /// Most sequences that are computed at a time, at most [`crate::Spec::max_seqs`]; others wait.
    pub max_running: usize,
    /// How many later requests of a better priority go before one that waits.
    pub max_overtaken: usize,
    /// When guesses are computed.
    pub drafts: Drafts,
    /// Keeps all of what was computed last, not its whole pages alone, while nobody needs the memory: for a conversation, whose next
    /// turn begins with it.
    pub keeps_last: bool,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self {
            budget: usize::MAX,
            chunk: None,
            max_running: usize::MAX,
            max_overtaken: 64,
            drafts: Drafts::Paying,
            keeps_last: false,
        }
    }
}

/// Shares a back end among requests.
///
/// One thread owns it. [`Scheduler::submit`] and [`Scheduler::cancel`] return at once; [`Scheduler::step`] computes.
///
/// ```
/// use bitnet_model::schedule::{Event, Request, Scheduler};
/// use bitnet_model::{Device, Model};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let model = Model::load(folder, Device::Cpu)?;
/// let options = model.generate_options();
/// let mut scheduler = model.into_scheduler(Default::default());
/// let prompts = ["User:1 + 1<|eot_id|>Assistant:", "User:20 + 3<|eot_id|>Assistant:"];
/// let mut ids = Vec::new();
/// for prompt in prompts {
///     let prompt = scheduler.tokenizer().unwrap().encode_prompt(prompt)?;
///     ids.push(scheduler.submit(Request::new(prompt, options.clone()))?);
/// }
/// let mut answers = [String::new(), String::new()];
/// while !scheduler.is_idle() {
///     for (id, event) in scheduler.step() {
///         if let Event::Token { text, .. } | Event::Finished { text, .. } = event {
///             answers[usize::from(id == ids[1])] += &text;
///         }
///     }
/// }
/// assert_eq!(answers, ["1 + 1 = 2", "20 + 3 = 23"]);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
pub struct Scheduler<'b> {
    backend: Box<dyn Backend + 'b>,
    tokenizer: Option<Tokenizer>,
    eos: Vec<u32>,
    options: ScheduleOptions,
    pages: Pages,
    /// By rank.
    waiting: Vec<Sequence>,
    /// By rank. Between steps each holds pages.
    running: Vec<Sequence>,
    /// What was computed last, and its salt: see [`ScheduleOptions::keeps_last`].
    last: Option<(Seq, u64)>,
    events: Vec<(Id, Event)>,
    next_id: u64,
    /// Whether the last step had no place for prompts.
    prompts_passed_over: bool,
    pace: Pace,
    device: device::State,
    stats: Stats,
    /// What the last step computed.
    report: StepReport,
}

impl<'b> Scheduler<'b> {
    /// A scheduler that has `backend` for itself. Without a tokenizer it gives token ids alone. Answers end at the model's
    /// end-of-sequence tokens and at the tokenizer's ([`Tokenizer::end_ids`]).
    #[must_use]
    pub fn new(
        mut backend: Box<dyn Backend + 'b>,
        tokenizer: Option<&Tokenizer>,
        options: ScheduleOptions,
    ) -> Self {
        let device = device::State::new(backend.decoder());
        let mut eos = backend.spec().config.eos.clone();
        for &id in tokenizer.map_or(&[][..], Tokenizer::end_ids) {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        Self {
            pages: Pages::new(backend.spec()),
            backend,
            tokenizer: tokenizer.cloned(),
            eos,
            options,
            waiting: Vec::new(),
            running: Vec::new(),
            last: None,
            events: Vec::new(),
            next_id: 0,
            prompts_passed_over: false,
            pace: Pace::default(),
            device,
            stats: Stats::default(),
            report: StepReport::default(),
        }
    }

    /// What it computes with.
    #[must_use]
    pub fn backend(&self) -> &(dyn Backend + 'b) {
        self.backend.as_ref()
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Most tokens of a prompt and its answer together.
    #[must_use]
    pub fn context(&self) -> usize {
        let spec = self.backend.spec();
        spec.context.min(spec.n_pages.saturating_mul(spec.page))
    }

    /// Whether nothing is left to do or to tell.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.events.is_empty()
    }

    /// Its counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            waiting: self.waiting.len(),
            running: self.running.len(),
            pages: self.pages.n_pages(),
            pages_held: self.pages.n_held(),
            pages_idle: self.pages.n_idle(),
            ..self.stats
        }
    }

    /// What the last step computed; `None` where it computed nothing.
    #[must_use]
    pub fn last_step(&self) -> Option<StepReport> {
        (self.report.batch > 0).then_some(self.report)
    }

    /// Whether every page is free, held or findable, and held by as many as it counts; for tests.
    ///
    /// # Errors
    /// Names the first page that is not.
    pub fn check(&self) -> Result<(), String> {
        self.pages.check()
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// When the prompt is empty, has a token that is not in the vocabulary, or with one more token can never fit
    /// ([`Error::ContextFull`]); when an option is out of range, or stop strings are given and there is no tokenizer.
    pub fn submit(&mut self, request: Request) -> Result<Id> {
        self.check_request(&request)?;
        let id = Id(self.next_id);
        let sequence = Sequence::new(
            id,
            request,
            self.context(),
            &self.eos,
            self.tokenizer.as_ref(),
            Instant::now(),
        )?;
        self.next_id += 1;
        self.wait(sequence);
        Ok(id)
    }

    /// Refuses what can never be computed.
    ///
    /// # Errors
    /// As for [`Scheduler::submit`].
    pub fn check_request(&self, request: &Request) -> Result<()> {
        self.bounds().check(request)
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            context: self.context(),
            vocab: self.backend.spec().config.vocab,
            has_tokenizer: self.tokenizer.is_some(),
        }
    }

    /// Ends a request: each of its answers that has not finished does so as [`FinishReason::Cancelled`], which the next step tells.
    /// Does nothing where the request is over.
    pub fn cancel(&mut self, id: Id) {
        for i in 0..self.running.len() {
            if self.running[i].id == id {
                self.finish(i, FinishReason::Cancelled);
            }
        }
        for mut sequence in self.waiting.extract_if(.., |sequence| sequence.id == id) {
            match sequence.finish(FinishReason::Cancelled, &mut self.events) {
                Ok(()) => {}
                Err(error) => self.events.push((id, Event::Failed(error))),
            }
        }
        self.sweep();
    }

    /// Holds the answers of a request, where they are, or lets them go on: for a reader that is slower than the model.
    /// Meanwhile its pages are the first to be given to others.
    pub fn pause(&mut self, id: Id, is_paused: bool) {
        for i in 0..self.running.len() {
            if self.running[i].id == id {
                self.running[i].is_paused = is_paused;
                if is_paused {
                    self.leave_seat(i);
                }
            }
        }
        for sequence in self.waiting.iter_mut().filter(|sequence| sequence.id == id) {
            sequence.is_paused = is_paused;
        }
    }

    /// Whether a step would compute nothing, since all requests are paused.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.events.is_empty()
            && self
                .running
                .iter()
                .chain(&self.waiting)
                .all(|sequence| sequence.is_paused)
    }

    /// Computes for a while, at most [`ScheduleOptions::budget`] tokens or one token of each answer, and tells what happened since
    /// the last call. It never fails: what goes wrong is told to those whom it concerns.
    pub fn step(&mut self) -> Vec<(Id, Event)> {
        let begun = Instant::now();
        self.stats.steps += 1;
        self.report = StepReport::default();
        self.admit();
        self.compute();
        self.decode_on_device();
        self.sweep();
        self.report.time = begun.elapsed();
        std::mem::take(&mut self.events)
    }

    /// Puts a sequence that holds no pages into the queue, by its rank.
    fn wait(&mut self, sequence: Sequence) {
        let at = self
            .waiting
            .partition_point(|other| other.rank() < sequence.rank());
        self.waiting.insert(at, sequence);
    }

    fn run(&mut self, sequence: Sequence) {
        let at = self
            .running
            .partition_point(|other| other.rank() < sequence.rank());
        self.running.insert(at, sequence);
    }

    /// Lets those begin for whom there is room, in the order of the queue; nobody passes one that does not fit.
    fn admit(&mut self) {
        let most = self
            .options
            .max_running
            .clamp(1, self.backend.spec().max_seqs.max(1));
        let page = self.pages.page();
        let mut at = 0;
        // Whoever is held computes nothing: its place is another's meanwhile.
        let mut busy = self.running.iter().filter(|sequence| !sequence.is_paused).count();
        while busy < most && at < self.waiting.len() {
            let sequence = &self.waiting[at];
            if sequence.is_paused || self.will_share(sequence) {
                at += 1;
                continue;
            }
            let (pages, found) = self.open(at);
            let sequence = &self.waiting[at];
            let needed = (sequence.text.len() + 1).div_ceil(page) - found / page;
            // One page for each that runs, so that newcomers are not set back at once.
            if !self.running.is_empty() && self.pages.n_available() < needed + self.running.len() {
                self.pages.close(pages, false);
                if self.forget_last() || self.set_back_held() {
                    continue;
                }
                return;
            }
            let mut sequence = self.waiting.remove(at);
            sequence.pages = Some(pages);
            if !sequence.is_started {
                self.stats.queried_tokens += sequence.prompt as u64;
                self.stats.cached_tokens += found as u64;
            }
            sequence.start(found, Instant::now(), &mut self.events);
            for other in &mut self.waiting {
                if other.id < sequence.id {
                    other.overtaken += 1;
                    if other.overtaken >= self.options.max_overtaken {
                        other.priority = i32::MIN;
                    }
                }
            }
            self.waiting.sort_by_key(Sequence::rank);
            self.run(sequence);
            busy += 1;
        }
    }

    /// Gives back the pages of the last in rank that is held; false where nobody is.
    fn set_back_held(&mut self) -> bool {
        let holders = |sequence: &Sequence| sequence.is_paused && sequence.pages.is_some();
        let last = self.running.iter().rposition(holders);
        if let Some(i) = last {
            self.set_back(i);
        }
        last.is_some()
    }

    /// Pages for `waiting[at]`, and how much of its text is there: what was computed last, or whole pages of anybody.
    fn open(&mut self, at: usize) -> (Seq, usize) {
        let sequence = &self.waiting[at];
        let findable = sequence.findable();
        let (pages, found) = self.pages.open(findable, sequence.salt);
        let Some((last, salt)) = self.last.take() else {
            return (pages, found);
        };
        // The last token is always computed: somebody wants its logits.
        let text = &findable[..findable.len() - 1];
        let same = self
            .pages
            .ids(&last)
            .iter()
            .zip(text)
            .take_while(|(a, b)| a == b)
            .count();
        if salt != sequence.salt || same <= found {
            self.last = Some((last, salt));
            return (pages, found);
        }
        self.pages.close(pages, false);
        self.pages.rewind(&last, same);
        (last, same)
    }

    /// Gives back the pages of what was computed last; whole ones stay findable. False where there is nothing.
    fn forget_last(&mut self) -> bool {
        let Some((last, _)) = self.last.take() else {
            return false;
        };
        self.pages.close(last, true);
        true
    }

    /// Whether somebody is about to compute pages that a waiting sequence could share.
    fn will_share(&self, waiting: &Sequence) -> bool {
        let page = self.pages.page();
        let text = waiting.findable();
        let findable = (text.len() - 1) / page;
        self.running.iter().any(|other| {
            if other.salt != waiting.salt || other.is_paused || other.rest() <= 1 {
                return false;
            }
            let texts = text.chunks(page).zip(other.text.chunks(page));
            let shared = texts.take(findable).take_while(|(a, b)| a == b).count();
            other.computed < shared * page
        })
    }

    /// Gives the pages of `running[i]` to others; it goes back into the queue at the end of the step.
    fn set_back(&mut self, i: usize) {
        self.leave_seat(i);
        let sequence = &mut self.running[i];
        if let Some(pages) = sequence.pages.take() {
            self.pages.close(pages, true);
            sequence.computed = 0;
            self.stats.set_back += 1;
        }
    }

    /// Holds pages for `n` more tokens of `running[i]`. Where there are none, those of the last in rank are taken, paused ones
    /// first; false where that is `i` itself.
    fn hold(&mut self, i: usize, n: usize) -> Result<bool> {
        loop {
            let Some(pages) = &self.running[i].pages else {
                return Ok(false);
            };
            match self.pages.reserve(pages, n) {
                Ok(_) => return Ok(true),
                Err(Error::OutOfPages { .. }) => {}
                Err(error) => return Err(error),
            }
            if self.forget_last() {
                continue;
            }
            let holders = self.running.iter().enumerate().filter(|(_, s)| s.pages.is_some());
            let last = holders
                .max_by_key(|(_, s)| (s.is_paused, s.rank()))
                .map(|(last, _)| last);
            let is_alone = self.running.iter().filter(|s| s.pages.is_some()).count() == 1;
            match last {
                // Alone it has the whole cache, which is enough for it: `submit` saw to that.
                Some(last) if last != i || !is_alone => self.set_back(last),
                _ => {
                    return Err(Error::OutOfPages {
                        needed: n.div_ceil(self.pages.page()),
                        available: self.pages.n_available(),
                    });
                }
            }
        }
    }

    /// Ends `running[i]`.
    fn finish(&mut self, i: usize, reason: FinishReason) {
        self.leave_seat(i);
        let sequence = &mut self.running[i];
        if sequence.is_done {
            return;
        }
        sequence.is_done = true;
        let salt = sequence.salt;
        if let Some(pages) = sequence.pages.take() {
            if self.options.keeps_last {
                if let Some((before, _)) = self.last.replace((pages, salt)) {
                    self.pages.close(before, true);
                }
            } else {
                self.pages.close(pages, true);
            }
        }
        if let Err(error) = sequence.finish(reason, &mut self.events) {
            let id = sequence.id;
            self.fail(id, error);
        }
    }

    /// Ends a request with an error. What was computed for it is found by nobody if it was not numbers.
    fn fail(&mut self, id: Id, error: Error) {
        let is_damaged = matches!(error, Error::Damaged(_));
        self.stats.damaged += u64::from(is_damaged);
        for i in 0..self.running.len() {
            if self.running[i].id == id {
                self.leave_seat(i);
                self.running[i].is_done = true;
                match self.running[i].pages.take() {
                    Some(pages) if is_damaged => self.pages.discard(pages),
                    Some(pages) => self.pages.close(pages, true),
                    None => {}
                }
            }
        }
        self.waiting.retain(|sequence| sequence.id != id);
        self.events.push((id, Event::Failed(error)));
    }

    /// Ends the requests `ids`, whose step has failed, and empties the cache, since nobody knows what is in it now. The others go
    /// back into the queue and are computed again.
    fn fail_step(&mut self, mut ids: Vec<Id>, error: &Error) {
        self.stats.failures += 1;
        for i in 0..self.running.len() {
            self.leave_seat(i);
        }
        if !self.read_rest() {
            self.device.lose();
        }
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            self.fail(id, Error::Device(error.to_string()));
        }
        for sequence in self.running.iter_mut().filter(|s| !s.is_done) {
            if sequence.pages.take().is_some() {
                sequence.computed = 0;
                self.stats.set_back += 1;
            }
        }
        self.sweep();
        self.last = None;
        self.pages = Pages::new(self.backend.spec());
    }

    /// Drops those that are done, and puts those that were set back into the queue.
    fn sweep(&mut self) {
        let leaves = |sequence: &mut Sequence| sequence.is_done || sequence.pages.is_none();
        let gone: Vec<Sequence> = self.running.extract_if(.., leaves).collect();
        for sequence in gone {
            if !sequence.is_done {
                self.wait(sequence);
            }
        }
    }
}

impl Drop for Scheduler<'_> {
    /// Leaves the device as it was found: nobody on a seat, no step unread.
    fn drop(&mut self) {
        for i in 0..self.running.len() {
            self.leave_seat(i);
        }
        self.read_rest();
    }
}
