//! All steps of a token's key head, one after the other.

use super::super::super::math::{self, Fold};
use super::super::{HEADS, SCORES_BYTES};
use super::{Fragments, Parts, Step};
use crate::Global;
use crate::cache::PAGE;
use crate::cache::device::{Page, Scale};
use crate::intrinsics::*;

impl<const CHUNKS: usize, const INT8: bool> Step<CHUNKS, INT8> {
    /// Waits for the kernel before, and computes and folds the token's steps, of which this is the first, into `out`: the outputs of the
    /// key head's query heads, at most [`HEADS`].
    ///
    /// # Safety
    /// All lanes of the block call this together; shared memory has a second place for scores.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub(crate) unsafe fn attend_all(self, parts: &Parts, out: Global<f32>) {
        let p = &self.p;
        let heads = p.heads_per_kv.min(HEADS);
        let last = self.position / PAGE;
        let (item, items) = (Self::item(), p.head_dim / 4);
        // SAFETY: items are elements of a head, steps up to the last have an entry in the table, the shared places are inside the launch's
        // bytes.
        unsafe {
            // What does not depend on the kernel before is requested first.
            let mut fragments = Fragments::EMPTY;
            self.request_keys(&mut fragments);
            self.request_values(&mut fragments);
            let end = Self::new(self.p, self.token, self.kv_head, last);
            let mut next = if last == 0 {
                end
            } else {
                Self::new(self.p, self.token, self.kv_head, 1)
            };
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
            // Orders queries, new key and new value in shared memory before the loads of the fragments.
            sync_threads();
            let mut fold = Fold::EMPTY;
            let mut sums = [[0.0; 2]; CHUNKS];
            let (mut at, mut step) = (self, 0);
            loop {
                let is_end = step == last;
                if is_end && step > 0 {
                    // Orders the loads of the step's values and scales before the new ones are stored among them.
                    sync_threads();
                }
                let scales = if INT8 && is_end {
                    at.insert_scales(&mut fragments, parts)
                } else {
                    [Scale::new(0); 2]
                };
                let inserts = is_end && at.is_last();
                if inserts {
                    at.insert_key(&mut fragments.k, parts, scales[0]);
                }
                // Two places in turns: whoever stores to one has passed the barrier behind all loads from it.
                let scores = parts.scores.offset(step % 2 * (SCORES_BYTES / 4));
                at.score(&fragments, parts, scores, heads);
                if inserts {
                    at.insert_value(&mut fragments.v, parts, at.value_masks(), scales[1]);
                }
                // Orders every warp's scores before the loads below.
                sync_threads();
                let weights = at.weights(&fragments, scores);
                if !is_end {
                    next.request_keys(&mut fragments);
                }
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
                next.request_values(&mut fragments);
                at = next;
                step += 1;
                if step < last {
                    next = Self::new(self.p, self.token, self.kv_head, step + 1);
                }
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
