//! Flat blocks: as mid blocks, for matrices of so few columns that a warp has all tiles of its part of k at once.

use super::device::{Block, before, column, finish, swizzled, unpack};
use super::{BitGemm, FLAT_STRIDE, flat_bytes};
use crate::intrinsics::*;

/// Parts of a sum that are loaded together.
const PARTS_AT_A_TIME: u32 = 5;

/// `PAIRS` pairs of rows of tiles by `8 GROUPS` columns; a warp takes `TILES` tiles along k of one pair.
pub(super) struct Flat<const PAIRS: u32, const TILES: usize, const GROUPS: usize>;

impl<const PAIRS: u32, const TILES: usize, const GROUPS: usize> Block for Flat<PAIRS, TILES, GROUPS> {
    #[inline(always)]
    unsafe fn run<const EPILOGUE: u32>(p: BitGemm) {
        let (lane, warp, me) = (lane_id(), warp_id(), thread_idx_x());
        let (g, t) = (lane / 4, lane % 4);
        let (pair, part) = (warp % PAIRS, warp / PAIRS);
        let (tiles_n, tiles_k) = (p.n.div_ceil(16), p.k.div_ceil(128));
        let parts = block_dim_x() / (32 * PAIRS);
        let width = GROUPS as u32 * 8;
        let (first, first_col) = (block_idx_x() * 2 * PAIRS, block_idx_y() * width);
        let first_tile = part * TILES as u32;
        // Codes (tile along k, column, 128); then, in their place, parts of sums (part, column, row of the block); behind both what belongs
        // to the columns.
        let codes = Shared::<u32>::at(0);
        let sums_of_parts = Shared::<i32>::at(0);
        let behind = flat_bytes(parts, PAIRS, TILES as u32, width);
        let units = Shared::<f32>::at(behind);
        let sums = Shared::<i32>::at(behind + width * 4);
        // Two rows 8 apart of one column, 16 of a pair of rows of tiles.
        let output = |at: u32| {
            let (col, pair, two) = (at / (16 * PAIRS), at / 16 % PAIRS, at % 16);
            (col, pair, two / 8 * 16 + two % 8)
        };
        let mut acc = [[[0; 4]; GROUPS]; 2];
        // SAFETY: tiles and columns are clamped to what exists; every branch around a warp or block operation is uniform.
        unsafe {
            // Weights do not depend on the kernel before this one; past the end of k they are codes of zero products.
            let mut w = [[[0; 4]; 2]; TILES];
            let mut i = 0;
            while i < TILES {
                let tile = first_tile + i as u32;
                if tile < tiles_k {
                    let mut m = 0;
                    while m < 2 {
                        let band = (first + 2 * pair + m as u32).min(tiles_n - 1);
                        w[i][m] =
                            p.w.load_stream_x4(((band * tiles_k + tile) * 128 + lane * 4) as usize);
                        m += 1;
                    }
                }
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            // The part's warps share its copies: 8 chunks of each column and tile.
            let mut piece = pair * 32 + lane;
            while piece < TILES as u32 * width * 8 {
                let (tile, col, chunk) = (piece / (width * 8), piece / 8 % width, piece % 8);
                let from = (first_col + col).min(p.cols - 1) * tiles_k + (first_tile + tile).min(tiles_k - 1);
                let to = ((first_tile + tile) * width + col) * 32;
                async_copy_16(
                    codes.offset(to + swizzled(col, chunk) / 4),
                    p.x.offset((from * 32 + chunk * 4) as usize),
                );
                piece += 32 * PAIRS;
            }
            async_copy_commit();
            // While the copies are on their way; little is asked for when the sums are there.
            let (col, of_pair, row) = output(me);
            let col = if col < width { first_col + col } else { p.cols };
            let early = before::<EPILOGUE>(&p, (first + 2 * of_pair) * 16 + row, col);
            if me < width {
                let (unit, sum) = column(&p, (first_col + me).min(p.cols - 1));
                units.store(me, unit);
                sums.store(me, sum);
            }
            async_copy_wait::<0>();
            // Orders the copies of all lanes that made the part's before its loads.
            if PAIRS == 1 {
                sync_warp(FULL_MASK);
            } else {
                sync_threads_named(part + 1, 32 * PAIRS);
            }
            let mut i = 0;
            while i < TILES {
                let mut half = 0;
                while half < 2 {
                    let mut x = [[0; 4]; GROUPS];
                    let mut c = 0;
                    while c < GROUPS {
                        let col = c as u32 * 8 + g;
                        let at = ((first_tile + i as u32) * width + col) * 32;
                        x[c] = codes.load_x4(at + swizzled(col, 2 * t + half as u32) / 4);
                        c += 1;
                    }
                    let mut plane = 0;
                    while plane < 2 {
                        let shift = (2 * half + plane) as u32;
                        let a = [unpack(w[i][0], shift), unpack(w[i][1], shift)];
                        let mut c = 0;
                        while c < GROUPS {
                            let b = [x[c][2 * plane], x[c][2 * plane + 1]];
                            acc[0][c] = mma_m16n8k32_u8_s8(a[0], b, acc[0][c]);
                            acc[1][c] = mma_m16n8k32_u8_s8(a[1], b, acc[1][c]);
                            c += 1;
                        }
                        plane += 1;
                    }
                    half += 1;
                }
                i += 1;
            }
            // Orders the loads of all codes before what takes their place.
            sync_threads();
            let mut m = 0;
            while m < 2 {
                let mut c = 0;
                while c < GROUPS {
                    let mut j = 0;
                    while j < 4 {
                        let col = c as u32 * 8 + 2 * t + j as u32 % 2;
                        let row = m as u32 * 16 + g + j as u32 / 2 * 8;
                        let at = ((part * PAIRS + pair) * width + col) * FLAT_STRIDE + row;
                        sums_of_parts.store(at, acc[m][c][j]);
                        j += 1;
                    }
                    c += 1;
                }
                m += 1;
            }
            // Orders every warp's parts, the units and the sums before their loads below.
            sync_threads();
            let mut at = me;
            while at < width * 16 * PAIRS {
                let (col, pair, row) = output(at);
                let (mut upper, mut lower) = (0, 0);
                let mut part = 0;
                while part < parts {
                    // Several at a time, so that the loads do not wait for each other.
                    let mut i = 0;
                    while i < PARTS_AT_A_TIME {
                        let (from, keep) = if part + i < parts { (part + i, -1) } else { (0, 0) };
                        let from = ((from * PAIRS + pair) * width + col) * FLAT_STRIDE + row;
                        upper += sums_of_parts.load(from) & keep;
                        lower += sums_of_parts.load(from + 8) & keep;
                        i += 1;
                    }
                    part += PARTS_AT_A_TIME;
                }
                let of_column = (units.load(col), sums.load(col));
                let (row, col) = ((first + 2 * pair) * 16 + row, first_col + col);
                let before = if at == me {
                    early
                } else {
                    before::<EPILOGUE>(&p, row, col)
                };
                finish::<EPILOGUE>(&p, row, col, of_column, before, [upper, lower]);
                at += block_dim_x();
            }
        }
    }
}
