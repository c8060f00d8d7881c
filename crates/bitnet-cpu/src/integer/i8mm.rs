//! AArch64 with 8-bit matrix products: `smmla` multiplies 8 columns of two rows of weights with those of two rows of activations, twice
//! the products of an `sdot`. For one row of activations half of them would be for nothing, so that is left to `sdot`.
//!
//! The intrinsic is not stable, so this is assembly.
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over arrays are what becomes registers"
)]

use std::arch::aarch64::*;
use std::arch::asm;

use bitnet_layout::row_tiles::Group;

use super::{Block, COLUMN_STEP, Few, Piece, Quad, Spun, TILES, TOKEN_STEP};

/// Pairs of rows of activations whose sums are in registers at a time.
const PAIRS: usize = 2;

/// Rows of activations of those.
const ROWS: usize = 2 * PAIRS;

/// Groups of a step of columns.
const GROUPS: usize = COLUMN_STEP / 16;

/// Codes of eight columns of 16 rows, two rows a vector.
type Eight = [int8x16_t; 8];

/// By pair of rows of activations (a, b), then of weights (r, s): the sums of (r, a), (r, b), (s, a) and (s, b).
type Sums = [[int32x4_t; 8]; PAIRS];

/// See [`super::Integer`]: the four quads of a group are eight vectors of [`Eight`], twice.
#[target_feature(enable = "neon,i8mm")]
pub(super) fn unpack(groups: &[Group], quads: &mut [Quad]) {
    let (planes, _) = quads.as_chunks_mut::<4>();
    assert!(groups.len() <= planes.len(), "room for quads");
    let (filled, rest) = planes.split_at_mut(groups.len());
    for (group, planes) in groups.iter().zip(filled) {
        let mut words = load(group);
        for half in planes.as_chunks_mut::<2>().0 {
            let room = half.as_flattened_mut().as_chunks_mut::<4>().0;
            for (codes, to) in eight(&mut words).into_iter().zip(room) {
                // SAFETY: `to` is 16 writable bytes.
                unsafe { vst1q_s8(to.as_mut_ptr().cast(), codes) }
            }
        }
    }
    rest.as_flattened_mut().fill([0; 16]);
}

/// See [`super::Integer`]; the codes are what [`unpack`] makes.
#[target_feature(enable = "neon,i8mm")]
pub(super) fn multiply(block: &mut Block<'_>) {
    block.check();
    let n_pieces = block.codes[0].len() / (COLUMN_STEP / 4);
    for (codes, sums) in block.codes.into_iter().zip(&mut block.sums) {
        for first in (0..block.n_tokens).step_by(ROWS) {
            let pieces = &block.x[first / TOKEN_STEP * block.stride..][..n_pieces];
            let mut products = zero();
            for (piece, codes) in pieces.iter().zip(codes.as_chunks::<{ COLUMN_STEP / 4 }>().0) {
                for (j, codes) in codes.as_chunks::<2>().0.iter().enumerate() {
                    let codes = codes.as_flattened().as_chunks::<4>().0;
                    // SAFETY: each of the eight is 16 readable bytes.
                    let eight = std::array::from_fn(|i| unsafe { vld1q_s8(codes[i].as_ptr().cast()) });
                    add(&mut products, eight, pairs(piece, first % TOKEN_STEP, j));
                }
            }
            for (sums, products) in sums[first..first + ROWS].iter_mut().zip(rows(products)) {
                if !block.more {
                    *sums = [0; 16];
                }
                sums.iter_mut().zip(products).for_each(|(sum, y)| *sum += y);
            }
        }
    }
}

/// See [`super::Integer`].
///
/// # Panics
/// When the tiles are not of one length, or the activations or `out` not of theirs.
#[target_feature(enable = "neon,i8mm")]
pub(super) fn few(job: &Few<'_>, out: &mut [[i32; 16]]) {
    let n = job.n_tokens;
    assert!(
        (1..=TOKEN_STEP).contains(&n) && out.len() == TILES * n,
        "{n} rows"
    );
    for (tile, out) in job.tiles.into_iter().zip(out.chunks_exact_mut(n)) {
        assert_eq!(tile.len(), job.tiles[0].len(), "groups of a tile");
        assert_eq!(job.x.len(), tile.len().div_ceil(GROUPS), "pieces of activations");
        // Later passes find the weights in a cache.
        for (pass, out) in out.chunks_mut(ROWS).enumerate() {
            let mut products = zero();
            for (piece, groups) in job.x.iter().zip(tile.chunks(GROUPS)) {
                for (g, group) in groups.iter().enumerate() {
                    let mut words = load(group);
                    for half in 0..2 {
                        let x = pairs(piece, ROWS * pass, 2 * g + half);
                        add(&mut products, eight(&mut words), x);
                    }
                }
            }
            out.iter_mut()
                .zip(rows(products))
                .for_each(|(out, row)| *out = row);
        }
    }
}

