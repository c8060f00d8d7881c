//! Quantization of activations: 8 bits, one scale a row (a token).

use crate::ternary::round_ties_even;

/// Largest magnitude of a row, 0 when it is empty. NaN elements are skipped.
#[inline]
#[must_use]
pub fn absmax(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, x| x.abs().max(max))
}

/// The scale of a row whose largest magnitude is `absmax`: `127 / max(absmax, 1e-5)`.
#[inline]
#[must_use]
pub fn scale(absmax: f32) -> f32 {
    127.0 / absmax.max(1e-5)
}

/// The 8-bit value of an activation: `clamp(round(x * s), -128, 127)`, halves to even; NaN gives 0.
#[inline]
#[must_use]
pub fn quantize(x: f32, s: f32) -> i8 {
    round_ties_even((x * s).clamp(-128.0, 127.0)) as i8
}

/// Quantizes a row and returns its scale `s`: `x` is about `q / s`.
///
/// Divide 127 first, then multiply, as `ActQuant` of transformers' `integrations/bitnet.py` does: dividing by
/// `absmax / 127` rounds differently.
///
/// # Panics
/// When the lengths differ.
pub fn quantize_row(x: &[f32], q: &mut [i8]) -> f32 {
    assert_eq!(x.len(), q.len());
    let s = scale(absmax(x));
    for (q, &x) in q.iter_mut().zip(x) {
        *q = quantize(x, s);
    }
    s
}

/// Largest activation of `k` columns before a head of 8-bit weights: `k` products with 127 fit an i32, and an activation two
/// 8-bit terms, the high one worth 256.
#[must_use]
pub const fn head_largest(k: usize) -> i32 {
    let bound = i32::MAX as usize / (127 * if k == 0 { 1 } else { k });
    if bound < 127 * 256 + 127 {
        bound as i32
    } else {
        127 * 256 + 127
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    #[test]
    fn rows() {
        let mut q = [0; 4];
        // s = 1: the values are the codes, halves go to even.
        assert_eq!(quantize_row(&[127.0, -127.0, 0.5, -1.5], &mut q), 1.0);
        assert_eq!(q, [127, -127, 0, -2]);
        // A row below the floor of 1e-5 keeps its small codes.
        assert_eq!(quantize_row(&[1e-6, -1e-6, 0.0, 0.0], &mut q), 127.0 / 1e-5);
        assert_eq!(q, [13, -13, 0, 0]);
        assert_eq!(quantize_row(&[0.0; 4], &mut q), 127.0 / 1e-5);
        assert_eq!(q, [0; 4]);
        // The scale overflows nothing at the far end of f32.
        quantize_row(&[f32::MAX, -f32::MAX, 0.0, 1.0], &mut q);
        assert_eq!(q, [127, -127, 0, 0]);
    }

    proptest! {
        #[test]
        fn equals_the_definition(x in prop::collection::vec(-1e4f32..1e4, 0..70)) {
            let mut q = vec![0; x.len()];
            let s = quantize_row(&x, &mut q);
            let max = x.iter().map(|x| x.abs()).fold(0.0, f32::max);
            prop_assert_eq!(s, 127.0 / max.max(1e-5));
            for (&x, &q) in x.iter().zip(&q) {
                prop_assert_eq!(f32::from(q), (x * s).round_ties_even().clamp(-128.0, 127.0));
            }
        }
    }
}
