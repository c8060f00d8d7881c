//! The GPU's layout: tiles of 16 rows by 128 columns in the order in which tensor cores take them.
//!
//! A tile is 128 canonical words (512 bytes): four consecutive words for each of the 32 lanes of a warp, so that one
//! 16-byte load a lane fetches a tile. Lane `4 g + t` holds, of the tile's rows `g` and `g + 8` and of its columns
//! `32 t .. 32 t + 32`, the words
//!
//! ```text
//! 0: row g, columns 32 t ..      1: row g + 8, columns 32 t ..
//! 2: row g, columns 32 t + 16 .. 3: row g + 8, columns 32 t + 16 ..
//! ```
//!
//! Plane `p` (bits `2 p` and `2 p + 1` of each byte) of the four words is then the A fragment of an
//! `mma.m16n8k32` (PTX ISA, "Matrix fragments for mma.m16n8k32": a0 row g, a1 row g + 8, a2 and a3 the same rows in the upper
//! half of k) whose B fragment is `x[32 t + 4 p ..]` and `x[32 t + 16 + 4 p ..]`: which column stands where along k is free, as
//! long as A and B agree. Tiles follow each other along k, then along n. A matrix is padded to whole tiles with word 0, whose
//! products vanish because activations are padded with zeros.
//!
//! The two words of such a B fragment are stored side by side, because a tensor core takes them from neighboring registers:
//! [`activation_word`].

use crate::words::Shape;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Columns of a tile.
pub const COLUMNS: usize = 128;
/// Words of a tile.
pub const WORDS: usize = 128;
/// Canonical words of one row of a tile.
const WORDS_PER_ROW: usize = COLUMNS / 16;

/// Tiles along n.
#[must_use]
pub const fn tiles_n(n: usize) -> usize {
    n.div_ceil(ROWS)
}

/// Tiles along k.
#[must_use]
pub const fn tiles_k(k: usize) -> usize {
    k.div_ceil(COLUMNS)
}

/// Words of an (n, k) matrix in tiles.
#[must_use]
pub const fn words(n: usize, k: usize) -> usize {
    tiles_n(n) * tiles_k(k) * WORDS
}

/// Index of canonical word `chunk` (columns `16 chunk ..`) of row `row` in a matrix of `tiles_k` tiles along k.
#[inline]
#[must_use]
pub const fn index(row: usize, chunk: usize, tiles_k: usize) -> usize {
    let tile = row / ROWS * tiles_k + chunk / WORDS_PER_ROW;
    let (g, lower) = (row % 8, row % ROWS / 8);
    let (t, upper_k) = (chunk % WORDS_PER_ROW / 2, chunk % 2);
    tile * WORDS + (4 * g + t) * 4 + 2 * upper_k + lower
}

/// Where, in a row of 8-bit activations, the word of columns `4 word ..` stands: words `p` and `p + 4` of every eight, which
/// are multiplied with plane `p`, become neighbors.
#[inline(always)]
#[must_use]
pub const fn activation_word(word: u32) -> u32 {
    word / 8 * 8 + word % 4 * 2 + word % 8 / 4
}

/// The orders in which kernels take the codes of rows of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeOrder {
    /// For products of a warp: row by row, in a row as [`activation_word`] says.
    Warp,
    /// For products of a warpgroup: tile by tile along k, in a tile row by row, 128 bytes each, in a row as [`warpgroup_word`] says. Rows
    /// are padded to a multiple of [`WARPGROUP_ROWS`].
    Warpgroup,
    /// The same for up to [`WARPGROUP_FEW`] rows, which are padded to a power of two from 16 on.
    WarpgroupFew,
}

/// What rows of activations are padded to a multiple of for products of a warpgroup.
pub const WARPGROUP_ROWS: usize = 128;
/// Most rows of [`CodeOrder::WarpgroupFew`].
pub const WARPGROUP_FEW: usize = 64;

/// Where, in the 32 words of a tile of row `row`, the word of columns `4 word ..` (0..32) stands for products of a warpgroup: plane by
/// plane, words `8 t + 4 h + p` for half h of lane t at `8 p + 4 h + t`; then pieces of four words are exchanged as in the 128-byte swizzle
/// (PTX ISA, "Shared memory matrix layout": bits 4 to 6 of an address are flipped by its bits 7 to 9).
#[inline(always)]
#[must_use]
pub const fn warpgroup_word(row: u32, word: u32) -> u32 {
    let piece = word % 4 * 2 + word % 8 / 4;
    (piece ^ (row % 8)) * 4 + word / 8
}

