//! One answer while it is made: its text so far, its sampler, and when it ends.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use super::request::{EndedBy, Event, FinishReason, Id, Mask, Request, Timings};
use super::speculate::Speculator;
use crate::detokenizer::{Detokenizer, StopStrings};
use crate::error::{Error, Result};
use crate::pages::Seq;
use crate::sampler::{Choice, Chosen, Logits, Logprob, Need, Sampler};
use crate::tokenizer::Tokenizer;

/// Where an answer stands on a device that decodes by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seated {
    pub(super) seat: usize,
    /// The first of the device's steps that computes for it.
    pub(super) first: u64,
}

/// One answer.
pub(super) struct Sequence {
    pub(super) id: Id,
    pub(super) choice: usize,
    pub(super) priority: i32,
    pub(super) salt: u64,
    /// The prompt and the answer so far.
    pub(super) text: Vec<u32>,
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Most tokens of the answer, and whether the context is what allows no more.
    pub(super) limit: usize,
    bound_by_context: bool,
    /// Answers that begin with this one's prompt, once it is computed.
    pub(super) forks: usize,
    /// What it holds of the cache, from the time its prompt is begun.
    pub(super) pages: Option<Seq>,
    /// Tokens of `text` whose keys and values are there.
    pub(super) computed: usize,
    pub(super) seated: Option<Seated>,
    /// Whether a device that decodes by itself has said that it cannot choose for it.
    pub(super) is_refused: bool,
    pub(super) is_paused: bool,
    /// Whether its first turn has come.
    pub(super) is_started: bool,
    /// Whether it has ended.
    pub(super) is_done: bool,
    /// Later requests that went first.
    pub(super) overtaken: usize,
    /// The step that served it last.
    pub(super) served: u64,
    pub(super) sampler: Sampler,
    pub(super) mask: Option<Box<dyn Mask>>,
    pub(super) logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    /// Tokens of the prompt whose log-probabilities are told, or are not wanted.
    scored: usize,
    pub(super) speculator: Option<Speculator>,
    pub(super) draft_max: usize,
    min_tokens: usize,
    /// Tokens that end it: those of the request, then the model's own.
    ends: Vec<u32>,
    /// How many of them are the model's own.
    n_eos: usize,
    ended_by: Option<EndedBy>,
    writer: Option<Writer>,
    pub(super) timings: Timings,
    submitted: Instant,
    begun: Instant,
    first_token: Option<Instant>,
}

/// Asks a mask, whose mistakes are those of its request alone.
pub(super) fn guarded<T>(ask: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(|_| {
        Err(Error::Request(
            "a mask failed: there is a mistake in its program".to_owned(),
        ))
    })
}

/// Tokens to text, stop strings taken out.
struct Writer {
    detokenizer: Detokenizer,
    stops: StopStrings,
}

impl Writer {
    /// The text that a token makes certain, and which stop string it completes, if they are looked for.
    fn push(&mut self, id: u32, may_stop: bool) -> Result<(String, Option<usize>)> {
        if !may_stop {
            return Ok((self.detokenizer.push(id)?, None));
        }
        // A stop string may name a special token, which is not shown.
        match self.detokenizer.hidden(id) {
            Some(token) => Ok(self.stops.push_hidden(&token)),
            None => Ok(self.stops.push(&self.detokenizer.push(id)?)),
        }
    }

    fn finish(mut self) -> Result<String> {
        let (mut text, stopped) = self.stops.push(&self.detokenizer.finish()?);
        if stopped.is_none() {
            text.push_str(&self.stops.finish());
        }
        Ok(text)
    }
}

