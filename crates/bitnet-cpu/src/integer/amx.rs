//! AMX: `tdpbssd` multiplies 16 rows of activations by 16 rows of codes, 64 columns at a time.
//!
//! A piece of the activations is the first operand as it lies in memory, 16 unpacked quads are the second. Sums stay in tiles for all
//! columns: a step of columns is unpacked beside the multiplication of one before it, into a ring that the first-level cache holds. The
//! intrinsics are not stable, so this is assembly.
//!
//! Each product has one operand of each kind at a time, and names of tiles that are left out are not configured. On a Sapphire Rapids with
//! neighbors four multiplications with their loads then take 72 ns, though an operand is loaded twice, and 100 with all eight names; in spells
//! without neighbors both take 28. The likely reason: a core whose other thread is busy has few registers beyond those that have names, and
//! whatever writes a tile waits until one is free.

mod ring;

mod few;
mod sweep;

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod emulator;

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests;

use std::arch::asm;

pub(super) use few::{LEAST, few};
pub(super) use sweep::sweep;

use super::{Piece, Quad, Spun, TOKEN_STEP};

/// Bytes of a row of every operand: 64 activations, a quad, 16 sums.
const ROW: usize = 64;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Four sums and an operand of each kind: six tiles of 16 rows of 64 bytes.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// See [`super::Integer`].
///
/// # Safety
/// - [`crate::Simd::Amx`] is available.
pub(super) unsafe fn spin(n: usize, out: &mut Spun) {
    // As much as other sets do.
    let n = 20 * n.max(1);
    let mut x: Piece = [[0; 64]; TOKEN_STEP];
    x.as_flattened_mut().as_chunks_mut::<4>().0.fill([1, -2, 3, -4]);
    let codes: [Quad; 16] = [[0x0201_0002; 16]; 16];
    let mut sums = [[0; 16]; TOKEN_STEP];
    // SAFETY: AMX is available (this function's contract), `SHAPES` is a valid configuration, and `x`, `codes` and `sums` are
    // tiles of it.
    unsafe {
        asm!(
            "ldtilecfg [{shapes}]",
            "tileloadd tmm4, [{x} + {row}]",
            "tileloadd tmm5, [{codes} + {row}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tdpbssd tmm0, tmm4, tmm5",
            "tdpbssd tmm1, tmm4, tmm5",
            "tdpbssd tmm2, tmm4, tmm5",
            "tdpbssd tmm3, tmm4, tmm5",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {row}], tmm3",
            "tilerelease",
            shapes = in(reg) &raw const SHAPES, x = in(reg) x.as_ptr(), codes = in(reg) codes.as_ptr(),
            sums = in(reg) sums.as_mut_ptr(), row = in(reg) ROW, n = inout(reg) n => _, options(nostack)
        );
    }
    // Each row of each tile has sums of 16 columns' quads; four tiles are alike.
    for rows in sums {
        for (out, sum) in out.sums.iter_mut().zip(rows) {
            *out += 4 * sum;
        }
    }
    out.n_products += (n * 4 * 16 * 16 * 64) as u64;
}
