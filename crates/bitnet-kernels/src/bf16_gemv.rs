//! `y = W x` for dense bfloat16 `W` and up to eight columns of f32: the output head, and what ternary products are measured
//! against.
//!
//! On tensor cores, because plain multiply-adds spend twice the instructions on unpacking that they spend on arithmetic. A
//! lane takes 16 bytes of a row, eight consecutive columns: two steps of `mma.m16n8k16`, in which columns stand in another
//! order than in memory, the same in `W` and `x`. The activations are split into three bfloat16 terms that add up to the
//! f32 (24 = 3 * 8 bits), so their rounding costs nothing; products are exact and sums are f32.

use crate::{Global, Launch};

/// Most columns of [`Bf16Gemv`].
pub const MAX_COLS: u32 = 8;
/// Rows of a block.
const ROWS: u32 = 16;
/// Matrix columns that a warp takes at a time.
const GROUP: u32 = 32;
/// Groups of a warp whose loads are in flight together.
const DEPTH: u32 = 4;
/// Most warps of a block.
const MAX_WARPS: u32 = 12;

kernel! {
    /// `y[c][n] = r[c] * sum over k of w[n][k] norm[k] x[c][k]` with `r[c] = 1 / rms(x[c])`, for `cols` columns c.
    ///
    /// - Shapes: `w` (n, k) bfloat16, row-major; `x` (cols, k); `norm` (k); `y` (cols, n).
    /// - Launch: [`Bf16Gemv::launch`]; a block owns 16 rows, its warps take turns at groups of 32 columns.
    /// - Moves: `2 n k` bytes once, `x` and `norm` once a block, from L2.
    /// - Bound: DRAM; a lane has 8 loads of 16 bytes in flight, in at least 640 lanes a multiprocessor.
    ///
    /// Sums are added in an order that depends on `k` alone: lane by lane along k, then over the warps.
    ///
    /// # Safety
    /// Lengths as above; `w`, `x` and `norm` 16-byte aligned; `k` a multiple of 32; `1 <= cols <= 8`; the launch is
    /// [`Bf16Gemv::launch`]'s.
    bf16_gemv, block = [MAX_WARPS * 32, 1, 1], min_blocks = 2, body = device::run;
    pub struct Bf16Gemv {
        /// Weights, pairs of bfloat16, (n, k / 2).
        pub w: Global<u32>,
        /// Input rows, (cols, k).
        pub x: Global<f32>,
        /// Weight of the norm of the input, (k); ones where there is none.
        pub norm: Global<f32>,
        /// Output, (cols, n).
        pub y: Global<f32>,
        /// Rows of the matrix.
        pub n: u32,
        /// Columns of the matrix.
        pub k: u32,
        /// Columns of activations.
        pub cols: u32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
    }
}

