//! A few rows of activations, a step of them at most, by four tiles of weights: what reads weights as fast as memory gives them where
//! VNNI has to multiply them with more rows than it can.

use std::arch::asm;

use bitnet_layout::row_tiles::Group;

use super::super::{AHEAD as BYTES_AHEAD, Few, Piece, TILES, TOKEN_STEP};
use super::ring::{self, AHEAD, GROUPS, OfFour, Slot, unpack_group, unpack_groups};
use super::{ROW, SHAPES};

/// Fewest rows of activations for which this is faster than VNNI, which multiplies no rows that are not there.
pub(in super::super) const LEAST: usize = 5;

/// Steps of columns that are asked for ahead of their unpacking.
const ASKED: usize = BYTES_AHEAD / (GROUPS * size_of::<Group>());

/// Sums of [`TILES`] tiles.
#[repr(C, align(64))]
struct Room([[[i32; 16]; TOKEN_STEP]; TILES]);

const _: () = assert!(TILES == 4);

/// What is multiplied next, and what is unpacked.
struct Pass {
    x: *const Piece,
    codes: *const Slot<TILES>,
    groups: [*const Group; TILES],
    to: *mut Slot<TILES>,
    /// Bytes from what is unpacked to what is asked for.
    ask: usize,
}

impl Pass {
    /// Multiplies `n` steps of columns, at least one, and unpacks as many.
    ///
    /// # Safety
    /// - AMX is available and configured as [`SHAPES`].
    /// - `x` is `n` readable pieces, and `groups` are `n` readable steps of columns each.
    /// - `codes` and `to` are slots of one [`OfFour`], and those of `n` steps from `codes` on that are not unpacked now are unpacked.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn run(&mut self, n: usize) {
        // SAFETY: the contract of this function; past the last slot `codes` and `to` go on with the first. What is asked for is not read.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm5, [{codes} + {row}]",
                "tdpbssd tmm0, tmm4, tmm5",
                unpack_groups!("w0", 0, "0"),
                unpack_groups!("w0", 2, "0"),
                "tileloadd tmm5, [{codes} + {row} + 1024]",
                "tdpbssd tmm1, tmm4, tmm5",
                unpack_groups!("w1", 0, "1"),
                unpack_groups!("w1", 2, "1"),
                "tileloadd tmm5, [{codes} + {row} + 2048]",
                "tdpbssd tmm2, tmm4, tmm5",
                unpack_groups!("w2", 0, "2"),
                unpack_groups!("w2", 2, "2"),
                "tileloadd tmm5, [{codes} + {row} + 3072]",
                "tdpbssd tmm3, tmm4, tmm5",
                unpack_groups!("w3", 0, "3"),
                unpack_groups!("w3", 2, "3"),
                "add {x}, 1024",
                "add {codes}, 4096",
                "btr {codes}, 14",
                "add {w0}, 256",
                "add {w1}, 256",
                "add {w2}, 256",
                "add {w3}, 256",
                "add {to}, 4096",
                "btr {to}, 14",
                "dec {n}",
                "jnz 2b",
                x = inout(reg) self.x,
                codes = inout(reg) self.codes,
                w0 = inout(reg) self.groups[0],
                w1 = inout(reg) self.groups[1],
                w2 = inout(reg) self.groups[2],
                w3 = inout(reg) self.groups[3],
                to = inout(reg) self.to,
                n = inout(reg) n => _,
                row = in(reg) ROW,
                ask = in(reg) self.ask,
                in("zmm4") ring::mask(),
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                options(nostack)
            );
        }
    }
}

/// See [`super::super::Integer`].
///
/// # Safety
/// - [`crate::Simd::Amx`] is available.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in super::super) unsafe fn few(job: &Few<'_>, out: &mut [[i32; 16]]) {
    let n = job.n_tokens;
    assert!(
        (1..=TOKEN_STEP).contains(&n) && out.len() == TILES * n,
        "{n} rows"
    );
    let (n_steps, n_groups) = (job.x.len(), job.tiles[0].len());
    assert!(n_groups.div_ceil(GROUPS) == n_steps, "pieces of activations");
    assert!(
        job.tiles.iter().all(|tile| tile.len() == n_groups),
        "groups of a tile"
    );
    let n_whole = n_groups / GROUPS;
    let mut codes = OfFour::new();
    let mut sums = Room([[[0; 16]; TOKEN_STEP]; TILES]);
    for (step, slot) in codes.0[..AHEAD].iter_mut().enumerate() {
        for (tile, to) in job.tiles.iter().zip(slot) {
            ring::unpack(tile, step, to);
        }
    }
    let first = codes.0.as_mut_ptr();
    let mut pass = Pass {
        x: job.x.as_ptr(),
        codes: first,
        groups: [std::ptr::null(); TILES],
        to: first.wrapping_add(AHEAD),
        ask: 0,
    };
    // What is asked for lies in these tiles, and near their end in the next, which lie as far from each other as these.
    let later = job.next[0]
        .as_ptr()
        .addr()
        .wrapping_sub(job.tiles[0].as_ptr().addr());
    let later = later
        .wrapping_sub(n_groups * size_of::<Group>())
        .wrapping_add(BYTES_AHEAD);
    let n_here = n_whole.saturating_sub(ASKED);
    // SAFETY: AMX is available (this function's contract), and `SHAPES` is a valid configuration.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly));
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem)
        );
    }
    let mut step = 0;
    while step < n_steps {
        let unpacked = step + AHEAD;
        let ends: [[Group; GROUPS]; TILES];
        let n = if unpacked < n_whole {
            pass.groups = job.tiles.map(|tile| tile[GROUPS * unpacked..].as_ptr());
            let end = if unpacked < n_here { n_here } else { n_whole };
            pass.ask = if unpacked < n_here { BYTES_AHEAD } else { later };
            end - unpacked
        } else {
            // An end that is no whole step, or what is past it.
            ends = job.tiles.map(|tile| ring::groups(tile, unpacked));
            pass.groups = std::array::from_fn(|i| ends[i].as_ptr());
            1
        };
        // SAFETY: AMX is available and configured above. There are `n_steps` pieces, asserted above, which all passes together have;
        // tiles have `n_whole` steps, and `ends` are one; each step that is multiplied was unpacked `AHEAD` steps before.
        unsafe { pass.run(n) };
        step += n;
    }
    // SAFETY: AMX is available and configured above, and `sums` are four times 16 rows of 64 writable bytes.
    unsafe {
        asm!(
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + 1024], tmm1",
            "tilestored [{sums} + {row} + 2048], tmm2",
            "tilestored [{sums} + {row} + 3072], tmm3",
            "tilerelease",
            sums = in(reg) sums.0.as_mut_ptr(), row = in(reg) ROW, options(nostack)
        );
    }
    for (out, sums) in out.chunks_exact_mut(n).zip(&sums.0) {
        out.copy_from_slice(&sums[..n]);
    }
}
