//! x86-64: `vpmaddwd` of AVX2, and `vpdpwssd` on 256 and on 512 bits.

use std::arch::x86_64::*;

use super::{Interval, Isa, Job, Pair, ROWS, screen};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn avx512(job: &Job<'_>, out: &mut [Interval]) {
    screen(Avx512(()), job, out);
}

#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn avx_vnni(job: &Job<'_>, out: &mut [Interval]) {
    screen(AvxVnni(()), job, out);
}

#[target_feature(enable = "avx2")]
pub(super) fn avx2(job: &Job<'_>, out: &mut [Interval]) {
    screen(Avx2(()), job, out);
}

/// A pair of activations as one lane value.
#[inline(always)]
fn value(x: [i16; 2]) -> i32 {
    i32::from(x[0] as u16) | i32::from(x[1]) << 16
}

/// AVX-512 BW and VNNI; only [`avx512`], which is compiled for them, makes one.
#[derive(Clone, Copy)]
struct Avx512(());

impl Isa for Avx512 {
    type Weights = __m512i;
    type Lane = __m512i;
    type Sums = __m512i;
    const SUMS: usize = 16;

    #[inline(always)]
    fn widen(self, pair: &Pair) -> __m512i {
        // SAFETY: `self` proves AVX-512 BW, and a pair of columns of 16 rows is 32 readable bytes.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(pair.as_ptr().cast())) }
    }

    #[inline(always)]
    fn lane(self, x: [i16; 2]) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi32(value(x)) }
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { _mm512_dpwssd_epi32(sums, weights, x) }
    }

    #[inline(always)]
    fn store(self, sums: __m512i) -> [i32; ROWS] {
        let mut out = [0; ROWS];
        // SAFETY: `self` proves AVX-512 F, and `out` is 64 writable bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
        out
    }

    #[inline(always)]
    fn prefetch(self, line: *const Pair) {
        // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

/// What needs no products, for pairs of 256-bit vectors.
macro_rules! pairs_of_vectors {
    () => {
        type Weights = [__m256i; 2];
        type Lane = __m256i;
        type Sums = [__m256i; 2];
        const SUMS: usize = 4;

        #[inline(always)]
        fn widen(self, pair: &Pair) -> [__m256i; 2] {
            // SAFETY: `self` proves AVX2, and a pair of columns of 16 rows is 32 readable bytes.
            unsafe {
                let rows = pair.as_ptr().cast::<__m128i>();
                [
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(rows)),
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(rows.add(1))),
                ]
            }
        }

        #[inline(always)]
        fn lane(self, x: [i16; 2]) -> __m256i {
            // SAFETY: `self` proves AVX2.
            unsafe { _mm256_set1_epi32(value(x)) }
        }

        #[inline(always)]
        fn zero(self) -> [__m256i; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_setzero_si256(); 2] }
        }

        #[inline(always)]
        fn store(self, sums: [__m256i; 2]) -> [i32; ROWS] {
            let mut out = [0; ROWS];
            for (sums, out) in sums.into_iter().zip(out.as_chunks_mut::<8>().0) {
                // SAFETY: `self` proves AVX2, and `out` is 32 writable bytes.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
            }
            out
        }

        #[inline(always)]
        fn prefetch(self, line: *const Pair) {
            // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
        }
    };
}

/// AVX2; only [`avx2`], which is compiled for it, makes one.
#[derive(Clone, Copy)]
struct Avx2(());

impl Isa for Avx2 {
    pairs_of_vectors!();

    #[inline(always)]
    fn add(self, sums: [__m256i; 2], weights: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(weights[0], x)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(weights[1], x)),
            ]
        }
    }
}

/// AVX-VNNI; only [`avx_vnni`], which is compiled for it, makes one.
#[derive(Clone, Copy)]
struct AvxVnni(());

impl Isa for AvxVnni {
    pairs_of_vectors!();

    #[inline(always)]
    fn add(self, sums: [__m256i; 2], weights: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX-VNNI.
        unsafe {
            [
                _mm256_dpwssd_avx_epi32(sums[0], weights[0], x),
                _mm256_dpwssd_avx_epi32(sums[1], weights[1], x),
            ]
        }
    }
}
