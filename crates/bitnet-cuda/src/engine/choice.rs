//! The choice of tokens on the device, and what it keeps there between steps.

use super::space::{Space, Use};
use super::{Dims, Engine, Limits, Rows, launch};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::Stream;
use bitnet_kernels::Global;
use bitnet_kernels::sample::{CHUNK, DrawToken, MAX_TOP_K, SelectKeys, SelectLogits, Settings, keep};
use bitnet_kernels::token::ArgMax;
use bitnet_layout::Token;

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

/// How the tokens of a row are chosen, as the host keeps it. The default is what idle rows do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Candidates to keep, 0 for the plain largest logit.
    pub(super) keep: u32,
    pub(super) settings: [u32; Settings::WORDS],
    /// Whether it has counts and a history.
    penalizes: bool,
}

/// The state of decoding on the device, for every row.
#[derive(Debug)]
pub(super) struct Chooser {
    rows: usize,
    table_len: usize,
    /// Tokens, positions, steps (rows) each, settings (rows, [`Settings::WORDS`]), progress (rows, 2), tables
    /// (rows, table_len).
    state: DeviceBuffer<u32>,
    /// Of [`ArgMax`], (rows).
    best: DeviceBuffer<u64>,
    done: DeviceBuffer<u32>,
    /// (rows, vocab).
    counts: DeviceBuffer<u32>,
    /// (rows, history_len).
    history: DeviceBuffer<u32>,
    history_len: usize,
    /// Keys that each round of the selection leaves, in turns.
    keys: [DeviceBuffer<u64>; 2],
}

impl Chooser {
    pub(super) fn new(space: &Space<'_>, dims: &Dims, limits: Limits) -> Result<Self> {
        let (rows, table_len) = (limits.seats(), limits.table_len());
        let chunks = dims.vocab.div_ceil(CHUNK as usize);
        let most = MAX_TOP_K as usize;
        let next = (chunks * most).div_ceil(CHUNK as usize);
        // A text has a token more than the context holds.
        let history_len = (limits.context + 2).next_power_of_two();
        let words = |len: usize| space.alloc(Use::Scratch, "the choice of tokens", len);
        let keys = |len: usize| space.alloc(Use::Scratch, "candidates for the next token", len);
        Ok(Self {
            rows,
            table_len,
            state: words(rows * (3 + Settings::WORDS + 2 + table_len))?,
            best: space.alloc(Use::Scratch, "the choice of tokens", rows)?,
            done: words(rows)?,
            counts: words(rows * dims.vocab)?,
            history: words(rows * history_len)?,
            history_len,
            keys: [keys(rows * chunks * most)?, keys(rows * next * most)?],
        })
    }

    /// The state before any token.
    pub(super) fn clear(&self, stream: &Stream) -> Result<()> {
        stream.fill_bytes(&self.state, 0)?;
        // Rows are moved whole.
        stream.fill_bytes(&self.history, 0)?;
        stream.fill_bytes(&self.best, 0)?;
        stream.fill_bytes(&self.done, 0)
    }

    /// The host's ring for as many rows.
    pub(super) fn ring(&self, gpu: &Gpu) -> Result<SharedWords> {
        gpu.alloc_shared(RING * self.rows)
    }

    /// Tokens, positions, steps, settings, progress and tables, in this order.
    pub(super) fn state(&self) -> &DeviceBuffer<u32> {
        &self.state
    }

    /// Where in the state the positions begin, and behind them steps and settings.
    pub(super) fn positions_at(&self) -> usize {
        self.rows
    }

    fn progress_at(&self) -> usize {
        self.rows * (3 + Settings::WORDS)
    }

    /// Settings of every row, (rows, [`Settings::WORDS`]).
    pub(super) fn settings(&self) -> Global<u32> {
        self.state.global().offset(3 * self.rows)
    }

    /// How often each token is recent, (rows, vocab); of rows whose penalties are on.
    pub(super) fn counts(&self) -> Global<u32> {
        self.counts.global()
    }

    /// Where in the state the tables begin.
    pub(super) fn tables_at(&self) -> usize {
        self.rows * (3 + Settings::WORDS + 2)
    }

    /// Where a decode step finds its rows.
    pub(super) fn rows(&self) -> Rows {
        let at = |start: usize| self.state.global().offset(start);
        Rows {
            tokens: at(0),
            positions: at(self.positions_at()),
            places: at(0),
            tiles: at(0),
            tables: at(self.tables_at()),
            table_len: self.table_len,
        }
    }
}

impl Engine {
    /// Most recent tokens that penalties can look at on the device: more than a text of this context has.
    #[must_use]
    pub fn max_recent(&self) -> usize {
        self.buffers.chooser.history_len - 1
    }