/// See [`super::Integer`].
#[target_feature(enable = "neon,i8mm")]
pub(super) fn spin(n: usize, out: &mut Spun) {
    // As much as other sets do.
    let n = 700 * n;
    let (codes, x) = (vdupq_n_s32(0x0201_0002), vdupq_n_s32(0xfc03_fe01_u32 as i32));
    let (codes, x) = (vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
    let mut sums = zero();
    for _ in 0..n {
        for sums in &mut sums {
            for sum in sums {
                *sum = smmla(*sum, codes, x);
            }
        }
    }
    // Each sum has eight columns, a quad's lane has four.
    for (i, sum) in sums.into_iter().flatten().enumerate() {
        for (out, lane) in out.sums[i % 4 * 4..].iter_mut().zip(lanes(sum)) {
            *out += lane;
        }
    }
    out.n_products += (n * PAIRS * 8 * 32) as u64;
}

/// `sums[(r, a)] += codes[r] . x[a]` for two rows of each, eight columns long.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: this function is compiled for the extension, and the instruction reads and writes only the registers named. It has
    // no other effect; what is known to be unused must yet stay in a loop that is timed, so it is not `pure`.
    unsafe {
        asm!("smmla {sums:v}.4s, {codes:v}.16b, {x:v}.16b", sums = inout(vreg) sums, codes = in(vreg) codes,
            x = in(vreg) x, options(nomem, nostack, preserves_flags));
    }
    sums
}

#[inline]
#[target_feature(enable = "neon,i8mm")]
fn add(sums: &mut Sums, codes: Eight, x: [int8x16_t; PAIRS]) {
    for i in 0..8 {
        for p in 0..PAIRS {
            sums[p][i] = smmla(sums[p][i], codes[i], x[p]);
        }
    }
}

#[inline]
#[target_feature(enable = "neon,i8mm")]
fn zero() -> Sums {
    [[vdupq_n_s32(0); 8]; PAIRS]
}

/// The words of 16 columns, four rows a vector.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn load(group: &Group) -> [uint8x16_t; 4] {
    // SAFETY: each quarter of a group is 16 readable bytes.
    std::array::from_fn(|q| unsafe { vld1q_u8(group.as_ptr().add(4 * q).cast()) })
}

/// Codes of the first eight columns of `words`, which then begin with those that follow.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn eight(words: &mut [uint8x16_t; 4]) -> Eight {
    let mut eight = [vdupq_n_s8(0); 8];
    for q in 0..4 {
        let codes = |words| vreinterpretq_u32_u8(vandq_u8(words, vdupq_n_u8(3)));
        let next = vshrq_n_u8::<2>(words[q]);
        let (low, high) = (codes(words[q]), codes(next));
        eight[2 * q] = vreinterpretq_s8_u32(vzip1q_u32(low, high));
        eight[2 * q + 1] = vreinterpretq_s8_u32(vzip2q_u32(low, high));
        words[q] = vshrq_n_u8::<2>(next);
    }
    eight
}

/// The `j`-th eight columns of [`ROWS`] rows of activations from the `first` on.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn pairs(piece: &Piece, first: usize, j: usize) -> [int8x16_t; PAIRS] {
    // SAFETY: eight columns of a row are as many readable bytes.
    let row = |row: usize| unsafe { vld1_s8(piece[row].as_chunks::<8>().0[j].as_ptr()) };
    std::array::from_fn(|p| vcombine_s8(row(first + 2 * p), row(first + 2 * p + 1)))
}

/// The sums by row of activations.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn rows(sums: Sums) -> [[i32; 16]; ROWS] {
    let mut rows = [[0; 16]; ROWS];
    for p in 0..PAIRS {
        for q in 0..4 {
            let (low, high) = (sums[p][2 * q], sums[p][2 * q + 1]);
            rows[2 * p][4 * q..][..4].copy_from_slice(&lanes(vuzp1q_s32(low, high)));
            rows[2 * p + 1][4 * q..][..4].copy_from_slice(&lanes(vuzp2q_s32(low, high)));
        }
    }
    rows
}

#[inline]
#[target_feature(enable = "neon,i8mm")]
fn lanes(vector: int32x4_t) -> [i32; 4] {
    let mut lanes = [0; 4];
    // SAFETY: `lanes` is 16 writable bytes.
    unsafe { vst1q_s32(lanes.as_mut_ptr(), vector) };
    lanes
}
