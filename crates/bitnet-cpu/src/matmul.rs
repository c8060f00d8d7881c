//! Ternary matrix products: a stream over the weights for a few rows of activations, blocks of both for many.

#[cfg(test)]
mod tests;

use std::ops::Range;

use bitnet_layout::Activation;
use bitnet_layout::row_tiles::{Group, ROWS};

use crate::Simd;
use crate::activations::{self, Activations, Precision};
use crate::cpu::{Cpu, claim_bytes};
use crate::float::{Finish, Sums, Write};
use crate::gemm::{self, PANEL, Workspace};
use crate::integer::{Few, SWEEP_ROWS, SWEEP_TURNS, Stream, Sweep, SweepFn, TILES, TOKEN_STEP, Turn};
use crate::matrix::TernaryMatrix;
use crate::pool::Shards;

/// Where a matrix product goes: some columns of row-major rows, one row a token.
#[derive(Debug)]
pub struct Output<'a> {
    /// The rows.
    pub data: &'a mut [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// First column to write.
    pub first: usize,
    /// What happens to the old values.
    pub write: Write,
}

/// An output that chunks of a loop share, `n` columns of rows.
pub(crate) struct Target<'a> {
    n: usize,
    data: Shards<'a, f32>,
    stride: usize,
    first: usize,
    pub(crate) finish: Finish,
}

impl<'a> Target<'a> {
    /// The output of a matrix of `n` rows.
    pub(crate) fn new(n: usize, output: Output<'a>) -> Self {
        assert!(output.first + n <= output.stride, "columns of the output");
        Self {
            n,
            data: Shards::new(output.data),
            stride: output.stride,
            first: output.first,
            finish: Finish::Write(output.write),
        }
    }

    /// Of `n_tiles` multiplied together, those that have columns of the output: a gate has as many beside them.
    fn width(&self, n_tiles: usize) -> usize {
        match self.finish {
            Finish::Write(_) => n_tiles,
            Finish::Gate(_) => n_tiles / 2,
        }
    }

    /// Scales of the tiles that those of `columns` gate.
    fn gated<'w>(&self, w: &'w TernaryMatrix, columns: &Range<usize>) -> &'w [[f32; ROWS]] {
        match self.finish {
            Finish::Write(_) => &[],
            Finish::Gate(_) => &w.scales()[self.n.div_ceil(ROWS)..][columns.clone()],
        }
    }

    /// Asks for the columns of some tiles in the row of a token, to be written.
    fn ask(&self, i: usize, n_tiles: usize, token: usize) {
        for tile in i..i + n_tiles {
            self.data.ask(token * self.stride + self.first + 16 * tile);
        }
    }

    /// Columns `16 i .. 16 (i + n_tiles)` of the row of a token, as far as there are so many.
    ///
    /// # Safety
    /// - No two calls whose results live at the same time have the same token and a column in common.
    #[allow(clippy::mut_from_ref, reason = "disjoint by the contract above")]
    pub(crate) unsafe fn get(&self, i: usize, n_tiles: usize, token: usize) -> &mut [f32] {
        let rows = (self.n - 16 * i).min(16 * n_tiles);
        // SAFETY: the columns of tiles in the row of a token, which no other call has.
        unsafe { self.data.get(token * self.stride + self.first + 16 * i, rows) }
    }
}

impl Cpu {
    /// `y = W x` for every row x of `activations`.
    ///
    /// # Panics
    /// When the columns of `w` are not those of the activations, or the output is too small.
    pub fn matmul(&self, w: &TernaryMatrix, activations: &mut Activations, output: Output<'_>) {
        let target = Target::new(w.n(), output);
        self.multiply(w, activations, &target);
    }

    /// Row t of `out`, (tokens, n): with `y = W x` of 2 n elements, the gate of the first n applied to the other n.
    ///
    /// # Panics
    /// When n, half the rows of `w`, is no multiple of 16, the columns of `w` are not those of the activations, or `out` is
    /// too small.
    pub fn matmul_gated(
        &self,
        w: &TernaryMatrix,
        activations: &mut Activations,
        gate: Activation,
        out: &mut [f32],
    ) {
        let n = w.n() / 2;
        assert!(w.n() == 2 * n && n.is_multiple_of(16), "{} rows", w.n());
        let target = Target {
            n,
            data: Shards::new(out),
            stride: n,
            first: 0,
            finish: Finish::Gate(gate),
        };
        self.multiply(w, activations, &target);
    }

