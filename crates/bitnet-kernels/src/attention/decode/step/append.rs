//! The way of the new token into a step: its queries, rotated, to shared memory, its key and value to the cache and to the
//! fragments.

use super::super::super::math;
use super::super::HEADS;
use super::{Fragments, Parts, Step, THREADS};
use crate::Global;
use crate::cache::PAGE;
use crate::cache::device::Scale;
use crate::intrinsics::*;
use crate::rope::device::Angle;

impl<const CHUNKS: usize, const INT8: bool> Step<CHUNKS, INT8> {
    /// The four elements that this lane takes of a head, two pairs half a head apart: `2 item ..`; none past the head's own.
    #[inline(always)]
    pub(super) fn item() -> u32 {
        thread_idx_x() % Self::ITEMS
    }

    /// The angles of pairs `2 item` and `2 item + 1`; of lanes without a pair the last ones.
    ///
    /// # Safety
    /// The position is below the context.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn angle(&self, item: u32) -> Angle {
        let half = self.p.head_dim / 2;
        let at = self.position as usize * half as usize + (2 * item).min(half - 2) as usize;
        // SAFETY: the caller's promise.
        unsafe { Angle::load(self.p.cos, self.p.sin, at) }
    }

    /// Loads this lane's elements of the first query that it rotates, of `heads` queries which begin at `x`: without a branch, so that the load
    /// is the first thing behind a wait.
    ///
    /// # Safety
    /// There are so many queries.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn request_query(&self, x: Global<f32>, heads: u32) -> [[f32; 2]; 2] {
        let half = self.p.head_dim / 2;
        let head = (thread_idx_x() / Self::ITEMS).min(heads - 1);
        let item = Self::item().min(half / 2 - 1);
        let x = x.offset((head * self.p.head_dim + 2 * item) as usize);
        // SAFETY: the caller's promise; lanes without elements load those of others.
        unsafe { [x.load_l2_x2(0), x.load_l2_x2(half as usize)] }
    }

    /// Rotates `heads` queries, which begin at `x`, into shared memory; `first` is what [`Self::request_query`] loaded.
    ///
    /// # Safety
    /// All lanes of the block call this; no lane uses the queries before a barrier.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn rotate_queries(
        &self,
        parts: &Parts,
        x: Global<f32>,
        heads: u32,
        angle: Angle,
        first: [[f32; 2]; 2],
    ) {
        let (half, scale, item) = (self.p.head_dim / 2, self.p.q_scale, Self::item());
        if item >= half / 2 {
            return;
        }
        // As many turns as the most heads need: a loop to their number would be unrolled for any.
        let mut turn = 0;
        while turn < HEADS.div_ceil(Self::HEADS_AT_ONCE) {
            let head = thread_idx_x() / Self::ITEMS + turn * Self::HEADS_AT_ONCE;
            if head < heads {
                let x = x.offset((head * self.p.head_dim + 2 * item) as usize);
                let to = parts.queries.offset(head * parts.query_words + item);
                // SAFETY: both words are this lane's alone, and the head is one of the queries.
                unsafe {
                    let query = match turn {
                        0 => first,
                        _ => [x.load_l2_x2(0), x.load_l2_x2(half as usize)],
                    };
                    let (low, high) = angle.rotate(query[0], query[1]);
                    to.store(0, f32_to_bf16x2(low[0] * scale, low[1] * scale));
                    to.store(half / 2, f32_to_bf16x2(high[0] * scale, high[1] * scale));
                }
            }
            turn += 1;
        }
    }

    /// Rotates four elements of the new key into shared memory, and of bfloat16 into the cache.
    ///
    /// # Safety
    /// The words are this lane's alone.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn put_key(&self, parts: &Parts, item: u32, key: [[f32; 2]; 2], angle: Angle) {
        let (half, quarter) = (self.p.head_dim / 2, self.p.head_dim / 4);
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = angle.rotate(key[0], key[1]);
            if INT8 {
                let new_k = parts.new_k.cast();
                new_k.store_x2(2 * item, low);
                new_k.store_x2(half + 2 * item, high);
                return;
            }
            let cache = self
                .p
                .k_cache
                .offset(self.page.key(self.new_key()) + item as usize);
            let (low, high) = (f32_to_bf16x2(low[0], low[1]), f32_to_bf16x2(high[0], high[1]));
            parts.new_k.store(item, low);
            parts.new_k.store(quarter + item, high);
            if self.is_writable {
                cache.store(0, low);
                cache.store(quarter as usize, high);
            }
        }
    }

    /// Puts four elements of the new value into shared memory.
    ///
    /// # Safety
    /// The words are this lane's alone.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn put_value(&self, parts: &Parts, item: u32, value: [f32; 4]) {
        // SAFETY: the caller's promise.
        unsafe {
            if INT8 {
                parts.new_v.cast().store_x4(4 * item, value);
                return;
            }
            let low = f32_to_bf16x2(value[0], value[1]);
            let high = f32_to_bf16x2(value[2], value[3]);
            parts.new_v.store_x2(2 * item, [low, high]);
        }
    }

    /// Writes the zeros past the head's own dimensions: of `heads` queries, and of the new key and value.
    ///
    /// # Safety
    /// As for [`Self::rotate_queries`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn clear_padding(&self, parts: &Parts, heads: u32) {
        let half = self.p.head_dim / 2;
        let pad = (Self::PADDED / 2 - half).max(1);
        // SAFETY: the words lie past those that `rotate_queries` and `put_key` write.
        unsafe {
            let mut i = thread_idx_x();
            while i < heads * pad {
                parts
                    .queries
                    .store(i / pad * parts.query_words + half + i % pad, 0);
                i += THREADS;
            }
            if INT8 {
                let dim = self.p.head_dim + thread_idx_x();
                if self.is_last() && dim < Self::PADDED {
                    parts.new_k.store(dim, 0);
                    parts.new_v.store(dim, 0);
                }
                return;
            }
            let word = half + thread_idx_x();
            if self.new_key() < PAGE && word < Self::PADDED / 2 {
                parts.new_k.store(word, 0);
                parts.new_v.store(word, 0);
                if self.is_writable {
                    let at = self.page.key(self.new_key()) + word as usize;
                    self.p.k_cache.store(at, 0);
                }
            }
        }
    }

    /// How the head of f32 at `x` is rounded.
    ///
    /// # Safety
    /// All lanes of the warp call this, after the barrier that follows the head's stores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn scale_of(&self, x: Shared<f32>) -> Scale {
        let mut largest = 0;
        let mut dim = lane_id();
        // SAFETY: the caller's promise.
        unsafe {
            while dim < self.p.head_dim {
                largest = largest.max(Scale::magnitude(x.load(dim)));
                dim += WARP_SIZE;
            }
            Scale::new(warp_reduce_max_u32(FULL_MASK, largest))
        }
    }

    /// Puts the scales of the new key and value in place, to the cache and to the fragments, and returns how both are rounded;
    /// those of what nobody stores are zero. Past the new key, values are worth nothing: no NaN of a cache may reach a product.
    ///
    /// # Safety
    /// All lanes of the block call this, after the barrier that follows the stores of both; the token's own key belongs to this
    /// step.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn insert_scales(
        &self,
        fragments: &mut Fragments<CHUNKS>,
        parts: &Parts,
    ) -> [Scale; 2] {
        let mut own = [Scale::new(0); 2];
        // SAFETY: the caller's promise; one lane stores.
        unsafe {
            if self.is_last() {
                own = [
                    self.scale_of(parts.new_k.cast()),
                    self.scale_of(parts.new_v.cast()),
                ];
                if thread_idx_x() == 0 {
                    let at = self.page.scale(self.new_key());
                    self.p.k_cache.cast().store(at, own[0].worth);
                    self.p.v_cache.cast().store(at, own[1].worth);
                }
            }
        }
        let mut i = 0;
        while i < 4 {
            if self.key(i / 2, 2 * self.quad + i as u32 % 2) == self.new_key() {
                fragments.key_scales[i / 2][i % 2] = own[0].worth;
            }
            i += 1;
        }
        let mut i = 0;
        while i < 16 {
            let key = math::key_of(i as u32 / 2, 2 * self.quad + i as u32 % 2);
            let scale = &mut fragments.value_scales[i / 2][i % 2];
            match () {
                () if key < self.new_key() => {}
                () if key == self.new_key() => *scale = own[1].worth,
                () => *scale = 0.0,
            }
            i += 1;
        }
        own
    }

    /// Puts the new key into the fragments, and of 8-bit integers, rounded by `scale`, into the cache.
    ///
    /// # Safety
    /// All lanes of the block call this, after the barrier that follows its stores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn insert_key(&self, k: &mut [[[u32; 4]; CHUNKS]; 2], parts: &Parts, scale: Scale) {
        let mut tile = 0;
        while tile < 2 {
            if self.key(tile, self.group) == self.new_key() {
                let mut i = 0;
                while i < CHUNKS {
                    // SAFETY: the caller's promise; a key is of one tile and group of one warp.
                    k[tile][i] = unsafe {
                        if INT8 {
                            let x = parts.new_k.cast().offset(32 * i as u32 + 8 * self.quad);
                            let codes = [scale.codes(x.load_x4(0)), scale.codes(x.load_x4(4))];
                            let at = self.page.key(self.new_key()) + 8 * i + 2 * self.quad as usize;
                            self.p.k_cache.store_x2(at, codes);
                            [codes[0], codes[1], 0, 0]
                        } else {
                            parts.new_k.load_x4(16 * i as u32 + 4 * self.quad)
                        }
                    };
                    i += 1;
                }
            }
            tile += 1;
        }
    }

    /// Which bits of the words of values, two or four keys each, are of keys before the new one, and which are the new one's.
    /// Nothing of bfloat16 past it may reach a product, not even a NaN times zero.
    #[inline(always)]
    pub(super) fn value_masks(&self) -> ([u32; 8], [u32; 8]) {
        let (mut keep, mut put) = ([0; 8], [0; 8]);
        if INT8 {
            let mut word = 0;
            while word < 4 {
                let first = 32 * (word as u32 / 2) + 8 * self.quad + 4 * (word as u32 % 2);
                let place = self.new_key().wrapping_sub(first);
                put[word] = if place < 4 { 0xff << (8 * place) } else { 0 };
                keep[word] = !put[word];
                word += 1;
            }
            return (keep, put);
        }
        let mut word = 0;
        while word < 8 {
            let first = 32 * (word as u32 / 4) + 8 * self.quad + 2 * (word as u32 % 4);
            let low = if first < self.new_key() { 0xffff } else { 0 };
            let high = if first + 1 < self.new_key() {
                0xffff_0000
            } else {
                0
            };
            keep[word] = low | high;
            let low = if first == self.new_key() { 0xffff } else { 0 };
            let high = if first + 1 == self.new_key() {
                0xffff_0000
            } else {
                0
            };
            put[word] = low | high;
            word += 1;
        }
        (keep, put)
    }

    /// Puts the new value, of 8-bit integers rounded by `scale`, into the fragments and the cache.
    ///
    /// # Safety
    /// All lanes of the block call this, after the barrier that follows its stores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn insert_value(
        &self,
        v: &mut [[[u32; 4]; 2]; CHUNKS],
        parts: &Parts,
        (keep, put): ([u32; 8], [u32; 8]),
        scale: Scale,
    ) {
        /// Words of both eights of keys.
        const fn words(int8: bool) -> usize {
            if int8 { 4 } else { 8 }
        }
        let half = words(INT8) / 2;
        // SAFETY: the caller's promise; a dimension's value is stored by one lane.
        unsafe {
            let mut n = 0;
            while n < CHUNKS {
                let dim = self.first_dim() + 8 * n as u32 + self.group;
                // Where all elements of a word are the new one.
                let all = if INT8 {
                    let x: f32 = parts.new_v.cast().load(dim);
                    scale.codes([x; 4])
                } else {
                    let new = u32::from(parts.new_v.cast::<u16>().load(dim));
                    new | new << 16
                };
                let mut word = 0;
                while word < words(INT8) {
                    let part = &mut v[n][word / half][word % half];
                    *part = (*part & keep[word]) | (all & put[word]);
                    word += 1;
                }
                if self.quad == 0 {
                    let at = self.page.value_element(self.new_key(), dim);
                    if INT8 {
                        self.p.v_cache.cast::<u8>().store(at, all as u8);
                    } else {
                        self.p.v_cache.cast::<u16>().store(at, all as u16);
                    }
                }
                n += 1;
            }
        }
    }
}
