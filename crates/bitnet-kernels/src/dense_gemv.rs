//! `y = W x` for dense `W`, bfloat16 or 8-bit, and up to four columns: the output head, and what ternary products are measured
//! against.
//!
//! The matrix passes once, at the speed of memory, so everything else is kept out of its way. Blocks stay for the whole
//! product and take turns at bands of 8 rows; each prepares the activations once, as tensor cores want them, in shared
//! memory. A warp asks for the next weights as it multiplies the last, across the ends of its rows, so that loads never pause.
//!
//! One load of a warp takes 128 bytes, a whole line, of each of 4 rows: memory delivers half lines more slowly. A row then
//! belongs to 8 lanes, where a row of the tensor cores' A fragment belongs to 4. So a row becomes two rows of A, with the two
//! halves of the line, and an activation two columns of B, with what belongs to the one half and to the other; of the four
//! results the two that pair equal halves are added.
//!
//! Activations keep their accuracy: for bfloat16 weights each is split into three bfloat16 terms that add up to the f32
//! (24 = 3 * 8 bits), for 8-bit weights into two 8-bit terms, whose sums are exact.

use crate::{Global, Launch};

/// Most columns that share a pass over the weights.
pub const MAX_COLS: u32 = 4;
/// Rows of a band.
const ROWS: u32 = 8;
/// Bytes of a row that a warp takes at a time, 16 a lane.
const GROUP_BYTES: u32 = 128;
/// Most warps of a block; two blocks share a multiprocessor.
const MAX_WARPS: u32 = 10;
/// What the system takes of a multiprocessor's shared memory for each block; as much more is there than one block may have.
const SYSTEM_SHARED: u32 = 1024;

/// What a launch depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory of a block, in bytes.
    pub shared_limit: u32,
}

