//! Products of ternary tiles with one row of 8-bit activations, bit by bit.
//!
//! A tensor core multiplies 8 columns where there is one row: let the columns be its 8 bits. Words of weights are A as they are,
//! two bits a code: where B has ones at even places alone, the low bits of the codes count, at odd places the high bits, which
//! are worth two. An instruction takes 16 rows by 128 codes, without unpacking.

use crate::intrinsics::*;

/// What a lane feeds to the products with one tile, from `codes`: four codes of word `lane / 4` (in the order of
/// [`activation_word`](bitnet_layout::mma_tile::activation_word)) of the tile's columns `32 (lane % 4) ..`. Bit j of byte i of
/// the result is bit `lane / 4` of code i of word j.
///
/// # Safety
/// The whole warp calls this.
#[inline(always)]
pub(crate) unsafe fn columns(codes: u32) -> u32 {
    // A transposition of 8 lanes by 8 bits, of four bytes at a time: halves change places with the lane at distance
    // 4, then quarters at distance 2, then single bits.
    let mut bits = codes;
    let mut distance = 4;
    while distance > 0 {
        let (keep, turn) = match (distance, (lane_id() / 4) & distance != 0) {
            (4, false) => (0x0f0f_0f0f, 4),
            (4, true) => (0xf0f0_f0f0, 28),
            (2, false) => (0x3333_3333, 2),
            (2, true) => (0xcccc_cccc, 30),
            (_, false) => (0x5555_5555, 1),
            (_, true) => (0xaaaa_aaaa, 31),
        };
        // SAFETY: the caller's promise.
        let other = unsafe { warp_shuffle_xor(FULL_MASK, bits, 4 * distance) };
        bits = (bits & keep) | (other.rotate_left(turn) & !keep);
        distance /= 2;
    }
    bits
}

/// Sums of rows `lane / 4` and `lane / 4 + 8` of a row of tiles over the `KPW` tiles of a warp, on every lane. `x` are the
/// [`columns`] of each.
///
/// # Safety
/// The whole warp calls this.
#[inline(always)]
pub(crate) unsafe fn sums<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[u32; KPW]) -> [i32; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        own_columns(w, x).map(|sum| {
            let sum = sum + warp_shuffle_xor(FULL_MASK, sum, 1);
            sum + warp_shuffle_xor(FULL_MASK, sum, 2)
        })
    }
}

/// [`sums`] of the row of activations `lane % 2` of two: neighbors give each other the half of the sum that they do not keep.
///
/// # Safety
/// The whole warp calls this.
#[inline(always)]
pub(crate) unsafe fn sums_of_two<const KPW: usize>(w: &[[u32; 4]; KPW], x: [&[u32; KPW]; 2]) -> [i32; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (own_columns(w, x[0]), own_columns(w, x[1]));
        let (keep, give) = if lane_id().is_multiple_of(2) {
            (a, b)
        } else {
            (b, a)
        };
        [0, 1].map(|row: usize| {
            let sum = keep[row] + warp_shuffle_xor(FULL_MASK, give[row], 1);
            sum + warp_shuffle_xor(FULL_MASK, sum, 2)
        })
    }
}

/// What this lane's two columns, bits `2 t` and `2 t + 1` of the activations, add to both rows' sums.
///
/// # Safety
/// The whole warp calls this.
#[inline(always)]
unsafe fn own_columns<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[u32; KPW]) -> [i32; 2] {
    const EVEN: u32 = 0x5555_5555;
    let (mut low, mut high) = ([0; 4], [0; 4]);
    let mut i = 0;
    while i < KPW {
        // SAFETY: the caller's promise.
        unsafe {
            low = mma_m16n8k256_b1(w[i], [x[i] & EVEN, (x[i] >> 1) & EVEN], low);
            high = mma_m16n8k256_b1(w[i], [(x[i] << 1) & !EVEN, x[i] & !EVEN], high);
        }
        i += 1;
    }
    // A code's highest bit is worth -128.
    let t = lane_id() % 4;
    let first = 1 << (2 * t);
    let second = if t == 3 { -128 } else { 2 << (2 * t) };
    [0, 2].map(|j: usize| (low[j] + 2 * high[j]) * first + (low[j + 1] + 2 * high[j + 1]) * second)
}
