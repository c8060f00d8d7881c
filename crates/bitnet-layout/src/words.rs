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
    for (p, four) in t.as_chunks::<4>().0.iter().enumerate() {
        word |= u32::from_le_bytes(four.map(|t| code(t) as u8)) << (2 * p);
    }
    word
}

/// Unpacks 16 ternary values; a code 3 comes back as +2, so check [`is_valid`] first where the word is not trusted.
#[inline]
#[must_use]
pub fn unpack_word(word: u32) -> [i8; CODES_PER_WORD] {
    core::array::from_fn(|e| value((word >> shift(e)) & 3))
}

/// The word whose code of column `e` stands at bits `shift` and `shift + 1` of byte `e`; `shift` is 0, 2, 4 or 6.
#[inline]
#[must_use]
pub fn from_plane(bytes: &[u8; CODES_PER_WORD], shift: u32) -> u32 {
    let mut word = 0;
    for (p, &four) in bytes.as_chunks::<4>().0.iter().enumerate() {
        word |= ((u32::from_le_bytes(four) >> shift) & 0x0303_0303) << (2 * p);
    }
    word
}

/// Sets the bits that [`from_plane`] reads, in bytes where they are zero.
#[inline]
pub fn add_plane(word: u32, bytes: &mut [u8; CODES_PER_WORD], shift: u32) {
    for (p, four) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let codes = (word >> (2 * p)) & 0x0303_0303;
        *four = (u32::from_le_bytes(*four) | codes << shift).to_le_bytes();
    }
}

/// Whether no code of the word is 3.
#[inline]
#[must_use]
pub const fn is_valid(word: u32) -> bool {
    word & (word >> 1) & 0x5555_5555 == 0
}

/// Packs a row of ternary values.
///
/// # Panics
/// When `words` has not one word for every 16 values.
pub fn pack_row(t: &[i8], words: &mut [u32]) {
    let (chunks, rest) = t.as_chunks();
    assert!(
        rest.is_empty() && chunks.len() == words.len(),
        "{} values for {} words",
        t.len(),
        words.len()
    );
    for (word, t) in words.iter_mut().zip(chunks) {
        *word = pack_word(t);
    }
}

/// Unpacks a row of ternary values, the inverse of [`pack_row`].
///
/// # Panics
/// When `t` has not 16 values for every word.
pub fn unpack_row(words: &[u32], t: &mut [i8]) {
    assert_eq!(t.len(), words.len() * CODES_PER_WORD);
    for (&word, t) in words.iter().zip(t.as_chunks_mut().0) {
        *t = unpack_word(word);
    }
}

/// The shape of a matrix that the canonical layout can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    n: usize,
    k: usize,
}

/// A shape that a layout cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeError {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// What rows must be a multiple of.
    pub n_multiple: usize,
    /// What columns must be a multiple of.
    pub k_multiple: usize,
}

impl core::fmt::Display for ShapeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self {
            n,
            k,
            n_multiple,
            k_multiple,
        } = self;
        write!(
            f,
            "shape [{n}, {k}]: rows must be a positive multiple of {n_multiple}, columns a positive multiple of {k_multiple}, \
             and their product must fit in memory"
        )
    }
}

impl core::error::Error for ShapeError {}

impl ShapeError {
    /// Checks that rows and columns are positive multiples and that the number of codes fits `usize`.
    ///
    /// # Errors
    /// This error, otherwise.
    pub fn check(n: usize, k: usize, n_multiple: usize, k_multiple: usize) -> Result<(), Self> {
        let legal = |size: usize, multiple| size > 0 && size.is_multiple_of(multiple);
        if legal(n, n_multiple) && legal(k, k_multiple) && n.checked_mul(k).is_some() {
            Ok(())
        } else {
            Err(Self {
                n,
                k,
                n_multiple,
                k_multiple,
            })
        }
    }
}

impl Shape {
    /// `n` rows of `k` columns.
    ///
    /// # Errors
    /// When there are no rows, or `k` is not a positive multiple of 16, or `n * k` overflows.
    pub fn new(n: usize, k: usize) -> Result<Self, ShapeError> {
        ShapeError::check(n, k, 1, CODES_PER_WORD)?;
        Ok(Self { n, k })
    }