/// Rows of codes of a batch of `rows` in this order, those that pad it included.
#[must_use]
pub const fn padded_rows(order: CodeOrder, rows: usize) -> usize {
    match order {
        CodeOrder::Warp => rows,
        CodeOrder::Warpgroup => rows.next_multiple_of(WARPGROUP_ROWS),
        CodeOrder::WarpgroupFew if rows <= 16 => 16,
        CodeOrder::WarpgroupFew => rows.next_power_of_two(),
    }
}

/// How the rows of the tiles map to the rows of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Tile row `i` is matrix row `i`.
    Plain,
    /// The matrix is two stacked halves (gate, then up); a tile holds 8 rows of the first half, then the same 8 of the
    /// second, so that one lane ends up with both values of a pair.
    Paired,
}

impl RowOrder {
    /// The matrix row that stands in row `tile_row` of the tiles of an `n`-row matrix; `n` or more for padding.
    #[inline]
    #[must_use]
    pub const fn matrix_row(self, tile_row: usize, n: usize) -> usize {
        match self {
            Self::Plain => tile_row,
            Self::Paired => {
                let pair = tile_row / ROWS * 8 + tile_row % 8;
                if pair < n / 2 {
                    tile_row % ROWS / 8 * (n / 2) + pair
                } else {
                    n
                }
            }
        }
    }
}

/// Writes tile rows `16 first_tile ..` of a canonical matrix until `tiles` is full.
///
/// # Panics
/// When `words` is not of that shape, `tiles` is not whole rows of tiles, or a paired matrix has an odd number of rows.
pub fn pack(shape: Shape, order: RowOrder, words: &[u32], first_tile: usize, tiles: &mut [u32]) {
    let tiles_k = tiles_k(shape.k());
    let per_row = tiles_k * WORDS;
    assert!(words.len() == shape.words() && tiles.len().is_multiple_of(per_row));
    assert!(order == RowOrder::Plain || shape.n().is_multiple_of(2));
    for (i, band) in tiles.chunks_exact_mut(per_row).enumerate() {
        band.fill(0);
        for r in 0..ROWS {
            let row = order.matrix_row((first_tile + i) * ROWS + r, shape.n());
            if row < shape.n() {
                let start = row * shape.words_per_row();
                for (chunk, &word) in words[start..start + shape.words_per_row()].iter().enumerate() {
                    band[index(r, chunk, tiles_k)] = word;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    proptest! {
        /// Every word of the matrix stands exactly once in the tiles, where `index` says, and the rest is 0.
        #[test]
        fn pack_is_a_permutation(tile_pairs in 1_usize..4, extra in 0_usize..16, chunks in 1_usize..40, paired: bool) {
            let order = if paired { RowOrder::Paired } else { RowOrder::Plain };
            let n = tile_pairs * 16 + if paired { extra / 2 * 2 } else { extra };
            let shape = Shape::new(n, chunks * 16).unwrap();
            let source: Vec<u32> = (1..=shape.words() as u32).collect();
            let mut tiles = vec![u32::MAX; words(n, chunks * 16)];
            pack(shape, order, &source, 0, &mut tiles);
            let mut found = 0;
            for tile_row in 0..tiles_n(n) * ROWS {
                let row = order.matrix_row(tile_row, n);
                for chunk in 0..chunks {
                    let word = tiles[index(tile_row, chunk, tiles_k(chunks * 16))];
                    prop_assert_eq!(word, if row < n { source[row * chunks + chunk] } else { 0 });
                    found += usize::from(word != 0);
                }
            }
            prop_assert_eq!(found, source.len());
            prop_assert_eq!(tiles.iter().filter(|&&word| word != 0).count(), source.len());
        }

        /// Packing band by band gives what packing at once gives.
        #[test]
        fn bands(tiles_n in 1_usize..5, chunks in 1_usize..20) {
            let shape = Shape::new(tiles_n * 16, chunks * 16).unwrap();
            let source: Vec<u32> = (1..=shape.words() as u32).collect();
            let mut whole = vec![0; words(shape.n(), shape.k())];
            pack(shape, RowOrder::Plain, &source, 0, &mut whole);
            for (i, band) in whole.chunks_exact(whole.len() / tiles_n).enumerate() {
                let mut tiles = vec![u32::MAX; band.len()];
                pack(shape, RowOrder::Plain, &source, i, &mut tiles);
                prop_assert_eq!(&tiles[..], band);
            }
        }
    }

    #[test]
    fn fragments() {
        // Row 9, columns 48..64: lane 4 * 1 + 1, lower row, upper half of k.
        assert_eq!(index(9, 3, 1), (4 + 1) * 4 + 3);
        // The next tile along k, and the first tile of the next band.
        assert_eq!(index(0, 8, 2), WORDS);
        assert_eq!(index(16, 0, 2), 2 * WORDS);
    }
}