    /// Row t of `out`, (tokens, n): the gate of the first n columns of row t of `x` applied to the n columns that follow.
    ///
    /// # Panics
    /// When `x`, (tokens, 2 n), is not twice the size of `out`, or `out` is not whole rows.
    pub fn gate(&self, gate: Activation, x: &[f32], n: usize, out: &mut [f32]) {
        assert!(n > 0 && out.len().is_multiple_of(n) && x.len() == 2 * out.len());
        let n_tokens = out.len() / n;
        let out = Shards::new(out);
        self.pool.run(n_tokens, &|token, _| {
            let (gates, ups) = x[2 * n * token..][..2 * n].split_at(n);
            // SAFETY: rows differ between tokens.
            (self.float.gate)(gate, gates, ups, unsafe { out.get(token * n, n) });
        });
    }

    fn multiply(&self, w: &TernaryMatrix, a: &mut Activations, target: &Target<'_>) {
        assert_eq!(w.k(), a.k, "columns of the matrix and of the activations");
        assert!(
            a.n_tokens * target.stride <= target.data.len(),
            "rows of the output"
        );
        match a.precision {
            Precision::F32 => self.float_tiles(w, a, target),
            Precision::Int8 if a.n_tokens >= self.min_panel() => match self.integer.sweep {
                Some(sweep) => self.sweeps(sweep, w, a, target),
                _ => self.panels(w, a, target),
            },
            Precision::Int8 => self.streams(w, a, target),
        }
    }

    /// Float activations: a tile, or a tile and the one it gates, at a time.
    fn float_tiles(&self, w: &TernaryMatrix, a: &Activations, target: &Target<'_>) {
        let n_tiles = target.n.div_ceil(ROWS);
        self.pool.run(n_tiles, &|i, _| {
            for token in 0..a.n_tokens {
                let products = |i: usize| -> [f32; ROWS] {
                    let (tile, scales) = w.tile(i);
                    let sums = (self.float.ternary)(tile, &a.x[token * a.k..][..a.k]);
                    std::array::from_fn(|r| sums[r] * scales[r])
                };
                let y = products(i);
                // SAFETY: each tile is one chunk, and each token in one step of its loop.
                let out = unsafe { target.get(i, 1, token) };
                match target.finish {
                    Finish::Write(Write::Replace) => out.copy_from_slice(&y[..out.len()]),
                    Finish::Write(Write::Add) => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
                    Finish::Gate(gate) => (self.float.gate)(gate, &y, &products(n_tiles + i), out),
                }
            }
        });
    }

    /// Fewest rows of activations for which unpacking into memory pays, rather than into registers time and again.
    fn min_panel(&self) -> usize {
        match self.simd() {
            Simd::Amx | Simd::Avx512Vnni | Simd::AvxVnni | Simd::Avx2 | Simd::NeonDotprod => TOKEN_STEP + 1,
            Simd::Neon | Simd::NeonI8mm | Simd::Scalar => TOKEN_STEP / 2 + 1,
        }
    }

