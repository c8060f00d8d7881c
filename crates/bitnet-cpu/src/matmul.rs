//! Ternary matrix products: a stream over the weights for a few rows of activations, blocks of both for many.

use bitnet_layout::row_tiles::Group;

use crate::activations::{self, Activations, Precision};
use crate::cpu::{CHUNK_BYTES, Cpu};
use crate::dot::Rows;
use crate::float::{Codes, Write};
use crate::gemm::{self, Gemm, Workspace};
use crate::matrix::TernaryMatrix;
use crate::pool::Shards;

/// Rows of activations multiplied with one tile before the next: their sums stay in the first-level cache.
const TOKEN_BLOCK: usize = 64;

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

/// The gate of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `relu(gate)^2 * up`.
    Relu2,
    /// `gate * sigmoid(gate) * up`.
    Silu,
}

/// What becomes of the products.
#[derive(Clone, Copy)]
enum Finish {
    /// They are the output.
    Write(Write),
    /// The first half of the rows gates the second.
    Gate(Gate),
}

/// An output that chunks of a loop share, `n` columns of rows.
struct Target<'a> {
    n: usize,
    data: Shards<'a, f32>,
    stride: usize,
    first: usize,
    finish: Finish,
}

impl Target<'_> {
    /// Columns `16 i .. 16 (i + n_tiles)` of the row of a token, as far as there are so many.
    ///
    /// # Safety
    /// - No two calls whose results live at the same time have the same token and a column in common.
    #[allow(clippy::mut_from_ref, reason = "disjoint by the contract above")]
    unsafe fn get(&self, i: usize, n_tiles: usize, token: usize) -> &mut [f32] {
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
        assert!(output.first + w.n() <= output.stride, "columns of the output");
        let target = Target {
            n: w.n(),
            data: Shards::new(output.data),
            stride: output.stride,
            first: output.first,
            finish: Finish::Write(output.write),
        };
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
        gate: Gate,
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
    pub fn gate(&self, gate: Gate, x: &[f32], n: usize, out: &mut [f32]) {
        assert!(n > 0 && out.len().is_multiple_of(n) && x.len() == 2 * out.len());
        let n_tokens = out.len() / n;
        let out = Shards::new(out);
        self.pool.run(n_tokens, &|token, _| {
            let (gates, ups) = x[2 * n * token..][..2 * n].split_at(n);
            // SAFETY: rows differ between tokens.
            self.gate_row(gate, gates, ups, unsafe { out.get(token * n, n) });
        });
    }

    fn gate_row(&self, gate: Gate, gates: &[f32], ups: &[f32], out: &mut [f32]) {
        match gate {
            Gate::Relu2 => (self.float.relu2)(gates, ups, out),
            Gate::Silu => (self.float.silu)(gates, ups, out),
        }
    }

    fn multiply(&self, w: &TernaryMatrix, a: &mut Activations, target: &Target<'_>) {
        assert_eq!(w.k(), a.k, "columns of the matrix and of the activations");
        assert!(
            a.n_tokens * target.stride <= target.data.len(),
            "rows of the output"
        );
        match self.gemm {
            Some(gemm) if a.packed => self.panels(gemm, w, a, target),
            _ => self.tiles(w, a, target),
        }
    }

    /// A tile, or a tile and the one it gates, at a time: a stream over the weights.
    fn tiles(&self, w: &TernaryMatrix, a: &Activations, target: &Target<'_>) {
        let n_tiles = target.n.div_ceil(16);
        let tiles_at_once = (CHUNK_BYTES / (4 * w.k().max(1))).max(1);
        self.pool.run(n_tiles.div_ceil(tiles_at_once), &|chunk, _| {
            let begin = chunk * tiles_at_once;
            let mut y = [[0.0; 16]; TOKEN_BLOCK];
            let mut ups = [[0.0; 16]; TOKEN_BLOCK];
            for i in begin..n_tiles.min(begin + tiles_at_once) {
                for first in (0..a.n_tokens).step_by(TOKEN_BLOCK) {
                    let n_tokens = (a.n_tokens - first).min(TOKEN_BLOCK);
                    let y = &mut y[..n_tokens];
                    self.tile(w, i, a, first, y);
                    if let Finish::Gate(_) = target.finish {
                        self.tile(w, n_tiles + i, a, first, &mut ups[..n_tokens]);
                    }
                    for ((y, ups), token) in y.iter().zip(&ups).zip(first..) {
                        // SAFETY: each tile is in one chunk, and each token in one step of its loop.
                        let out = unsafe { target.get(i, 1, token) };
                        match target.finish {
                            Finish::Write(Write::Replace) => out.copy_from_slice(&y[..out.len()]),
                            Finish::Write(Write::Add) => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
                            Finish::Gate(gate) => self.gate_row(gate, y, ups, out),
                        }
                    }
                }
            }
        });
    }

    /// Products of tile `i` with the rows of activations from `first` on, as many as `y` takes.
    fn tile(&self, w: &TernaryMatrix, i: usize, a: &Activations, first: usize, y: &mut [[f32; 16]]) {
        let (tile, scales) = w.tile(i);
        if a.precision == Precision::F32 {
            for (y, token) in y.iter_mut().zip(first..) {
                let sums = (self.float.ternary)(tile, &a.x[token * a.k..][..a.k]);
                *y = std::array::from_fn(|r| sums[r] * scales[r]);
            }
            return;
        }
        let stride = activations::steps(a.k) * gemm::COLUMN_STEP;
        let mut sums = [[0; 16]; TOKEN_BLOCK];
        let sums = &mut sums[..y.len()];
        let x = &a.q.as_flattened()[first * stride..];
        (self.dot)(tile, Rows { x, stride }, sums);
        for ((sums, y), token) in sums.iter().zip(y).zip(first..) {
            let codes = Codes {
                sums: std::slice::from_ref(sums),
                stride: 1,
                sum: a.sum[token],
                inverse: a.inverse[token],
            };
            (self.float.dequantize)(&codes, std::slice::from_ref(scales), Write::Replace, y);
        }
    }

    /// A panel at a time: weights are unpacked once for many tokens.
    fn panels(&self, gemm: Gemm, w: &TernaryMatrix, a: &mut Activations, target: &Target<'_>) {
        const COLUMNS: usize = 16 * gemm::PANEL / 2;
        let (n_tokens, n_steps) = (a.n_tokens, activations::steps(a.k));
        // Tiles of a panel that have columns of the output.
        let width = match target.finish {
            Finish::Write(_) => gemm::PANEL,
            Finish::Gate(_) => gemm::PANEL / 2,
        };
        let n_tiles = target.n.div_ceil(16);
        let n_panels = n_tiles.div_ceil(width);
        let n_spans = n_tokens.div_ceil(gemm::TOKENS);
        let (codes, sums, n_sums) = a.scratch.parts();
        let (codes, sums) = (Shards::new(codes), Shards::new(sums));
        let (pieces, sum, inverse) = (a.q.as_chunks().0, &a.sum, &a.inverse);
        // Panels of the same tokens follow each other, so that the activations stay in the cache.
        self.pool.run(n_panels * n_spans, &|chunk, thread| {
            let (first, panel) = (chunk / n_panels * gemm::TOKENS, chunk % n_panels * width);
            let n_tokens = gemm::TOKENS.min(n_tokens - first);
            let columns = panel..n_tiles.min(panel + width);
            let gated = match target.finish {
                Finish::Write(_) => 0..0,
                Finish::Gate(_) => n_tiles + columns.start..n_tiles + columns.end,
            };
            let mut tiles: [&[Group]; gemm::PANEL] = [&[]; gemm::PANEL];
            for (tile, i) in tiles.iter_mut().zip(columns.clone().chain(gated.clone())) {
                *tile = w.tile(i).0;
            }
            let tiles = &tiles[..columns.len() + gated.len()];
            // SAFETY: `thread` differs between calls that run at one time.
            let codes = unsafe { codes.get(thread * gemm::Scratch::CODES, gemm::Scratch::CODES) };
            // SAFETY: as above.
            let sums = unsafe { sums.get(thread * n_sums, n_sums) };
            let mut work = Workspace { codes, sums };
            let x = &pieces[first / gemm::TOKEN_STEP * n_steps..];
            let each = gemm.panel(tiles, x, n_steps, n_tokens, &mut work);
            let scales = |range: &std::ops::Range<usize>| &w.scales()[range.clone()];
            for t in 0..n_tokens {
                let token = first + t;
                let codes = Codes {
                    sums: &work.sums[t..],
                    stride: each,
                    sum: sum[token],
                    inverse: inverse[token],
                };
                // SAFETY: each tile is in one panel, and each token in one chunk of it.
                let out = unsafe { target.get(panel, columns.len(), token) };
                match target.finish {
                    Finish::Write(write) => (self.float.dequantize)(&codes, scales(&columns), write, out),
                    Finish::Gate(gate) => {
                        let (mut gates, mut ups) = ([0.0; COLUMNS], [0.0; COLUMNS]);
                        let (gates, ups) = (&mut gates[..out.len()], &mut ups[..out.len()]);
                        (self.float.dequantize)(&codes, scales(&columns), Write::Replace, gates);
                        let codes = Codes {
                            sums: &work.sums[columns.len() * each + t..],
                            ..codes
                        };
                        (self.float.dequantize)(&codes, scales(&gated), Write::Replace, ups);
                        self.gate_row(gate, gates, ups, out);
                    }
                }
            }
        });
    }
}
