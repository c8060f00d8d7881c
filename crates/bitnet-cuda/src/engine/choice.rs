//! The choice of tokens on the device, and what it keeps there between steps.

use super::space::{Space, Use};
use super::{Dims, Engine, Limits, launch};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::Stream;
use bitnet_kernels::sample::{CHUNK, DrawToken, MAX_TOP_K, SelectKeys, SelectLogits, Settings, keep};
use bitnet_kernels::token::ArgMax;

/// Steps that the ring holds through which the host reads tokens.
pub(super) const RING: usize = 64;

/// How the tokens of one sequence are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The settings; at a temperature above 0, `top_k` is 1 to [`MAX_TOP_K`] and below the vocabulary.
    pub settings: Settings,
    /// The last tokens of the text, `settings.last_n` at most, that penalties look at; none where they are off.
    pub recent: &'a [u32],
    /// Tokens drawn so far with this seed.
    pub drawn: u32,
}

/// Buffers of the choice, for every row of a batch that is decoded on the device.
#[derive(Debug)]
pub(super) struct Chooser {
    /// Of [`ArgMax`], (rows).
    best: DeviceBuffer<u64>,
    done: DeviceBuffer<u32>,
    /// Steps taken, (rows).
    steps: DeviceBuffer<u32>,
    /// (rows, [`Settings::WORDS`]).
    settings: DeviceBuffer<u32>,
    /// (rows, vocab).
    counts: DeviceBuffer<u32>,
    /// (rows, history_len).
    history: DeviceBuffer<u32>,
    history_len: usize,
    /// (rows, 2).
    progress: DeviceBuffer<u32>,
    /// Keys that each round of the selection leaves, in turns.
    keys: [DeviceBuffer<u64>; 2],
}

impl Chooser {
    pub(super) fn new(space: &Space<'_>, dims: &Dims, limits: Limits) -> Result<Self> {
        let rows = limits.decode_batch();
        let chunks = dims.vocab.div_ceil(CHUNK as usize);
        let most = MAX_TOP_K as usize;
        let next = (chunks * most).div_ceil(CHUNK as usize);
        // A text has a token more than the context holds.
        let history_len = (limits.context + 2).next_power_of_two();
        let words = |len: usize| space.alloc(Use::Scratch, "the choice of tokens", len);
        let keys = |len: usize| space.alloc(Use::Scratch, "candidates for the next token", len);
        Ok(Self {
            best: space.alloc(Use::Scratch, "the choice of tokens", rows)?,
            done: words(rows)?,
            steps: words(rows)?,
            settings: words(rows * Settings::WORDS)?,
            counts: words(rows * dims.vocab)?,
            history: words(rows * history_len)?,
            history_len,
            progress: words(rows * 2)?,
            keys: [keys(rows * chunks * most)?, keys(rows * next * most)?],
        })
    }

    /// The state before any token.
    pub(super) fn clear(&self, stream: &Stream) -> Result<()> {
        stream.fill_bytes(&self.best, 0)?;
        stream.fill_bytes(&self.done, 0)
    }

    /// The host's ring for as many rows.
    pub(super) fn ring(&self, gpu: &Gpu) -> Result<SharedWords> {
        gpu.alloc_shared(RING * self.steps.len())
    }
}

impl Engine {
    /// Most recent tokens that penalties can look at on the device: more than a text of this context has.
    #[must_use]
    pub fn max_recent(&self) -> usize {
        self.chooser.history_len - 1
    }

    /// Sets the state of the choice before the first step of a run; returns the candidates to keep for it, 0 for the plain
    /// largest logit.
    pub(super) fn begin_choice(&self, rows: usize, choices: Option<&[Choice<'_>]>) -> Result<u32> {
        let (c, stream) = (&self.chooser, &self.stream);
        stream.upload(&c.steps, 0, &vec![0; rows])?;
        let Some(choices) = choices else {
            return Ok(0);
        };
        let vocab = self.dims.vocab;
        let mut most = 0;
        for (row, choice) in choices.iter().enumerate() {
            let s = &choice.settings;
            let candidates = if s.temperature == 0.0 { 1 } else { s.top_k };
            let kept = keep(candidates).filter(|_| candidates > 0 && (candidates as usize) < vocab.max(2));
            let is_valid = (s.last_n as usize) < c.history_len
                && choice.recent.len() <= s.last_n as usize
                && choice.recent.iter().all(|&id| (id as usize) < vocab);
            let (Some(kept), true) = (kept, is_valid) else {
                return Err(Error::Request(format!(
                    "tokens cannot be chosen on the GPU with {s:?} and {} recent tokens",
                    choice.recent.len()
                )));
            };
            most = most.max(kept);
            stream.upload(&c.progress, row * 2, &[choice.recent.len() as u32, choice.drawn])?;
            if s.last_n > 0 {
                let mut counts = vec![0u32; vocab];
                for &id in choice.recent {
                    counts[id as usize] += 1;
                }
                stream.upload(&c.counts, row * vocab, &counts)?;
                stream.upload(&c.history, row * c.history_len, choice.recent)?;
            }
        }
        let words: Vec<u32> = choices.iter().flat_map(|c| c.settings.to_words()).collect();
        stream.upload(&c.settings, 0, &words)?;
        Ok(most)
    }

    /// Chooses the next token of every row of the batch, on the device; `keep` is what [`Engine::begin_choice`] returned.
    pub(super) fn choose(&self, keep: u32) -> Result<()> {
        let (c, s, rows) = (&self.chooser, &self.scratch, self.batch as u32);
        let vocab = self.dims.vocab as u32;
        if keep == 0 {
            let choose = ArgMax {
                logits: s.logits.global(),
                best: c.best.global(),
                done: c.done.global(),
                tokens: s.tokens.global(),
                positions: s.positions.global(),
                steps: c.steps.global(),
                ring: self.ring.global(),
                vocab,
                ring_len: RING as u32,
            };
            // SAFETY: the buffers have the lengths that the kernel wants, and live as long as the engine, which drops its
            // recordings first.
            return unsafe { launch(&self.stream, &choose, ArgMax::launch(rows)) };
        }
        let mut blocks = vocab.div_ceil(CHUNK);
        let select = SelectLogits {
            logits: s.logits.global(),
            settings: c.settings.global(),
            counts: c.counts.global(),
            keys: c.keys[0].global(),
            vocab,
            keep,
        };
        // SAFETY: as above; the first buffer of keys has room for the most keys of every block of the vocabulary.
        unsafe { launch(&self.stream, &select, select.launch(rows))? };
        let mut last = 0;
        while blocks > 1 {
            let n = blocks * keep;
            let select = SelectKeys {
                from: c.keys[last].global(),
                keys: c.keys[1 - last].global(),
                n,
                keep,
            };
            blocks = n.div_ceil(CHUNK);
            last = 1 - last;
            // SAFETY: as above; each round leaves fewer keys, the first of them as many as the second buffer has room for.
            unsafe { launch(&self.stream, &select, select.launch(rows))? };
        }
        let draw = DrawToken {
            keys: c.keys[last].global(),
            settings: c.settings.global(),
            counts: c.counts.global(),
            history: c.history.global(),
            progress: c.progress.global(),
            positions: s.positions.global(),
            tokens: s.tokens.global(),
            steps: c.steps.global(),
            ring: self.ring.global(),
            vocab,
            keep,
            history_len: c.history_len as u32,
            ring_len: RING as u32,
        };
        // SAFETY: as above.
        unsafe { launch(&self.stream, &draw, DrawToken::launch(rows)) }
    }
}
