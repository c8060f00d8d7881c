//! Mid blocks: the warps split k, and each part of k has its codes in shared memory once for all rows of the block.

use super::device::{Block, CODE_BITS, before, column, finish, swizzled, unpack};
use super::{BitGemm, mid_bytes};
use crate::intrinsics::*;

/// Parts of a sum that are loaded together.
const PARTS_AT_A_TIME: u32 = 5;

/// `PAIRS` pairs of rows of tiles by `8 GROUPS` columns at a time; a warp takes a part of k of one pair: tile `part`, and from there every
/// tile that is a multiple of the parts further. It has the weights of `TILES` tiles at a time.
pub(super) struct Mid<const PAIRS: u32, const TILES: usize, const GROUPS: usize>;

/// A warp's place.
struct Place<const PAIRS: u32, const GROUPS: usize> {
    p: BitGemm,
    tiles_k: u32,
    pair: u32,
    part: u32,
    parts: u32,
    /// First row of tiles of the pair.
    first: u32,
    /// Tiles of codes that the part has room for.
    slots: u32,
    /// The part's codes: (slot, column, 128).
    codes: Shared<u32>,
}

impl<const PAIRS: u32, const GROUPS: usize> Place<PAIRS, GROUPS> {
    const WIDTH: u32 = 8 * GROUPS as u32;

    /// Tile `i` of the part, which may lie past the end of k.
    #[inline(always)]
    fn tile(&self, i: u32) -> u32 {
        self.part + i * self.parts
    }

    /// This lane's words of tile `i` of both rows of tiles; zeros past the end of k.
    ///
    /// # Safety
    /// The launch is that of the parameters. This goes for all methods.
    #[inline(always)]
    unsafe fn weights(&self, i: u32) -> [[u32; 4]; 2] {
        let (tiles_n, tile) = (self.p.n.div_ceil(16), self.tile(i));
        let mut w = [[0; 4]; 2];
        if tile < self.tiles_k {
            let mut m = 0;
            while m < 2 {
                let band = (self.first + m as u32).min(tiles_n - 1);
                let at = (band * self.tiles_k + tile) * 128 + thread_idx_x_again() % WARP_SIZE * 4;
                // SAFETY: the tile is one of the matrix.
                w[m] = unsafe { self.p.w.load_stream_x4(at as usize) };
                m += 1;
            }
        }
        w
    }

    /// Starts the copies of this warp's share of the codes of tile `i`, if there is one, to slot `slot`, and closes their group. Columns
    /// past the last are copies of it.
    ///
    /// # Safety
    /// The codes were written, and the part's warps are done with the tile that lies in the slot.
    #[inline(always)]
    unsafe fn copy(&self, i: u32, slot: u32, first_col: u32) {
        let tile = self.tile(i);
        if tile < self.tiles_k {
            // Read again, as in `multiply`.
            let lane = thread_idx_x_again() % WARP_SIZE;
            let (chunk, slot) = (lane % 8, slot * Self::WIDTH);
            let mut line = self.pair * 4 + lane / 8;
            while line < Self::WIDTH {
                let from = (first_col + line).min(self.p.cols - 1) * self.tiles_k + tile;
                // SAFETY: column and tile are those of the activations, the slot is the part's.
                unsafe {
                    async_copy_16(
                        self.codes.offset((slot + line) * 32 + swizzled(line, chunk) / 4),
                        self.p.x.offset((from * 32 + chunk * 4) as usize),
                    );
                }
                line += 4 * PAIRS;
            }
        }
        async_copy_commit();
    }

