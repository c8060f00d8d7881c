//! All steps of a token's key head, one after the other.

use super::super::super::math::{self, Fold};
use super::super::{HEADS, SCORES_BYTES, page_bytes, pages_start};
use super::{Fragments, Parts, Step};
use crate::Global;
use crate::cache::device::{Page, Scale};
use crate::cache::{KvType, PAGE};
use crate::intrinsics::*;

/// The steps of a token folded so far, and the weighted values of this lane's row and dimensions.
struct SoFar<const CHUNKS: usize> {
    fold: Fold,
    sums: [[f32; 2]; CHUNKS],
}

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
            let mut pages = [1, 2, 3].map(|step| self.page_of(step));
            if fetches {
                Copies::<CHUNKS, INT8>::init();
                Copies::fetch(&self, 0, self.page, false);
                Copies::fetch(&self, 0, self.page, true);
                if last > 0 {
                    Copies::fetch(&self, 1, pages[0], false);
                    Copies::fetch(&self, 1, pages[0], true);
                }
            }
            let end = Self::new(self.p, self.token, self.kv_head, last);
            // A key of zeros if nobody stores it.
            let makes_key = thread_idx_x() < items;
            let makes_value = end.is_last() && thread_idx_x() / Self::ITEMS == 1 && item < items;
            let angle = self.angle(item);
            grid_dependency_wait();
            let row = p
                .qkv
                .offset(self.token * ((p.n_heads + 2 * p.n_kv_heads) * p.head_dim) as usize);
            let head_at = |head: u32| row.offset((head * p.head_dim) as usize);
            let half = p.head_dim / 2;
            let queries = head_at(self.kv_head * p.heads_per_kv);
            let query = self.request_query(queries, heads);
            let (mut key, mut value) = ([[0.0; 2]; 2], [0.0; 4]);
            if makes_key && end.is_writable {
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
            self.rotate_queries(parts, queries, heads, angle, query);
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
            let mut so_far = SoFar {
                fold: Fold::EMPTY,
                sums: [[0.0; 2]; CHUNKS],
            };
            let mut step = 0;
            // Both steps' copies were asked for before the kernel waited. Of later steps only one has come; of 8-bit integers registers hold one.
            if !INT8 && last > 0 {
                end.take::<2>(step, parts, heads, &mut pages, &mut so_far);
                step = 2;
                if step <= last {
                    // Orders the loads of both steps' scores before what takes their place.
                    sync_threads();
                }
            }
            while step <= last {
                end.take::<1>(step, parts, heads, &mut pages, &mut so_far);
                step += 1;
            }
            let SoFar { fold, sums } = so_far;
            let (group, quad) = (self.group, self.quad);
            if group < heads {
                let out = out.offset((group * p.head_dim) as usize);
                let outputs = math::quotients(sums, fold.sum);
                let mut n = 0;
                while n < CHUNKS {
                    let dim = self.first_dim() + 8 * n as u32 + 2 * quad;
                    if dim < p.head_dim {
                        out.store_x2(dim as usize, outputs[n]);
                    }
                    n += 1;
                }
            }
        }
    }

    /// Loads the fragments of keys from the copy of a page: of bfloat16, with the token's own, which stands for those behind it too, as nobody sees
    /// them.
    ///
    /// # Safety
    /// The copy has arrived; the new key is there, if it is of this step.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn load_keys(&self, fragments: &mut Fragments<CHUNKS>, keys: Shared<u32>, new_key: Shared<u32>) {
        let mut tile = 0;
        while tile < 2 {
            let key = self.key(tile, self.group);
            let copied = keys.offset(self.page.key(key) as u32);
            let row = if key < self.new_key() { copied } else { new_key };
            let mut i = 0;
            while i < CHUNKS {
                // SAFETY: the caller's promise.
                fragments.k[tile][i] = unsafe { row.load_x4(4 * self.quad + 16 * i as u32) };
                i += 1;
            }
            tile += 1;
        }
    }

    /// Computes `N` steps from `step` on, whose chains of products do not wait for each other, and folds them; this is the token's last step.
    /// `next` are the pages of the three steps behind it.
    ///
    /// # Safety
    /// As for [`Self::attend_all`], in the order of steps.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn take<const N: usize>(
        &self,
        step: u32,
        parts: &Parts,
        heads: u32,
        next: &mut [Page<INT8>; 3],
        so_far: &mut SoFar<CHUNKS>,
    ) {
        let steps: [u32; N] = core::array::from_fn(|i| step + i as u32);
        let last = self.first_key / PAGE;
        let ends = step + N as u32 > last;
        let copies = |of_values: bool| steps.map(|step| Copies::<CHUNKS, INT8>::at(step, of_values));
        let (keys, values) = (copies(false), copies(true));
        // Of the step's own copies; what is stored goes to the cache's last page.
        let at = steps.map(|step| Self {
            first_key: step * PAGE,
            page: self.page.copied(),
            ..*self
        });
        // Two places in turns: whoever stores to one has passed a barrier behind all loads from it.
        let scores = steps.map(|step| parts.scores.offset(step % 2 * (SCORES_BYTES / 4)));
        let mut fragments = [const { Fragments::EMPTY }; N];
        let mut scales = [Scale::new(0); 2];
        let masks = self.value_masks();
        // SAFETY: the caller's promise.
        unsafe {
            let mut i = 0;
            while i < N {
                Copies::wait(&at[i], steps[i], false);
                i += 1;
            }
            let mut i = 0;
            while i < N {
                if INT8 {
                    at[i].request_keys(&mut fragments[i], keys[i]);
                } else {
                    at[i].load_keys(&mut fragments[i], keys[i], parts.new_k);
                }
                i += 1;
            }
            if INT8 && ends {
                let fragments = &mut fragments[N - 1];
                Copies::wait(&at[N - 1], steps[N - 1], true);
                at[N - 1].request_values(fragments, values[N - 1]);
                scales = self.insert_scales(fragments, parts);
                if self.is_last() {
                    self.insert_key(&mut fragments.k, parts, scales[0]);
                }
            }
            // All loads are under way before the first product, which would otherwise wait for its own.
            sync_warp(FULL_MASK);
            let products: [_; N] = self.products(parts, heads, |step, tile, i| fragments[step].k[tile][i]);
            let mut i = 0;
            while i < N {
                at[i].put_scores(products[i], &fragments[i], scores[i]);
                i += 1;
            }
            let mut i = 0;
            while i < N {
                if !INT8 || !ends {
                    Copies::wait(&at[i], steps[i], true);
                    at[i].request_values(&mut fragments[i], values[i]);
                }
                i += 1;
            }
            if ends && self.is_last() {
                self.insert_value(&mut fragments[N - 1].v, parts, masks, scales[1]);
            }
            // Orders every warp's scores before the loads below, and the loads of what was copied ahead of what takes its place.
            sync_threads();
            if !ends {
                // Keys of the step after the next as well; values of the first two steps were there before.
                let ahead = step + N as u32;
                if thread_idx_x() == 0 {
                    let mut i = 0;
                    while i < N {
                        if steps[i] + 2 <= last {
                            Copies::fetch(self, steps[i] + 2, next[i + 1], false);
                        }
                        i += 1;
                    }
                    if ahead > 1 {
                        Copies::fetch(self, ahead, next[N - 1], true);
                    }
                }
                let behind = [4, 5].map(|ahead| self.page_of(step + ahead));
                *next = if N == 1 {
                    [next[1], next[2], behind[0]]
                } else {
                    [next[2], behind[0], behind[1]]
                };
            }
            let weights: [_; N] = core::array::from_fn(|i| at[i].weights(&fragments[i], scores[i]));
            let pieces = weights.map(|weights| math::fragments(weights.half, [[0; 2]; 4]));
            let factors: [_; N] = core::array::from_fn(|i| {
                let sum = if INT8 {
                    weights[i].sum
                } else {
                    math::sums(&pieces[i])[0]
                };
                let factors = so_far.fold.rescale(weights[i].max);
                so_far.fold.sum = factors.fold(so_far.fold.sum, sum);
                factors
            });
            let mut n = 0;
            while n < CHUNKS {
                let mut i = 0;
                while i < N {
                    let o = math::values(&pieces[i], &fragments[i].v[n].map(Page::<INT8>::widen_eight));
                    let [low, high] = so_far.sums[n];
                    so_far.sums[n] = [factors[i].fold(low, o[0]), factors[i].fold(high, o[1])];
                    i += 1;
                }
                n += 1;
            }
        }
    }
}
