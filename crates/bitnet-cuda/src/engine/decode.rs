//! Decoding on the device: a recorded step, replayed per token, that feeds its own choice back; the host reads behind it.

use super::attention::Attention;
use super::choice::RING;
use super::{Choice, Engine, Input};
use crate::error::{Error, Result};
use crate::graph::Graph;
use bitnet_kernels::rope::BLOCK_KEYS;
use bitnet_kernels::sample::FORBIDDEN;
use bitnet_kernels::token::NO_TOKEN;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Steps given to the device before the host looks at the first one's tokens.
const AHEAD: usize = 8;

/// How long a step may take before the host asks the driver what is wrong.
const PATIENCE: Duration = Duration::from_secs(2);

/// Decode steps of a long recording of one sequence: between two replays the device idles, within one kernels overlap. A step
/// of several sequences takes so long that this does not show.
const GROUP: usize = 8;

/// Recordings kept; a server's batches could otherwise ask for ever more of them.
const MAX_RECORDINGS: usize = 64;

/// A recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Sequences.
    batch: usize,
    /// Steps of 64 keys that its attention has room for.
    blocks: usize,
    /// Decode steps: 1 or [`GROUP`].
    steps: usize,
    /// Candidates that the choice keeps; 0 for the plain largest logit.
    keep: u32,
}

/// A part of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedding, and what begins a step.
    Embed,
    /// Norm, quantization, projections to queries, keys and values.
    Qkv,
    /// Rotation, append to the cache, and the steps of the attention; of short contexts on some GPUs their fold too.
    Attention,
    /// Their fold, where it is a kernel of its own.
    Combine,
    /// Norm, quantization, projection back to the residual stream.
    OutProj,
    /// Norm, quantization, gate and up projections, and the gate.
    UpGate,
    /// Norm, quantization, down projection.
    Down,
    /// Final norm and output head.
    Head,
    /// Choice of the next tokens.
    Choose,
}

impl Part {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 9] = [
        Self::Embed,
        Self::Qkv,
        Self::Attention,
        Self::Combine,
        Self::OutProj,
        Self::UpGate,
        Self::Down,
        Self::Head,
        Self::Choose,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Qkv => "qkv",
            Self::Attention => "attention",
            Self::Combine => "attention combine",
            Self::OutProj => "out_proj",
            Self::UpGate => "up_gate",
            Self::Down => "down",
            Self::Head => "head",
            Self::Choose => "choose",
        }
    }
}

/// Recorded decode steps.
#[derive(Debug, Default)]
pub(super) struct Recordings(BTreeMap<Key, Graph>);

