//! `y = W x` for dense bfloat16 `W` and up to 32 columns of f32, with the bits of [`crate::dense_gemv::Bf16Gemv`]: the output head of a
//! batch, whose weights are read once.
//!
//! [`SplitColumns`] splits the columns into their three bfloat16 terms and lays them out as fragments; [`Bf16Gemm`] brings
//! weights and terms to shared memory by `cp.async` in a ring of stages. A column's sums are those of the product for few
//! columns, in its order: its warps each add up the two halves of their lines of 64 matrix columns, then their parts are
//! added. Here a warp adds up all parts of its rows.

use crate::{Global, Launch, dense_gemv};

/// Most columns.
pub const MAX_COLS: u32 = 32;
/// Rows of a block.
const ROWS: u32 = 128;
/// Matrix columns of a group.
const GROUP: u32 = 32;
/// Columns that a tensor core's tile takes.
const TILE: u32 = 8;
/// Tiles of columns.
const TILES: u32 = MAX_COLS / TILE;
/// Bfloat16 terms of an f32.
const TERMS: u32 = 3;
/// Words of a group's terms.
const TERM_WORDS: u32 = TILES * TERMS * 32 * 4;
/// Most threads of a block of [`SplitColumns`].
const SPLIT_THREADS: u32 = 512;
/// Threads of a block of [`Bf16Gemm`]: a warp for 16 rows.
const THREADS: u32 = ROWS / 16 * 32;
/// Stages of the ring: what fits a block of compute capability 8.9, and twice a multiprocessor of 9.0.
const STAGES: u32 = 3;
/// Bytes of a stage's weights: two groups of every row.
const WEIGHT_BYTES: u32 = ROWS * 2 * GROUP * 2;
/// Bytes of a stage.
const STAGE_BYTES: u32 = WEIGHT_BYTES + 2 * TERM_WORDS * 4;

/// Words of [`SplitColumns::terms`] for columns of `k` elements.
#[must_use]
pub const fn term_words(k: usize) -> usize {
    k / GROUP as usize * TERM_WORDS as usize
}

kernels! {
    /// `terms = split(x[c] norm)`, `inverse[c] = 1 / rms(x[c])`, for `cols` columns c.
    ///
    /// - Shapes: `x` (cols, k); `norm` (k); `terms` ([`term_words`]), per group of 32 matrix columns, tile of 8 columns and
    ///   term a B fragment of two `mma.m16n8k16`; columns past `cols` repeat the last; `inverse` (cols).
    /// - Launch: [`SplitColumns::launch`]; a block owns a column.
    /// - Moves: `4 cols k` bytes in, `6 * 32 k` out. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above; `x`, `norm` and `terms` 16-byte aligned; `k` a multiple of 32; `1 <= cols <= 32`; the launch is
    /// [`SplitColumns::launch`]'s.
    split_columns, block = [SPLIT_THREADS, 1, 1], body = device::split;
    pub struct SplitColumns {
        /// Input rows, (cols, k).
        pub x: Global<f32>,
        /// Weight of the norm of the input, (k).
        pub norm: Global<f32>,
        /// Pairs of bfloat16.
        pub terms: Global<u32>,
        /// What the sums are multiplied by, (cols).
        pub inverse: Global<f32>,
        /// Elements of a column.
        pub k: u32,
        /// Columns.
        pub cols: u32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
    }

    /// `y[c][n] = inverse[c] * sum over k of w[n][k] x[c][k]` for `cols` columns c, given as terms.
    ///
    /// - Shapes: `w` (n, k) bfloat16, row-major; `terms`, `inverse` as [`SplitColumns`] leaves them; `y` (cols, n).
    /// - Launch: [`Bf16Gemm::launch`]; a block owns 128 rows, a warp 16 of them and all columns.
    /// - Moves: `2 n k` bytes once; `terms` once a block, from L2.
    /// - Bound: DRAM, if the tensor cores and L2 keep up: three products and 1.5 bytes of terms for every byte of weights.
    ///
    /// # Safety
    /// Lengths as above; `w` and `terms` 16-byte aligned; `k` a multiple of 32; `1 <= cols <= 32`; `parts` is
    /// [`dense_gemv::bf16_parts`] of k, the launch [`Bf16Gemm::launch`]'s.
    bf16_gemm, block = [THREADS, 1, 1], min_blocks = 2, body = device::run;
    pub struct Bf16Gemm {
        /// Weights, pairs of bfloat16, (n, k / 2).
        pub w: Global<u32>,
        /// The columns' terms.
        pub terms: Global<u32>,
        /// What the sums are multiplied by, (cols).
        pub inverse: Global<f32>,
        /// Output, (cols, n).
        pub y: Global<f32>,
        /// Rows of the matrix.
        pub n: u32,
        /// Columns of the matrix.
        pub k: u32,
        /// Columns of activations.
        pub cols: u32,
        /// Parts of a sum.
        pub parts: u32,
    }
}

