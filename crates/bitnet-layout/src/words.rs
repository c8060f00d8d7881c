//! The canonical layout: row-major 32-bit words of 16 codes.
//!
//! Row `n` of an (n, k) matrix is `k / 16` consecutive little-endian words; word `c` holds columns `16 c .. 16 c + 16`.
//! Column `16 c + e` sits at bits `8 (e % 4) + 2 (e / 4)`: masking a word with `0x03030303 << 2 p` leaves the codes of the
//! four consecutive columns `16 c + 4 p ..`, one a byte, which is what 8-bit dot products take on a GPU and on a CPU.
//! Codes are `t + 1`; a word is valid when no code is 3.

use crate::ternary::{code, value};

/// Codes in a word.
pub const CODES_PER_WORD: usize = 16;

/// Bit offset of element `e` (0..16) of a word.
#[inline]
#[must_use]
pub const fn shift(e: usize) -> u32 {
    (8 * (e % 4) + 2 * (e / 4)) as u32
}

/// Packs 16 ternary values.
#[inline]
#[must_use]
pub fn pack_word(t: &[i8; CODES_PER_WORD]) -> u32 {
    let mut word = 0;
    for (e, &t) in t.iter().enumerate() {
        word |= code(t) << shift(e);
    }
    word
}

/// Unpacks 16 ternary values; a code 3 comes back as +2, so check [`is_valid`] first where the word is not trusted.
#[inline]
#[must_use]
pub fn unpack_word(word: u32) -> [i8; CODES_PER_WORD] {
    core::array::from_fn(|e| value((word >> shift(e)) & 3))
}

/// Whether no code of the word is 3.
#[inline]
#[must_use]
pub const fn is_valid(word: u32) -> bool {
    word & (word >> 1) & 0x5555_5555 == 0
}
