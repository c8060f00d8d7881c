//! The choice of tokens on the device, and what it keeps there between steps.

use super::space::{Space, Use};
use super::{Architecture, Engine, Limits, Rows, launch};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::Stream;
use bitnet_kernels::Global;
use bitnet_kernels::sample::{
    BestKey, CHUNK, CutWhole, DrawToken, DrawWhole, MAX_TOP_K, SelectKeys, SelectLogits, Settings,
    WeighWhole, Whole, keep,
};
use bitnet_kernels::token::{ArgMax, TakeBest};
use bitnet_layout::Token;
use bitnet_layout::draw::MAX_TOKENS;

/// Steps that the ring holds through which the host reads tokens.
pub(super) const RING: usize = 64;

/// How the tokens of one sequence are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The settings; `top_k` is below the vocabulary.
    pub settings: Settings,
    /// The last tokens of the text, `settings.last_n` at most, that penalties look at; none where they are off.
    pub recent: &'a [u32],
    /// Tokens drawn so far with this seed.
    pub drawn: u32,
}

/// The kernels that choose the tokens of some rows: of none, one that finds the plain largest logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kernels {
    /// Candidates to sort; 0 sorts none.
    keep: u32,
    /// Whether a row draws without sorting, is cut by top-k, and by top-p.
    pub(super) whole: bool,
    cut_by_count: bool,
    cut_by_mass: bool,
}

impl Kernels {
    /// Those that both need.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            keep: self.keep.max(other.keep),
            whole: self.whole || other.whole,
            cut_by_count: self.cut_by_count || other.cut_by_count,
            cut_by_mass: self.cut_by_mass || other.cut_by_mass,
        }
    }

    /// Those of a row with these settings; `None` where the device cannot choose like this.
    fn of(s: &Settings, vocab: usize) -> Option<Self> {
        if s.is_whole() {
            let fits = (s.top_k as usize) < vocab && vocab <= MAX_TOKENS as usize;
            return fits.then_some(Self {
                keep: 0,
                whole: true,
                cut_by_count: s.top_k > 0,
                cut_by_mass: s.top_p < 1.0,
            });
        }
        let candidates = if s.temperature == 0.0 { 1 } else { s.top_k };
        let keep = keep(candidates).filter(|_| candidates > 0 && (candidates as usize) < vocab.max(2))?;
        Some(Self {
            keep,
            ..Self::default()
        })
    }
}

/// How the tokens of a row are chosen, as the host keeps it. The default is what idle rows do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) kernels: Kernels,
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
    /// Of [`ArgMax`] and [`TakeBest`], (rows).
    pub(super) best: DeviceBuffer<u64>,
    /// Of [`ArgMax`] and [`CutWhole`], (rows).
    done: DeviceBuffer<u32>,
    /// Of [`Whole`]: (rows, [`Whole::WORDS`]), (rows, [`Whole::BINS`]) and (rows, chunks, 2).
    whole: DeviceBuffer<u64>,
    bins: DeviceBuffer<u64>,
    sums: DeviceBuffer<u64>,
    /// (rows, vocab).
    counts: DeviceBuffer<u32>,
    /// (rows, history_len).
    history: DeviceBuffer<u32>,
    history_len: usize,
    /// Keys that each round of the selection leaves, in turns.
    keys: [DeviceBuffer<u64>; 2],
}

