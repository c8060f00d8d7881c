//! The body of the prefill kernels that multiply by warps.

use super::super::math::{self, Factors, Fold};
use super::{AttentionPrefill, PAGE, ROWS, query_bytes, stage_bytes, stages, warps};
use crate::Global;
use crate::cache::KvType;
use crate::cache::device::{Page, i8x4_to_bf16};
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

/// The tokens and heads of a block, and the lane's rows of its warp's tile, `group` and `group + 8`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Key head.
    pub(super) kv_head: u32,
    /// Where the sequence's pages begin in the tables, of which all have fewer than 2^32 entries.
    pub(super) table: u32,
    /// Position of the block's last token.
    pub(super) last: u32,
    /// Position of the warp's first token.
    pub(super) first: u32,
    /// Positions of the rows.
    pub(super) positions: [u32; 2],
    /// The rows of queries and of outputs; none where a row has no token or head.
    pub(super) rows: [Option<usize>; 2],
    /// Tokens of the block, and of a warp.
    tokens: [u32; 2],
}

impl Place {
    /// The block's.
    ///
    /// # Safety
    /// The tiles are there, and the block is one of the launch.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn load(p: &AttentionPrefill) -> Self {
        let all_heads = (p.n_heads / p.n_kv_heads.max(1)).max(1);
        let parts = all_heads.div_ceil(ROWS);
        let (kv_head, part) = (block_idx_y() / parts, block_idx_y() % parts);
        // Heads of a token in a tile of rows; the last part may have fewer.
        let slots = all_heads.min(ROWS);
        let heads = (all_heads - part * ROWS).min(slots);
        let first_head = kv_head * all_heads + part * ROWS;
        let of_warp = ROWS / slots;
        // SAFETY: the tile is below `n_tiles`.
        let tile = unsafe { p.tiles.load_x4((grid_dim_x() - 1 - block_idx_x()) as usize * 4) };
        let [tile_row, count, table, position] = tile;
        let skipped = warp_id() * of_warp;
        // Token of the warp, and head, of the rows `group` and `group + 8`.
        let place = |half: usize| {
            let row = lane_id() / 4 + 8 * half as u32;
            (row / slots, row % slots)
        };
        let row_of = |half: usize| {
            let (token, head) = place(half);
            let is_used = token < of_warp && skipped + token < count && head < heads;
            let row = (tile_row + skipped + token) as usize * p.n_heads as usize;
            is_used.then_some(row + (first_head + head) as usize)
        };
        Self {
            kv_head,
            table: table * p.table_len,
            last: position + count - 1,
            first: position + skipped,
            positions: [position + skipped + place(0).0, position + skipped + place(1).0],
            rows: [row_of(0), row_of(1)],
            tokens: [count, of_warp],
        }
    }

    /// Whether a warp, and so all behind it, has no tokens.
    #[inline(always)]
    pub(super) fn is_idle(&self, warp: u32) -> bool {
        warp * self.tokens[1] >= self.tokens[0]
    }

    /// The position of the last token of the warps up to `warp`, of which the last may be idle.
    #[inline(always)]
    pub(super) fn last_of_warps(&self, warp: u32) -> u32 {
        let [count, of_warp] = self.tokens;
        self.last + 1 - count + (of_warp * (warp + 1)).min(count) - 1
    }
}

/// A block's keys and values of one step in shared memory: (key, dim) and (dim, key).
#[derive(Clone, Copy)]
struct Stage<const CHUNKS: usize, const INT8: bool> {
    k: Shared<u32>,
    v: Shared<u32>,
    /// Of 8-bit integers, the scales of the keys, then those of the values.
    scales: Shared<f32>,
}

impl<const CHUNKS: usize, const INT8: bool> Stage<CHUNKS, INT8> {
    const KV: KvType = KvType::of(INT8);
    const PADDED: u32 = 32 * CHUNKS as u32;
    const WORDS: u32 = PAGE * Self::PADDED / 2;
    const PIECES: u32 = Self::WORDS / PIECE_WORDS;

