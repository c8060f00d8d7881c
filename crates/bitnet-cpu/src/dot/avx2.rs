//! AVX2: `vpmaddubsw` multiplies codes with activations and adds pairs into 16 bits, which are widened now and then.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_srai_epi32, _mm256_srli_epi32, _mm256_storeu_si256,
};

use bitnet_layout::row_tiles::Group;

use super::{Rows, in_blocks, prefetch};

/// Rows of activations that share the unpacked codes.
const BLOCK: usize = 2;

/// Groups between two widenings of [`single`]: a group adds at most `2 * 8 * 2 * 128 = 4096` to a 16-bit lane.
const SINGLE_RUN: usize = 7;

/// Groups between two widenings of [`block`]: a group adds at most `4 * 2 * 2 * 128 = 2048` to a 16-bit lane.
const BLOCK_RUN: usize = 15;

/// See [`super::DotFn`].
#[target_feature(enable = "avx2")]
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

/// Adds the pairs of 16-bit sums to 32-bit ones.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(sum: __m256i, short: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(short, _mm256_set1_epi16(1)))
}

/// One row of activations. Planes 1 and 3 are multiplied where they stand, as codes times 4, into sums of their own:
/// one shift a load instead of three.
#[inline]
#[target_feature(enable = "avx2")]
fn single(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; 1]) {
    let masks = [_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c)];
    let zero = _mm256_setzero_si256();
    // By plane parity, then half.
    let mut sums = [[zero; 2]; 2];
    for (groups, x) in tile.chunks(SINGLE_RUN).zip(x.words(0, tile).chunks(SINGLE_RUN)) {
        let mut short = [[zero; 2]; 2];
        for (group, x) in groups.iter().zip(x) {
            prefetch(group);
            let low = load(group);
            let high = low.map(|words| _mm256_srli_epi32::<4>(words));
            for (pair, words) in [low, high].into_iter().enumerate() {
                for parity in 0..2 {
                    let x = quad(x, 2 * pair + parity);
                    for half in 0..2 {
                        let codes = _mm256_and_si256(words[half], masks[parity]);
                        let products = _mm256_maddubs_epi16(codes, x);
                        short[parity][half] = _mm256_add_epi16(short[parity][half], products);
                    }
                }
            }
        }
        for parity in 0..2 {
            for half in 0..2 {
                sums[parity][half] = widen(sums[parity][half], short[parity][half]);
            }
        }
    }
    let half = |half: usize| _mm256_add_epi32(sums[0][half], _mm256_srai_epi32::<2>(sums[1][half]));
    store([half(0), half(1)], &mut out[0]);
}

/// [`BLOCK`] rows of activations.
#[inline]
#[target_feature(enable = "avx2")]
fn block(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; BLOCK]) {
    let rows: [&[[i8; 16]]; BLOCK] = std::array::from_fn(|t| x.words(t, tile));
    let mask = _mm256_set1_epi8(3);
    let zero = _mm256_setzero_si256();
    let mut sums = [[zero; 2]; BLOCK];
    for (run, groups) in tile.chunks(BLOCK_RUN).enumerate() {
        let mut short = [[zero; 2]; BLOCK];
        for (c, group) in groups.iter().enumerate() {
            let mut words = load(group);
            for p in 0..4 {
                let codes = words.map(|words| _mm256_and_si256(words, mask));
                words = words.map(|words| _mm256_srli_epi32::<2>(words));
                for (short, x) in short.iter_mut().zip(&rows) {
                    let x = quad(&x[run * BLOCK_RUN + c], p);
                    short[0] = _mm256_add_epi16(short[0], _mm256_maddubs_epi16(codes[0], x));
                    short[1] = _mm256_add_epi16(short[1], _mm256_maddubs_epi16(codes[1], x));
                }
            }
        }
        for (sums, short) in sums.iter_mut().zip(short) {
            sums[0] = widen(sums[0], short[0]);
            sums[1] = widen(sums[1], short[1]);
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        store(sums, out);
    }
}
