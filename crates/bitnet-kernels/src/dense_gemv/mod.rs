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

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod bf16;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod int8;

use crate::{Global, Launch};

/// Most columns that share a pass over the weights.
pub const MAX_COLS: u32 = 4;
/// Rows of a band.
pub(crate) const ROWS: u32 = 8;
/// Bytes of a row that a warp takes at a time, 16 a lane.
pub(crate) const GROUP_BYTES: u32 = 128;
/// Most warps of a block; two blocks share a multiprocessor.
pub(crate) const MAX_WARPS: u32 = 10;
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

kernels! {
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
pub(crate) const BF16_WORDS: u32 = 96;
/// Words of a group of 8-bit weights' activations: two terms of 128 numbers.
const INT8_WORDS: u32 = 64;

/// Warps of a block, and the turns that all of them take at a row of `row_bytes`: the last groups may be part of a line, or none
/// at all, whose activations are zeros.
pub(crate) const fn share(row_bytes: u32) -> (u32, u32) {
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
pub(crate) const fn shared_bytes(row_bytes: u32, cols: u32, words: u32) -> u32 {
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
