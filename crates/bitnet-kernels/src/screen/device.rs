//! The bodies of the certified head's kernels.

use super::{CHUNK, CertifiedGemv, GROUP_ROWS, GROUPS, PER_WARP, ScreenGroups, THREADS, own, row_groups};
use crate::Global;
use crate::dense_gemv::device::{Format, Pieces, Room};
use crate::dense_gemv::{BF16_WORDS, Bf16Gemv, GROUP_BYTES, MAX_COLS, MAX_WARPS, ROWS};
use crate::intrinsics::*;
use crate::sample::row::{penalizes, settings};
use crate::token::device::offer;
use bitnet_layout::draw::{ordered, unordered};

/// Rows of a lane of [`ScreenGroups`].
const EACH: usize = (CHUNK / THREADS) as usize;
/// Columns whose scores a lane of [`ScreenGroups`] loads together.
const COLUMNS: usize = 2;
/// Lanes of [`ScreenGroups`] that share a group.
const LANES: u32 = THREADS / GROUPS;
/// Most threads of a block of [`CertifiedGemv`].
const MOST_THREADS: u32 = MAX_WARPS * WARP_SIZE;
/// Groups that a warp of [`CertifiedGemv`] looks into together, and rows of them that a lane has.
const TOGETHER: usize = 2;
const ROWS_EACH: usize = (GROUP_ROWS / WARP_SIZE) as usize;
/// Keys that a lane holds of a column's.
const HELD: usize = 8;
/// The lowest bit of a threshold's key that is looked for: 11 bits of the mantissa.
const LAST_BIT: u32 = 1 << 12;
/// Pieces of a row that a lane has on their way.
const DEPTH: usize = 4;

/// How far the score of a row is from its logit at most.
#[inline(always)]
fn bound([left_out, length]: [f32; 2], [reach, slack]: [f32; 2]) -> f32 {
    fma(left_out, reach, length * slack)
}

/// Row `i` (0..64) of group `group`.
#[inline(always)]
fn row_of(group: u32, i: u32) -> u32 {
    group / GROUPS * CHUNK + group % GROUPS * LANES + i / LANES * THREADS + i % LANES
}