    /// Rows.
    #[must_use]
    pub const fn n(self) -> usize {
        self.n
    }

    /// Columns.
    #[must_use]
    pub const fn k(self) -> usize {
        self.k
    }

    /// Words of a row.
    #[must_use]
    pub const fn words_per_row(self) -> usize {
        self.k / CODES_PER_WORD
    }

    /// Words of the matrix.
    #[must_use]
    pub const fn words(self) -> usize {
        self.n * self.words_per_row()
    }

    /// Row and column of the first code 3 in `words` (the matrix, or its first rows), or `None` where every code is valid.
    #[must_use]
    pub fn first_invalid(self, words: &[u32]) -> Option<(usize, usize)> {
        let at = words.iter().position(|&word| !is_valid(word))?;
        let e = (0..CODES_PER_WORD).find(|&e| (words[at] >> shift(e)) & 3 == 3)?;
        let (row, chunk) = (at / self.words_per_row(), at % self.words_per_row());
        Some((row, chunk * CODES_PER_WORD + e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::{vec, vec::Vec};

    /// The layout as its description puts it, one code at a time.
    #[test]
    fn a_word_is_what_the_description_says() {
        let t: [i8; 16] = core::array::from_fn(|e| (e * 7 % 3) as i8 - 1);
        let word = pack_word(&t);
        for (e, &t) in t.iter().enumerate() {
            assert_eq!((word >> (8 * (e % 4) + 2 * (e / 4))) & 3, (t + 1) as u32);
        }
        for p in 0..4 {
            let four = ((word >> (2 * p)) & 0x0303_0303).to_le_bytes();
            assert_eq!(four.map(|code| code as i8 - 1), t[4 * p..4 * p + 4]);
        }
    }

    #[test]
    fn shapes() {
        let shape = Shape::new(5, 48).unwrap();
        assert_eq!(
            (shape.n(), shape.k(), shape.words_per_row(), shape.words()),
            (5, 48, 3, 15)
        );
        for (n, k) in [
            (0, 16),
            (1, 0),
            (1, 8),
            (1, 17),
            (3, 40),
            (usize::MAX / 16, 32),
            (usize::MAX, 1 << 63),
        ] {
            let error = Shape::new(n, k).unwrap_err();
            assert_eq!((error.n, error.k), (n, k));
            assert!(error.to_string().contains("multiple of 16"), "{error}");
        }
    }

    #[test]
    fn the_first_invalid_code_is_found() {
        let shape = Shape::new(4, 48).unwrap();
        for (row, col) in [(0, 0), (0, 47), (2, 17), (3, 30), (3, 47)] {
            let mut words = vec![0x5555_5555; shape.words()];
            assert_eq!(shape.first_invalid(&words), None);
            words[row * 3 + col / 16] |= 3 << shift(col % 16);
            *words.last_mut().unwrap() |= 3 << shift(15);
            assert_eq!(shape.first_invalid(&words), Some((row, col)));
        }
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(n in 1usize..6, chunks in 1usize..20, seed in any::<u64>()) {
            let shape = Shape::new(n, chunks * CODES_PER_WORD).unwrap();
            let mut state = seed;
            let t: Vec<i8> = (0..n * shape.k())
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) as i8 % 2
                })
                .collect();
            let mut words = vec![0; shape.words()];
            pack_row(&t, &mut words);
            prop_assert_eq!(shape.first_invalid(&words), None);
            let mut back = vec![9; t.len()];
            unpack_row(&words, &mut back);
            prop_assert_eq!(&back, &t);
            // Every column of every row stands where `shift` says.
            for (index, &t) in t.iter().enumerate() {
                let word = words[index / shape.k() * shape.words_per_row() + index % shape.k() / 16];
                prop_assert_eq!((word >> shift(index % 16)) & 3, code(t));
            }
        }

        #[test]
        fn packing_undoes_unpacking(word in any::<u32>().prop_filter("a code 3", |&word| is_valid(word))) {
            prop_assert_eq!(pack_word(&unpack_word(word)), word);
        }

        #[test]
        fn validity_is_the_absence_of_code_3(word in any::<u32>()) {
            prop_assert_eq!(is_valid(word), (0..16).all(|e| (word >> shift(e)) & 3 != 3));
        }
    }
}
