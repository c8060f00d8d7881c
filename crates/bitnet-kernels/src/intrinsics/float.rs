//! Floating-point arithmetic of one lane.
//!
//! `+`, `-`, `*` and `/` on f32 compile to `add.rn`, `sub.rn`, `mul.rn` and `div.rn`: correctly rounded and never fused,
//! so they give the host's bits. The functions here do too, except those whose names end in `_approx`.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

#[cfg(target_arch = "nvptx64")]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.ex2.approx.ftz.f"]
    fn ex2_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rcp.approx.ftz.f"]
    fn rcp_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rsqrt.approx.ftz.f"]
    fn rsqrt_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.sqrt.rn.f"]
    fn sqrt_rn(x: f32) -> f32;
    #[link_name = "llvm.nvvm.fma.rn.f"]
    fn fma_rn(a: f32, b: f32, c: f32) -> f32;
    #[link_name = "llvm.nvvm.f2i.rn"]
    fn f2i_rn(x: f32) -> i32;
}

/// 2^x with a relative error below 2^-22 on the device, 0 below 2^-126; the host's `exp2` in the emulator, so bits may differ
/// there. `ex2.approx.ftz.f32`, PTX ISA 9.7.3.21: one instruction, where keeping subnormals takes four.
#[inline(always)]
#[must_use]
pub fn exp2_approx(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { ex2_approx(x) };
    #[cfg(not(target_arch = "nvptx64"))]
    return x.exp2();
}

/// `1 / x` with an error of at most 1 ulp on the device; the host's quotient in the emulator. `rcp.approx.ftz.f32`, PTX ISA
/// 9.7.3.13: one instruction, where the exact quotient takes about ten, one after the other.
#[inline(always)]
#[must_use]
pub fn reciprocal_approx(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { rcp_approx(x) };
    #[cfg(not(target_arch = "nvptx64"))]
    return 1.0 / x;
}

/// `1 / sqrt(x)` with a relative error below 2^-22 on the device; the host's in the emulator. `rsqrt.approx.ftz.f32`, PTX ISA
/// 9.7.3.17.
#[inline(always)]
#[must_use]
pub fn rsqrt_approx(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { rsqrt_approx_ftz(x) };
    #[cfg(not(target_arch = "nvptx64"))]
    return 1.0 / x.sqrt();
}

/// Square root, correctly rounded; `1.0 / sqrt(x)` is the exact counterpart of `rsqrt.approx`. `sqrt.rn.f32`, PTX ISA
/// 9.7.3.16.
#[inline(always)]
#[must_use]
pub fn sqrt(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { sqrt_rn(x) };
    #[cfg(not(target_arch = "nvptx64"))]
    return x.sqrt();
}

/// `a * b + c`, rounded once. `fma.rn.f32`, PTX ISA 9.7.3.6.
#[inline(always)]
#[must_use]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { fma_rn(a, b, c) };
    #[cfg(not(target_arch = "nvptx64"))]
    return a.mul_add(b, c);
}

/// The nearest integer, halves to even, saturating; NaN gives 0. `cvt.rni.s32.f32`, PTX ISA 9.7.9.21.
#[inline(always)]
#[must_use]
pub fn round_to_i32(x: f32) -> i32 {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: arithmetic without preconditions.
    return unsafe { f2i_rn(x) };
    #[cfg(not(target_arch = "nvptx64"))]
    return x.round_ties_even() as i32;
}

/// The value of the bfloat16 `bits`; exact.
#[inline(always)]
#[must_use]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The values of a pair of bfloat16, the low half first; exact.
#[inline(always)]
#[must_use]
pub fn bf16x2_to_f32(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// Rounds to bfloat16, halves to even; a NaN gives the canonical one. `cvt.rn.bf16x2.f32`, PTX ISA 9.7.9.21.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16(x: f32) -> u16 {
    f32_to_bf16x2(x, 0.0) as u16
}

/// Rounds two numbers to bfloat16, `low` into the low half. `cvt.rn.bf16x2.f32`, PTX ISA 9.7.9.21.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16x2(low: f32, high: f32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let pair: u32;
        // SAFETY: arithmetic without preconditions.
        unsafe {
            asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) pair, in(reg32) high, in(reg32) low,
                options(pure, nomem, nostack, preserves_flags));
        }
        pair
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let round = |x: f32| {
            if x.is_nan() {
                return 0x7fff;
            }
            let bits = x.to_bits();
            (bits + 0x7fff + (bits >> 16 & 1)) >> 16
        };
        round(high) << 16 | round(low)
    }
}

/// `a - b` of two pairs of bfloat16, whose differences a bfloat16 holds. `fma.rn.bf16x2` with a factor of -1, PTX ISA 9.7.4.4: there
/// is no subtraction before compute capability 9.0.
#[inline(always)]
#[must_use]
pub fn bf16x2_sub(a: u32, b: u32) -> u32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let pair: u32;
        // SAFETY: arithmetic without preconditions.
        unsafe {
            asm!("fma.rn.bf16x2 {}, {}, {}, {};", out(reg32) pair, in(reg32) b, in(reg32) 0xbf80_bf80u32, in(reg32) a,
                options(pure, nomem, nostack, preserves_flags));
        }
        pair
    }
    #[cfg(not(target_arch = "nvptx64"))]
    {
        let ([a0, a1], [b0, b1]) = (bf16x2_to_f32(a), bf16x2_to_f32(b));
        f32_to_bf16x2(a0 - b0, a1 - b1)
    }
}