impl Engine {
    /// Decodes on the device, from a token of each of up to [`Engine::decode_batch`] sequences: the tokens chosen in a step,
    /// one for each sequence in order, go to `on_tokens`, which says whether to go on, and are computed in turn, for at most
    /// `n` steps. Without `choices` (one a sequence) the largest logit is chosen, the lowest token of equals.
    ///
    /// Positions past the last tokens that `on_tokens` accepted may hold keys of tokens that were computed ahead; they count
    /// for nothing and are written again when those positions are computed.
    ///
    /// # Errors
    /// When a token or a choice is out of range, two tokens are of one sequence, the context ends before `n` steps, the model
    /// computes something that is not a number, or the device fails.
    pub fn decode(
        &mut self,
        first: &[Input],
        choices: Option<&[Choice<'_>]>,
        n: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<()> {
        let batch = first.len();
        if batch > self.decode_batch() || choices.is_some_and(|c| c.len() != batch) {
            return Err(Error::Request(format!(
                "{batch} sequences to decode on the GPU; {} fit, with a choice for each",
                self.decode_batch()
            )));
        }
        let start = first.iter().map(|t| t.position as usize).max().unwrap_or(0);
        if start + n > self.limits.context {
            return Err(Error::Request(format!(
                "{n} tokens from position {start} do not fit the context of {}; choose a larger one",
                self.limits.context
            )));
        }
        if n == 0 {
            return Ok(());
        }
        let keep = self.begin_choice(batch, choices)?;
        self.begin_decode(first)?;
        for word in self.ring.iter() {
            word.store(0, Ordering::Relaxed);
        }
        let mut tokens = vec![0; batch];
        let mut read = 0;
        let mut outcome = ControlFlow::Continue(());
        let mut given = 0;
        for group in self.groups(batch, keep, start, n) {
            // While the device works on the steps before.
            self.record(group)?;
            if let Some(graph) = self.recordings.0.get(&group) {
                self.stream.replay(graph)?;
            }
            given += group.steps;
            while outcome.is_continue() && read + AHEAD < given {
                self.wait_for_tokens(read, &mut tokens)?;
                outcome = on_tokens(&tokens);
                read += 1;
            }
            if outcome.is_break() {
                break;
            }
        }
        while outcome.is_continue() && read < n {
            self.wait_for_tokens(read, &mut tokens)?;
            outcome = on_tokens(&tokens);
            read += 1;
        }
        self.stream.synchronize()
    }

    /// Room, in steps of 64 keys, that the recording for `position` has: a power of two, so that recordings are few, and
    /// blocks that find nothing to do at most half.
    pub(super) fn bucket(&self, position: usize) -> usize {
        let block = BLOCK_KEYS as usize;
        (position / block + 1)
            .next_power_of_two()
            .min(self.limits.context / block)
    }

    /// The recordings that take sequences, the longest of which ends at `start`, over `n` steps.
    fn groups(&self, batch: usize, keep: u32, start: usize, n: usize) -> Vec<Key> {
        let mut groups = Vec::new();
        let mut position = start;
        while position < start + n {
            let left = start + n - position;
            let steps = if batch == 1 && left >= GROUP { GROUP } else { 1 };
            groups.push(Key {
                batch,
                blocks: self.bucket(position + steps - 1),
                steps,
                keep,
            });
            position += steps;
        }
        groups
    }

    /// Records decode steps.
    fn record(&mut self, key: Key) -> Result<()> {
        if self.recordings.0.contains_key(&key) {
            return Ok(());
        }
        if self.recordings.0.len() >= MAX_RECORDINGS {
            // The device may still run one of them.
            self.stream.synchronize()?;
            self.recordings.0.clear();
        }
        self.plan_decode(key.batch, key.blocks)?;
        let graph = self.stream.capture(|_| {
            for _ in 0..key.steps {
                self.step(key.keep, &|_| true)?;
            }
            Ok(())
        })?;
        self.recordings.0.insert(key, graph);
        Ok(())
    }

    /// Checks and uploads the tokens; the embedding that this computes is computed again by the first step.
    pub(super) fn begin_decode(&mut self, first: &[Input]) -> Result<()> {
        self.begin(first)?;
        match self.attention {
            Attention::Decode { .. } => Ok(()),
            Attention::Prefill { .. } => Err(Error::Request(
                "two of the tokens to decode are of one sequence".to_owned(),
            )),
        }
    }

    /// Prepares the launches of steps of `batch` sequences with room for `blocks` steps of 64 keys.
    pub(super) fn plan_decode(&mut self, batch: usize, blocks: usize) -> Result<()> {
        if batch == 0 || batch > self.decode_batch() {
            return Err(Error::Request(format!(
                "{batch} sequences to decode on the GPU; 1 to {} fit",
                self.decode_batch()
            )));
        }
        self.batch = batch;
        self.attention = Attention::Decode { steps: blocks };
        Ok(())
    }

    /// The `wanted` parts of a decode step.
    pub(super) fn step(&self, keep: u32, wanted: &dyn Fn(Part) -> bool) -> Result<()> {
        let Attention::Decode { steps } = self.attention else {
            return Ok(());
        };
        let run = |part: Part, launches: &dyn Fn() -> Result<()>| {
            if wanted(part) { launches() } else { Ok(()) }
        };
        run(Part::Embed, &|| self.embed())?;
        for layer in 0..self.layers.len() {
            run(Part::Qkv, &|| self.qkv(layer))?;
            run(Part::Attention, &|| self.attention_decode(layer, steps))?;
            run(Part::Combine, &|| self.attention_combine(steps))?;
            run(Part::OutProj, &|| self.out_proj(layer))?;
            run(Part::UpGate, &|| self.up_gate(layer))?;
            run(Part::Down, &|| self.down(layer))?;
        }
        run(Part::Head, &|| self.head(0, self.batch))?;
        run(Part::Choose, &|| self.choose(keep))
    }

    /// The tokens of step `step`, once the device has chosen them.
    fn wait_for_tokens(&self, step: usize, tokens: &mut [u32]) -> Result<()> {
        let first = step % RING * tokens.len();
        for (token, word) in tokens.iter_mut().zip(&self.ring[first..]) {
            let mut since = Instant::now();
            *token = loop {
                match word.swap(0, Ordering::Acquire) {
                    0 => {}
                    NO_TOKEN => {
                        self.stream.synchronize()?;
                        return Err(Error::Request(
                            "the model computed a NaN or an infinity: its weights are damaged, or a kernel is wrong on this \
                             GPU; compare with --device cpu"
                                .to_owned(),
                        ));
                    }
                    FORBIDDEN => {
                        self.stream.synchronize()?;
                        return Err(Error::Request(
                            "the penalties leave no token to choose; lower them".to_owned(),
                        ));
                    }
                    token => break token - 1,
                }
                if since.elapsed() > PATIENCE {
                    // Either this reports what is wrong, or all steps given so far are done and their tokens in the ring.
                    self.stream.synchronize()?;
                    since = Instant::now();
                }
                std::hint::spin_loop();
            };
        }
        Ok(())
    }
}
