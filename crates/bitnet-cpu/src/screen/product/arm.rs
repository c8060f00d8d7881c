//! AArch64: `smlal` into 32 bits.

use std::arch::aarch64::*;

use super::{Interval, Isa, Job, Pair, ROWS, screen};

#[target_feature(enable = "neon")]
pub(super) fn neon(job: &Job<'_>, out: &mut [Interval]) {
    screen(Neon(()), job, out);
}

/// NEON; only [`neon`], which is compiled for it, makes one.
#[derive(Clone, Copy)]
struct Neon(());

impl Isa for Neon {
    /// Four rows each, two columns of a row side by side.
    type Weights = [int16x8_t; 4];
    type Lane = int16x8_t;
    /// Two rows each, the sums of even and of odd columns side by side.
    type Sums = [int32x4_t; 8];
    const SUMS: usize = 2;

    #[inline(always)]
    fn widen(self, pair: &Pair) -> [int16x8_t; 4] {
        // SAFETY: `self` proves NEON, and a pair of columns of 16 rows is 32 readable bytes.
        unsafe {
            let low = vld1q_s8(pair.as_ptr().cast());
            let high = vld1q_s8(pair.as_ptr().add(8).cast());
            [
                vmovl_s8(vget_low_s8(low)),
                vmovl_high_s8(low),
                vmovl_s8(vget_low_s8(high)),
                vmovl_high_s8(high),
            ]
        }
    }

    #[inline(always)]
    fn lane(self, x: [i16; 2]) -> int16x8_t {
        let x = i32::from(x[0] as u16) | i32::from(x[1]) << 16;
        // SAFETY: `self` proves NEON.
        unsafe { vreinterpretq_s16_s32(vdupq_n_s32(x)) }
    }

    #[inline(always)]
    fn zero(self) -> [int32x4_t; 8] {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_s32(0); 8] }
    }

    #[inline(always)]
    fn add(self, mut sums: [int32x4_t; 8], weights: [int16x8_t; 4], x: int16x8_t) -> [int32x4_t; 8] {
        for (sums, weights) in sums.as_chunks_mut::<2>().0.iter_mut().zip(weights) {
            // SAFETY: `self` proves NEON.
            unsafe {
                sums[0] = vmlal_s16(sums[0], vget_low_s16(weights), vget_low_s16(x));
                sums[1] = vmlal_high_s16(sums[1], weights, x);
            }
        }
        sums
    }

    #[inline(always)]
    fn store(self, sums: [int32x4_t; 8]) -> [i32; ROWS] {
        let mut out = [0; ROWS];
        for (sums, out) in sums.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: `self` proves NEON, and `out` is 16 writable bytes.
            unsafe { vst1q_s32(out.as_mut_ptr(), vpaddq_s32(sums[0], sums[1])) };
        }
        out
    }
}
