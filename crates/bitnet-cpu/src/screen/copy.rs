//! The 8-bit copy of a dense matrix, the rows of activations it is multiplied with, and the bounds of both.
//!
//! A row `w` is kept as integers `q` with a scale `s` for each group of columns, a row of activations `y` as integers of 16 bits.
//! With `v = s q` and `z` for the rounded activations, `w y = v z + (w - v) y + v (y - z)`, so by Cauchy and Schwarz
//!
//! `|w y - v z| <= sum over groups of |w - v| |y| + |v| |y - z|`.
//!
//! The first term is at most the largest of `|w - v| / s` of the row (about 3.3, never more than 5.7) times the sum of `s |y|`; the
//! second is small, and a share of `|v| |y|` on top of it covers the roundings of both sums, the screening one and the one of the
//! head itself. All lengths are computed in f64 and rounded up.

use bitnet_layout::ternary::round_ties_even;

use super::product::{Bounds, COLUMNS, Column, Group, ROWS};
use crate::cpu::Cpu;
use crate::error::check_size;
use crate::memory::{Buffer, Pages};
use crate::pool::Shards;
use crate::{DenseMatrix, Error, Result};

/// The least worth of a unit of weights and of activations: products of two stay far from where f32 loses digits.
const LEAST_UNIT: f32 = 1.0 / (1u64 << 60) as f32;

/// The largest magnitude that is bounded: sums of products of two stay finite.
const LARGEST: f32 = (1u64 << 40) as f32;

/// Half a unit in the last place of 1 in f32: what one rounding is off by at most, as a share.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

/// An 8-bit copy of an (n, k) [`DenseMatrix`], with a bound for what it leaves out of each row: it tells quickly which products
/// can be among the largest.
#[derive(Debug)]
pub struct ScreenMatrix {
    n: usize,
    k: usize,
    /// Groups of a row.
    n_groups: usize,
    /// Tiles one after the other.
    tiles: Buffer<Group>,
    bounds: Vec<Bounds>,
    /// Rows without a bound, ascending: those with numbers that are not finite, or huge.
    unbounded: Vec<u32>,
}

impl ScreenMatrix {
    /// Most columns: what the roundings of their sums come to stays a small share.
    pub const MAX_COLUMNS: usize = 1 << 16;

    /// Copies `w`, on the threads of `cpu`.
    ///
    /// # Errors
    /// When memory cannot be had, or there are more columns than the bounds hold for.
    pub fn new(cpu: &Cpu, w: &DenseMatrix) -> Result<Self> {
        let (n, k) = (w.rows(), w.cols());
        let past = k.saturating_sub(Self::MAX_COLUMNS);
        check_size("columns past those of a certified head", past, 0)?;
        let (n_tiles, n_groups) = (n.div_ceil(ROWS), k.div_ceil(COLUMNS));
        let what = "an 8-bit copy of the head";
        let bytes = usize::MAX;
        let len = n_tiles
            .checked_mul(n_groups)
            .ok_or(Error::Memory { what, bytes })?;
        let mut tiles = Buffer::<Group>::zeroed(what, len, Pages::Huge)?;
        let none = Bounds {
            ratio: [0.0; ROWS],
            length: [0.0; ROWS],
        };
        let mut bounds = vec![none; n_tiles];
        let (shared_tiles, shared_bounds) = (Shards::new(&mut tiles), Shards::new(&mut bounds));
        cpu.pool.run(n_tiles, &|i, _| {
            // SAFETY: each tile is one chunk.
            let (tile, bounds) =
                unsafe { (shared_tiles.get(i * n_groups, n_groups), shared_bounds.get(i, 1)) };
            let mut row = vec![0.0; n_groups * COLUMNS];
            for r in 0..ROWS.min(n - ROWS * i) {
                w.weights(ROWS * i + r, 1).copy_to(&mut row[..k]);
                (bounds[0].ratio[r], bounds[0].length[r]) = put_row(&row, r, tile);
            }
        });
        let lengths = bounds.iter().flat_map(|bounds| bounds.length).take(n);
        let unbounded = (0..).zip(lengths).filter(|(_, length)| length.is_infinite());
        let unbounded = unbounded.map(|(row, _)| row).collect();
        Ok(Self {
            n,
            k,
            n_groups,
            tiles,
            bounds,
            unbounded,
        })
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tiles.bytes() + (self.bounds.len() * size_of::<Bounds>()) as u64
    }

