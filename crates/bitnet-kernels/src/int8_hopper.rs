//! [`crate::int8_gemm`] on Hopper, by warpgroups: the columns' terms go to shared memory in the order in which the instruction reads them,
//! by bulk copies, and nothing but the instruction reads them there.
//!
//! A block stays on each multiprocessor, whose ring of stages goes on from one band of 256 rows to the next, and begins before the kernel
//! before has ended. Each warp brings its 16 rows of a stage to registers, 16 bytes of a row a lane as they lie; the terms are in the order
//! that this makes of the matrix's columns. Both terms of a column are neighbors, so that a lane has both sums.

use crate::{Global, Launch};

/// Rows of a band.
const BAND: u32 = 256;
/// Rows of a tile, of which blocks have as many as the others.
const TILE_ROWS: u32 = 16;
/// Threads of a block: a warp for each of a band's tiles.
const THREADS: u32 = BAND / TILE_ROWS * 32;
/// Matrix columns of a stage, and bytes of a row there.
const LINE: u32 = 128;

/// How many columns of activations a pass takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Up to 32.
    Some,
    /// Up to 64.
    Many,
}

impl Width {
    /// That of each pass over `cols` columns.
    #[must_use]
    pub const fn new(cols: usize) -> Self {
        if cols <= 32 { Self::Some } else { Self::Many }
    }

    /// Columns.
    #[must_use]
    pub const fn columns(self) -> u32 {
        match self {
            Self::Some => 32,
            Self::Many => 64,
        }
    }

    /// Stages of the ring.
    const fn stages(self) -> u32 {
        match self {
            Self::Some => 5,
            Self::Many => 4,
        }
    }
}

/// Words of the terms of a pass of `width` columns of `k` elements.
#[must_use]
pub const fn term_words(width: u32, k: usize) -> usize {
    k.div_ceil(LINE as usize) * (2 * width * LINE / 4) as usize
}

/// Where the word of elements `4 word ..` of term `term` of a pass's column `col` stands among its terms: stage by stage, in a stage column
/// by column the high term and then the low one, 128 bytes each. There, of the sixteen bytes that a lane t takes of each half h of a row,
/// words 0 and 1 are those of step `2 h` of the instruction, 2 and 3 those of the next; the first of two stands at `8 step + t`, the
/// second 4 further, in the 128-byte swizzle of [`bitnet_layout::mma_tile::warpgroup_word`].
#[inline(always)]
#[must_use]
pub const fn term_word(width: u32, col: u32, term: u32, word: u32) -> u32 {
    let (stage, word) = (word / 32, word % 32);
    let step = word / 16 * 2 + word % 4 / 2;
    let line = 2 * col + term;
    let piece = 2 * step + word % 2;
    (stage * 2 * width + line) * 32 + (piece ^ (line % 8)) * 4 + word % 16 / 4
}

/// Bytes of a stage: terms and weights.
const fn stage_bytes(width: Width) -> [u32; 2] {
    [2 * width.columns() * LINE, BAND * LINE]
}

family! {
    /// Parameters of the kernels here, one for each width.
    ///
    /// `y[c][n] = (sum over k of w[n][k] x[c][k]) * (scales[n] * unit[c])` for `cols` columns c.
    ///
    /// - Shapes: `w` (n, k) i8, row-major; `scales` (n); `terms` as [`term_word`] says, of as many columns as the width, padded with zeros
    ///   along k; `unit` (cols); `y` (cols, n).
    /// - Launch: a block owns the rows of as many tiles as the others, a warp 16 of a band and all columns.
    /// - Moves: `n k` bytes once; `terms` once for every 256 rows, from L2.
    /// - Bound: DRAM.
    ///
    /// # Safety
    /// Lengths as above; `w` and `terms` 16-byte aligned; nothing that this kernel may overlap writes `w` and `scales`; `k` a multiple
    /// of 16; `cols` at least 1 and at most the width; `blocks` at least 1; the launch is that of the parameters.
    pub struct Int8Hopper {
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
        /// Most blocks: one for each multiprocessor.
        pub blocks: u32,
    }
    each Width;
    [min_blocks = 1, arch = sm_90a,]
    int8_hopper_32, Int8Hopper32, "up to 32 columns", [32, { Width::Some.stages() }], [Width::Some];
    int8_hopper_64, Int8Hopper64, "up to 64 columns", [64, { Width::Many.stages() }], [Width::Many];
}

/// Threads of a block.
const fn threads(_: Width) -> u32 {
    THREADS
}

