//! Embeddings and output heads as a GPU keeps them: in bfloat16, as the sum of two or three where one would lose something.
//!
//! The tables of GGUF files are often f16 copies of bfloat16 weights: every value of such a copy is a bfloat16 value still.

use crate::{Dense, DenseDtype, Result};
use bitnet_cuda::engine::TableForm;

/// Reads a matrix in pieces of whole rows: the first row, and the stored elements.
///
/// # Errors
/// When the matrix cannot be read, or `to` fails.
pub(super) fn pieces(dense: &dyn Dense, mut to: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
    const PIECE_BYTES: usize = 32 << 20;
    let (rows, cols) = dense.shape();
    let row_bytes = cols * dense.dtype().size();
    let at_once = (PIECE_BYTES / row_bytes).max(1);
    let mut bytes = Vec::new();
    for first in (0..rows).step_by(at_once) {
        bytes.resize(at_once.min(rows - first) * row_bytes, 0);
        dense.read_rows(first, &mut bytes)?;
        to(first, &bytes)?;
    }
    Ok(())
}

/// The fewest terms of which every element of a matrix is the sum.
///
/// # Errors
/// When the matrix cannot be read.
pub(super) fn form_of(dense: &dyn Dense) -> Result<TableForm> {
    let mut terms = 1;
    if dense.dtype() != DenseDtype::Bf16 {
        let mut values = Vec::new();
        pieces(dense, |_, bytes| {
            values.resize(bytes.len() / dense.dtype().size(), 0.0);
            dense.dtype().to_f32(bytes, &mut values);
            terms = values.iter().map(|&value| n_terms(value)).fold(terms, usize::max);
            Ok(())
        })?;
    }
    Ok(TableForm { terms })
}

/// The first bfloat16 of the sum that a value is, its upper half, and the rest, which is exact.
fn split(value: f32) -> (u32, f32) {
    let upper = value.to_bits() & 0xffff_0000;
    let rest = value - f32::from_bits(upper);
    // Infinities and numbers that are none have no rest that means anything.
    (upper >> 16, if rest.is_finite() { rest } else { 0.0 })
}

/// Terms of a value: each has eight bits of 24.
fn n_terms(mut value: f32) -> usize {
    for terms in 1..3 {
        value = split(value).1;
        if value == 0.0 {
            return terms;
        }
    }
    3
}

/// Replaces `words` with rows of `cols` stored elements in bfloat16, two a word, the first in its low half: of each row the first terms,
/// then the others, as that form has them.
pub(super) fn to_words(dtype: DenseDtype, bytes: &[u8], cols: usize, table: TableForm, words: &mut Vec<u32>) {
    words.clear();
    if dtype == DenseDtype::Bf16 && table.is_plain(cols) {
        words.extend(bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)));
        return;
    }
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    dtype.to_f32(bytes, &mut values);
    for row in values.chunks_exact_mut(cols) {
        let end = words.len() + table.stride(cols) / 2;
        for _ in 0..table.terms {
            words.extend(row.as_chunks_mut().0.iter_mut().map(|pair: &mut [f32; 2]| {
                let [low, high] = pair.map(split);
                *pair = [low.1, high.1];
                low.0 | high.0 << 16
            }));
        }
        words.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix in memory.
    struct Table {
        dtype: DenseDtype,
        cols: usize,
        bytes: Vec<u8>,
    }

    impl Table {
        fn new(dtype: DenseDtype, cols: usize, values: &[f32]) -> Self {
            let element = |&value: &f32| match dtype {
                DenseDtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                DenseDtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                DenseDtype::F32 => value.to_le_bytes().to_vec(),
            };
            let bytes = values.iter().flat_map(element).collect();
            Self { dtype, cols, bytes }
        }

        fn words(&self, table: TableForm) -> Vec<u32> {
            let mut words = vec![7];
            to_words(self.dtype, &self.bytes, self.cols, table, &mut words);
            words
        }
    }

    impl Dense for Table {
        fn dtype(&self) -> DenseDtype {
            self.dtype
        }

        fn shape(&self) -> (usize, usize) {
            (self.bytes.len() / self.dtype.size() / self.cols, self.cols)
        }

        fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()> {
            let start = first * self.cols * self.dtype.size();
            out.copy_from_slice(&self.bytes[start..start + out.len()]);
            Ok(())
        }
    }

    /// Values that bfloat16 and f16 both hold, a subnormal f16 among them.
    #[test]
    fn the_same_values_of_any_type_are_the_same_words() {
        let values: Vec<f32> = [1.0, -0.5, 0.0, 1.0 / 131_072.0, -240.0, 0.007_812_5]
            .into_iter()
            .chain([2.0; 26])
            .collect();
        let expected = Table::new(DenseDtype::Bf16, 32, &values).words(TableForm { terms: 1 });
        assert_eq!((expected[0], expected.len()), (0xbf00_3f80, 16));
        for dtype in [DenseDtype::F16, DenseDtype::F32] {
            let table = Table::new(dtype, 32, &values);
            let form = form_of(&table).unwrap();
            assert_eq!(form, TableForm { terms: 1 });
            assert_eq!(table.words(form), expected, "{dtype:?}");
        }
    }

    /// As many terms as it takes add up to the value, in rows that are filled up with zeros.
    #[test]
    fn values_that_bfloat16_would_round_become_sums() {
        // One and a 1,024th need eleven significant bits; a third has 24 in an f32. The smallest number of f16 is a power of two.
        let precise = [1.0 + 1.0 / 1024.0, -3.0, 5.960_464_5e-8, -65_504.0];
        for (dtype, first, terms) in [
            (DenseDtype::Bf16, 1.5, 1),
            (DenseDtype::F16, precise[0], 2),
            (DenseDtype::F32, 1.0 / 3.0, 3),
        ] {
            let values: Vec<f32> = [first, 0.25, precise[2], -1.0].repeat(6);
            let table = Table::new(dtype, 12, &values);
            let form = form_of(&table).unwrap();
            assert_eq!(form.terms, terms, "{dtype:?}");
            let words = table.words(form);
            assert_eq!(words.len(), 2 * form.stride(12) / 2);
            for (row, values) in words
                .chunks_exact(form.stride(12) / 2)
                .zip(values.chunks_exact(12))
            {
                let element = |i: usize| f32::from_bits((row[i / 2] >> (16 * (i % 2))) << 16);
                for (i, &value) in values.iter().enumerate() {
                    let sum = (0..terms).fold(0.0, |sum, term| sum + element(term * 12 + i));
                    let expected = if dtype == DenseDtype::Bf16 {
                        half::bf16::from_f32(value).to_f32()
                    } else {
                        value
                    };
                    assert_eq!(sum, expected, "{dtype:?}, element {i}");
                }
                assert!((terms * 12..form.stride(12)).all(|i| element(i) == 0.0));
            }
        }
        assert_eq!(n_terms(f32::INFINITY), 1);
        assert_eq!(n_terms(f32::NAN), 1);
    }
}
