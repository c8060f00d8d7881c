//! What kernels share that multiply the tiles of [`bitnet_layout::mma_tile`] with few columns.

use crate::Global;
use crate::intrinsics::*;

/// Whether to ask early for what an output needs at the end. Without programmatic dependent launch there is no time to hide
/// it in, and it costs registers.
pub(crate) const EARLY: bool = cfg!(any(not(target_arch = "nvptx64"), sm_90));

/// Warps whose parts of a sum are loaded together.
pub(crate) const WARPS_AT_A_TIME: u32 = 4;

/// What a ternary unit of row `row` is worth in a matrix of up to three parts: the second begins at row `starts[0]`, the
/// third at `starts[1]`.
#[inline(always)]
pub(crate) fn row_scale(row: u32, starts: [u32; 2], scales: [f32; 3]) -> f32 {
    if row >= starts[1] {
        scales[2]
    } else if row >= starts[0] {
        scales[1]
    } else {
        scales[0]
    }
}

/// Sums of one row of tiles over the `KPW` tiles of a warp: the four accumulators of the mma, scaled back.
///
/// `x[i]` are the eight words of tile i's 32 columns that this lane feeds.
#[inline(always)]
pub(crate) unsafe fn tile_sums<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[[u32; 8]; KPW]) -> [i32; 4] {
    let mut sums = [0; 4];
    // Plane by plane, so that one accumulator is alive at a time where registers are short.
    let mut p = 0;
    while p < 4 {
        let mask = 0x0303_0303 << (2 * p);
        let mut plane = [0i32; 4];
        let mut i = 0;
        while i < KPW {
            let a = [w[i][0] & mask, w[i][1] & mask, w[i][2] & mask, w[i][3] & mask];
            // SAFETY: the whole warp is here: every branch around this call is uniform.
            plane = unsafe { mma_m16n8k32_u8_s8(a, [x[i][2 * p], x[i][2 * p + 1]], plane) };
            i += 1;
        }
        let mut j = 0;
        while j < 4 {
            sums[j] += plane[j] >> (2 * p);
            j += 1;
        }
        p += 1;
    }
    sums
}

/// This warp's tiles of an (n, k) matrix from tile `chunk` along k of row `r` of tiles. Tiles past the end repeat the last.
///
/// # Safety
/// The launch is the plan's.
#[inline(always)]
pub(crate) unsafe fn weights<const KPW: usize>(
    tiles: Global<u32>,
    (n, k): (u32, u32),
    r: u32,
    chunk: u32,
) -> [[u32; 4]; KPW] {
    let (tiles_n, tiles_k) = (n.div_ceil(16), k.div_ceil(128));
    let warps = block_dim_x() / WARP_SIZE;
    let band = r.min(tiles_n - 1) * tiles_k;
    let mut w = [[0; 4]; KPW];
    let mut i = 0;
    while i < KPW {
        let tile = (chunk + i as u32 * warps + warp_id()).min(tiles_k - 1);
        // SAFETY: the tile is clamped to the matrix.
        w[i] = unsafe { tiles.load_stream_x4(((band + tile) * 128 + lane_id() * 4) as usize) };
        i += 1;
    }
    w
}
