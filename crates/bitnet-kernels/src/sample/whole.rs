//! The bodies of the kernels that cut and weigh a whole vocabulary. Every sum here is one of integers, so that its order is of no account.

use super::row::{DAMAGED_KEY, Logits, NONE, logit, penalizes, scan, settings};
use super::{BINS, BestKey, CHUNK, CutWhole, Settings, THREADS, WeighWhole, Whole};
use crate::Global;
use crate::intrinsics::*;
use bitnet_layout::draw::{Cut, mass, nucleus, ordered, share, unordered};

/// Words of a row's state: its largest key, a total mass, what a cut still has to reach and then one over the temperature, and the cut.
pub(super) const BEST: usize = 0;
const TOTAL: usize = 1;
const GOAL: usize = 2;
pub(super) const HEAT: usize = GOAL;
pub(super) const CUT: usize = 3;

/// Where the words of [`scan`] end in shared memory.
const SCANNED: u32 = WARPS * 8;

/// Warps of a block.
const WARPS: u32 = THREADS / 32;

#[inline(always)]
fn pack(cut: Cut) -> u64 {
    u64::from(cut.above) << 32 | u64::from(cut.ties)
}

#[inline(always)]
pub(super) fn unpack(word: u64) -> Cut {
    Cut {
        above: (word >> 32) as u32,
        ties: word as u32,
    }
}

#[inline(always)]
pub(super) fn state(all: Global<u64>, row: usize) -> Global<u64> {
    all.offset(row * Whole::WORDS)
}

/// Whether a row with this best key has tokens to draw from.
#[inline(always)]
pub(super) fn is_sound(best: u64) -> bool {
    best != DAMAGED_KEY && logit(best) > f32::NEG_INFINITY
}

/// The mass of a logit at temperature 1.
#[inline(always)]
fn plain(l: f32, max: f32) -> u64 {
    mass(share(l, max, 1.0))
}

/// The mass of a logit that top-k and top-p keep, at the temperature.
#[inline(always)]
pub(super) fn tempered(l: f32, max: f32, s: &Settings, heat: f64) -> u64 {
    if s.min_p > 0.0 && share(l, max, 1.0) < f64::from(s.min_p) {
        0
    } else {
        mass(share(l, max, heat))
    }
}

#[inline(always)]
fn heat(s: &Settings) -> f64 {
    1.0 / f64::from(s.temperature)
}

