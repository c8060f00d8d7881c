//! The best of the products of an output head, without computing all of them: an 8-bit copy tells between what two numbers each
//! product lies, and those that can be among the largest are computed as the head computes them. What is found is what the
//! whole head would give, to the bit.

mod product;

mod copy;
mod scores;

#[cfg(test)]
mod tests;

pub use copy::ScreenMatrix;

use crate::cpu::{Cpu, claim_bytes};
use crate::error::check_size;
use crate::pool::Shards;
use crate::{DenseMatrix, Result};
use copy::{Columns, is_bounded};
use product::{Group, Interval, Job, ROWS, TILES};
use scores::Scores;

/// Rows of activations that are screened together.
const TOKENS: usize = 64;

/// Of the rows of the matrix, one in so many is computed after a screening at most; the whole head is less work than more of them.
const MOST: usize = 8;

/// Most passes that go to the whole head at once after screenings that were for nothing.
const MAX_REST: u32 = 64;

/// What is wanted of the products of a row of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    /// So many of the largest that are not `known`.
    pub k: usize,
    /// Rows of the matrix that are wanted in any case, in any order.
    pub known: &'a [u32],
    /// Bit `row % 32` of word `row / 32` says whether a row may be among the largest, and one past its end may not; `None`
    /// allows all.
    pub allowed: Option<&'a [u32]>,
}

/// Products of a row of activations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Best {
    /// Rows of the matrix, ascending, each once; with `is_whole` none.
    pub ids: Vec<u32>,
    /// Their products, or with `is_whole` those of all rows.
    pub products: Vec<f32>,
    /// Whether all products were computed, because too many could have been among the largest.
    pub is_whole: bool,
}

/// How often screening was enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScreenCounts {
    /// Rows of activations that some products were computed for.
    pub screened: u64,
    /// Those products.
    pub products: u64,
    /// Rows of activations that all products were computed for.
    pub whole: u64,
}

/// What screening writes, grown as it is needed; and how it went.
#[derive(Debug, Default)]
pub struct ScreenRoom {
    columns: Columns,
    /// By thread.
    intervals: Vec<Interval>,
    lower: Vec<[f32; ROWS]>,
    upper: Vec<[f32; ROWS]>,
    tile_lower: Vec<f32>,
    tile_upper: Vec<f32>,
    counts: ScreenCounts,
    /// Passes that screen nothing, and how many there are after the next screening that is for nothing.
    rest: u32,
    next_rest: u32,
}

impl ScreenRoom {
    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> ScreenCounts {
        self.counts
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let rows = self.lower.len() + self.upper.len();
        let floats = ROWS * rows + self.tile_lower.len() + self.tile_upper.len();
        (floats * size_of::<f32>()) as u64
    }

    /// Whether this pass screens.
    fn screens(&mut self) -> bool {
        let screens = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        screens
    }

    /// Takes note of a pass of `n` screenings, of which `n_lost` were for nothing.
    fn went(&mut self, n: usize, n_lost: usize) {
        if 2 * n_lost > n {
            self.next_rest = (2 * self.next_rest).clamp(1, MAX_REST);
            self.rest = self.next_rest;
        } else if n > 0 {
            self.next_rest = 0;
        }
    }
}

/// What is known of a row of activations on the way.
#[derive(Debug, Default)]
struct Search {
    /// The rows of the largest lower ends, then their products.
    first: Vec<(f32, u32)>,
    best: Best,
}

