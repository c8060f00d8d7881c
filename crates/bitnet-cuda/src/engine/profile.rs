//! Where the time of a decode step goes.
//!
//! Kernels of a step overlap, so none has a time of its own. Two are measured instead, both in recorded graphs: what the step
//! takes less without a part, and what a part takes when nothing else runs. Grids of the linear layers are compared by whole
//! steps.

use super::cache::page_bytes;
use super::choice::Kernels;
use super::verbs::Intermediate;
use super::{Engine, Grids, Part};
use crate::error::{Error, Result};
use bitnet_kernels::cache::PAGE;
use bitnet_layout::Token;
use std::sync::atomic::Ordering;

/// Steps of a graph.
const STEPS: usize = 4;
/// Graphs of a sample.
const REPLAYS: usize = 8;
/// Samples of a part, of which the median counts.
const SAMPLES: usize = 9;

/// A part of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct PartTime {
    /// Which.
    pub part: Part,
    /// Kernels of a step.
    pub kernels: usize,
    /// Bytes of weights, keys and values that a step reads in it.
    pub bytes: u64,
    /// Microseconds that a step takes less without it; the kernels after it still wait for those before it. Of the embedding what a
    /// step without its choice takes less.
    pub marginal_us: f64,
    /// Microseconds a step's kernels of this part take one after the other with nothing between: small weights stay in L2.
    pub alone_us: f64,
}

/// The parts of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Microseconds a step.
    pub step_us: f64,
    /// Its parts, in order.
    pub parts: Vec<PartTime>,
}

impl Engine {
    /// Measures a greedy decode step of these tokens of different sequences, each with the pages of its sequence, which have
    /// room for the steps that are measured. What the pages hold from these positions on is worth nothing afterwards.
    ///
    /// # Errors
    /// As for [`Engine::seat`]; when somebody has a seat; and when the pages have no room for the steps that are measured.
    pub fn profile(&mut self, first: &[(Token, &[u32])]) -> Result<Profile> {
        self.measure(first, Self::profile_seats)
    }

    /// Microseconds of a greedy decode step of these tokens in each of some grids: the median of `samples` times 32 steps. Pages as
    /// for [`Engine::profile`].
    ///
    /// # Errors
    /// As for [`Engine::profile`]; when there is no sample; and when the steps in other grids compute other bits.
    pub fn time_grids(
        &mut self,
        first: &[(Token, &[u32])],
        grids: &[Grids],
        samples: usize,
    ) -> Result<Vec<f64>> {
        if samples == 0 {
            return Err(Error::Request("grids timed without a sample".to_owned()));
        }
        let mut times = Vec::new();
        let mut expected: Option<(Grids, Vec<u32>)> = None;
        for &these in grids {
            self.forced = Some(these);
            // The seats are taken anew, so that all begin with the same tokens.
            let outcome = self.measure(first, |engine| engine.time_seats(samples));
            self.forced = None;
            let (step_us, bits) = outcome?;
            times.push(step_us);
            match &expected {
                None => expected = Some((these, bits)),
                Some((_, expected)) if *expected == bits => {}
                Some((others, _)) => {
                    return Err(Error::Request(format!(
                        "the GPU computes other bits in the grids {these:?} than in {others:?}"
                    )));
                }
            }
        }
        Ok(times)
    }

    /// Does something with these tokens on the first seats, which nobody else may have.
    fn measure<T>(
        &mut self,
        first: &[(Token, &[u32])],
        run: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        if !self.seats_mut().sitting.is_empty() {
            return Err(Error::Request("a profile while sequences have seats".to_owned()));
        }
        for &(token, pages) in first {
            let end = token.pos as usize + STEPS * REPLAYS;
            if end > pages.len() * PAGE as usize || end > self.limits.context {
                return Err(Error::Request(format!(
                    "a profile from position {} needs a context of {end} tokens, and there are {} pages of {PAGE}",
                    token.pos,
                    pages.len()
                )));
            }
        }
        let outcome = (first.iter().enumerate())
            .try_for_each(|(seat, &(token, pages))| self.seat(seat, token, pages, None))
            .and_then(|()| run(self));
        for seat in 0..first.len() {
            self.leave(seat)?;
        }
        outcome
    }