impl Sequence {
    /// The first answer to `request`, which may use `room` tokens of cache and ends at `eos`.
    pub(super) fn new(
        id: Id,
        request: Request,
        room: usize,
        eos: &[u32],
        tokenizer: Option<&Tokenizer>,
        now: Instant,
    ) -> Result<Self> {
        let Request {
            prompt,
            options,
            n,
            logprobs,
            prompt_logprobs,
            priority,
            salt,
            mask,
        } = request;
        let mut sampler = Sampler::new(options.sampling)?;
        prompt.iter().for_each(|&id| sampler.accept(id));
        sampler.begin_answer();
        // The last token chosen needs no place in the cache.
        let room = room + 1 - prompt.len();
        let scored = prompt_logprobs.map_or(prompt.len(), |_| 1);
        let eos = if options.ignore_eos { &[] } else { eos };
        let ends = [&options.stop_ids, eos].concat();
        let writer = tokenizer.map(|tokenizer| Writer {
            detokenizer: Detokenizer::new(tokenizer, options.special),
            stops: StopStrings::new(&options.stop).including(options.include_stop),
        });
        Ok(Self {
            id,
            choice: 0,
            priority,
            salt,
            prompt: prompt.len(),
            limit: options.max_tokens.map_or(room, |max| max.min(room)),
            bound_by_context: options.max_tokens.is_none_or(|max| max > room),
            forks: n - 1,
            text: prompt,
            pages: None,
            computed: 0,
            seated: None,
            is_refused: false,
            is_paused: false,
            is_started: false,
            is_done: false,
            overtaken: 0,
            served: 0,
            sampler,
            mask,
            logprobs,
            prompt_logprobs,
            scored,
            speculator: (options.draft_max > 0).then(Speculator::new),
            draft_max: options.draft_max,
            min_tokens: options.min_tokens,
            ends,
            n_eos: eos.len(),
            ended_by: None,
            writer,
            timings: Timings::default(),
            submitted: now,
            begun: now,
            first_token: None,
        })
    }

    /// Answer `choice`, from the same prompt, of which `pages` hold as much as this one has computed.
    pub(super) fn fork(&self, choice: usize, pages: Option<Seq>) -> Result<Self> {
        let mut sampler = Sampler::new(self.sampler.sampling().of_choice(choice))?;
        self.text.iter().for_each(|&id| sampler.accept(id));
        sampler.begin_answer();
        Ok(Self {
            choice,
            text: self.text.clone(),
            forks: 0,
            computed: if pages.is_some() { self.computed } else { 0 },
            pages,
            sampler,
            mask: match &self.mask {
                Some(mask) => Some(guarded(|| Ok(mask.fork()))?),
                None => None,
            },
            speculator: (self.draft_max > 0).then(Speculator::new),
            ends: self.ends.clone(),
            ended_by: None,
            writer: self.writer.as_ref().map(|writer| Writer {
                detokenizer: writer.detokenizer.clone(),
                stops: writer.stops.clone(),
            }),
            ..*self
        })
    }

    /// The order in which sequences are served and, from its end, set back.
    pub(super) fn rank(&self) -> (i32, Id, usize) {
        (self.priority, self.id, self.choice)
    }

    /// Tokens of the answer so far.
    pub(super) fn answered(&self) -> usize {
        self.text.len() - self.prompt
    }

    /// Tokens of the text that are not computed.
    pub(super) fn rest(&self) -> usize {
        self.text.len() - self.computed
    }

    /// Whether all but the last token of its text is computed, so that the next step gives it a token.
    pub(super) fn decodes(&self) -> bool {
        self.pages.is_some() && self.rest() == 1 && self.limit > 0
    }

    /// The beginning of its text that need not be computed if it is in the cache, its last token apart: all of it, unless
    /// log-probabilities of the prompt are wanted, which the cache does not have.
    pub(super) fn findable(&self) -> &[u32] {
        if self.scored < self.prompt {
            &self.text[..self.scored]
        } else {
            &self.text
        }
    }

    /// Which of its next `n` tokens have logits that tell how likely a token of the prompt was.
    pub(super) fn scores(&self, n: usize) -> Range<usize> {
        let end = (self.computed + n).min(self.prompt - 1);
        let start = (self.scored - 1).max(self.computed);
        start.min(end).saturating_sub(self.computed)..end.saturating_sub(self.computed)
    }

