//! The body of the kernels.

use super::BitGemv;
use crate::bits;
use crate::intrinsics::*;
use crate::tiles::{EARLY, WARPS_AT_A_TIME, row_scale, tile_sums, weights};

/// Rows of tiles that are on their way together, of the `t` of a block whose warps hold `kpw` tiles of each: as many as
/// there are registers for.
pub(crate) const fn ahead(t: usize, kpw: usize) -> usize {
    match (t * kpw > 8 && t > 2, EARLY) {
        (false, _) => t,
        (true, true) => 3,
        (true, false) => 2,
    }
}

/// How a warp multiplies tiles of weights with columns of activations.
pub(crate) trait Columns {
    /// What a lane feeds to the products with one tile.
    type Fed: Copy;

    /// That of this warp's tiles from tile `chunk` along k; adds the codes that this lane loads to `sum`.
    ///
    /// # Safety
    /// As for [`weights`], and the activations were written.
    unsafe fn activations<const KPW: usize>(p: &BitGemv, chunk: u32, sum: &mut i32) -> [Self::Fed; KPW];

    /// Hands this lane's sums of a row of tiles, each with its place (row of 16, column), to `put`.
    ///
    /// # Safety
    /// The whole warp calls this; places are handed out once a warp.
    unsafe fn products<const KPW: usize>(
        w: &[[u32; 4]; KPW],
        x: &[Self::Fed; KPW],
        put: impl FnMut(u32, u32, i32),
    );

    /// The sum of column `lane / 4`, on the lanes that are multiples of 4.
    ///
    /// # Safety
    /// The whole warp calls this.
    unsafe fn sum(sum: i32) -> i32;
}

/// Up to eight columns of bytes.
pub(crate) struct Bytes;

impl Columns for Bytes {
    /// The words of the tile's columns `32 (lane % 4) ..` of column `lane / 4`.
    type Fed = [u32; 8];

    #[inline(always)]
    unsafe fn activations<const KPW: usize>(p: &BitGemv, chunk: u32, sum: &mut i32) -> [[u32; 8]; KPW] {
        let (tiles_k, warps) = (p.k.div_ceil(128), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        // Lanes of unused columns repeat the last one; their results are not stored.
        let row = g.min(p.cols - 1) * tiles_k * 32;
        let mut x = [[0; 8]; KPW];
        let mut i = 0;
        while i < KPW {
            let tile = chunk + i as u32 * warps + warp_id();
            // A tile past the end is the last one again, times zero.
            if tile < tiles_k {
                let at = (row + tile * 32 + t * 8) as usize;
                // SAFETY: the tile is in the row.
                let (low, high) = unsafe { (p.x.load_l2_x4(at), p.x.load_l2_x4(at + 4)) };
                x[i] = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
            }
            let mut j = 0;
            while j < 8 {
                *sum = dp4a(x[i][j], 0x0101_0101, *sum);
                j += 1;
            }
            i += 1;
        }
        x
    }

    #[inline(always)]
    unsafe fn products<const KPW: usize>(
        w: &[[u32; 4]; KPW],
        x: &[[u32; 8]; KPW],
        mut put: impl FnMut(u32, u32, i32),
    ) {
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        // SAFETY: the caller's promise.
        let d = unsafe { tile_sums(w, x) };
        let mut j = 0;
        while j < 4 {
            put(g + j / 2 * 8, 2 * t + j % 2, d[j as usize]);
            j += 1;
        }
    }

    #[inline(always)]
    unsafe fn sum(sum: i32) -> i32 {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = sum + warp_shuffle_xor(FULL_MASK, sum, 1);
            sum + warp_shuffle_xor(FULL_MASK, sum, 2)
        }
    }
}

/// One column, bit by bit: see [`crate::bits`].
pub(crate) struct Bits;

impl Columns for Bits {
    type Fed = u32;

    #[inline(always)]
    unsafe fn activations<const KPW: usize>(p: &BitGemv, chunk: u32, sum: &mut i32) -> [u32; KPW] {
        let (tiles_k, warps) = (p.k.div_ceil(128), block_dim_x() / WARP_SIZE);
        let mut x = [0; KPW];
        let mut i = 0;
        while i < KPW {
            let tile = chunk + i as u32 * warps + warp_id();
            // A tile past the end is the last one again, times zero.
            if tile < tiles_k {
                let at = tile * 32 + lane_id() % 4 * 8 + lane_id() / 4;
                // SAFETY: the tile is in the row.
                x[i] = unsafe { p.x.load_l2(at as usize)[0] };
            }
            i += 1;
        }
        let mut i = 0;
        while i < KPW {
            *sum = dp4a(x[i], 0x0101_0101, *sum);
            // SAFETY: the whole warp is here.
            x[i] = unsafe { bits::columns(x[i]) };
            i += 1;
        }
        x
    }

