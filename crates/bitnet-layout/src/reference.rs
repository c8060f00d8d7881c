//! Scalar ternary products: slow, obvious, and what every fast path must equal exactly.

use crate::words::{CODES_PER_WORD, Shape, unpack_word};

/// Product of a packed row with 8-bit activations: `sum over c of t[c] * x[c]`, exact in i32 for up to 2^24 columns.
///
/// # Panics
/// When `x` has not 16 elements for every word.
#[must_use]
pub fn dot(row: &[u32], x: &[i8]) -> i32 {
    let (chunks, rest) = x.as_chunks::<CODES_PER_WORD>();
    assert!(
        rest.is_empty() && chunks.len() == row.len(),
        "{} activations for {} words",
        x.len(),
        row.len()
    );
    let mut sum = 0;
    for (&word, x) in row.iter().zip(chunks) {
        for (t, &x) in unpack_word(word).into_iter().zip(x) {
            sum += i32::from(t) * i32::from(x);
        }
    }
    sum
}

/// Products of an (n, k) matrix with m rows of activations: `y[m][n] = sum over k of t[n][k] * x[m][k]`.
///
/// `words` is the matrix in the canonical layout, `x` (m, k) and `y` (m, n) are row-major.
///
/// # Panics
/// When `words` is not of that shape, `x` is not a whole number of rows, or `y` has not as many.
pub fn linear(shape: Shape, words: &[u32], x: &[i8], y: &mut [i32]) {
    let (x, rest) = (x.chunks_exact(shape.k()), x.len() % shape.k());
    assert!(words.len() == shape.words() && rest == 0 && y.len() == x.len() * shape.n());
    for (x, y) in x.zip(y.chunks_exact_mut(shape.n())) {
        for (row, y) in words.chunks_exact(shape.words_per_row()).zip(y) {
            *y = dot(row, x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::pack_row;
    use std::{vec, vec::Vec};

    #[test]
    fn by_hand() {
        let shape = Shape::new(3, 32).unwrap();
        let t: Vec<i8> = (0..96).map(|i| (i * i % 3 - i % 2) as i8).collect();
        let x: Vec<i8> = (0..64).map(|i| (i * 37 % 256 - 128) as i8).collect();
        let mut words = vec![0; shape.words()];
        pack_row(&t, &mut words);
        let mut y = vec![0; 6];
        linear(shape, &words, &x, &mut y);
        for m in 0..2 {
            for n in 0..3 {
                let sum: i32 = (0..32)
                    .map(|k| i32::from(t[n * 32 + k]) * i32::from(x[m * 32 + k]))
                    .sum();
                assert_eq!(y[m * 3 + n], sum);
            }
        }
    }

    #[test]
    fn extremes_are_exact() {
        let k = 6912;
        let mut words = vec![0; k / 16];
        pack_row(&vec![-1; k], &mut words);
        assert_eq!(dot(&words, &vec![-128; k]), 128 * 6912);
    }
}
