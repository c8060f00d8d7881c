//! The packing of Hugging Face checkpoints: four rows to a byte.
//!
//! An (n, k) matrix is stored as `ceil(n / 4)` rows of `k` bytes. With `R = ceil(n / 4)`, bits `2 i .. 2 i + 2` of byte
//! (r, c) are the code `t + 1` of row `i R + r`, column `c` (`pack_weights` of transformers' `integrations/bitnet.py`).
//! Where `n` is not a multiple of 4 the codes of the rows past the last mean nothing. Code 3 never occurs in a sound file;
//! it survives the conversion to words, where [`crate::words::Shape::first_invalid`] finds it.

use crate::words::{CODES_PER_WORD, add_plane, from_plane};

/// Rows of bytes that hold `n` rows of codes.
#[must_use]
pub const fn packed_rows(n: usize) -> usize {
    n.div_ceil(4)
}

/// Unpacks one of the four rows in a row of bytes: row `plane * R + r` of the matrix out of packed row `r`.
///
/// # Panics
/// When `plane > 3`, or `packed` has not 16 bytes for every word.
pub fn unpack_row(packed: &[u8], plane: usize, words: &mut [u32]) {
    assert!(plane < 4 && packed.len() == words.len() * CODES_PER_WORD);
    for (word, bytes) in words.iter_mut().zip(packed.as_chunks::<CODES_PER_WORD>().0) {
        *word = from_plane(bytes, 2 * plane as u32);
    }
}

/// Packs up to four rows into a row of bytes, the inverse of [`unpack_row`]; `rows[i]` is row `i R + r` of the matrix.
///
/// # Panics
/// When there are more than four rows, or `packed` has not 16 bytes for every word of each.
pub fn pack_row(rows: &[&[u32]], packed: &mut [u8]) {
    assert!(rows.len() <= 4 && rows.iter().all(|row| row.len() * CODES_PER_WORD == packed.len()));
    packed.fill(0);
    for (plane, row) in rows.iter().enumerate() {
        for (word, bytes) in row.iter().zip(packed.as_chunks_mut::<CODES_PER_WORD>().0) {
            add_plane(*word, bytes, 2 * plane as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{self, Shape};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn pack(shape: Shape, words: &[u32]) -> Vec<u8> {
        let (packed_rows, k) = (packed_rows(shape.n()), shape.k());
        let rows: Vec<&[u32]> = words.chunks(shape.words_per_row()).collect();
        let mut packed = vec![0; packed_rows * k];
        for (r, bytes) in packed.chunks_mut(k).enumerate() {
            let planes: Vec<&[u32]> = rows.iter().skip(r).step_by(packed_rows).copied().collect();
            pack_row(&planes, bytes);
        }
        packed
    }

    fn unpack(shape: Shape, packed: &[u8]) -> Vec<u32> {
        let packed_rows = packed_rows(shape.n());
        let mut words = vec![0; shape.words()];
        for (row, words) in words.chunks_mut(shape.words_per_row()).enumerate() {
            let bytes = &packed[row % packed_rows * shape.k()..][..shape.k()];
            unpack_row(bytes, row / packed_rows, words);
        }
        words
    }

    /// What transformers' `pack_weights` makes of an 8x4 matrix, here beside 12 columns of zeros.
    #[test]
    fn transformers_vector() {
        let rows: [[i8; 4]; 8] = [
            [0, 1, 0, 0],
            [-1, -1, 1, -1],
            [-1, 0, -1, 1],
            [1, -1, -1, 1],
            [0, 1, 1, 1],
            [-1, 0, -1, -1],
            [1, -1, 0, -1],
            [-1, 1, 0, 0],
        ];
        let shape = Shape::new(8, 16).unwrap();
        let mut words = vec![0; shape.words()];
        for (word, row) in words.iter_mut().zip(rows) {
            *word = words::pack_word(&core::array::from_fn(|c| if c < 4 { row[c] } else { 0 }));
        }
        let packed = pack(shape, &words);
        assert_eq!(packed[..4], [0x91, 0x26, 0x61, 0x29]);
        assert_eq!(packed[16..20], [0x08, 0x90, 0x42, 0x48]);
        assert!(
            packed[4..16]
                .iter()
                .chain(&packed[20..])
                .all(|&byte| byte == 0x55)
        );
        assert_eq!(unpack(shape, &packed), words);
    }

    #[test]
    fn code_3_is_found_at_its_row_and_column() {
        let shape = Shape::new(12, 32).unwrap();
        for (row, col) in [(0, 0), (2, 31), (5, 16), (11, 7)] {
            let mut packed = vec![0x55; 3 * 32];
            packed[row % 3 * 32 + col] |= 3 << (2 * (row / 3));
            assert_eq!(shape.first_invalid(&unpack(shape, &packed)), Some((row, col)));
        }
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(n in 1usize..14, chunks in 1usize..6, seed in any::<u64>()) {
            let shape = Shape::new(n, chunks * CODES_PER_WORD).unwrap();
            let mut state = seed;
            let words: Vec<u32> = (0..shape.words())
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Clearing the low bit of each code 3 makes any word valid.
                    let word = (state >> 32) as u32;
                    word & !((word >> 1) & 0x5555_5555)
                })
                .collect();
            let packed = pack(shape, &words);
            prop_assert_eq!(packed.len(), n.div_ceil(4) * shape.k());
            prop_assert_eq!(&unpack(shape, &packed), &words);
            // The definition, one code at a time.
            let r = packed_rows(n);
            for (index, &byte) in packed.iter().enumerate() {
                for plane in 0..4 {
                    let (row, col) = (plane * r + index / shape.k(), index % shape.k());
                    if row < n {
                        let word = words[row * shape.words_per_row() + col / 16];
                        prop_assert_eq!(u32::from(byte >> (2 * plane)) & 3, (word >> words::shift(col % 16)) & 3);
                    }
                }
            }
        }
    }
}