    /// Microseconds of a step of those who have seats, and the residual stream of the last.
    fn time_seats(&mut self, samples: usize) -> Result<(f64, Vec<u32>)> {
        let step_us = self.time_of(&|_| true, samples)?.0;
        let residual = self.read(Intermediate::Residual)?;
        Ok((step_us, residual.iter().map(|x| x.to_bits()).collect()))
    }

    fn profile_seats(&mut self) -> Result<Profile> {
        let step_us = self.time_of(&|_| true, SAMPLES)?.0;
        let mut parts = Vec::new();
        for part in Part::ALL {
            let (alone_us, kernels) = self.time_of(&|other| other == part, SAMPLES)?;
            if kernels == 0 {
                continue;
            }
            // Nothing passes the embedding, so that kernels which read positions early find those that the choice before has left. A
            // step without it leaves out the choice, too, or threads of a block could find different ones.
            let is_also_out = |other| part == Part::Embed && other == Part::Choose;
            let (with_us, _) = match part {
                Part::Embed => self.time_of(&|other| other != Part::Choose, SAMPLES)?,
                _ => (step_us, 0),
            };
            let (without_us, _) = self.time_of(&|other| other != part && !is_also_out(other), SAMPLES)?;
            parts.push(PartTime {
                part,
                kernels,
                bytes: self.bytes_of(part),
                marginal_us: with_us - without_us,
                alone_us,
            });
        }
        Ok(Profile { step_us, parts })
    }

    /// Microseconds that a step of some parts takes, the median of `samples`, and its kernels.
    fn time_of(&mut self, wanted: &dyn Fn(Part) -> bool, samples: usize) -> Result<(f64, usize)> {
        let rows = self.seats_mut().rows();
        let blocks = self.seats_mut().blocks(STEPS * REPLAYS);
        self.plan_decode(rows, self.room(blocks));
        let graph = self.stream.capture(|_| {
            for _ in 0..STEPS {
                self.step(Kernels::default(), true, wanted)?;
            }
            Ok(())
        })?;
        if graph.n_nodes() == 0 {
            return Ok((0.0, 0));
        }
        let (from, to) = (self.gpu().event()?, self.gpu().event()?);
        let mut times = Vec::with_capacity(samples + 1);
        // One more than counts: the first finds the graph on the host.
        for _ in 0..=samples {
            // Steps move the positions on.
            self.seats_mut().is_stale = true;
            self.flush(STEPS * REPLAYS)?;
            self.stream.record(&from)?;
            for _ in 0..REPLAYS {
                self.stream.replay(&graph)?;
            }
            self.stream.record(&to)?;
            times.push(to.elapsed_us(&from)? / (REPLAYS * STEPS) as f64);
        }
        for word in self.ring.iter() {
            word.store(0, Ordering::Relaxed);
        }
        // What a head has found and no choice has taken would be taken for what the next step finds.
        self.stream.fill_bytes(&self.buffers.chooser.best, 0)?;
        times.remove(0);
        times.sort_by(f64::total_cmp);
        Ok((times[times.len() / 2], graph.n_nodes() / STEPS))
    }

    /// Bytes of weights, keys and values that a part of a step reads.
    fn bytes_of(&self, part: Part) -> u64 {
        let of_layers = |of: fn(&super::weights::Layer) -> u64| self.buffers.layers.iter().map(of).sum();
        match part {
            Part::Qkv => of_layers(|l| l.qkv.size_bytes()),
            Part::OutProj => of_layers(|l| l.o.size_bytes()),
            Part::UpGate => of_layers(|l| l.gate_up.size_bytes()),
            Part::Down => of_layers(|l| l.down.size_bytes()),
            Part::Head => self.head_bytes(),
            Part::Attention => {
                // In the middle of what is measured.
                let sitting = self.seats.sitting.iter();
                let keys: usize = sitting.map(|s| s.position + STEPS * REPLAYS / 2).sum();
                let page_bytes = page_bytes(&self.model, self.heads.padded() as usize);
                keys as u64 * page_bytes / u64::from(PAGE)
            }
            Part::Embed | Part::Combine | Part::Choose => 0,
        }
    }
}