    /// One stream over the weights for all rows of activations, at most [`TOKEN_STEP`] of them.
    fn streams(&self, w: &TernaryMatrix, a: &Activations, target: &Target<'_>) {
        let n_tiles = target.n.div_ceil(ROWS);
        let width = target.width(TILES);
        let n_units = n_tiles.div_ceil(width);
        let unit_bytes = TILES * ROWS * w.k() / 4;
        let claim = claim_bytes(n_units * unit_bytes, self.n_threads());
        let units_at_once = (claim / unit_bytes).max(1);
        // Columns of the output, then those that they gate. Where there are fewer than a stream takes, some are multiplied
        // again, for nothing.
        let tiles = |unit: usize| -> [&[Group]; TILES] {
            let first = unit.min(n_units - 1) * width;
            let n = width.min(n_tiles - first);
            std::array::from_fn(|i| {
                let half = (i / n).min(TILES / width - 1);
                w.tile(half * n_tiles + first + i % n).0
            })
        };
        let (n_tokens, n_steps) = (a.n_tokens, activations::steps(a.k));
        self.pool.run(n_units.div_ceil(units_at_once), &|chunk, _| {
            let first = chunk * units_at_once;
            for unit in first..n_units.min(first + units_at_once) {
                let columns = unit * width..n_tiles.min((unit + 1) * width);
                let (tiles, next) = (tiles(unit), tiles(unit + 1));
                let mut sums = [[0; ROWS]; TILES * TOKEN_STEP];
                let sums = &mut sums[..TILES * n_tokens];
                if let Some(sums) = sums.as_mut_array() {
                    let x = a.q[..n_steps].as_flattened()[..a.k].as_chunks().0;
                    (self.integer.dot)(&Stream { tiles, next, x }, sums);
                } else {
                    let x = &a.q.as_chunks().0[..n_steps];
                    let job = Few {
                        tiles,
                        next,
                        x,
                        n_tokens,
                    };
                    (self.integer.few)(&job, sums);
                }
                let job = Sums {
                    sums,
                    stride: n_tokens,
                    sum: &a.sum,
                    inverse: &a.inverse,
                    scales: &w.scales()[columns.clone()],
                    gated: target.gated(w, &columns),
                    finish: target.finish,
                };
                let mut rows: [&mut [f32]; TOKEN_STEP] = Default::default();
                for (token, row) in rows[..n_tokens].iter_mut().enumerate() {
                    // SAFETY: each tile is in one chunk, and each token in one step of its loop.
                    *row = unsafe { target.get(columns.start, columns.len(), token) };
                }
                (self.float.finish)(&job, &mut rows[..n_tokens]);
            }
        });
    }

