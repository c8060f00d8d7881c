//! Embeddings and output heads as a GPU keeps them: in bfloat16, where that loses nothing.
//!
//! The tables of GGUF files are often f16 copies of bfloat16 weights: every value of such a copy is a bfloat16 value still.

use crate::DenseDtype;

/// Replaces `words` with the stored elements `bytes` in bfloat16, two a word, the first in its low half.
///
/// # Errors
/// The index and the value of the first element that bfloat16 does not hold exactly.
pub(super) fn to_bf16(
    dtype: DenseDtype,
    bytes: &[u8],
    words: &mut Vec<u32>,
) -> std::result::Result<(), (usize, f32)> {
    words.clear();
    if dtype == DenseDtype::Bf16 {
        words.extend(bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)));
        return Ok(());
    }
    let mut values = vec![0.0; bytes.len() / dtype.size()];
    dtype.to_f32(bytes, &mut values);
    if let Some(at) = values.iter().position(|value| value.to_bits() & 0xffff != 0) {
        return Err((at, values[at]));
    }
    let pairs = values.as_chunks().0.iter();
    words.extend(pairs.map(|[low, high]: &[f32; 2]| low.to_bits() >> 16 | high.to_bits()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that bfloat16 and f16 both hold, a subnormal f16 among them.
    const VALUES: [f32; 6] = [1.0, -0.5, 0.0, 1.0 / 131_072.0, -240.0, 0.007_812_5];

    fn stored(dtype: DenseDtype, values: &[f32]) -> Vec<u8> {
        let element = |&value: &f32| match dtype {
            DenseDtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            DenseDtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            DenseDtype::F32 => value.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(element).collect()
    }

    #[test]
    fn the_same_values_of_any_type_are_the_same_words() {
        let mut expected = Vec::new();
        to_bf16(
            DenseDtype::Bf16,
            &stored(DenseDtype::Bf16, &VALUES),
            &mut expected,
        )
        .unwrap();
        assert_eq!(expected[0], 0xbf00_3f80);
        for dtype in [DenseDtype::F16, DenseDtype::F32] {
            let mut words = vec![7];
            to_bf16(dtype, &stored(dtype, &VALUES), &mut words).unwrap();
            assert_eq!(words, expected, "{dtype:?}");
        }
    }

    #[test]
    fn a_value_that_would_be_rounded_is_named() {
        for dtype in [DenseDtype::F16, DenseDtype::F32] {
            // One and a 1,024th needs eleven significant bits; bfloat16 has eight.
            let bytes = stored(dtype, &[2.0, 1.0 + 1.0 / 1024.0]);
            let found = to_bf16(dtype, &bytes, &mut Vec::new());
            assert_eq!(found, Err((1, 1.0 + 1.0 / 1024.0)), "{dtype:?}");
        }
    }
}
