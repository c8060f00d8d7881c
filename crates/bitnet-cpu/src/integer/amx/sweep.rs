//! Many rows of activations: 32 of them by two tiles of weights at a time.

use std::arch::asm;

use bitnet_layout::row_tiles::Group;

use super::super::{AHEAD as BYTES_AHEAD, Piece, SWEEP_ROWS, SWEEP_TURNS, Sweep, TOKEN_STEP, Turn};
use super::ring::{self, AHEAD, GROUPS, OfTwo, Slot, unpack_group, unpack_groups};
use super::{ROW, SHAPES};

/// Sums of two tiles and [`SWEEP_ROWS`] rows of activations.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Room([[i32; 16]; 2 * SWEEP_ROWS]);

/// What a block does next: which columns are multiplied, and which unpacked.
struct Pass {
    x: [*const Piece; 2],
    codes: *const Slot<2>,
    groups: [*const Group; 2],
    to: *mut Slot<2>,
}

impl Pass {
    /// Multiplies `n` steps of columns, at least one, and unpacks as many.
    ///
    /// # Safety
    /// - AMX is available and configured as [`SHAPES`].
    /// - `x` are `n` readable pieces each, and `groups` `n` readable steps of columns each.
    /// - `codes` and `to` are slots of one [`OfTwo`], and those of `n` steps from `codes` on that are not unpacked now are unpacked.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn run(&mut self, n: usize) {
        // SAFETY: the contract of this function; past the last slot `codes` and `to` go on with the first.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm5, [{codes} + {row}]",
                "tileloadd tmm4, [{x0} + {row}]",
                "tdpbssd tmm0, tmm4, tmm5",
                unpack_groups!("w0", 0, "0"),
                "tileloadd tmm5, [{codes} + {row} + 1024]",
                "tdpbssd tmm1, tmm4, tmm5",
                unpack_groups!("w0", 2, "0"),
                "tileloadd tmm4, [{x1} + {row}]",
                "tdpbssd tmm3, tmm4, tmm5",
                unpack_groups!("w1", 0, "1"),
                "tileloadd tmm5, [{codes} + {row}]",
                "tdpbssd tmm2, tmm4, tmm5",
                unpack_groups!("w1", 2, "1"),
                "add {x0}, 1024",
                "add {x1}, 1024",
                "add {codes}, 2048",
                "btr {codes}, 13",
                "add {w0}, 256",
                "add {w1}, 256",
                "add {to}, 2048",
                "btr {to}, 13",
                "dec {n}",
                "jnz 2b",
                x0 = inout(reg) self.x[0],
                x1 = inout(reg) self.x[1],
                codes = inout(reg) self.codes,
                w0 = inout(reg) self.groups[0],
                w1 = inout(reg) self.groups[1],
                to = inout(reg) self.to,
                n = inout(reg) n => _,
                row = in(reg) ROW,
                ask = in(reg) BYTES_AHEAD,
                in("zmm4") ring::mask(),
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                options(nostack)
            );
        }
    }
}

/// The step of columns that is unpacked next, of a pair of tiles.
struct Next {
    pair: usize,
    step: usize,
}

impl Next {
    /// `n` steps further, which are of the same pair.
    fn skip(&mut self, n: usize, job: &Sweep<'_>) {
        self.step += n;
        if self.step == job.stride {
            // The rows after these have the same pairs.
            (self.pair, self.step) = ((self.pair + 1) % job.pairs.len(), 0);
        }
    }
}

/// See [`super::super::Integer`].
///
/// # Safety
/// - [`crate::Simd::Amx`] is available.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in super::super) unsafe fn sweep(job: &Sweep<'_>, turn: &mut dyn FnMut(Turn<'_>)) {
    job.check();
    let n_steps = job.stride;
    let mut codes = OfTwo::new();
    let mut rooms = [Room([[0; 16]; 2 * SWEEP_ROWS]); 2];
    let mut next = Next { pair: 0, step: 0 };
    for slot in &mut codes.0[..AHEAD] {
        for (tile, to) in job.pairs[next.pair].iter().zip(slot) {
            ring::unpack(tile, next.step, to);
        }
        next.skip(1, job);
    }
    let first = codes.0.as_mut_ptr();
    let mut pass = Pass {
        x: [job.x.as_ptr(); 2],
        codes: first,
        groups: [std::ptr::null(); 2],
        to: first.wrapping_add(AHEAD),
    };
    // SAFETY: AMX is available (this function's contract), and `SHAPES` is a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) };
    // The block before, and whether the next has the first room.
    let (mut before, mut is_first) = (None, true);
    for token in (0..job.n_tokens).step_by(SWEEP_ROWS) {
        let rows = &job.x[token / TOKEN_STEP * n_steps..];
        // A last step of rows that is alone is multiplied twice, and once for nothing.
        let is_alone = job.n_tokens - token <= TOKEN_STEP;
        let others = if is_alone { rows } else { &rows[n_steps..] };
        for pair in 0..job.pairs.len() {
            let now = (token, pair);
            let (first, second) = rooms.split_at_mut(1);
            let (room, done) = if is_first {
                (&mut first[0], &second[0])
            } else {
                (&mut second[0], &first[0])
            };
            pass.x = [rows.as_ptr(), others.as_ptr()];
            // SAFETY: AMX is available and configured above.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
            for index in 0..SWEEP_TURNS {
                let before = before.map(|block| (block, &done.0));
                turn(Turn {
                    index,
                    now: Some(now),
                    before,
                });
                let mut left = n_steps * (index + 1) / SWEEP_TURNS - n_steps * index / SWEEP_TURNS;
                while left > 0 {
                    let tiles = &job.pairs[next.pair];
                    let n_whole = tiles[0].len().min(tiles[1].len()) / GROUPS;
                    let ends: [[Group; GROUPS]; 2];
                    let n = if next.step < n_whole {
                        pass.groups = tiles.map(|tile| tile[GROUPS * next.step..].as_ptr());
                        left.min(n_whole - next.step)
                    } else {
                        // The end of a tile that is no whole step, or of one that is not there.
                        ends = tiles.map(|tile| ring::groups(tile, next.step));
                        pass.groups = [ends[0].as_ptr(), ends[1].as_ptr()];
                        1
                    };
                    // SAFETY: AMX is available and configured above. `check` found `n_steps` pieces for each step of rows, which all
                    // passes of a block together have; tiles have `n_whole` steps, and `ends` are one; each step that is multiplied was
                    // unpacked `AHEAD` steps before.
                    unsafe { pass.run(n) };
                    left -= n;
                    next.skip(n, job);
                }
            }
            let sums = room.0.as_mut_ptr();
            // SAFETY: AMX is available and configured above, and a room is four times 16 rows of 64 writable bytes.
            unsafe {
                asm!(
                    "tilestored [{sums} + {row}], tmm0",
                    "tilestored [{sums} + {row} + 2048], tmm1",
                    "tilestored [{sums} + {row} + 1024], tmm2",
                    "tilestored [{sums} + {row} + 3072], tmm3",
                    sums = in(reg) sums, row = in(reg) ROW, options(nostack)
                );
            }
            (before, is_first) = (Some(now), !is_first);
        }
    }
    // SAFETY: AMX is available. Tiles in their initial state are not saved when the thread is switched.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
    let done = &rooms[usize::from(is_first)];
    for index in 0..SWEEP_TURNS {
        let before = before.map(|block| (block, &done.0));
        turn(Turn {
            index,
            now: None,
            before,
        });
    }
}