/// The grid and the shared memory.
fn launch(width: Width, p: &Int8Hopper) -> Launch {
    let [terms, weights] = stage_bytes(width);
    Launch {
        grid: [p.blocks.clamp(1, p.n.div_ceil(BAND)), 1, 1],
        block: [THREADS, 1, 1],
        // A barrier a stage, and what a unit of each column is worth.
        shared_bytes: width.stages() * (terms + weights + 8) + width.columns() * 4,
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{BAND, Int8Hopper, LINE, THREADS, TILE_ROWS};
    use crate::intrinsics::*;

    /// Lines of a stage that all threads copy at a time, 8 chunks each.
    const LINES: u32 = THREADS / 8;

    /// Where 16-byte chunk `chunk` (0..8) of line `line` of the weights lies, in bytes: lines that lanes read together lie in different
    /// banks.
    #[inline(always)]
    fn swizzled(line: u32, chunk: u32) -> u32 {
        (line * 8 + (chunk ^ (line % 2 * 4))) * 16
    }

    /// What a block works on.
    struct Span<const SUMS: usize, const STAGES: u32> {
        p: Int8Hopper,
        /// The row behind the last.
        end: u32,
        /// Steps along k of a band.
        steps: u32,
    }

    /// A step of a band, the stage of the ring that it has, and the parity of its phase.
    #[derive(Clone, Copy)]
    struct At {
        row: u32,
        step: u32,
        stage: u32,
        parity: u32,
    }

    impl<const SUMS: usize, const STAGES: u32> Span<SUMS, STAGES> {
        /// Bytes of a stage's terms: two lines of each column.
        const TERM_BYTES: u32 = 2 * SUMS as u32 * LINE;
        const BARRIERS: u32 = STAGES * (Self::TERM_BYTES + BAND * LINE);

        #[inline(always)]
        fn terms(stage: u32) -> Shared<u32> {
            Shared::at(stage * Self::TERM_BYTES)
        }

        /// Byte of a stage's weights.
        #[inline(always)]
        fn weights(stage: u32) -> u32 {
            STAGES * Self::TERM_BYTES + stage * BAND * LINE
        }

        /// Ends a phase when a stage's terms have arrived.
        #[inline(always)]
        fn full(stage: u32) -> Mbarrier {
            Mbarrier::at(Self::BARRIERS + stage * 8)
        }

        /// The step behind `at`.
        #[inline(always)]
        fn next(&self, at: At) -> At {
            let (row, step) = if at.step + 1 < self.steps {
                (at.row, at.step + 1)
            } else {
                (at.row + BAND, 0)
            };
            let (stage, parity) = if at.stage + 1 < STAGES {
                (at.stage + 1, at.parity)
            } else {
                (0, at.parity ^ 1)
            };
            At {
                row,
                step,
                stage,
                parity,
            }
        }

        /// Copies 128 matrix columns of the rows of a band; past the block's rows its last one's again.
        ///
        /// # Safety
        /// All threads of the block call this; the stage is free, and the step has rows of the block.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn fetch_weights(&self, at: At) {
            let words = self.p.k / 4;
            // Read again, as in `store`.
            let me = thread_idx_x_again();
            let (line, chunk) = (me / 8, me % 8);
            // Past the end of a row its last piece again, times zero.
            let word = (at.step * (LINE / 4) + chunk * 4).min(words - 4);
            let start = Self::weights(at.stage) + swizzled(line, chunk);
            let mut i = 0;
            while i < BAND / LINES {
                let row = (at.row + line + i * LINES).min(self.end.min(self.p.n) - 1);
                let from = row as usize * words as usize + word as usize;
                // SAFETY: row and word are those of the matrix, the place is the stage's. Lines so far apart lie alike.
                unsafe {
                    async_copy_16_of_256(Shared::<u32>::at(start + i * LINES * LINE), self.p.w.offset(from));
                }
                i += 1;
            }
        }

        /// Copies the terms of 128 matrix columns.
        ///
        /// # Safety
        /// One lane calls this; the stage is free.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn fetch_terms(&self, at: At) {
            let from = self.p.terms.offset((at.step * (Self::TERM_BYTES / 4)) as usize);
            // SAFETY: the caller's promise; the terms have whole steps of all columns.
            unsafe {
                Self::full(at.stage).arrive_expect(Self::TERM_BYTES);
                bulk_copy(
                    Self::terms(at.stage),
                    from,
                    Self::TERM_BYTES,
                    Self::full(at.stage),
                );
            }
        }

        /// Writes what a warp's sums say of its rows of a band.
        ///
        /// # Safety
        /// No other warp writes them.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn store(&self, first: u32, acc: &[i32; SUMS], units: Shared<f32>) {
            let p = &self.p;
            // Read again, so that nothing that is made of it stays in registers through the products.
            let me = thread_idx_x_again();
            let (group, quad, warp) = (me % WARP_SIZE / 4, me % 4, me / WARP_SIZE);
            let mut high = 0;
            // SAFETY: rows and columns are compared with their numbers.
            unsafe {
                while high < 2 {
                    let row = first + warp * TILE_ROWS + group + high as u32 * 8;
                    if row < self.end && row < p.n {
                        let scale = p.scales.load_constant(row as usize)[0];
                        // One place that moves on: addresses of all columns would fill registers.
                        let (mut y, mut j) = (p.y.offset(quad as usize * p.n as usize + row as usize), 0);
                        while j < SUMS / 4 {
                            // The high terms alone may leave 32 bits, both together do not.
                            let i = 4 * j + 2 * high;
                            let total = (acc[i] << 8).wrapping_add(acc[i + 1]);
                            let col = 4 * j as u32 + quad;
                            if col < p.cols {
                                y.store(0, total as f32 * (scale * units.load(col)));
                            }
                            y = y.offset(4 * p.n as usize);
                            j += 1;
                        }
                    }
                    high += 1;
                }
            }
        }
    }

    /// For up to `SUMS` columns, whose terms a lane has as many sums of.
    #[inline(always)]
    pub(super) unsafe fn run<const SUMS: usize, const STAGES: u32>(p: Int8Hopper)
    where
        [i32; SUMS]: Sums,
    {
        let (lane, warp, me) = (lane_id(), warp_id(), thread_idx_x());
        let (g, t) = (lane / 4, lane % 4);
        let row_tiles = p.n.div_ceil(TILE_ROWS);
        let own = row_tiles.div_ceil(grid_dim_x().max(1));
        let first_tile = (block_idx_x() * own).min(row_tiles);
        let span = Span::<SUMS, STAGES> {
            p,
            end: (first_tile + own).min(row_tiles) * TILE_ROWS,
            steps: p.k.div_ceil(LINE),
        };
        let units = Shared::<f32>::at(Span::<SUMS, STAGES>::BARRIERS + STAGES * 8);
        let begin = At {
            row: first_tile * TILE_ROWS,
            step: 0,
            stage: 0,
            parity: 0,
        };
        let fetches = me == 0;
        let mut acc = [0; SUMS];
        // SAFETY: stages are filled when all warps have passed the barrier behind their use, and used when they are full; every branch
        // around a warp or block operation is uniform in the block.
        unsafe {
            if fetches {
                let mut stage = 0;
                while stage < STAGES {
                    Span::<SUMS, STAGES>::full(stage).init(1);
                    stage += 1;
                }
                Mbarrier::fence_init();
            }
            // Weights do not depend on the kernel before this one.
            let mut fetched = begin;
            let mut i = 1;
            while i < STAGES {
                if fetched.row < span.end {
                    span.fetch_weights(fetched);
                }
                async_copy_commit();
                fetched = span.next(fetched);
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            let mut fetched = begin;
            let mut i = 1;
            while i < STAGES {
                if fetches && fetched.row < span.end {
                    span.fetch_terms(fetched);
                }
                fetched = span.next(fetched);
                i += 1;
            }
            if me < SUMS as u32 {
                // The barrier of the first step orders these before their loads.
                units.store(me, p.unit.load_l2(me.min(p.cols - 1) as usize)[0]);
            }
            let mut at = begin;
            while at.row < span.end {
                match STAGES {
                    5 => async_copy_wait::<3>(),
                    _ => async_copy_wait::<2>(),
                }
                // Orders this stage's weights of all threads before the loads below, and the use of the stage that is fetched next before
                // that.
                sync_threads();
                if fetched.row < span.end {
                    span.fetch_weights(fetched);
                    if fetches {
                        span.fetch_terms(fetched);
                    }
                    fetched = span.next(fetched);
                }
                async_copy_commit();
                let start = Span::<SUMS, STAGES>::weights(at.stage);
                let mut a = [[0; 4]; 4];
                let mut half = 0;
                while half < 2 {
                    let row = warp * TILE_ROWS + g;
                    let load =
                        |row: u32| Shared::<u32>::at(start + swizzled(row, half as u32 * 4 + t)).load_x4(0);
                    let (up, low) = (load(row), load(row + 8));
                    a[2 * half] = [up[0], low[0], up[1], low[1]];
                    a[2 * half + 1] = [up[2], low[2], up[3], low[3]];
                    half += 1;
                }
                Span::<SUMS, STAGES>::full(at.stage).wait(at.parity);
                // The warp's products begin together.
                sync_warp(FULL_MASK);
                let [first, second, third, fourth] = a;
                let terms = Span::<SUMS, STAGES>::terms(at.stage);
                let products = acc.plus([first, second], terms);
                acc = products.plus([third, fourth], terms.offset(16)).wait();
                if at.step + 1 == span.steps {
                    span.store(at.row, &acc, units);
                    acc = [0; SUMS];
                }
                at = span.next(at);
            }
        }
    }
}
