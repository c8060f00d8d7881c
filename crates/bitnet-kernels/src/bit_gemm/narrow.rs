//! Narrow blocks: the warps split k and load weights straight into registers.

use super::device::{Block, CODE_BITS, Output, column, unpack};
use super::{BitGemm, NARROW_COLUMNS, narrow_stride};
use crate::decode_linear::device::{ADD, GATED};
use crate::intrinsics::*;

/// Parts of a sum that are loaded together.
const PARTS_AT_A_TIME: u32 = 10;

/// This lane's words of tile `tile` along k of the rows of tiles from `first`; zeros past the end of k.
///
/// # Safety
/// The launch is the plan's.
#[inline(always)]
unsafe fn narrow_weights<const BANDS: usize>(p: &BitGemm, first: u32, tile: u32) -> [[u32; 4]; BANDS] {
    let (tiles_n, tiles_k) = (p.n.div_ceil(16), p.k.div_ceil(128));
    let mut w = [[0; 4]; BANDS];
    if tile < tiles_k {
        let mut m = 0;
        while m < BANDS {
            let band = (first + m as u32).min(tiles_n - 1);
            // SAFETY: the tile is one of the matrix.
            w[m] = unsafe {
                p.w.load_stream_x4(((band * tiles_k + tile) * 128 + lane_id() * 4) as usize)
            };
            m += 1;
        }
    }
    w
}

/// Adds the products of those words with the columns from `first_col` on; a tile past the end adds nothing.
///
/// # Safety
/// The whole warp calls this, after the activations were written.
#[inline(always)]
unsafe fn multiply<const BANDS: usize, const CHAINS: usize>(
    p: &BitGemm,
    acc: &mut [[[i32; 4]; CHAINS]; BANDS],
    w: [[u32; 4]; BANDS],
    first_col: u32,
    tile: u32,
) {
    let (g, t) = (lane_id() / 4, lane_id() % 4);
    let tiles_k = p.k.div_ceil(128);
    let col = (first_col + g).min(p.cols - 1);
    let at = ((col * tiles_k + tile.min(tiles_k - 1)) * 32 + t * 8) as usize;
    // SAFETY: tile and column are clamped to what exists.
    let x = unsafe { [p.x.load_l2_x4(at), p.x.load_l2_x4(at + 4)] };
    let mut plane = 0;
    while plane < 4 {
        let x = x[plane / 2];
        let b = [x[2 * (plane % 2)], x[2 * (plane % 2) + 1]];
        let mut m = 0;
        while m < BANDS {
            let chain = &mut acc[m][plane % CHAINS];
            // SAFETY: the caller's promise.
            *chain = unsafe { mma_m16n8k32_u8_s8(unpack(w[m], plane as u32), b, *chain) };
            m += 1;
        }
        plane += 1;
    }
}

/// A block of `BANDS` rows of tiles and 8 columns, whose warps ask for `TILES` tiles along k before they wait. A sum is `CHAINS` sums until
/// all products are added: those of a chain wait for each other.
pub(super) struct Narrow<const BANDS: usize, const TILES: usize, const CHAINS: usize>;

