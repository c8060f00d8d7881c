//! The linear layers of one decoded token: RMSNorm, 8-bit quantization, ternary product and epilogue in one kernel.
//!
//! The codes need only the largest magnitude of the row: `round(x w r * 127 / max|x w r|)` is `round(x w * 127 / max|x w|)`
//! for the `r = 1 / rms(x)` of the norm. So a warp quantizes just the columns it multiplies, in registers, once the block's
//! warps have shared their maxima; the sum of squares only scales the result, and is added up beside the products.
//!
//! Tensor cores multiply 8 columns where a decoded token has one. `product::Bits` lets the columns be the 8 bits of the
//! activations: the two bits of a ternary code are multiplied as they lie in memory, 128 codes an instruction, without
//! unpacking. `product::Bytes` is for GPUs whose tensor cores have lost single bits (from capability 10.0 on): it masks
//! codes out of the words, as [`crate::bit_gemv`] does, and uses one column. Both sums are exact, so the results are the same bits.
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

macro_rules! decode_linear {
    ($($name:ident, $Params:ident, $Product:ident, $epilogue:ident, $kpw:literal, $what:literal;)*) => {
        $(kernel! {
            /// `z[n] = (sum over k of t[n][k] q[k]) * (scale(n) * unit)` for the codes q of one normalized row, then
            #[doc = $what]
            ///
            /// - Shapes: `w` tiles of (n, k); `x`, `norm` (k); the rest as the fields say.
            /// - Launch: [`launch`]; a block owns two or four rows of tiles, its warps split k,
            #[doc = concat!(stringify!($kpw), " tiles a warp at a time.")]
            /// - Layout: [`bitnet_layout::mma_tile`]. Moves: `n k / 4` bytes of weights once; `x` once a block, from L2.
            /// - Bound: the latency of the dependent part, and DRAM for the largest matrix.
            ///
            /// # Safety
            /// Lengths as above; `w`, `x` and `norm` 16-byte aligned; `k` a multiple of 4; the launch is [`launch`]'s.
            $name, block = [max_warps($kpw) * 32, 1, 1], min_blocks = if $kpw == 2 { 2 } else { 1 }, body = device::run::<product::$Product, { device::$epilogue }, { tile_rows($kpw, <product::$Product as product::Product>::BITS) as usize }, $kpw>;
            pub struct $Params {
                /// Weights in tiles; in pairs of rows for the gated kernels.
                pub w: Global<u32>,
                /// Input row, (k).
                pub x: Global<f32>,
                /// Weight of the norm before the layer, (k); ones where there is no norm.
                pub norm: Global<f32>,
                /// Output; the residual stream (n), which is added to; gated, (n / 2).
                pub y: Global<f32>,
                /// Rows.
                pub n: u32,
                /// Columns.
                pub k: u32,
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
        })*

        #[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
        mod params {
            use super::DecodeStoreK2;
            use super::device::Params;
            $(
                impl Params for super::$Params {
                    #[inline(always)]
                    #[rustfmt::skip]
                    fn get(self) -> DecodeStoreK2 {
                        let super::$Params { w, x, norm, y, n, k, eps, activation, row_b, row_c, scale_a, scale_b, scale_c } = self;
                        DecodeStoreK2 { w, x, norm, y, n, k, eps, activation, row_b, row_c, scale_a, scale_b, scale_c }
                    }
                }
            )*
        }
    };
}

decode_linear! {
    decode_store_k2, DecodeStoreK2, Bits, STORE, 2, "`y = z`: the projections to q, k and v.";
    decode_store_k3, DecodeStoreK3, Bits, STORE, 3, "`y = z`: the projections to q, k and v.";
    decode_store_k4, DecodeStoreK4, Bits, STORE, 4, "`y = z`: the projections to q, k and v.";
    decode_add_k2, DecodeAddK2, Bits, ADD, 2, "`y += z`: a projection back to the residual stream.";
    decode_add_k3, DecodeAddK3, Bits, ADD, 3, "`y += z`: a projection back to the residual stream.";
    decode_add_k4, DecodeAddK4, Bits, ADD, 4, "`y += z`: a projection back to the residual stream.";
    decode_gated_k2, DecodeGatedK2, Bits, GATED, 2, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
    decode_gated_k3, DecodeGatedK3, Bits, GATED, 3, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
    decode_gated_k4, DecodeGatedK4, Bits, GATED, 4, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
    decode_store_k2_bytes, DecodeStoreK2Bytes, Bytes, STORE, 2, "`y = z`: the projections to q, k and v.";
    decode_store_k3_bytes, DecodeStoreK3Bytes, Bytes, STORE, 3, "`y = z`: the projections to q, k and v.";
    decode_store_k4_bytes, DecodeStoreK4Bytes, Bytes, STORE, 4, "`y = z`: the projections to q, k and v.";
    decode_add_k2_bytes, DecodeAddK2Bytes, Bytes, ADD, 2, "`y += z`: a projection back to the residual stream.";
    decode_add_k3_bytes, DecodeAddK3Bytes, Bytes, ADD, 3, "`y += z`: a projection back to the residual stream.";
    decode_add_k4_bytes, DecodeAddK4Bytes, Bytes, ADD, 4, "`y += z`: a projection back to the residual stream.";
    decode_gated_k2_bytes, DecodeGatedK2Bytes, Bytes, GATED, 2, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
    decode_gated_k3_bytes, DecodeGatedK3Bytes, Bytes, GATED, 3, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
    decode_gated_k4_bytes, DecodeGatedK4Bytes, Bytes, GATED, 4, "`y[i] = activation(z[i]) z[n / 2 + i]`: gate and up.";
}

/// Most warps of a block whose warps hold `tiles_per_warp` tiles of each of their rows: what the registers suffice for, twice
/// over where a warp holds two.
const fn max_warps(tiles_per_warp: u32) -> u32 {
    match tiles_per_warp {
        2 => 10,
        3 => 18,
        _ => 16,
    }
}

/// Rows of tiles of a block whose warps hold `tiles_per_warp` tiles of each, on `bits` or on bytes: what the registers suffice
/// for. Fewer would make more blocks, and the next kernel's would find no room beside them to ask for their weights.
const fn tile_rows(tiles_per_warp: u32, bits: bool) -> u32 {
    if tiles_per_warp == 2 || (tiles_per_warp == 4 && bits) {
        4
    } else {
        2
    }
}

/// Tiles along k that a warp holds at a time, for `k` columns. It also fixes the order in which squares are added.
#[must_use]
pub const fn tiles_per_warp(k: usize) -> u32 {
    match mma_tile::tiles_k(k) {
        0..=20 => 2,
        21..=40 => 3,
        _ => 4,
    }
}

/// Warps of a block that shares `k` columns; at least two, so that every row of the block has a lane.
#[must_use]
pub fn warps(k: usize) -> u32 {
    (mma_tile::tiles_k(k) as u32)
        .div_ceil(tiles_per_warp(k))
        .clamp(2, max_warps(tiles_per_warp(k)))
}

/// Launch of the kernels whose names have [`tiles_per_warp`] of `k`, on `bits` or on bytes.
#[must_use]
pub fn launch(n: usize, k: usize, bits: bool) -> Launch {
    let tile_rows = tile_rows(tiles_per_warp(k), bits);
    Launch {
        grid: [(mma_tile::tiles_n(n) as u32).div_ceil(tile_rows), 1, 1],
        block: [warps(k) * 32, 1, 1],
        shared_bytes: warps(k) * (tile_rows * mma_tile::ROWS as u32 + 3) * 4 + 4,
    }
}
