//! x86-64: `vpmaddubsw` of AVX2, and `vpdpbusd` on 256 and on 512 bits.

use std::arch::x86_64::*;

use super::{Isa, Quad, lane};

/// The four or eight 128-bit lanes of a quad: implements what needs no products for pairs of 256-bit vectors.
macro_rules! pairs_of_vectors {
    () => {
        type Words = [__m256i; 2];
        type Four = __m256i;
        type Sums = [__m256i; 2];

        #[inline(always)]
        fn load(self, words: &[u32; 16]) -> [__m256i; 2] {
            // SAFETY: `self` proves AVX2, and each half of `words` is 32 readable bytes.
            unsafe {
                [
                    _mm256_loadu_si256(words.as_ptr().cast()),
                    _mm256_loadu_si256(words.as_ptr().add(8).cast()),
                ]
            }
        }

        #[inline(always)]
        fn store(self, words: [__m256i; 2], to: &mut Quad) {
            // SAFETY: `self` proves AVX2, and each half of `to` is 32 writable bytes.
            unsafe {
                _mm256_storeu_si256(to.as_mut_ptr().cast(), words[0]);
                _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), words[1]);
            }
        }

        #[inline(always)]
        fn plane(self, group: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let mask = _mm256_set1_epi8(3);
                [
                    _mm256_and_si256(group[0], mask),
                    _mm256_and_si256(group[1], mask),
                ]
            }
        }

        #[inline(always)]
        fn next(self, group: [__m256i; 2]) -> [__m256i; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe {
                [
                    _mm256_srli_epi32::<2>(group[0]),
                    _mm256_srli_epi32::<2>(group[1]),
                ]
            }
        }

        #[inline(always)]
        fn four(self, x: [i8; 4]) -> __m256i {
            // SAFETY: `self` proves AVX2.
            unsafe { _mm256_set1_epi32(lane(x)) }
        }

        #[inline(always)]
        fn zero(self) -> [__m256i; 2] {
            // SAFETY: `self` proves AVX2.
            unsafe { [_mm256_setzero_si256(); 2] }
        }

        #[inline(always)]
        fn interleave(self, [a, b, c, d]: [[__m256i; 2]; 4]) -> [[__m256i; 2]; 4] {
            let mut quads = [a; 4];
            for half in 0..2 {
                // SAFETY: `self` proves AVX2.
                unsafe {
                    let (a, b, c, d) = (a[half], b[half], c[half], d[half]);
                    let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
                    quads[0][half] = _mm256_unpacklo_epi16(ab, cd);
                    quads[1][half] = _mm256_unpackhi_epi16(ab, cd);
                    let (ab, cd) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
                    quads[2][half] = _mm256_unpacklo_epi16(ab, cd);
                    quads[3][half] = _mm256_unpackhi_epi16(ab, cd);
                }
            }
            quads
        }

        #[inline(always)]
        fn prefetch(self, line: *const Quad) {
            // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
        }

        #[inline(always)]
        fn prefetch_far(self, line: *const Quad) {
            // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
        }
    };
}

/// Adds two halves of 32-bit sums to 16 of them.
///
/// # Safety
/// - The processor has AVX2.
#[inline(always)]
unsafe fn add_halves(sums: [__m256i; 2], to: &mut [i32; 16]) {
    // SAFETY: AVX2 is this function's contract, and each half of `to` is 32 readable and writable bytes.
    unsafe {
        let low = to.as_mut_ptr().cast::<__m256i>();
        let high = low.add(1);
        _mm256_storeu_si256(low, _mm256_add_epi32(_mm256_loadu_si256(low), sums[0]));
        _mm256_storeu_si256(high, _mm256_add_epi32(_mm256_loadu_si256(high), sums[1]));
    }
}

