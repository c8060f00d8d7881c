//! 256-bit `vpdpbusd` (AVX-VNNI): one instruction multiplies four columns of half the rows of a tile.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256,
    _mm256_set1_epi8, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srai_epi32, _mm256_srli_epi32,
    _mm256_storeu_si256,
};

use bitnet_layout::row_tiles::Group;

use super::{Rows, in_blocks, prefetch};

/// Rows of activations that share the unpacked codes: two accumulators each, of the 16 registers there are.
const BLOCK: usize = 4;

/// See [`super::DotFn`].
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn dot(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]]) {
    in_blocks::<BLOCK>(
        x,
        out,
        |x, out| block(tile, x, out),
        |x, out| single(tile, x, out),
    );
}

/// The two halves of a group: rows 0..8 and 8..16.
#[inline]
#[target_feature(enable = "avx2")]
fn load(group: &Group) -> [__m256i; 2] {
    let (halves, _) = group.as_chunks::<8>();
    // SAFETY: half a group is 32 readable bytes, and the load needs no alignment.
    let half = |half: &[u32; 8]| unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
    [half(&halves[0]), half(&halves[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(sums: [__m256i; 2], out: &mut [i32; 16]) {
    for (sums, out) in sums.into_iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: `out` is 32 writable bytes, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
    }
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn quad(x: &[i8; 16], p: usize) -> __m256i {
    let bytes = [
        x[4 * p] as u8,
        x[4 * p + 1] as u8,
        x[4 * p + 2] as u8,
        x[4 * p + 3] as u8,
    ];
    _mm256_set1_epi32(i32::from_ne_bytes(bytes))
}

/// One row of activations; planes keep their place in the word, as in the 512-bit path.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn single(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; 1]) {
    let masks = [0x03, 0x0c, 0x30, 0xc0_u8 as i8].map(|mask| _mm256_set1_epi8(mask));
    let mut sums = [[_mm256_setzero_si256(); 2]; 4];
    for (group, x) in tile.iter().zip(x.words(0, tile)) {
        prefetch(group);
        let words = load(group);
        for p in 0..4 {
            let x = quad(x, p);
            for half in 0..2 {
                let codes = _mm256_and_si256(words[half], masks[p]);
                sums[p][half] = _mm256_dpbusd_avx_epi32(sums[p][half], codes, x);
            }
        }
    }
    let half = |half: usize| {
        let low = _mm256_add_epi32(sums[0][half], _mm256_srai_epi32::<2>(sums[1][half]));
        let high = _mm256_add_epi32(
            _mm256_srai_epi32::<4>(sums[2][half]),
            _mm256_srai_epi32::<6>(sums[3][half]),
        );
        _mm256_add_epi32(low, high)
    };
    store([half(0), half(1)], &mut out[0]);
}

/// [`BLOCK`] rows of activations.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn block(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; BLOCK]) {
    let rows: [&[[i8; 16]]; BLOCK] = std::array::from_fn(|t| x.words(t, tile));
    let mask = _mm256_set1_epi8(3);
    let mut sums = [[_mm256_setzero_si256(); 2]; BLOCK];
    for (c, group) in tile.iter().enumerate() {
        let mut words = load(group);
        for p in 0..4 {
            let codes = words.map(|words| _mm256_and_si256(words, mask));
            words = words.map(|words| _mm256_srli_epi32::<2>(words));
            for (sums, x) in sums.iter_mut().zip(&rows) {
                let x = quad(&x[c], p);
                sums[0] = _mm256_dpbusd_avx_epi32(sums[0], codes[0], x);
                sums[1] = _mm256_dpbusd_avx_epi32(sums[1], codes[1], x);
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        store(sums, out);
    }
}