    #[inline(always)]
    fn new(number: u32) -> Self {
        let start = query_bytes(Self::PADDED, Self::KV) + number * stage_bytes(Self::PADDED, Self::KV);
        Self {
            k: Shared::at(start),
            v: Shared::at(start + Self::WORDS * 4),
            scales: Shared::at(start + Self::WORDS * 8),
        }
    }

    /// Pieces of the keys, and of the values, of a step in a cache of 8-bit integers.
    const CODE_PIECES: u32 = PAGE * Self::PADDED / 16;

    /// Where the first piece of bfloat16 goes that this lane's first piece of 8-bit integers becomes: of keys, and of values. The
    /// second one follows it.
    #[inline(always)]
    fn first_codes(self) -> [Shared<u32>; 2] {
        let place = |row: u32| {
            let first = thread_idx_x();
            swizzled(first / row, 2 * (first % row), 2 * row)
        };
        // Pieces of integers of a key, and of a dimension.
        [
            self.k.offset(place(Self::PADDED / 16)),
            self.v.offset(place(PAGE / 16)),
        ]
    }

    /// Whether this lane has a piece of 8-bit integers `i` pieces after its first.
    #[inline(always)]
    fn is_piece(i: u32) -> bool {
        let fills_lanes = Self::CODE_PIECES.is_multiple_of(warps(Self::PADDED) * WARP_SIZE);
        fills_lanes || thread_idx_x() + i < Self::CODE_PIECES
    }

    /// Four scales that a lane of the first ones moves: whether they are values', and the first one's place in the page.
    #[inline(always)]
    fn own_scales() -> Option<(bool, u32)> {
        let four = thread_idx_x();
        (four < PAGE / 2).then_some((four >= PAGE / 4, four % (PAGE / 4) * 4))
    }

