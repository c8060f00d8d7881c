//! AArch64 without the dot product extension: `smlal` into 16 bits, widened now and then by `sadalp`.

use std::arch::aarch64::{
    int16x8_t, int32x4_t, uint8x16_t, vandq_u8, vdupq_n_s16, vdupq_n_s32, vdupq_n_u8, vget_low_s8, vld1q_u32,
    vmlal_high_s8, vmlal_s8, vpadalq_s16, vpaddq_s32, vreinterpretq_s8_s32, vreinterpretq_s8_u8,
    vreinterpretq_u8_u32, vshrq_n_u8, vst1q_s32,
};

use bitnet_layout::row_tiles::Group;

use super::{Rows, in_blocks};

/// Rows of activations that share the unpacked codes.
const BLOCK: usize = 2;

/// Groups between two widenings: a group adds at most `4 * 2 * 128 = 1024` to a 16-bit lane.
const RUN: usize = 31;

/// See [`super::DotFn`].
#[target_feature(enable = "neon")]
pub(super) fn dot(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]]) {
    in_blocks::<BLOCK>(x, out, |x, out| block(tile, x, out), |x, out| block(tile, x, out));
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

/// `T` rows of activations, four rows of weights at a time.
#[inline]
#[target_feature(enable = "neon")]
fn block<const T: usize>(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]; T]) {
    let rows: [&[[i8; 16]]; T] = std::array::from_fn(|t| x.words(t, tile));
    let mask = vdupq_n_u8(3);
    // By row of activations, quarter of the tile, and half of that: two rows of weights, two sums each.
    let mut sums: [[[int32x4_t; 2]; 4]; T] = [[[vdupq_n_s32(0); 2]; 4]; T];
    for (run, groups) in tile.chunks(RUN).enumerate() {
        let mut short: [[[int16x8_t; 2]; 4]; T] = [[[vdupq_n_s16(0); 2]; 4]; T];
        for (c, group) in groups.iter().enumerate() {
            let words = load(group);
            for (q, &words) in words.iter().enumerate() {
                let codes = [
                    vandq_u8(words, mask),
                    vandq_u8(vshrq_n_u8::<2>(words), mask),
                    vandq_u8(vshrq_n_u8::<4>(words), mask),
                    vshrq_n_u8::<6>(words),
                ];
                for (p, codes) in codes.into_iter().enumerate() {
                    let codes = vreinterpretq_s8_u8(codes);
                    for (short, x) in short.iter_mut().zip(&rows) {
                        let x = &x[run * RUN + c];
                        let quad = [
                            x[4 * p] as u8,
                            x[4 * p + 1] as u8,
                            x[4 * p + 2] as u8,
                            x[4 * p + 3] as u8,
                        ];
                        let x = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(quad)));
                        let [low, high] = &mut short[q];
                        *low = vmlal_s8(*low, vget_low_s8(codes), vget_low_s8(x));
                        *high = vmlal_high_s8(*high, codes, x);
                    }
                }
            }
        }
        for (sums, short) in sums
            .iter_mut()
            .flatten()
            .flatten()
            .zip(short.into_iter().flatten().flatten())
        {
            *sums = vpadalq_s16(*sums, short);
        }
    }
    for (sums, out) in sums.into_iter().zip(out) {
        for ([low, high], out) in sums.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: `out` is 16 writable bytes.
            unsafe { vst1q_s32(out.as_mut_ptr(), vpaddq_s32(low, high)) };
        }
    }
}
