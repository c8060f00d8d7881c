//! The body of the prefill kernels.

use super::super::math::{self, Factors, Fold};
use super::{AttentionPrefill, PAGE, ROWS, query_bytes, stages, threads};
use crate::Global;
use crate::cache::device::Page;
use crate::intrinsics::*;

/// 16 bytes: what a lane loads at once.
const PIECE_WORDS: u32 = 4;

/// Where piece `piece` of row `row` lies in a tile of shared memory, in words; `pieces` a row.
///
/// Two rows that lanes of a quarter warp read together lie in different banks.
#[inline(always)]
fn swizzled(row: u32, piece: u32, pieces: u32) -> u32 {
    let flip = if pieces >= 8 { row % 2 * 4 } else { 0 };
    (row * pieces + (piece ^ flip)) * PIECE_WORDS
}

/// What of [`swizzled`] depends on the lane: pieces `quad` and `4 + quad` of a row. Even numbers of rows, and pairs of four
/// pieces, further on lie a constant further on.
#[inline(always)]
fn lane_pieces(row: u32, pieces: u32) -> [u32; 2] {
    let quad = lane_id() % 4;
    [swizzled(row, quad, pieces), swizzled(row, 4 + quad, pieces)]
}

/// A block's keys and values of one step in shared memory: (key, dim) and (dim, key).
#[derive(Clone, Copy)]
struct Stage<const CHUNKS: usize> {
    k: Shared<u32>,
    v: Shared<u32>,
}

impl<const CHUNKS: usize> Stage<CHUNKS> {
    const PADDED: u32 = 32 * CHUNKS as u32;
    const WORDS: u32 = PAGE * Self::PADDED / 2;
    const PIECES: u32 = Self::WORDS / PIECE_WORDS;

    #[inline(always)]
    fn new(number: u32) -> Self {
        let start = query_bytes(Self::PADDED) + number * Self::WORDS * 2 * 4;
        Self {
            k: Shared::at(start),
            v: Shared::at(start + Self::WORDS * 4),
        }
    }

    /// Starts the copies of the step at `from`, a step's first word in both caches.
    ///
    /// # Safety
    /// All lanes of the block call this; the step lies inside the caches; no lane uses the stage.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn request(self, k: Global<u32>, v: Global<u32>, from: usize) {
        // From piece to piece a lane moves on by whole pairs of rows, so that `swizzled` moves as far as the source.
        let (first, stride) = (thread_idx_x(), threads(Self::PADDED));
        let per_key = Self::PADDED / 8;
        let to_k = self.k.offset(swizzled(first / per_key, first % per_key, per_key));
        let to_v = self.v.offset(swizzled(first / 8, first % 8, 8));
        let from = from + (first * PIECE_WORDS) as usize;
        let mut i = 0;
        while i < Self::PIECES {
            let at = i * PIECE_WORDS;
            // SAFETY: the caller's promise.
            unsafe {
                async_copy_16(to_k.offset(at), k.offset(from + at as usize));
                async_copy_16(to_v.offset(at), v.offset(from + at as usize));
            }
            i += stride;
        }
    }

    /// Zeros the values past key `last`: a product takes them all in, and zero times a NaN would count.
    ///
    /// # Safety
    /// All lanes of the block call this, between barriers.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn clear_values_after(self, last: u32) {
        let mut i = thread_idx_x();
        while i < Self::PIECES {
            let at = self.v.offset(swizzled(i / 8, i % 8, 8));
            let first = i % 8 * 8;
            if first + 7 > last {
                // SAFETY: the piece is this lane's alone.
                unsafe {
                    let w = at.load_x4(0);
                    at.store_x4(
                        0,
                        core::array::from_fn(|word| {
                            let key = first + 2 * word as u32;
                            match () {
                                () if key < last => w[word],
                                () if key <= last => w[word] & 0xffff,
                                () => 0,
                            }
                        }),
                    );
                }
            }
            i += threads(Self::PADDED);
        }
    }
}

/// The A fragments of a warp's queries: in registers, or where they do not fit in shared memory, each lane's its own.
#[derive(Clone, Copy)]
struct Queries<const CHUNKS: usize> {
    registers: [[[u32; 4]; 2]; CHUNKS],
}

impl<const CHUNKS: usize> Queries<CHUNKS> {
    const IN_SHARED: bool = query_bytes(32 * CHUNKS as u32) > 0;