    /// Starts the copies of a step, whose page lies in both caches. Integers go to the first of the two pieces that they will
    /// become, so that [`Stage::widen`] needs no other lane's.
    ///
    /// # Safety
    /// All lanes of the block call this; the page lies inside the caches; no lane uses the stage.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn request(self, k: Global<u32>, v: Global<u32>, page: Page<INT8>) {
        let (first, stride) = (thread_idx_x(), warps(Self::PADDED) * WARP_SIZE);
        if INT8 {
            // SAFETY: the caller's promise.
            unsafe {
                // From piece to piece as below, and twice as far in shared memory.
                let [to_k, to_v] = self.first_codes();
                let from_k = page.key(0) + (first * PIECE_WORDS) as usize;
                // Dimensions, of which a lane moves on by multiples of 8, lie one after the other.
                let from_v = page.value(first % 4 * Page::<INT8>::RUN, first / 4);
                let mut i = 0;
                while i < Self::CODE_PIECES {
                    if Self::is_piece(i) {
                        let at = i * PIECE_WORDS;
                        async_copy_16(to_k.offset(2 * at), k.offset(from_k + at as usize));
                        async_copy_16(to_v.offset(2 * at), v.offset(from_v + i as usize));
                    }
                    i += stride;
                }
                if let Some((of_values, place)) = Self::own_scales() {
                    let (cache, at) = if of_values { (v, PAGE) } else { (k, 0) };
                    let to = self.scales.cast().offset(at + place);
                    async_copy_16(to, cache.offset(page.scale(place)));
                }
            }
            return;
        }
        // From piece to piece a lane moves on by whole pairs of rows, so that `swizzled` moves as far as the source.
        let per_key = Self::PADDED / 8;
        let to_k = self.k.offset(swizzled(first / per_key, first % per_key, per_key));
        let from_k = page.key(0) + (first * PIECE_WORDS) as usize;
        // A lane moves on by multiples of 8 dimensions. In a run these lie one after the other, so the source moves an eighth as far there.
        let (dim, run, from_v, nearer) = if Page::<INT8>::has_runs(Self::PADDED) {
            // Eight lanes take four runs of two dimensions, which is where `swizzled` spreads what they store; a warp takes whole lines.
            let dim = first / 64 * 8 + first / 8 % 4 * 2 + first % 2;
            let run = first / 32 % 2 * 4 + first / 2 % 4;
            (dim, run, page.value(run * Page::<INT8>::RUN, dim), 8)
        } else {
            (first / 8, first % 8, from_k, 1)
        };
        let to_v = self.v.offset(swizzled(dim, run, 8));
        let mut i = 0;
        while i < Self::PIECES {
            let at = i * PIECE_WORDS;
            // SAFETY: the caller's promise.
            unsafe {
                async_copy_16(to_k.offset(at), k.offset(from_k + at as usize));
                async_copy_16(to_v.offset(at), v.offset(from_v + (at / nearer) as usize));
            }
            i += stride;
        }
    }

    /// Turns the 8-bit integers that this lane has copied into bfloat16. Values past place `last` of the page are worth nothing: a
    /// product takes them all in, and zero times a NaN would count.
    ///
    /// # Safety
    /// All lanes of the block call this, once a step, after they have waited for their copies.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn widen(self, last: u32) {
        // SAFETY: these places are this lane's alone until the next barrier.
        unsafe {
            let [keys, values] = self.first_codes();
            let mut i = 0;
            while i < Self::CODE_PIECES {
                if Self::is_piece(i) {
                    Self::widen_piece(keys.offset(2 * i * PIECE_WORDS));
                    Self::widen_piece(values.offset(2 * i * PIECE_WORDS));
                }
                i += warps(Self::PADDED) * WARP_SIZE;
            }
            if let Some((true, place)) = Self::own_scales() {
                let at = self.scales.offset(PAGE + place);
                let scales = at.load_x4(0);
                at.store_x4(
                    0,
                    core::array::from_fn(|i| if place + i as u32 > last { 0.0 } else { scales[i] }),
                );
            }
        }
    }

    /// Turns the 16 integers of a piece into bfloat16, there and in the next piece.
    ///
    /// # Safety
    /// The pieces are this lane's alone.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn widen_piece(at: Shared<u32>) {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = at.load_x4(0);
            let ([a, b], [c, d]) = (i8x4_to_bf16(codes[0]), i8x4_to_bf16(codes[1]));
            at.store_x4(0, [a, b, c, d]);
            let ([a, b], [c, d]) = (i8x4_to_bf16(codes[2]), i8x4_to_bf16(codes[3]));
            at.store_x4(PIECE_WORDS, [a, b, c, d]);
        }
    }

    /// The scales of the lane's columns of score tile `tile`: of keys from `first` 0 on, of values from [`PAGE`] on.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn scales(self, first: u32, tile: usize) -> [f32; 2] {
        let at = self.scales.offset(first + 8 * (lane_id() % 4));
        // SAFETY: the caller's promise.
        unsafe { at.load_x2(math::key_of(tile as u32, 0)) }
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
            i += warps(Self::PADDED) * WARP_SIZE;
        }
    }
}

/// The A fragments of a warp's queries: in registers, or where they do not fit in shared memory, each lane's its own.
#[derive(Clone, Copy)]
struct Queries<const CHUNKS: usize, const INT8: bool> {
    registers: [[[u32; 4]; 2]; CHUNKS],
}

