//! The exponential function, without a branch so that it vectorizes, and the same on every machine.

/// Adding and subtracting it rounds to an integer, halves to even, and leaves that integer in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// `e^x` within 2 units in the last place; 0 below -104, infinity above 89, NaN of NaN.
///
/// Cephes' `expf`: `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial for `e^r`, then two exact powers of two whose
/// product is `2^n`, because `2^n` alone would not reach subnormal results.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons that are false for NaN, so that it stays.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let y = (p * (r * r) + r) + 1.0;
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    y * power(half) * power(n.wrapping_sub(half))
}

/// `2^n` for n from -126 to 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn close_to_the_exact_value() {
        for i in -1_040_000..=890_000 {
            let x = i as f32 * 1e-4;
            let (found, exact) = (exp(x), f64::from(x).exp());
            let ulp = if exact < f64::from(f32::MIN_POSITIVE) {
                2f64.powi(-149)
            } else {
                exact * 2f64.powi(-23)
            };
            if exact < f64::from(f32::MAX) {
                assert!(
                    (f64::from(found) - exact).abs() <= 2.0 * ulp,
                    "exp({x}) = {found}"
                );
            }
        }
    }

    #[test]
    fn special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
