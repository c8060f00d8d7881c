//! 512-bit `vpdpbusd`: one instruction multiplies four columns of all 16 rows of a tile.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srai_epi32, _mm512_srli_epi32, _mm512_storeu_si512,
};

use bitnet_layout::row_tiles::Group;

use super::{Rows, in_blocks, prefetch};

/// Rows of activations that share the unpacked codes: 8 accumulators, each the target of four chained instructions a
/// group, are enough to hide their latency of 5 cycles at two a cycle.
const BLOCK: usize = 8;

/// See [`super::DotFn`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn dot(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]]) {
    in_blocks::<BLOCK>(
        x,
        out,
        |x, out| block(tile, x, out),
        |x, out| single(tile, x, out),
    );
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn load(group: &Group) -> __m512i {
    // SAFETY: a group is 64 readable bytes, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(group.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn store(sums: __m512i) -> [i32; 16] {
    let mut out = [0; 16];
    // SAFETY: `out` is 64 writable bytes, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
    out
}

/// Four activations as one lane value.
#[inline(always)]
fn quad(x: &[i8; 16], p: usize) -> i32 {
    i32::from_ne_bytes([
        x[4 * p] as u8,
        x[4 * p + 1] as u8,
        x[4 * p + 2] as u8,
        x[4 * p + 3] as u8,
    ])
}

/// One row of activations. The codes of plane p stay where they stand in the word, as multiples of `4^p` in an accumulator
/// of their own that is divided at the end: no shifts in the loop. `4^3 * 2 * 128 * k / 4` fits i32 up to k = 2^19.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn single(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; 1]) {
    let masks = [0x03, 0x0c, 0x30, 0xc0_u8 as i8].map(|mask| _mm512_set1_epi8(mask));
    let mut sums = [[_mm512_setzero_si512(); 4]; 2];
    let mut add = |half: usize, group: &Group, x: &[i8; 16]| {
        prefetch(group);
        let words = load(group);
        for p in 0..4 {
            let codes = _mm512_and_si512(words, masks[p]);
            sums[half][p] = _mm512_dpbusd_epi32(sums[half][p], codes, _mm512_set1_epi32(quad(x, p)));
        }
    };
    let (pairs, rest) = tile.as_chunks::<2>();
    let (x_pairs, x_rest) = x.words(0, tile).as_chunks::<2>();
    for (groups, x) in pairs.iter().zip(x_pairs) {
        add(0, &groups[0], &x[0]);
        add(1, &groups[1], &x[1]);
    }
    for (group, x) in rest.iter().zip(x_rest) {
        add(0, group, x);
    }
    let plane = |p: usize| _mm512_add_epi32(sums[0][p], sums[1][p]);
    let low = _mm512_add_epi32(plane(0), _mm512_srai_epi32::<2>(plane(1)));
    let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(plane(2)), _mm512_srai_epi32::<6>(plane(3)));
    out[0] = store(_mm512_add_epi32(low, high));
}

/// [`BLOCK`] rows of activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn block(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; BLOCK]) {
    let rows: [&[[i8; 16]]; BLOCK] = std::array::from_fn(|t| x.words(t, tile));
    let mask = _mm512_set1_epi8(3);
    let mut sums = [_mm512_setzero_si512(); BLOCK];
    for (c, group) in tile.iter().enumerate() {
        let words = load(group);
        let codes = [
            _mm512_and_si512(words, mask),
            _mm512_and_si512(_mm512_srli_epi32::<2>(words), mask),
            _mm512_and_si512(_mm512_srli_epi32::<4>(words), mask),
            _mm512_and_si512(_mm512_srli_epi32::<6>(words), mask),
        ];
        for (sum, x) in sums.iter_mut().zip(&rows) {
            for (p, &codes) in codes.iter().enumerate() {
                *sum = _mm512_dpbusd_epi32(*sum, codes, _mm512_set1_epi32(quad(&x[c], p)));
            }
        }
    }
    *out = sums.map(|sums| store(sums));
}