    /// Checks how a sequence's tokens shall be chosen.
    pub(super) fn check_choice(&self, choice: Option<&Choice<'_>>) -> Result<Row> {
        let Some(choice) = choice else {
            return Ok(Row::default());
        };
        let (s, vocab) = (&choice.settings, self.dims.vocab);
        let candidates = if s.temperature == 0.0 { 1 } else { s.top_k };
        let kept = keep(candidates).filter(|_| candidates > 0 && (candidates as usize) < vocab.max(2));
        let is_valid = (s.last_n as usize) < self.buffers.chooser.history_len
            && choice.recent.len() <= s.last_n as usize
            && choice.recent.iter().all(|&id| (id as usize) < vocab);
        match kept {
            Some(keep) if is_valid => Ok(Row {
                keep,
                settings: s.to_words(),
                penalizes: s.last_n > 0,
            }),
            _ => Err(Error::Request(format!(
                "tokens cannot be chosen on the GPU with {s:?} and {} recent tokens",
                choice.recent.len()
            ))),
        }
    }

    /// Brings the device the token of a row that was just taken, and what its choice looks back on.
    pub(super) fn begin_row(&mut self, row: usize, token: Token, choice: Option<&Choice<'_>>) -> Result<()> {
        let Self {
            uploads,
            stream,
            buffers,
            dims,
            ..
        } = self;
        let c = &buffers.chooser;
        uploads.send(stream, &c.state, row, &[&[token.id]])?;
        let Some(choice) = choice else {
            return Ok(());
        };
        let progress = [choice.recent.len() as u32, choice.drawn];
        uploads.send(stream, &c.state, c.progress_at() + row * 2, &[&progress])?;
        if choice.settings.last_n == 0 {
            return Ok(());
        }
        let mut counts = vec![0u32; dims.vocab];
        for &id in choice.recent {
            counts[id as usize] += 1;
        }
        uploads.send(stream, &c.counts, row * dims.vocab, &[&counts])?;
        uploads.send(stream, &c.history, row * c.history_len, &[choice.recent])
    }

    /// Moves what the device alone knows of a row to another.
    pub(super) fn move_row(&mut self, from: usize, to: usize) -> Result<()> {
        let (c, stream, vocab) = (&self.buffers.chooser, &self.stream, self.dims.vocab);
        let copy = |buffer: &DeviceBuffer<u32>, first: usize, len: usize| {
            stream.copy(buffer, first + to * len, buffer, first + from * len, len)
        };
        copy(&c.state, 0, 1)?;
        // The row has moved already.
        let row = self.seats.sitting[to].row;
        if row.keep > 0 {
            copy(&c.state, c.progress_at(), 2)?;
        }
        if row.penalizes {
            copy(&c.counts, 0, vocab)?;
            copy(&c.history, 0, c.history_len)?;
        }
        Ok(())
    }

    /// Chooses the next token of every row of the batch, on the device; `keep` is the most that one of them keeps.
    pub(super) fn choose(&self, keep: u32) -> Result<()> {
        let (c, s, rows) = (&self.buffers.chooser, &self.buffers.scratch, self.batch as u32);
        let vocab = self.dims.vocab as u32;
        let at = |start: usize| c.state.global().offset(start);
        let (tokens, positions, steps) = (at(0), at(c.rows), at(2 * c.rows));
        let (settings, progress) = (c.settings(), at(c.progress_at()));
        let ring_rows = c.rows as u32;
        if keep == 0 {
            let choose = ArgMax {
                logits: s.logits.global(),
                best: c.best.global(),
                done: c.done.global(),
                tokens,
                positions,
                steps,
                ring: self.ring.global(),
                vocab,
                ring_len: RING as u32,
                ring_rows,
            };
            // SAFETY: the buffers have the lengths that the kernel wants, and live as long as the engine, which drops its
            // recordings first.
            return unsafe { launch(&self.stream, &choose, ArgMax::launch(rows)) };
        }
        let mut blocks = vocab.div_ceil(CHUNK);
        let select = SelectLogits {
            logits: s.logits.global(),
            settings,
            counts: c.counts(),
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
            settings,
            counts: c.counts(),
            history: c.history.global(),
            progress,
            positions,
            tokens,
            steps,
            ring: self.ring.global(),
            vocab,
            keep,
            history_len: c.history_len as u32,
            ring_len: RING as u32,
            ring_rows,
        };
        // SAFETY: as above.
        unsafe { launch(&self.stream, &draw, DrawToken::launch(rows)) }
    }
}
