//! `y = W x` for ternary `W` and up to eight columns of 8-bit activations.
//!
//! A warp multiplies whole tiles of [`bitnet_layout::mma_tile`] on the int8 tensor cores. One 16-byte load a lane brings 16
//! rows by 128 columns; masking plane `p` of its four words gives the A fragment of one `mma.m16n8k32` without a shift,
//! because codes scaled by `4^p` are kept in an accumulator of their own and scaled back once at the end, which is exact.
//! Codes are `t + 1`, so the sum of the activations is subtracted at the end. Of the 8 columns that the tensor core
//! computes in any case, `cols` are used. One column is multiplied bit by bit instead, where the GPU can: the kernels named
//! `_bits`.
//!
//! The warps of a block split k and keep `T` rows of tiles: every weight that a block will need is requested before it
//! waits for the kernel that writes `x` (programmatic dependent launch), all in registers, so the loads of one product run
//! under the arithmetic of the product before it.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device;

use crate::decode_linear::Operands;
use crate::{Global, Launch};
use bitnet_layout::mma_tile;

/// Most columns of activations.
pub const MAX_COLS: u32 = 8;

/// Declares the [`family!`] of kernels by their operands and their grid.
macro_rules! variants {
    (
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        $( [$($options:tt)*] $($name:ident, $Kernel:ident, $operands:ident, $tile_rows:literal, $tiles:literal;)+ )+
    ) => {
        family! {
            $(#[$meta])*
            pub struct $Params $fields
            some (u32, u32, Operands);
            $(
                [$($options)*]
                $(
                    $name, $Kernel,
                    concat!("blocks of ", $tile_rows, " rows of tiles, ", $tiles, " tiles a warp at a time"),
                    [device::$operands, $tile_rows, $tiles, { device::ahead($tile_rows, $tiles) }],
                    [($tile_rows, $tiles, Operands::$operands)];
                )+
            )+
        }
    };
}

variants! {
    /// Parameters of the kernels here: [`variant`] and [`variant_on_bits`] choose.
    ///
    /// `y[c][n] = (sum over k of t[n][k] x[c][k]) * (scale(n) * unit[c])` for `cols` columns c.
    ///
    /// - Shapes: `w` tiles of (n, k); `x` (cols, k padded to 128) i8, padded with zeros; `unit` (cols); `y` (cols, n).
    /// - Launch: [`BitGemvT2K1::launch`] and its like; a block owns rows of tiles and its warps split k, some tiles a warp at a time.
    /// - Layout: [`bitnet_layout::mma_tile`]. Moves: `n k / 4` bytes of weights once, `x` once a block.
    /// - Bound: latency of the dependent part (x from L2, products, one barrier) below about 4 MB of weights, above
    ///   that DRAM: 73 % of it at 20480 x 3200 on an H200, on bits.
    ///
    /// # Safety
    /// Lengths as above; `w` and `x` 16-byte aligned; `1 <= cols <= 8`, of the kernels on bits 1; `n`, `k` at least 1; the
    /// launch is that of the parameters.
    pub struct BitGemv {
        /// Weights in tiles.
        pub w: Global<u32>,
        /// Activations, four a word in the order of [`mma_tile::activation_word`], (cols, k padded / 4).
        pub x: Global<u32>,
        /// What a unit of the activations of column c is worth, (cols).
        pub unit: Global<f32>,
        /// Output, (cols, n).
        pub y: Global<f32>,
        /// Rows.
        pub n: u32,
        /// Columns.
        pub k: u32,
        /// Columns of activations.
        pub cols: u32,
        /// First row that has `scale_b`.
        pub row_b: u32,
        /// First row that has `scale_c`.
        pub row_c: u32,
        /// What a ternary unit of the first rows is worth.
        pub scale_a: f32,
        /// What a ternary unit of rows `row_b ..` is worth.
        pub scale_b: f32,
        /// What a ternary unit of rows `row_c ..` is worth.
        pub scale_c: f32,
    }
    // What is multiplied, rows of tiles of a block, tiles of each that a warp holds at a time.
    [min_blocks = 1,]
    bit_gemv_t2k1, BitGemvT2K1, Bytes, 2, 1;
    bit_gemv_t4k1, BitGemvT4K1, Bytes, 4, 1;
    bit_gemv_t2k3, BitGemvT2K3, Bytes, 2, 3;
    bit_gemv_t2k5, BitGemvT2K5, Bytes, 2, 5;
    bit_gemv_t2k3_bits, BitGemvT2K3Bits, Bits, 2, 3;
    bit_gemv_t2k5_bits, BitGemvT2K5Bits, Bits, 2, 5;
    [min_blocks = 2,]
    bit_gemv_t2k2, BitGemvT2K2, Bytes, 2, 2;
    bit_gemv_t4k2, BitGemvT4K2, Bytes, 4, 2;
    bit_gemv_t5k2, BitGemvT5K2, Bytes, 5, 2;
    bit_gemv_t5k2_bits, BitGemvT5K2Bits, Bits, 5, 2;
}

/// Rows of tiles of a block, tiles along k that a warp holds at a time, and what it multiplies.
type Variant = (u32, u32, Operands);

/// Most threads of a block of a variant: what the registers suffice for, twice over for the variants whose kernels
/// follow each other most closely.
const fn threads((tile_rows, tiles_per_warp, _): Variant) -> u32 {
    32 * match (tile_rows, tiles_per_warp) {
        (_, 1) => 20,
        (4, 2) => 10,
        (_, 2) => 13,
        (_, 3) => 18,
        _ => 16,
    }
}

fn launch(variant: Variant, p: &BitGemv) -> Launch {
    let (tile_rows, tiles_per_warp, _) = variant;
    let warps = (mma_tile::tiles_k(p.k as usize) as u32)
        .div_ceil(tiles_per_warp)
        .min(threads(variant) / 32);
    Launch {
        grid: [(mma_tile::tiles_n(p.n as usize) as u32).div_ceil(tile_rows), 1, 1],
        block: [warps * 32, 1, 1],
        shared_bytes: warps * p.cols * (tile_rows * mma_tile::ROWS as u32 + 1) * 4,
    }
}

/// The fastest kernel on bits for an (n, k) matrix and one column, measured on an H200 with cold caches.
///
/// Products are so short that a warp may take many tiles: the fewer warps, the more room for the next kernel's blocks.
#[must_use]
pub fn variant_on_bits(n: usize, k: usize) -> (u32, u32, Operands) {
    match (mma_tile::tiles_n(n), mma_tile::tiles_k(k)) {
        (1000.., ..=26) => (5, 2, Operands::Bits),
        (_, 21..=27) => (2, 3, Operands::Bits),
        _ => (2, 5, Operands::Bits),
    }
}

/// The fastest kernel on bytes for an (n, k) matrix, measured on an H200 with cold caches.
///
/// Fewer tiles a warp mean a shorter dependent part; more mean fewer warps, so that the next kernel's blocks find
/// room beside this one's and start their loads.
#[must_use]
pub fn variant(n: usize, k: usize) -> (u32, u32, Operands) {
    let tiles_k = mma_tile::tiles_k(k) as u32;
    let tiles_per_warp = match tiles_k {
        0..=20 if n < 4096 => 1,
        0..=26 => 2,
        27..=54 => 3,
        _ => 5,
    };
    let tile_rows = match (tiles_per_warp, mma_tile::tiles_n(n)) {
        (1, 200..) => 4,
        (2, 400..) if tiles_k <= 20 => 4,
        (2, 1000..) => 5,
        _ => 2,
    };
    (tile_rows, tiles_per_warp, Operands::Bytes)
}
