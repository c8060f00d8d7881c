//! Wide blocks: both operands come to shared memory, in a ring of stages, and every warp multiplies its part of the block.

use super::device::{Block, CODE_BITS, before, column, finish, unpack};
use super::{BitGemm, WIDE_WARPS};
use crate::intrinsics::*;

/// Groups of 8 columns of a warp.
const GROUPS: usize = 4;

/// Byte offset, in a tile's activations, of 16-byte chunk `chunk` (0..8) of column `col`: neighbors in a column of chunks fall
/// into different banks.
#[inline(always)]
fn swizzled(col: u32, chunk: u32) -> u32 {
    col * 128 + (chunk ^ (col & 7)) * 16
}

/// What a thread brings of every tile along k: a chunk of 16 bytes of the weights and `BANDS` of the activations.
struct Copies<const BANDS: usize> {
    /// Index of the chunk of weights of tile 0.
    weights: u32,
    /// Index of the chunks of activations of tile 0.
    activations: [u32; BANDS],
    /// Byte offsets of the chunk of weights and of the first chunk of activations in a tile.
    to: [u32; 2],
}

impl<const BANDS: usize> Copies<BANDS> {
    #[inline(always)]
    fn new(p: &BitGemm, tiles_k: u32) -> Self {
        let me = thread_idx_x();
        // 8 tiles of 32 chunks: one a thread. Rows and columns past the end are copies of the last.
        let band = (block_idx_x() * 8 + me / 32).min(p.n.div_ceil(16) - 1);
        // Columns of 8 chunks, 32 of them for each of the warps' bands.
        let (col, chunk) = (me / 8, me % 8);
        let mut activations = [0; BANDS];
        let mut j = 0;
        while j < BANDS {
            let of = (block_idx_y() * BANDS as u32 + j as u32) * 32 + col;
            activations[j] = of.min(p.cols - 1) * tiles_k * 32 + chunk * 4;
            j += 1;
        }
        Self {
            weights: band * tiles_k * 128 + me % 32 * 4,
            activations,
            to: [me * 16, 8 * 512 + swizzled(col, chunk)],
        }
    }

    /// Starts the copies of tile `tile` to byte `place`.
    ///
    /// # Safety
    /// All threads of the block call this; the place is free, and the tile one of the matrix.
    #[inline(always)]
    unsafe fn start(&self, p: &BitGemm, tile: u32, place: u32) {
        // SAFETY: rows and columns are clamped to what exists; the offsets are below the tile's size.
        unsafe {
            let to = Shared::<u32>::at(place + self.to[0]);
            async_copy_16(to, p.w.offset((self.weights + tile * 128) as usize));
            let to = Shared::<u32>::at(place + self.to[1]);
            let mut j = 0;
            while j < BANDS {
                // 32 columns further, whose place in the banks is the same.
                async_copy_16(
                    to.offset(j as u32 * 32 * 32),
                    p.x.offset((self.activations[j] + tile * 32) as usize),
                );
                j += 1;
            }
        }
    }
}

/// Byte offsets in a tile of what a lane reads of it: its words of the warp's first row of tiles, and the lower and upper half of
/// its codes of the warp's first group of columns.
struct Reads {
    weights: u32,
    halves: [u32; 2],
}

impl Reads {
    #[inline(always)]
    fn new(band: u32, group: u32) -> Self {
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        Self {
            weights: (band * 32 + lane_id()) * 16,
            halves: [0, 1].map(|half| 8 * 512 + swizzled(group * 8 + g, 2 * t + half)),
        }
    }

    /// Adds the products of the warp's rows of tiles with its groups of columns, of the tile that stands at byte `place`.
    ///
    /// Half by half and plane by plane: what is unpacked and loaded at a time has to fit beside the sums, as two blocks a
    /// multiprocessor leave a thread 128 registers.
    ///
    /// # Safety
    /// The whole warp calls this, after the copies.
    #[inline(always)]
    unsafe fn multiply<const BANDS: usize>(&self, acc: &mut [[[i32; 4]; GROUPS]; BANDS], place: u32) {
        // SAFETY: the caller's promise; offsets are below the tile's size.
        unsafe {
            let mut w = [[0; 4]; BANDS];
            let weights = Shared::<u32>::at(place + self.weights);
            let mut m = 0;
            while m < BANDS {
                w[m] = weights.load_x4(m as u32 * 128);
                m += 1;
            }
            let mut half = 0;
            while half < 2 {
                let codes = Shared::<u32>::at(place + self.halves[half]);
                let mut x = [[0; 4]; GROUPS];
                let mut c = 0;
                while c < GROUPS {
                    x[c] = codes.load_x4(c as u32 * 8 * 32);
                    c += 1;
                }
                let mut i = 0;
                while i < 2 {
                    let mut m = 0;
                    while m < BANDS {
                        let a = unpack(w[m], (2 * half + i) as u32);
                        let mut c = 0;
                        while c < GROUPS {
                            acc[m][c] = mma_m16n8k32_u8_s8(a, [x[c][2 * i], x[c][2 * i + 1]], acc[m][c]);
                            c += 1;
                        }
                        m += 1;
                    }
                    i += 1;
                }
                half += 1;
            }
        }
    }
}