    /// Where fragment `product` of this lane lies: lanes next to each other.
    #[inline(always)]
    fn shared(product: u32) -> Shared<u32> {
        let fragment = warp_id() * 2 * CHUNKS as u32 + product;
        Shared::at((fragment * WARP_SIZE + lane_id()) * PIECE_WORDS * 4)
    }

    /// Loads rows `group` and `group + 8`, given by the words of `q` where they start; none for rows of zeros.
    ///
    /// # Safety
    /// The rows are readable.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn load(q: Global<u32>, rows: [Option<usize>; 2]) -> Self {
        let mut registers = [[[0; 4]; 2]; CHUNKS];
        let mut i = 0;
        while i < CHUNKS {
            let mut words = [[0; 4]; 2];
            let mut half = 0;
            while half < 2 {
                if let Some(row) = rows[half] {
                    let at = row + 16 * i + (PIECE_WORDS * (lane_id() % 4)) as usize;
                    // SAFETY: the caller's promise.
                    words[half] = unsafe { q.load_l2_x4(at) };
                }
                half += 1;
            }
            let [low, high] = words;
            registers[i] = [
                [low[0], high[0], low[1], high[1]],
                [low[2], high[2], low[3], high[3]],
            ];
            if Self::IN_SHARED {
                let mut half = 0;
                while half < 2 {
                    // SAFETY: these bytes are this lane's alone.
                    unsafe { Self::shared((2 * i + half) as u32).store_x4(0, registers[i][half]) };
                    half += 1;
                }
            }
            i += 1;
        }
        Self { registers }
    }

    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    fn chunk(&self, i: usize) -> [[u32; 4]; 2] {
        if Self::IN_SHARED {
            // SAFETY: this lane stored both in `load`.
            unsafe {
                [
                    Self::shared(2 * i as u32).load_x4(0),
                    Self::shared(2 * i as u32 + 1).load_x4(0),
                ]
            }
        } else {
            self.registers[i]
        }
    }
}

