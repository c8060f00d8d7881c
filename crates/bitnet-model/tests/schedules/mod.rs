//! Random schedules of random requests: whatever else runs, however prompts are cut, whoever is set back or guessed for, every
//! request gets the tokens and log-probabilities that it gets alone, and no page is lost.
#![allow(dead_code, reason = "each test that includes this uses some of it")]

pub(crate) mod toy;

use std::collections::HashMap;

use bitnet_layout::draw::uniform;
use bitnet_model::schedule::{
    Drafts, Event, FinishReason, GenerateOptions, Id, Mask, Request, ScheduleOptions, Scheduler,
};
use bitnet_model::{Backend, Error, Logprob, Result, Sampling};

/// Pseudorandom numbers of a seed.
pub(crate) struct Rng {
    seed: u64,
    n: u64,
}

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, n: 0 }
    }

    /// From `low` to `high`, which is not one of them.
    pub(crate) fn range(&mut self, low: usize, high: usize) -> usize {
        self.n += 1;
        low + (uniform(self.seed, self.n) * (high - low) as f64) as usize
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.range(0, n) == 0
    }
}

/// Forbids a third of the tokens, others after each token, allows a single one now and then, and ends the answer after some.
#[derive(Clone)]
struct Thirds {
    taken: Vec<u32>,
    most: usize,
}

impl Thirds {
    /// The only token that may come next, where there is only one.
    fn only(&self) -> Option<u32> {
        (self.taken.len() % 5 >= 2).then(|| 6 + (self.taken.len() as u32 + self.taken[0]) % 7)
    }
}