    /// Size in memory of the copy of an (n, k) matrix, before it is made.
    #[must_use]
    pub fn bytes_of(n: usize, k: usize) -> u64 {
        let (n_tiles, n_groups) = (n.div_ceil(ROWS), k.div_ceil(COLUMNS));
        (n_tiles as u64).saturating_mul((n_groups * size_of::<Group>() + size_of::<Bounds>()) as u64)
    }

    /// Outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    pub(super) fn n_groups(&self) -> usize {
        self.n_groups
    }

    pub(super) fn n_tiles(&self) -> usize {
        self.bounds.len()
    }

    pub(super) fn tile(&self, i: usize) -> (&[Group], &Bounds) {
        (&self.tiles[i * self.n_groups..][..self.n_groups], &self.bounds[i])
    }

    pub(super) fn unbounded(&self) -> &[u32] {
        &self.unbounded
    }
}

/// Weights that are rounded side by side.
const LANES: usize = 8;

/// Rounds a row, filled up with zeros to whole groups, to row `r` of a tile; its bounds as in [`Bounds`], infinite where it has none.
fn put_row(row: &[f32], r: usize, tile: &mut [Group]) -> (f32, f32) {
    let is_bounded = row.iter().all(|w| w.abs() <= LARGEST);
    let (mut ratio, mut length, mut left_out) = (0.0_f64, 0.0, 0.0);
    for (group, w) in tile.iter_mut().zip(row.as_chunks::<COLUMNS>().0) {
        if !is_bounded {
            group.scales[r] = LEAST_UNIT;
            continue;
        }
        let max = w.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
        let scale = (max / 127.0).max(LEAST_UNIT);
        group.scales[r] = scale;
        // What is left out is measured, so the nearest integer need not be found: a product will do where a division is slow.
        let inverse = 1.0 / scale;
        let (mut squares, mut misses) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        let pairs = group.pairs.as_chunks_mut::<{ LANES / 2 }>().0;
        for (pairs, w) in pairs.iter_mut().zip(w.as_chunks::<LANES>().0) {
            let q = w.map(|w| round_ties_even(w * inverse).clamp(-127.0, 127.0));
            for c in 0..LANES {
                let miss = f64::from(w[c]) - f64::from(scale) * f64::from(q[c]);
                misses[c] += miss * miss;
                squares[c] += f64::from(w[c]) * f64::from(w[c]);
            }
            let q = q.map(|q| q as i32 as i8);
            for (pair, q) in pairs.iter_mut().zip(q.as_chunks::<2>().0) {
                pair[r] = *q;
            }
        }
        let (misses, squares) = (misses.iter().sum::<f64>(), squares.iter().sum::<f64>());
        ratio = ratio.max(misses.sqrt() / f64::from(scale));
        left_out += misses;
        length += squares;
    }
    if !is_bounded {
        return (0.0, f32::INFINITY);
    }
    // The sum of scales times lengths is rounded once a term and once an addition, and then multiplied and added to.
    let roundings = 1.0 + 2.0 * (tile.len() + 8) as f64 * ROUNDING;
    (up(ratio * roundings), up(length.sqrt() + left_out.sqrt()))
}

/// Rows of activations as the copy is multiplied with them.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// (groups, tokens)
    pub(super) x: Vec<Column>,
    /// By token: see [`super::product::Job::spread`].
    pub(super) spread: Vec<f32>,
}

