//! The bodies of the kernels that choose a token.

use super::{CHUNK, DAMAGED, DrawToken, FORBIDDEN, MAX_TOP_K, SelectKeys, SelectLogits, Settings, THREADS};
use crate::Global;
use crate::intrinsics::*;
use bitnet_layout::draw::{uniform, weight};

/// Key of no token.
const NONE: u64 = 0;

/// Above every key of a token.
const DAMAGED_KEY: u64 = u64::MAX;

/// The settings of a row.
///
/// # Safety
/// The row is one of those in the buffer.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(crate) unsafe fn settings(all: Global<u32>, row: usize) -> Settings {
    let word = |i: usize| {
        // SAFETY: the caller's promise.
        unsafe { all.load_l2(row * Settings::WORDS + i)[0] }
    };
    let float = |i: usize| f32::from_bits(word(i));
    Settings {
        temperature: float(0),
        top_k: word(1),
        top_p: float(2),
        min_p: float(3),
        repeat_penalty: float(4),
        presence_penalty: float(5),
        frequency_penalty: float(6),
        last_n: word(7),
        seed: u64::from(word(9)) << 32 | u64::from(word(8)),
    }
}

/// Whether penalties can change a logit.
#[inline(always)]
pub(crate) fn penalizes(s: &Settings) -> bool {
    s.last_n > 0 && (s.repeat_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0)
}

#[inline(always)]
fn key(logit: f32, token: u32) -> u64 {
    let bits = logit.to_bits();
    let ordered = bits ^ ((bits as i32 >> 31) as u32 | 0x8000_0000);
    u64::from(ordered) << 32 | u64::from(!token)
}

#[inline(always)]
fn logit(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    let sign = (!ordered as i32 >> 31) as u32 | 0x8000_0000;
    f32::from_bits(ordered ^ sign)
}

#[inline(always)]
pub(super) unsafe fn select_logits(p: SelectLogits) {
    let (first, row) = (block_idx_x() * CHUNK, block_idx_y() as usize);
    let keys = Shared::<u64>::at(0);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: tokens are compared with the vocabulary, shared indices are below CHUNK.
    unsafe {
        let s = settings(p.settings, row);
        let penalizes = penalizes(&s);
        let mut i = thread_idx_x();
        while i < CHUNK {
            let token = first + i;
            let mut k = NONE;
            if token < p.vocab {
                let at = row * p.vocab as usize + token as usize;
                let mut l = p.logits.load_l2(at)[0];
                let is_finite = l.abs() < f32::INFINITY;
                if penalizes {
                    let count = p.counts.load_l2(at)[0];
                    if count > 0 {
                        let scaled = if l > 0.0 {
                            l / s.repeat_penalty
                        } else {
                            l * s.repeat_penalty
                        };
                        l = scaled - s.presence_penalty - s.frequency_penalty * count as f32;
                    }
                }
                if s.temperature == 0.0 {
                    // Zeros of either sign are equal to the greedy choice.
                    l += 0.0;
                }
                k = if is_finite { key(l, token) } else { DAMAGED_KEY };
            }
            keys.store(i, k);
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
    let (me, row) = (thread_idx_x(), block_idx_x() as usize);
    // At temperature 1, for the cuts; then at the temperature, 0 for what was cut.
    let plain = Shared::<u64>::at(0);
    let tempered = Shared::<u64>::at(MAX_TOP_K * 8);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: lanes are compared with `keep`; lengths are the caller's promise; barriers are on every lane's way.
    unsafe {
        let s = settings(p.settings, row);
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
        if me == 0 {
            let token = if best == DAMAGED_KEY {
                DAMAGED
            } else if max == f32::NEG_INFINITY {
                FORBIDDEN
            } else if is_greedy {
                !(best as u32)
            } else {
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
            };
            // The next step must find a row of the embedding whatever happened here.
            let is_token = token < p.vocab;
            if is_token {
                p.tokens.store(row, token);
            }
            let step = p.steps.load_l2(row)[0];
            let place = (step & (p.ring_len - 1)) * p.ring_rows;
            let word = if is_token { token + 1 } else { token };
            p.ring.store_relaxed(place as usize + row, word);
            p.steps.store(row, step + 1);
            p.positions.store(row, p.positions.load_l2(row)[0] + 1);
            if is_token && penalizes(&s) {
                let n = p.progress.load_l2(row * 2)[0];
                p.progress.store(row * 2, n + 1);
                let wrap = p.history_len - 1;
                let ring = p.history.offset(row * p.history_len as usize);
                let counts = p.counts.offset(row * p.vocab as usize);
                if n >= s.last_n {
                    let old = ring.load_l2(((n - s.last_n) & wrap) as usize)[0] as usize;
                    counts.store(old, counts.load_l2(old)[0] - 1);
                }
                ring.store((n & wrap) as usize, token);
                counts.store(token as usize, counts.load_l2(token as usize)[0] + 1);
            }
        }
    }
}
