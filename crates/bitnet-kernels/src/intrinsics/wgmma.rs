//! Matrix products of a warpgroup, which Hopper alone has: four warps multiply 64 rows at once, with B in shared memory.
//!
//! These instructions run by themselves, in the *async proxy*: what lanes have written to shared memory in the ordinary way is seen
//! there only after [`async_proxy_fence`]. Accumulators may not be touched meanwhile, and LLVM knows nothing of that, so that
//! everything from the fence of the registers to the wait for the result is one block of assembly.

use super::Shared;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Orders this lane's earlier writes of shared memory, and copies that it has waited for, before what the async proxy does after a
/// barrier. `fence.proxy.async.shared::cta`, PTX ISA 9.7.13.4; sm_90.
#[inline(always)]
pub fn async_proxy_fence() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: a fence has no precondition.
    unsafe {
        asm!(
            "fence.proxy.async.shared::cta;",
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::warpgroup::async_proxy_fence();
}

/// Bytes from one row of 16-byte pieces to the next in [`warpgroup_mma_m64n128k128_s8`]'s B, and of 8 of them.
const ROW_BYTES: u32 = 128;

/// Byte offset of 16-byte piece `piece` (0..8) of column `col` in the B of [`warpgroup_mma_m64n128k128_s8`]: the 128-byte swizzle
/// of PTX ISA 9.7.15.5.1, in which neighbors in a column of pieces lie in different banks.
#[inline(always)]
#[must_use]
pub const fn swizzled_128(col: u32, piece: u32) -> u32 {
    col * ROW_BYTES + (piece ^ (col % 8)) * 16
}

/// The operands of four `m64n128k32` products: 64 accumulators, one of four A fragments, one of four descriptors.
#[cfg(all(target_arch = "nvptx64", sm_90a))]
macro_rules! product {
    ($a:literal, $b:literal) => {
        concat!(
            "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {{",
            "{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}, ",
            "{16}, {17}, {18}, {19}, {20}, {21}, {22}, {23}, {24}, {25}, {26}, {27}, {28}, {29}, {30}, {31}, ",
            "{32}, {33}, {34}, {35}, {36}, {37}, {38}, {39}, {40}, {41}, {42}, {43}, {44}, {45}, {46}, {47}, ",
            "{48}, {49}, {50}, {51}, {52}, {53}, {54}, {55}, {56}, {57}, {58}, {59}, {60}, {61}, {62}, {63}",
            "}}, {{", $a, "}}, {", $b, "}, 1;\n",
        )
    };
}

/// `C + A B` of a warpgroup, A (64, 128) i8 in registers, B (128, 128) i8 in shared memory, exact in i32: four
/// `wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8` and the wait for them, PTX ISA 9.7.15; sm_90a.
///
/// Warp w of the four has rows `16 w ..`. `a[s]` is the A fragment of columns `32 s ..`, and `acc[4 j ..][..4]` the C fragment of columns
/// `8 j ..`, both as those of `mma.m16n8k32` (see the module `mma`). B has 128 bytes for each of its columns, in pieces of
/// 16 at [`swizzled_128`].
///
/// # Safety
/// All lanes of four consecutive warps, of which the first one's number is a multiple of 4, call this together. `b` lies on a multiple of
/// 1,024 bytes; a barrier after the writers' [`async_proxy_fence`] came before.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn warpgroup_mma_m64n128k128_s8(acc: &mut [i32; 64], a: [[u32; 4]; 4], b: Shared<u32>) {
    #[cfg(all(target_arch = "nvptx64", sm_90a))]
    {
        // Address, a leading dimension that this swizzle has no use for, 1,024 bytes from 8 columns to the next 8, swizzle of 128 bytes
        // (PTX ISA 9.7.15.5.1, "Matrix descriptor"); columns 32 further are 32 bytes further.
        let b = u64::from(b.address() & 0x3_ffff) >> 4 | 1 << 16 | 64 << 32 | 1 << 62;
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "wgmma.fence.sync.aligned;",
                product!("{64}, {65}, {66}, {67}", 80),
                product!("{68}, {69}, {70}, {71}", 81),
                product!("{72}, {73}, {74}, {75}", 82),
                product!("{76}, {77}, {78}, {79}", 83),
                "wgmma.commit_group.sync.aligned;",
                "wgmma.wait_group.sync.aligned 0;",
                inout(reg32) acc[0], inout(reg32) acc[1], inout(reg32) acc[2], inout(reg32) acc[3],
                inout(reg32) acc[4], inout(reg32) acc[5], inout(reg32) acc[6], inout(reg32) acc[7],
                inout(reg32) acc[8], inout(reg32) acc[9], inout(reg32) acc[10], inout(reg32) acc[11],
                inout(reg32) acc[12], inout(reg32) acc[13], inout(reg32) acc[14], inout(reg32) acc[15],
                inout(reg32) acc[16], inout(reg32) acc[17], inout(reg32) acc[18], inout(reg32) acc[19],
                inout(reg32) acc[20], inout(reg32) acc[21], inout(reg32) acc[22], inout(reg32) acc[23],
                inout(reg32) acc[24], inout(reg32) acc[25], inout(reg32) acc[26], inout(reg32) acc[27],
                inout(reg32) acc[28], inout(reg32) acc[29], inout(reg32) acc[30], inout(reg32) acc[31],
                inout(reg32) acc[32], inout(reg32) acc[33], inout(reg32) acc[34], inout(reg32) acc[35],
                inout(reg32) acc[36], inout(reg32) acc[37], inout(reg32) acc[38], inout(reg32) acc[39],
                inout(reg32) acc[40], inout(reg32) acc[41], inout(reg32) acc[42], inout(reg32) acc[43],
                inout(reg32) acc[44], inout(reg32) acc[45], inout(reg32) acc[46], inout(reg32) acc[47],
                inout(reg32) acc[48], inout(reg32) acc[49], inout(reg32) acc[50], inout(reg32) acc[51],
                inout(reg32) acc[52], inout(reg32) acc[53], inout(reg32) acc[54], inout(reg32) acc[55],
                inout(reg32) acc[56], inout(reg32) acc[57], inout(reg32) acc[58], inout(reg32) acc[59],
                inout(reg32) acc[60], inout(reg32) acc[61], inout(reg32) acc[62], inout(reg32) acc[63],
                in(reg32) a[0][0], in(reg32) a[0][1], in(reg32) a[0][2], in(reg32) a[0][3],
                in(reg32) a[1][0], in(reg32) a[1][1], in(reg32) a[1][2], in(reg32) a[1][3],
                in(reg32) a[2][0], in(reg32) a[2][1], in(reg32) a[2][2], in(reg32) a[2][3],
                in(reg32) a[3][0], in(reg32) a[3][1], in(reg32) a[3][2], in(reg32) a[3][3],
                in(reg64) b, in(reg64) b + 2, in(reg64) b + 4, in(reg64) b + 6,
                options(nostack, preserves_flags),
            );
        }
    }
    // Other modules have no kernel that comes here.
    #[cfg(all(target_arch = "nvptx64", not(sm_90a)))]
    let _ = (acc, a, b);
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::warpgroup::mma("warpgroup_mma_m64n128k128_s8", acc, a, b.address(), swizzled_128);
}
