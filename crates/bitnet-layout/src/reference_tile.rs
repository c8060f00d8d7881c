//! The weight layout of Microsoft's GPU kernels (`gpu/pack_weight.py` of the BitNet repository), byte for byte.
//!
//! The matrix is cut into tiles of 16 rows and 32 columns, tiles row-major; a tile is 32 words, each 16 consecutive
//! columns of one row. With `r`, `c` the row and column in the tile, word `16 (r / 8) + 8 (c / 16) + r % 8` of the tile
//! holds the code; inside the word it stands where [`crate::words::shift`] puts it. Codes are `t + 2`: 1, 2 and 3, and 0
//! is invalid. So each word is a canonical one with 1 added to every code, in another place.

use crate::words::{CODES_PER_WORD, Shape, ShapeError};

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Columns of a tile.
pub const TILE_COLS: usize = 32;

/// 1 in every 2-bit field.
const ONES: u32 = 0x5555_5555;

/// A matrix in this layout: `n * k / 16` little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceTile {
    shape: Shape,
}

impl ReferenceTile {
    /// `n` rows of `k` columns.
    ///
    /// # Errors
    /// When `n` is not a positive multiple of 16 or `k` not of 32, or `n * k` overflows.
    pub fn new(n: usize, k: usize) -> Result<Self, ShapeError> {
        ShapeError::check(n, k, TILE_ROWS, TILE_COLS)?;
        Ok(Self {
            shape: Shape::new(n, k)?,
        })
    }

    /// The same matrix in the canonical layout.
    #[must_use]
    pub const fn shape(self) -> Shape {
        self.shape
    }

    /// Index of the word that holds columns `16 chunk .. 16 chunk + 16` of `row`. A bijection of rows and chunks onto
    /// `0 .. shape().words()`.
    #[inline]
    #[must_use]
    pub const fn word_index(self, row: usize, chunk: usize) -> usize {
        let tiles_per_row = self.shape.k() / TILE_COLS;
        let tile = (row / TILE_ROWS) * tiles_per_row + chunk / 2;
        let r = row % TILE_ROWS;
        32 * tile + 16 * (r / 8) + 8 * (chunk % 2) + r % 8
    }

    /// From the canonical layout; `words` must be valid.
    ///
    /// # Panics
    /// When a slice is not of the matrix' length.
    pub fn pack(self, words: &[u32], tiles: &mut [u32]) {
        assert!(words.len() == self.shape.words() && tiles.len() == words.len());
        for (row, words) in words.chunks_exact(self.shape.words_per_row()).enumerate() {
            for (chunk, word) in words.iter().enumerate() {
                // At most 2 + 1 in each field: nothing carries into the next.
                tiles[self.word_index(row, chunk)] = word.wrapping_add(ONES);
            }
        }
    }

