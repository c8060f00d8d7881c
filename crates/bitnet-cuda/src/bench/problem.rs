//! What product kernels are given, and what they must return.

use crate::error::{Error, Result};
use bitnet_layout::random::Random;
use bitnet_layout::reference;
use bitnet_layout::words::Shape;

/// A ternary matrix and integer activations.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Rows and columns.
    pub shape: Shape,
    /// The matrix in the canonical layout.
    pub words: Vec<u32>,
    /// Activations, (cols, k).
    pub x: Vec<i8>,
}

impl Problem {
    /// Seeded random values; the first two columns and rows hold extremes: -128 throughout, all +1, all -1.
    ///
    /// # Errors
    /// When `k` is not a multiple of 16, or the matrix is empty or too large.
    pub fn random(n: usize, k: usize, cols: usize, seed: u64) -> Result<Self> {
        const PLUS: u32 = 0xaaaa_aaaa;
        const MINUS: u32 = 0;
        let shape = Shape::new(n, k).map_err(|e| Error::Request(e.to_string()))?;
        let mut random = Random::new(seed);
        let mut words: Vec<u32> = (0..shape.words()).map(|_| random.ternary_word()).collect();
        for (row, word) in [(0, PLUS), (1, MINUS)].into_iter().filter(|&(row, _)| row < n) {
            words[row * shape.words_per_row()..][..shape.words_per_row()].fill(word);
        }
        let mut x: Vec<i8> = (0..cols * k).map(|_| random.word() as i8).collect();
        if seed.is_multiple_of(4) {
            x[..k].fill(-128);
        }
        Ok(Self { shape, words, x })
    }

    /// Columns of activations.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.x.len() / self.shape.k()
    }

    /// The exact products, (cols, n), computed on all cores by [`bitnet_layout::reference`].
    #[must_use]
    pub fn product(&self) -> Vec<i32> {
        let (n, k, cols) = (self.shape.n(), self.shape.k(), self.cols());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let rows = n.div_ceil(threads);
        let parts: Vec<Vec<i32>> = std::thread::scope(|scope| {
            let bands = self.words.chunks(rows * self.shape.words_per_row());
            let handles: Vec<_> = bands.map(|band| scope.spawn(|| self.product_of(band))).collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_default())
                .collect()
        });
        debug_assert_eq!(parts.iter().map(Vec::len).sum::<usize>() * k, n * cols * k);
        let column = |c: usize| {
            parts
                .iter()
                .flat_map(move |part| part[c * part.len() / cols..][..part.len() / cols].iter().copied())
        };
        (0..cols).flat_map(column).collect()
    }

    /// Products of whole rows, (cols, rows).
    fn product_of(&self, band: &[u32]) -> Vec<i32> {
        let columns = self.x.chunks_exact(self.shape.k());
        let rows = || band.chunks_exact(self.shape.words_per_row());
        columns
            .flat_map(|x| rows().map(|row| reference::dot(row, x)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_hold_valid_codes_extremes_and_their_products() {
        let problem = Problem::random(5, 48, 3, 4).unwrap();
        assert_eq!(problem.shape.first_invalid(&problem.words), None);
        assert_eq!(problem.cols(), 3);
        let product = problem.product();
        assert_eq!(product.len(), 15);
        assert_eq!(product[..2], [-128 * 48, 128 * 48]);
        let mut expected = vec![0; 15];
        reference::linear(problem.shape, &problem.words, &problem.x, &mut expected);
        assert_eq!(product, expected);
        assert!(Problem::random(5, 40, 1, 0).is_err());
    }
}
