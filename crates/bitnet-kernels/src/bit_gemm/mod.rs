//! `Y = X W^T` for ternary `W` and many rows of 8-bit activations: prompts and batches, straight from the packed weights.
//!
//! The same tiles as [`crate::bit_gemv`], unpacked by shift and mask into A fragments of int8 tensor cores; each unpacked
//! fragment meets several columns of activations. Three shapes of block:
//!
//! - *wide*: 128 rows by 64 or 128 columns, both operands brought to shared memory by `cp.async` in a ring of stages;
//! - *mid*: 32 or 64 rows by 16 or 32 columns, the warps split k and load weights straight into registers, and the columns' codes
//!   come to shared memory once for all rows, in two blocks a multiprocessor;
//! - *narrow*: 32 rows by 8 or 32 columns, the warps split k and load weights straight into registers, for batches too
//!   small to fill the machine with wide blocks.
//!
//! Of the wide ones the larger reads shared memory and copies less for every product, and is taken where that outweighs that
//! fewer, larger blocks share out less evenly.
//!
//! Products are exact, so all give the same bits as [`crate::bit_gemv`] and [`crate::decode_linear`].

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod mid;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod narrow;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod wide;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
use crate::decode_linear::device::{ADD, GATED, STORE};
use crate::{Global, Launch};
use bitnet_layout::mma_tile;

/// Most columns of a matrix: what sums of codes 0, 1 and 2 times 64 and activations up to 127 have room for in 32 bits.
pub const MAX_K: usize = (1 << 31) / (2 * 64 * 128);

/// Rows of a wide block.
const WIDE_ROWS: u32 = 128;
/// Warps of a wide block.
const WIDE_WARPS: u32 = 8;
/// The wide block of 64 columns.
const WIDE_64: Wide = Wide {
    bands: 2,
    tiles: 2,
    ahead: 1,
};
/// The wide block of 128 columns. Its ring of 80 KB leaves room for two blocks a multiprocessor on data-center GPUs, and for one
/// within the 99 KB of others.
const WIDE_128: Wide = Wide {
    bands: 4,
    tiles: 1,
    ahead: 2,
};
/// Wide blocks that run at once on the GPU that [`Plan::new`] has in mind: two on each of 132 multiprocessors.
const WIDE_SLOTS: u32 = 264;
/// Products that a wide block of 128 columns finishes in the time in which one of 64 columns finishes 100, measured on an H200.
const WIDE_128_RATE: u32 = 104;
/// Hundredths of a turn's time that a turn takes in which no more than half of the slots have a block: a block runs faster alone on
/// its multiprocessor.
const WIDE_HALF_TURN: u32 = 60;
/// Rows of a narrow block.
const NARROW_ROWS: u32 = 32;
/// Most warps of a narrow block.
const NARROW_WARPS: u32 = 16;
/// Tiles along k that a warp of a narrow block asks for before it waits for the activations.
const NARROW_TILES: usize = 3;

/// Most warps of a mid block.
const MID_WARPS: u32 = 10;
/// Most tiles along k that a mid block takes: what its warps have registers for where two blocks share a multiprocessor.
const MID_TILES_K: usize = 20;
/// Words of a column's sums of 32 rows in shared memory: columns that lanes write together lie in different banks.
const MID_STRIDE: u32 = 36;
/// Pairs of rows of tiles of a mid block, and tiles along k of its warps: more rows where there are many.
const MID: (u32, usize) = (1, 2);
const MID_GATED: (u32, usize) = (2, 4);

/// What the sizes of wide blocks differ in.
struct Wide {
    /// Rows of tiles of a warp, which is 4 groups of 8 columns wide.
    bands: usize,
    /// Tiles along k of a stage: the block meets once for all of them.
    tiles: u32,
    /// Stages on their way while the one before them is waited for; the ring has two more.
    ahead: usize,
}

