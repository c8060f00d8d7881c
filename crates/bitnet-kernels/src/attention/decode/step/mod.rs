//! A step of 64 keys of decoded tokens, which every decode kernel computes: from `qkv` and the caches to `m`, `l` and `o`.

mod append;

mod all;

use super::super::math;
use super::{DecodeInputs, HEADS, SCORES_STRIDE, WARPS, new_bytes, row_bytes};
use crate::cache::device::{Page, Scale, Source};
use crate::cache::{KvType, PAGE, READ_ONLY};
use crate::intrinsics::*;

/// Threads of a block.
const THREADS: u32 = WARPS * WARP_SIZE;

/// Where a block leaves the results of its step. `head` counts the query heads of the block's key head; the calling lane is
/// in the group `head` modulo [`HEADS`] of its warp.
pub(crate) trait Results {
    /// Takes two dimensions of `o`: those of the lane's place in its quad, of `chunk` of 8.
    ///
    /// # Safety
    /// `head` is one of the key head's, and `chunk` one of a padded head's.
    unsafe fn put_values(&self, head: u32, chunk: u32, values: [f32; 2]);

    /// Takes `m` and `l`, which all lanes of a quad hold in every warp.
    ///
    /// # Safety
    /// As for [`Results::put_values`].
    unsafe fn put_sums(&self, head: u32, sums: [f32; 2]);
}

/// What a block works on, for one of its lanes.
#[derive(Clone, Copy)]
pub(crate) struct Step<const CHUNKS: usize, const INT8: bool> {
    p: DecodeInputs,
    token: usize,
    kv_head: u32,
    pub(crate) position: u32,
    first_key: u32,
    page: Page<INT8>,
    is_writable: bool,
    warp: u32,
    group: u32,
    quad: u32,
}

/// Parts of the block's shared memory.
pub(crate) struct Parts {
    /// [`HEADS`] rotated queries, `query_words` apart.
    queries: Shared<u32>,
    query_words: u32,
    /// The new key and value: two elements of bfloat16 a word, or f32 that become 8-bit integers.
    new_k: Shared<u32>,
    new_v: Shared<u32>,
    /// The scores of this lane's place in every warp: 16 of row `group`.
    scores: Shared<f32>,
}

/// The B fragments of a lane: two score tiles of 8 keys, `CHUNKS` tiles of 8 dimensions of the values, eight elements each as
/// [`Page::load_eight`] gives them. And of 8-bit integers, the scales of the lane's columns of both tiles, and of all tiles.
pub(crate) struct Fragments<const CHUNKS: usize> {
    k: [[[u32; 4]; CHUNKS]; 2],
    v: [[[u32; 4]; 2]; CHUNKS],
    key_scales: [[f32; 2]; 2],
    value_scales: math::Scales,
}

impl<const CHUNKS: usize> Fragments<CHUNKS> {
    const EMPTY: Self = Self {
        k: [[[0; 4]; CHUNKS]; 2],
        v: [[[0; 4]; 2]; CHUNKS],
        key_scales: [[0.0; 2]; 2],
        value_scales: [[0.0; 2]; 8],
    };
}

impl Parts {
    #[inline(always)]
    pub(crate) fn new(padded: u32, kv: KvType) -> Self {
        let new_k = HEADS * row_bytes(padded);
        let new_v = new_k + new_bytes(padded, kv);
        let scores = new_v + new_bytes(padded, kv) + lane_id() * SCORES_STRIDE;
        Self {
            queries: Shared::at(0),
            query_words: row_bytes(padded) / 4,
            new_k: Shared::at(new_k),
            new_v: Shared::at(new_v),
            scores: Shared::at(scores),
        }
    }
}

impl<const CHUNKS: usize, const INT8: bool> Step<CHUNKS, INT8> {
    pub(crate) const PADDED: u32 = 32 * CHUNKS as u32;

    /// Lanes that share a head: a constant, as a division by the head's own number would stand between the queries and their
    /// request.
    const ITEMS: u32 = Self::PADDED / 4;

    /// Heads that the block's lanes take at once.
    const HEADS_AT_ONCE: u32 = THREADS / Self::ITEMS;

    /// Words of eight elements.
    const EIGHT: u32 = if INT8 { 2 } else { 4 };

