//! `y = W x` for 8-bit `W` and up to 64 columns, with the bits of [`crate::dense_gemv::Int8Gemv`]: the 8-bit output head of a batch,
//! whose weights are read once.
//!
//! A block stays on each multiprocessor and takes a span of rows, 256 at a time. Weights and the columns' terms come to shared memory by
//! `cp.async` in a ring of stages of 128 matrix columns, which goes on from one band of rows to the next. A warp has 32 rows, so that
//! what it reads of the columns serves two tiles of rows, and the columns' terms come from L2 once for 256 rows: with half as many, L2 was
//! the limit. Sums are exact, so any order of the matrix columns will do: a lane takes 16 bytes of a row and of a column as they lie,
//! which are two steps of the tensor cores.

use crate::dense_gemv::Machine;
use crate::{Global, Launch};

/// Most columns.
pub const MAX_COLS: u32 = 64;
/// Rows of a tensor core's tile.
const TILE_ROWS: u32 = 16;
/// Tiles of rows of a band, two for each warp.
const BAND: u32 = 16;
/// Columns that a tensor core's tile takes.
const TILE: u32 = 8;
/// Threads of a block.
const THREADS: u32 = BAND / 2 * 32;
/// Most stages of the ring.
const MAX_STAGES: u32 = 5;
/// Bytes of a row in a stage.
const LINE: u32 = 128;
/// Bytes of a stage's weights.
const WEIGHT_BYTES: u32 = BAND * TILE_ROWS * LINE;

kernels! {
    /// `y[c][n] = (sum over k of w[n][k] x[c][k]) * (scales[n] * unit[c])` for `cols` columns c.
    ///
    /// - Shapes: `w` (n, k) i8, row-major; `scales` (n); `terms`, `unit` as [`crate::int8_head::Int8Columns`] leaves them; `y`
    ///   (cols, n).
    /// - Launch: [`Int8Gemm::launch`]; a block owns the rows of as many tiles as the others, a warp 32 of a band and all columns.
    /// - Moves: `n k` bytes once; `terms` once for every 256 rows, from L2.
    /// - Bound: DRAM.
    ///
    /// # Safety
    /// Lengths as above; `w` and `terms` 16-byte aligned; nothing that this kernel may overlap writes `w` and `scales`; `k` a multiple
    /// of 16; `1 <= cols <= 64`; `room` at least 99 KB; the launch is [`Int8Gemm::launch`]'s.
    int8_gemm, block = [THREADS, 1, 1], min_blocks = 1, body = device::run;
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
        /// Bytes of shared memory that a block may have.
        pub room: u32,
    }
}