impl<const CHUNKS: usize, const INT8: bool> Queries<CHUNKS, INT8> {
    const IN_SHARED: bool = query_bytes(32 * CHUNKS as u32, KvType::of(INT8)) > 0;

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
pub(super) unsafe fn run<const CHUNKS: usize, const INT8: bool>(p: AttentionPrefill) {
    let padded = 32 * CHUNKS as u32;
    let (group, quad) = (lane_id() / 4, lane_id() % 4);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: the tile is below `n_tiles`.
    let tile = unsafe { Place::load(&p) };
    let (is_idle, warp_last) = (tile.is_idle(warp_id()), tile.last_of_warps(warp_id()));
    let last = tile.last;
    let steps = last / PAGE + 1;

    // SAFETY: the entries of the steps up to the last position are pages of the cache; every branch around a warp or block
    // operation is uniform.
    unsafe {
        let entry_of = |step: u32| p.tables.load_constant((tile.table + step) as usize)[0];
        let stage_of = |step: u32| Stage::<CHUNKS, INT8>::new(step % stages(padded));
        let request = |step: u32, entry: u32| {
            let page = Page::<INT8>::new(entry, p.n_kv_heads, tile.kv_head, padded);
            stage_of(step).request(p.k_cache, p.v_cache, page);
            async_copy_commit();
        };
        request(0, entry_of(0));
        // With two stages read a step before it is needed, so that no copy waits for it.
        let mut entry = if stages(padded) == 2 {
            entry_of(1.min(steps - 1))
        } else {
            0
        };
        let words = tile.rows.map(|row| row.map(|row| row * (padded / 2) as usize));
        let q = Queries::<CHUNKS, INT8>::load(p.q, words);
        let of_key = lane_pieces(math::key_of(0, group), padded / 8);
        let of_value = lane_pieces(group, 8);
        let mut folds = [Fold::EMPTY; 2];
        let mut out = [[[0.0; 4]; 4]; CHUNKS];
        let mut step = 0;
        while step < steps {
            async_copy_wait::<0>();
            let (stage, first_key) = (stage_of(step), step * PAGE);
            if INT8 {
                stage.widen((last - first_key).min(PAGE - 1));
            }
            // Makes every lane's copies of this step visible, and orders every use of the step before ahead of the
            // copies below.
            sync_threads();
            if stages(padded) == 2 && step + 1 < steps {
                request(step + 1, entry);
                entry = entry_of((step + 2).min(steps - 1));
            }
            if !INT8 && first_key + PAGE - 1 > last {
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
                if INT8 {
                    let mut tile = 0;
                    while tile < 8 {
                        let [even, odd] = stage.scales(0, tile);
                        let [a, b, c, d] = s[tile];
                        s[tile] = [a * even, b * odd, c * even, d * odd];
                        tile += 1;
                    }
                }
                if first_key + PAGE - 1 > tile.first {
                    mask(&mut s, tile.positions, first_key);
                }
                let values = |tile| {
                    if INT8 { stage.scales(PAGE, tile) } else { [0.0; 2] }
                };
                let low = math::weights::<INT8>(&s.map(|s| [s[0], s[1]]), values);
                let high = math::weights::<INT8>(&s.map(|s| [s[2], s[3]]), values);
                let factors = [folds[0].rescale(low.max), folds[1].rescale(high.max)];
                let weights = math::fragments(low.half, high.half);
                let sums = if INT8 {
                    [low.sum, high.sum]
                } else {
                    let sums = math::sums(&weights);
                    [sums[0], sums[2]]
                };
                folds[0].sum = factors[0].fold(folds[0].sum, sums[0]);
                folds[1].sum = factors[1].fold(folds[1].sum, sums[1]);
                let mut n = 0;
                while n < 4 * CHUNKS {
                    let at = 8 * n as u32 * 8 * PIECE_WORDS;
                    let v = [
                        stage.v.load_x4(of_value[0] + at),
                        stage.v.load_x4(of_value[1] + at),
                    ];
                    fold(&mut out[n / 4][n % 4], factors, &math::values(&weights, &v));
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
            if let Some(row) = tile.rows[half] {
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

/// Folds tiles of 8 dimensions of rows `group` and `group + 8`, four numbers each, the first ones of `o`.
#[inline(always)]
pub(super) fn fold<const N: usize, const M: usize>(out: &mut [f32; N], factors: [Factors; 2], o: &[f32; M]) {
    let mut i = 0;
    while i < N {
        out[i] = factors[i % 4 / 2].fold(out[i], o[i]);
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
