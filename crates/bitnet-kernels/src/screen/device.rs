//! The bodies of the certified head's kernels.

use super::{CHUNK, CertifiedGemv, GROUPS, ScreenThreshold, THREADS, own};
use crate::Global;
use crate::dense_gemv::device::{Format, Pieces, Room};
use crate::dense_gemv::{BF16_WORDS, Bf16Gemv, GROUP_BYTES, MAX_COLS, ROWS};
use crate::intrinsics::*;
use crate::sample::row::{penalizes, settings};
use bitnet_layout::draw::{ordered, unordered};

const WARPS: u32 = THREADS / 32;
/// Rows of a lane of [`ScreenThreshold`].
const EACH: usize = (CHUNK / THREADS) as usize;
/// Rows that a lane of [`CertifiedGemv`] looks at together.
const TOGETHER: u32 = 8;
/// Keys that a lane holds of a column's.
const HELD: usize = 8;
/// The lowest bit of a threshold's key that is looked for: 11 bits of the mantissa.
const LAST_BIT: u32 = 1 << 12;
/// Pieces of a row that a lane has on their way.
const DEPTH: usize = 4;

/// How far the score of a row is from its logit at most.
///
/// # Safety
/// The row is one of the head.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
unsafe fn bound(row_bounds: Global<f32>, row: usize, [reach, slack]: [f32; 2]) -> f32 {
    // SAFETY: the caller's promise.
    let [left_out, length] = unsafe { row_bounds.load_l2_x2(row * 2) };
    fma(left_out, reach, length * slack)
}

#[inline(always)]
pub(super) unsafe fn threshold(p: ScreenThreshold) {
    let (me, col) = (thread_idx_x(), block_idx_y() as usize);
    let first = block_idx_x() * CHUNK;
    // Twice a count of every warp; whether this block is the last.
    let parts = Shared::<u32>::at(0);
    let is_last = Shared::<u32>::at(2 * WARPS * 4);
    let all = grid_dim_x() * GROUPS;
    let maxima = p.maxima.offset(col * all as usize);
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: rows are compared with the vocabulary, groups with their number; every branch around a warp or block operation is
    // uniform.
    unsafe {
        let s = settings(p.settings, col);
        let penalizes = penalizes(&s);
        let column = p.column_bounds.load_l2_x2(col * 2);
        // All loads are under way before the first is needed.
        let mut scores = [0.0; EACH];
        let mut bounds = [0.0; EACH];
        let mut recent = [0; EACH];
        let mut i = 0;
        while i < EACH {
            let row = (first + me + i as u32 * THREADS).min(p.vocab - 1) as usize;
            let at = col * p.vocab as usize + row;
            scores[i] = p.scores.load_l2(at)[0];
            bounds[i] = bound(p.row_bounds, row, column);
            if penalizes {
                recent[i] = p.counts.load_l2(at)[0];
            }
            i += 1;
        }
        let mut best = f32::NEG_INFINITY;
        let mut i = 0;
        while i < EACH {
            let lower = scores[i] - bounds[i];
            let is_row = first + me + (i as u32) * THREADS < p.vocab;
            // A NaN is in no group.
            if is_row && recent[i] == 0 && lower > best && lower < f32::INFINITY {
                best = lower;
            }
            i += 1;
        }
        let mut step = 1;
        while step < 32 * WARPS / GROUPS {
            best = best.max(warp_shuffle_xor(FULL_MASK, best, step));
            step *= 2;
        }
        if me.is_multiple_of(32 * WARPS / GROUPS) {
            let group = block_idx_x() * GROUPS + me / (32 * WARPS / GROUPS);
            maxima.store(group as usize, best);
        }
        // Orders the block's stores before its report.
        sync_threads();
        if me == 0 {
            let before = p.done.fetch_add_acq_rel(col, 1);
            is_last.store(0, u32::from(before + 1 == grid_dim_x()));
        }
        // Orders the answer before its loads, and all reports before the loads of what they are about.
        sync_threads();
        if is_last.load(0) == 0 {
            return;
        }
        let wanted = if s.temperature == 0.0 { 1 } else { s.top_k };
        let mut keys = [0; HELD];
        let mut slot = 0;
        while slot < HELD {
            let group = slot as u32 * THREADS + me;
            let key = ordered(maxima.load_l2(group.min(all - 1) as usize)[0]);
            keys[slot] = if group < all { key } else { 0 };
            slot += 1;
        }
        // Where there are more groups than the block holds, several become one.
        let mut group = HELD as u32 * THREADS + me;
        while group < all {
            keys[0] = keys[0].max(ordered(maxima.load_l2(group as usize)[0]));
            group += THREADS;
        }
        let mut key = 0;
        if wanted == 1 {
            let mut slot = 0;
            while slot < HELD {
                key = key.max(keys[slot]);
                slot += 1;
            }
            let key_of_warp = warp_reduce_max_u32(FULL_MASK, key);
            if lane_id() == 0 {
                parts.store(warp_id(), key_of_warp);
            }
            // Orders the warps' keys before their loads.
            sync_threads();
            let mut warp = 0;
            while warp < WARPS {
                key = key.max(parts.load(warp));
                warp += 1;
            }
        } else if wanted > 0 {
            // The shift is none, which the compiler does not know, so that it does not write out all rounds.
            let (mut bit, mut half) = ((1 << 31) >> (thread_idx_x_again() / THREADS), 0);
            while bit >= LAST_BIT {
                let mut count = 0;
                let mut slot = 0;
                while slot < HELD {
                    count += i32::from(keys[slot] >= key | bit);
                    slot += 1;
                }
                let count = warp_reduce_add(FULL_MASK, count);
                if lane_id() == 0 {
                    parts.store(half * WARPS + warp_id(), count as u32);
                }
                // Orders the warps' counts before their loads; the next round's go to the other half.
                sync_threads();
                let mut total = 0;
                let mut warp = 0;
                while warp < WARPS {
                    total += parts.load(half * WARPS + warp);
                    warp += 1;
                }
                if total >= wanted {
                    key |= bit;
                }
                bit >>= 1;
                half ^= 1;
            }
        }
        if me == 0 {
            // Keys up to negative infinity's are of groups without a bound; cut short they may be no number's.
            let value = if key <= ordered(f32::NEG_INFINITY) {
                f32::NEG_INFINITY
            } else {
                unordered(key)
            };
            p.threshold.store(col, value);
            p.done.store_relaxed(col, 0);
            if col == 0 {
                p.published.store_relaxed(0, p.products.load_relaxed(0));
            }
        }
    }
}