impl Mask for Thirds {
    fn allowed(&mut self, bits: &mut [u32]) -> Result<()> {
        if let Some(id) = self.only() {
            bits[id as usize / 32] |= 1 << (id % 32);
            return Ok(());
        }
        let turn = self.taken.len() + self.taken.last().map_or(0, |&id| id as usize);
        for (word, bits) in bits.iter_mut().enumerate() {
            assert_eq!(*bits, 0, "a mask is asked with nothing allowed");
            for bit in 0..32 {
                if !(word * 32 + bit + turn).is_multiple_of(3) {
                    *bits |= 1 << bit;
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<bool> {
        self.taken.push(id);
        Ok(self.taken.len() >= self.most)
    }

    fn rollback(&mut self, n: usize) -> Result<()> {
        self.taken.truncate(self.taken.len() - n);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Mask> {
        Box::new(self.clone())
    }

    fn forced(&mut self) -> Vec<u32> {
        let mut ahead = self.clone();
        let mut forced = Vec::new();
        while let Some(id) = ahead.only() {
            forced.push(id);
            ahead.taken.push(id);
        }
        // A guess that is not always right.
        forced.extend(forced.last().copied());
        forced
    }
}

/// What a request asks, so that it can be asked several times.
#[derive(Clone, Debug)]
struct Asked {
    prompt: Vec<u32>,
    options: GenerateOptions,
    n: usize,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    priority: i32,
    salt: u64,
    mask: Option<usize>,
}

impl Asked {
    /// One of `vocab` tokens that begins as one of the `bases` does, for a context of `context` tokens.
    fn random(rng: &mut Rng, vocab: usize, bases: &[Vec<u32>], context: usize) -> Self {
        let base = &bases[rng.range(0, bases.len())];
        let mut prompt = base[..rng.range(0, base.len().min(context * 3 / 4))].to_vec();
        let own = rng.range(1, (context / 8).max(2));
        prompt.extend((0..own).map(|_| rng.range(0, vocab) as u32));
        if rng.once_in(12) {
            // Several of them begin as one did.
            prompt[0] = toy::POISON;
        }
        let mut sampling = Sampling {
            temperature: [0.0, 0.0, 0.7, 1.5][rng.range(0, 4)],
            seed: rng.range(0, 1000) as u64,
            ..Sampling::default()
        };
        if rng.once_in(3) {
            sampling.repeat_penalty = 1.2;
            sampling.presence_penalty = 0.3;
            sampling.frequency_penalty = 0.1;
            sampling.penalize_prompt = rng.once_in(2);
        }
        if rng.once_in(3) {
            sampling.top_k = 0;
            sampling.min_p = 0.0;
            sampling.top_p = [1.0, 0.8][rng.range(0, 2)];
        }
        if rng.once_in(4) {
            sampling.logit_bias = vec![(rng.range(0, vocab) as u32, 2.5), (1, f32::NEG_INFINITY)];
        }
        Self {
            prompt,
            options: GenerateOptions {
                sampling,
                max_tokens: Some(rng.range(0, context / 4)).filter(|_| !rng.once_in(12)),
                min_tokens: if rng.once_in(4) { 3 } else { 0 },
                stop_ids: if rng.once_in(3) { vec![2, 3] } else { Vec::new() },
                ignore_eos: rng.once_in(2),
                draft_max: [0, 1, 3, 8][rng.range(0, 4)],
                ..GenerateOptions::default()
            },
            n: if rng.once_in(5) { rng.range(2, 5) } else { 1 },
            logprobs: rng.once_in(2).then(|| rng.range(0, 4)),
            prompt_logprobs: rng.once_in(5).then(|| rng.range(0, 4)),
            priority: rng.range(0, 3) as i32,
            salt: u64::from(rng.once_in(8)),
            mask: rng.once_in(6).then(|| rng.range(1, 12)),
        }
    }

    fn request(&self) -> Request {
        Request {
            n: self.n,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            priority: self.priority,
            salt: self.salt,
            mask: self.mask.map(|most| -> Box<dyn Mask> {
                Box::new(Thirds {
                    taken: Vec::new(),
                    most,
                })
            }),
            ..Request::new(self.prompt.clone(), self.options.clone())
        }
    }
}

/// Bits of a token's log-probability, and the alternatives with theirs.
type Likely = (u32, Vec<(u32, u32)>);

/// The bits of log-probabilities.
fn bits(l: &Logprob) -> Likely {
    let top = l.top.iter().map(|&(id, logprob)| (id, logprob.to_bits()));
    (l.logprob.to_bits(), top.collect())
}

/// One answer: tokens with the bits of their log-probabilities and those of the alternatives, and why it ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// Of the tokens of the prompt after the first, where they were asked for.
    pub(crate) prompt: Vec<Likely>,
    pub(crate) tokens: Vec<(u32, Option<Likely>)>,
    pub(crate) reason: Option<FinishReason>,
    /// Whether the request failed for what the model computed.
    pub(crate) is_damaged: bool,
}

impl Answer {
    fn take(&mut self, event: Event) {
        match event {
            Event::Token { id, logprob, .. } => {
                assert_eq!(self.reason, None, "a token after the end");
                self.tokens.push((id, logprob.as_ref().map(bits)));
            }
            Event::PromptLogprobs { first, logprobs } => {
                assert_eq!(first, 1 + self.prompt.len(), "each token of the prompt once");
                self.prompt.extend(logprobs.iter().map(bits));
            }
            Event::Finished { reason, timings, .. } => {
                assert_eq!(timings.decode_tokens, self.tokens.len().saturating_sub(1));
                let before = timings.queued + timings.prefill;
                assert!(
                    self.tokens.is_empty() || before <= timings.first_token,
                    "{timings:?}"
                );
                assert_eq!(self.reason, None, "a second end");
                self.reason = Some(reason);
            }
            Event::Failed(Error::Damaged(_)) => self.is_damaged = true,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

fn choice_of(event: &Event) -> usize {
    match event {
        Event::Token { choice, .. } | Event::Finished { choice, .. } => *choice,
        _ => 0,
    }
}

/// The answers to a request that has the back end for itself.
fn alone(backend: &mut dyn Backend, asked: &Asked) -> Vec<Answer> {
    let mut scheduler = Scheduler::new(Box::new(backend), None, ScheduleOptions::default());
    let plain = Asked {
        options: GenerateOptions {
            draft_max: 0,
            ..asked.options.clone()
        },
        ..asked.clone()
    };
    scheduler.submit(plain.request()).unwrap();
    let mut answers = vec![Answer::default(); asked.n];
    let mut steps = 0;
    while !scheduler.is_idle() {
        steps += 1;
        assert!(steps < 10_000, "it does not end: {asked:?}");
        for (_, event) in scheduler.step() {
            answers[choice_of(&event)].take(event);
        }
    }
    assert_eq!(scheduler.stats().pages_held, 0);
    if !answers[0].is_damaged {
        let n_scored = asked.prompt_logprobs.map_or(0, |_| asked.prompt.len() - 1);
        assert_eq!(answers[0].prompt.len(), n_scored, "{asked:?}");
    }
    answers
}

/// What a schedule showed, so that a test can tell that it saw what it is there for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) set_back: u64,
    pub(crate) drafted: u64,
    pub(crate) accepted: u64,
    pub(crate) cached: u64,
    pub(crate) cancelled: usize,
    pub(crate) damaged: u64,
}

/// One random schedule of up to `most` requests, each compared with what it gets from `single`, a back end of the same model.
pub(crate) fn check(seed: u64, most: usize, single: &mut dyn Backend, shared: &mut dyn Backend) -> Seen {
    let mut rng = Rng::new(seed);
    let spec = shared.spec();
    let (vocab, max_batch, page) = (spec.config.vocab, spec.max_batch, spec.page);
    let context = spec.context.min(spec.page * spec.n_pages);
    let bases: Vec<Vec<u32>> = (0..3)
        .map(|_| (0..context).map(|_| rng.range(0, vocab) as u32).collect())
        .collect();
    let n = rng.range(1, most + 1);
    let all: Vec<Asked> = (0..n)
        .map(|_| Asked::random(&mut rng, vocab, &bases, context))
        .collect();
    let options = ScheduleOptions {
        budget: if rng.once_in(3) {
            usize::MAX
        } else {
            rng.range(1, max_batch + 1)
        },
        chunk: Some(rng.range(1, max_batch + 1)),
        max_running: rng.range(1, 65),
        max_overtaken: rng.range(1, 8),
        drafts: Drafts::All,
        keeps_last: rng.once_in(2),
    };
    let keeps_last = options.keeps_last;
    let context_text = format!("seed {seed}: {options:?}");
    let expected: Vec<Vec<Answer>> = all.iter().map(|asked| alone(single, asked)).collect();

    let mut scheduler = Scheduler::new(Box::new(shared), None, options);
    let mut answers: Vec<Vec<Answer>> = all.iter().map(|asked| vec![Answer::default(); asked.n]).collect();
    let mut ids: HashMap<Id, usize> = HashMap::new();
    let mut cancelled = vec![false; n];
    let mut paused: Vec<Id> = Vec::new();
    let (mut submitted, mut steps) = (0, 0);
    while submitted < n || !scheduler.is_idle() {
        while submitted < n && (scheduler.is_idle() || rng.once_in(3)) {
            let id = scheduler.submit(all[submitted].request()).unwrap();
            ids.insert(id, submitted);
            submitted += 1;
        }
        if rng.once_in(12) {
            let victim = rng.range(0, submitted);
            let id = ids
                .iter()
                .find(|(_, i)| **i == victim)
                .map(|(id, _)| *id)
                .unwrap();
            match rng.range(0, 3) {
                0 => {
                    cancelled[victim] = true;
                    scheduler.cancel(id);
                }
                _ => {
                    scheduler.pause(id, true);
                    paused.push(id);
                }
            }
        }
        if scheduler.is_stalled() || rng.once_in(6) {
            paused.drain(..).for_each(|id| scheduler.pause(id, false));
        }
        for (id, event) in scheduler.step() {
            answers[ids[&id]][choice_of(&event)].take(event);
        }
        scheduler
            .check()
            .unwrap_or_else(|e| panic!("{context_text}: {e}"));
        steps += 1;
        assert!(
            steps < 20_000,
            "{context_text}: it does not end: {:?}",
            scheduler.stats()
        );
    }
    let stats = scheduler.stats();
    assert_eq!((stats.waiting, stats.running), (0, 0), "{context_text}");
    // What was computed last may be kept, and nothing else.
    let may_hold = if keeps_last { context.div_ceil(page) } else { 0 };
    assert!(stats.pages_held <= may_hold, "{context_text}: {stats:?}");
    for i in 0..n {
        for (choice, (answer, alone)) in answers[i].iter().zip(&expected[i]).enumerate() {
            let what = format!("{context_text}: request {i}, answer {choice}: {:?}", all[i]);
            // A request fails as a whole, which is told once; how far its answers were is chance.
            if answers[i][0].is_damaged {
                assert!(expected[i][0].is_damaged, "{what}");
            } else if cancelled[i] && answer.reason == Some(FinishReason::Cancelled) {
                assert!(alone.tokens.starts_with(&answer.tokens), "{what}");
                assert!(alone.prompt.starts_with(&answer.prompt), "{what}");
            } else {
                assert_eq!(answer, alone, "{what}");
            }
        }
    }
    Seen {
        set_back: stats.set_back,
        drafted: stats.drafted,
        accepted: stats.accepted,
        cached: stats.cached_tokens,
        cancelled: cancelled.iter().filter(|c| **c).count(),
        damaged: stats.damaged,
    }
}
