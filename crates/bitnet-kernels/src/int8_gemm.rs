//! `y = W x` for 8-bit `W` and up to 64 columns, with the bits of [`crate::dense_gemv::Int8Gemv`]: the 8-bit output head of a batch,
//! whose weights are read once.
//!
//! Weights and the columns' terms come to shared memory by `cp.async` in a ring of stages of 128 matrix columns. Sums are exact, so
//! any order of the matrix columns will do: a lane takes 16 bytes of a row and of a column as they lie, which are two steps of the
//! tensor cores.

use crate::{Global, Launch};

/// Most columns.
pub const MAX_COLS: u32 = 64;
/// Rows of a block.
const ROWS: u32 = 128;
/// Columns that a tensor core's tile takes.
const TILE: u32 = 8;
/// Threads of a block: a warp for 16 rows.
const THREADS: u32 = ROWS / 16 * 32;
/// Stages of the ring.
const STAGES: u32 = 3;
/// Bytes of a row in a stage.
const LINE: u32 = 128;
/// Bytes of a stage's weights.
const WEIGHT_BYTES: u32 = ROWS * LINE;

kernels! {
    /// `y[c][n] = (sum over k of w[n][k] x[c][k]) * (scales[n] * unit[c])` for `cols` columns c.
    ///
    /// - Shapes: `w` (n, k) i8, row-major; `scales` (n); `terms`, `unit` as [`crate::int8_head::Int8Columns`] leaves them; `y`
    ///   (cols, n).
    /// - Launch: [`Int8Gemm::launch`]; a block owns 128 rows, a warp 16 of them and all columns.
    /// - Moves: `n k` bytes once; `terms` once a block, from L2.
    /// - Bound: DRAM up to 32 columns; shared memory, which gives a warp 32 times its columns in bytes for each instruction of the
    ///   tensor cores' 16 rows, at 64.
    ///
    /// # Safety
    /// Lengths as above; `w` and `terms` 16-byte aligned; `k` a multiple of 16; `1 <= cols <= 64`; the launch is
    /// [`Int8Gemm::launch`]'s.
    int8_gemm, block = [THREADS, 1, 1], min_blocks = 2, body = device::run;
    pub struct Int8Gemm {
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

impl Int8Gemm {
    /// A block for 128 rows.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [self.n.div_ceil(ROWS), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: STAGES * stage_bytes(self.cols),
        }
    }
}