impl<const BANDS: usize, const TILES: usize, const CHAINS: usize> Block for Narrow<BANDS, TILES, CHAINS> {
    #[inline(always)]
    unsafe fn run<const EPILOGUE: u32>(p: BitGemm) {
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (g, t) = (lane / 4, lane % 4);
        let tiles_k = p.k.div_ceil(128);
        let (width, rows) = (NARROW_COLUMNS, 16 * BANDS as u32);
        let (first, first_col) = (block_idx_x() * BANDS as u32, block_idx_y() * width);
        let stride = narrow_stride(BANDS as u32);
        let mut acc = [[[0; 4]; CHAINS]; BANDS];
        // (warp, column, row of the block), then (column) twice.
        let parts = Shared::<i32>::at(0);
        let units = Shared::<f32>::at(warps * width * stride * 4);
        let sums = Shared::<i32>::at((warps * stride + 1) * width * 4);
        // A pair of rows 8 apart of one column.
        let place = |at: u32| {
            let (col, pair) = (at / (rows / 2), at % (rows / 2));
            (col, pair / 8 * 16 + pair % 8)
        };
        let output = |at: u32| {
            let (col, row) = place(at);
            let col = if col < width { first_col + col } else { p.cols };
            Output::new::<EPILOGUE>(&p, first * 16 + row, col)
        };
        // SAFETY: tiles and columns are clamped to what exists; every branch around a warp or block operation is uniform.
        unsafe {
            // Weights do not depend on the kernel before this one.
            let mut w = [[[0; 4]; BANDS]; TILES];
            let mut i = 0;
            while i < TILES {
                w[i] = narrow_weights(&p, first, warp + i as u32 * warps);
                i += 1;
            }
            // Where a product lets the next kernel go was found in whole steps, for each: see docs/kernels.md.
            let last = w[TILES - 1][BANDS - 1][0];
            if EPILOGUE == ADD || EPILOGUE != GATED && warp == 0 {
                grid_dependency_launch_behind(last);
            }
            grid_dependency_wait();
            // Asked for with the first codes, so that nothing is when the sums are there.
            let me = thread_idx_x();
            let mut of_column = (0.0, 0);
            if me < width {
                of_column = column(&p, (first_col + me).min(p.cols - 1));
            }
            let mut of_lane = output(me);
            let mut before = of_lane.before::<EPILOGUE>(&p);
            let mut i = 0;
            while i < TILES {
                multiply(&p, &mut acc, w[i], first_col, warp + i as u32 * warps);
                i += 1;
            }
            // What a wider matrix has beyond those, in a loop that takes no registers from the loads above.
            let mut tile = warp + TILES as u32 * warps;
            while tile < tiles_k {
                multiply(&p, &mut acc, narrow_weights(&p, first, tile), first_col, tile);
                tile += warps;
            }
            if me < width {
                units.store(me, of_column.0);
                sums.store(me, of_column.1);
            }
            let mut m = 0;
            while m < BANDS {
                let mut chain = 1;
                while chain < CHAINS {
                    let mut j = 0;
                    while j < 4 {
                        acc[m][0][j] += acc[m][chain][j];
                        j += 1;
                    }
                    chain += 1;
                }
                let mut j = 0;
                while j < 4 {
                    let col = 2 * t + j as u32 % 2;
                    let row = m as u32 * 16 + g + j as u32 / 2 * 8;
                    parts.store((warp * width + col) * stride + row, acc[m][0][j]);
                    j += 1;
                }
                m += 1;
            }
            if EPILOGUE == GATED {
                // Earlier, blocks of the kernels behind would be resident and ask for their weights while some of these blocks, which are
                // more than those of any other product, still wait for theirs.
                grid_dependency_launch();
            }
            // Orders every warp's parts, the units and the sums before their loads below.
            sync_threads();
            let mut at = me;
            while at < width * rows / 2 {
                let (col, row) = place(at);
                let from = parts.offset(col * stride + row);
                let of_column = (units.load(col), sums.load(col));
                let (mut totals, mut part) = ([0; 2], 0);
                while part < warps {
                    // Several at a time, so that the loads do not wait for each other.
                    let mut loaded = [[0; 2]; PARTS_AT_A_TIME as usize];
                    let mut i = 0;
                    while i < PARTS_AT_A_TIME {
                        if part + i < warps {
                            let from = from.offset((part + i) * width * stride);
                            loaded[i as usize] = [from.load(0), from.load(8)];
                        }
                        i += 1;
                    }
                    let mut i = 0;
                    while i < PARTS_AT_A_TIME as usize {
                        totals = [totals[0] + loaded[i][0], totals[1] + loaded[i][1]];
                        i += 1;
                    }
                    part += PARTS_AT_A_TIME;
                }
                of_lane.finish::<EPILOGUE>(&p, of_column, before, totals.map(|sum| sum >> CODE_BITS));
                at += block_dim_x();
                if at < width * rows / 2 {
                    of_lane = output(at);
                    before = of_lane.before::<EPILOGUE>(&p);
                }
            }
        }
    }
}
