//! Sixteen f32 lanes, in the registers of each instruction set.
//!
//! The compiler's own vectorizer was tried first: it finds the lanes in simple loops and loses them (gathers, pairs of
//! lanes, sums kept in memory) in others that look the same, so the loops that matter name their vectors.

use super::element::{Bf16, Element, F16};

/// Proof that an instruction set may be used here, and its operations on 16 lanes. Every operation rounds once, so all
/// implementations give the same bits.
pub(crate) trait Isa: Copy {
    /// 16 lanes.
    type Lanes: Copy;
    /// How many values of [`Isa::Lanes`] the registers hold, a few left over for operands.
    const ACCUMULATORS: usize;

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::Lanes;
    /// Lanes from memory.
    fn load(self, x: &[f32; 16]) -> Self::Lanes;
    /// Lanes to memory.
    fn store(self, x: Self::Lanes, to: &mut [f32; 16]);
    /// bfloat16, widened.
    fn load_bf16(self, x: &[Bf16; 16]) -> Self::Lanes;
    /// IEEE half, widened.
    fn load_f16(self, x: &[F16; 16]) -> Self::Lanes;
    /// The ternary values in bits `shift..shift + 2` of each word: the code less 1.
    fn load_codes(self, words: &[u32; 16], shift: u32) -> Self::Lanes;
    /// `a + b`.
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;

    /// Asks for the cache line that lies `bytes` after `x`, where the instruction set can.
    #[inline(always)]
    fn prefetch<T>(self, x: &T, bytes: usize) {
        let _ = (x, bytes);
    }

    /// The sum of the lanes, as a tree.
    #[inline(always)]
    fn sum(self, x: Self::Lanes) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        super::sum(lanes)
    }
}

/// Portable Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Isa for Portable {
    type Lanes = [f32; 16];
    const ACCUMULATORS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }

    #[inline(always)]
    fn store(self, x: [f32; 16], to: &mut [f32; 16]) {
        *to = x;
    }

    #[inline(always)]
    fn load_bf16(self, x: &[Bf16; 16]) -> [f32; 16] {
        x.map(Element::widen)
    }

    #[inline(always)]
    fn load_f16(self, x: &[F16; 16]) -> [f32; 16] {
        x.map(Element::widen)
    }

    #[inline(always)]
    fn load_codes(self, words: &[u32; 16], shift: u32) -> [f32; 16] {
        words.map(|word| (word >> shift & 3) as f32 - 1.0)
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|l| a[l] + b[l])
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|l| mul_add(a[l], b[l], c[l]))
    }
}

