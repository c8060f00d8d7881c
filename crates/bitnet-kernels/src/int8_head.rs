//! The output head in 8 bits: weights rounded row by row when a model is loaded, activations of about 13 bits, exact sums.
//!
//! The numbers are those of the CPU's 8-bit head: a row is multiples of a 127th of its largest magnitude, a column multiples
//! of its largest magnitude over [`act::head_largest`], so that no sum of products leaves 32 bits. An activation is
//! `256 high + low` with two 8-bit terms, which are two columns of the tensor cores' product, [`crate::dense_gemv::Int8Gemv`] and
//! [`crate::int8_gemm`] and, in another order, [`crate::int8_hopper`].
//!
//! How far such a product is from that of the numbers as they were is bounded too, for [`crate::screen`].

use crate::{Global, Launch};
use bitnet_layout::act;

/// Threads of a block that has a row.
const THREADS: u32 = 256;
/// Threads of a block that has a column.
const COLUMN_THREADS: u32 = 640;

/// A block of `threads` for each of `n`, whose warps share `words` words each.
const fn a_block_each(n: u32, threads: u32, words: u32) -> Launch {
    Launch {
        grid: [n, 1, 1],
        block: [threads, 1, 1],
        shared_bytes: words * threads / 32 * 4,
    }
}

kernels! {
    /// `q[r] = round(w[r] * 127 / max|w[r]|)`, `scales[r] = max|w[r]| / 127`.
    ///
    /// - Shapes: `w` (rows, k) bfloat16; `q` (rows, k) i8; `scales` (rows).
    /// - Launch: [`Int8Rows::launch`]; a block owns a row.
    /// - Moves: `2 rows k` bytes twice (the second time from L2), half of that out. Bound: DRAM; it runs once a model.
    ///
    /// # Safety
    /// Lengths as above; `w` 8-byte aligned; `k` a multiple of 4.
    int8_rows, block = [THREADS, 1, 1], body = device::rows;
    pub struct Int8Rows {
        /// Weights, pairs of bfloat16, (rows, k / 2).
        pub w: Global<u32>,
        /// Rounded weights, four a word, (rows, k / 4).
        pub q: Global<u32>,
        /// What a unit of each row is worth, (rows).
        pub scales: Global<f32>,
        /// Columns.
        pub k: u32,
    }

    /// How long what [`Int8Rows`] left out of each row is, and how long the row is: `|w - v|` and at least `|w|` and `|v|`, rounded up,
    /// for the row `v = scale q` that is kept. Both are infinite where they have no bound.
    ///
    /// - Shapes: `w` (rows, k) bfloat16; `q` (rows, k) i8; `scales` (rows); `bounds` (rows, 2).
    /// - Launch: [`RowBounds::launch`]; a block owns a row.
    /// - Moves: `3 rows k` bytes. Bound: DRAM; it runs once a model.
    ///
    /// # Safety
    /// Lengths as above; `w` and `bounds` 8-byte aligned; `k` a multiple of 4.
    row_bounds, block = [THREADS, 1, 1], body = device::row_bounds;
    pub struct RowBounds {
        /// Weights, pairs of bfloat16, (rows, k / 2).
        pub w: Global<u32>,
        /// Rounded weights, four a word, (rows, k / 4).
        pub q: Global<u32>,
        /// What a unit of each row is worth, (rows).
        pub scales: Global<f32>,
        /// What was left out, and the row's length, (rows, 2).
        pub bounds: Global<f32>,
        /// Columns.
        pub k: u32,
    }

    /// `256 high + low = round(x[c] norm * largest / max|x[c] norm|)`, and what a unit of that is worth after the norm.
    ///
    /// - Shapes: `x` (cols, k); `norm` (k); `terms` (cols, 2, k) i8, high then low, or passes of `width` columns as
    ///   [`crate::int8_hopper::term_word`] says, padded with zeros; `unit` (cols); `bounds` (cols, 2).
    /// - Launch: [`Int8Columns::launch`]; a block owns a column, or one that pads a pass.
    /// - Moves: `4 cols k` bytes in, half of that out. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above; `x` and `norm` 16-byte aligned, `bounds` 8-byte aligned; `k` a multiple of 4.
    int8_columns, block = [COLUMN_THREADS, 1, 1], min_blocks = 1, body = device::columns;
    pub struct Int8Columns {
        /// Input rows, (cols, k).
        pub x: Global<f32>,
        /// Weight of the norm of the input, (k).
        pub norm: Global<f32>,
        /// Terms, four a word, (cols, 2, k / 4).
        pub terms: Global<u32>,
        /// What a unit is worth, (cols).
        pub unit: Global<f32>,
        /// What lengths of rows are multiplied by to bound a product's error, see [`crate::screen`], (cols, 2): first that of what a
        /// row left out, then its own.
        pub bounds: Global<f32>,
        /// Columns.
        pub cols: u32,
        /// Columns of a pass of [`crate::int8_hopper`]; 0 for the order of others.
        pub width: u32,
        /// Elements of a column.
        pub k: u32,
        /// [`act::head_largest`] of k.
        pub largest: f32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
    }
}

