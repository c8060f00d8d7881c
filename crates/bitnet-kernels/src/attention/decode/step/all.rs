//! All steps of a token's key head, one after the other.

use super::super::super::math::{self, Fold};
use super::super::{HEADS, SCORES_BYTES, page_bytes, pages_start};
use super::{Fragments, Parts, Step};
use crate::Global;
use crate::cache::device::{Page, Scale};
use crate::cache::{KvType, PAGE};
use crate::intrinsics::*;

/// The copies of the pages of two steps.
struct Copies<const CHUNKS: usize, const INT8: bool>;

impl<const CHUNKS: usize, const INT8: bool> Copies<CHUNKS, INT8> {
    const KV: KvType = KvType::of(INT8);
    const PADDED: u32 = Step::<CHUNKS, INT8>::PADDED;
    /// Bytes of a page's keys, and of its values.
    const BYTES: u32 = page_bytes(Self::PADDED, Self::KV);

    /// Bytes of a key.
    const ROW_BYTES: u32 = if INT8 { Self::PADDED } else { 2 * Self::PADDED };

    /// The keys of step `step`, or its values.
    #[inline(always)]
    fn at(step: u32, of_values: bool) -> Shared<u32> {
        let place = step % 2 * 2 + u32::from(of_values);
        Shared::at(pages_start(Self::PADDED, Self::KV) + place * Self::BYTES)
    }

    /// Ends phase `step / 2` when they have arrived.
    #[inline(always)]
    fn full(step: u32, of_values: bool) -> Mbarrier {
        let place = step % 2 * 2 + u32::from(of_values);
        Mbarrier::at(pages_start(Self::PADDED, Self::KV) + 4 * Self::BYTES + place * 8)
    }

    /// Makes the barriers.
    ///
    /// # Safety
    /// One lane calls this, and a barrier comes before others wait.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn init() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut i = 0;
            while i < 4 {
                Self::full(i % 2, i / 2 == 1).init(1);
                i += 1;
            }
        }
        Mbarrier::fence_init();
    }

    /// Starts the copies of the keys before the token's own of step `step`, if there are any, or of its values.
    ///
    /// # Safety
    /// One lane calls this, when nobody uses what lies in the place any more; they were written before.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn fetch(at: &Step<CHUNKS, INT8>, step: u32, page: Page<INT8>, of_values: bool) {
        let keys = at.position.wrapping_sub(step * PAGE).min(PAGE);
        if keys == 0 {
            return;
        }
        let (cache, bytes) = match of_values {
            true => (at.p.v_cache, keys.div_ceil(Page::<INT8>::RUN) * 16 * Self::PADDED),
            false => (at.p.k_cache, keys * Self::ROW_BYTES),
        };
        let (full, to, from) = (
            Self::full(step, of_values),
            Self::at(step, of_values),
            cache.offset(page.start()),
        );
        // SAFETY: the caller's promise; a page is allocated whole.
        unsafe {
            if INT8 {
                // Scales lie behind the elements of all positions.
                let (scales, all) = (page.copied().scale(0), PAGE * 4);
                full.arrive_expect(bytes + all);
                bulk_copy(to.offset(scales as u32), from.offset(scales), all, full);
            } else {
                full.arrive_expect(bytes);
            }
            bulk_copy(to, from, bytes, full);
        }
    }

    /// Waits for them.
    ///
    /// # Safety
    /// They were asked for, if there are any.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn wait(at: &Step<CHUNKS, INT8>, step: u32, of_values: bool) {
        if at.new_key() > 0 {
            // SAFETY: the caller's promise.
            unsafe { Self::full(step, of_values).wait(step / 2 % 2) }
        }
    }
}