#[inline(always)]
pub(super) unsafe fn groups(p: ScreenGroups) {
    let me = thread_idx_x();
    let first = block_idx_x() * CHUNK + me;
    let all = grid_dim_x() * GROUPS;
    let each = p.cols.div_ceil(grid_dim_y().max(1));
    let end = p.cols.min((block_idx_y() + 1) * each);
    let mut col = block_idx_y() * each;
    // Of each column its bounds, and whether penalties are on.
    let of_columns = Shared::<f32>::at(0);
    let flags = Shared::<u32>::at(each * 8);
    // SAFETY: rows are compared with the vocabulary, columns with their number; every branch around a warp or block operation is
    // uniform.
    unsafe {
        // Once for the block: L2 answers those who ask for the same line one after the other, and here that would be every warp.
        let mut c = me;
        while c < end - col {
            flags.store(c, u32::from(penalizes(&settings(p.settings, (col + c) as usize))));
            c += THREADS;
        }
        grid_dependency_launch();
        grid_dependency_wait();
        if block_idx_x() + block_idx_y() + me == 0 {
            p.published.store_relaxed(0, p.products.load_relaxed(0));
        }
        let mut row_bounds = [[0.0; 2]; EACH];
        let mut i = 0;
        while i < EACH {
            let row = (first + i as u32 * THREADS).min(p.vocab - 1);
            row_bounds[i] = p.row_bounds.load_l2_x2(row as usize * 2);
            i += 1;
        }
        let mut c = me;
        while c < end - col {
            of_columns.store_x2(2 * c, p.column_bounds.load_l2_x2((col + c) as usize * 2));
            c += THREADS;
        }
        // Orders these before their loads.
        sync_threads();
        let first_col = col;
        while col < end {
            // The last column stands for one that is not there. All loads are under way before the first is needed.
            let cols: [u32; COLUMNS] = core::array::from_fn(|c| (col + c as u32).min(end - 1));
            let mut scores = [[0.0; EACH]; COLUMNS];
            let mut c = 0;
            while c < COLUMNS {
                let mut i = 0;
                while i < EACH {
                    let row = (first + i as u32 * THREADS).min(p.vocab - 1);
                    scores[c][i] = p
                        .scores
                        .load_l2(cols[c] as usize * p.vocab as usize + row as usize)[0];
                    i += 1;
                }
                c += 1;
            }
            let mut c = 0;
            while c < COLUMNS {
                let column = of_columns.load_x2(2 * (cols[c] - first_col));
                let penalizes = flags.load(cols[c] - first_col) != 0;
                let (mut lowest, mut highest) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                let mut i = 0;
                while i < EACH {
                    let bound = bound(row_bounds[i], column);
                    let (lower, upper) = (scores[c][i] - bound, scores[c][i] + bound);
                    let row = first + i as u32 * THREADS;
                    if row < p.vocab {
                        let at = cols[c] as usize * p.vocab as usize + row as usize;
                        let recent = if penalizes { p.counts.load_l2(at)[0] } else { 0 };
                        // A NaN is in no group's lower end.
                        if recent == 0 && lower > lowest && lower < f32::INFINITY {
                            lowest = lower;
                        }
                        // What is not a number may be anything.
                        let is_anything = upper.is_nan() || recent > 0;
                        highest = highest.max(if is_anything { f32::INFINITY } else { upper });
                    }
                    i += 1;
                }
                let mut step = 1;
                while step < LANES {
                    lowest = lowest.max(warp_shuffle_xor(FULL_MASK, lowest, step));
                    highest = highest.max(warp_shuffle_xor(FULL_MASK, highest, step));
                    step *= 2;
                }
                if me.is_multiple_of(LANES) {
                    let at = (cols[c] * all + block_idx_x() * GROUPS + me / LANES) as usize;
                    p.lowers.store(at, lowest);
                    p.uppers.store(at, highest);
                }
                c += 1;
            }
            col += COLUMNS as u32;
        }
    }
}