    /// Blocks whose sums stay in registers: weights are unpacked for each, while the one before is multiplied.
    fn sweeps(&self, sweep: SweepFn, w: &TernaryMatrix, a: &Activations, target: &Target<'_>) {
        let (n_tokens, n_steps) = (a.n_tokens, activations::steps(a.k));
        let n_tiles = target.n.div_ceil(ROWS);
        // Tiles of a pair that have columns of the output.
        let each = target.width(2);
        let n_pairs = n_tiles.div_ceil(each);
        let (width, span) = gemm::cut_sweeps(n_pairs, (n_tokens, a.k), self.n_threads());
        let n_panels = n_pairs.div_ceil(width);
        let n_spans = n_tokens.div_ceil(span);
        let (pieces, sum, inverse) = (a.q.as_chunks().0, &a.sum, &a.inverse);
        // Panels of the same tokens follow each other, so that the activations stay in the cache.
        self.pool.run(n_panels * n_spans, &|chunk, _| {
            let (first, panel) = (chunk / n_panels * span, chunk % n_panels * width);
            let n_tokens = span.min(n_tokens - first);
            let columns = |pair: usize| (panel + pair) * each..n_tiles.min((panel + pair + 1) * each);
            let mut pairs: [[&[Group]; 2]; gemm::PANEL / 2] = Default::default();
            let pairs = &mut pairs[..width.min(n_pairs - panel)];
            for (pair, tiles) in pairs.iter_mut().enumerate() {
                let columns = columns(pair);
                let others = match target.finish {
                    Finish::Write(_) => columns.start + 1..columns.end,
                    Finish::Gate(_) => n_tiles + columns.start..n_tiles + columns.end,
                };
                for (tile, i) in tiles.iter_mut().zip([columns.start].into_iter().chain(others)) {
                    *tile = w.tile(i).0;
                }
            }
            let job = Sweep {
                pairs,
                x: &pieces[first / TOKEN_STEP * n_steps..],
                stride: n_steps,
                n_tokens,
            };
            sweep(&job, &mut |turn: Turn<'_>| {
                const SHARE: usize = SWEEP_ROWS / SWEEP_TURNS;
                let tokens = |token: usize| {
                    let begin = token + turn.index * SHARE;
                    begin.min(n_tokens)..n_tokens.min(begin + SHARE)
                };
                if let Some((token, pair)) = turn.now {
                    let columns = columns(pair);
                    for t in tokens(token) {
                        target.ask(columns.start, columns.len(), first + t);
                    }
                }
                if let Some(((token, pair), sums)) = turn.before {
                    let (columns, tokens) = (columns(pair), tokens(token));
                    if tokens.is_empty() {
                        return;
                    }
                    let job = Sums {
                        sums: &sums[turn.index * SHARE..],
                        stride: SWEEP_ROWS,
                        sum: &sum[first + tokens.start..],
                        inverse: &inverse[first + tokens.start..],
                        scales: &w.scales()[columns.clone()],
                        gated: target.gated(w, &columns),
                        finish: target.finish,
                    };
                    let mut rows: [&mut [f32]; SHARE] = Default::default();
                    let n = tokens.len();
                    for (row, token) in rows.iter_mut().zip(tokens) {
                        // SAFETY: each tile is in one panel, and each token in one chunk of it.
                        *row = unsafe { target.get(columns.start, columns.len(), first + token) };
                    }
                    (self.float.finish)(&job, &mut rows[..n]);
                }
            });
        });
    }

    /// A panel at a time: weights are unpacked once for many tokens.
    fn panels(&self, w: &TernaryMatrix, a: &mut Activations, target: &Target<'_>) {
        let (n_tokens, n_steps) = (a.n_tokens, activations::steps(a.k));
        let n_tiles = target.n.div_ceil(ROWS);
        let (width, span) = gemm::cut(n_tiles, target.width(PANEL), n_tokens, self.n_threads());
        let n_panels = n_tiles.div_ceil(width);
        let n_spans = n_tokens.div_ceil(span);
        let (codes, sums, n_sums) = a.scratch.parts();
        let (codes, sums) = (Shards::new(codes), Shards::new(sums));
        let (pieces, sum, inverse) = (a.q.as_chunks().0, &a.sum, &a.inverse);
        // Panels of the same tokens follow each other, so that the activations stay in the cache.
        self.pool.run(n_panels * n_spans, &|chunk, thread| {
            let (first, panel) = (chunk / n_panels * span, chunk % n_panels * width);
            let n_tokens = span.min(n_tokens - first);
            let columns = panel..n_tiles.min(panel + width);
            let mut tiles: [&[Group]; PANEL] = [&[]; PANEL];
            let gated = match target.finish {
                Finish::Write(_) => 0..0,
                Finish::Gate(_) => n_tiles + columns.start..n_tiles + columns.end,
            };
            for (tile, i) in tiles.iter_mut().zip(columns.clone().chain(gated.clone())) {
                *tile = w.tile(i).0;
            }
            let tiles = &tiles[..columns.len() + gated.len()];
            // SAFETY: `thread` differs between calls that run at one time.
            let codes = unsafe { codes.get(thread * gemm::Scratch::CODES, gemm::Scratch::CODES) };
            // SAFETY: as above.
            let sums = unsafe { sums.get(thread * n_sums, n_sums) };
            let mut work = Workspace { codes, sums };
            let x = &pieces[first / TOKEN_STEP * n_steps..];
            let stride = gemm::panel(&self.integer, tiles, x, n_steps, n_tokens, &mut work);
            for t in (0..n_tokens).step_by(TOKEN_STEP) {
                let job = Sums {
                    sums: &work.sums[t..],
                    stride,
                    sum: &sum[first + t..],
                    inverse: &inverse[first + t..],
                    scales: &w.scales()[columns.clone()],
                    gated: target.gated(w, &columns),
                    finish: target.finish,
                };
                let mut rows: [&mut [f32]; TOKEN_STEP] = Default::default();
                let n = TOKEN_STEP.min(n_tokens - t);
                for (row, token) in rows[..n].iter_mut().zip(first + t..) {
                    // SAFETY: each tile is in one panel, and each token in one chunk of it.
                    *row = unsafe { target.get(columns.start, columns.len(), token) };
                }
                (self.float.finish)(&job, &mut rows[..n]);
            }
        });
    }
}
