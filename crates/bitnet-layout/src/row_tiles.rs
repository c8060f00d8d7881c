//! The CPU layout: canonical words regrouped so that 16 rows stand side by side.
//!
//! Tile `i` of an (n, k) matrix holds rows `16 i .. 16 i + 16`; it is `k / 16` groups of 16 words, group `c` holding word
//! `c` of each of its rows in order. So a tile is one contiguous stream, and a 64-byte load holds the same 16 columns of
//! 16 rows: masking plane `p` leaves, row by row, the codes of the four columns `16 c + 4 p ..`, to be multiplied with
//! the same four activations. Rows past `n` are zero words.

/// Rows of a tile.
pub const ROWS: usize = 16;

/// Word `c` of the 16 rows of a tile.
pub type Group = [u32; ROWS];

/// Tiles of a matrix with `n` rows.
#[must_use]
pub const fn n_tiles(n: usize) -> usize {
    n.div_ceil(ROWS)
}

/// Copies rows `16 i ..` of a canonical matrix with `words_per_row` words a row into tile `i`.
///
/// # Panics
/// When `tile` is not `words_per_row` groups, or `words` is not whole rows.
pub fn fill(words: &[u32], words_per_row: usize, i: usize, tile: &mut [Group]) {
    assert_eq!(tile.len(), words_per_row, "groups of a tile");
    if words_per_row == 0 {
        return;
    }
    assert_eq!(words.len() % words_per_row, 0, "words are whole rows");
    tile.fill([0; ROWS]);
    for (r, row) in words
        .chunks_exact(words_per_row)
        .skip(i * ROWS)
        .take(ROWS)
        .enumerate()
    {
        for (group, &word) in tile.iter_mut().zip(row) {
            group[r] = word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn tiles_regroup_words_and_pad_rows() {
        const WORDS: usize = 3;
        for n in [1, 15, 16, 17, 33] {
            let words: Vec<u32> = (0..(n * WORDS) as u32).map(|i| i + 1).collect();
            for i in 0..n_tiles(n) {
                let mut tile = [[u32::MAX; ROWS]; WORDS];
                fill(&words, WORDS, i, &mut tile);
                for (c, group) in tile.iter().enumerate() {
                    for (r, &word) in group.iter().enumerate() {
                        let row = i * ROWS + r;
                        let expected = if row < n { words[row * WORDS + c] } else { 0 };
                        assert_eq!(word, expected, "n = {n}, row {row}, word {c}");
                    }
                }
            }
        }
    }
}
