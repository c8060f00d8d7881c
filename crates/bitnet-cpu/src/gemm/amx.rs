//! AMX: `tdpbssd` multiplies 16 rows of activations by 16 rows of codes, 64 columns at a time.
//!
//! A piece of the activations is the first operand as it lies in memory, 16 unpacked quads are the second. The intrinsics are not stable, so this is assembly.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

use super::{Block, Piece, Quad, TOKEN_STEP};

/// Whether the processor has AMX with 8-bit integers and the system lets this process use it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        /// EDX of CPUID leaf 7: AMX tiles, and their 8-bit products.
        const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
        let has_leaf = __cpuid(0).eax >= 7;
        has_leaf && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8 && permit()
    })
}

/// Asks Linux for the tile registers: their state is large, so a process gets it only on request.
#[cfg(target_os = "linux")]
fn permit() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two integers and touches no memory of ours; an old kernel refuses it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permit() -> bool {
    false
}

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

/// See [`super::Gemm::multiply`].
///
/// # Safety
/// - [`is_available`] is true.
pub(super) unsafe fn multiply(block: Block<'_>) {
    block.check();
    let Block {
        codes,
        x,
        stride,
        n_tokens,
        sums: [low, high],
        more,
    } = block;
    // SAFETY: AMX is available (this function's contract), and `SHAPES` is a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly)) };
    for token in (0..n_tokens).step_by(2 * TOKEN_STEP) {
        let first = token / TOKEN_STEP * stride;
        let both = n_tokens - token > TOKEN_STEP;
        let step = Step {
            x: [
                x[first..].as_ptr(),
                x[if both { first + stride } else { first }..].as_ptr(),
            ],
            codes: codes.map(<[_]>::as_ptr),
            n_steps: codes[0].len() / 16,
            sums: [low[token..].as_mut_ptr(), high[token..].as_mut_ptr()],
        };
        // SAFETY: `check` found pieces, quads and sums for every step of rows to be inside their slices, and there are two
        // such steps from `token` on where `both`. Tiles are configured above.
        unsafe {
            match more {
                true => step.load(both),
                false => step.clear(),
            }
            match both {
                true => step.both(),
                false => step.one(),
            }
        }
    }
    // SAFETY: AMX is available. Tiles in their initial state are not saved when the thread is switched.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// One pass over the columns: tiles 0 and 1 are sums of the first step of rows, 2 and 3 of the next.
struct Step {
    x: [*const Piece; 2],
    codes: [*const Quad; 2],
    n_steps: usize,
    sums: [*mut [i32; 16]; 2],
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
    /// - `sums` are 16 readable rows, 32 when `both`.
    unsafe fn load(&self, both: bool) {
        let [low, high] = self.sums;
        // SAFETY: the contract of this function.
        unsafe {
            asm!(
                "tileloadd tmm0, [{low} + {row}]",
                "tileloadd tmm1, [{high} + {row}]",
                low = in(reg) low, high = in(reg) high, row = in(reg) ROW, options(nostack, readonly)
            );
            if both {
                asm!(
                    "tileloadd tmm2, [{low} + {row}]",
                    "tileloadd tmm3, [{high} + {row}]",
                    low = in(reg) low.add(16), high = in(reg) high.add(16), row = in(reg) ROW,
                    options(nostack, readonly)
                );
            }
        }
    }

    /// 32 rows of activations.
    ///
    /// # Safety
    /// - As for [`Step::clear`].
    /// - `x` are `n_steps` readable pieces each, `codes` 16 times as many readable quads each, and `sums` 32 writable rows
    ///   each.
    unsafe fn both(&self) {
        let [low, high] = self.sums;
        // SAFETY: the contract of this function.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm6, [{low}  + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{high} + {row}]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {row}]",
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
                "tilestored [{low0} + {row}], tmm0",
                "tilestored [{high0} + {row}], tmm1",
                "tilestored [{low1} + {row}], tmm2",
                "tilestored [{high1} + {row}], tmm3",
                low0 = in(reg) low, high0 = in(reg) high, low1 = in(reg) low.add(16), high1 = in(reg) high.add(16),
                row = in(reg) ROW, options(nostack)
            );
        }
    }

    /// 16 rows of activations.
    ///
    /// # Safety
    /// - As for [`Step::both`], for the first of `x` and 16 rows of sums.
    unsafe fn one(&self) {
        let [low, high] = self.sums;
        // SAFETY: the contract of this function.
        unsafe {
            asm!(
                "2:",
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm6, [{low}  + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{high} + {row}]",
                "tdpbssd tmm1, tmm4, tmm7",
                "add {x}, 1024",
                "add {low}, 1024",
                "add {high}, 1024",
                "dec {n}",
                "jnz 2b",
                x = inout(reg) self.x[0] => _,
                low = inout(reg) self.codes[0] => _,
                high = inout(reg) self.codes[1] => _,
                n = inout(reg) self.n_steps => _,
                row = in(reg) ROW,
                options(nostack, readonly)
            );
            asm!(
                "tilestored [{low} + {row}], tmm0",
                "tilestored [{high} + {row}], tmm1",
                low = in(reg) low, high = in(reg) high, row = in(reg) ROW, options(nostack)
            );
        }
    }
}