/// Bytes of a tile along k in a stage: 8 tiles of weights, then 128 codes of each of the `32 bands` columns.
const fn wide_tile_bytes(bands: u32) -> u32 {
    8 * 512 + bands * 32 * 128
}

impl Wide {
    /// Blocks along the rows of a matrix of `rows` rows, and along `cols` columns.
    fn grid(&self, rows: u32, cols: u32) -> [u32; 2] {
        [rows.div_ceil(WIDE_ROWS), cols.div_ceil(self.bands as u32 * 32)]
    }

    fn launch(&self, rows: u32, cols: u32) -> Launch {
        let [x, y] = self.grid(rows, cols);
        Launch {
            grid: [x, y, 1],
            block: [WIDE_WARPS * 32, 1, 1],
            shared_bytes: (self.ahead as u32 + 2) * self.tiles * wide_tile_bytes(self.bands as u32),
        }
    }

    /// About how long a product takes: hundredths of turns of all slots, by the columns of a block.
    fn time(&self, rows: u32, cols: u32) -> u64 {
        let [x, y] = self.grid(rows, cols).map(u64::from);
        let (turns, left) = (x * y / u64::from(WIDE_SLOTS), x * y % u64::from(WIDE_SLOTS));
        let last = match left {
            0 => 0,
            _ if left <= u64::from(WIDE_SLOTS / 2) => WIDE_HALF_TURN,
            _ => 100,
        };
        (turns * 100 + u64::from(last)) * self.bands as u64
    }
}

macro_rules! bit_gemm {
    ($($name:ident, $Params:ident, $body:ident<$($arg:tt),*>, $block:expr, $min_blocks:expr, $what:literal, $shape:literal;)*) => {
        $(kernel! {
            /// `z[c][n] = (sum over k of t[n][k] x[c][k]) * (scale(n) * unit[c])`, then
            #[doc = $what]
            ///
            /// - Shapes: `w` tiles of (n, k); `x` (cols, k padded to 128) i8, padded with zeros; `y` as said, row per column c.
            /// - Launch: [`Plan`];
            #[doc = $shape]
            /// - Layout: [`bitnet_layout::mma_tile`]. Moves: weights once for every block along the columns, `x` once for every
            ///   block along the rows, from L2.
            /// - Bound: the rate of the tensor cores, and of unpacking, for wide blocks; latency and L2 for narrow ones.
            ///
            /// # Safety
            /// Lengths as above; `w` and `x` 16-byte aligned; sizes at least 1; the launch is the plan's.
            $name, block = [$block, 1, 1], min_blocks = $min_blocks, body = $body::block::<$($arg),*>;
            pub struct $Params {
                /// Weights in tiles; in pairs of rows for the gated kernels.
                pub w: Global<u32>,
                /// Codes, four a word in the order of [`mma_tile::activation_word`], (cols, k padded / 4).
                pub x: Global<u32>,
                /// What a code of column c is worth, (cols).
                pub unit: Global<f32>,
                /// Sum of the codes of column c, (cols).
                pub sum: Global<i32>,
                /// Output, (cols, n); gated, (cols, n / 2).
                pub y: Global<f32>,
                /// Rows.
                pub n: u32,
                /// Columns of the matrix.
                pub k: u32,
                /// Rows of activations.
                pub cols: u32,
                /// [`crate::decode_linear::RELU2`] or [`crate::decode_linear::SILU`], for the gated kernels.
                pub activation: u32,
                /// First row that has `scale_b`.
                pub row_b: u32,
                /// First row that has `scale_c`.
                pub row_c: u32,
                /// What a ternary unit of the first rows (gated: of the gate) is worth.
                pub scale_a: f32,
                /// What a ternary unit of rows `row_b ..` (gated: of up) is worth.
                pub scale_b: f32,
                /// What a ternary unit of rows `row_c ..` is worth.
                pub scale_c: f32,
            }
        })*

        #[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
        mod params {
            use super::WideStore64;
            use super::device::Params;
            $(
                impl Params for super::$Params {
                    #[inline(always)]
                    #[rustfmt::skip]
                    fn get(self) -> WideStore64 {
                        let super::$Params { w, x, unit, sum, y, n, k, cols, activation, row_b, row_c, scale_a, scale_b,
                            scale_c } = self;
                        WideStore64 { w, x, unit, sum, y, n, k, cols, activation, row_b, row_c, scale_a, scale_b, scale_c }
                    }
                }
            )*
        }
    };
}