impl Int8Rows {
    /// A block a row.
    #[must_use]
    pub const fn launch(rows: u32) -> Launch {
        a_block_each(rows, THREADS, 1)
    }
}

impl RowBounds {
    /// A block a row.
    #[must_use]
    pub const fn launch(rows: u32) -> Launch {
        a_block_each(rows, THREADS, 2)
    }
}

impl Int8Columns {
    /// The largest value of [`Int8Columns::largest`] for columns of `k` elements.
    #[must_use]
    pub fn largest(k: usize) -> f32 {
        act::head_largest(k) as f32
    }

    /// A block a column, and each of those that fill the last pass.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        let blocks = match self.width {
            0 => self.cols,
            width => self.cols.next_multiple_of(width),
        };
        a_block_each(blocks, COLUMN_THREADS, 4)
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{COLUMN_THREADS, Int8Columns, Int8Rows, RowBounds, THREADS};
    use crate::decode_linear::device::add_squares;
    use crate::int8_hopper;
    use crate::intrinsics::*;
    use crate::reduce::{block_sum, warp_sum};

    const WARPS: u32 = THREADS / 32;

    /// Pieces of a column that a lane keeps in registers between the two passes: all of them for up to 5120 elements.
    const KEPT: usize = 2;

    /// Lengths are rounded up by this: more than what f32 loses of a sum of squares, its root and a product.
    const UP: f32 = 1.001;

    /// Rows whose unit is worth less, but more than nothing, have no bound: the reciprocal of their unit is not a number of f32.
    const LEAST_UNIT: f32 = 1e-36;

    /// Largest of the magnitudes of a block of `warps` warps, given by their bits: NaN above all.
    ///
    /// # Safety
    /// All lanes of the block call this together; `scratch` is a word for every warp.
    #[inline(always)]
    unsafe fn largest(bits: u32, warps: u32, scratch: Shared<u32>) -> f32 {
        // SAFETY: the caller's promise; the barrier orders the warps' stores before the loads.
        unsafe {
            let bits = warp_reduce_max_u32(FULL_MASK, bits);
            if lane_id() == 0 {
                scratch.store(warp_id(), bits);
            }
            sync_threads();
            let of_lane = scratch.load(if lane_id() < warps { lane_id() } else { 0 });
            f32::from_bits(warp_reduce_max_u32(FULL_MASK, of_lane))
        }
    }

    /// What a code of a row is worth: `1 / (rms * scale)`, or `1 / scale` for a negative `eps`, which means no norm.
    #[inline(always)]
    fn unit(squares: f32, k: u32, eps: f32, scale: f32) -> f32 {
        if eps < 0.0 {
            1.0 / scale
        } else {
            1.0 / (sqrt(squares / k as f32 + eps) * scale)
        }
    }

    #[inline(always)]
    pub(super) unsafe fn rows(p: Int8Rows) {
        let row = block_idx_x() as usize;
        let (w, q) = (
            p.w.offset(row * (p.k / 2) as usize),
            p.q.offset(row * (p.k / 4) as usize),
        );
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: words are compared with k; every branch around a block operation is uniform.
        unsafe {
            let mut max = 0;
            let mut word = thread_idx_x();
            while word < p.k / 2 {
                let pair = w.load_l2(word as usize)[0];
                max = max.max(pair << 16 & 0x7fff_ffff).max(pair & 0x7fff_0000);
                word += THREADS;
            }
            let max = largest(max, WARPS, Shared::at(0));
            let factor = if max == 0.0 { 0.0 } else { 127.0 / max };
            let mut word = thread_idx_x();
            while word < p.k / 4 {
                let [low, high] = w.load_l2_x2(2 * word as usize).map(bf16x2_to_f32);
                let all = [low[0], low[1], high[0], high[1]];
                q.store(word as usize, pack_i8x4(all.map(|w| round_to_i32(w * factor))));
                word += THREADS;
            }
            if thread_idx_x() == 0 {
                p.scales.store(row, max / 127.0);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn row_bounds(p: RowBounds) {
        let row = block_idx_x() as usize;
        let (w, q) = (
            p.w.offset(row * (p.k / 2) as usize),
            p.q.offset(row * (p.k / 4) as usize),
        );
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: words are compared with k; every branch around a block operation is uniform.
        unsafe {
            let scale = p.scales.load_l2(row)[0];
            // In units of the row, so that squares neither vanish nor leave f32.
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let (mut left_out, mut length) = (0.0f32, 0.0f32);
            let mut word = thread_idx_x();
            while word < p.k / 4 {
                let [low, high] = w.load_l2_x2(2 * word as usize).map(bf16x2_to_f32);
                let codes = q.load_l2(word as usize)[0];
                let all = [low[0], low[1], high[0], high[1]];
                let mut j = 0;
                while j < 4 {
                    let units = all[j] * inverse;
                    let code = (codes >> (8 * j)) as i8;
                    // The reciprocal and the product are off by less than a share of 2^-22 of 127 units.
                    let rest = (units - code as f32).abs() + 1.0 / 16384.0;
                    left_out = fma(rest, rest, left_out);
                    length = fma(units, units, length);
                    j += 1;
                }
                word += THREADS;
            }
            let left_out = block_sum::<WARPS>(left_out, Shared::at(0));
            let length = block_sum::<WARPS>(length, Shared::at(WARPS * 4));
            if thread_idx_x() == 0 {
                let left_out = UP * scale * sqrt(left_out);
                let length = UP * scale * sqrt(length) + left_out;
                // Of a row of zeros nothing is left out. A NaN is not at least the least.
                let is_bounded = scale >= LEAST_UNIT && length < f32::INFINITY;
                let bounds = if is_bounded {
                    [left_out, length]
                } else if scale == 0.0 {
                    [0.0; 2]
                } else {
                    [f32::INFINITY; 2]
                };
                p.bounds.store_x2(row * 2, bounds);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn columns(p: Int8Columns) {
        const WARPS: u32 = COLUMN_THREADS / 32;
        let (col, words) = (block_idx_x() as usize, p.k / 4);
        let x = p.x.offset(col * p.k as usize);
        let place = |term: u32, word: u32| {
            if p.width == 0 {
                return (col as u32 * (p.k / 2) + term * words + word) as usize;
            }
            // In a pass are whole steps of 32 words of so many columns, two terms each.
            let (pass, within) = (col as u32 / p.width, col as u32 % p.width);
            let words = p.k.div_ceil(128) * 64 * p.width;
            (pass * words + int8_hopper::term_word(p.width, within, term, word)) as usize
        };
        // Piece i of this lane: four elements.
        let word = |i: u32| thread_idx_x() + i * COLUMN_THREADS;
        let parts = |which: u32| Shared::<f32>::at((1 + which) * WARPS * 4);
        // SAFETY: words are compared with k; every branch around a block operation is uniform.
        unsafe {
            let norm_of = |i: u32| p.norm.load_constant_x4(word(i) as usize * 4);
            let x_of = |i: u32| x.load_l2_x4(word(i) as usize * 4);
            let mut norms = [[0.0; 4]; KEPT];
            let mut i = 0;
            while i < KEPT {
                if word(i as u32) < words {
                    norms[i] = norm_of(i as u32);
                }
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            if p.width > 0 {
                // What pads a column, and columns that pad the pass.
                let first = if col as u32 >= p.cols { 0 } else { words };
                let mut word = first + thread_idx_x();
                while word < p.k.div_ceil(128) * 32 {
                    p.terms.store(place(0, word), 0);
                    p.terms.store(place(1, word), 0);
                    word += COLUMN_THREADS;
                }
                if col as u32 >= p.cols {
                    return;
                }
            }
            let mut kept = [[0.0; 4]; KEPT];
            let mut i = 0;
            while i < KEPT {
                if word(i as u32) < words {
                    kept[i] = x_of(i as u32);
                }
                i += 1;
            }
            let (mut max, mut squares) = (0.0f32, 0.0);
            let mut see = |x: [f32; 4], norm: [f32; 4]| {
                squares = add_squares(squares, x);
                let y: [f32; 4] = core::array::from_fn(|j| x[j] * norm[j]);
                let mut j = 0;
                while j < 4 {
                    max = max.max(y[j].abs());
                    j += 1;
                }
                y
            };
            let mut i = 0;
            while i < KEPT {
                kept[i] = see(kept[i], norms[i]);
                i += 1;
            }
            let mut i = KEPT as u32;
            while word(i) < words {
                see(x_of(i), norm_of(i));
                i += 1;
            }
            let max = largest(max.to_bits(), WARPS, Shared::at(0));
            // The floor keeps the quotient finite. A NaN is not in the maximum, but in the squares, and so in every product.
            let scale = p.largest / max.max(1e-30);
            // Squares of the column and of what is left out of it, in units.
            let (mut length, mut left_out) = (0.0f32, 0.0);
            let mut put = |i: u32, y: [f32; 4]| {
                let q: [i32; 4] = core::array::from_fn(|j| round_to_i32(y[j] * scale));
                let mut j = 0;
                while j < 4 {
                    let rest = fma(y[j], scale, -(q[j] as f32));
                    length = fma(y[j] * scale, y[j] * scale, length);
                    left_out = fma(rest, rest, left_out);
                    j += 1;
                }
                // Low is -128 to 127, and so is high: no activation is larger than 127 * 256 + 127.
                let lows = q.map(|q| ((q + 128) & 255) - 128);
                let highs = core::array::from_fn(|j| (q[j] - lows[j]) >> 8);
                p.terms.store(place(0, word(i)), pack_i8x4(highs));
                p.terms.store(place(1, word(i)), pack_i8x4(lows));
            };
            let mut i = 0;
            while i < KEPT {
                if word(i as u32) < words {
                    put(i as u32, kept[i]);
                }
                i += 1;
            }
            let mut i = KEPT as u32;
            while word(i) < words {
                let (x, norm) = (x_of(i), norm_of(i));
                put(i, core::array::from_fn(|j| x[j] * norm[j]));
                i += 1;
            }
            let sums = [warp_sum(squares), warp_sum(length), warp_sum(left_out)];
            if lane_id() == 0 {
                let mut which = 0;
                while which < 3 {
                    parts(which as u32).store(warp_id(), sums[which]);
                    which += 1;
                }
            }
            // Orders every warp's sums before the loads below.
            sync_threads();
            if warp_id() == 0 {
                let of_lane = |which: u32| {
                    let sum = parts(which).load(lane_id().min(WARPS - 1));
                    if lane_id() < WARPS { sum } else { 0.0 }
                };
                let [squares, length, left_out] = [of_lane(0), of_lane(1), of_lane(2)];
                let (squares, length, left_out) = (warp_sum(squares), warp_sum(length), warp_sum(left_out));
                if lane_id() == 0 {
                    let unit = unit(squares, p.k, p.eps, scale);
                    p.unit.store(col, unit);
                    let reach = UP * sqrt(length) * unit;
                    // What sums of k products can lose to rounding, in the order of the exact product and in this one, with the
                    // inverse of the norm and the screening product's own few roundings: a share of 2^-23 each.
                    let lost = (p.k + 256) as f32 * (1.0 / 8_388_608.0);
                    let slack = fma(lost, reach, UP * sqrt(left_out) * unit);
                    p.bounds.store_x2(col * 2, [reach, slack]);
                }
            }
        }
    }
}
