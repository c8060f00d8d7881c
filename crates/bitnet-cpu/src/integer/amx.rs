//! AMX: `tdpbssd` multiplies 16 rows of activations by 16 rows of codes, 64 columns at a time.
//!
//! A piece of the activations is the first operand as it lies in memory, 16 unpacked quads are the second. The intrinsics are not stable, so this is assembly.

use std::arch::asm;

use super::{Block, Piece, Quad, Spun, TOKEN_STEP};

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

/// All eight tiles: 16 rows of 64 bytes.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// See [`super::Integer`].
///
/// # Safety
/// - [`crate::Simd::Amx`] is available.
pub(super) unsafe fn multiply(block: &mut Block<'_>) {
    block.check();
    let [low, high] = &mut block.sums;
    // SAFETY: AMX is available (this function's contract), and `SHAPES` is a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) };
    for token in (0..block.n_tokens).step_by(2 * TOKEN_STEP) {
        let first = token / TOKEN_STEP * block.stride;
        // A last step of rows that is alone is multiplied twice, and once for nothing.
        let mut spare = [[[0; 16]; TOKEN_STEP]; 2];
        let [spare_low, spare_high] = &mut spare;
        let (x, next) = if block.n_tokens - token > TOKEN_STEP {
            let next = token + TOKEN_STEP;
            (
                &block.x[first + block.stride..],
                [low[next..].as_mut_ptr(), high[next..].as_mut_ptr()],
            )
        } else {
            (
                &block.x[first..],
                [spare_low.as_mut_ptr(), spare_high.as_mut_ptr()],
            )
        };
        let step = Step {
            x: [block.x[first..].as_ptr(), x.as_ptr()],
            codes: block.codes.map(<[_]>::as_ptr),
            n_steps: block.codes[0].len() / 16,
            sums: [
                low[token..].as_mut_ptr(),
                high[token..].as_mut_ptr(),
                next[0],
                next[1],
            ],
        };
        // SAFETY: `check` found pieces, quads and sums for every step of rows to be inside their slices, and the second step
        // is one of them or the spare room. Tiles are configured above.
        unsafe {
            match block.more {
                true => step.load(),
                false => step.clear(),
            }
            step.multiply();
        }
    }
    // SAFETY: AMX is available. Tiles in their initial state are not saved when the thread is switched.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

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
            "tileloadd tmm6, [{codes} + {row}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm6",
            "tdpbssd tmm2, tmm4, tmm6",
            "tdpbssd tmm3, tmm4, tmm6",
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

/// One pass over the columns of two steps of rows: tiles 0 and 1 are sums of the first, 2 and 3 of the second.
struct Step {
    x: [*const Piece; 2],
    codes: [*const Quad; 2],
    n_steps: usize,
    sums: [*mut [i32; 16]; 4],
}

impl Step {
    /// # Safety
    /// - AMX is available and all tiles are configured as 16 rows of 64 bytes.
    unsafe fn clear(&self) {
        // SAFETY: the contract of this function.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            );
        }
    }

    /// # Safety
    /// - As for [`Step::clear`].
    /// - `sums` are 16 readable rows each.
    unsafe fn load(&self) {
        let [low, high, next_low, next_high] = self.sums;
        // SAFETY: the contract of this function.
        unsafe {
            asm!(
                "tileloadd tmm0, [{low} + {row}]",
                "tileloadd tmm1, [{high} + {row}]",
                "tileloadd tmm2, [{next_low} + {row}]",
                "tileloadd tmm3, [{next_high} + {row}]",
                low = in(reg) low, high = in(reg) high, next_low = in(reg) next_low, next_high = in(reg) next_high,
                row = in(reg) ROW, options(nostack, readonly)
            );
        }
    }

    /// # Safety
    /// - As for [`Step::clear`].
    /// - `x` are `n_steps` readable pieces each, `codes` 16 times as many readable quads each, and `sums` 16 writable rows
    ///   each.
    unsafe fn multiply(&self) {
        let [low, high, next_low, next_high] = self.sums;
        // SAFETY: the contract of this function.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm6, [{low}  + {row}]",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm7, [{high} + {row}]",
                "tileloadd tmm5, [{x1} + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "add {x0}, 1024",
                "add {x1}, 1024",
                "add {low}, 1024",
                "add {high}, 1024",
                "dec {n}",
                "jnz 2b",
                x0 = inout(reg) self.x[0] => _,
                x1 = inout(reg) self.x[1] => _,
                low = inout(reg) self.codes[0] => _,
                high = inout(reg) self.codes[1] => _,
                n = inout(reg) self.n_steps => _,
                row = in(reg) ROW,
                options(nostack, readonly)
            );
            asm!(
                "tilestored [{low} + {row}], tmm0",
                "tilestored [{high} + {row}], tmm1",
                "tilestored [{next_low} + {row}], tmm2",
                "tilestored [{next_high} + {row}], tmm3",
                low = in(reg) low, high = in(reg) high, next_low = in(reg) next_low, next_high = in(reg) next_high,
                row = in(reg) ROW, options(nostack)
            );
        }
    }
}