bit_gemm! {
    wide_store_64, WideStore64, wide<STORE, { WIDE_64.bands }, { WIDE_64.tiles }, { WIDE_64.ahead }>, WIDE_WARPS * 32, 2,
        "`y = z`.", "128 rows by 64 columns a block.";
    wide_add_64, WideAdd64, wide<ADD, { WIDE_64.bands }, { WIDE_64.tiles }, { WIDE_64.ahead }>, WIDE_WARPS * 32, 2,
        "`y += z`.", "128 rows by 64 columns a block.";
    wide_gated_64, WideGated64, wide<GATED, { WIDE_64.bands }, { WIDE_64.tiles }, { WIDE_64.ahead }>, WIDE_WARPS * 32, 2,
        "`y[i] = activation(z[i]) z[n / 2 + i]`.", "128 rows by 64 columns a block.";
    wide_store_128, WideStore128, wide<STORE, { WIDE_128.bands }, { WIDE_128.tiles }, { WIDE_128.ahead }>, WIDE_WARPS * 32, 2,
        "`y = z`.", "128 rows by 128 columns a block.";
    wide_add_128, WideAdd128, wide<ADD, { WIDE_128.bands }, { WIDE_128.tiles }, { WIDE_128.ahead }>, WIDE_WARPS * 32, 2,
        "`y += z`.", "128 rows by 128 columns a block.";
    wide_gated_128, WideGated128, wide<GATED, { WIDE_128.bands }, { WIDE_128.tiles }, { WIDE_128.ahead }>, WIDE_WARPS * 32, 2,
        "`y[i] = activation(z[i]) z[n / 2 + i]`.", "128 rows by 128 columns a block.";
    mid_store_16, MidStore16, mid<STORE, { MID.0 }, { MID.1 }, 2>, MID_WARPS * 32, 2, "`y = z`.", "32 rows by 16 columns a block.";
    mid_add_16, MidAdd16, mid<ADD, { MID.0 }, { MID.1 }, 2>, MID_WARPS * 32, 2, "`y += z`.", "32 rows by 16 columns a block.";
    mid_gated_16, MidGated16, mid<GATED, { MID_GATED.0 }, { MID_GATED.1 }, 2>, MID_WARPS * 32, 2,
        "`y[i] = activation(z[i]) z[n / 2 + i]`.", "64 rows by 16 columns a block.";
    mid_store_32, MidStore32, mid<STORE, { MID.0 }, { MID.1 }, 4>, MID_WARPS * 32, 2, "`y = z`.", "32 rows by 32 columns a block.";
    mid_add_32, MidAdd32, mid<ADD, { MID.0 }, { MID.1 }, 4>, MID_WARPS * 32, 2, "`y += z`.", "32 rows by 32 columns a block.";
    mid_gated_32, MidGated32, mid<GATED, { MID_GATED.0 }, { MID_GATED.1 }, 4>, MID_WARPS * 32, 2,
        "`y[i] = activation(z[i]) z[n / 2 + i]`.", "64 rows by 32 columns a block.";
    narrow_store_8, NarrowStore8, narrow<STORE, 1>, NARROW_WARPS * 32, 1, "`y = z`.", "32 rows by 8 columns a block.";
    narrow_add_8, NarrowAdd8, narrow<ADD, 1>, NARROW_WARPS * 32, 1, "`y += z`.", "32 rows by 8 columns a block.";
    narrow_gated_8, NarrowGated8, narrow<GATED, 1>, NARROW_WARPS * 32, 1, "`y[i] = activation(z[i]) z[n / 2 + i]`.",
        "32 rows by 8 columns a block.";
    narrow_store_32, NarrowStore32, narrow<STORE, 4>, NARROW_WARPS * 32, 1, "`y = z`.", "32 rows by 32 columns a block.";
    narrow_add_32, NarrowAdd32, narrow<ADD, 4>, NARROW_WARPS * 32, 1, "`y += z`.", "32 rows by 32 columns a block.";
    narrow_gated_32, NarrowGated32, narrow<GATED, 4>, NARROW_WARPS * 32, 1, "`y[i] = activation(z[i]) z[n / 2 + i]`.",
        "32 rows by 32 columns a block.";
}