    /// Most tokens that one step may compute of it, if it may give `rows` rows of logits for its prompt.
    pub(super) fn most_with(&self, rows: usize) -> usize {
        if self.prompt - self.scored <= rows {
            usize::MAX
        } else {
            (self.scored - 1).saturating_sub(self.computed) + rows
        }
    }

    /// Tells how likely the next tokens of the prompt were, by the logits of those before them.
    pub(super) fn score<'l>(
        &mut self,
        rows: impl Iterator<Item = &'l [f32]>,
        events: &mut Vec<(Id, Event)>,
    ) -> Result<()> {
        let (first, n) = (self.scored, self.prompt_logprobs.unwrap_or(0));
        let tokens = self.text[first..self.prompt].iter();
        let logprobs: Vec<Logprob> = rows
            .zip(tokens)
            .map(|(logits, &id)| Logprob::of(logits, id, n))
            .collect::<Result<_>>()?;
        self.scored += logprobs.len();
        if !logprobs.is_empty() {
            events.push((self.id, Event::PromptLogprobs { first, logprobs }));
        }
        Ok(())
    }

    /// Its turn has come, and `cached` tokens were found.
    pub(super) fn start(&mut self, cached: usize, now: Instant, events: &mut Vec<(Id, Event)>) {
        self.computed = cached;
        if !self.is_started {
            self.is_started = true;
            self.begun = now;
            self.timings.queued = now - self.submitted;
            self.timings.reused_tokens = cached;
            events.push((self.id, Event::Started { cached }));
        }
    }

    /// `n` more tokens of its text are computed.
    pub(super) fn advance(&mut self, n: usize, now: Instant, events: &mut Vec<(Id, Event)>) {
        let before = self.computed;
        self.computed += n;
        // What is computed again after it was set back was told before.
        let total = self.prompt;
        if self.choice == 0 && self.answered() == 0 && before < total {
            self.timings.prefill_tokens += n;
            self.timings.prefill = now - self.begun;
            let done = self.computed;
            events.push((self.id, Event::Prefill { done, total }));
        }
    }

    /// Chooses its next token, and lets its sampler take note of it; `mask` is what its mask allows.
    pub(super) fn choose(&mut self, logits: Logits<'_>, mask: Option<&[u32]>) -> Result<Chosen> {
        let ends_too_early = self.answered() < self.min_tokens;
        let choice = Choice {
            mask,
            forbidden: if ends_too_early { &self.ends } else { &[] },
            logprobs: self.logprobs,
        };
        let chosen = self.sampler.choose_from(logits, &choice)?;
        self.sampler.accept(chosen.id);
        Ok(chosen)
    }

    /// Up to `most` tokens that may come next, and how likely each of them does if those before it do: what its mask forces, else what
    /// its text has said before.
    pub(super) fn guess(&mut self, most: usize) -> Option<(f64, Vec<u32>)> {
        /// Of what a mask forces, other tokens can have the same text.
        const FORCED: f64 = 0.9;
        let speculator = self.speculator.as_ref().filter(|_| most > 0)?;
        let mut forced = self.mask.as_mut().map_or_else(Vec::new, |mask| mask.forced());
        forced.truncate(most);
        if !forced.is_empty() {
            return Some((FORCED, forced));
        }
        Some((speculator.confidence()?, speculator.propose(&self.text, most)))
    }

    /// Which logits its next token depends on, and those after each of `draft`; `None` where it is all of a vocabulary.
    pub(super) fn need(&self, vocab: usize, draft: &[u32]) -> Option<Need> {
        let ends_too_early = self.answered() < self.min_tokens;
        let forbidden = if ends_too_early { &self.ends[..] } else { &[] };
        let need = self.sampler.need(vocab, draft, forbidden)?;
        self.logprobs.is_none().then_some(need)
    }

    /// Whether its next token depends on nothing but the logits and its sampler, so that a device may choose it.
    pub(super) fn suits_device(&self) -> bool {
        let sampling = self.sampler.sampling();
        !self.is_refused
            && self.forks == 0
            && self.limit > 0
            && self.mask.is_none()
            && self.logprobs.is_none()
            && self.answered() >= self.min_tokens
            // What counts the answer alone is told of the answer alone, unless something else counts the prompt too.
            && (sampling.penalize_prompt
                || sampling.repeat_penalty == 1.0
                || (sampling.presence_penalty == 0.0 && sampling.frequency_penalty == 0.0))
    }

    /// Takes a token that its sampler has chosen and accepted. Why it ends, if it does.
    pub(super) fn take(
        &mut self,
        id: u32,
        logprob: Option<Logprob>,
        now: Instant,
        events: &mut Vec<(Id, Event)>,
    ) -> Result<Option<FinishReason>> {
        self.text.push(id);
        match self.first_token {
            None => {
                self.first_token = Some(now);
                self.timings.first_token = now - self.submitted;
            }
            Some(first) => {
                self.timings.decode_tokens += 1;
                self.timings.decode = now - first;
            }
        }
        let is_complete = match &mut self.mask {
            Some(mask) => guarded(|| mask.accept(id))?,
            None => false,
        };
        let n_own = self.ends.len() - self.n_eos;
        let is_end = self.ends.contains(&id);
        if is_end {
            let is_eos = self.ends[n_own..].contains(&id);
            self.ended_by = Some(if is_eos {
                EndedBy::Eos(id)
            } else {
                EndedBy::StopId(id)
            });
        }
        let may_stop = self.answered() > self.min_tokens;
        let text = match &mut self.writer {
            Some(writer) if !is_end => {
                let (text, stopped) = writer.push(id, may_stop)?;
                let stopped = stopped.and_then(|index| writer.stops.get(index));
                self.ended_by = stopped.map(|stop| EndedBy::StopString(stop.to_owned()));
                text
            }
            _ => String::new(),
        };
        let stopped = matches!(self.ended_by, Some(EndedBy::StopString(_)));
        let choice = self.choice;
        events.push((
            self.id,
            Event::Token {
                choice,
                id,
                text,
                logprob,
            },
        ));
        Ok(if is_end {
            Some(FinishReason::Stop)
        } else if stopped {
            Some(FinishReason::StopString)
        } else if is_complete {
            Some(FinishReason::Stop)
        } else if self.answered() < self.limit {
            if let Some(speculator) = &mut self.speculator {
                speculator.observe(&self.text);
            }
            None
        } else {
            Some(self.bound())
        })
    }

    /// Why it ends where it has as many tokens as it may have.
    pub(super) fn bound(&self) -> FinishReason {
        if self.bound_by_context {
            FinishReason::Context
        } else {
            FinishReason::Length
        }
    }

    /// Ends it, and the answers that were to begin with its prompt, if that is not computed.
    pub(super) fn finish(&mut self, reason: FinishReason, events: &mut Vec<(Id, Event)>) -> Result<()> {
        let is_begun = self.answered() > 0;
        let writer = self.writer.take();
        let text = match writer.filter(|_| is_begun && reason != FinishReason::StopString) {
            Some(writer) => writer.finish()?,
            None => String::new(),
        };
        let ended_by = self
            .ended_by
            .take()
            .filter(|_| matches!(reason, FinishReason::Stop | FinishReason::StopString));
        let forks = std::mem::take(&mut self.forks);
        let texts = std::iter::once(text).chain(std::iter::repeat_n(String::new(), forks));
        events.extend((self.choice..).zip(texts).map(|(choice, text)| {
            let end = Event::Finished {
                choice,
                reason,
                ended_by: ended_by.clone(),
                text,
                timings: self.timings,
            };
            (self.id, end)
        }));
        Ok(())
    }
}
