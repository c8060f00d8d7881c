//! The way of the new token into a step: its queries, rotated, to shared memory, its key and value to the cache and to the
//! fragments.

use super::{Parts, Step, THREADS};
use crate::Global;
use crate::intrinsics::*;
use crate::rope::device::Angle;

impl<const CHUNKS: usize> Step<CHUNKS> {
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

    /// Rotates `heads` queries, which begin at `x`, into shared memory.
    ///
    /// # Safety
    /// All lanes of the block call this; no lane uses the queries before a barrier.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn rotate_queries(&self, parts: &Parts, x: Global<f32>, heads: u32, angle: Angle) {
        let (half, scale, item) = (self.p.head_dim / 2, self.p.q_scale, Self::item());
        let mut head = thread_idx_x() / Self::ITEMS;
        if item >= half / 2 {
            return;
        }
        while head < heads {
            let x = x.offset((head * self.p.head_dim + 2 * item) as usize);
            let to = parts.queries.offset(head * parts.query_words + item);
            // SAFETY: both words are this lane's alone.
            unsafe {
                let (low, high) = angle.rotate(x.load_l2_x2(0), x.load_l2_x2(half as usize));
                to.store(0, f32_to_bf16x2(low[0] * scale, low[1] * scale));
                to.store(half / 2, f32_to_bf16x2(high[0] * scale, high[1] * scale));
            }
            head += THREADS / Self::ITEMS;
        }
    }

    /// Rotates four elements of the new key into shared memory and the cache.
    ///
    /// # Safety
    /// The words are this lane's alone.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn put_key(&self, parts: &Parts, item: u32, key: [[f32; 2]; 2], angle: Angle) {
        let quarter = self.p.head_dim / 4;
        let cache = self
            .p
            .k_cache
            .offset(self.page.key(self.new_key()) / 2 + item as usize);
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = angle.rotate(key[0], key[1]);
            let (low, high) = (f32_to_bf16x2(low[0], low[1]), f32_to_bf16x2(high[0], high[1]));
            parts.new_k.store(item, low);
            parts.new_k.store(quarter + item, high);
            cache.store(0, low);
            cache.store(quarter as usize, high);
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
            let word = half + thread_idx_x();
            if self.is_last() && word < Self::PADDED / 2 {
                parts.new_k.store(word, 0);
                parts.new_v.store(word, 0);
                self.p
                    .k_cache
                    .store(self.page.key(self.new_key()) / 2 + word as usize, 0);
            }
        }
    }

    /// Puts the new key into the fragments.
    ///
    /// # Safety
    /// All lanes of the block call this, after the barrier that follows its stores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn insert_key(&self, k: &mut [[[u32; 4]; CHUNKS]; 2], parts: &Parts) {
        let mut tile = 0;
        while tile < 2 {
            if self.key(tile, self.group) == self.new_key() {
                let mut i = 0;
                while i < CHUNKS {
                    // SAFETY: the caller's promise.
                    k[tile][i] = unsafe { parts.new_k.load_x4(16 * i as u32 + 4 * self.quad) };
                    i += 1;
                }
            }
            tile += 1;
        }
    }

    /// Which bits of the words of values, two keys each, are of keys before the new one, and which are the new one's. Nothing
    /// past it may reach a product, not even a NaN times zero.
    #[inline(always)]
    pub(super) fn value_masks(&self) -> ([u32; 8], [u32; 8]) {
        let (mut keep, mut put) = ([0; 8], [0; 8]);
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

    /// Puts the new value into the fragments and the cache.
    ///
    /// # Safety
    /// All lanes of the block call this, after the barrier that follows its stores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(super) unsafe fn insert_value(
        &self,
        v: &mut [[[u32; 4]; 2]; CHUNKS],
        parts: &Parts,
        keep: [u32; 8],
        put: [u32; 8],
    ) {
        // SAFETY: the caller's promise; a dimension's value is stored by one lane.
        unsafe {
            let mut n = 0;
            while n < CHUNKS {
                let dim = self.first_dim() + 8 * n as u32 + self.group;
                let new = u32::from(parts.new_v.cast::<u16>().load(dim));
                let both = new | new << 16;
                let mut word = 0;
                while word < 8 {
                    let pair = &mut v[n][word / 4][word % 4];
                    *pair = (*pair & keep[word]) | (both & put[word]);
                    word += 1;
                }
                if self.quad == 0 {
                    let at = self.page.value(self.new_key(), dim);
                    self.p.v_cache.cast::<u16>().store(at, new as u16);
                }
                n += 1;
            }
        }
    }
}
