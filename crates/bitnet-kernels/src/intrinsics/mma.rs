//! Matrix products of a warp on tensor cores. Fragment layouts are those of PTX ISA 9.7.14.5; with `group = lane / 4` and
//! `quad = lane % 4`:
//!
//! - m16n8k32, 8-bit A (16, 32): `a[0]` holds row `group`, columns `4 quad ..` (4 bytes, lowest column lowest); `a[1]` row
//!   `group + 8`; `a[2]`, `a[3]` the same rows, columns `16 + 4 quad ..`. B (32, 8): `b[0]` holds rows `4 quad ..` of column
//!   `group`, `b[1]` rows `16 + 4 quad ..`. C (16, 8): `c[0..2]` row `group`, columns `2 quad, 2 quad + 1`; `c[2..4]` row
//!   `group + 8`.
//! - m16n8k256, single bits: the same with 32 bits for 4 bytes: `a[0]` row `group`, columns `32 quad ..` (lowest column in the
//!   lowest bit); `a[2]`, `a[3]` columns 128 further; `b[0]` rows `32 quad ..` of column `group`, `b[1]` 128 further.
//! - m16n8k16, bfloat16: the same with pairs for quadruples: `a[0]` row `group`, columns `2 quad, 2 quad + 1`; `a[1]` row
//!   `group + 8`; `a[2]`, `a[3]` columns 8 further; `b[0]` rows `2 quad, 2 quad + 1` of column `group`, `b[1]` 8 further.

#[cfg(not(target_arch = "nvptx64"))]
use crate::emulator::{lane, products};

#[cfg(target_arch = "nvptx64")]
#[repr(C)]
struct Quad<T>(T, T, T, T);

#[cfg(target_arch = "nvptx64")]
#[rustfmt::skip]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.mma.m16n8k32.row.col.s8"]
    fn mma_s8_s8(a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: i32, c1: i32, c2: i32, c3: i32) -> Quad<i32>;
    #[link_name = "llvm.nvvm.mma.m16n8k32.row.col.u8.s8"]
    fn mma_u8_s8(a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: i32, c1: i32, c2: i32, c3: i32) -> Quad<i32>;
    #[link_name = "llvm.nvvm.mma.and.popc.m16n8k256.row.col.b1"]
    fn mma_b1(a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: i32, c1: i32, c2: i32, c3: i32) -> Quad<i32>;
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.bf16"]
    fn mma_bf16(a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> Quad<f32>;
    #[link_name = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16.p0"]
    fn ldmatrix_x4(row: *const u8) -> Quad<u32>;
}

macro_rules! mma {
    ($($(#[$doc:meta])* $name:ident, $llvm:ident, $type:ty, $multiply:path;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// All 32 lanes of the warp call this together.
        #[inline(always)]
        #[must_use]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub unsafe fn $name(a: [u32; 4], b: [u32; 2], c: [$type; 4]) -> [$type; 4] {
            #[cfg(target_arch = "nvptx64")]
            {
                // SAFETY: the caller's promise.
                let d = unsafe { $llvm(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]) };
                [d.0, d.1, d.2, d.3]
            }
            #[cfg(not(target_arch = "nvptx64"))]
            return lane::mma(stringify!($name), a, b, c, $multiply);
        }
    )*};
}

mma! {
    /// `C + A B`, A (16, 32) i8, B (32, 8) i8, exact in i32.
    /// `mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32`, PTX ISA 9.7.14.5.
    mma_m16n8k32_s8_s8, mma_s8_s8, i32, products::signed_bytes;
    /// `C + A B`, A (16, 32) u8, B (32, 8) i8, exact in i32.
    /// `mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32`, PTX ISA 9.7.14.5.
    mma_m16n8k32_u8_s8, mma_u8_s8, i32, products::unsigned_and_signed_bytes;
    /// `C + A B`, A (16, 256) and B (256, 8) single bits: how many ones a row and a column have in common. Capabilities 8.x and
    /// 9.x have this instruction; for later ones it is made of dozens of others.
    /// `mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc`, PTX ISA 9.7.14.5.
    mma_m16n8k256_b1, mma_b1, i32, products::common_ones;
    /// `C + A B`, A (16, 16) and B (16, 8) bfloat16, in f32; the order in which the hardware adds is not specified.
    /// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`, PTX ISA 9.7.14.5.
    mma_m16n8k16_bf16, mma_bf16, f32, products::bf16;
}

/// Loads four 8x8 matrices of 16-bit elements: lane `8 i + r` passes the 16-byte row `r` of matrix `i` (16-byte aligned);
/// word `i` of the result is elements `2 (lane % 4)` and the next of row `lane / 4` of matrix `i`.
/// `ldmatrix.sync.aligned.m8n8.x4.shared.b16`, PTX ISA 9.7.14.5.15.
///
/// # Safety
/// All 32 lanes of the warp call this together, each with a readable row.
#[inline(always)]
#[must_use]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn load_matrix_x4(row: super::Shared<u32>) -> [u32; 4] {
    #[cfg(target_arch = "nvptx64")]
    {
        // SAFETY: the caller's promise; the generic address is that of the row.
        let m = unsafe { ldmatrix_x4(row.generic_pointer().cast()) };
        [m.0, m.1, m.2, m.3]
    }
    #[cfg(not(target_arch = "nvptx64"))]
    return lane::load_matrix(row.address());
}