impl SplitColumns {
    /// A block for each of 32 columns, with the warps that the product for few columns has.
    #[must_use]
    pub fn launch(&self) -> Launch {
        let warps = dense_gemv::bf16_parts(self.k as usize);
        Launch {
            grid: [MAX_COLS, 1, 1],
            block: [warps * 32, 1, 1],
            shared_bytes: warps * 4,
        }
    }
}

impl Bf16Gemm {
    /// A block for 128 rows.
    #[must_use]
    pub const fn launch(n: usize) -> Launch {
        Launch {
            grid: [(n as u32).div_ceil(ROWS), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: STAGES * STAGE_BYTES,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{
        Bf16Gemm, GROUP, ROWS, STAGE_BYTES, STAGES, SplitColumns, TERM_WORDS, TERMS, THREADS, TILE, TILES,
        WEIGHT_BYTES,
    };
    use crate::dense_gemv::bf16::split_column;
    use crate::intrinsics::*;

    #[inline(always)]
    pub(super) unsafe fn split(p: SplitColumns) {
        // Columns past the end repeat the last.
        let own = block_idx_x();
        let from = own.min(p.cols - 1) as usize * p.k as usize;
        let (tile, g) = (own / TILE, own % TILE);
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: the column is clamped; places are those of units of the column.
        unsafe {
            let inverse = split_column(
                p.x.offset(from),
                p.norm,
                p.k,
                p.eps,
                Shared::at(0),
                1,
                |unit, pairs| {
                    let (group, lane) = (unit / 4, g * 4 + unit % 4);
                    let mut term = 0;
                    while term < TERMS {
                        let fragment = (group * TILES + tile) * TERMS + term;
                        let words = core::array::from_fn(|i: usize| pairs[i][term as usize]);
                        p.terms.store_x4((fragment * 32 + lane) as usize * 4, words);
                        term += 1;
                    }
                },
            );
            if thread_idx_x() == 0 && own < p.cols {
                p.inverse.store(own as usize, inverse);
            }
        }
    }

    /// Where a stage is along a row: the part that its two groups belong to, and the turn at which it takes them.
    #[derive(Clone, Copy)]
    struct Place {
        part: u32,
        turn: u32,
    }

    impl Place {
        /// The next stage's, when each part takes `turns` lines.
        #[inline(always)]
        fn next(self, turns: u32) -> Self {
            if self.turn + 1 < turns {
                Self {
                    turn: self.turn + 1,
                    ..self
                }
            } else {
                Self {
                    part: self.part + 1,
                    turn: 0,
                }
            }
        }
    }

    /// Where 16-byte chunk `chunk` (0..8) of row `row` lies among a stage's weights, in bytes: rows that lanes read together
    /// lie in different banks.
    #[inline(always)]
    fn swizzled(row: u32, chunk: u32) -> u32 {
        (row * 8 + (chunk ^ (row % 2 * 4))) * 16
    }

    /// Copies the weights and terms of the two groups at `place` into ring stage `stage`.
    ///
    /// # Safety
    /// All threads of the block call this; the stage is free.
    #[inline(always)]
    unsafe fn fetch(p: &Bf16Gemm, place: Place, stage: u32) {
        let me = thread_idx_x();
        let groups = p.k / GROUP;
        let first = 2 * (place.part + place.turn * p.parts);
        let start = stage * STAGE_BYTES;
        // SAFETY: groups and rows past the end repeat the last, and are not used; offsets are below a stage's size.
        unsafe {
            let mut piece = me;
            while piece < ROWS * 8 {
                let (row, chunk) = (piece / 8, piece % 8);
                let group = (first + chunk / 4).min(groups - 1);
                let from = (block_idx_x() * ROWS + row).min(p.n - 1) as usize * (p.k / 2) as usize;
                async_copy_16(
                    Shared::<u32>::at(start + swizzled(row, chunk)),
                    p.w.offset(from + (group * 16 + chunk % 4 * 4) as usize),
                );
                piece += THREADS;
            }
            let mut piece = me;
            while piece < 2 * TERM_WORDS / 4 {
                let (half, word) = (piece / (TERM_WORDS / 4), piece % (TERM_WORDS / 4) * 4);
                let group = (first + half).min(groups - 1);
                async_copy_16(
                    Shared::<u32>::at(start + WEIGHT_BYTES + piece * 16),
                    p.terms.offset((group * TERM_WORDS + word) as usize),
                );
                piece += THREADS;
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: Bf16Gemm) {
        let (lane, warp) = (lane_id(), warp_id());
        let (g, t) = (lane / 4, lane % 4);
        let groups = p.k / GROUP;
        // Never zero; this spares the division its trap.
        let turns = groups.div_ceil(2).div_ceil(p.parts.max(1));
        let stages = p.parts * turns;
        let mut total = [[0.0; 4]; TILES as usize];
        let mut acc = [[[0.0; 4]; TILES as usize]; 2];
        let mut ahead = Place { part: 0, turn: 0 };
        let mut place = ahead;
        // SAFETY: see `fetch`; stored rows and columns are compared with their numbers; every branch around a warp or block
        // operation is uniform.
        unsafe {
            grid_dependency_launch();
            grid_dependency_wait();
            let mut stage = 0;
            while stage < STAGES - 1 {
                if stage < stages {
                    fetch(&p, ahead, stage);
                    ahead = ahead.next(turns);
                }
                async_copy_commit();
                stage += 1;
            }
            let mut stage = 0;
            while stage < stages {
                async_copy_wait::<{ STAGES as usize - 2 }>();
                // Orders this stage's copies of all threads before the loads below, and the loads of the stage that the next
                // fetch overwrites before it.
                sync_threads();
                if stage + STAGES - 1 < stages {
                    fetch(&p, ahead, (stage + STAGES - 1) % STAGES);
                    ahead = ahead.next(turns);
                }
                async_copy_commit();
                let start = stage % STAGES * STAGE_BYTES;
                let mut half = 0;
                while half < 2 {
                    if 2 * (place.part + place.turn * p.parts) + (half as u32) < groups {
                        let row = warp * 16 + g;
                        let chunk = half as u32 * 4 + t;
                        let up = Shared::<u32>::at(start + swizzled(row, chunk)).load_x4(0);
                        let low = Shared::<u32>::at(start + swizzled(row + 8, chunk)).load_x4(0);
                        let terms = start + WEIGHT_BYTES + half as u32 * TERM_WORDS * 4 + lane * 16;
                        let mut tile = 0;
                        while tile < TILES as usize {
                            let mut b = [[0; 4]; TERMS as usize];
                            let mut term = 0;
                            while term < TERMS as usize {
                                let fragment = tile as u32 * TERMS + term as u32;
                                b[term] = Shared::<u32>::at(terms + fragment * 512).load_x4(0);
                                term += 1;
                            }
                            // Step s takes words 2 s and 2 s + 1 of every lane's four.
                            let mut s = 0;
                            while s < 2 {
                                let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                                let mut term = 0;
                                while term < TERMS as usize {
                                    let b = [b[term][2 * s], b[term][2 * s + 1]];
                                    acc[half][tile] = mma_m16n8k16_bf16(a, b, acc[half][tile]);
                                    term += 1;
                                }
                                s += 1;
                            }
                            tile += 1;
                        }
                    }
                    half += 1;
                }
                if place.turn + 1 == turns {
                    let mut i = 0;
                    while i < TILES as usize * 4 {
                        total[i / 4][i % 4] += acc[0][i / 4][i % 4] + acc[1][i / 4][i % 4];
                        i += 1;
                    }
                    acc = [[[0.0; 4]; TILES as usize]; 2];
                }
                place = place.next(turns);
                stage += 1;
            }
            let mut i = 0;
            while i < TILES as usize * 4 {
                let (tile, j) = (i / 4, i as u32 % 4);
                // total[tile][j]: row g or g + 8, column 2 t or 2 t + 1.
                let row = block_idx_x() * ROWS + warp * 16 + g + j / 2 * 8;
                let col = tile as u32 * TILE + 2 * t + j % 2;
                if row < p.n && col < p.cols {
                    let inverse = p.inverse.load_l2(col as usize)[0];
                    p.y.store(
                        col as usize * p.n as usize + row as usize,
                        total[tile][j as usize] * inverse,
                    );
                }
                i += 1;
            }
        }
    }
}
