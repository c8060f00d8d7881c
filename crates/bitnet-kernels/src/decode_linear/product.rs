//! The products of a warp: tiles of weights by the codes of one row.

use crate::bit_gemv::device::tile_sums;
use crate::intrinsics::*;

/// How a warp multiplies tiles of weights with a row of codes.
pub(super) trait Product {
    /// What a lane feeds to the products with one tile.
    type Fed: Copy;
    /// That of a tile of zeros.
    const ZERO: Self::Fed;

    /// From the four codes of every lane's [`tile_column`](super::device::tile_column).
    ///
    /// # Safety
    /// The whole warp calls this.
    unsafe fn feed(codes: u32) -> Self::Fed;

    /// Sums of rows `lane / 4` and `lane / 4 + 8` over `KPW` tiles, on the lanes that are multiples of 4.
    ///
    /// # Safety
    /// The whole warp calls this.
    unsafe fn sums<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[Self::Fed; KPW]) -> [i32; 2];
}

/// On the bits of codes and activations: column j of B is bit j of the activations. Words of weights are A as they are: where B
/// has ones at even places alone, the low bits of the codes count, at odd places the high bits, which are worth two.
pub(super) struct Bits;

impl Product for Bits {
    /// Byte i, bit j: bit `lane / 4` of code i of word j (in the order of [`mma_tile::activation_word`]) of the tile's
    /// columns `32 (lane % 4) ..`.
    type Fed = u32;
    const ZERO: u32 = 0;

    #[inline(always)]
    unsafe fn feed(codes: u32) -> u32 {
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

    #[inline(always)]
    unsafe fn sums<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[u32; KPW]) -> [i32; 2] {
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
        // This lane's columns are bits 2 t and 2 t + 1 of a code; its highest bit is worth -128.
        let t = lane_id() % 4;
        let first = 1 << (2 * t);
        let second = if t == 3 { -128 } else { 2 << (2 * t) };
        let row = |j: usize| {
            let sum = (low[j] + 2 * high[j]) * first + (low[j + 1] + 2 * high[j + 1]) * second;
            // SAFETY: the caller's promise.
            unsafe {
                let sum = sum + warp_shuffle_xor(FULL_MASK, sum, 1);
                sum + warp_shuffle_xor(FULL_MASK, sum, 2)
            }
        };
        [row(0), row(2)]
    }
}

/// On bytes: planes of codes are masked out of the words, and every column of B is the same row of activations.
pub(super) struct Bytes;

impl Product for Bytes {
    /// The words of the tile's columns `32 (lane % 4) ..`.
    type Fed = [u32; 8];
    const ZERO: [u32; 8] = [0; 8];

    #[inline(always)]
    unsafe fn feed(codes: u32) -> [u32; 8] {
        let mut words = [0; 8];
        let mut j = 0;
        while j < 8 {
            // SAFETY: the caller's promise.
            words[j] = unsafe { warp_shuffle_idx(FULL_MASK, codes, j as u32 * 4 + lane_id() % 4) };
            j += 1;
        }
        words
    }

    #[inline(always)]
    unsafe fn sums<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[[u32; 8]; KPW]) -> [i32; 2] {
        // SAFETY: the caller's promise.
        let d = unsafe { tile_sums(w, x) };
        [d[0], d[2]]
    }
}