/// Bytes of a stage: the weights, and both terms of whole tiles of columns.
const fn stage_bytes(cols: u32) -> u32 {
    WEIGHT_BYTES + cols.div_ceil(TILE) * TILE * 2 * LINE
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{Int8Gemm, LINE, MAX_COLS, ROWS, STAGES, THREADS, TILE, WEIGHT_BYTES, stage_bytes};
    use crate::intrinsics::*;

    /// Most tiles of columns.
    const TILES: u32 = MAX_COLS / TILE;

    /// Where 16-byte chunk `chunk` (0..8) of line `line` lies, in bytes: lines that lanes read together lie in different banks.
    #[inline(always)]
    fn swizzled(line: u32, chunk: u32) -> u32 {
        (line * 8 + (chunk ^ (line % 2 * 4))) * 16
    }

    /// Copies 128 matrix columns of the weights and of the terms, from column `128 step` on, into ring stage `stage`.
    ///
    /// # Safety
    /// All threads of the block call this; the stage is free.
    #[inline(always)]
    unsafe fn fetch(p: &Int8Gemm, step: u32, stage: u32) {
        let words = p.k / 4;
        let start = stage * stage_bytes(p.cols);
        let first = step * (LINE / 4);
        // SAFETY: rows, columns and words are clamped; offsets are below a stage's size.
        unsafe {
            let mut piece = thread_idx_x();
            while piece < ROWS * 8 {
                let (row, chunk) = (piece / 8, piece % 8);
                let from = (block_idx_x() * ROWS + row).min(p.n - 1) as usize * words as usize;
                // Past the end of a row its last piece again, times zero.
                let word = (first + chunk * 4).min(words - 4);
                async_copy_16(
                    Shared::<u32>::at(start + swizzled(row, chunk)),
                    p.w.offset(from + word as usize),
                );
                piece += THREADS;
            }
            let mut piece = thread_idx_x();
            while piece < p.cols.div_ceil(TILE) * TILE * 2 * 8 {
                let (line, chunk) = (piece / 8, piece % 8);
                // Lines: tile by tile the high terms of 8 columns, then the low ones.
                let (tile, term, g) = (line / 16, line / 8 % 2, line % 8);
                let col = (tile * TILE + g).min(p.cols - 1);
                let to = Shared::<u32>::at(start + WEIGHT_BYTES + swizzled(line, chunk));
                let word = first + chunk * 4;
                if word < words {
                    let from = (col * 2 + term) as usize * words as usize + word as usize;
                    async_copy_16(to, p.terms.offset(from));
                } else {
                    to.store_x4(0, [0; 4]);
                }
                piece += THREADS;
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: Int8Gemm) {
        let (lane, warp) = (lane_id(), warp_id());
        let (g, t) = (lane / 4, lane % 4);
        let steps = p.k.div_ceil(LINE);
        let tiles = p.cols.div_ceil(TILE) as usize;
        let mut sums = [[[0; 4]; 2]; TILES as usize];
        // SAFETY: see `fetch`; stored rows and columns are compared with their numbers; every branch around a warp or block
        // operation is uniform.
        unsafe {
            grid_dependency_launch();
            grid_dependency_wait();
            let mut step = 0;
            while step < STAGES - 1 {
                if step < steps {
                    fetch(&p, step, step);
                }
                async_copy_commit();
                step += 1;
            }
            let mut step = 0;
            while step < steps {
                async_copy_wait::<{ STAGES as usize - 2 }>();
                // Orders this stage's copies of all threads before the loads below, and the loads of the stage that the next
                // fetch overwrites before it.
                sync_threads();
                if step + STAGES - 1 < steps {
                    fetch(&p, step + STAGES - 1, (step + STAGES - 1) % STAGES);
                }
                async_copy_commit();
                let start = step % STAGES * stage_bytes(p.cols);
                let mut half = 0;
                while half < 2 {
                    let chunk = half * 4 + t;
                    let row = warp * 16 + g;
                    let up = Shared::<u32>::at(start + swizzled(row, chunk)).load_x4(0);
                    let low = Shared::<u32>::at(start + swizzled(row + 8, chunk)).load_x4(0);
                    let mut tile = 0;
                    while tile < TILES as usize {
                        if tile < tiles {
                            let mut term = 0;
                            while term < 2 {
                                let line = (tile as u32 * 2 + term as u32) * TILE + g;
                                let x = start + WEIGHT_BYTES + swizzled(line, chunk);
                                let x = Shared::<u32>::at(x).load_x4(0);
                                let mut s = 0;
                                while s < 2 {
                                    let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                                    let b = [x[2 * s], x[2 * s + 1]];
                                    sums[tile][term] = mma_m16n8k32_s8_s8(a, b, sums[tile][term]);
                                    s += 1;
                                }
                                term += 1;
                            }
                        }
                        tile += 1;
                    }
                    half += 1;
                }
                step += 1;
            }
            let mut i = 0;
            while i < TILES as usize * 4 {
                let (tile, j) = (i / 4, i % 4);
                // sums[tile][term][j]: row g or g + 8, column 2 t or 2 t + 1. The high terms alone may leave 32 bits, both together
                // do not.
                let total = (sums[tile][0][j] << 8).wrapping_add(sums[tile][1][j]);
                let row = block_idx_x() * ROWS + warp * 16 + g + j as u32 / 2 * 8;
                let col = tile as u32 * TILE + 2 * t + j as u32 % 2;
                if row < p.n && col < p.cols {
                    let scale = p.scales.load_constant(row as usize)[0];
                    let unit = p.unit.load_l2(col as usize)[0];
                    let at = col as usize * p.n as usize + row as usize;
                    p.y.store(at, total as f32 * (scale * unit));
                }
                i += 1;
            }
        }
    }
}