impl Cpu {
    /// For every row of `x`, (tokens, cols), the products `W x` that `asks` want and others: at least all that are, in the order
    /// of products and at equal ones of rows, among the `k` first of those that are allowed and not known; and all that are not
    /// finite. Each is what [`Cpu::dense`] computes, to the bit.
    ///
    /// `copy` is the copy of `w`.
    ///
    /// # Errors
    /// When the sizes do not fit each other.
    pub fn best(
        &self,
        w: &DenseMatrix,
        copy: &ScreenMatrix,
        x: &[f32],
        asks: &[Ask<'_>],
        room: &mut ScreenRoom,
    ) -> Result<Vec<Best>> {
        let (n, k) = (w.rows(), w.cols());
        check_size("rows of the copy of the head", copy.n(), n)?;
        check_size("columns of the copy of the head", copy.k(), k)?;
        check_size("elements of the head's input", x.len(), asks.len() * k)?;
        let mut best = Vec::with_capacity(asks.len());
        if k == 0 {
            // Every product is an empty sum.
            let whole = || Best {
                products: vec![0.0; n],
                is_whole: true,
                ..Best::default()
            };
            best.resize_with(asks.len(), whole);
            return Ok(best);
        }
        for (x, asks) in x.chunks(TOKENS * k).zip(asks.chunks(TOKENS)) {
            best.extend(self.best_of_some(w, copy, x, asks, room)?);
        }
        Ok(best)
    }

    fn best_of_some(
        &self,
        w: &DenseMatrix,
        copy: &ScreenMatrix,
        x: &[f32],
        asks: &[Ask<'_>],
        room: &mut ScreenRoom,
    ) -> Result<Vec<Best>> {
        let (n, k) = (w.rows(), w.cols());
        let most = n / MOST;
        let row = |t: usize| &x[t * k..][..k];
        let mut searches: Vec<Search> = asks.iter().map(|_| Search::default()).collect();
        // Few that are allowed are computed at once; then those that are screened, by their place among all.
        let mut screened = Vec::new();
        let screens = room.screens();
        for (t, (ask, search)) in asks.iter().zip(&mut searches).enumerate() {
            let n_allowed = ask.allowed.map_or(n, |bits| count(bits, n));
            if !is_bounded(row(t)) {
                search.best.is_whole = true;
            } else if n_allowed + ask.known.len() <= most {
                search
                    .best
                    .ids
                    .extend(ask.allowed.into_iter().flat_map(|bits| set(bits, n)));
            } else if screens && (1..=most).contains(&ask.k) && ask.known.len() <= most {
                screened.push(t);
            } else {
                search.best.is_whole = true;
            }
        }

        self.screen(copy, screened.iter().map(|&t| row(t)), room);
        let n_tiles = copy.n_tiles();
        let scores = (
            Shards::new(&mut room.lower),
            Shards::new(&mut room.upper),
            Shards::new(&mut room.tile_lower),
            Shards::new(&mut room.tile_upper),
        );
        // SAFETY: of the two loops below each has one call for a place `s`, and their results do not outlive it.
        let scores = |s: usize| unsafe {
            Scores {
                lower: scores.0.get(s * n_tiles, n_tiles),
                upper: scores.1.get(s * n_tiles, n_tiles),
                tile_lower: scores.2.get(s * n_tiles, n_tiles),
                tile_upper: scores.3.get(s * n_tiles, n_tiles),
            }
        };
        let shared = Shards::new(&mut searches);
        self.pool.run(screened.len(), &|s, _| {
            let (ask, mut scores) = (asks[screened[s]], scores(s));
            // SAFETY: each token is one chunk.
            let search = unsafe { &mut shared.get(screened[s], 1)[0] };
            if let Some(allowed) = ask.allowed {
                scores.leave_only(allowed);
            }
            let known = ask.known.iter().filter(|&&id| (id as usize) < n);
            known.for_each(|&id| scores.leave_out(id));
            scores.first(ask.k, &mut search.first);
        });

        let jobs: Vec<_> = screened
            .iter()
            .flat_map(|&t| searches[t].first.iter().map(move |&(_, id)| (t, id)))
            .collect();
        let products = self.products(w, x, &jobs);
        let mut rest = &products[..];
        for &t in &screened {
            let first = &mut searches[t].first;
            let (mine, others) = rest.split_at(first.len());
            first.iter_mut().zip(mine).for_each(|(first, &y)| first.0 = y);
            rest = others;
        }
        let shared = Shards::new(&mut searches);
        self.pool.run(screened.len(), &|s, _| {
            let (ask, scores) = (asks[screened[s]], scores(s));
            // SAFETY: each token is one chunk.
            let Search { first, best } = unsafe { &mut shared.get(screened[s], 1)[0] };
            // Where fewer are allowed than are wanted, all of them are wanted.
            let threshold = match first.len() < ask.k {
                true => f32::NEG_INFINITY,
                false => first
                    .iter()
                    .fold(f32::INFINITY, |min, &(y, _)| if y < min { y } else { min }),
            };
            scores.at_least(threshold, &mut best.ids);
            if best.ids.len() > most {
                best.ids.clear();
                best.is_whole = true;
            }
        });
        let n_lost = screened.iter().filter(|&&t| searches[t].best.is_whole).count();
        room.went(screened.len(), n_lost);

        self.finish(w, copy, x, asks, &mut searches, &mut room.counts)?;
        Ok(searches.into_iter().map(|search| search.best).collect())
    }

    /// Computes the products that were found to be needed, those that are known, and those that have no bound.
    fn finish(
        &self,
        w: &DenseMatrix,
        copy: &ScreenMatrix,
        x: &[f32],
        asks: &[Ask<'_>],
        searches: &mut [Search],
        counts: &mut ScreenCounts,
    ) -> Result<()> {
        let (n, k) = (w.rows(), w.cols());
        let (mut jobs, mut inputs) = (Vec::new(), Vec::new());
        for (t, (ask, Search { best, .. })) in asks.iter().zip(&mut *searches).enumerate() {
            if best.is_whole {
                inputs.extend_from_slice(&x[t * k..][..k]);
                continue;
            }
            best.ids.extend(ask.known.iter().filter(|&&id| (id as usize) < n));
            best.ids.extend(copy.unbounded());
            best.ids.sort_unstable();
            best.ids.dedup();
            jobs.extend(best.ids.iter().map(|&id| (t, id)));
        }
        let some = self.products(w, x, &jobs);
        let mut whole = vec![0.0; inputs.len() / k * n];
        self.dense(w, &inputs, &mut whole)?;
        let (mut some, mut whole) = (&some[..], whole.chunks_exact(n.max(1)));
        for Search { best, .. } in searches {
            if best.is_whole {
                counts.whole += 1;
                best.products = whole.next().unwrap_or_default().to_vec();
            } else {
                let (mine, others) = some.split_at(best.ids.len());
                counts.screened += 1;
                counts.products += mine.len() as u64;
                best.products = mine.to_vec();
                some = others;
            }
        }
        Ok(())
    }

    /// Between what the products of some rows of activations are, into the room, a row after the other.
    fn screen<'a>(
        &self,
        copy: &ScreenMatrix,
        rows: impl ExactSizeIterator<Item = &'a [f32]>,
        room: &mut ScreenRoom,
    ) {
        let (n, n_tokens, n_tiles) = (copy.n(), rows.len(), copy.n_tiles());
        if n_tokens == 0 {
            return;
        }
        room.columns.fill(copy.k(), rows);
        let grow = |n: usize, have: usize| n.max(have);
        let len = grow(n_tokens * n_tiles, room.lower.len());
        room.lower.resize(len, [0.0; ROWS]);
        room.upper.resize(len, [0.0; ROWS]);
        room.tile_lower.resize(len, 0.0);
        room.tile_upper.resize(len, 0.0);
        let none = Interval {
            lower: [0.0; ROWS],
            upper: [0.0; ROWS],
        };
        let per_thread = n_tokens * TILES;
        let len = grow(self.n_threads() * per_thread, room.intervals.len());
        room.intervals.resize(len, none);

        let screen = product::path(self.simd());
        let (x, spread) = (&room.columns.x[..], &room.columns.spread[..]);
        let (lower, upper) = (Shards::new(&mut room.lower), Shards::new(&mut room.upper));
        let (tile_lower, tile_upper) = (
            Shards::new(&mut room.tile_lower),
            Shards::new(&mut room.tile_upper),
        );
        let intervals = Shards::new(&mut room.intervals);
        let n_units = n_tiles.div_ceil(TILES);
        let unit_bytes = TILES * copy.n_groups() * size_of::<Group>();
        let claim = claim_bytes(n_units * unit_bytes, self.n_threads());
        let units_at_once = (claim / unit_bytes.max(1)).max(1);
        // Past the last tile it is multiplied again, for nothing.
        let tile = |unit: usize, i: usize| copy.tile((unit * TILES + i).min(n_tiles - 1));
        self.pool.run(n_units.div_ceil(units_at_once), &|chunk, thread| {
            let first = chunk * units_at_once;
            // SAFETY: `thread` differs between calls that run at one time.
            let intervals = unsafe { intervals.get(thread * per_thread, per_thread) };
            for unit in first..n_units.min(first + units_at_once) {
                let job = Job {
                    tiles: std::array::from_fn(|i| tile(unit, i).0),
                    next: std::array::from_fn(|i| tile(unit + 1, i).0),
                    bounds: std::array::from_fn(|i| tile(unit, i).1),
                    x,
                    spread,
                };
                screen(&job, intervals);
                for (t, found) in intervals.chunks_exact_mut(TILES).enumerate() {
                    for (tile, found) in (unit * TILES..n_tiles).zip(found) {
                        // Rows past the last are none.
                        for r in (n - ROWS * tile).min(ROWS)..ROWS {
                            (found.lower[r], found.upper[r]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                        }
                        let at = t * n_tiles + tile;
                        // SAFETY: each tile is in one chunk, and each token once in this loop.
                        unsafe {
                            lower.get(at, 1)[0] = found.lower;
                            upper.get(at, 1)[0] = found.upper;
                            tile_lower.get(at, 1)[0] = scores::largest(&found.lower);
                            tile_upper.get(at, 1)[0] = scores::largest(&found.upper);
                        }
                    }
                }
            }
        });
    }

    /// The product of each (row of activations, row of the matrix).
    fn products(&self, w: &DenseMatrix, x: &[f32], jobs: &[(usize, u32)]) -> Vec<f32> {
        let k = w.cols();
        let mut out = vec![0.0; jobs.len()];
        let at_once = (jobs.len() / (8 * self.n_threads())).clamp(1, 64);
        let shared = Shards::new(&mut out);
        self.pool.run(jobs.len().div_ceil(at_once), &|chunk, _| {
            let first = chunk * at_once;
            let jobs = &jobs[first..jobs.len().min(first + at_once)];
            for (at, &(t, id)) in (first..).zip(jobs) {
                // SAFETY: each product is in one chunk.
                let y = unsafe { shared.get(at, 1) };
                (self.float.dense)(w.weights(id as usize, 1), &[&x[t * k..][..k]], &mut [y]);
            }
        });
        out
    }
}

/// How many of the bits below `n` are 1.
fn count(bits: &[u32], n: usize) -> usize {
    let below = |i: usize| u32::MAX >> 32_usize.saturating_sub(n - 32 * i).min(31);
    let words = bits.iter().take(n.div_ceil(32)).enumerate();
    words
        .map(|(i, word)| (word & below(i)).count_ones() as usize)
        .sum()
}

/// Those bits, ascending.
fn set(bits: &[u32], n: usize) -> impl Iterator<Item = u32> {
    let words = (0..).step_by(32).zip(bits).filter(|(_, word)| **word != 0);
    let of_word = |(first, &word): (u32, &u32)| {
        (0..32)
            .filter(move |bit| word >> bit & 1 == 1)
            .map(move |bit| first + bit)
    };
    words.flat_map(of_word).take_while(move |&id| (id as usize) < n)
}
