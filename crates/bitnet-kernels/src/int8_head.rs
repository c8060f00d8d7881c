//! The output head in 8 bits: weights rounded row by row when a model is loaded, activations of about 13 bits, exact sums.
//!
//! The numbers are those of the CPU's 8-bit head: a row is multiples of a 127th of its largest magnitude, a column multiples
//! of its largest magnitude over [`act::head_largest`], so that no sum of products leaves 32 bits. An activation is
//! `256 high + low` with two 8-bit terms, which are two columns of the tensor cores' product.

use crate::{Global, Launch};
use bitnet_layout::act;

/// Most tokens of [`Int8Gemv`].
pub const MAX_COLS: u32 = 32;
/// Threads of a block of [`Int8Rows`] and [`Int8Columns`].
const THREADS: u32 = 256;
/// Rows of a block of [`Int8Gemv`].
const ROWS: u32 = 16;
/// Columns of the tensor cores' product: four tokens of two terms.
const TILE: u32 = 8;
/// Matrix columns that a warp takes at a time.
const GROUP: u32 = 64;
/// Groups of a warp whose loads are in flight together.
const DEPTH: u32 = 4;
/// Most warps of a block of [`Int8Gemv`].
const MAX_WARPS: u32 = 12;

kernel! {
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
}

impl Int8Rows {
    /// A block a row.
    #[must_use]
    pub const fn launch(rows: u32) -> Launch {
        Launch {
            grid: [rows, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: THREADS / 32 * 4,
        }
    }
}

kernel! {
    /// `256 high + low = round(x[c] norm * largest / max|x[c] norm|)`, and what a unit of that is worth after the norm.
    ///
    /// - Shapes: `x` (cols, k); `norm` (k); `terms` (cols, 2, k) i8, high then low; `unit` (cols).
    /// - Launch: [`Int8Columns::launch`]; a block owns a column.
    /// - Moves: `4 cols k` bytes twice (the second time from L2), half of that out. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above; `x` and `norm` 16-byte aligned; `k` a multiple of 4.
    int8_columns, block = [THREADS, 1, 1], body = device::columns;
    pub struct Int8Columns {
        /// Input rows, (cols, k).
        pub x: Global<f32>,
        /// Weight of the norm of the input, (k).
        pub norm: Global<f32>,
        /// Terms, four a word, (cols, 2, k / 4).
        pub terms: Global<u32>,
        /// What a unit is worth, (cols).
        pub unit: Global<f32>,
        /// Elements of a column.
        pub k: u32,
        /// [`act::head_largest`] of k.
        pub largest: f32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
    }
}

impl Int8Columns {
    /// The largest value of [`Int8Columns::largest`] for columns of `k` elements.
    #[must_use]
    pub fn largest(k: usize) -> f32 {
        act::head_largest(k) as f32
    }