    /// Step `step` of a token and a key head.
    ///
    /// # Safety
    /// The token is below the batch, the step below `table_len`; nothing that this kernel overlaps writes `positions` and
    /// `tables`.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(crate) unsafe fn new(p: DecodeInputs, token: usize, kv_head: u32, step: u32) -> Self {
        let at = token * p.table_len as usize + step as usize;
        // SAFETY: the caller's promise.
        let (position, entry) = unsafe { (p.positions.load_l2(token)[0], p.tables.load_l2(at)[0]) };
        Self {
            p,
            token,
            kv_head,
            position,
            first_key: step * PAGE,
            page: Page::new(entry, p.n_kv_heads, kv_head, Self::PADDED),
            is_writable: entry < READ_ONLY,
            warp: warp_id(),
            group: lane_id() / 4,
            quad: lane_id() % 4,
        }
    }

    /// Whether the token sees a key of the step.
    #[inline(always)]
    pub(crate) fn has_keys(&self) -> bool {
        self.first_key <= self.position
    }

    /// The place of the token's own key in the step; [`PAGE`] or more if it belongs to a later one.
    #[inline(always)]
    fn new_key(&self) -> u32 {
        self.position - self.first_key
    }

    /// Whether the token's own key belongs to this step, and into its page.
    #[inline(always)]
    fn is_last(&self) -> bool {
        self.new_key() < PAGE && self.is_writable
    }

    /// First of the dimensions whose values this warp sums.
    #[inline(always)]
    fn first_dim(&self) -> u32 {
        self.warp * 8 * CHUNKS as u32
    }

    /// The key in column `column` of score tile `tile` of this warp.
    #[inline(always)]
    fn key(&self, tile: usize, column: u32) -> u32 {
        math::key_of(2 * self.warp + tile as u32, column)
    }

    /// Loads the fragments, without the token's own key and value.
    ///
    /// # Safety
    /// Keys and values before the position lie in the cache.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(crate) unsafe fn request_old(&self) -> Fragments<CHUNKS> {
        let mut fragments = Fragments::EMPTY;
        // SAFETY: the caller's promise.
        unsafe {
            self.request_keys(&mut fragments, self.p.k_cache);
            self.request_values(&mut fragments, self.p.v_cache);
        }
        fragments
    }

    /// Loads the fragments of keys from the cache, or from a copy of [`Page::copied`], zeros for what lies past the position.
    ///
    /// # Safety
    /// As for [`Self::request_old`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn request_keys(&self, fragments: &mut Fragments<CHUNKS>, keys: impl Source) {
        fragments.k = Fragments::EMPTY.k;
        fragments.key_scales = Fragments::<CHUNKS>::EMPTY.key_scales;
        // SAFETY: only what starts before the position is loaded; a page is allocated whole.
        unsafe {
            let mut tile = 0;
            while tile < 2 {
                let key = self.key(tile, self.group);
                if key < self.new_key() {
                    let at = self.page.key(key) + (Self::EIGHT * self.quad) as usize;
                    let mut i = 0;
                    while i < CHUNKS {
                        fragments.k[tile][i] =
                            Page::<INT8>::load_eight(keys, at + 4 * Self::EIGHT as usize * i);
                        i += 1;
                    }
                }
                if INT8 {
                    let key = self.key(tile, 2 * self.quad);
                    if key < self.new_key() {
                        fragments.key_scales[tile] = keys.two(self.page.scale(key)).map(f32::from_bits);
                    }
                }
                tile += 1;
            }
        }
    }

    /// Loads the fragments of values, as [`Self::request_keys`], zeros for eights of keys that lie past the position.
    ///
    /// # Safety
    /// As for [`Self::request_old`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn request_values(&self, fragments: &mut Fragments<CHUNKS>, values: impl Source) {
        fragments.v = Fragments::EMPTY.v;
        let mut value_scales = [[[0.0; 4]; 2]; 2];
        // SAFETY: as above.
        unsafe {
            let mut n = 0;
            while n < CHUNKS {
                let dim = self.first_dim() + 8 * n as u32 + self.group;
                let mut i = 0;
                while i < 2 {
                    let key = 32 * i as u32 + 8 * self.quad;
                    if key < self.new_key() {
                        fragments.v[n][i] = Page::<INT8>::load_eight(values, self.page.value(key, dim));
                    }
                    i += 1;
                }
                n += 1;
            }
            let mut i = 0;
            while INT8 && i < 2 {
                let key = 32 * i as u32 + 8 * self.quad;
                if key < self.new_key() {
                    let at = self.page.scale(key);
                    value_scales[i] =
                        [values.four(at), values.four(at + 4)].map(|four| four.map(f32::from_bits));
                }
                i += 1;
            }
        }
        fragments.value_scales = math::scales(value_scales);
    }

    /// Waits for the kernel before, then computes the step of every query head.
    ///
    /// # Safety
    /// All lanes of the block call this together; the step has keys.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(crate) unsafe fn attend(
        &self,
        fragments: &mut Fragments<CHUNKS>,
        parts: &Parts,
        results: &impl Results,
    ) {
        let p = &self.p;
        let half = p.head_dim / 2;
        let row = p
            .qkv
            .offset(self.token * ((p.n_heads + 2 * p.n_kv_heads) * p.head_dim) as usize);
        let head_at = |head: u32| row.offset((head * p.head_dim) as usize);
        let keys = head_at(p.n_heads + self.kv_head);
        let values = head_at(p.n_heads + p.n_kv_heads + self.kv_head);
        // A lane takes four elements of a head at a time.
        let (item, items) = (Self::item(), half / 2);
        let makes_key = self.is_last() && thread_idx_x() < items;
        let makes_value = self.is_last() && thread_idx_x() / Self::ITEMS == 1 && item < items;
        let masks = self.value_masks();
        // SAFETY: items are elements of a head, the shared places inside the launch's bytes.
        unsafe {
            let angle = self.angle(item);
            grid_dependency_wait();
            // The new key and value are requested with the first queries.
            let mut first_head = 0;
            let mut heads = p.heads_per_kv.min(HEADS);
            let mut queries = head_at(self.kv_head * p.heads_per_kv);
            let mut query = self.request_query(queries, heads);
            let (mut key, mut value) = ([[0.0; 2]; 2], [0.0; 4]);
            if makes_key {
                key = [
                    keys.load_l2_x2(2 * item as usize),
                    keys.load_l2_x2((half + 2 * item) as usize),
                ];
            }
            if makes_value {
                value = values.load_l2_x4(4 * item as usize);
            }
            loop {
                self.rotate_queries(parts, queries, heads, angle, query);
                if first_head == 0 {
                    if makes_key {
                        self.put_key(parts, item, key, angle);
                    }
                    if makes_value {
                        self.put_value(parts, item, value);
                    }
                }
                if p.head_dim < Self::PADDED {
                    self.clear_padding(parts, heads);
                }
                // Orders queries, new key and new value in shared memory before the loads of the fragments.
                sync_threads();
                let inserts = first_head == 0 && self.is_last();
                let scales = if INT8 && first_head == 0 && self.new_key() < PAGE {
                    self.insert_scales(fragments, parts)
                } else {
                    [Scale::new(0); 2]
                };
                if inserts {
                    self.insert_key(&mut fragments.k, parts, scales[0]);
                }
                self.score(fragments, parts, parts.scores, heads);
                if inserts {
                    self.insert_value(&mut fragments.v, parts, masks, scales[1]);
                }
                // Orders every warp's scores before the loads below, and every use of the queries before the next ones.
                sync_threads();
                let weights = self.weights(fragments, parts.scores);
                self.put(&fragments.v, weights, first_head, heads, results);
                first_head += HEADS;
                if first_head >= p.heads_per_kv {
                    return;
                }
                heads = (p.heads_per_kv - first_head).min(HEADS);
                queries = head_at(self.kv_head * p.heads_per_kv + first_head);
                query = self.request_query(queries, heads);
            }
        }
    }

    /// Scores of 16 keys a warp, to this lane's place in `scores`.
    ///
    /// # Safety
    /// All lanes of the block call this together, after the barrier that follows the stores of the queries.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn score(&self, fragments: &Fragments<CHUNKS>, parts: &Parts, scores: Shared<f32>, heads: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let [d] = self.products(parts, heads, |_, tile, i| fragments.k[tile][i]);
            self.put_scores(d, fragments, scores);
        }
    }

    /// The products of the queries with 16 keys a warp, of several steps, whose chains do not wait for each other. `k` gives the eight
    /// elements of a step, a tile and a chunk.
    ///
    /// # Safety
    /// As for [`Self::score`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn products<const N: usize>(
        &self,
        parts: &Parts,
        heads: u32,
        k: impl Fn(usize, usize, usize) -> [u32; 4],
    ) -> [[[f32; 4]; 2]; N] {
        let mut d = [[[0.0; 4]; 2]; N];
        // SAFETY: the caller's promise.
        unsafe {
            // Rows without a head take the last one's: a branch would keep the two chains of products from overlapping.
            let row = self.group.min(heads - 1);
            let queries = parts.queries.offset(row * parts.query_words + 4 * self.quad);
            let mut i = 0;
            while i < CHUNKS {
                let w = queries.load_x4(16 * i as u32);
                // The upper half of the rows stays empty.
                let q = [[w[0], 0, w[1], 0], [w[2], 0, w[3], 0]];
                let mut step = 0;
                while step < N {
                    let k = [0, 1].map(|tile| Page::<INT8>::widen_eight(k(step, tile, i)));
                    d[step][0] = math::score(&q, &k[0], d[step][0]);
                    d[step][1] = math::score(&q, &k[1], d[step][1]);
                    step += 1;
                }
                i += 1;
            }
        }
        d
    }

    /// Stores the scores that `d`, of [`Self::products`], are.
    ///
    /// # Safety
    /// As for [`Self::score`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn put_scores(&self, d: [[f32; 4]; 2], fragments: &Fragments<CHUNKS>, scores: Shared<f32>) {
        let hide = |tile: usize, element: usize| {
            let is_seen = self.key(tile, 2 * self.quad + element as u32) <= self.new_key();
            match () {
                () if !is_seen => f32::NEG_INFINITY,
                () if INT8 => d[tile][element] * fragments.key_scales[tile][element],
                () => d[tile][element],
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            scores.store_x4(4 * self.warp, [hide(0, 0), hide(0, 1), hide(1, 0), hide(1, 1)]);
        }
    }

    /// The weights of all 64 keys, of row `group`.
    ///
    /// # Safety
    /// All lanes of the block call this together, after the barrier that follows the stores of the scores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn weights(&self, fragments: &Fragments<CHUNKS>, scores: Shared<f32>) -> math::Weights {
        // SAFETY: the caller's promise.
        unsafe {
            let mut s = [[0.0; 2]; 8];
            let mut warp = 0;
            while warp < WARPS as usize {
                let w = scores.load_x4(4 * warp as u32);
                s[2 * warp] = [w[0], w[1]];
                s[2 * warp + 1] = [w[2], w[3]];
                warp += 1;
            }
            math::weights::<INT8>(&s, |tile| fragments.value_scales[tile])
        }
    }

    /// Sums the weighted values of `heads` heads from the key head's `first_head` on.
    ///
    /// # Safety
    /// All lanes of the block call this together.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn put(
        &self,
        v: &[[[u32; 4]; 2]; CHUNKS],
        weights: math::Weights,
        first_head: u32,
        heads: u32,
        results: &impl Results,
    ) {
        /// Products whose results registers hold.
        const ROUND: usize = 4;
        let head = first_head + self.group;
        let fragments = math::fragments(weights.half, [[0; 2]; 4]);
        // SAFETY: all lanes are here; those of empty rows put nothing.
        unsafe {
            let sum = if INT8 {
                weights.sum
            } else {
                math::sums(&fragments)[0]
            };
            let mut first = 0;
            while first < CHUNKS {
                // All products of a round before its branch, so that their chains overlap.
                let mut o = [[0.0; 4]; ROUND];
                let mut n = first;
                while n < CHUNKS && n < first + ROUND {
                    o[n - first] = math::values(&fragments, &v[n].map(Page::<INT8>::widen_eight));
                    n += 1;
                }
                if self.group < heads {
                    let mut n = first;
                    while n < CHUNKS && n < first + ROUND {
                        let [low, high, ..] = o[n - first];
                        results.put_values(head, self.warp * CHUNKS as u32 + n as u32, [low, high]);
                        n += 1;
                    }
                    if first == 0 {
                        results.put_sums(head, [weights.max, sum]);
                    }
                }
                first += ROUND;
            }
        }
    }
}