/// `a * b + c` rounded once, where the target has no instruction for it: the C library would take tens of nanoseconds.
///
/// The product of two f32 is exact in f64. Its sum with `c` is rounded to odd: to the neighbor with an odd last bit when
/// it is inexact, so that the second rounding, to f32, sees on which side of a tie the exact value lies (Boldo and
/// Melquiond, "Emulation of a FMA and correctly rounded sums", 2008; 53 bits are more than 24 + 2).
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // Knuth's two-sum: the exact error of the addition.
    let back = sum - product;
    let error = (product - (sum - back)) + (c - back);
    let bits = sum.to_bits();
    // An f64 sum of finite terms cannot overflow; the error of an infinite or NaN sum is NaN, and greater than nothing.
    let inexact = error.abs() > 0.0;
    let toward = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let odd = if inexact && bits & 1 == 0 {
        bits.wrapping_add(toward)
    } else {
        bits
    };
    f64::from_bits(odd) as f32
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use std::arch::x86_64::*;

    use super::{Bf16, F16, Isa};

    /// 512-bit vectors.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    impl Avx512 {
        /// # Safety
        /// - The processor has AVX-512 F, BW, DQ and VL.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Self(())
        }
    }

    impl Isa for Avx512 {
        type Lanes = __m512;
        const ACCUMULATORS: usize = 24;

        #[inline(always)]
        fn prefetch<T>(self, x: &T, bytes: usize) {
            let ahead = std::ptr::from_ref(x).cast::<i8>().wrapping_add(bytes);
            // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) }
        }

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: `self` proves AVX-512 F.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn load(self, x: &[f32; 16]) -> __m512 {
            // SAFETY: `self` proves AVX-512 F, and `x` is 64 readable bytes.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, x: __m512, to: &mut [f32; 16]) {
            // SAFETY: `self` proves AVX-512 F, and `to` is 64 writable bytes.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
        }

        #[inline(always)]
        fn load_bf16(self, x: &[Bf16; 16]) -> __m512 {
            // SAFETY: `self` proves AVX-512 F, and `x` is 32 readable bytes.
            unsafe {
                let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
            }
        }

        #[inline(always)]
        fn load_f16(self, x: &[F16; 16]) -> __m512 {
            // SAFETY: `self` proves AVX-512 F, and `x` is 32 readable bytes.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        }

        #[inline(always)]
        fn load_codes(self, words: &[u32; 16], shift: u32) -> __m512 {
            // SAFETY: `self` proves AVX-512 F, and `words` is 64 readable bytes.
            unsafe {
                let words = _mm512_loadu_si512(words.as_ptr().cast());
                let codes = _mm512_srlv_epi32(words, _mm512_set1_epi32(shift as i32));
                let codes = _mm512_and_si512(codes, _mm512_set1_epi32(3));
                _mm512_sub_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(1.0))
            }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves AVX-512 F.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: `self` proves AVX-512 F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    /// Pairs of 256-bit vectors.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx2 {
        /// # Safety
        /// - The processor has AVX2, FMA and F16C.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Self(())
        }
    }

    impl Isa for Avx2 {
        type Lanes = [__m256; 2];
        const ACCUMULATORS: usize = 6;

        #[inline(always)]
        fn prefetch<T>(self, x: &T, bytes: usize) {
            let ahead = std::ptr::from_ref(x).cast::<i8>().wrapping_add(bytes);
            // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) }
        }

        #[inline(always)]
        fn splat(self, x: f32) -> [__m256; 2] {
            // SAFETY: `self` proves AVX.
            [unsafe { _mm256_set1_ps(x) }; 2]
        }

        #[inline(always)]
        fn load(self, x: &[f32; 16]) -> [__m256; 2] {
            // SAFETY: `self` proves AVX, and `x` is 64 readable bytes.
            unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
        }

        #[inline(always)]
        fn store(self, x: [__m256; 2], to: &mut [f32; 16]) {
            // SAFETY: `self` proves AVX, and `to` is 64 writable bytes.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
            }
        }

        #[inline(always)]
        fn load_bf16(self, x: &[Bf16; 16]) -> [__m256; 2] {
            // SAFETY: `self` proves AVX2, and `x` is 32 readable bytes.
            unsafe {
                let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(8).cast()));
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
                ]
            }
        }

        #[inline(always)]
        fn load_f16(self, x: &[F16; 16]) -> [__m256; 2] {
            // SAFETY: `self` proves F16C, and `x` is 32 readable bytes.
            unsafe {
                [
                    _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast())),
                ]
            }
        }

        #[inline(always)]
        fn load_codes(self, words: &[u32; 16], shift: u32) -> [__m256; 2] {
            // SAFETY: `self` proves AVX2, and `words` is 64 readable bytes.
            unsafe {
                let half = |words: *const u32| {
                    let words = _mm256_loadu_si256(words.cast());
                    let codes = _mm256_srlv_epi32(words, _mm256_set1_epi32(shift as i32));
                    let codes = _mm256_and_si256(codes, _mm256_set1_epi32(3));
                    _mm256_sub_ps(_mm256_cvtepi32_ps(codes), _mm256_set1_ps(1.0))
                };
                [half(words.as_ptr()), half(words.as_ptr().add(8))]
            }
        }

        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: `self` proves AVX.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }

        #[inline(always)]
        fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: `self` proves FMA.
            unsafe {
                [
                    _mm256_fmadd_ps(a[0], b[0], c[0]),
                    _mm256_fmadd_ps(a[1], b[1], c[1]),
                ]
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod arm {
    use std::arch::aarch64::*;

    use super::{Bf16, Element, F16, Isa};

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
            self.load(&x.map(Element::widen))
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
        fn add(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
            // SAFETY: `self` proves NEON.
            std::array::from_fn(|q| unsafe { vaddq_f32(a[q], b[q]) })
        }

        #[inline(always)]
        fn mul_add(self, a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
            // SAFETY: `self` proves NEON.
            std::array::from_fn(|q| unsafe { vfmaq_f32(c[q], a[q], b[q]) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::mul_add;

    #[test]
    fn the_portable_product_sum_rounds_once() {
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let check = |a: f32, b: f32, c: f32| {
            let (found, expected) = (mul_add(a, b, c), a.mul_add(b, c));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{a:e} * {b:e} + {c:e} = {found:e}, not {expected:e}");
        };
        for _ in 0..300_000 {
            // Any bits, then near cancellation and near ties, where a second rounding would show.
            let [a, b, c] = [next(), next(), next()].map(|bits| f32::from_bits(bits as u32));
            check(a, b, c);
            check(a, b, -(a * b));
            let [a, b] = [next(), next()].map(|bits| (bits % (1 << 24)) as f32);
            let exponent = (next() % 60) as i32 - 30;
            check(a, b, (next() % 4096) as f32 * 2f32.powi(exponent));
            check(a, b, -((next() % 4096) as f32) * 2f32.powi(exponent));
            check(a * 2f32.powi(-140), b * 2f32.powi(-10), 2f32.powi(-149));
        }
    }
}
