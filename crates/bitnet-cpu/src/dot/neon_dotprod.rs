//! AArch64 with the dot product extension: `sdot` by element multiplies four columns of four rows of a tile.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, uint8x16_t, vandq_u8, vdupq_n_s32, vdupq_n_u8, vld1q_s8, vld1q_u32,
    vreinterpretq_s8_u8, vreinterpretq_u8_u32, vshrq_n_u8, vst1q_s32,
};
use std::arch::asm;

use bitnet_layout::row_tiles::Group;

use super::{Rows, in_blocks};

/// Rows of activations that share the unpacked codes: four accumulators each, of the 32 registers there are.
const BLOCK: usize = 4;

/// See [`super::DotFn`].
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]]) {
    in_blocks::<BLOCK>(x, out, |x, out| block(tile, x, out), |x, out| block(tile, x, out));
}

/// `sum[r] += codes[4 r ..] . x[4 P ..]`; the intrinsic (`vdotq_laneq_s32`) is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const P: usize>(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes only the registers named, and the feature is enabled.
    unsafe {
        asm!("sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{p}]", sum = inout(vreg) sum, codes = in(vreg) codes,
            x = in(vreg) x, p = const P, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// The four vectors of a group, four rows each.
#[inline]
#[target_feature(enable = "neon")]
fn load(group: &Group) -> [uint8x16_t; 4] {
    let (quarters, _) = group.as_chunks::<4>();
    std::array::from_fn(|q| {
        // SAFETY: a quarter of a group is 16 readable bytes.
        vreinterpretq_u8_u32(unsafe { vld1q_u32(quarters[q].as_ptr()) })
    })
}

/// `T` rows of activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn block<const T: usize>(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; T]) {
    let rows: [&[[i8; 16]]; T] = std::array::from_fn(|t| x.words(t, tile));
    let mask = vdupq_n_u8(3);
    let mut sums = [[vdupq_n_s32(0); 4]; T];
    for (c, group) in tile.iter().enumerate() {
        let words = load(group);
        // SAFETY: 16 activations are 16 readable bytes.
        let x: [int8x16_t; T] = std::array::from_fn(|t| unsafe { vld1q_s8(rows[t][c].as_ptr()) });
        for (q, &words) in words.iter().enumerate() {
            let codes = [
                vandq_u8(words, mask),
                vandq_u8(vshrq_n_u8::<2>(words), mask),
                vandq_u8(vshrq_n_u8::<4>(words), mask),
                vshrq_n_u8::<6>(words),
            ]
            .map(|codes| vreinterpretq_s8_u8(codes));
            for (sums, &x) in sums.iter_mut().zip(&x) {
                sums[q] = sdot::<0>(sums[q], codes[0], x);
                sums[q] = sdot::<1>(sums[q], codes[1], x);
                sums[q] = sdot::<2>(sums[q], codes[2], x);
                sums[q] = sdot::<3>(sums[q], codes[3], x);
            }
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        for (sum, out) in sums.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: `out` is 16 writable bytes.
            unsafe { vst1q_s32(out.as_mut_ptr(), sum) };
        }
    }
}