#[inline(always)]
pub(super) unsafe fn run<const CHUNKS: usize>(p: impl Into<AttentionPrefill>) {
    let p: AttentionPrefill = p.into();
    let padded = 32 * CHUNKS as u32;
    let (lane, warp) = (lane_id(), warp_id());
    let (group, quad) = (lane / 4, lane % 4);
    let all_heads = (p.n_heads / p.n_kv_heads.max(1)).max(1);
    let parts = all_heads.div_ceil(ROWS);
    let (kv_head, part) = (block_idx_y() / parts, block_idx_y() % parts);
    // Heads of a token in a tile of rows; the last part may have fewer.
    let slots = all_heads.min(ROWS);
    let heads = (all_heads - part * ROWS).min(slots);
    let first_head = kv_head * all_heads + part * ROWS;
    let warp_tokens = ROWS / slots;

    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: the tile is below `n_tiles`.
    let tile = unsafe { p.tiles.load_x4((grid_dim_x() - 1 - block_idx_x()) as usize * 4) };
    let [tile_row, count, table, position] = tile;
    let skipped = warp * warp_tokens;
    // Positions of the warp's first token, its last, and the block's last; an idle warp has its last before its first.
    let warp_first = position + skipped;
    let warp_last = warp_first + warp_tokens.min(count.saturating_sub(skipped)) - 1;
    let is_idle = skipped >= count;
    let last = position + count - 1;
    // Token of the warp, and head, of the rows `group` and `group + 8`.
    let place = |half: usize| {
        let row = group + 8 * half as u32;
        (row / slots, row % slots)
    };
    let row_of = |half: usize| {
        let (token, head) = place(half);
        let is_used = token < warp_tokens && skipped + token < count && head < heads;
        let row = (tile_row + skipped + token) as usize * p.n_heads as usize;
        is_used.then_some(row + (first_head + head) as usize)
    };
    let rows = [row_of(0), row_of(1)];
    // Words of the tables before the tile's own; all of them are fewer than 2^32.
    let table = table * p.table_len;
    let steps = last / PAGE + 1;

    // SAFETY: the entries of the steps up to the last position are pages of the cache; every branch around a warp or block
    // operation is uniform.
    unsafe {
        let entry_of = |step: u32| p.tables.load_constant((table + step) as usize)[0];
        let request = |step: u32, entry: u32| {
            let page = Page::new(entry, p.n_kv_heads, kv_head, padded);
            Stage::<CHUNKS>::new(step % stages(padded)).request(p.k_cache, p.v_cache, page.key(0) / 2);
            async_copy_commit();
        };
        request(0, entry_of(0));
        // With two stages read a step before it is needed, so that no copy waits for it.
        let mut entry = if stages(padded) == 2 {
            entry_of(1.min(steps - 1))
        } else {
            0
        };
        let words = rows.map(|row| row.map(|row| row * (padded / 2) as usize));
        let q = Queries::<CHUNKS>::load(p.q, words);
        let of_key = lane_pieces(math::key_of(0, group), padded / 8);
        let of_value = lane_pieces(group, 8);
        let mut folds = [Fold::EMPTY; 2];
        let mut out = [[[0.0; 4]; 4]; CHUNKS];
        let mut step = 0;
        while step < steps {
            async_copy_wait::<0>();
            // Makes every lane's copies of this step visible, and orders every use of the step before ahead of the
            // copies below.
            sync_threads();
            if stages(padded) == 2 && step + 1 < steps {
                request(step + 1, entry);
                entry = entry_of((step + 2).min(steps - 1));
            }
            let stage = Stage::<CHUNKS>::new(step % stages(padded));
            let first_key = step * PAGE;
            if first_key + PAGE - 1 > last {
                stage.clear_values_after(last - first_key);
                // Orders the zeros before the loads below.
                sync_threads();
            }
            if !is_idle && first_key <= warp_last {
                let mut s = [[0.0; 4]; 8];
                let mut i = 0;
                while i < CHUNKS {
                    let q = q.chunk(i);
                    let mut j = 0;
                    while j < 8 {
                        let at = math::key_of(j, 0) * padded / 8 + 8 * (i as u32 / 2);
                        let k = stage.k.load_x4(of_key[i % 2] + at * PIECE_WORDS);
                        s[j as usize] = math::score(&q, &k, s[j as usize]);
                        j += 1;
                    }
                    i += 1;
                }
                if first_key + PAGE - 1 > warp_first {
                    mask(&mut s, [0, 1].map(|half| warp_first + place(half).0), first_key);
                }
                let (max_low, low) = math::weights(&s.map(|s| [s[0], s[1]]));
                let (max_high, high) = math::weights(&s.map(|s| [s[2], s[3]]));
                let factors = [folds[0].rescale(max_low), folds[1].rescale(max_high)];
                let weights = math::fragments(low, high);
                let sums = math::sums(&weights);
                folds[0].sum = factors[0].fold(folds[0].sum, sums[0]);
                folds[1].sum = factors[1].fold(folds[1].sum, sums[2]);
                let mut n = 0;
                while n < 4 * CHUNKS {
                    let at = 8 * n as u32 * 8 * PIECE_WORDS;
                    let v = [
                        stage.v.load_x4(of_value[0] + at),
                        stage.v.load_x4(of_value[1] + at),
                    ];
                    fold(&mut out[n / 4][n % 4], factors, math::values(&weights, &v));
                    n += 1;
                }
            }
            if stages(padded) == 1 {
                // Orders every use of this step before the copies of the next.
                sync_threads();
                if step + 1 < steps {
                    request(step + 1, entry_of(step + 1));
                }
            }
            step += 1;
        }
        let mut half = 0;
        while half < 2 {
            if let Some(row) = rows[half] {
                let mut n = 0;
                while n < 4 * CHUNKS {
                    let dim = 8 * n as u32 + 2 * quad;
                    if dim < p.head_dim {
                        let o = out[n / 4][n % 4];
                        let sum = folds[half].sum;
                        p.out.store_x2(
                            row * p.head_dim as usize + dim as usize,
                            [o[2 * half] / sum, o[2 * half + 1] / sum],
                        );
                    }
                    n += 1;
                }
            }
            half += 1;
        }
    }
}

/// Folds a tile of 8 dimensions of rows `group` and `group + 8`.
#[inline(always)]
fn fold(out: &mut [f32; 4], factors: [Factors; 2], o: [f32; 4]) {
    let mut i = 0;
    while i < 4 {
        out[i] = factors[i / 2].fold(out[i], o[i]);
        i += 1;
    }
}

/// Hides the keys past the positions of rows `group` and `group + 8`.
#[inline(always)]
fn mask(s: &mut [[f32; 4]; 8], positions: [u32; 2], first_key: u32) {
    let mut j = 0;
    while j < 8 {
        let mut i = 0;
        while i < 4 {
            let key = first_key + math::key_of(j as u32, 2 * (lane_id() % 4) + i as u32 % 2);
            if key > positions[i / 2] {
                s[j][i] = f32::NEG_INFINITY;
            }
            i += 1;
        }
        j += 1;
    }
}