    /// Orders the part's warps.
    ///
    /// # Safety
    /// All of them are here.
    #[inline(always)]
    unsafe fn sync(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if PAIRS == 1 {
                sync_warp(FULL_MASK);
            } else {
                sync_threads_named(self.part + 1, 32 * PAIRS);
            }
        }
    }

    /// Waits for the codes of tile `i` in slot `slot`, adds its products with `w`, and asks for those of the tile that takes its slot.
    ///
    /// # Safety
    /// All warps of the part call this for each of its tiles in order; the first `slots` were asked for before.
    #[inline(always)]
    unsafe fn multiply(
        &self,
        acc: &mut [[[i32; 4]; GROUPS]; 2],
        w: [[u32; 4]; 2],
        (i, slot): (u32, u32),
        first_col: u32,
    ) {
        // Read again, so that nothing made of it stays in registers from one tile to the next.
        let lane = thread_idx_x_again() % WARP_SIZE;
        let (g, t) = (lane / 4, lane % 4);
        // SAFETY: the caller's promise; branches are uniform in the part.
        unsafe {
            // Group i is tile i's: as many have been closed since as there are slots, less one.
            match self.slots {
                5 => async_copy_wait::<4>(),
                4 => async_copy_wait::<3>(),
                3 => async_copy_wait::<2>(),
                2 => async_copy_wait::<1>(),
                _ => async_copy_wait::<0>(),
            }
            // Orders the copies of all lanes that made them before the loads below.
            self.sync();
            let from = slot * Self::WIDTH;
            let mut half = 0;
            while half < 2 {
                let mut x = [[0; 4]; GROUPS];
                let mut c = 0;
                while c < GROUPS {
                    let col = c as u32 * 8 + g;
                    x[c] = self
                        .codes
                        .load_x4((from + col) * 32 + swizzled(col, 2 * t + half as u32) / 4);
                    c += 1;
                }
                let mut plane = 0;
                while plane < 2 {
                    let shift = (2 * half + plane) as u32;
                    let mut m = 0;
                    while m < 2 {
                        let a = unpack(w[m], shift);
                        let mut c = 0;
                        while c < GROUPS {
                            let b = [x[c][2 * plane], x[c][2 * plane + 1]];
                            acc[m][c] = mma_m16n8k32_u8_s8(a, b, acc[m][c]);
                            c += 1;
                        }
                        m += 1;
                    }
                    plane += 1;
                }
                half += 1;
            }
            if self.tile(i + self.slots) < self.tiles_k {
                // Orders the part's loads before what takes their place.
                self.sync();
                self.copy(i + self.slots, slot, first_col);
            } else {
                async_copy_commit();
            }
        }
    }
}

