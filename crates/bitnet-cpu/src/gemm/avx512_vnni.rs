//! 512-bit `vpdpbusd` on unpacked codes.

use std::arch::x86_64::{
    __m512i, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_setzero_si512, _mm512_srli_epi32, _mm512_storeu_si512,
};

use bitnet_layout::row_tiles::Group;

use super::{Block, COLUMN_STEP, Quad, TOKEN_STEP};
use crate::memory::Plain;

/// Rows of activations that pass together: with two tiles 16 accumulators, which hide a latency of 5 cycles at two
/// products a cycle, and 10 loads for 16 products.
const TOKENS: usize = 8;

/// See [`super::Gemm::unpack`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn unpack(groups: &[Group], quads: &mut [Quad]) {
    let (planes, _) = quads.as_chunks_mut::<4>();
    assert!(groups.len() <= planes.len());
    let (filled, rest) = planes.split_at_mut(groups.len());
    let mask = _mm512_set1_epi8(3);
    for (group, planes) in groups.iter().zip(filled) {
        let words = load(group);
        store(_mm512_and_si512(words, mask), &mut planes[0]);
        store(
            _mm512_and_si512(_mm512_srli_epi32::<2>(words), mask),
            &mut planes[1],
        );
        store(
            _mm512_and_si512(_mm512_srli_epi32::<4>(words), mask),
            &mut planes[2],
        );
        store(
            _mm512_and_si512(_mm512_srli_epi32::<6>(words), mask),
            &mut planes[3],
        );
    }
    rest.as_flattened_mut().fill([0; 16]);
}

/// See [`super::Gemm::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply(mut block: Block<'_>) {
    block.check();
    for token in (0..block.n_tokens).step_by(TOKENS) {
        match block.n_tokens - token {
            1..=4 => tokens::<4>(&mut block, token),
            _ => tokens::<TOKENS>(&mut block, token),
        }
    }
}

/// Rows of activations `first ..`, `T` of them, all in one step of rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tokens<const T: usize>(block: &mut Block<'_>, first: usize) {
    let mut sums = [[_mm512_setzero_si512(); T]; 2];
    if block.more {
        for (sums, stored) in sums.iter_mut().zip(&block.sums) {
            for (sum, stored) in sums.iter_mut().zip(&stored[first..]) {
                *sum = load(stored);
            }
        }
    }
    let [mut sums_low, mut sums_high] = sums;
    let pieces = &block.x[first / TOKEN_STEP * block.stride..];
    let steps = block
        .codes
        .map(|codes| codes.as_chunks::<{ COLUMN_STEP / 4 }>().0);
    for ((low, high), piece) in steps[0].iter().zip(steps[1]).zip(pieces) {
        let rows: &[[i8; COLUMN_STEP]; T] = piece[first % TOKEN_STEP..]
            .first_chunk()
            .expect("T divides a step");
        for (i, (low, high)) in low.iter().zip(high).enumerate() {
            let (low, high) = (load(low), load(high));
            for t in 0..T {
                let x = rows[t].as_chunks::<4>().0[i].map(|x| x as u8);
                let x = _mm512_set1_epi32(i32::from_ne_bytes(x));
                sums_low[t] = _mm512_dpbusd_epi32(sums_low[t], low, x);
                sums_high[t] = _mm512_dpbusd_epi32(sums_high[t], high, x);
            }
        }
    }
    for (sums, stored) in [sums_low, sums_high].iter().zip(&mut block.sums) {
        for (sum, stored) in sums.iter().zip(&mut stored[first..]) {
            store(*sum, stored);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load<T: Plain>(lanes: &[T; 16]) -> __m512i {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: 16 values of 4 bytes are 64 readable bytes, and every bit pattern is a value of the lanes.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<T: Plain>(x: __m512i, lanes: &mut [T; 16]) {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: 16 values of 4 bytes are 64 writable bytes, and every bit pattern is a value of the lanes.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), x) };
}