/// The pieces of both of a lane's rows at turns `turn ..` of its warp; past the last turn those of the last.
///
/// # Safety
/// The rows lie in the matrix, whose rows have `words` words, at least 4.
#[inline(always)]
unsafe fn pieces(rows: [Global<u32>; 2], turn: u32, last: u32, words: u32) -> [Pieces; DEPTH] {
    let mut w = [[[0; 4]; 2]; DEPTH];
    let warps = block_dim_x() / WARP_SIZE;
    let mut i = 0;
    while i < DEPTH {
        let group = warp_id() + (turn + i as u32).min(last) * warps;
        // Past the end of a row its last piece again, times zero.
        let at = (group * (GROUP_BYTES / 4) + lane_id() % 8 * 4).min(words - 4) as usize;
        // SAFETY: the piece is in the row.
        w[i] = unsafe { [rows[0].load_stream_x4(at), rows[1].load_stream_x4(at)] };
        i += 1;
    }
    w
}

#[inline(always)]
pub(super) unsafe fn recompute(p: CertifiedGemv) {
    let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
    let (block, blocks, col) = (block_idx_x(), grid_dim_x(), block_idx_y() as usize);
    let words = p.k / 2;
    let turns = words.div_ceil(GROUP_BYTES / 4).div_ceil(warps.max(1));
    let room = Room::new(1, warps, turns * warps * BF16_WORDS);
    // This block's bands; it is one of as many at most.
    let n_rows = (p.n.div_ceil(ROWS) - block).div_ceil(blocks.max(1)) * ROWS;
    let own_len = own(n_rows / ROWS, warps);
    let lists: Shared<u32> = room.worth.offset(MAX_COLS).cast();
    let lengths = lists.offset(warps * own_len);
    let own = lists.offset(warp * own_len);
    let row_of = |i: u32| (block + i / ROWS * blocks) * ROWS + i % ROWS;
    let y = p.y.offset(col * p.n as usize);
    let product = Bf16Gemv {
        w: p.w,
        x: p.x.offset(col * p.k as usize),
        norm: p.norm,
        y,
        n: p.n,
        k: p.k,
        cols: 1,
        eps: p.eps,
    };
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: rows are compared with their number, shared indices are below the launch's size; every branch around a warp or block
    // operation is uniform.
    unsafe {
        let penalizes = penalizes(&settings(p.settings, col));
        let column = p.column_bounds.load_l2_x2(col * 2);
        let threshold = p.threshold.load_l2(col)[0];
        let (mut first, mut n_own) = (warp * WARP_SIZE, 0);
        while first < n_rows {
            // All loads are under way before the first is needed.
            let mut uppers = [0.0; TOGETHER as usize];
            let mut recent = [0; TOGETHER as usize];
            let mut j = 0;
            while j < TOGETHER as usize {
                let i = first + j as u32 * warps * WARP_SIZE + lane;
                // Of no other block's rows, which may be written by now.
                let row = if i < n_rows && row_of(i) < p.n {
                    row_of(i)
                } else {
                    block * ROWS
                } as usize;
                uppers[j] = y.load_l2(row)[0] + bound(p.row_bounds, row, column);
                if penalizes {
                    recent[j] = p.counts.load_l2(col * p.n as usize + row)[0];
                }
                j += 1;
            }
            let mut j = 0;
            while j < TOGETHER as usize {
                let i = first + j as u32 * warps * WARP_SIZE + lane;
                let row = row_of(i);
                // What is not a number may be anything.
                let is_wanted = uppers[j] >= threshold || uppers[j].is_nan() || recent[j] > 0;
                let is_wanted = is_wanted && i < n_rows && row < p.n;
                let found = warp_vote_ballot(FULL_MASK, is_wanted);
                if is_wanted {
                    own.store(n_own + (found & ((1 << lane) - 1)).count_ones(), row);
                }
                n_own += found.count_ones();
                j += 1;
            }
            first += TOGETHER * warps * WARP_SIZE;
        }
        if lane == 0 {
            lengths.store(warp, n_own);
        }
        // Orders all lists and their lengths before their loads.
        sync_threads();
        let (mut found, mut other) = (0, 0);
        while other < warps {
            found += lengths.load(other);
            other += 1;
        }
        if found == 0 {
            return;
        }
        if thread_idx_x() == 0 {
            p.products.fetch_add(0, found);
        }
        // Row `i` of all lists one after the other; past their end the last one, whose results are not stored.
        let row_at = |i: u32| {
            let (mut i, mut other) = (i.min(found - 1), 0);
            let mut length = lengths.load(0);
            while i >= length {
                i -= length;
                other += 1;
                length = lengths.load(other);
            }
            lists.load(other * own_len + i)
        };
        let rows = |first: u32| {
            let at = |i: u32| p.w.offset(row_at(i) as usize * words as usize);
            [at(first + lane / 8), at(first + lane / 8 + 4)]
        };
        let mut at = rows(0);
        let mut w = pieces(at, 0, turns - 1, words);
        product.prepare(&room, turns * warps);
        let (mut first, mut half, mut adder) = (0, 0, 0);
        loop {
            let mut sums = Bf16Gemv::zero();
            let mut turn = 0;
            while turn < turns {
                let mut i = 0;
                while i < DEPTH {
                    if turn + (i as u32) < turns {
                        let group = warp + (turn + i as u32) * warps;
                        let x = room.columns.offset(group * BF16_WORDS);
                        Bf16Gemv::multiply(&mut sums, w[i], x, room.stride, 1);
                    }
                    i += 1;
                }
                turn += DEPTH as u32;
                if turn < turns {
                    w = pieces(at, turn, turns - 1, words);
                }
            }
            let next = first + ROWS;
            if next < found {
                at = rows(next);
                w = pieces(at, 0, turns - 1, words);
            }
            let parts: Shared<f32> = room.parts.offset(half * warps * ROWS).cast();
            Bf16Gemv::store(sums, parts.offset(warp * ROWS), 1);
            // Orders every warp's parts before the additions.
            sync_threads();
            if warp == adder && lane < ROWS && first + lane < found {
                let mut total = 0.0;
                let mut from = 0;
                while from < warps {
                    total += parts.load(from * ROWS + lane);
                    from += 1;
                }
                let row = row_at(first + lane);
                y.store(row as usize, product.result(total, row, room.worth.load(0)));
            }
            if next >= found {
                return;
            }
            first = next;
            half ^= 1;
            adder = if adder + 1 == warps { 0 } else { adder + 1 };
        }
    }
}