/// AVX2: pairs of products are added up in 16 bits, which are widened now and then.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// - The processor has AVX2.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Isa for Avx2 {
    pairs_of_vectors!();
    /// Two products of `2 * 128` an addition.
    const RUN: usize = i16::MAX as usize / (2 * 2 * 128);
    const BLOCK: (usize, usize) = (4, 1);

    #[inline(always)]
    fn add(self, sums: [__m256i; 2], quad: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
        self.add_lanes(sums, quad, [x; 2])
    }

    #[inline(always)]
    fn add_lanes(self, sums: [__m256i; 2], quad: [__m256i; 2], x: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            [
                _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(quad[0], x[0])),
                _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(quad[1], x[1])),
            ]
        }
    }

    #[inline(always)]
    fn flush(self, sums: [__m256i; 2], to: &mut [i32; 16]) {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let wide = [_mm256_madd_epi16(sums[0], ones), _mm256_madd_epi16(sums[1], ones)];
            add_halves(wide, to);
        }
    }
}

/// AVX-VNNI.
#[derive(Clone, Copy)]
pub(in super::super) struct AvxVnni(());

impl AvxVnni {
    /// # Safety
    /// - The processor has AVX2 and AVX-VNNI.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Isa for AvxVnni {
    pairs_of_vectors!();
    const RUN: usize = usize::MAX;
    const BLOCK: (usize, usize) = (4, 1);

    #[inline(always)]
    fn add(self, sums: [__m256i; 2], quad: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
        self.add_lanes(sums, quad, [x; 2])
    }

    #[inline(always)]
    fn add_lanes(self, sums: [__m256i; 2], quad: [__m256i; 2], x: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX-VNNI.
        unsafe {
            [
                _mm256_dpbusd_avx_epi32(sums[0], quad[0], x[0]),
                _mm256_dpbusd_avx_epi32(sums[1], quad[1], x[1]),
            ]
        }
    }

    #[inline(always)]
    fn flush(self, sums: [__m256i; 2], to: &mut [i32; 16]) {
        // SAFETY: `self` proves AVX2.
        unsafe { add_halves(sums, to) }
    }
}

/// AVX-512 VNNI: one instruction multiplies a quad.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512Vnni(());

impl Avx512Vnni {
    /// # Safety
    /// - The processor has AVX-512 F, BW and VNNI.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Isa for Avx512Vnni {
    type Words = __m512i;
    type Four = __m512i;
    type Sums = __m512i;
    const RUN: usize = usize::MAX;
    /// 16 sums hide a latency of 5 cycles at two products a cycle, and need 10 loads for 16 products.
    const BLOCK: (usize, usize) = (8, 2);

    #[inline(always)]
    fn load(self, words: &[u32; 16]) -> __m512i {
        // SAFETY: `self` proves AVX-512 F, and `words` is 64 readable bytes.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, words: __m512i, to: &mut Quad) {
        // SAFETY: `self` proves AVX-512 F, and `to` is 64 writable bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) }
    }

    #[inline(always)]
    fn plane(self, group: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_and_si512(group, _mm512_set1_epi8(3)) }
    }

    #[inline(always)]
    fn next(self, group: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_srli_epi32::<2>(group) }
    }

    #[inline(always)]
    fn four(self, x: [i8; 4]) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi32(lane(x)) }
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, quad: __m512i, x: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, quad, x) }
    }

    #[inline(always)]
    fn add_lanes(self, sums: __m512i, quad: __m512i, x: __m512i) -> __m512i {
        self.add(sums, quad, x)
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: `self` proves AVX-512 BW.
        unsafe {
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (low, high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(low, high),
                _mm512_unpackhi_epi16(low, high),
            ]
        }
    }

    #[inline(always)]
    fn flush(self, sums: __m512i, to: &mut [i32; 16]) {
        // SAFETY: `self` proves AVX-512 F, and `to` is 64 readable and writable bytes.
        unsafe {
            let to = to.as_mut_ptr().cast::<__m512i>();
            _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), sums));
        }
    }

    #[inline(always)]
    fn prefetch(self, line: *const Quad) {
        // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn prefetch_far(self, line: *const Quad) {
        // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
}
