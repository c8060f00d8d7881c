//! The body of the kernel that draws from a whole vocabulary that was weighed.

use super::row::{DAMAGED_KEY, finish, logit, scan, settings};
use super::whole::{BEST, CUT, HEAT, is_sound, state, tempered, unpack};
use super::{CHUNK, DAMAGED, DRAW_THREADS, DrawWhole, FORBIDDEN, Settings, Whole};
use crate::intrinsics::*;
use bitnet_layout::draw::{Cut, ordered, place, random_bits, unordered};

const WARPS: u32 = DRAW_THREADS / 32;

/// Where the words of [`scan`] end in shared memory.
const SCANNED: u32 = WARPS * 8;

/// In place of the mass of a token with the logit at which the cut is: it depends on those before it.
const TIE: u64 = u64::MAX;

/// How many of `n` equals, behind `before` others, are kept of all.
#[inline(always)]
fn kept(cut: Cut, before: u64, n: u64) -> u64 {
    let ties = u64::from(cut.ties);
    (before + n).min(ties) - before.min(ties)
}

#[inline(always)]
pub(super) unsafe fn draw_whole(p: DrawWhole) {
    let row = block_idx_x() as usize;
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: the caller's promise, which is this kernel's; branches around barriers are the same on the whole block.
    unsafe {
        let s = settings(p.settings, row);
        if p.all == 0 && !s.is_whole() {
            return;
        }
        let token = draw(&p, row, &s);
        // Behind this, nobody reads what the first lane changes.
        sync_threads();
        if thread_idx_x() == 0 {
            if s.is_whole() && token < p.vocab {
                let drawn = p.progress.load_l2(row * 2 + 1)[0];
                p.progress.store(row * 2 + 1, drawn + 1);
            }
            finish(&p.end(), row, &s, token);
        }
    }
}

/// Draws from all tokens of a row: the token, [`DAMAGED`] or [`FORBIDDEN`], on every lane. Leaves the row's state as it was before the
/// step.
///
/// # Safety
/// All lanes of the block call this, which are [`DRAW_THREADS`].
#[inline(always)]
unsafe fn draw(p: &DrawWhole, row: usize, s: &Settings) -> u32 {
    let (me, vocab) = (thread_idx_x(), p.vocab);
    let logits = p.logits.offset(row * vocab as usize);
    let scratch = Shared::<u64>::at(0);
    // Chunk, equals before it, and the place in its mass; what an equal weighs; the token.
    let found = Shared::<u64>::at(SCANNED);
    let masses = found.offset(5);
    // SAFETY: chunks and tokens are compared with how many there are; branches around barriers are the same on the whole block.
    unsafe {
        let state = state(p.state, row);
        let (best, cut) = (state.load(BEST), unpack(state.load(CUT)));
        let heat = f64::from_bits(state.load(HEAT));
        // Orders these loads before the stores.
        sync_threads();
        if me < Whole::WORDS as u32 {
            state.store(me as usize, 0);
        }
        if best == DAMAGED_KEY {
            return DAMAGED;
        }
        if !is_sound(best) {
            return FORBIDDEN;
        }
        if s.temperature == 0.0 {
            return !(best as u32);
        }
        let max = logit(best);
        let of_tie = if cut.ties > 0 {
            tempered(unordered(cut.above), max, s, heat)
        } else {
            0
        };

        // The chunk: each lane has some that follow one another.
        let chunks = vocab.div_ceil(CHUNK);
        let sums = p.sums.offset(row * chunks as usize * 2);
        let each = chunks.div_ceil(DRAW_THREADS);
        let (first, end) = ((me * each).min(chunks), ((me + 1) * each).min(chunks));
        let mut ties = 0;
        let mut chunk = first;
        while chunk < end {
            ties += sums.load(chunk as usize * 2 + 1);
            chunk += 1;
        }
        let (ties_before, _) = scan::<WARPS>(ties, scratch);
        let own = |chunk: u32, before: u64| {
            let (sum, ties) = (sums.load(chunk as usize * 2), sums.load(chunk as usize * 2 + 1));
            (sum + kept(cut, before, ties) * of_tie, ties)
        };
        let (mut sum, mut before) = (0, ties_before);
        let mut chunk = first;
        while chunk < end {
            let (mass, ties) = own(chunk, before);
            sum += mass;
            before += ties;
            chunk += 1;
        }
        let (sum_before, total) = scan::<WARPS>(sum, scratch);
        let drawn = p.progress.load_l2(row * 2 + 1)[0];
        let goal = place(random_bits(s.seed, u64::from(drawn)), total);
        if sum_before <= goal && goal - sum_before < sum {
            let (mut rest, mut before) = (goal - sum_before, ties_before);
            let mut chunk = first;
            while chunk + 1 < end {
                let (mass, ties) = own(chunk, before);
                if rest < mass {
                    break;
                }
                rest -= mass;
                before += ties;
                chunk += 1;
            }
            found.store(0, u64::from(chunk));
            found.store(1, before);
            found.store(2, rest);
        }
        if me == 0 {
            found.store(3, of_tie);
        }
        // Orders what was found before the loads.
        sync_threads();
        // What each token of the chunk weighs.
        let chunk = found.load(0) as u32 * CHUNK;
        let mut i = me;
        while i < CHUNK {
            let mut mass = 0;
            if chunk + i < vocab {
                let l = logits.load_l2((chunk + i) as usize)[0];
                let bits = ordered(l);
                if bits > cut.above {
                    mass = tempered(l, max, s, heat);
                } else if bits == cut.above {
                    mass = TIE;
                }
            }
            masses.store(i, mass);
            i += DRAW_THREADS;
        }
        // Orders the masses before their loads.
        sync_threads();

        // The token: each lane has eight that follow one another.
        const EACH: u32 = CHUNK / DRAW_THREADS;
        let first = me * EACH;
        let mut ties = 0;
        let mut i = 0;
        while i < EACH {
            ties += u64::from(masses.load(first + i) == TIE);
            i += 1;
        }
        let of_tie = found.load(3);
        let ties_before = found.load(1) + scan::<WARPS>(ties, scratch).0;
        // The mass of a token behind `before` equals, and whether it is one of them.
        let own = |i: u32, before: u64| {
            let mass = masses.load(i);
            if mass == TIE {
                (kept(cut, before, 1) * of_tie, 1)
            } else {
                (mass, 0)
            }
        };
        let (mut sum, mut before) = (0, ties_before);
        let mut i = 0;
        while i < EACH {
            let (mass, ties) = own(first + i, before);
            sum += mass;
            before += ties;
            i += 1;
        }
        let goal = found.load(2);
        let (sum_before, _) = scan::<WARPS>(sum, scratch);
        if sum_before <= goal && goal - sum_before < sum {
            let (mut rest, mut before) = (goal - sum_before, ties_before);
            let mut i = 0;
            while i + 1 < EACH {
                let (mass, ties) = own(first + i, before);
                if rest < mass {
                    break;
                }
                rest -= mass;
                before += ties;
                i += 1;
            }
            found.store(4, u64::from(chunk + first + i));
        }
        // Orders the token before the loads.
        sync_threads();
        found.load(4) as u32
    }
}
