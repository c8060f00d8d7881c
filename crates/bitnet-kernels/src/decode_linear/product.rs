//! The products of a warp: tiles of weights by the codes of one row.

use crate::bits;
use crate::intrinsics::*;
use crate::tiles::tile_sums;

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

    /// Those of the row of codes `lane % 2` of two, on every lane; of the first row alone where nothing else is said.
    ///
    /// # Safety
    /// The whole warp calls this.
    #[inline(always)]
    unsafe fn sums_of_two<const KPW: usize>(w: &[[u32; 4]; KPW], x: [&[Self::Fed; KPW]; 2]) -> [i32; 2] {
        // SAFETY: the caller's promise.
        unsafe { Self::sums(w, x[0]) }
    }
}

/// On bits, see [`crate::bits`].
pub(super) struct Bits;

impl Product for Bits {
    type Fed = u32;
    const ZERO: u32 = 0;

    #[inline(always)]
    unsafe fn feed(codes: u32) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { bits::columns(codes) }
    }

    #[inline(always)]
    unsafe fn sums<const KPW: usize>(w: &[[u32; 4]; KPW], x: &[u32; KPW]) -> [i32; 2] {
        // SAFETY: the caller's promise.
        unsafe { bits::sums(w, x) }
    }

    #[inline(always)]
    unsafe fn sums_of_two<const KPW: usize>(w: &[[u32; 4]; KPW], x: [&[u32; KPW]; 2]) -> [i32; 2] {
        // SAFETY: the caller's promise.
        unsafe { bits::sums_of_two(w, x) }
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
