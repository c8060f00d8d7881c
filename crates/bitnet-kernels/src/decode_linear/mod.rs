//! The linear layers of one decoded token, or of a few: RMSNorm, 8-bit quantization, ternary product and epilogue in one kernel.
//!
//! The codes need only the largest magnitude of the row: `round(x w r * 127 / max|x w r|)` is `round(x w * 127 / max|x w|)`
//! for the `r = 1 / rms(x)` of the norm. So a warp quantizes just the columns it multiplies, in registers, once the block's
//! warps have shared their maxima; the sum of squares only scales the result, and is added up beside the products.
//!
//! Tensor cores multiply 8 columns where a decoded token has one. `product::Bits` lets the columns be the 8 bits of the
//! activations: the two bits of a ternary code are multiplied as they lie in memory, 128 codes an instruction, without
//! unpacking. `product::Bytes` is for GPUs whose tensor cores have lost single bits (from capability 10.0 on): it masks
//! codes out of the words and uses one column. Both sums are exact, so the results are the same bits.
//!
//! Of two tokens every block quantizes both: of more, a kernel that does it once is faster. On GPUs that multiply bits each token is
//! eight columns of the product.
//!
//! [`crate::quantize_rows`] computes the same codes and the same `unit`, bit for bit, for batches.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod product;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device;

use crate::{Global, Launch};
use bitnet_layout::{Activation, mma_tile};

/// Gate of the feed-forward block: `relu(x)^2`.
pub const RELU2: u32 = Activation::Relu2 as u32;
/// Gate of the feed-forward block: `x sigmoid(x)`.
pub const SILU: u32 = Activation::Silu as u32;

/// What layers with this epilogue are for.
macro_rules! purpose {
    (Store) => {
        "q, k and v"
    };
    (Add) => {
        "a projection back to the residual stream"
    };
    (Gated) => {
        "gate and up"
    };
}

