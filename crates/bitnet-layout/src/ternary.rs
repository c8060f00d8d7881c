//! Ternary values, their 2-bit codes, and how real weights become ternary.
//!
//! A tensor of real weights `w` becomes `t = clamp(round(w * s), -1, 1)` with `s = 1 / max(mean |w|, 1e-5)`, in f32 with
//! the mean accumulated in f64, halves rounded to even (`WeightQuant` of transformers' `integrations/bitnet.py`). The mean
//! runs over the whole tensor, so quantizing takes two passes over the rows: [`abs_sum`] of each, then
//! [`WeightQuant::quantize`].

/// The 2-bit code of a ternary value: `t + 1`, so -1, 0 and +1 are 0, 1 and 2. Code 3 is never valid.
#[inline]
#[must_use]
pub const fn code(t: i8) -> u32 {
    (t + 1) as u32
}

/// The ternary value of a code: `code - 1`.
#[inline]
#[must_use]
pub const fn value(code: u32) -> i8 {
    code as i8 - 1
}

/// Rounds to the nearest integer, halves to even, for `|x| < 2^22`; larger values come back unrounded or rounded to a
/// nearby float, which every caller clamps.
///
/// `core` has no `round_ties_even`; adding and subtracting 1.5 * 2^23 makes the hardware's own rounding do it.
#[inline]
#[must_use]
pub fn round_ties_even(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    if x.abs() < 4_194_304.0 {
        (x + MAGIC) - MAGIC
    } else {
        x
    }
}

/// Sum of the magnitudes of a row, in f64 and in a fixed order: a tensor's sum is that of its rows' sums, first to last,
/// whichever threads computed them. It is NaN or infinite exactly when the row holds a NaN or an infinity.
#[must_use]
pub fn abs_sum(row: &[f32]) -> f64 {
    // Eight running sums hide the latency of the additions and let them become SIMD.
    const LANES: usize = 8;
    let mut sums = [0.0f64; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &w) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(w.abs());
        }
    }
    for (sum, &w) in sums.iter_mut().zip(rest) {
        *sum += f64::from(w.abs());
    }
    sums.iter().sum()
}

/// Quantization of one weight tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightQuant {
    /// `s`: multiplies a weight before rounding.
    pub inverse: f32,
    /// `1 / s`: what a ternary unit is worth, `w = t * scale`.
    pub scale: f32,
}

impl WeightQuant {
    /// From the sum of the magnitudes of the `count` weights of the tensor. A sum that is not finite gives a `scale` that
    /// is not finite and positive; callers that read files check for it.
    #[must_use]
    pub fn from_abs_sum(sum: f64, count: usize) -> Self {
        let mean = (sum / count as f64) as f32;
        // Not `f32::max`, which would turn a NaN into 1e-5.
        let inverse = 1.0 / if mean < 1e-5 { 1e-5 } else { mean };
        Self {
            inverse,
            scale: 1.0 / inverse,
        }
    }

    /// The ternary value of a weight.
    #[inline]
    #[must_use]
    pub fn quantize(&self, w: f32) -> i8 {
        // Clamped first: `|x| <= 1` needs no bound on what the rounding takes, and the result is the same.
        round_ties_even((w * self.inverse).clamp(-1.0, 1.0)) as i8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn codes() {
        for t in -1..=1 {
            assert_eq!(value(code(t)), t);
        }
        assert_eq!([code(-1), code(0), code(1)], [0, 1, 2]);
    }

    #[test]
    fn halves_round_to_even() {
        for (x, expected) in [
            (0.5, 0.0),
            (1.5, 2.0),
            (2.5, 2.0),
            (-0.5, 0.0),
            (-1.5, -2.0),
            (126.5, 126.0),
            (0.500_000_06, 1.0),
            (1e30, 1e30),
        ] {
            assert_eq!(round_ties_even(x), expected, "{x}");
        }
    }

    #[test]
    fn weights_round_around_half_the_mean() {
        let row = [0.5, -0.5, 0.75, -0.25, 0.0, 1.0, -1.0, 4.0];
        let quant = WeightQuant::from_abs_sum(abs_sum(&row), row.len());
        assert_eq!((quant.inverse, quant.scale), (1.0, 1.0));
        // 0.5 is a tie and goes to the even 0.
        assert_eq!(row.map(|w| quant.quantize(w)), [0, 0, 1, 0, 0, 1, -1, 1]);
    }

    #[test]
    fn tiny_means_are_floored() {
        let quant = WeightQuant::from_abs_sum(abs_sum(&[0.0, 1e-9]), 2);
        assert_eq!(quant.inverse, 1.0 / 1e-5);
        assert_eq!((quant.quantize(0.0), quant.quantize(1e-9)), (0, 0));
    }

    #[test]
    fn bad_weights_show_in_the_scale() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [0.1; 37];
            row[17] = bad;
            let scale = WeightQuant::from_abs_sum(abs_sum(&row), row.len()).scale;
            assert!(!scale.is_finite(), "{bad} gave {scale}");
        }
    }

    proptest! {
        #[test]
        fn rounding_equals_the_standard_library(x in -4_194_304.0f32..4_194_304.0) {
            prop_assert_eq!(round_ties_even(x), x.round_ties_even());
        }

        #[test]
        fn ternary_equals_the_definition(row in prop::collection::vec(-3.0f32..3.0, 1..100)) {
            let sum = row.iter().map(|w| f64::from(w.abs())).sum::<f64>();
            prop_assert!((abs_sum(&row) - sum).abs() <= 1e-12 * sum);
            let quant = WeightQuant::from_abs_sum(abs_sum(&row), row.len());
            let got: Vec<f32> = row.iter().map(|&w| f32::from(quant.quantize(w))).collect();
            let want: Vec<f32> = row.iter().map(|w| (w * quant.inverse).round_ties_even().clamp(-1.0, 1.0)).collect();
            prop_assert_eq!(got, want);
        }
    }
}
