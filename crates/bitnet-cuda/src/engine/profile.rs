//! Where the time of a decode step goes.
//!
//! Kernels of a step overlap, so none has a time of its own. Two are measured instead, both in recorded graphs: what the step
//! takes less without a part, and what a part takes when nothing else runs.

use super::{Engine, Input, Part};
use crate::error::{Error, Result};

/// Steps of a graph.
const STEPS: usize = 4;
/// Graphs of a sample, and samples, of which the median counts.
const REPLAYS: usize = 8;
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
    /// Microseconds that a step takes less without it; the kernels after it still wait for those before it.
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
    /// Measures a greedy decode step from these tokens of different sequences. The sequences' cache is worth nothing afterwards
    /// from these positions on.
    ///
    /// # Errors
    /// As for [`Engine::decode`]; and when the context has no room for the steps that are measured.
    pub fn profile(&mut self, first: &[Input]) -> Result<Profile> {
        let start = first.iter().map(|t| t.position as usize).max().unwrap_or(0);
        let end = start + STEPS * REPLAYS;
        if end >= self.limits.context {
            return Err(Error::Request(format!(
                "a profile from position {start} needs a context of {} tokens, and there are {}",
                end + 1,
                self.limits.context
            )));
        }
        self.begin_choice(first.len(), None)?;
        let step_us = self.time_of(first, end, &|_| true)?.0;
        let mut parts = Vec::new();
        for part in Part::ALL {
            let (alone_us, kernels) = self.time_of(first, end, &|other| other == part)?;
            if kernels == 0 {
                continue;
            }
            let (without_us, _) = self.time_of(first, end, &|other| other != part)?;
            parts.push(PartTime {
                part,
                kernels,
                bytes: self.bytes_of(part, first),
                marginal_us: step_us - without_us,
                alone_us,
            });
        }
        Ok(Profile { step_us, parts })
    }

    /// Microseconds that a step of some parts takes, and its kernels.
    fn time_of(
        &mut self,
        first: &[Input],
        end: usize,
        wanted: &dyn Fn(Part) -> bool,
    ) -> Result<(f64, usize)> {
        self.begin_decode(first)?;
        self.plan_decode(first.len(), self.bucket(end))?;
        let graph = self.stream.capture(|_| {
            for _ in 0..STEPS {
                self.step(0, wanted)?;
            }
            Ok(())
        })?;
        if graph.n_nodes() == 0 {
            return Ok((0.0, 0));
        }
        let (from, to) = (self.gpu().event()?, self.gpu().event()?);
        let mut samples = Vec::new();
        // One more than counts: the first finds the graph on the host.
        for _ in 0..=SAMPLES {
            // Steps move the positions on.
            let positions: Vec<u32> = first.iter().map(|t| t.position).collect();
            self.stream.upload(&self.scratch.positions, 0, &positions)?;
            self.stream.record(&from)?;
            for _ in 0..REPLAYS {
                self.stream.replay(&graph)?;
            }
            self.stream.record(&to)?;
            samples.push(to.elapsed_us(&from)? / (REPLAYS * STEPS) as f64);
        }
        samples.remove(0);
        samples.sort_by(f64::total_cmp);
        Ok((samples[samples.len() / 2], graph.n_nodes() / STEPS))
    }

    /// Bytes of weights, keys and values that a part of a step reads.
    fn bytes_of(&self, part: Part, first: &[Input]) -> u64 {
        let of_layers = |of: fn(&super::weights::Layer) -> u64| self.layers.iter().map(of).sum();
        match part {
            Part::Qkv => of_layers(|l| l.qkv.values.size_bytes()),
            Part::OutProj => of_layers(|l| l.o.values.size_bytes()),
            Part::UpGate => of_layers(|l| l.gate_up.values.size_bytes()),
            Part::Down => of_layers(|l| l.down.values.size_bytes()),
            Part::Head => self.head_bytes(),
            Part::Attention => {
                // In the middle of what is measured.
                let key = |t: &Input| t.position as usize + STEPS * REPLAYS / 2;
                let keys: usize = first.iter().map(key).sum();
                (2 * 2 * keys * self.padded * self.dims.n_kv_heads * self.layers.len()) as u64
            }
            Part::Embed | Part::Combine | Part::Choose => 0,
        }
    }
}