    /// A block a column.
    #[must_use]
    pub const fn launch(cols: u32) -> Launch {
        Launch {
            grid: [cols, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 2 * THREADS / 32 * 4,
        }
    }
}

kernel! {
    /// `y[c][n] = (sum over k of w[n][k] x[c][k]) * (scales[n] * unit[c])` for `cols` columns c.
    ///
    /// - Shapes: `w` (n, k) i8, row-major; `scales` (n); `terms`, `unit` as [`Int8Columns`] leaves them; `y` (cols, n).
    /// - Launch: [`Int8Gemv::launch`]; a block owns 16 rows and 4 columns, its warps take turns at groups of 64 matrix
    ///   columns. Blocks of the same rows are neighbors, so that L2 brings their weights once.
    /// - Moves: `n k` bytes once, `terms` once a block, from L2.
    /// - Bound: DRAM; a lane has 8 loads of 16 bytes in flight.
    ///
    /// # Safety
    /// Lengths as above; `w` and `terms` 16-byte aligned; `k` a multiple of 16; `cols` at least 1; the launch is
    /// [`Int8Gemv::launch`]'s.
    int8_gemv, block = [MAX_WARPS * 32, 1, 1], min_blocks = 2, body = device::gemv;
    pub struct Int8Gemv {
        /// Rounded weights, four a word, (n, k / 4).
        pub w: Global<u32>,
        /// What a unit of each row is worth, (n).
        pub scales: Global<f32>,
        /// The columns' terms.
        pub terms: Global<u32>,
        /// What a unit of each column is worth, (cols).
        pub unit: Global<f32>,
        /// Output, (cols, n).
        pub y: Global<f32>,
        /// Rows of the matrix.
        pub n: u32,
        /// Columns of the matrix.
        pub k: u32,
        /// Columns of activations.
        pub cols: u32,
    }
}

impl Int8Gemv {
    /// A block for 16 rows and 4 columns; as many warps as share the groups evenly.
    #[must_use]
    pub fn launch(&self) -> Launch {
        let sets = self.k.div_ceil(GROUP).div_ceil(DEPTH);
        let warps = sets.div_ceil(sets.div_ceil(MAX_WARPS));
        Launch {
            grid: [self.cols.div_ceil(TILE / 2), self.n.div_ceil(ROWS), 1],
            block: [warps * 32, 1, 1],
            shared_bytes: warps * ROWS * TILE * 4,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{DEPTH, GROUP, Int8Columns, Int8Gemv, Int8Rows, ROWS, THREADS, TILE};
    use crate::decode_linear::device::{add_squares, unit};
    use crate::intrinsics::*;
    use crate::reduce::{block_sum, warp_max};

    /// Largest of the block's magnitudes, given by their bits: NaN above all.
    ///
    /// # Safety
    /// All lanes of the block call this together; `scratch` is a word for every warp.
    #[inline(always)]
    unsafe fn largest(bits: u32, scratch: Shared<u32>) -> f32 {
        // SAFETY: the caller's promise; the barrier orders the warps' stores before the loads.
        unsafe {
            let bits = warp_reduce_max_u32(FULL_MASK, bits);
            if lane_id() == 0 {
                scratch.store(warp_id(), bits);
            }
            sync_threads();
            let mut max = 0;
            let mut warp = 0;
            while warp < THREADS / 32 {
                max = max.max(scratch.load(warp));
                warp += 1;
            }
            f32::from_bits(max)
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
            let max = largest(max, Shared::at(0));
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
    pub(super) unsafe fn columns(p: Int8Columns) {
        const WARPS: u32 = THREADS / 32;
        let col = block_idx_x() as usize;
        let x = p.x.offset(col * p.k as usize);
        let high = p.terms.offset(col * (p.k / 2) as usize);
        let low = high.offset((p.k / 4) as usize);
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: words are compared with k; every branch around a block operation is uniform.
        unsafe {
            let (mut max, mut squares) = (0.0f32, 0.0);
            let mut word = thread_idx_x();
            while word < p.k / 4 {
                let at = word as usize * 4;
                let (x, norm) = (x.load_l2_x4(at), p.norm.load_constant_x4(at));
                squares = add_squares(squares, x);
                let mut j = 0;
                while j < 4 {
                    max = max.max((x[j] * norm[j]).abs());
                    j += 1;
                }
                word += THREADS;
            }
            let max = largest(warp_max(max).to_bits(), Shared::at(0));
            let squares = block_sum::<WARPS>(squares, Shared::at(WARPS * 4));
            // The floor keeps the quotient finite. A NaN is not in the maximum, but in the squares, and so in every product.
            let scale = p.largest / max.max(1e-30);
            let mut word = thread_idx_x();
            while word < p.k / 4 {
                let at = word as usize * 4;
                let (x, norm) = (x.load_l2_x4(at), p.norm.load_constant_x4(at));
                let q: [i32; 4] = core::array::from_fn(|j| round_to_i32(x[j] * norm[j] * scale));
                // Low is -128 to 127, and so is high: no activation is larger than 127 * 256 + 127.
                let lows = q.map(|q| ((q + 128) & 255) - 128);
                high.store(
                    word as usize,
                    pack_i8x4(core::array::from_fn(|j| (q[j] - lows[j]) >> 8)),
                );
                low.store(word as usize, pack_i8x4(lows));
                word += THREADS;
            }
            if thread_idx_x() == 0 {
                p.unit.store(col, unit(squares, p.k, p.eps, scale));
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn gemv(p: Int8Gemv) {
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane / 4, lane % 4);
        let groups = p.k.div_ceil(GROUP);
        let words = (p.k / 4) as usize;
        let (first_row, first_col) = (block_idx_y() * ROWS, block_idx_x() * (TILE / 2));
        // Rows and columns past the end repeat the last; their results are not stored.
        let upper = (first_row + g).min(p.n - 1) as usize * words;
        let lower = (first_row + g + 8).min(p.n - 1) as usize * words;
        let terms = p
            .terms
            .offset((2 * first_col + g).min(2 * p.cols - 1) as usize * words);
        let parts = Shared::<i32>::at(0);
        let mut sum = [0; 4];
        let mut first = 0;
        // SAFETY: groups are compared with their number, words with those of a row, rows and columns are clamped, shared
        // indices are below the launch's size; every branch around a warp or block operation is uniform.
        unsafe {
            while first < groups {
                let mut w = [[[0; 4]; 2]; DEPTH as usize];
                let mut i = 0;
                while i < DEPTH {
                    // Past the end the last words again, times zero.
                    let at = ((first + i * warps + warp) * 16 + t * 4).min(p.k / 4 - 4) as usize;
                    w[i as usize] = [p.w.load_stream_x4(upper + at), p.w.load_stream_x4(lower + at)];
                    i += 1;
                }
                if first == 0 {
                    grid_dependency_launch();
                    grid_dependency_wait();
                }
                let mut i = 0;
                while i < DEPTH {
                    let at = (first + i * warps + warp) * 16 + t * 4;
                    let mut x = [0; 4];
                    if at < p.k / 4 {
                        x = terms.load_l2_x4(at as usize);
                    }
                    let [up, low] = w[i as usize];
                    // Step s takes words 2 s and 2 s + 1 of every lane's four.
                    let mut s = 0;
                    while s < 2 {
                        let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                        sum = mma_m16n8k32_s8_s8(a, [x[2 * s], x[2 * s + 1]], sum);
                        s += 1;
                    }
                    i += 1;
                }
                first += DEPTH * warps;
            }
            let mut j = 0;
            while j < 4 {
                // sum[j]: row g or g + 8, column 2 t or 2 t + 1.
                let (r, c) = (g + j as u32 / 2 * 8, 2 * t + j as u32 % 2);
                parts.store((warp * TILE + c) * ROWS + r, sum[j]);
                j += 1;
            }
            // Orders every warp's parts before the additions below.
            sync_threads();
            let mut at = thread_idx_x();
            while at < TILE / 2 * ROWS {
                let (token, r) = (at / ROWS, at % ROWS);
                let (row, col) = (first_row + r, first_col + token);
                let (mut high, mut low) = (0, 0);
                let mut i = 0;
                while i < warps {
                    let part = (i * TILE + 2 * token) * ROWS + r;
                    high += parts.load(part);
                    low += parts.load(part + ROWS);
                    i += 1;
                }
                if row < p.n && col < p.cols {
                    let worth = p.scales.load_constant(row as usize)[0] * p.unit.load_l2(col as usize)[0];
                    // The high terms alone may leave 32 bits, both together do not.
                    let total = (high << 8).wrapping_add(low);
                    p.y.store(col as usize * p.n as usize + row as usize, total as f32 * worth);
                }
                at += block_dim_x();
            }
        }
    }
}
