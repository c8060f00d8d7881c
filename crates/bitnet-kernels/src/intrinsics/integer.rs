//! Integer arithmetic of one lane.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

#[cfg(target_arch = "nvptx64")]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.idp4a.s.s"]
    fn idp4a_s_s(a: i32, b: i32, c: i32) -> i32;
    #[link_name = "llvm.nvvm.idp4a.u.s"]
    fn idp4a_u_s(a: i32, b: i32, c: i32) -> i32;
    #[link_name = "llvm.nvvm.prmt"]
    fn prmt(a: i32, b: i32, selector: i32) -> i32;
}

/// `c + sum of a[i] * b[i]` over the four signed bytes of each. `dp4a.s32.s32`, PTX ISA 9.7.1.23.
#[inline(always)]
#[must_use]
pub fn dp4a(a: u32, b: u32, c: i32) -> i32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { idp4a_s_s(a as i32, b as i32, c) };
    #[cfg(not(target_arch = "nvptx64"))]
    return a
        .to_le_bytes()
        .into_iter()
        .zip(b.to_le_bytes())
        .fold(c, |c, (a, b)| {
            c.wrapping_add(i32::from(a as i8) * i32::from(b as i8))
        });
}

/// [`dp4a`] with the bytes of `a` unsigned. `dp4a.u32.s32`, PTX ISA 9.7.1.23.
#[inline(always)]
#[must_use]
pub fn dp4a_u8_i8(a: u32, b: u32, c: i32) -> i32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { idp4a_u_s(a as i32, b as i32, c) };
    #[cfg(not(target_arch = "nvptx64"))]
    return a
        .to_le_bytes()
        .into_iter()
        .zip(b.to_le_bytes())
        .fold(c, |c, (a, b)| c.wrapping_add(i32::from(a) * i32::from(b as i8)));
}

/// Byte `i` of the result is byte `selector >> 4 i & 7` of `b:a`, whose bytes 0 to 3 are `a`; bit 3 of a selector nibble
/// must be 0. `prmt.b32`, PTX ISA 9.7.9.7.
#[inline(always)]
#[must_use]
pub fn byte_permute(a: u32, b: u32, selector: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { prmt(a as i32, b as i32, selector as i32) } as u32;
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
        u32::from_le_bytes(core::array::from_fn(|i| {
            bytes[(selector >> (4 * i) & 7) as usize]
        }))
    }
}

/// Four integers, each clamped to an i8, as the bytes of a word, `v[0]` lowest.
/// `cvt.pack.sat.s8.s32.b32`, PTX ISA 9.7.9.22.
#[inline(always)]
#[must_use]
pub fn pack_i8x4(v: [i32; 4]) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let word: u32;
        // SAFETY: arithmetic without preconditions.
        unsafe {
            asm!("{{ .reg .b32 high; cvt.pack.sat.s8.s32.b32 high, {3}, {2}, 0;",
                "cvt.pack.sat.s8.s32.b32 {4}, {1}, {0}, high; }}",
                in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], out(reg32) word,
                options(pure, nomem, nostack, preserves_flags));
        }
        word
    }
    #[cfg(not(target_arch = "nvptx64"))]
    return u32::from_le_bytes(v.map(|v| v.clamp(-128, 127) as i8 as u8));
}
