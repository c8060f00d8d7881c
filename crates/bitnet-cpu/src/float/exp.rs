//! The exponential function, without a branch so that it vectorizes, and the same on every machine.

use super::isa::{Isa, ROUND, scale};

/// The natural logarithm of 2, its first bits and the rest.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Of the polynomial, from the highest power down.
const FIRST: f32 = 1.987_569_1e-4;
const COEFFICIENTS: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x` within 2 units in the last place; 0 below -104, infinity above 89, NaN of NaN.
///
/// Cephes' `expf`: `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial for `e^r`, then two exact powers of two whose
/// product is `2^n`, because `2^n` alone would not reach subnormal results.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Comparisons that are false for NaN, so that it stays.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = FIRST;
    for c in COEFFICIENTS {
        p = p * r + c;
    }
    scale((p * (r * r) + r) + 1.0, rounded)
}

/// [`exp`] of lanes that are not positive, or NaN: the same bits.
#[inline(always)]
pub(super) fn exp_lanes<I: Isa>(isa: I, x: I::Lanes) -> I::Lanes {
    let x = isa.max(isa.splat(-104.0), x);
    let rounded = isa.add(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)), isa.splat(ROUND));
    let n = isa.add(rounded, isa.splat(-ROUND));
    // Negated factors, so that what is taken off is added.
    let r = isa.add(x, isa.mul(n, isa.splat(-LN2_HIGH)));
    let r = isa.add(r, isa.mul(n, isa.splat(-LN2_LOW)));
    let mut p = isa.splat(FIRST);
    for c in COEFFICIENTS {
        p = isa.add(isa.mul(p, r), isa.splat(c));
    }
    let y = isa.add(isa.add(isa.mul(p, isa.mul(r, r)), r), isa.splat(1.0));
    isa.scale(y, rounded)
}

#[cfg(test)]
mod tests {
    use super::super::isa::Portable;
    use super::{exp, exp_lanes};

    #[test]
    fn lanes_have_the_same_bits() {
        for i in 0..=70_000u32 {
            let x: [f32; 16] = std::array::from_fn(|l| -((16 * i + l as u32) as f32) * 1e-4);
            assert_eq!(
                exp_lanes(Portable, x).map(f32::to_bits),
                x.map(|x| exp(x).to_bits())
            );
        }
        let special = [0.0, -0.0, -1e30, f32::NEG_INFINITY];
        let x = std::array::from_fn(|l| special[l % 4]);
        assert_eq!(
            exp_lanes(Portable, x).map(f32::to_bits),
            x.map(|x| exp(x).to_bits())
        );
        assert!(exp_lanes(Portable, [f32::NAN; 16]).iter().all(|y| y.is_nan()));
    }

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
