//! Decoding on the device: a recorded step, replayed per token, that feeds its own choice back; the host reads behind it.

use super::verbs::launch;
use super::{Attention, Engine, Input, RING};
use crate::error::{Error, Result};
use crate::graph::Graph;
use bitnet_kernels::rope::BLOCK_KEYS;
use bitnet_kernels::token::{ArgMax, NO_TOKEN};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Steps given to the device before the host looks at the first one's token.
const AHEAD: usize = 8;

/// How long a step may take before the host asks the driver what is wrong.
const PATIENCE: Duration = Duration::from_secs(2);

/// Decode steps of a long recording: between two replays the device idles, within one kernels overlap.
const GROUP: usize = 4;

/// Recorded decode steps, by the steps of 64 keys that their attention has room for, and their number: 1 or [`GROUP`].
#[derive(Debug, Default)]
pub(super) struct Recordings(BTreeMap<(usize, usize), Graph>);

impl Engine {
    /// Decodes greedily on the device, from `first`: each chosen token goes to `on_token`, which says whether to go on, and
    /// is computed in turn, for at most `n` tokens.
    ///
    /// Positions past the last token that `on_token` accepted may hold keys of tokens that were computed ahead; they count
    /// for nothing and are written again when those positions are computed.
    ///
    /// # Errors
    /// When `first` is out of range, the context ends before `n` tokens, the model computes a NaN, or the device fails.
    pub fn decode_greedy(
        &mut self,
        first: Input,
        n: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        let start = first.position as usize;
        if start + n > self.limits.context {
            return Err(Error::Request(format!(
                "{n} tokens from position {start} do not fit the context of {}",
                self.limits.context
            )));
        }
        if n == 0 {
            return Ok(());
        }
        let groups = self.groups(start, n);
        for &group in &groups {
            self.record(group)?;
        }
        // Checks and uploads the token; the embedding it computes is computed again by the first replay.
        self.begin(&[first])?;
        self.stream.upload(&self.scratch.steps, 0, &[0])?;
        for word in self.scratch.ring.iter() {
            word.store(0, Ordering::Relaxed);
        }
        let mut read = 0;
        let mut outcome = ControlFlow::Continue(());
        let mut given = 0;
        for group in groups {
            let graph = self.recordings.0.get(&group);
            let graph =
                graph.ok_or_else(|| Error::Request("no step was recorded for this position".to_owned()))?;
            self.stream.replay(graph)?;
            given += group.1;
            while outcome.is_continue() && read + AHEAD < given {
                outcome = on_token(self.wait_for_token(read)?);
                read += 1;
            }
            if outcome.is_break() {
                break;
            }
        }
        while outcome.is_continue() && read < n {
            outcome = on_token(self.wait_for_token(read)?);
            read += 1;
        }
        self.stream.synchronize()
    }

    /// Room, in steps of 64 keys, that the recording for `position` has: a power of two, so that recordings are few, and
    /// blocks that find nothing to do at most half.
    fn bucket(&self, position: usize) -> usize {
        let block = BLOCK_KEYS as usize;
        (position / block + 1)
            .next_power_of_two()
            .min(self.limits.context / block)
    }

    /// The recordings that take a sequence from `start` over `n` tokens.
    fn groups(&self, start: usize, n: usize) -> Vec<(usize, usize)> {
        let mut groups = Vec::new();
        let mut position = start;
        while position < start + n {
            let steps = if start + n - position >= GROUP { GROUP } else { 1 };
            groups.push((self.bucket(position + steps - 1), steps));
            position += steps;
        }
        groups
    }

    /// Records decode steps, as [`Recordings`] keeps them.
    fn record(&mut self, key: (usize, usize)) -> Result<()> {
        if self.recordings.0.contains_key(&key) {
            return Ok(());
        }
        let (steps, tokens) = key;
        self.batch = 1;
        self.attention = Attention::Decode { steps };
        let graph = self.stream.capture(|_| {
            for _ in 0..tokens {
                self.embed()?;
                for layer in 0..self.layers.len() {
                    self.qkv(layer)?;
                    self.attention(layer)?;
                    self.out_proj(layer)?;
                    self.up_gate(layer)?;
                    self.down(layer)?;
                }
                self.head(0, 1)?;
                self.choose()?;
            }
            Ok(())
        })?;
        self.recordings.0.insert(key, graph);
        Ok(())
    }

    /// Makes the largest logit the next token, on the device.
    fn choose(&self) -> Result<()> {
        let s = &self.scratch;
        let choose = ArgMax {
            logits: s.logits.global(),
            best: s.best.global(),
            done: s.done.global(),
            token: s.tokens.global(),
            position: s.positions.global(),
            steps: s.steps.global(),
            ring: s.ring.global(),
            vocab: self.dims.vocab as u32,
            ring_len: RING as u32,
        };
        // SAFETY: the buffers have the lengths that the kernel wants, and live as long as the engine, which drops its
        // recordings first.
        unsafe { launch(&self.stream, &choose, choose.launch()) }
    }

    /// The token of step `step`, once the device has chosen it.
    fn wait_for_token(&self, step: usize) -> Result<u32> {
        let word = &self.scratch.ring[step % RING];
        let mut since = Instant::now();
        loop {
            match word.swap(0, Ordering::Acquire) {
                0 => {}
                NO_TOKEN => {
                    self.stream.synchronize()?;
                    return Err(Error::Request(
                        "the model computed a NaN: its weights are damaged, or a kernel is wrong on this GPU; compare with \
                         --device cpu"
                            .to_owned(),
                    ));
                }
                token => return Ok(token - 1),
            }
            if since.elapsed() > PATIENCE {
                // Either this reports what is wrong, or all steps given so far are done and their tokens in the ring.
                self.stream.synchronize()?;
                since = Instant::now();
            }
            std::hint::spin_loop();
        }
    }
}
