//! Between what the products of one row of activations are, and which of them can be among the largest.

use super::product::ROWS;

/// By row of the matrix, filled up to whole tiles, and by tile.
pub(super) struct Scores<'a> {
    /// Negative infinity where a row is left out.
    pub(super) lower: &'a mut [[f32; ROWS]],
    pub(super) upper: &'a mut [[f32; ROWS]],
    /// The largest of each tile.
    pub(super) tile_lower: &'a mut [f32],
    pub(super) tile_upper: &'a mut [f32],
}

/// The largest of the rows of a tile.
pub(super) fn largest(x: &[f32; ROWS]) -> f32 {
    x.iter()
        .fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

impl Scores<'_> {
    /// Leaves a row out.
    pub(super) fn leave_out(&mut self, row: u32) {
        let (tile, r) = (row as usize / ROWS, row as usize % ROWS);
        (self.lower[tile][r], self.upper[tile][r]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        self.tile_lower[tile] = largest(&self.lower[tile]);
        self.tile_upper[tile] = largest(&self.upper[tile]);
    }

    /// Leaves out the rows whose bit is 0, and those past the last bit.
    pub(super) fn leave_only(&mut self, allowed: &[u32]) {
        for tile in 0..self.lower.len() {
            let word = allowed.get(tile / 2).copied().unwrap_or(0);
            let bits = (word >> (tile % 2 * ROWS)) as u16;
            if bits == u16::MAX {
                continue;
            }
            for r in 0..ROWS {
                if bits >> r & 1 == 0 {
                    (self.lower[tile][r], self.upper[tile][r]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                }
            }
            self.tile_lower[tile] = largest(&self.lower[tile]);
            self.tile_upper[tile] = largest(&self.upper[tile]);
        }
    }

    /// The `k` rows of the largest lower ends; fewer where there are not so many.
    pub(super) fn first(&self, k: usize, out: &mut Vec<(f32, u32)>) {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0);
        let mut threshold = f32::NEG_INFINITY;
        out.clear();
        for (tile, lower) in self.lower.iter().enumerate() {
            if self.tile_lower[tile] <= threshold {
                continue;
            }
            for (row, &lower) in (tile * ROWS..).zip(lower) {
                if lower > threshold {
                    out.push((lower, row as u32));
                    if out.len() == 2 * k {
                        out.select_nth_unstable_by(k - 1, order);
                        out.truncate(k);
                        threshold = out[k - 1].0;
                    }
                }
            }
        }
        if out.len() > k {
            out.select_nth_unstable_by(k - 1, order);
            out.truncate(k);
        }
    }

    /// The rows whose upper end is not below `threshold`.
    pub(super) fn at_least(&self, threshold: f32, out: &mut Vec<u32>) {
        out.clear();
        for (tile, upper) in self.upper.iter().enumerate() {
            // A threshold that is not a number keeps all.
            if self.tile_upper[tile] < threshold {
                continue;
            }
            for (row, &upper) in (tile * ROWS..).zip(upper) {
                let is_below = upper < threshold || upper == f32::NEG_INFINITY;
                if !is_below {
                    out.push(row as u32);
                }
            }
        }
    }
}
