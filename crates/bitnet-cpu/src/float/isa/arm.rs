//! AArch64: four vectors of 128 bits.

use std::arch::aarch64::*;

use super::{Bf16, F16, Isa};

/// Quadruples of 128-bit vectors.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// - The processor has NEON.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Isa for Neon {
    type Lanes = [float32x4_t; 4];
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON.
        [unsafe { vdupq_n_f32(x) }; 4]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON, and each quarter of `x` is 16 readable bytes.
        std::array::from_fn(|q| unsafe { vld1q_f32(x.as_ptr().add(4 * q)) })
    }

    #[inline(always)]
    fn store(self, x: [float32x4_t; 4], to: &mut [f32; 16]) {
        for (x, to) in x.into_iter().zip(to.as_chunks_mut::<4>().0) {
            // SAFETY: `self` proves NEON, and `to` is 16 writable bytes.
            unsafe { vst1q_f32(to.as_mut_ptr(), x) }
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[Bf16; 16]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON, and each quarter of `x` is 8 readable bytes.
        std::array::from_fn(|q| unsafe {
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(x.as_ptr().cast::<u16>().add(4 * q))))
        })
    }

    #[inline(always)]
    fn load_f16(self, x: &[F16; 16]) -> [float32x4_t; 4] {
        self.load(&x.map(F16::widen))
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON, and each half of `x` is 8 readable bytes.
        unsafe {
            let [low, high] = [vld1_s8(x.as_ptr()), vld1_s8(x.as_ptr().add(8))].map(|x| vmovl_s8(x));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))),
            ]
        }
    }

    #[inline(always)]
    fn load_codes(self, words: &[u32; 16], shift: u32) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON, and each quarter of `words` is 16 readable bytes.
        std::array::from_fn(|q| unsafe {
            let words = vld1q_u32(words.as_ptr().add(4 * q));
            let codes = vandq_u32(vshlq_u32(words, vdupq_n_s32(-(shift as i32))), vdupq_n_u32(3));
            vsubq_f32(vcvtq_f32_u32(codes), vdupq_n_f32(1.0))
        })
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; 16], less: i32) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON, and each quarter of `x` is 16 readable bytes.
        std::array::from_fn(|q| unsafe {
            vcvtq_f32_s32(vsubq_s32(vld1q_s32(x.as_ptr().add(4 * q)), vdupq_n_s32(less)))
        })
    }

    #[inline(always)]
    fn add(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON.
        std::array::from_fn(|q| unsafe { vaddq_f32(a[q], b[q]) })
    }

    #[inline(always)]
    fn mul(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON.
        std::array::from_fn(|q| unsafe { vmulq_f32(a[q], b[q]) })
    }

    #[inline(always)]
    fn relu(self, a: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON.
        a.map(|a| unsafe {
            let zero = vdupq_n_f32(0.0);
            vbslq_f32(vcltq_f32(a, zero), zero, a)
        })
    }

    #[inline(always)]
    fn mul_add(self, a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON.
        std::array::from_fn(|q| unsafe { vfmaq_f32(c[q], a[q], b[q]) })
    }

    #[inline(always)]
    fn max(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves NEON.
        std::array::from_fn(|i| unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) })
    }
}