impl Columns {
    /// Rounds some rows of activations, each of `k` elements; all are bounded.
    pub(super) fn fill<'a>(&mut self, k: usize, rows: impl ExactSizeIterator<Item = &'a [f32]>) {
        const NONE: Column = Column {
            unit: 0.0,
            length: 0.0,
            x: [[0; 2]; COLUMNS / 2],
        };
        let (n, n_groups) = (rows.len(), k.div_ceil(COLUMNS));
        self.x.clear();
        self.x.resize(n_groups * n, NONE);
        self.spread.clear();
        for (t, row) in rows.enumerate() {
            let (mut length, mut rounded, mut left_out) = (0.0, 0.0, 0.0);
            for (g, y) in row.chunks(COLUMNS).enumerate() {
                let max = y.iter().fold(0.0_f32, |max, y| max.max(y.abs()));
                let unit = (max / f32::from(i16::MAX)).max(LEAST_UNIT);
                let column = &mut self.x[g * n + t];
                let mut squares = 0.0;
                for (c, &y) in y.iter().enumerate() {
                    let q = round_ties_even(y / unit).clamp(-f32::from(i16::MAX), f32::from(i16::MAX));
                    column.x[c / 2][c % 2] = q as i16;
                    let z = f64::from(unit) * f64::from(q);
                    let miss = f64::from(y) - z;
                    left_out += miss * miss;
                    rounded += z * z;
                    squares += f64::from(y) * f64::from(y);
                }
                column.unit = unit;
                column.length = up(squares.sqrt()).max(LEAST_UNIT);
                length += squares;
            }
            // The head adds up 32 sums at a time, then these; the screen converts, scales twice and adds once a group.
            let head = 2.0 * (k.div_ceil(32) + 8) as f64 * ROUNDING * length.sqrt();
            let screen = 2.0 * (n_groups + 8) as f64 * ROUNDING * rounded.sqrt();
            let spread = (left_out.sqrt() + head + screen) * (1.0 + 16.0 * ROUNDING);
            self.spread.push(up(spread).max(LEAST_UNIT));
        }
    }
}

/// Whether the bounds hold for products with this row of activations.
pub(super) fn is_bounded(y: &[f32]) -> bool {
    y.iter().all(|y| y.abs() <= LARGEST)
}

/// The next f32 that is not below `x`, a number computed in f64 from positive terms, up to [`ScreenMatrix::MAX_COLUMNS`].
fn up(x: f64) -> f32 {
    ((x * (1.0 + 1.0 / (1u64 << 30) as f64)) as f32).next_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_what_they_leave_out_are_bounded() {
        let mut row: Vec<f32> = (0..2 * COLUMNS).map(|c| (c as f32 * 0.7).sin() * 0.03).collect();
        row[5] = 11.0;
        let group = Group {
            scales: [0.0; ROWS],
            pairs: [[[0; 2]; ROWS]; COLUMNS / 2],
        };
        let mut tile = [group; 2];
        let (ratio, length) = put_row(&row, 3, &mut tile);
        let mut total = 0.0;
        for (g, w) in row.chunks(COLUMNS).enumerate() {
            let scale = f64::from(tile[g].scales[3]);
            let miss = |c: usize| f64::from(w[c]) - scale * f64::from(tile[g].pairs[c / 2][3][c % 2]);
            let misses: f64 = (0..COLUMNS).map(|c| miss(c).powi(2)).sum();
            assert!(misses.sqrt() <= f64::from(ratio) * scale);
            total += w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
        }
        assert!(total.sqrt() < f64::from(length) && f64::from(length) < 1.1 * total.sqrt());
        assert!(ratio < 5.7, "{ratio}");
        for bad in [f32::NAN, f32::INFINITY, 1e30] {
            row[200] = bad;
            assert_eq!(put_row(&row, 0, &mut tile), (0.0, f32::INFINITY));
        }
    }
}