    /// To the canonical layout.
    ///
    /// # Errors
    /// Row and column of the first code 0; `words` is then partly written.
    ///
    /// # Panics
    /// When a slice is not of the matrix' length.
    pub fn unpack(self, tiles: &[u32], words: &mut [u32]) -> Result<(), (usize, usize)> {
        assert!(words.len() == self.shape.words() && tiles.len() == words.len());
        for (row, words) in words.chunks_exact_mut(self.shape.words_per_row()).enumerate() {
            for (chunk, word) in words.iter_mut().enumerate() {
                let tile = tiles[self.word_index(row, chunk)];
                if (tile | tile >> 1) & ONES != ONES {
                    let zero = |e: &usize| (tile >> crate::words::shift(*e)) & 3 == 0;
                    let e = (0..CODES_PER_WORD).find(zero).unwrap_or(0);
                    return Err((row, CODES_PER_WORD * chunk + e));
                }
                *word = tile - ONES;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{pack_row, shift};
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};
    use std::string::String;
    use std::{format, vec, vec::Vec};

    fn pack(n: usize, k: usize, t: &[i8]) -> Vec<u8> {
        let layout = ReferenceTile::new(n, k).unwrap();
        let mut words = vec![0; layout.shape().words()];
        pack_row(t, &mut words);
        let mut tiles = vec![0; words.len()];
        layout.pack(&words, &mut tiles);
        let mut back = vec![0; words.len()];
        layout.unpack(&tiles, &mut back).unwrap();
        assert_eq!(back, words);
        tiles.iter().flat_map(|tile| tile.to_le_bytes()).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The values `pack_weight.py` gives for `w[i][j] = (32 i + j) % 3 - 1`.
    #[test]
    fn counting_matrix() {
        let t: Vec<i8> = (0..512).map(|i| (i % 3) as i8 - 1).collect();
        let packed = pack(16, 32, &t);
        assert_eq!(hex(&packed[..16]), "799ee779e7799ee79ee7799e799ee779");
        assert_eq!(hex(&packed[124..]), "9ee7799e");
    }

    #[test]
    fn single_values() {
        for (row, col, t, byte, value) in [(9, 17, 1, 101, 0xab), (3, 22, -1, 46, 0xa6)] {
            let mut matrix = vec![0; 512];
            matrix[row * 32 + col] = t;
            let packed = pack(16, 32, &matrix);
            for (index, &found) in packed.iter().enumerate() {
                assert_eq!(found, if index == byte { value } else { 0xaa }, "byte {index}");
            }
        }
    }

    /// What `pack_weight.py` gives for a 32x64 matrix from a linear congruential generator.
    #[test]
    fn random_matrix() {
        let mut x = 1u32;
        let t: Vec<i8> = (0..32 * 64)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((x >> 16) % 3) as i8 - 1
            })
            .collect();
        assert_eq!(t[..8], [0, 1, 0, 0, -1, -1, 1, -1]);
        let packed = pack(32, 64, &t);
        assert_eq!(hex(&packed[..16]), "d6675ef67ddba7e76f7aad5daedddeea");
        assert_eq!(hex(&packed[504..]), "d6bbbfadd5aa6bff");
        assert_eq!(
            hex(&Sha256::digest(&packed)),
            "421e7d243f5b25ed8a51b7c9f6205096c3c1017ed5c83dd1af72cf17dd01e615"
        );
    }

    #[test]
    fn shapes() {
        for (n, k) in [(0, 32), (16, 0), (8, 32), (16, 16), (24, 64), (32, 48)] {
            assert!(ReferenceTile::new(n, k).is_err(), "{n} x {k}");
        }
        assert!(ReferenceTile::new(48, 96).is_ok());
    }

    #[test]
    fn code_0_is_found_at_its_row_and_column() {
        let layout = ReferenceTile::new(32, 64).unwrap();
        for (row, col) in [(0, 0), (17, 63), (31, 40), (9, 5)] {
            let mut tiles = vec![0xaaaa_aaaa; layout.shape().words()];
            tiles[layout.word_index(row, col / 16)] &= !(3 << shift(col % 16));
            assert_eq!(layout.unpack(&tiles, &mut vec![0; tiles.len()]), Err((row, col)));
        }
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(n in 1usize..4, k in 1usize..5, seed in any::<u32>()) {
            let (n, k) = (n * TILE_ROWS, k * TILE_COLS);
            let mut x = seed;
            let t: Vec<i8> = (0..n * k)
                .map(|_| {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((x >> 16) % 3) as i8 - 1
                })
                .collect();
            // `pack` checks that unpacking gives the words back; here the closed form, one code at a time.
            let packed = pack(n, k, &t);
            for (index, &t) in t.iter().enumerate() {
                let (row, col) = (index / k, index % k);
                let (r, c) = (row % 16, col % 32);
                let word = 32 * ((row / 16) * (k / 32) + col / 32) + 16 * (r / 8) + 8 * (c / 16) + r % 8;
                let e = c % 16;
                let code = (packed[4 * word + e % 4] >> (2 * (e / 4))) & 3;
                prop_assert_eq!(code as i8 - 2, t);
            }
        }
    }
}