/// The kernel for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// [`WideStore128`] and its siblings.
    Wide128,
    /// [`WideStore64`] and its siblings.
    Wide64,
    /// [`MidStore32`] and its siblings; of up to 20 tiles along k.
    Mid32,
    /// [`MidStore16`] and its siblings; of as many.
    Mid16,
    /// [`NarrowStore32`] and its siblings.
    Narrow32,
    /// [`NarrowStore8`] and its siblings.
    Narrow8,
}

/// The kernel and launch for a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which kernel.
    pub shape: Shape,
    /// Grid, block and shared memory.
    pub launch: Launch,
}

impl Plan {
    /// For an (n, k) matrix, `cols` rows of activations, and an epilogue that is gated or not.
    #[must_use]
    pub fn new(n: usize, k: usize, cols: usize, gated: bool) -> Self {
        let (rows, columns) = (padded_rows(n), cols as u32);
        let is_mid = mma_tile::tiles_k(k) <= MID_TILES_K;
        let shape = match cols {
            0..=8 => Shape::Narrow8,
            9..=16 if is_mid => Shape::Mid16,
            17..=64 if is_mid => Shape::Mid32,
            9..=64 => Shape::Narrow32,
            _ if WIDE_128.time(rows, columns) * 100
                < WIDE_64.time(rows, columns) * u64::from(WIDE_128_RATE) =>
            {
                Shape::Wide128
            }
            _ => Shape::Wide64,
        };
        Self::with(n, k, cols, gated, shape)
    }

    /// A launch of one kernel, for measuring; `gated` says which epilogue it has.
    #[must_use]
    pub fn with(n: usize, k: usize, cols: usize, gated: bool, shape: Shape) -> Self {
        let (rows, cols) = (padded_rows(n), cols as u32);
        let narrow = |width: u32| {
            let warps = (mma_tile::tiles_k(k).div_ceil(NARROW_TILES) as u32).min(NARROW_WARPS);
            Launch {
                grid: [rows.div_ceil(NARROW_ROWS), cols.div_ceil(width), 1],
                block: [warps * 32, 1, 1],
                shared_bytes: (warps * NARROW_ROWS + 2) * width * 4,
            }
        };
        let mid = |width: u32| {
            let (pairs, tiles) = if gated { MID_GATED } else { MID };
            let parts = mma_tile::tiles_k(k).div_ceil(tiles) as u32;
            let codes = parts * tiles as u32 * width * 128;
            let sums = parts * width * MID_STRIDE * pairs * 4;
            Launch {
                grid: [rows.div_ceil(32 * pairs), cols.div_ceil(width), 1],
                block: [parts * pairs * 32, 1, 1],
                shared_bytes: codes.max(sums) + width * 8,
            }
        };
        let launch = match shape {
            Shape::Mid32 => mid(32),
            Shape::Mid16 => mid(16),
            Shape::Wide128 => WIDE_128.launch(rows, cols),
            Shape::Wide64 => WIDE_64.launch(rows, cols),
            Shape::Narrow32 => narrow(32),
            Shape::Narrow8 => narrow(8),
        };
        Self { shape, launch }
    }
}

/// Rows of the tiles of a matrix of `n` rows.
fn padded_rows(n: usize) -> u32 {
    (mma_tile::tiles_n(n) * mma_tile::ROWS) as u32
}