impl Bf16Gemv {
    /// A block for 16 rows; as many warps as share the groups evenly.
    #[must_use]
    pub fn launch(n: usize, k: usize) -> Launch {
        let sets = (k as u32 / GROUP).div_ceil(DEPTH);
        let warps = sets.div_ceil(sets.div_ceil(MAX_WARPS));
        Launch {
            grid: [(n as u32).div_ceil(ROWS), 1, 1],
            block: [warps * 32, 1, 1],
            // Parts of (row, column), then squares of each column.
            shared_bytes: warps * (ROWS + 1) * MAX_COLS * 4,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use super::{Bf16Gemv, DEPTH, GROUP, MAX_COLS, ROWS};
    use crate::intrinsics::*;

    /// Three bfloat16 pairs that add up to a pair of f32.
    #[inline(always)]
    pub(crate) fn split3(low: f32, high: f32) -> [u32; 3] {
        let (first, low, high) = take(low, high);
        let (second, low, high) = take(low, high);
        [first, second, f32_to_bf16x2(low, high)]
    }

    /// A pair rounded to bfloat16, and what is left of it.
    #[inline(always)]
    fn take(low: f32, high: f32) -> (u32, f32, f32) {
        let pair = f32_to_bf16x2(low, high);
        let [l, h] = bf16x2_to_f32(pair);
        (pair, low - l, high - h)
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: Bf16Gemv) {
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane / 4, lane % 4);
        let groups = p.k / GROUP;
        let row = block_idx_x() * ROWS + g;
        let words = p.k as usize / 2;
        // Rows past the end repeat the last one; their results are not stored.
        let upper = row.min(p.n - 1) as usize * words + t as usize * 4;
        let lower = (row + 8).min(p.n - 1) as usize * words + t as usize * 4;
        let x =
            p.x.offset(g.min(p.cols - 1) as usize * p.k as usize + t as usize * 8);
        let norm = p.norm.offset(t as usize * 8);
        let parts = Shared::<f32>::at(0);
        let squares = Shared::<f32>::at(warps * ROWS * MAX_COLS * 4);
        let mut sum = [0.0; 4];
        let mut square = 0.0;
        let mut first = 0;
        // SAFETY: groups are compared with their number, rows and columns are clamped, shared indices are below the launch's
        // size; every branch around a warp or block operation is uniform.
        unsafe {
            while first < groups {
                let mut w = [[[0; 4]; 2]; DEPTH as usize];
                let mut i = 0;
                while i < DEPTH {
                    // Groups past the end repeat the last one, times zero.
                    let at = (first + i * warps + warp).min(groups - 1) as usize * 16;
                    w[i as usize] = [p.w.load_stream_x4(upper + at), p.w.load_stream_x4(lower + at)];
                    i += 1;
                }
                if first == 0 {
                    grid_dependency_launch();
                    grid_dependency_wait();
                }
                let mut i = 0;
                while i < DEPTH {
                    let group = first + i * warps + warp;
                    if group < groups {
                        let at = group as usize * 32;
                        let (x0, x1) = (x.load_x4(at), x.load_x4(at + 4));
                        let (n0, n1) = (norm.load_constant_x4(at), norm.load_constant_x4(at + 4));
                        let mut pairs = [[0; 3]; 4];
                        let mut j = 0;
                        while j < 2 {
                            let (a, b) = (2 * j, 2 * j + 1);
                            square = fma(x0[b], x0[b], fma(x0[a], x0[a], square));
                            square = fma(x1[b], x1[b], fma(x1[a], x1[a], square));
                            pairs[j] = split3(x0[a] * n0[a], x0[b] * n0[b]);
                            pairs[2 + j] = split3(x1[a] * n1[a], x1[b] * n1[b]);
                            j += 1;
                        }
                        // Step s takes words 2 s and 2 s + 1 of every lane's four.
                        let [up, low] = w[i as usize];
                        let mut s = 0;
                        while s < 2 {
                            let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                            let mut term = 0;
                            while term < 3 {
                                sum = mma_m16n8k16_bf16(a, [pairs[2 * s][term], pairs[2 * s + 1][term]], sum);
                                term += 1;
                            }
                            s += 1;
                        }
                    }
                    i += 1;
                }
                first += DEPTH * warps;
            }
            square += warp_shuffle_xor(FULL_MASK, square, 1);
            square += warp_shuffle_xor(FULL_MASK, square, 2);
            if t == 0 {
                squares.store(warp * MAX_COLS + g, square);
            }
            let mut j = 0;
            while j < 4 {
                // sum[j]: row g or g + 8, column 2 t or 2 t + 1.
                let (r, c) = (g + j as u32 / 2 * 8, 2 * t + j as u32 % 2);
                parts.store((warp * MAX_COLS + c) * ROWS + r, sum[j]);
                j += 1;
            }
            // Orders every warp's parts before the additions below.
            sync_threads();
            let mut at = thread_idx_x();
            while at < p.cols * ROWS {
                let (col, row) = (at / ROWS, block_idx_x() * ROWS + at % ROWS);
                let (mut total, mut square) = (0.0, 0.0);
                let mut i = 0;
                while i < warps {
                    total += parts.load(i * MAX_COLS * ROWS + at);
                    square += squares.load(i * MAX_COLS + col);
                    i += 1;
                }
                if row < p.n {
                    let r = if p.eps < 0.0 {
                        1.0
                    } else {
                        1.0 / sqrt(square / p.k as f32 + p.eps)
                    };
                    p.y.store(col as usize * p.n as usize + row as usize, total * r);
                }
                at += block_dim_x();
            }
        }
    }
}
