//! Flat blocks: as mid blocks, for matrices of so few columns that a warp has all tiles of its part of k at once.

use super::device::{Block, CODE_BITS, Output, column, swizzled, unpack};
use super::{BitGemm, FLAT_LONG_WARPS, FLAT_PAIR, FLAT_WARPS, flat_part, flat_stride};
use crate::intrinsics::*;

/// `PAIRS` pairs of rows of tiles by `8 GROUPS` columns; a warp takes `TILES` tiles along k of one pair.
pub(super) struct Flat<const PAIRS: u32, const TILES: usize, const GROUPS: usize>;

impl<const PAIRS: u32, const TILES: usize, const GROUPS: usize> Flat<PAIRS, TILES, GROUPS> {
    /// Most parts of k.
    const MOST_PARTS: u32 = if TILES as u32 > 2 * PAIRS {
        FLAT_LONG_WARPS
    } else {
        FLAT_WARPS / PAIRS
    };
}

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
        // Of each part codes (tile along k, column, 128), and then, in their place, its sums (column, row of the block); behind all parts what
        // belongs to the columns.
        let (stride, part_words) = (flat_stride(PAIRS), flat_part(PAIRS, TILES as u32, width));
        let codes = Shared::<u32>::at(part * part_words * 4);
        let sums_of_parts = Shared::<i32>::at(0);
        let units = Shared::<f32>::at(parts * part_words * 4);
        let sums = Shared::<i32>::at((parts * part_words + width) * 4);
        // A lane's place at the end: as many neighboring rows of one column as there are pairs of rows of tiles, and those 8 further. Columns
        // that half warps have lie two apart, and so in different banks.
        let items = width * 16;
        let place = |at: u32| {
            let (col, item) = (at / 16, at % 16 * PAIRS);
            let col = col / 4 * 4 + col % 2 * 2 + col / 2 % 2;
            (col, item / 16, item % 16 / 8 * 16 + item % 8)
        };
        let outputs = |at: u32| -> [Output; 2] {
            let (col, pair, row) = place(at);
            let col = if at < items { first_col + col } else { p.cols };
            core::array::from_fn(|i| {
                Output::new::<EPILOGUE>(&p, (first + 2 * pair) * 16 + row + i as u32, col)
            })
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
            // The part's warps share its copies: 8 chunks of each column and tile, `PAIRS * 4` columns at a time.
            let (chunk, copied_col) = (lane % 8, pair * 4 + lane / 8);
            let to = codes.offset(copied_col * 32 + swizzled(copied_col, chunk) / 4);
            let turns = 2 * GROUPS / PAIRS as usize;
            let mut from_cols = [0; 8];
            let mut i = 0;
            while i < turns {
                let col = first_col + copied_col + i as u32 * PAIRS * 4;
                // Columns past the last are copies of the first ones: of one they would all ask for the same lines of L2.
                let col = if col < p.cols {
                    col
                } else {
                    (col - p.cols).min(p.cols - 1)
                };
                from_cols[i] = col * tiles_k * 32 + chunk * 4;
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            let mut tile = 0;
            while tile < TILES {
                let from_tile = (first_tile + tile as u32).min(tiles_k - 1) * 32;
                let mut i = 0;
                while i < turns {
                    async_copy_16(
                        to.offset((tile as u32 * width + i as u32 * PAIRS * 4) * 32),
                        p.x.offset((from_cols[i] + from_tile) as usize),
                    );
                    i += 1;
                }
                tile += 1;
            }
            async_copy_commit();
            // While the copies are on their way; little is asked for when the sums are there.
            let before = |of_lane: [Output; 2]| {
                let mut before = [[0.0; 2]; 2];
                let mut i = 0;
                while i < PAIRS as usize {
                    before[i] = of_lane[i].before::<EPILOGUE>(&p);
                    i += 1;
                }
                before
            };
            let mut of_lane = outputs(me);
            let mut y = before(of_lane);
            if me < width {
                let (unit, sum) = column(&p, (first_col + me).min(p.cols - 1));
                units.store(me, unit);
                sums.store(me, sum);
            }
            async_copy_wait::<0>();
            let sync_part = || {
                if PAIRS == 1 {
                    sync_warp(FULL_MASK);
                } else {
                    sync_threads_named(part + 1, 32 * PAIRS);
                }
            };
            // Orders the copies of all lanes that made the part's before its loads.
            sync_part();
            let mut i = 0;
            while i < TILES {
                let mut half = 0;
                while half < 2 {
                    let mut x = [[0; 4]; GROUPS];
                    let mut c = 0;
                    while c < GROUPS {
                        let col = c as u32 * 8 + g;
                        let at = (i as u32 * width + col) * 32;
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
            // Orders the loads of the part's codes before what takes their place.
            sync_part();
            let to = sums_of_parts.offset(part * part_words + 2 * t * stride + pair * FLAT_PAIR + g);
            let mut m = 0;
            while m < 2 {
                let mut c = 0;
                while c < GROUPS {
                    let mut j = 0;
                    while j < 4 {
                        let (col, row) = (c * 8 + j % 2, m * 16 + j / 2 * 8);
                        to.store(col as u32 * stride + row as u32, acc[m][c][j]);
                        j += 1;
                    }
                    c += 1;
                }
                m += 1;
            }
            // Orders every warp's parts, the units and the sums before their loads below.
            sync_threads();
            let mut at = me;
            while at < items {
                let (col, pair, row) = place(at);
                let from = sums_of_parts.offset(col * stride + pair * FLAT_PAIR + row);
                // All are under way before the first addition.
                let mut loaded = [[[0; 2]; 2]; FLAT_LONG_WARPS as usize];
                let mut i = 0;
                while i < Self::MOST_PARTS {
                    if i < parts {
                        let from = from.offset(i * part_words);
                        loaded[i as usize] = if PAIRS == 1 {
                            [[from.load(0), 0], [from.load(8), 0]]
                        } else {
                            [from.load_x2(0), from.load_x2(8)]
                        };
                    }
                    i += 1;
                }
                let of_column = (units.load(col), sums.load(col));
                let mut row = 0;
                while row < PAIRS as usize {
                    let (mut totals, mut i) = ([0; 2], 0);
                    while i < Self::MOST_PARTS as usize {
                        totals = [totals[0] + loaded[i][0][row], totals[1] + loaded[i][1][row]];
                        i += 1;
                    }
                    let products = totals.map(|sum| sum >> CODE_BITS);
                    of_lane[row].finish::<EPILOGUE>(&p, of_column, y[row], products);
                    row += 1;
                }
                at += block_dim_x();
                if at < items {
                    of_lane = outputs(at);
                    y = before(of_lane);
                }
            }
        }
    }
}