/// Declares the [`family!`] of kernels by their epilogue, their operands, their grid and how many tokens they take.
macro_rules! layers {
    (
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        $( [$($options:tt)*] $($name:ident, $Kernel:ident, $epilogue:ident, $operands:ident, $tile_rows:literal, $tiles:literal, $cols:literal;)+ )+
    ) => {
        family! {
            $(#[$meta])*
            pub struct $Params $fields
            some (Epilogue, Operands, u32, u32, u32);
            $(
                [$($options)*]
                $(
                    $name, $Kernel, purpose!($epilogue),
                    [product::$operands, { Epilogue::$epilogue as u32 }, $tile_rows, $tiles, $cols],
                    [(Epilogue::$epilogue, Operands::$operands, $tiles, $tile_rows, $cols)];
                )+
            )+
        }
    };
}

layers! {
    /// Parameters of the kernels here, one for each epilogue and grid: [`DecodeLinear::with_kernel`] chooses.
    ///
    /// `z[n] = (sum over k of t[n][k] q[k]) * (scale(n) * unit)` for the codes q of each normalized row, then `y = z` (store),
    /// `y += z` (add), or `y[i] = activation(z[i]) z[n / 2 + i]` (gated).
    ///
    /// - Shapes: `w` tiles of (n, k); `x` (cols, k); `norm` (k); the rest as the fields say.
    /// - Launch: [`DecodeStoreK2::launch`] and its like; a block owns the rows of tiles that its name says after `T`, four or two where it says
    ///   none, and its warps split k, as many tiles a warp at a time as its name says after `K`. After `X` stands how many rows of `x` it takes
    ///   at most, where it is not one.
    /// - Layout: [`bitnet_layout::mma_tile`]. Moves: `n k / 4` bytes of weights once; `x` once a block, from L2.
    /// - Bound: the latency of the dependent part, and DRAM for the largest matrix.
    ///
    /// # Safety
    /// Lengths as above; `w`, `x` and `norm` 16-byte aligned; `k` a multiple of 4, and as wide as the kernel's tiles a warp are
    /// those of [`tiles_per_warp`]; the launch is that of the parameters.
    pub struct DecodeLinear {
        /// Weights in tiles; in pairs of rows for the gated kernels.
        pub w: Global<u32>,
        /// Input rows, (cols, k).
        pub x: Global<f32>,
        /// Weight of the norm before the layer, (k); ones where there is no norm.
        pub norm: Global<f32>,
        /// Output; the residual stream (cols, n), which is added to; gated, (cols, n / 2).
        pub y: Global<f32>,
        /// Rows.
        pub n: u32,
        /// Columns.
        pub k: u32,
        /// Input rows: at least 1, and as many as the kernel takes at most.
        pub cols: u32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
        /// [`RELU2`] or [`SILU`], for the gated kernels.
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
    // Epilogue and operands, rows of tiles of a block, tiles of each that a warp holds at a time, rows of x.
    [min_blocks = 2,]
    decode_store_k2, DecodeStoreK2, Store, Bits, 4, 2, 1;
    decode_add_k2, DecodeAddK2, Add, Bits, 4, 2, 1;
    decode_gated_k2, DecodeGatedK2, Gated, Bits, 4, 2, 1;
    decode_store_k2_bytes, DecodeStoreK2Bytes, Store, Bytes, 4, 2, 1;
    decode_add_k2_bytes, DecodeAddK2Bytes, Add, Bytes, 4, 2, 1;
    decode_gated_k2_bytes, DecodeGatedK2Bytes, Gated, Bytes, 4, 2, 1;
    [min_blocks = 1,]
    decode_store_k3, DecodeStoreK3, Store, Bits, 2, 3, 1;
    decode_store_k4, DecodeStoreK4, Store, Bits, 4, 4, 1;
    decode_add_k3, DecodeAddK3, Add, Bits, 2, 3, 1;
    decode_add_k4, DecodeAddK4, Add, Bits, 4, 4, 1;
    decode_gated_k3, DecodeGatedK3, Gated, Bits, 2, 3, 1;
    decode_gated_k4, DecodeGatedK4, Gated, Bits, 4, 4, 1;
    decode_store_k3_bytes, DecodeStoreK3Bytes, Store, Bytes, 2, 3, 1;
    decode_store_k4_bytes, DecodeStoreK4Bytes, Store, Bytes, 2, 4, 1;
    decode_add_k3_bytes, DecodeAddK3Bytes, Add, Bytes, 2, 3, 1;
    decode_add_k4_bytes, DecodeAddK4Bytes, Add, Bytes, 2, 4, 1;
    decode_gated_k3_bytes, DecodeGatedK3Bytes, Gated, Bytes, 2, 3, 1;
    decode_gated_k4_bytes, DecodeGatedK4Bytes, Gated, Bytes, 2, 4, 1;
    [min_blocks = 2, arch = sm_90,]
    decode_store_t5k2, DecodeStoreT5K2, Store, Bits, 5, 2, 1;
    decode_add_t3k2, DecodeAddT3K2, Add, Bits, 3, 2, 1;
    decode_add_t5k2, DecodeAddT5K2, Add, Bits, 5, 2, 1;
    [min_blocks = 1, arch = sm_90,]
    decode_gated_t10k2x2, DecodeGatedT10K2X2, Gated, Bits, 10, 2, 2;
    decode_store_k2x2, DecodeStoreK2X2, Store, Bits, 4, 2, 2;
    decode_add_k2x2, DecodeAddK2X2, Add, Bits, 4, 2, 2;
    decode_add_t2k4x2, DecodeAddT2K4X2, Add, Bits, 2, 4, 2;
    decode_store_t6k2, DecodeStoreT6K2, Store, Bits, 6, 2, 1;
    decode_add_t3k4, DecodeAddT3K4, Add, Bits, 3, 4, 1;
    decode_add_t2k4, DecodeAddT2K4, Add, Bits, 2, 4, 1;
    decode_gated_t8k2, DecodeGatedT8K2, Gated, Bits, 8, 2, 1;
    decode_gated_t9k2, DecodeGatedT9K2, Gated, Bits, 9, 2, 1;
    decode_gated_t10k2, DecodeGatedT10K2, Gated, Bits, 10, 2, 1;
    decode_gated_t11k2, DecodeGatedT11K2, Gated, Bits, 11, 2, 1;
    decode_gated_t12k2, DecodeGatedT12K2, Gated, Bits, 12, 2, 1;
}

/// What kernels differ in: the epilogue, how they multiply, tiles of each row that a warp holds, rows of tiles of a block, and rows of
/// activations.
type Key = (Epilogue, Operands, u32, u32, u32);

/// Most threads of a block, however many rows of tiles it has.
const fn threads((_, _, tiles_per_warp, ..): Key) -> u32 {
    32 * max_warps(tiles_per_warp)
}

/// The grid, and the shared memory: the parts of a block's sums, and what its warps share besides.
fn launch((_, _, tiles_per_warp, tile_rows, cols): Key, p: &DecodeLinear) -> Launch {
    let warps = warps_of(p.k as usize, tiles_per_warp);
    Launch {
        grid: [(mma_tile::tiles_n(p.n as usize) as u32).div_ceil(tile_rows), 1, 1],
        block: [warps * 32, 1, 1],
        shared_bytes: cols * (warps * (tile_rows * mma_tile::ROWS as u32 + 3) + 1) * 4,
    }
}

/// Most warps of a block whose warps hold `tiles_per_warp` tiles of each of their rows: what the registers suffice for.
pub(crate) const fn max_warps(tiles_per_warp: u32) -> u32 {
    match tiles_per_warp {
        2 => 10,
        3 => 18,
        _ => 16,
    }
}

/// Tiles along k that a warp holds at a time, for `k` columns. It also fixes the order in which squares are added, so that
/// grids differ in rows of tiles alone.
#[must_use]
pub const fn tiles_per_warp(k: usize) -> u32 {
    match mma_tile::tiles_k(k) {
        0..=20 => 2,
        21..=40 => 3,
        _ => 4,
    }
}

/// Warps of a block that shares `k` columns.
#[must_use]
pub fn warps(k: usize) -> u32 {
    warps_of(k, tiles_per_warp(k))
}

/// At least two, so that every one of up to four rows of tiles has its lanes.
fn warps_of(k: usize, tiles_per_warp: u32) -> u32 {
    (mma_tile::tiles_k(k) as u32)
        .div_ceil(tiles_per_warp)
        .clamp(2, max_warps(tiles_per_warp))
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It is the output.
    Store,
    /// It is added to the output.
    Add,
    /// Pairs of products, gate and up, become one output.
    Gated,
}

/// What tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// Codes as they lie in memory, by the bits of the activations.
    Bits,
    /// Codes masked out of their words, by the activations.
    Bytes,
}

impl Epilogue {
    /// Rows of tiles that a block may have on bits, of matrices of `k` columns: the first in every module, the others in the
    /// module for capability 9.0, where the block has a lane for each of their outputs. All give the same bits.
    ///
    /// Larger blocks of gate and up leave multiprocessors to the layer behind it, and what the other layers then like best depends on
    /// all four. 7 for gate and up, and fewer than are built for the others, have lost.
    pub fn tile_rows(self, k: usize) -> impl Iterator<Item = u32> {
        let outputs = if self == Self::Gated { 8 } else { 16 };
        let lanes = warps(k) * 32;
        self.built(Operands::Bits, k)
            .filter(move |tile_rows| tile_rows * outputs <= lanes)
    }

    /// Rows of tiles of a block of the kernels that are built for matrices of `k` columns.
    fn built(self, operands: Operands, k: usize) -> impl Iterator<Item = u32> {
        let wanted = (self, operands, tiles_per_warp(k), 1);
        let keys = DecodeLinear::KEYS.iter();
        keys.filter(move |key| (key.0, key.1, key.2, key.4) == wanted)
            .map(|key| key.3)
    }

    /// The kernel for matrices of `k` columns: on bits with blocks of `tile_rows` rows of tiles, where [`Epilogue::tile_rows`] has that
    /// number, and otherwise with the first that is built.
    #[must_use]
    pub fn key(self, operands: Operands, k: usize, tile_rows: u32) -> (Self, Operands, u32, u32, u32) {
        let is_built = operands == Operands::Bits && self.tile_rows(k).any(|built| built == tile_rows);
        let first = self.built(operands, k).next().unwrap_or_default();
        let tile_rows = if is_built { tile_rows } else { first };
        (self, operands, tiles_per_warp(k), tile_rows, 1)
    }

    /// The kernel for `cols` tokens and matrices of `k` columns on bits, if one is built, which only the module for capability 9.0 has.
    #[must_use]
    pub fn key_of_few(self, k: usize, cols: usize) -> Option<(Self, Operands, u32, u32, u32)> {
        let wanted = (self, Operands::Bits, tiles_per_warp(k));
        let few = |key: &&Key| key.4 > 1 && (key.0, key.1, key.2) == wanted && cols <= key.4 as usize;
        DecodeLinear::KEYS
            .iter()
            .filter(few)
            .min_by_key(|key| key.4)
            .copied()
    }
}