    #[inline(always)]
    unsafe fn products<const KPW: usize>(
        w: &[[u32; 4]; KPW],
        x: &[u32; KPW],
        mut put: impl FnMut(u32, u32, i32),
    ) {
        // SAFETY: the caller's promise.
        let [upper, lower] = unsafe { bits::sums(w, x) };
        if lane_id().is_multiple_of(4) {
            put(lane_id() / 4, 0, upper);
            put(lane_id() / 4 + 8, 0, lower);
        }
    }

    #[inline(always)]
    unsafe fn sum(sum: i32) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { warp_reduce_add(FULL_MASK, sum) }
    }
}

#[inline(always)]
pub(super) unsafe fn run<C: Columns, const T: usize, const KPW: usize, const AHEAD: usize>(p: BitGemv) {
    let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
    let (g, t) = (lane / 4, lane % 4);
    let tiles_k = p.k.div_ceil(128);
    let first = block_idx_x() * T as u32;
    let rows = T as u32 * 16;
    // (warp, column, row of the block), then (warp, column).
    let parts = Shared::<i32>::at(0);
    let sums = Shared::<i32>::at(warps * p.cols * rows * 4);
    let mut sum = 0;
    // Of row r of tiles, its row and column.
    let part =
        |r: u32, row: u32, col: u32| (col < p.cols).then_some((warp * p.cols + col) * rows + r * 16 + row);
    // SAFETY: tile indices are clamped to the matrix, shared indices are below the plan's size; every branch around a
    // warp or block operation is uniform.
    unsafe {
        let mut w = [[[0; 4]; KPW]; AHEAD];
        let mut r = 0;
        while r < AHEAD {
            w[r] = weights(p.w, (p.n, p.k), first + r as u32, 0);
            r += 1;
        }
        grid_dependency_launch();
        grid_dependency_wait();
        let mut unit = 0.0;
        if EARLY {
            unit = p.unit.load_l2((thread_idx_x() / rows).min(p.cols - 1) as usize)[0];
        }
        let x = C::activations::<KPW>(&p, 0, &mut sum);
        let mut r = 0;
        while r < T {
            let now = w[r % AHEAD];
            if r + AHEAD < T {
                w[r % AHEAD] = weights(p.w, (p.n, p.k), first + (r + AHEAD) as u32, 0);
            }
            C::products(&now, &x, |row, col, d| {
                if let Some(at) = part(r as u32, row, col) {
                    parts.store(at, d);
                }
            });
            r += 1;
        }
        // What a wider matrix has beyond the first tiles of every warp, one row of tiles at a time: in a loop that the
        // compiler cannot unroll, whose registers the loads above would lack.
        let own = (p.n.div_ceil(16) - first).min(T as u32);
        let mut chunk = warps * KPW as u32;
        while chunk < tiles_k {
            let x = C::activations::<KPW>(&p, chunk, &mut sum);
            let mut r = 0;
            while r < own {
                let w = weights(p.w, (p.n, p.k), first + r, chunk);
                C::products(&w, &x, |row, col, d| {
                    if let Some(at) = part(r, row, col) {
                        parts.store(at, parts.load(at) + d);
                    }
                });
                r += 1;
            }
            chunk += warps * KPW as u32;
        }
        let sum = C::sum(sum);
        if t == 0 && g < p.cols {
            sums.store(warp * p.cols + g, sum);
        }
        // Orders every warp's parts and sums before the additions below.
        sync_threads();
        let mut at = thread_idx_x_again();
        while at < p.cols * rows {
            let (col, row) = (at / rows, first * 16 + at % rows);
            let mut total = 0;
            let mut base = 0;
            while base < warps {
                // Several at a time, so that the loads do not wait for each other.
                let mut i = 0;
                while i < WARPS_AT_A_TIME {
                    let (from, keep) = if base + i < warps { (base + i, -1) } else { (0, 0) };
                    total += (parts.load(from * p.cols * rows + at) - sums.load(from * p.cols + col)) & keep;
                    i += 1;
                }
                base += WARPS_AT_A_TIME;
            }
            if row < p.n {
                let scale = row_scale(row, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c]);
                if !EARLY || at >= block_dim_x() {
                    unit = p.unit.load_l2(col as usize)[0];
                }
                p.y.store((col * p.n + row) as usize, total as f32 * (scale * unit));
            }
            at += block_dim_x();
        }
    }
}