/// A value that `wanted` of the `all` numbers at `lowers` reach, the largest of them that the bits down to [`LAST_BIT`] can say; negative
/// infinity where there is none.
///
/// # Safety
/// All lanes of the block call this together. `parts` is two words for every warp, that no lane touches before a barrier behind this.
#[inline(always)]
unsafe fn threshold(lowers: Global<f32>, all: u32, wanted: i32, parts: Shared<u32>) -> f32 {
    let (me, threads) = (thread_idx_x(), block_dim_x());
    let warps = threads / WARP_SIZE;
    // SAFETY: indices are compared with the number of groups; the caller's promise.
    unsafe {
        let mut keys = [0; HELD];
        let mut slot = 0;
        while slot < HELD {
            let group = slot as u32 * threads + me;
            let key = ordered(lowers.load_l2(group.min(all - 1) as usize)[0]);
            keys[slot] = if group < all { key } else { 0 };
            slot += 1;
        }
        // Where there are more groups than the block holds, several become one.
        let mut group = HELD as u32 * threads + me;
        while group < all {
            keys[0] = keys[0].max(ordered(lowers.load_l2(group as usize)[0]));
            group += threads;
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
            let of_lane = parts.load(lane_id().min(warps - 1));
            key = warp_reduce_max_u32(FULL_MASK, of_lane);
        } else if wanted > 0 {
            // The shift is none, which the compiler does not know, so that it does not write out all rounds.
            let (mut bit, mut half) = ((1 << 31) >> (thread_idx_x_again() / MOST_THREADS), 0);
            while bit >= LAST_BIT {
                let mut count = 0;
                let mut slot = 0;
                while slot < HELD {
                    count += i32::from(keys[slot] >= key | bit);
                    slot += 1;
                }
                let count = warp_reduce_add(FULL_MASK, count);
                if lane_id() == 0 {
                    parts.store(half * warps + warp_id(), count as u32);
                }
                // Orders the warps' counts before their loads; the next round's go to the other half.
                sync_threads();
                let of_lane = if lane_id() < warps {
                    parts.load(half * warps + lane_id()) as i32
                } else {
                    0
                };
                if warp_reduce_add(FULL_MASK, of_lane) >= wanted {
                    key |= bit;
                }
                bit >>= 1;
                half ^= 1;
            }
        }
        // Keys up to negative infinity's are of groups without a bound; cut short they may be no number's.
        if key <= ordered(f32::NEG_INFINITY) {
            f32::NEG_INFINITY
        } else {
            unordered(key)
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
    let groups = row_groups(p.n);
    // Groups `block`, `block + blocks` and so on are this block's.
    let n_own = (groups - block).div_ceil(blocks.max(1));
    let parts: Shared<u32> = room.worth.offset(MAX_COLS).cast();
    let (found_groups, n_found) = (parts.offset(4 * warps), parts.offset(2 * warps));
    let (lists, lengths) = (
        found_groups.offset(warps * own(n_own, warps)),
        parts.offset(3 * warps),
    );
    // Of one column `worth` takes one word.
    let of_column = room.worth.offset(1);
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
    // SAFETY: rows and groups are compared with their numbers, shared indices are below the launch's size; every branch around a warp or
    // block operation is uniform.
    unsafe {
        // No kernel of a step writes them.
        let s = settings(p.settings, col);
        let penalizes = penalizes(&s);
        grid_dependency_launch();
        grid_dependency_wait();
        // By one lane, for the reason that `groups` says.
        if thread_idx_x() == 0 {
            let [reach, slack] = p.column_bounds.load_l2_x2(col * 2);
            of_column.store(0, reach);
            of_column.store(1, slack);
        }
        let upper = |i: u32| {
            let group = (block + i * blocks).min(groups - 1);
            p.uppers.load_l2(col * groups as usize + group as usize)[0]
        };
        // On its way while the threshold is found.
        let mut next = upper(thread_idx_x());
        let wanted = if s.temperature == 0.0 { 1 } else { s.top_k as i32 };
        let threshold = threshold(p.lowers.offset(col * groups as usize), groups, wanted, parts);
        let own_groups = found_groups.offset(warp * own(n_own, warps));
        let (mut first, mut n) = (warp * WARP_SIZE, 0);
        while first < n_own {
            let i = first + lane;
            let highest = next;
            next = upper(i + block_dim_x());
            let group = block + i * blocks;
            let is_wanted = i < n_own && highest >= threshold && row_of(group, 0) < p.n;
            let found = warp_vote_ballot(FULL_MASK, is_wanted);
            if is_wanted {
                own_groups.store(n + (found & ((1 << lane) - 1)).count_ones(), group);
            }
            n += found.count_ones();
            first += block_dim_x();
        }
        if lane == 0 {
            n_found.store(warp, n);
        }
        // Orders all lists and their lengths, and the column's bounds, before their loads.
        sync_threads();
        let column = [of_column.load(0), of_column.load(1)];
        let mut all = 0;
        let mut other = 0;
        while other < warps {
            all += n_found.load(other);
            other += 1;
        }
        // Item `i` of all lists, which have room for `room` each, one after the other.
        let item = |lists: Shared<u32>, lengths: Shared<u32>, room: u32, i: u32| {
            let (mut i, mut other) = (i, 0);
            let mut length = lengths.load(0);
            while i >= length {
                i -= length;
                other += 1;
                length = lengths.load(other);
            }
            lists.load(other * room + i)
        };
        let mut is_prepared = false;
        let mut first_group = 0;
        while first_group < all {
            let own_rows = lists.offset(warp * PER_WARP * GROUP_ROWS);
            let (mut of_warp, mut n) = (0, 0);
            while of_warp < PER_WARP {
                // All loads are under way before the first is needed.
                let mut uppers = [[0.0; ROWS_EACH]; TOGETHER];
                let mut recent = [[0; ROWS_EACH]; TOGETHER];
                let mut rows = [[p.n; ROWS_EACH]; TOGETHER];
                let mut g = 0;
                while g < TOGETHER {
                    let i = first_group + (of_warp + g as u32) * warps + warp;
                    if i < all {
                        let group = item(found_groups, n_found, own(n_own, warps), i);
                        let mut j = 0;
                        while j < ROWS_EACH {
                            let row = row_of(group, lane + j as u32 * WARP_SIZE);
                            // Of no other block's rows, which may be written by now.
                            let at = (if row < p.n { row } else { row_of(group, 0) }) as usize;
                            uppers[g][j] = y.load_l2(at)[0] + bound(p.row_bounds.load_l2_x2(at * 2), column);
                            if penalizes {
                                recent[g][j] = p.counts.load_l2(col * p.n as usize + at)[0];
                            }
                            rows[g][j] = row;
                            j += 1;
                        }
                    }
                    g += 1;
                }
                let mut g = 0;
                while g < TOGETHER {
                    let mut j = 0;
                    while j < ROWS_EACH {
                        // What is not a number may be anything.
                        let upper = uppers[g][j];
                        let is_wanted = upper >= threshold || upper.is_nan() || recent[g][j] > 0;
                        let is_wanted = is_wanted && rows[g][j] < p.n;
                        let found = warp_vote_ballot(FULL_MASK, is_wanted);
                        if is_wanted {
                            own_rows.store(n + (found & ((1 << lane) - 1)).count_ones(), rows[g][j]);
                        }
                        n += found.count_ones();
                        j += 1;
                    }
                    g += 1;
                }
                of_warp += TOGETHER as u32;
                if first_group + of_warp * warps >= all {
                    break;
                }
            }
            if lane == 0 {
                lengths.store(warp, n);
            }
            // Orders all lists and their lengths before their loads.
            sync_threads();
            let mut found = 0;
            let mut other = 0;
            while other < warps {
                found += lengths.load(other);
                other += 1;
            }
            if found > 0 {
                if thread_idx_x() == 0 {
                    p.products.fetch_add(0, found);
                }
                let row_at = |i: u32| item(lists, lengths, PER_WARP * GROUP_ROWS, i.min(found - 1));
                let rows = |first: u32| {
                    let at = |i: u32| p.w.offset(row_at(i) as usize * words as usize);
                    [at(first + lane / 8), at(first + lane / 8 + 4)]
                };
                let mut at = rows(0);
                let mut w = pieces(at, 0, turns - 1, words);
                if !is_prepared {
                    product.prepare(&room, turns * warps);
                    is_prepared = true;
                }
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
                    if warp == adder {
                        let (mut logit, mut index) = (0.0, u32::MAX);
                        if lane < ROWS && first + lane < found {
                            let mut total = 0.0;
                            let mut from = 0;
                            while from < warps {
                                total += parts.load(from * ROWS + lane);
                                from += 1;
                            }
                            index = row_at(first + lane);
                            logit = product.result(total, index, room.worth.load(0));
                            y.store(index as usize, logit);
                        }
                        if p.keeps_best != 0 {
                            offer(p.best, col, logit, index);
                        }
                    }
                    if next >= found {
                        break;
                    }
                    first = next;
                    half ^= 1;
                    adder = if adder + 1 == warps { 0 } else { adder + 1 };
                }
            }
            first_group += PER_WARP * warps;
            if first_group < all {
                // Orders the loads of these lists, and of parts, before what takes their place.
                sync_threads();
            }
        }
    }
}