impl<const CHUNKS: usize, const INT8: bool> Step<CHUNKS, INT8> {
    /// The page of step `step` of the token, or of its last one.
    ///
    /// # Safety
    /// As for [`Self::new`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn page_of(&self, step: u32) -> Page<INT8> {
        let at = self.token * self.p.table_len as usize + step.min(self.position / PAGE) as usize;
        // SAFETY: the caller's promise.
        let entry = unsafe { self.p.tables.load_l2(at)[0] };
        Page::new(entry, self.p.n_kv_heads, self.kv_head, Self::PADDED)
    }

    /// Waits for the kernel before, and computes and folds the token's steps, of which this is the first, into `out`: the outputs of the
    /// key head's query heads, at most [`HEADS`].
    ///
    /// # Safety
    /// All lanes of the block call this together; shared memory has a second place for scores, and those of the copies.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(crate) unsafe fn attend_all(self, parts: &Parts, out: Global<f32>) {
        let p = &self.p;
        let heads = p.heads_per_kv.min(HEADS);
        let last = self.position / PAGE;
        let (item, items) = (Self::item(), p.head_dim / 4);
        let fetches = thread_idx_x() == 0;
        // SAFETY: items are elements of a head, steps up to the last have an entry in the table, the shared places are inside the launch's
        // bytes.
        unsafe {
            // What does not depend on the kernel before is requested first.
            let mut pages = [self.page, self.page_of(1), self.page_of(2)];
            if fetches {
                Copies::<CHUNKS, INT8>::init();
                Copies::fetch(&self, 0, pages[0], false);
                Copies::fetch(&self, 0, pages[0], true);
                if last > 0 {
                    Copies::fetch(&self, 1, pages[1], false);
                    Copies::fetch(&self, 1, pages[1], true);
                }
            }
            let end = Self::new(self.p, self.token, self.kv_head, last);
            let makes_key = end.is_last() && thread_idx_x() < items;
            let makes_value = end.is_last() && thread_idx_x() / Self::ITEMS == 1 && item < items;
            let angle = self.angle(item);
            grid_dependency_wait();
            let row = p
                .qkv
                .offset(self.token * ((p.n_heads + 2 * p.n_kv_heads) * p.head_dim) as usize);
            let head_at = |head: u32| row.offset((head * p.head_dim) as usize);
            let half = p.head_dim / 2;
            let (mut key, mut value) = ([[0.0; 2]; 2], [0.0; 4]);
            if makes_key {
                let keys = head_at(p.n_heads + self.kv_head);
                key = [
                    keys.load_l2_x2(2 * item as usize),
                    keys.load_l2_x2((half + 2 * item) as usize),
                ];
            }
            if makes_value {
                let values = head_at(p.n_heads + p.n_kv_heads + self.kv_head);
                value = values.load_l2_x4(4 * item as usize);
            }
            self.rotate_queries(parts, head_at(self.kv_head * p.heads_per_kv), heads, angle);
            if makes_key {
                end.put_key(parts, item, key, angle);
            }
            if makes_value {
                end.put_value(parts, item, value);
            }
            if p.head_dim < Self::PADDED {
                end.clear_padding(parts, heads);
            }
            // Orders queries, new key and new value in shared memory, and the barriers of the copies, before their use.
            sync_threads();
            let mut fold = Fold::EMPTY;
            let mut sums = [[0.0; 2]; CHUNKS];
            let mut step = 0;
            loop {
                let is_end = step == last;
                // Of the step's own copies; what is stored goes to the cache's last page.
                let at = Self {
                    first_key: step * PAGE,
                    page: end.page.copied(),
                    ..end
                };
                let mut fragments = Fragments::EMPTY;
                Copies::wait(&at, step, false);
                at.request_keys(&mut fragments, Copies::<CHUNKS, INT8>::at(step, false));
                // Two places in turns: whoever stores to one has passed the barrier behind all loads from it.
                let scores = parts.scores.offset(step % 2 * (SCORES_BYTES / 4));
                let mut scales = [Scale::new(0); 2];
                if is_end {
                    if INT8 {
                        Copies::wait(&at, step, true);
                        at.request_values(&mut fragments, Copies::<CHUNKS, INT8>::at(step, true));
                        scales = end.insert_scales(&mut fragments, parts);
                    }
                    if end.is_last() {
                        end.insert_key(&mut fragments.k, parts, scales[0]);
                    }
                }
                at.score(&fragments, parts, scores, heads);
                if !INT8 || !is_end {
                    Copies::wait(&at, step, true);
                    at.request_values(&mut fragments, Copies::<CHUNKS, INT8>::at(step, true));
                }
                if is_end && end.is_last() {
                    end.insert_value(&mut fragments.v, parts, end.value_masks(), scales[1]);
                }
                // Orders every warp's scores before the loads below, and its loads of this step's keys and of the values of the one before
                // ahead of what takes their place.
                sync_threads();
                if fetches && step + 2 <= last {
                    Copies::fetch(&self, step + 2, pages[2], false);
                }
                if fetches && step > 0 && step < last {
                    Copies::fetch(&self, step + 1, pages[1], true);
                }
                pages = [pages[1], pages[2], self.page_of(step + 3)];
                let weights = at.weights(&fragments, scores);
                let pieces = math::fragments(weights.half, [[0; 2]; 4]);
                let sum = if INT8 { weights.sum } else { math::sums(&pieces)[0] };
                let factors = fold.rescale(weights.max);
                fold.sum = factors.fold(fold.sum, sum);
                let mut n = 0;
                while n < CHUNKS {
                    let o = math::values(&pieces, &fragments.v[n].map(Page::<INT8>::widen_eight));
                    sums[n] = [factors.fold(sums[n][0], o[0]), factors.fold(sums[n][1], o[1])];
                    n += 1;
                }
                if is_end {
                    break;
                }
                step += 1;
            }
            let (group, quad) = (self.group, self.quad);
            if group < heads {
                let out = out.offset((group * p.head_dim) as usize);
                let mut n = 0;
                while n < CHUNKS {
                    let dim = self.first_dim() + 8 * n as u32 + 2 * quad;
                    if dim < p.head_dim {
                        out.store_x2(dim as usize, [sums[n][0] / fold.sum, sums[n][1] / fold.sum]);
                    }
                    n += 1;
                }
            }
        }
    }
}
