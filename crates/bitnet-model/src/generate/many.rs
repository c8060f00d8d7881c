//! Sequences that are generated side by side: what each has so far, and the decode loop of all of them.

use std::ops::ControlFlow;
use std::time::Instant;

use super::{Event, FinishReason, GenerateOptions, Generation, Generator, Timings, Writer};
use crate::{Error, Result, Sampler, Want};

/// When a sequence ends.
pub(super) struct Rules<'o> {
    pub(super) options: &'o GenerateOptions,
    pub(super) stop_ids: Vec<u32>,
}

/// One of them.
pub(super) struct Sequence {
    slot: usize,
    pub(super) run: Generation,
    /// Most tokens to generate.
    pub(super) limit: usize,
    writer: Option<Writer>,
    /// The token chosen last, which is computed next.
    last: u32,
    finished: Option<FinishReason>,
}

impl Sequence {
    pub(super) fn new(
        slot: usize,
        prompt_ids: Vec<u32>,
        reused_tokens: usize,
        limit: usize,
        writer: Option<Writer>,
    ) -> Self {
        Self {
            slot,
            run: Generation {
                prompt_ids,
                ids: Vec::new(),
                text: String::new(),
                finish_reason: FinishReason::Length,
                timings: Timings {
                    reused_tokens,
                    ..Timings::default()
                },
            },
            limit,
            writer,
            last: 0,
            finished: None,
        }
    }

    /// Ends it before its first token: none was asked for, or the caller had enough.
    pub(super) fn not_begun(&mut self) {
        self.writer = None;
        self.finished = Some(if self.limit == 0 {
            FinishReason::Length
        } else {
            FinishReason::Cancelled
        });
    }

    /// Takes a chosen token; decides whether it is the last one.
    pub(super) fn take(
        &mut self,
        id: u32,
        rules: &Rules<'_>,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.last = id;
        self.run.ids.push(id);
        let ended = !rules.options.ignore_eos && rules.stop_ids.contains(&id);
        let (text, stopped) = match &mut self.writer {
            Some(writer) if !ended => writer.push(id)?,
            _ => (String::new(), false),
        };
        self.run.text.push_str(&text);
        let flow = on_event(Event::Token { id, text: &text });
        self.finished = if ended {
            Some(FinishReason::Stop)
        } else if stopped {
            Some(FinishReason::StopString)
        } else if flow.is_break() {
            Some(FinishReason::Cancelled)
        } else if self.run.ids.len() < self.limit {
            None
        } else if rules.options.max_tokens == Some(self.limit) {
            Some(FinishReason::Length)
        } else {
            Some(FinishReason::Context)
        };
        Ok(())
    }

    /// The result, once it is finished; the text that was held back goes to the caller.
    fn end(mut self, on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Result<Generation> {
        self.run.finish_reason = self.finished.unwrap_or(FinishReason::Length);
        let writer = self
            .writer
            .filter(|_| self.run.finish_reason != FinishReason::StopString);
        if let Some(writer) = writer {
            let text = writer.finish()?;
            self.run.text.push_str(&text);
            let _ = on_event(Event::End { text: &text });
        }
        Ok(self.run)
    }
}

/// All of them: those that go on, with their samplers, and the results of the others.
#[derive(Default)]
pub(super) struct Many {
    sequences: Vec<Sequence>,
    samplers: Vec<Sampler>,
    /// By slot.
    results: Vec<Option<Generation>>,
}

impl Many {
    /// Adds the sequence of the next slot, which may be finished.
    pub(super) fn add(
        &mut self,
        sequence: Sequence,
        sampler: Sampler,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        if sequence.finished.is_some() {
            self.results.push(Some(sequence.end(on_event)?));
        } else {
            self.results.push(None);
            self.sequences.push(sequence);
            self.samplers.push(sampler);
        }
        Ok(())
    }

    /// Decodes until all are finished; their results in order.
    pub(super) fn decode(
        mut self,
        generator: &mut Generator<'_>,
        rules: &Rules<'_>,
        on_event: &mut dyn FnMut(usize, Event<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let decoding = Instant::now();
        // Whether the back end chooses tokens itself may depend on how many sequences there are.
        let mut asks = true;
        while !self.sequences.is_empty() {
            if !asks || !self.decode_on_device(generator, rules, decoding, on_event)? {
                asks = false;
                self.step(generator, rules, decoding, on_event)?;
            }
            for i in (0..self.sequences.len()).rev() {
                if self.sequences[i].finished.is_some() {
                    let sequence = self.sequences.remove(i);
                    self.samplers.remove(i);
                    let slot = sequence.slot;
                    self.results[slot] = Some(sequence.end(&mut |event| on_event(slot, event))?);
                    asks = true;
                }
            }
        }
        Ok(self.results.into_iter().flatten().collect())
    }

    /// Lets the device decode until one of them finishes; false where it cannot.
    fn decode_on_device(
        &mut self,
        generator: &mut Generator<'_>,
        rules: &Rules<'_>,
        decoding: Instant,
        on_event: &mut dyn FnMut(usize, Event<'_>) -> ControlFlow<()>,
    ) -> Result<bool> {
        let first: Vec<(usize, u32)> = self.sequences.iter().map(|s| (s.slot, s.last)).collect();
        let left = self.sequences.iter().map(|s| s.limit - s.run.ids.len());
        let n = left.min().unwrap_or(0);
        let (samplers, sequences) = (&mut self.samplers, &mut self.sequences);
        let mut failure: Option<Error> = None;
        let on_device = samplers.clone();
        let done = generator.session.decode(&first, &on_device, n, |ids| {
            let mut is_over = false;
            for ((sequence, sampler), &id) in sequences.iter_mut().zip(&mut *samplers).zip(ids) {
                let slot = sequence.slot;
                sampler.chosen(id);
                sequence.run.timings.decode_tokens += 1;
                sequence.run.timings.decode = decoding.elapsed();
                let taken = sequence.take(id, rules, &mut |event| on_event(slot, event));
                is_over |= sequence.finished.is_some() || taken.is_err();
                failure = failure.take().or(taken.err());
            }
            if is_over {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        failure.map_or(Ok(done), Err)
    }

    /// Computes and chooses the next token of each of them, on the host.
    fn step(
        &mut self,
        generator: &mut Generator<'_>,
        rules: &Rules<'_>,
        decoding: Instant,
        on_event: &mut dyn FnMut(usize, Event<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let spec = generator.session.spec();
        let (vocab, at_once) = (spec.config.vocab, spec.max_batch);
        let all = self.sequences.chunks_mut(at_once);
        for (sequences, samplers) in all.zip(self.samplers.chunks_mut(at_once)) {
            let last: Vec<(usize, [u32; 1])> = sequences.iter().map(|s| (s.slot, [s.last])).collect();
            let runs: Vec<(usize, &[u32])> = last.iter().map(|(slot, id)| (*slot, &id[..])).collect();
            let rows: Vec<usize> = (0..runs.len()).collect();
            let logits = generator.session.step(&runs, Want::Logits(&rows))?;
            for ((sequence, sampler), logits) in
                sequences.iter_mut().zip(samplers).zip(logits.chunks_exact(vocab))
            {
                let id = sampler.sample(logits)?;
                sampler.accept(id);
                let slot = sequence.slot;
                sequence.run.timings.decode_tokens += 1;
                sequence.run.timings.decode = decoding.elapsed();
                sequence.take(id, rules, &mut |event| on_event(slot, event))?;
            }
        }
        Ok(())
    }
}
