//! AArch64: `smlal` into 16 bits, widened now and then by `sadalp`; with the dot product extension `sdot`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Isa, Quad};

/// What needs no products, for quadruples of vectors.
macro_rules! quadruples_of_vectors {
    () => {
        type Words = [uint8x16_t; 4];
        type Four = int8x16_t;

        #[inline(always)]
        fn load(self, words: &[u32; 16]) -> [uint8x16_t; 4] {
            // SAFETY: `self` proves NEON, and each quarter of `words` is 16 readable bytes.
            std::array::from_fn(|q| unsafe { vld1q_u8(words.as_ptr().add(4 * q).cast()) })
        }

        #[inline(always)]
        fn store(self, words: [uint8x16_t; 4], to: &mut Quad) {
            for (words, to) in words.into_iter().zip(to.as_chunks_mut::<4>().0) {
                // SAFETY: `self` proves NEON, and `to` is 16 writable bytes.
                unsafe { vst1q_u8(to.as_mut_ptr().cast(), words) }
            }
        }

        #[inline(always)]
        fn plane(self, group: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
            // SAFETY: `self` proves NEON.
            group.map(|words| unsafe { vandq_u8(words, vdupq_n_u8(3)) })
        }

        #[inline(always)]
        fn next(self, group: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
            // SAFETY: `self` proves NEON.
            group.map(|words| unsafe { vshrq_n_u8::<2>(words) })
        }

        #[inline(always)]
        fn four(self, x: [i8; 4]) -> int8x16_t {
            let x = i32::from_ne_bytes(x.map(|x| x as u8));
            // SAFETY: `self` proves NEON.
            unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x)) }
        }

        #[inline(always)]
        fn interleave(self, [a, b, c, d]: [[uint8x16_t; 4]; 4]) -> [[uint8x16_t; 4]; 4] {
            let mut quads = [a; 4];
            for q in 0..4 {
                // SAFETY: `self` proves NEON.
                unsafe {
                    let wide = |x| vreinterpretq_u16_u8(x);
                    let narrow = |x| vreinterpretq_u8_u16(x);
                    let (a, b, c, d) = (a[q], b[q], c[q], d[q]);
                    let (ab, cd) = (wide(vzip1q_u8(a, b)), wide(vzip1q_u8(c, d)));
                    quads[0][q] = narrow(vzip1q_u16(ab, cd));
                    quads[1][q] = narrow(vzip2q_u16(ab, cd));
                    let (ab, cd) = (wide(vzip2q_u8(a, b)), wide(vzip2q_u8(c, d)));
                    quads[2][q] = narrow(vzip1q_u16(ab, cd));
                    quads[3][q] = narrow(vzip2q_u16(ab, cd));
                }
            }
            quads
        }

        #[inline(always)]
        fn add(self, sums: Self::Sums, quad: [uint8x16_t; 4], x: int8x16_t) -> Self::Sums {
            // SAFETY: `self` proves NEON.
            self.add_lanes(sums, quad, [unsafe { vreinterpretq_u8_s8(x) }; 4])
        }
    };
}

/// Adds 16 sums to those at `to`.
///
/// # Safety
/// - The processor has NEON.
#[inline(always)]
unsafe fn add_quarters(sums: [int32x4_t; 4], to: &mut [i32; 16]) {
    for (sums, to) in sums.into_iter().zip(to.as_chunks_mut::<4>().0) {
        // SAFETY: NEON is this function's contract, and `to` is 16 readable and writable bytes.
        unsafe { vst1q_s32(to.as_mut_ptr(), vaddq_s32(vld1q_s32(to.as_ptr()), sums)) }
    }
}

/// NEON without the dot product extension.
#[derive(Clone, Copy)]
pub(in super::super) struct Neon(());

impl Neon {
    /// # Safety
    /// - The processor has NEON.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Isa for Neon {
    quadruples_of_vectors!();
    /// By quarter of the rows, and half of that: two rows, four columns each.
    type Sums = [[int16x8_t; 2]; 4];
    /// A product of `2 * 128` an addition.
    const RUN: usize = i16::MAX as usize / (2 * 128);
    const BLOCK: (usize, usize) = (2, 1);

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        // SAFETY: `self` proves NEON.
        [[unsafe { vdupq_n_s16(0) }; 2]; 4]
    }

    #[inline(always)]
    fn add_lanes(self, mut sums: Self::Sums, quad: [uint8x16_t; 4], x: [uint8x16_t; 4]) -> Self::Sums {
        for (([low, high], codes), x) in sums.iter_mut().zip(quad).zip(x) {
            // SAFETY: `self` proves NEON.
            unsafe {
                let (codes, x) = (vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(x));
                *low = vmlal_s8(*low, vget_low_s8(codes), vget_low_s8(x));
                *high = vmlal_high_s8(*high, codes, x);
            }
        }
        sums
    }

    #[inline(always)]
    fn flush(self, sums: Self::Sums, to: &mut [i32; 16]) {
        // SAFETY: `self` proves NEON.
        unsafe {
            let wide = sums.map(|[low, high]| vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
            add_quarters(wide, to);
        }
    }
}

/// NEON with the dot product extension.
#[derive(Clone, Copy)]
pub(in super::super) struct NeonDotprod(());

impl NeonDotprod {
    /// # Safety
    /// - The processor has NEON and the dot product extension.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Isa for NeonDotprod {
    quadruples_of_vectors!();
    type Sums = [int32x4_t; 4];
    const RUN: usize = usize::MAX;
    const BLOCK: (usize, usize) = (4, 1);

    #[inline(always)]
    fn zero(self) -> [int32x4_t; 4] {
        // SAFETY: `self` proves NEON.
        [unsafe { vdupq_n_s32(0) }; 4]
    }

    /// The intrinsic (`vdotq_s32`) is not stable yet.
    #[inline(always)]
    fn add_lanes(
        self,
        mut sums: [int32x4_t; 4],
        quad: [uint8x16_t; 4],
        x: [uint8x16_t; 4],
    ) -> [int32x4_t; 4] {
        for ((sum, codes), x) in sums.iter_mut().zip(quad).zip(x) {
            // SAFETY: `self` proves the extension, and the instruction reads and writes only the registers named.
            unsafe {
                asm!("sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b", sum = inout(vreg) *sum, codes = in(vreg) codes,
                    x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
            }
        }
        sums
    }

    #[inline(always)]
    fn flush(self, sums: [int32x4_t; 4], to: &mut [i32; 16]) {
        // SAFETY: `self` proves NEON.
        unsafe { add_quarters(sums, to) }
    }
}