kernel! {
    /// `y[c][n] = r[c] * sum over k of w[n][k] norm[k] x[c][k]` with `r[c] = 1 / rms(x[c])`, for `cols` columns c.
    ///
    /// - Shapes: `w` (n, k) bfloat16, row-major; `x` (cols, k); `norm` (k); `y` (cols, n).
    /// - Launch: [`Bf16Gemv::launch`]; blocks take turns at 8 rows, their warps at groups of 64 columns.
    /// - Moves: `2 n k` bytes once, `x` and `norm` once a block, from L2.
    /// - Bound: DRAM; a lane has 8 to 10 loads of 16 bytes in flight.
    ///
    /// Sums are added in an order that depends on `k` alone: lane by lane along k, the two halves of every line apart; then the
    /// halves; then the warps. [`crate::bf16_gemm`] keeps it.
    ///
    /// # Safety
    /// Lengths as above; `w`, `x` and `norm` 16-byte aligned; `k` a multiple of 8; `cols` at least 1 and at most
    /// [`Bf16Gemv::max_cols`]; the launch is [`Bf16Gemv::launch`]'s.
    bf16_gemv, block = [MAX_WARPS * 32, 1, 1], min_blocks = 2, body = device::run::<_, 5>;
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

kernel! {
    /// `y[c][n] = (sum over k of w[n][k] x[c][k]) * (scales[n] * unit[c])` for `cols` columns c.
    ///
    /// - Shapes: `w` (n, k) i8, row-major; `scales` (n); `terms`, `unit` as [`crate::int8_head::Int8Columns`] leaves them; `y`
    ///   (cols, n).
    /// - Launch: [`Int8Gemv::launch`]; blocks take turns at 8 rows of four columns, their warps at groups of 128 matrix columns.
    /// - Moves: `n k` bytes for every four columns, `terms` once a block, from L2.
    /// - Bound: DRAM; a lane has 8 to 10 loads of 16 bytes in flight.
    ///
    /// # Safety
    /// Lengths as above; `w` and `terms` 16-byte aligned; `k` a multiple of 16, and so small that a column fits the shared memory
    /// of a block; `cols` at least 1; the launch is [`Int8Gemv::launch`]'s.
    int8_gemv, block = [MAX_WARPS * 32, 1, 1], min_blocks = 2, body = device::run::<_, 5>;
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

/// Words of a group of bfloat16 weights' activations in shared memory: three terms of 64 numbers.
const BF16_WORDS: u32 = 96;
/// Words of a group of 8-bit weights' activations: two terms of 128 numbers.
const INT8_WORDS: u32 = 64;

/// Warps of a block, and the turns that all of them take at a row of `row_bytes`: the last groups may be part of a line, or none
/// at all, whose activations are zeros.
const fn share(row_bytes: u32) -> (u32, u32) {
    let groups = row_bytes.div_ceil(GROUP_BYTES);
    let turns = groups.div_ceil(MAX_WARPS);
    (groups.div_ceil(turns), turns)
}

/// Warps of [`Bf16Gemv`], which are the parts of its sums, for `k` matrix columns.
#[must_use]
pub const fn bf16_parts(k: usize) -> u32 {
    share(2 * k as u32).0
}

/// Shared memory of a block: the columns, twice the warps' parts of a band, the warps' squares, and what a column's sums are
/// worth.
const fn shared_bytes(row_bytes: u32, cols: u32, words: u32) -> u32 {
    let (warps, turns) = share(row_bytes);
    4 * (cols * (warps * turns * words + 2 * warps * ROWS) + (warps + 1) * MAX_COLS)
}

/// As many blocks as are resident at once, as far as there are bands for them, with as many turns each.
const fn launch(n: u32, row_bytes: u32, cols: u32, words: u32, machine: Machine) -> Launch {
    let shared_bytes = shared_bytes(row_bytes, cols, words);
    let two = 2 * (shared_bytes + SYSTEM_SHARED) <= machine.shared_limit + SYSTEM_SHARED;
    let resident = if two { 2 } else { 1 } * machine.multiprocessors;
    let bands = n.div_ceil(ROWS);
    Launch {
        grid: [bands.div_ceil(bands.div_ceil(resident)), 1, 1],
        block: [share(row_bytes).0 * 32, 1, 1],
        shared_bytes,
    }
}

impl Bf16Gemv {
    /// Most columns that one launch takes with `shared_limit` bytes of shared memory a block; 0 where `k` is too large.
    #[must_use]
    pub const fn max_cols(k: usize, shared_limit: u32) -> u32 {
        let mut cols = MAX_COLS;
        while cols > 0 && shared_bytes(2 * k as u32, cols, BF16_WORDS) > shared_limit {
            cols -= 1;
        }
        cols
    }

    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self, machine: Machine) -> Launch {
        launch(self.n, 2 * self.k, self.cols, BF16_WORDS, machine)
    }
}

impl Int8Gemv {
    /// The launch for these parameters.
    #[must_use]
    pub fn launch(&self, machine: Machine) -> Launch {
        let cols = self.cols.min(MAX_COLS);
        let of_four = launch(self.n, self.k, cols, INT8_WORDS, machine);
        Launch {
            grid: [of_four.grid[0], self.cols.div_ceil(MAX_COLS), 1],
            ..of_four
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use super::{BF16_WORDS, Bf16Gemv, GROUP_BYTES, INT8_WORDS, Int8Gemv, MAX_COLS, ROWS};
    use crate::Global;
    use crate::intrinsics::*;
    use crate::reduce::warp_sum;

    /// A lane's 16 bytes of two rows of a band, 4 apart.
    type Pieces = [[u32; 4]; 2];

    /// Three bfloat16 pairs that add up to a pair of f32.
    #[inline(always)]
    fn split3(low: f32, high: f32) -> [u32; 3] {
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

    /// Splits `x norm` and returns `1 / rms(x)`, or 1 for a negative `eps`, on the first lane: the block's threads take turns at
    /// eight elements, whose four pairs of three terms go to `store` with their place.
    ///
    /// # Safety
    /// All lanes of the block call this together. `x` and `norm` are `k` readable elements, 16-byte aligned, `k` a multiple of 8.
    /// `squares` is a float for every warp, `stride` apart, that no lane touches before a barrier behind its last use.
    #[inline(always)]
    pub(crate) unsafe fn split_column(
        x: Global<f32>,
        norm: Global<f32>,
        k: u32,
        eps: f32,
        squares: Shared<f32>,
        stride: u32,
        mut store: impl FnMut(u32, [[u32; 3]; 4]),
    ) -> f32 {
        let mut square = 0.0;
        let mut unit = thread_idx_x();
        // SAFETY: units are compared with their number.
        unsafe {
            while unit < k / 8 {
                let at = unit as usize * 8;
                let (x, norm) = (
                    [x.load_l2_x4(at), x.load_l2_x4(at + 4)],
                    [norm.load_constant_x4(at), norm.load_constant_x4(at + 4)],
                );
                let mut i = 0;
                while i < 8 {
                    square = fma(x[i / 4][i % 4], x[i / 4][i % 4], square);
                    i += 1;
                }
                store(
                    unit,
                    core::array::from_fn(|i| {
                        let (x, norm) = (x[i / 2], norm[i / 2]);
                        let j = i % 2 * 2;
                        split3(x[j] * norm[j], x[j + 1] * norm[j + 1])
                    }),
                );
                unit += block_dim_x();
            }
            let square = warp_sum(square);
            if lane_id() == 0 {
                squares.store(warp_id() * stride, square);
            }
            // Orders every warp's squares, and what the caller stored, before their loads.
            sync_threads();
            if thread_idx_x() != 0 || eps < 0.0 {
                return 1.0;
            }
            let mut square = 0.0;
            let mut warp = 0;
            while warp < block_dim_x() / WARP_SIZE {
                square += squares.load(warp * stride);
                warp += 1;
            }
            1.0 / sqrt(square / k as f32 + eps)
        }
    }

    /// Shared memory of a block, as `super::shared_bytes` counts it.
    #[derive(Clone, Copy)]
    pub(super) struct Room {
        /// (column, words of a column).
        columns: Shared<u32>,
        stride: u32,
        /// Twice (warp, column, row).
        parts: Shared<u32>,
        /// (warp, column).
        squares: Shared<f32>,
        /// (column).
        worth: Shared<f32>,
    }

    impl Room {
        #[inline(always)]
        fn new(cols: u32, warps: u32, stride: u32) -> Self {
            let parts = cols * stride;
            let squares = parts + 2 * warps * cols * ROWS;
            Self {
                columns: Shared::at(0),
                stride,
                parts: Shared::at(parts * 4),
                squares: Shared::at(squares * 4),
                worth: Shared::at((squares + warps * MAX_COLS) * 4),
            }
        }
    }

    /// What the products of both kinds of weights have in common.
    #[derive(Clone, Copy)]
    pub(super) struct Common {
        w: Global<u32>,
        y: Global<f32>,
        n: u32,
        /// Words of a row.
        words: u32,
        cols: u32,
    }

    /// A kind of weights.
    pub(super) trait Format: Copy {
        /// Words of the activations that a group is multiplied with.
        const WORDS: u32;
        /// Sums of a lane.
        type Sums: Copy;
        /// A warp's part of one result.
        type Part: Word;

        fn common(self) -> Common;
        fn zero() -> Self::Sums;
        /// Stores the block's columns of activations, zeros behind them, and what their sums are worth but for the rows' own
        /// scales; the last of it a barrier must order before its loads.
        unsafe fn prepare(self, room: &Room, groups: u32);
        /// Adds the products of two pieces with the activations of their group, at `x`.
        unsafe fn multiply(sums: &mut Self::Sums, w: Pieces, x: Shared<u32>, stride: u32, cols: u32);
        /// Stores the warp's part of every row and column of a band, (column, row).
        unsafe fn store(sums: Self::Sums, parts: Shared<Self::Part>, cols: u32);
        fn add(a: Self::Part, b: Self::Part) -> Self::Part;
        /// A result, but for what its column's sums are worth.
        unsafe fn result(self, total: Self::Part, row: u32, worth: f32) -> f32;
    }

    impl Format for Bf16Gemv {
        const WORDS: u32 = BF16_WORDS;
        type Sums = [f32; 4];
        type Part = f32;

        #[inline(always)]
        fn common(self) -> Common {
            let Self { w, y, n, k, cols, .. } = self;
            Common {
                w,
                y,
                n,
                words: k / 2,
                cols,
            }
        }

        #[inline(always)]
        fn zero() -> [f32; 4] {
            [0.0; 4]
        }

        #[inline(always)]
        unsafe fn prepare(self, room: &Room, groups: u32) {
            let mut col = 0;
            while col < self.cols {
                let to = room.columns.offset(col * room.stride);
                // SAFETY: units lie in the column, squares are apart.
                unsafe {
                    // Behind the last column, up to a whole line.
                    let mut word = self.k / 8 * 12 + thread_idx_x();
                    while word < groups * BF16_WORDS {
                        to.store(word, 0);
                        word += block_dim_x();
                    }
                    let inverse = split_column(
                        self.x.offset(col as usize * self.k as usize),
                        self.norm,
                        self.k,
                        self.eps,
                        room.squares.offset(col),
                        MAX_COLS,
                        |unit, pairs| {
                            // Step s of the products takes pairs 2 s and 2 s + 1, term by term.
                            let word = |i: usize| pairs[i / 6 * 2 + i % 2][i % 6 / 2];
                            let to = to.offset(unit * 12);
                            to.store_x4(0, core::array::from_fn(word));
                            to.store_x4(4, core::array::from_fn(|i| word(4 + i)));
                            to.store_x4(8, core::array::from_fn(|i| word(8 + i)));
                        },
                    );
                    if thread_idx_x() == 0 {
                        room.worth.store(col, inverse);
                    }
                }
                col += 1;
            }
        }

        #[inline(always)]
        unsafe fn multiply(sums: &mut [f32; 4], [up, low]: Pieces, x: Shared<u32>, stride: u32, cols: u32) {
            let (g, t) = (lane_id() / 4, lane_id() % 4);
            // Column 2 c + h of B: token c, half h of the line. Unused columns repeat the last.
            let x = x.offset((g / 2).min(cols - 1) * stride + (g % 2 * 4 + t) * 12);
            // SAFETY: the group's words were stored; the whole warp is here.
            unsafe {
                let x = [x.load_x4(0), x.load_x4(4), x.load_x4(8)];
                let mut i = 0;
                while i < 6 {
                    let s = i / 3;
                    let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                    let b = [x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]];
                    *sums = mma_m16n8k16_bf16(a, b, *sums);
                    i += 1;
                }
            }
        }

        #[inline(always)]
        unsafe fn store(sums: [f32; 4], parts: Shared<f32>, cols: u32) {
            let (g, t) = (lane_id() / 4, lane_id() % 4);
            // sums: row g of A with columns 2 t and 2 t + 1 of B, then row g + 8. Half g % 2 belongs to column 2 t + g % 2.
            let is_odd = g % 2 == 1;
            let own = if is_odd {
                [sums[1], sums[3]]
            } else {
                [sums[0], sums[2]]
            };
            // SAFETY: the whole warp is here; places are below the warp's share.
            unsafe {
                // The first half and the second, in an order that does not matter to a sum of two.
                let upper = own[0] + warp_shuffle_xor(FULL_MASK, own[0], 4);
                let lower = own[1] + warp_shuffle_xor(FULL_MASK, own[1], 4);
                if t < cols {
                    let (row, part) = if is_odd {
                        (4 + g / 2, lower)
                    } else {
                        (g / 2, upper)
                    };
                    parts.store(t * ROWS + row, part);
                }
            }
        }

        #[inline(always)]
        fn add(a: f32, b: f32) -> f32 {
            a + b
        }

        #[inline(always)]
        unsafe fn result(self, total: f32, _: u32, worth: f32) -> f32 {
            total * worth
        }
    }

    impl Format for Int8Gemv {
        const WORDS: u32 = INT8_WORDS;
        /// Of two columns each.
        type Sums = [[i32; 4]; 2];
        type Part = i32;

        /// The block's four columns.
        #[inline(always)]
        fn common(self) -> Common {
            let first = block_idx_y() * MAX_COLS;
            Common {
                w: self.w,
                y: self.y.offset(first as usize * self.n as usize),
                n: self.n,
                words: self.k / 4,
                cols: (self.cols - first).min(MAX_COLS),
            }
        }

        #[inline(always)]
        fn zero() -> [[i32; 4]; 2] {
            [[0; 4]; 2]
        }

        #[inline(always)]
        unsafe fn prepare(self, room: &Room, groups: u32) {
            let (first, cols) = (block_idx_y() * MAX_COLS, self.common().cols);
            let units = self.k / 16;
            let mut col = 0;
            while col < cols {
                let terms = self.terms.offset((first + col) as usize * (self.k / 2) as usize);
                let to = room.columns.offset(col * room.stride);
                let mut unit = thread_idx_x();
                // SAFETY: units are compared with their number.
                unsafe {
                    while unit < groups * 8 {
                        let (mut high, mut low) = ([0; 4], [0; 4]);
                        if unit < units {
                            high = terms.load_l2_x4(unit as usize * 4);
                            low = terms.load_l2_x4((units + unit) as usize * 4);
                        }
                        to.store_x4(unit * 8, high);
                        to.store_x4(unit * 8 + 4, low);
                        unit += block_dim_x();
                    }
                    if thread_idx_x() == 0 {
                        room.worth
                            .store(col, self.unit.load_l2((first + col) as usize)[0]);
                    }
                }
                col += 1;
            }
            // SAFETY: the whole block is here. Orders the columns before their loads.
            unsafe { sync_threads() };
        }

        #[inline(always)]
        unsafe fn multiply(
            sums: &mut [[i32; 4]; 2],
            [up, low]: Pieces,
            x: Shared<u32>,
            stride: u32,
            cols: u32,
        ) {
            let (g, t) = (lane_id() / 4, lane_id() % 4);
            let mut set = 0;
            while set < 2 {
                if 2 * (set as u32) < cols {
                    // Column 4 c + 2 h + e of B: token c, half h of the line, term e. Unused columns repeat the last.
                    let token = (2 * set as u32 + g / 4).min(cols - 1);
                    let x = x.offset(token * stride + (g / 2 % 2 * 4 + t) * 8 + g % 2 * 4);
                    // SAFETY: the group's words were stored; the whole warp is here.
                    unsafe {
                        let x = x.load_x4(0);
                        let mut s = 0;
                        while s < 2 {
                            let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                            sums[set] = mma_m16n8k32_s8_s8(a, [x[2 * s], x[2 * s + 1]], sums[set]);
                            s += 1;
                        }
                    }
                }
                set += 1;
            }
        }

        #[inline(always)]
        unsafe fn store(sums: [[i32; 4]; 2], parts: Shared<i32>, cols: u32) {
            let (g, t) = (lane_id() / 4, lane_id() % 4);
            let mut set = 0;
            while set < 2 {
                // Columns 2 t and 2 t + 1 of B are both terms of token t / 2 with half t % 2 of the line, row g of A half g % 2.
                // The high terms alone may leave 32 bits, both together do not.
                let [a, b, c, d] = sums[set];
                let own = [(a << 8).wrapping_add(b), (c << 8).wrapping_add(d)];
                // SAFETY: the whole warp is here; places are below the warp's share.
                unsafe {
                    let upper = own[0].wrapping_add(warp_shuffle_xor(FULL_MASK, own[0], 5));
                    let lower = own[1].wrapping_add(warp_shuffle_xor(FULL_MASK, own[1], 5));
                    let col = 2 * set as u32 + t / 2;
                    if t % 2 == g % 2 && col < cols {
                        let (row, part) = if g % 2 == 1 {
                            (4 + g / 2, lower)
                        } else {
                            (g / 2, upper)
                        };
                        parts.store(col * ROWS + row, part);
                    }
                }
                set += 1;
            }
        }

        #[inline(always)]
        fn add(a: i32, b: i32) -> i32 {
            a.wrapping_add(b)
        }

        #[inline(always)]
        unsafe fn result(self, total: i32, row: u32, worth: f32) -> f32 {
            // SAFETY: the caller's row is one of the matrix.
            total as f32 * (unsafe { self.scales.load_constant(row as usize)[0] } * worth)
        }
    }

    /// The weights of one lane, piece after piece: along its warp's groups of a band, then on to the block's next band.
    #[derive(Clone, Copy)]
    struct Feed {
        w: Global<u32>,
        n: u32,
        words: u32,
        /// Groups of a row, with those that only make turns whole.
        groups: u32,
        warps: u32,
        /// The next band and group.
        band: u32,
        group: u32,
        /// This lane's two rows of the band.
        upper: Global<u32>,
        lower: Global<u32>,
    }

    impl Feed {
        /// Stands at a band. Rows past the end repeat the last one; their results are not stored.
        #[inline(always)]
        fn rows(&mut self) {
            let row = self.band * ROWS + lane_id() / 8;
            let at = |row: u32| row.min(self.n - 1) as usize * self.words as usize;
            self.upper = self.w.offset(at(row));
            self.lower = self.w.offset(at(row + 4));
        }

        /// The next piece; past the last band, the last one's again.
        #[inline(always)]
        unsafe fn next(&mut self) -> Pieces {
            const WORDS: u32 = GROUP_BYTES / 4;
            // Past the end of a row its last piece again, times zero.
            let at = (self.group * WORDS + lane_id() % 8 * 4).min(self.words - 4) as usize;
            // SAFETY: the piece is in the row, rows are clamped.
            let pieces = unsafe { [self.upper.load_stream_x4(at), self.lower.load_stream_x4(at)] };
            self.group += self.warps;
            if self.group >= self.groups {
                self.group = warp_id();
                self.band += grid_dim_x();
                self.rows();
            }
            pieces
        }
    }

    /// `DEPTH` pieces of a lane are on their way at any time.
    #[inline(always)]
    pub(super) unsafe fn run<F: Format, const DEPTH: usize>(p: F) {
        let c = p.common();
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        // Whole turns of all warps, the last of which may find no columns.
        let groups = c.words.div_ceil(GROUP_BYTES / 4).next_multiple_of(warps.max(1));
        let bands = c.n.div_ceil(ROWS);
        let room = Room::new(c.cols, warps, groups * F::WORDS);
        let mut feed = Feed {
            w: c.w,
            n: c.n,
            words: c.words,
            groups,
            warps,
            band: block_idx_x(),
            group: warp,
            upper: c.w,
            lower: c.w,
        };
        // SAFETY: groups and rows are below their numbers, shared indices below the launch's size; every branch around a
        // warp or block operation is uniform.
        unsafe {
            feed.rows();
            let mut w: [Pieces; DEPTH] = [[[0; 4]; 2]; DEPTH];
            let mut i = 0;
            while i < DEPTH {
                w[i] = feed.next();
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            p.prepare(&room, groups);
            // All warps take as many turns at a band, so that they meet at the same barrier.
            let (mut band, mut group) = (block_idx_x(), warp);
            let mut sums = F::zero();
            // Parts of one band are stored while the last one's are added, by one warp after the other.
            let (mut half, mut turn) = (0, 0);
            loop {
                let mut i = 0;
                while i < DEPTH {
                    F::multiply(
                        &mut sums,
                        w[i],
                        room.columns.offset(group * F::WORDS),
                        room.stride,
                        c.cols,
                    );
                    if feed.band < bands {
                        w[i] = feed.next();
                    }
                    group += warps;
                    if group >= groups {
                        let share = c.cols * ROWS;
                        let parts: Shared<F::Part> = room.parts.offset(half * warps * share).cast();
                        F::store(sums, parts.offset(warp * share), c.cols);
                        // Orders every warp's parts before the additions.
                        sync_threads();
                        if warp == turn && lane < share {
                            let row = band * ROWS + lane % ROWS;
                            let mut total = F::Part::from_word(0);
                            let mut from = 0;
                            while from < warps {
                                total = F::add(total, parts.load(from * share + lane));
                                from += 1;
                            }
                            if row < c.n {
                                let y = p.result(total, row, room.worth.load(lane / ROWS));
                                c.y.store(lane as usize / ROWS as usize * c.n as usize + row as usize, y);
                            }
                        }
                        sums = F::zero();
                        half ^= 1;
                        turn = if turn + 1 == warps { 0 } else { turn + 1 };
                        group = warp;
                        band += grid_dim_x();
                        if band >= bands {
                            return;
                        }
                    }
                    i += 1;
                }
            }
        }
    }
}