/// A block of 128 rows and `32 BANDS` columns, each warp with `BANDS` rows of tiles and 4 groups of columns. A stage has `TILES`
/// tiles along k, and while one is waited for, `AHEAD` more are on their way.
pub(super) struct Wide<const BANDS: usize, const TILES: u32, const AHEAD: usize>;

impl<const BANDS: usize, const TILES: u32, const AHEAD: usize> Block for Wide<BANDS, TILES, AHEAD> {
    #[inline(always)]
    unsafe fn run<const EPILOGUE: u32>(p: BitGemm) {
        let bands = BANDS as u32;
        let tile_bytes = super::wide_tile_bytes(bands);
        let (stage_bytes, stages) = (TILES * tile_bytes, AHEAD as u32 + 2);
        let (band, group) = (
            warp_id() * bands % WIDE_WARPS,
            warp_id() * bands / WIDE_WARPS * GROUPS as u32,
        );
        let tiles_k = p.k.div_ceil(128);
        let copies = Copies::<BANDS>::new(&p, tiles_k);
        let reads = Reads::new(band, group);
        let mut acc = [[[0; 4]; GROUPS]; BANDS];
        // SAFETY: every branch around a warp or block operation is uniform; places follow each other around the ring.
        unsafe {
            let fetch = |first: u32, place: u32| {
                let mut i = 0;
                while i < TILES {
                    if first + i < tiles_k {
                        copies.start(&p, first + i, place + i * tile_bytes);
                    }
                    i += 1;
                }
                async_copy_commit();
            };
            grid_dependency_launch();
            grid_dependency_wait();
            let mut stage = 0;
            while stage < stages - 1 {
                fetch(stage * TILES, stage * stage_bytes);
                stage += 1;
            }
            let (mut place, mut free) = (0, (stages - 1) * stage_bytes);
            let mut tile = 0;
            while tile < tiles_k {
                async_copy_wait::<AHEAD>();
                // Orders this stage's copies of all threads before the loads below, and the loads of the stage that the next
                // fetch overwrites before it.
                sync_threads();
                fetch(tile + (stages - 1) * TILES, free);
                let mut i = 0;
                while i < TILES {
                    if tile + i < tiles_k {
                        reads.multiply(&mut acc, place + i * tile_bytes);
                    }
                    i += 1;
                }
                tile += TILES;
                free = place;
                place += stage_bytes;
                if place == stages * stage_bytes {
                    place = 0;
                }
            }
            store::<EPILOGUE, BANDS>(
                &p,
                &acc,
                block_idx_x() * 8 + band,
                (block_idx_y() * bands * GROUPS as u32) + group,
            );
        }
    }
}

/// Writes the outputs of a warp's rows of tiles from `band` and groups of columns from `group`.
///
/// A column's loads come before its stores, which nothing passes, so that the latencies of the loads pass together.
///
/// # Safety
/// No other lane writes these outputs.
#[inline(always)]
unsafe fn store<const EPILOGUE: u32, const BANDS: usize>(
    p: &BitGemm,
    acc: &[[[i32; 4]; GROUPS]; BANDS],
    band: u32,
    group: u32,
) {
    let (g, t) = (lane_id() / 4, lane_id() % 4);
    let row = |m: usize| (band + m as u32) * 16 + g;
    let mut i = 0;
    while i < 2 * GROUPS {
        let (c, j) = (i / 2, i % 2);
        let col = (group + c as u32) * 8 + 2 * t + j as u32;
        // SAFETY: columns are clamped to what exists, or compared with their count.
        unsafe {
            let of_column = column(p, col.min(p.cols - 1));
            let mut y = [[0.0; 2]; BANDS];
            let mut m = 0;
            while m < BANDS {
                y[m] = before::<EPILOGUE>(p, row(m), col);
                m += 1;
            }
            let mut m = 0;
            while m < BANDS {
                let products = [acc[m][c][j], acc[m][c][j + 2]].map(|sum| sum >> CODE_BITS);
                finish::<EPILOGUE>(p, row(m), col, of_column, y[m], products);
                m += 1;
            }
        }
        i += 1;
    }
}