#[inline(always)]
pub(super) unsafe fn best_key(p: BestKey) {
    let row = block_idx_y() as usize;
    let keys = Shared::<u64>::at(0);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: `Logits::key` compares tokens with the vocabulary; the branch before the barrier is the same on the whole block.
    unsafe {
        let s = settings(p.settings, row);
        if p.all == 0 && !s.is_whole() {
            return;
        }
        let logits = Logits {
            logits: p.logits,
            counts: p.counts,
            vocab: p.vocab,
            row,
        };
        let mut best = NONE;
        let mut i = thread_idx_x();
        while i < CHUNK {
            let token = block_idx_x() * CHUNK + i;
            best = best.max(logits.key(&s, token));
            if token < p.vocab && penalizes(&s) {
                // For the kernels behind this one.
                let at = row * p.vocab as usize + token as usize;
                p.logits.store(at, logits.load(&s, token).0);
            }
            i += THREADS;
        }
        let high = warp_reduce_max_u32(FULL_MASK, (best >> 32) as u32);
        let low = if (best >> 32) as u32 == high {
            best as u32
        } else {
            0
        };
        let low = warp_reduce_max_u32(FULL_MASK, low);
        if lane_id() == 0 {
            keys.store(warp_id(), u64::from(high) << 32 | u64::from(low));
        }
        // Orders every warp's key before the loads below.
        sync_threads();
        if thread_idx_x() == 0 {
            let mut best = NONE;
            let mut warp = 0;
            while warp < WARPS {
                best = best.max(keys.load(warp));
                warp += 1;
            }
            state(p.state, row).fetch_max(BEST, best);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn cut_whole(p: CutWhole) {
    let (me, row) = (thread_idx_x(), block_idx_y() as usize);
    let scratch = Shared::<u64>::at(0);
    let is_last = Shared::<u32>::at(SCANNED);
    // The amount of each value of the digit, in two halves that no sum over the block leaves.
    let low = Shared::<u32>::at(SCANNED + 8);
    let high = low.offset(BINS);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: tokens are compared with the vocabulary, a digit is below BINS; branches around barriers are the same on the whole block.
    unsafe {
        let s = settings(p.settings, row);
        let by_mass = p.by_mass != 0;
        let is_wanted = if by_mass { s.top_p < 1.0 } else { s.top_k > 0 };
        let state = state(p.state, row);
        let best = state.load(BEST);
        if !s.is_whole() || !is_wanted || !is_sound(best) {
            return;
        }
        let (max, cut) = (logit(best), unpack(state.load(CUT)));
        let mut i = me;
        while i < BINS {
            low.store(i, 0);
            high.store(i, 0);
            i += THREADS;
        }
        // Orders the zeros before the additions.
        sync_threads();
        let logits = p.logits.offset(row * p.vocab as usize);
        let is_first = p.pass == 0;
        let mut above = 0;
        let mut i = me;
        while i < CHUNK {
            let token = block_idx_x() * CHUNK + i;
            i += THREADS;
            if token >= p.vocab {
                break;
            }
            let l = logits.load_l2(token as usize)[0];
            let bits = ordered(l);
            if !cut.matches(p.pass, bits) {
                continue;
            }
            let amount = if by_mass { plain(l, max) } else { 1 };
            if is_first && by_mass && bits > cut.above {
                above += amount;
            }
            if amount > 0 {
                let digit = Cut::digit(p.pass, bits);
                low.add(digit, amount as u32 & 0xf_ffff);
                high.add(digit, (amount >> 20) as u32);
            }
        }
        // Its barriers order the additions before the loads below.
        let (_, above) = scan::<WARPS>(above, scratch);
        let bins = p.bins.offset(row * BINS as usize);
        let mut i = me;
        while i < BINS {
            let amount = (u64::from(high.load(i)) << 20) + u64::from(low.load(i));
            if amount > 0 {
                bins.fetch_add(i as usize, amount);
            }
            i += THREADS;
        }
        if me == 0 && is_first && by_mass {
            state.fetch_add(TOTAL, above);
        }
        // Orders the block's additions before the release.
        sync_threads();
        if me == 0 {
            let before = p.done.fetch_add_acq_rel(row, 1);
            is_last.store(0, (before == grid_dim_x() - 1).into());
        }
        // Orders what was acquired before the loads below.
        sync_threads();
        if is_last.load(0) == 0 {
            return;
        }
        let goal = if !is_first {
            state.load_relaxed(GOAL)
        } else if by_mass {
            let of_ties = u64::from(cut.ties) * plain(unordered(cut.above), max);
            nucleus(state.load_relaxed(TOTAL) + of_ties, s.top_p)
        } else {
            u64::from(s.top_k)
        };
        // Four values a lane, the largest first.
        let first = BINS - 1 - me * (BINS / THREADS);
        let mut own = 0;
        let mut i = 0;
        while i < BINS / THREADS {
            own += bins.load_relaxed((first - i) as usize);
            i += 1;
        }
        let (before, _) = scan::<WARPS>(own, scratch);
        if before < goal && goal - before <= own {
            let (mut rest, mut digit) = (goal - before, first);
            loop {
                let amount = bins.load_relaxed(digit as usize);
                if rest <= amount || digit == 0 {
                    break;
                }
                rest -= amount;
                digit -= 1;
            }
            let mut cut = cut.with(p.pass, digit);
            if p.pass == Cut::PASSES - 1 {
                let of_tie = if by_mass {
                    plain(unordered(cut.above), max)
                } else {
                    1
                };
                cut.ties = rest.div_ceil(of_tie.max(1)) as u32;
            }
            state.store_relaxed(GOAL, rest);
            state.store_relaxed(CUT, pack(cut));
        }
        let mut i = 0;
        while i < BINS / THREADS {
            bins.store_relaxed((first - i) as usize, 0);
            i += 1;
        }
        if me == 0 {
            p.done.store_relaxed(row, 0);
        }
    }
}

#[inline(always)]
pub(super) unsafe fn weigh_whole(p: WeighWhole) {
    let (me, row) = (thread_idx_x(), block_idx_y() as usize);
    let scratch = Shared::<u64>::at(0);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: tokens are compared with the vocabulary; branches around barriers are the same on the whole block.
    unsafe {
        let s = settings(p.settings, row);
        let state = state(p.state, row);
        let best = state.load(BEST);
        if !s.is_whole() || !is_sound(best) {
            return;
        }
        let (max, cut, heat) = (logit(best), unpack(state.load(CUT)), heat(&s));
        let logits = p.logits.offset(row * p.vocab as usize);
        let (mut sum, mut ties) = (0, 0);
        let mut i = me;
        while i < CHUNK {
            let token = block_idx_x() * CHUNK + i;
            i += THREADS;
            if token >= p.vocab {
                break;
            }
            let l = logits.load_l2(token as usize)[0];
            let bits = ordered(l);
            if bits > cut.above {
                sum += tempered(l, max, &s, heat);
            } else if bits == cut.above {
                ties += 1;
            }
        }
        let (_, sum) = scan::<WARPS>(sum, scratch);
        let (_, ties) = scan::<WARPS>(ties, scratch);
        if me == 0 {
            let at = (row * grid_dim_x() as usize + block_idx_x() as usize) * 2;
            p.sums.store(at, sum);
            p.sums.store(at + 1, ties);
            if block_idx_x() == 0 {
                // So that the kernel that draws needs no division.
                state.store(HEAT, heat.to_bits());
            }
        }
    }
}
