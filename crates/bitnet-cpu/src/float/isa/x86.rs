//! x86-64: a vector of 512 bits, or two of 256.

use std::arch::x86_64::*;

use super::{Bf16, F16, Isa, ROUND};

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
    fn load_i8(self, x: &[i8; 16]) -> __m512 {
        // SAFETY: `self` proves AVX-512 F, and `x` is 16 readable bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
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
    fn load_i32(self, x: &[i32; 16], less: i32) -> __m512 {
        // SAFETY: `self` proves AVX-512 F, and `x` is 64 readable bytes.
        unsafe {
            let x = _mm512_loadu_si512(x.as_ptr().cast());
            _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_set1_epi32(less)))
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    /// The maximum is its second operand where one is NaN.
    #[inline(always)]
    fn relu(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), a) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn most(self, x: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_reduce_max_ps(x) }
    }

    #[inline(always)]
    fn scale(self, x: __m512, n: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_scalef_ps(x, _mm512_sub_ps(n, _mm512_set1_ps(ROUND))) }
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
    fn load_i8(self, x: &[i8; 16]) -> [__m256; 2] {
        // SAFETY: `self` proves AVX2, and `x` is 16 readable bytes.
        unsafe {
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let high = _mm_srli_si128::<8>(x);
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
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
    fn load_i32(self, x: &[i32; 16], less: i32) -> [__m256; 2] {
        // SAFETY: `self` proves AVX2, and each half of `x` is 32 readable bytes.
        unsafe {
            let half = |x: *const i32| {
                let x = _mm256_loadu_si256(x.cast());
                _mm256_cvtepi32_ps(_mm256_sub_epi32(x, _mm256_set1_epi32(less)))
            };
            [half(x.as_ptr()), half(x.as_ptr().add(8))]
        }
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    /// The maximum is its second operand where one is NaN.
    #[inline(always)]
    fn relu(self, a: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves AVX.
        unsafe {
            let zero = _mm256_setzero_ps();
            [_mm256_max_ps(zero, a[0]), _mm256_max_ps(zero, a[1])]
        }
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

    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves AVX.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
}
