//! The bodies of the kernels that sort candidates, and of the one that draws.

use super::row::{DAMAGED_KEY, Logits, NONE, finish, logit, settings};
use super::{CHUNK, DAMAGED, DrawToken, FORBIDDEN, MAX_TOP_K, SelectKeys, SelectLogits, Settings, THREADS};
use crate::Global;
use crate::intrinsics::*;
use bitnet_layout::draw::{uniform, weight};

#[inline(always)]
pub(super) unsafe fn select_logits(p: SelectLogits) {
    let (first, row) = (block_idx_x() * CHUNK, block_idx_y() as usize);
    let keys = Shared::<u64>::at(0);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: tokens are compared with the vocabulary, shared indices are below CHUNK.
    unsafe {
        let s = settings(p.settings, row);
        if s.is_whole() {
            return;
        }
        let logits = Logits {
            logits: p.logits,
            counts: p.counts,
            vocab: p.vocab,
            row,
        };
        let mut i = thread_idx_x();
        while i < CHUNK {
            keys.store(i, logits.key(&s, first + i));
            i += THREADS;
        }
        sort(keys);
        put(
            keys,
            p.keys.offset(row * (grid_dim_x() * p.keep) as usize),
            p.keep,
        );
    }
}

#[inline(always)]
pub(super) unsafe fn select_keys(p: SelectKeys) {
    let (first, row) = (block_idx_x() * CHUNK, block_idx_y() as usize);
    let keys = Shared::<u64>::at(0);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: indices are compared with n, shared indices are below CHUNK.
    unsafe {
        if settings(p.settings, row).is_whole() {
            return;
        }
        let mut i = thread_idx_x();
        while i < CHUNK {
            let inside = first + i < p.n;
            let at = row * p.n as usize + (first + i) as usize;
            keys.store(i, if inside { p.from.load(at) } else { NONE });
            i += THREADS;
        }
        sort(keys);
        put(
            keys,
            p.keys.offset(row * (grid_dim_x() * p.keep) as usize),
            p.keep,
        );
    }
}

/// Writes this block's best keys.
#[inline(always)]
unsafe fn put(keys: Shared<u64>, to: Global<u64>, keep: u32) {
    if thread_idx_x() < keep {
        // SAFETY: `keep` is at most the threads of the block, and `to` holds `keep` keys a block.
        unsafe {
            let at = (block_idx_x() * keep + thread_idx_x()) as usize;
            to.store(at, keys.load(thread_idx_x()));
        }
    }
}

/// Sorts the block's keys, largest first: Batcher's bitonic network.
///
/// # Safety
/// The whole block calls this; a barrier need not lie between the stores of the keys and the call.
#[inline(always)]
unsafe fn sort(keys: Shared<u64>) {
    // SAFETY: pairs are disjoint, indices below CHUNK; the barriers order each round before the next.
    unsafe {
        let mut size = 2;
        while size <= CHUNK {
            let mut step = size / 2;
            while step > 0 {
                sync_threads();
                let mut pair = thread_idx_x();
                while pair < CHUNK / 2 {
                    // The pair-th index without the bit `step`.
                    let low = 2 * pair - (pair & (step - 1));
                    let (a, b) = (keys.load(low), keys.load(low + step));
                    let falls = low & size == 0;
                    if (a < b) == falls {
                        keys.store(low, b);
                        keys.store(low + step, a);
                    }
                    pair += THREADS;
                }
                step /= 2;
            }
            size *= 2;
        }
        sync_threads();
    }
}

#[inline(always)]
pub(super) unsafe fn draw_token(p: DrawToken) {
    let row = block_idx_x() as usize;
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: the caller's promise, which is this kernel's; the branch is the same on all lanes.
    unsafe {
        let s = settings(p.settings, row);
        if s.is_whole() {
            return;
        }
        let token = draw_sorted(&p, row, &s);
        if thread_idx_x() == 0 {
            finish(&p.end(), row, &s, token);
        }
    }
}

/// Draws from the sorted candidates of a row: the token on lane 0, [`DAMAGED`] or [`FORBIDDEN`].
///
/// # Safety
/// All lanes of the block call this, which are [`MAX_TOP_K`].
#[inline(always)]
unsafe fn draw_sorted(p: &DrawToken, row: usize, s: &Settings) -> u32 {
    let me = thread_idx_x();
    // At temperature 1, for the cuts; then at the temperature, 0 for what was cut.
    let plain = Shared::<u64>::at(0);
    let tempered = Shared::<u64>::at(MAX_TOP_K * 8);
    // SAFETY: lanes are compared with `keep`; lengths are the caller's promise; barriers are on every lane's way.
    unsafe {
        let keys = p.keys.offset(row * p.keep as usize);
        let best = keys.load(0);
        let max = logit(best);
        let is_greedy = s.temperature == 0.0;
        let limit = s.top_k.min(p.keep);
        let (mut one, mut hot) = (0.0f64, 0.0f64);
        if !is_greedy && me < limit {
            let k = keys.load(me as usize);
            let l = logit(k);
            if k != NONE && k != DAMAGED_KEY && l > f32::NEG_INFINITY {
                one = weight(l, max, 1.0);
                hot = if one >= f64::from(s.min_p) {
                    weight(l, max, s.temperature)
                } else {
                    0.0
                };
                // A weight that underflows still is a candidate where nothing is cut; it is never drawn.
            }
        }
        plain.store(me, one.to_bits());
        tempered.store(me, hot.to_bits());
        // Orders every weight before the sums below.
        sync_threads();
        if best == DAMAGED_KEY {
            return DAMAGED;
        }
        if max == f32::NEG_INFINITY {
            return FORBIDDEN;
        }
        if is_greedy || me > 0 {
            return !(best as u32);
        }
        let at = |weights: Shared<u64>, i: u32| f64::from_bits(weights.load(i));
        let mut end = limit;
        if s.top_p < 1.0 {
            let mut total = 0.0;
            let mut i = 0;
            while i < limit {
                total += at(plain, i);
                i += 1;
            }
            let goal = total * f64::from(s.top_p);
            let mut mass = 0.0;
            let mut i = 0;
            while i < limit {
                mass += at(plain, i);
                i += 1;
                if mass >= goal {
                    end = i;
                    break;
                }
            }
        }
        let mut total = 0.0;
        let mut i = 0;
        while i < end {
            total += at(tempered, i);
            i += 1;
        }
        let drawn = p.progress.load_l2(row * 2 + 1)[0];
        p.progress.store(row * 2 + 1, drawn + 1);
        let goal = uniform(s.seed, u64::from(drawn)) * total;
        let (mut mass, mut chosen) = (0.0, 0);
        let mut i = 0;
        while i < end {
            let w = at(tempered, i);
            mass += w;
            if w > 0.0 {
                chosen = i;
            }
            if mass > goal {
                break;
            }
            i += 1;
        }
        !(keys.load(chosen as usize) as u32)
    }
}