impl Chooser {
    pub(super) fn new(space: &Space<'_>, model: &Architecture, limits: Limits) -> Result<Self> {
        let (rows, table_len) = (limits.seats(), limits.table_len());
        let chunks = model.dims.vocab.div_ceil(CHUNK as usize);
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
            whole: keys(rows * Whole::WORDS)?,
            bins: keys(rows * Whole::BINS)?,
            sums: keys(rows * chunks * 2)?,
            counts: words(rows * model.dims.vocab)?,
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
        stream.fill_bytes(&self.whole, 0)?;
        stream.fill_bytes(&self.bins, 0)?;
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
        let (s, vocab) = (&choice.settings, self.model.dims.vocab);
        let is_valid = (s.last_n as usize) < self.buffers.chooser.history_len
            && choice.recent.len() <= s.last_n as usize
            && choice.recent.iter().all(|&id| (id as usize) < vocab);
        match Kernels::of(s, vocab) {
            Some(kernels) if is_valid => Ok(Row {
                kernels,
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
            model,
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
        let mut counts = vec![0u32; model.dims.vocab];
        for &id in choice.recent {
            counts[id as usize] += 1;
        }
        uploads.send(stream, &c.counts, row * model.dims.vocab, &[&counts])?;
        uploads.send(stream, &c.history, row * c.history_len, &[choice.recent])
    }

    /// Moves what the device alone knows of a row to another.
    pub(super) fn move_row(&mut self, from: usize, to: usize) -> Result<()> {
        let (c, stream, vocab) = (&self.buffers.chooser, &self.stream, self.model.dims.vocab);
        let copy = |buffer: &DeviceBuffer<u32>, first: usize, len: usize| {
            stream.copy(buffer, first + to * len, buffer, first + from * len, len)
        };
        copy(&c.state, 0, 1)?;
        // The row has moved already.
        let row = self.seats.sitting[to].row;
        if row.kernels != Kernels::default() {
            copy(&c.state, c.progress_at(), 2)?;
        }
        if row.penalizes {
            copy(&c.counts, 0, vocab)?;
            copy(&c.history, 0, c.history_len)?;
        }
        Ok(())
    }

    /// Chooses the next token of every row of the batch, on the device, by `kernels`, behind a head that screened or not.
    pub(super) fn choose(&self, kernels: Kernels, screens: bool) -> Result<()> {
        let (c, s, rows) = (&self.buffers.chooser, &self.buffers.scratch, self.batch as u32);
        let vocab = self.model.dims.vocab as u32;
        let at = |start: usize| c.state.global().offset(start);
        let (tokens, positions, steps) = (at(0), at(c.rows), at(2 * c.rows));
        let (settings, progress) = (c.settings(), at(c.progress_at()));
        let ring_rows = c.rows as u32;
        if self.keeps_best(kernels, screens) {
            let take = TakeBest {
                best: c.best.global(),
                tokens,
                positions,
                steps,
                ring: self.ring.global(),
                rows,
                ring_len: RING as u32,
                ring_rows,
            };
            // SAFETY: the buffers have the lengths that the kernel wants, and live as long as the engine, which drops its
            // recordings first.
            return unsafe { launch(&self.stream, &take, take.launch()) };
        }
        if kernels == Kernels::default() {
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
            // SAFETY: as above.
            return unsafe { launch(&self.stream, &choose, ArgMax::launch(rows)) };
        }
        // Greedy and idle rows are sorted with others, and chosen with the rest where nothing is sorted.
        let all = u32::from(kernels.keep == 0);
        if kernels.whole {
            self.weigh(kernels, all)?;
            let draw = DrawWhole {
                logits: s.logits.global(),
                state: c.whole.global(),
                sums: c.sums.global(),
                settings,
                counts: c.counts(),
                history: c.history.global(),
                progress,
                positions,
                tokens,
                steps,
                ring: self.ring.global(),
                vocab,
                history_len: c.history_len as u32,
                ring_len: RING as u32,
                ring_rows,
                all,
            };
            // SAFETY: as above.
            unsafe { launch(&self.stream, &draw, DrawWhole::launch(rows))? };
        }
        if kernels.keep == 0 {
            return Ok(());
        }
        let keys = self.sort(kernels.keep)?;
        let draw = DrawToken {
            keys,
            settings,
            counts: c.counts(),
            history: c.history.global(),
            progress,
            positions,
            tokens,
            steps,
            ring: self.ring.global(),
            vocab,
            keep: kernels.keep,
            history_len: c.history_len as u32,
            ring_len: RING as u32,
            ring_rows,
        };
        // SAFETY: as above.
        unsafe { launch(&self.stream, &draw, DrawToken::launch(rows)) }
    }

    /// Sorts the `keep` best candidates of every row that is drawn from sorted ones: where they are.
    fn sort(&self, keep: u32) -> Result<Global<u64>> {
        let (c, rows, vocab) = (
            &self.buffers.chooser,
            self.batch as u32,
            self.model.dims.vocab as u32,
        );
        let settings = c.settings();
        let mut blocks = vocab.div_ceil(CHUNK);
        let select = SelectLogits {
            logits: self.buffers.scratch.logits.global(),
            settings,
            counts: c.counts(),
            keys: c.keys[0].global(),
            vocab,
            keep,
        };
        // SAFETY: the buffers have the lengths that the kernel wants and live as long as the engine; the first buffer of keys has room
        // for the most keys of every block of the vocabulary.
        unsafe { launch(&self.stream, &select, select.launch(rows))? };
        let mut last = 0;
        while blocks > 1 {
            let n = blocks * keep;
            let select = SelectKeys {
                from: c.keys[last].global(),
                settings,
                keys: c.keys[1 - last].global(),
                n,
                keep,
            };
            blocks = n.div_ceil(CHUNK);
            last = 1 - last;
            // SAFETY: as above; each round leaves fewer keys, the first of them as many as the second buffer has room for.
            unsafe { launch(&self.stream, &select, select.launch(rows))? };
        }
        Ok(c.keys[last].global())
    }

    /// Cuts and weighs the tokens of every row that is drawn without sorting; with `all` finds the most likely one of every other.
    fn weigh(&self, kernels: Kernels, all: u32) -> Result<()> {
        let (c, rows, vocab) = (
            &self.buffers.chooser,
            self.batch as u32,
            self.model.dims.vocab as u32,
        );
        let settings = c.settings();
        let logits = self.buffers.scratch.logits.global();
        let best = BestKey {
            logits,
            settings,
            counts: c.counts(),
            state: c.whole.global(),
            vocab,
            all,
        };
        // SAFETY: the buffers have the lengths that the kernel wants, of as many rows as there are seats, and live as long as the engine.
        unsafe { launch(&self.stream, &best, best.launch(rows))? };
        for (by_mass, is_wanted) in [(0, kernels.cut_by_count), (1, kernels.cut_by_mass)] {
            for pass in 0..if is_wanted { Whole::PASSES } else { 0 } {
                let cut = CutWhole {
                    logits,
                    settings,
                    state: c.whole.global(),
                    bins: c.bins.global(),
                    done: c.done.global(),
                    vocab,
                    pass,
                    by_mass,
                };
                // SAFETY: as above; the passes are in order, behind the best keys.
                unsafe { launch(&self.stream, &cut, cut.launch(rows))? };
            }
        }
        let weigh = WeighWhole {
            logits,
            settings,
            state: c.whole.global(),
            sums: c.sums.global(),
            vocab,
        };
        // SAFETY: as above.
        unsafe { launch(&self.stream, &weigh, weigh.launch(rows)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(temperature: f32, top_k: u32, top_p: f32) -> Settings {
        Settings {
            temperature,
            top_k,
            top_p,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            last_n: 0,
            seed: 0,
        }
    }

    #[test]
    fn settings_take_the_kernels_that_they_need() {
        let of = |temperature, top_k, top_p| Kernels::of(&settings(temperature, top_k, top_p), 1000);
        let parts = |k: Option<Kernels>| k.map(|k| (k.keep, k.whole, k.cut_by_count, k.cut_by_mass));
        assert_eq!(parts(of(0.0, 0, 0.5)), Some((2, false, false, false)));
        assert_eq!(parts(of(1.0, 40, 0.5)), Some((64, false, false, false)));
        assert_eq!(parts(of(1.0, 0, 1.0)), Some((0, true, false, false)));
        assert_eq!(parts(of(1.0, 257, 1.0)), Some((0, true, true, false)));
        assert_eq!(parts(of(1.0, 999, 0.5)), Some((0, true, true, true)));
        assert_eq!(parts(of(1.0, 1000, 0.5)), None);
        assert_eq!(Kernels::of(&settings(1.0, 50, 1.0), 50), None);
        assert_eq!(Kernels::of(&settings(1.0, 0, 1.0), MAX_TOKENS as usize + 1), None);
        let both = of(1.0, 40, 1.0).zip(of(1.0, 0, 0.5)).map(|(a, b)| a.and(b));
        assert_eq!(parts(both), Some((64, true, false, true)));
    }
}