impl<const PAIRS: u32, const TILES: usize, const GROUPS: usize> Block for Mid<PAIRS, TILES, GROUPS> {
    #[inline(always)]
    unsafe fn run<const EPILOGUE: u32>(p: BitGemm) {
        let (warp, me) = (warp_id(), thread_idx_x());
        let (pair, part) = (warp % PAIRS, warp / PAIRS);
        let warps = block_dim_x() / WARP_SIZE;
        let parts = warps / PAIRS;
        let width = GROUPS as u32 * 8;
        let tiles_k = p.k.div_ceil(128);
        let first = block_idx_x() * 2 * PAIRS;
        let slots = p.slots;
        let place = Place::<PAIRS, GROUPS> {
            p,
            tiles_k,
            pair,
            part,
            parts,
            first: first + 2 * pair,
            slots,
            codes: Shared::at(part * slots * width * 128),
        };
        // In the place of the codes, the parts' sums: (part, row of tiles, group of columns, lane, 4); behind both what belongs to the
        // columns.
        let sums_of_parts = Shared::<i32>::at(0);
        let behind = mid_bytes(slots, parts, PAIRS, width);
        let units = Shared::<f32>::at(behind);
        let sums = Shared::<i32>::at(behind + width * 4);
        // Rows of tiles by groups of columns: a warp each.
        let fragments = 2 * PAIRS * GROUPS as u32;
        let output = |fragment: u32, lane: u32, first_col: u32| {
            let (tile, group) = (fragment / GROUPS as u32, fragment % GROUPS as u32);
            let (g, t) = (lane / 4, lane % 4);
            ((first + tile) * 16 + g, group * 8 + 2 * t + first_col)
        };
        // SAFETY: tiles and columns are clamped to what exists or compared with it; every branch around a warp or block operation is
        // uniform.
        unsafe {
            // Weights do not depend on the kernel before this one.
            let mut w = [[[0; 4]; 2]; TILES];
            let mut i = 0;
            while i < TILES {
                w[i] = place.weights(i as u32);
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            let mut first_col = block_idx_y() * width;
            while first_col < p.cols {
                let mut i = 0;
                while i < slots {
                    place.copy(i, i, first_col);
                    i += 1;
                }
                // While the copies are on their way; nothing is asked for when the sums are there.
                let mut early = [[0.0; 2]; 2];
                if warp < fragments {
                    let (row, col) = output(warp, thread_idx_x_again() % WARP_SIZE, first_col);
                    early = [
                        before::<EPILOGUE>(&p, row, col),
                        before::<EPILOGUE>(&p, row, col + 1),
                    ];
                }
                if me < width {
                    let (unit, sum) = column(&p, (first_col + me).min(p.cols - 1));
                    units.store(me, unit);
                    sums.store(me, sum);
                }
                let mut acc = [[[0; 4]; GROUPS]; 2];
                let (mut i, mut slot) = (0, 0);
                while i < TILES as u32 || place.tile(i) < tiles_k {
                    if place.tile(i) < tiles_k {
                        place.multiply(&mut acc, w[0], (i, slot), first_col);
                    }
                    // In a circle, so that one piece of code serves all tiles and the next columns find the weights where they were.
                    let mut next = w[0];
                    if place.tile(i + TILES as u32) < tiles_k {
                        next = place.weights(i + TILES as u32);
                    }
                    let mut j = 1;
                    while j < TILES {
                        w[j - 1] = w[j];
                        j += 1;
                    }
                    w[TILES - 1] = next;
                    i += 1;
                    slot = if slot + 1 == slots { 0 } else { slot + 1 };
                }
                // Orders the loads of all codes before what takes their place.
                sync_threads();
                // Read again, so that nothing that is made of it for the end stays in registers through the products.
                let me = thread_idx_x_again();
                let (lane, warp) = (me % WARP_SIZE, me / WARP_SIZE);
                let mut m = 0;
                while m < 2 {
                    let mut c = 0;
                    while c < GROUPS {
                        let fragment = (warp * 2 + m as u32) * GROUPS as u32 + c as u32;
                        sums_of_parts.store_x4((fragment * 32 + lane) * 4, acc[m][c]);
                        c += 1;
                    }
                    m += 1;
                }
                // Orders every warp's parts, the units and the sums before their loads below.
                sync_threads();
                let mut fragment = warp;
                while fragment < fragments {
                    let mut total = [0; 4];
                    let mut part = 0;
                    while part < parts {
                        // Several at a time, so that the loads do not wait for each other.
                        let mut i = 0;
                        while i < PARTS_AT_A_TIME {
                            let (from, keep) = if part + i < parts { (part + i, -1) } else { (0, 0) };
                            let at = (from * fragments + fragment) * 32 + lane;
                            let sums = sums_of_parts.load_x4(at * 4);
                            let mut j = 0;
                            while j < 4 {
                                total[j] += sums[j] & keep;
                                j += 1;
                            }
                            i += 1;
                        }
                        part += PARTS_AT_A_TIME;
                    }
                    let (row, col) = output(fragment, lane, first_col);
                    let mut e = 0;
                    while e < 2 {
                        let col = col + e as u32;
                        let of_column = (units.load(col - first_col), sums.load(col - first_col));
                        let before = if fragment == warp {
                            early[e]
                        } else {
                            before::<EPILOGUE>(&p, row, col)
                        };
                        let products = [total[e], total[e + 2]].map(|sum| sum >> CODE_BITS);
                        finish::<EPILOGUE>(&p, row, col, of_column, before, products);
                        e += 1;
                    }
                    fragment += warps;
                }
                first_col += grid_dim_y() * width;
                if first_col < p.cols {
                    // Orders the loads of the sums before the codes that take their place.
                    sync_threads();
                }
            }
        }
    }
}