impl Int8Gemm {
    /// A block a multiprocessor, or for each band where these are fewer.
    #[must_use]
    pub fn launch(&self, machine: Machine) -> Launch {
        let bands = self.n.div_ceil(BAND * TILE_ROWS);
        Launch {
            grid: [machine.multiprocessors.clamp(1, bands), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: stages(self.cols, self.room) * stage_bytes(self.cols) + MAX_COLS * 4,
        }
    }
}

/// Bytes of a stage: the weights, and both terms of whole tiles of columns.
const fn stage_bytes(cols: u32) -> u32 {
    WEIGHT_BYTES + cols.div_ceil(TILE) * TILE * 2 * LINE
}

/// Stages of the ring: at least two, for which every GPU has room.
const fn stages(cols: u32, room: u32) -> u32 {
    // Device code would end a kernel where it divides by zero.
    let stages = match (room - MAX_COLS * 4).checked_div(stage_bytes(cols)) {
        Some(stages) => stages,
        None => 0,
    };
    if stages < 2 {
        2
    } else if stages < MAX_STAGES {
        stages
    } else {
        MAX_STAGES
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{
        BAND, Int8Gemm, LINE, MAX_COLS, THREADS, TILE, TILE_ROWS, WEIGHT_BYTES, stage_bytes, stages,
    };
    use crate::intrinsics::*;

    /// Most tiles of columns.
    const TILES: u32 = MAX_COLS / TILE;
    /// Lines of a stage that all threads copy at a time, 8 chunks each.
    const LINES: u32 = THREADS / 8;

    /// Where 16-byte chunk `chunk` (0..8) of line `line` lies, in bytes: lines that lanes read together lie in different banks.
    #[inline(always)]
    fn swizzled(line: u32, chunk: u32) -> u32 {
        (line * 8 + (chunk ^ (line % 2 * 4))) * 16
    }

    /// What a block works on.
    struct Span {
        p: Int8Gemm,
        /// First row, and the row behind the last.
        first: u32,
        end: u32,
        /// Steps along k of a band.
        steps: u32,
        stages: u32,
    }

    /// A step of a band, and the stage of the ring that it has.
    #[derive(Clone, Copy)]
    struct At {
        row: u32,
        step: u32,
        stage: u32,
    }

    impl Span {
        /// The step behind `at`.
        #[inline(always)]
        fn next(&self, at: At) -> At {
            let (row, step) = if at.step + 1 < self.steps {
                (at.row, at.step + 1)
            } else {
                (at.row + BAND * TILE_ROWS, 0)
            };
            let stage = if at.stage + 1 < self.stages {
                at.stage + 1
            } else {
                0
            };
            At { row, step, stage }
        }

        /// Copies 128 matrix columns of the rows of a band that are the block's.
        ///
        /// # Safety
        /// All threads of the block call this; the stage is free. So for [`Span::fetch_terms`].
        #[inline(always)]
        unsafe fn fetch_weights(&self, at: At) {
            let words = self.p.k / 4;
            let (line, chunk) = (thread_idx_x() / 8, thread_idx_x() % 8);
            // Past the end of a row its last piece again, times zero.
            let word = (at.step * (LINE / 4) + chunk * 4).min(words - 4);
            let start = at.stage * stage_bytes(self.p.cols) + swizzled(line, chunk);
            let mut i = 0;
            while i < BAND * TILE_ROWS / LINES {
                let row = at.row + line + i * LINES;
                if row < self.end {
                    let from = row.min(self.p.n - 1) as usize * words as usize + word as usize;
                    // SAFETY: row and word are those of the matrix, the place is the stage's. Lines so far apart lie alike.
                    unsafe {
                        async_copy_16_of_256(
                            Shared::<u32>::at(start + i * LINES * LINE),
                            self.p.w.offset(from),
                        );
                    }
                }
                i += 1;
            }
        }

        /// Copies 128 matrix columns of the terms, zeros past the end of a column.
        #[inline(always)]
        unsafe fn fetch_terms(&self, at: At) {
            let p = &self.p;
            let words = p.k / 4;
            let start = at.stage * stage_bytes(p.cols) + WEIGHT_BYTES;
            let word = at.step * (LINE / 4) + thread_idx_x() % 8 * 4;
            let mut line = thread_idx_x() / 8;
            while line < p.cols.div_ceil(TILE) * TILE * 2 {
                // Lines: tile by tile the high terms of 8 columns, then the low ones.
                let (tile, term, g) = (line / 16, line / 8 % 2, line % 8);
                let col = (tile * TILE + g).min(p.cols - 1);
                let to = Shared::<u32>::at(start + swizzled(line, thread_idx_x() % 8));
                // SAFETY: columns are clamped, words compared with their number; the place is the stage's.
                unsafe {
                    if word < words {
                        let from = (col * 2 + term) as usize * words as usize + word as usize;
                        async_copy_16(to, p.terms.offset(from));
                    } else {
                        to.store_x4(0, [0; 4]);
                    }
                }
                line += LINES;
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: Int8Gemm) {
        let (lane, warp, me) = (lane_id(), warp_id(), thread_idx_x());
        let (g, t) = (lane / 4, lane % 4);
        let row_tiles = p.n.div_ceil(TILE_ROWS);
        let own = row_tiles.div_ceil(grid_dim_x().max(1));
        let first = (block_idx_x() * own).min(row_tiles) * TILE_ROWS;
        let span = Span {
            p,
            first,
            end: first + own.min(row_tiles - first / TILE_ROWS) * TILE_ROWS,
            steps: p.k.div_ceil(LINE),
            stages: stages(p.cols, p.room),
        };
        let tiles = p.cols.div_ceil(TILE) as usize;
        let units = Shared::<f32>::at(span.stages * stage_bytes(p.cols));
        let mut sums = [[[[0; 4]; 2]; TILES as usize]; 2];
        let begin = At {
            row: span.first,
            step: 0,
            stage: 0,
        };
        // SAFETY: see the copies; stored rows and columns are compared with their numbers; every branch around a warp or block
        // operation is uniform.
        unsafe {
            // Weights do not depend on the kernel before this one.
            let mut fetched = begin;
            let mut i = 1;
            while i < span.stages {
                span.fetch_weights(fetched);
                fetched = span.next(fetched);
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            let mut fetched = begin;
            let mut i = 1;
            while i < span.stages {
                if fetched.row < span.end {
                    span.fetch_terms(fetched);
                }
                // The first group has the weights of all these stages.
                async_copy_commit();
                fetched = span.next(fetched);
                i += 1;
            }
            if me < MAX_COLS {
                // The barrier of the first step orders these before their loads.
                units.store(me, p.unit.load_l2(me.min(p.cols - 1) as usize)[0]);
            }
            let mut at = begin;
            while at.row < span.end {
                match span.stages {
                    5 => async_copy_wait::<3>(),
                    4 => async_copy_wait::<2>(),
                    3 => async_copy_wait::<1>(),
                    _ => async_copy_wait::<0>(),
                }
                // Orders this stage's copies of all threads before the loads below, and the loads of the stage that the next
                // fetch overwrites before it.
                sync_threads();
                if fetched.row < span.end {
                    span.fetch_weights(fetched);
                    span.fetch_terms(fetched);
                    fetched = span.next(fetched);
                }
                async_copy_commit();
                let start = at.stage * stage_bytes(p.cols);
                let own_row = warp * 2 * TILE_ROWS;
                // Where the span has no second tile the first stands for it.
                let second = if at.row + own_row + TILE_ROWS < span.end {
                    TILE_ROWS
                } else {
                    0
                };
                if at.row + own_row < span.end {
                    let mut half = 0;
                    while half < 2 {
                        let chunk = half * 4 + t;
                        let load = |row: u32| Shared::<u32>::at(start + swizzled(row, chunk)).load_x4(0);
                        let mut a = [[[0; 4]; 2]; 2];
                        let mut m = 0;
                        while m < 2 {
                            let row = own_row + g + m as u32 * second;
                            a[m] = [load(row), load(row + 8)];
                            m += 1;
                        }
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
                                        let b = [x[2 * s], x[2 * s + 1]];
                                        let mut m = 0;
                                        while m < 2 {
                                            let [up, low] = a[m];
                                            let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                                            sums[m][tile][term] =
                                                mma_m16n8k32_s8_s8(a, b, sums[m][tile][term]);
                                            m += 1;
                                        }
                                        s += 1;
                                    }
                                    term += 1;
                                }
                            }
                            tile += 1;
                        }
                        half += 1;
                    }
                    if at.step + 1 == span.steps {
                        let mut m = 0;
                        while m < 2 {
                            let row = at.row + own_row + m as u32 * TILE_ROWS + g;
                            let mut high = 0;
                            while high < 2 {
                                let row = row + high as u32 * 8;
                                let is_row = row < span.end && row < p.n;
                                let scale = if is_row {
                                    p.scales.load_constant(row as usize)[0]
                                } else {
                                    0.0
                                };
                                let mut i = 0;
                                while i < TILES as usize * 2 {
                                    let (tile, e) = (i / 2, i % 2);
                                    let [up, low] = sums[m][tile];
                                    let j = 2 * high + e;
                                    // Row g or g + 8, column 2 t or 2 t + 1. The high terms alone may leave 32 bits, both together do
                                    // not.
                                    let total = (up[j] << 8).wrapping_add(low[j]);
                                    let col = tile as u32 * TILE + 2 * t + e as u32;
                                    if is_row && col < p.cols {
                                        let at = col as usize * p.n as usize + row as usize;
                                        p.y.store(at, total as f32 * (scale * units.load(col)));
                                    }
                                    i += 1;
                                }
                                high += 1;
                            }
                            m += 1;
                        }
                        sums = [[[[0; 4]; 2]; TILES as usize]; 2];
                    }
                }
                at = span.next(at);
            }
        }
    }
}
