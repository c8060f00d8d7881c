//! The arithmetic of drawing a token, shared by the samplers of host and device so that both draw the same.

/// `exp((logit - max) / temperature)` for `logit <= max`.
#[inline]
#[must_use]
pub fn weight(logit: f32, max: f32, temperature: f32) -> f64 {
    exp((f64::from(logit) - f64::from(max)) / f64::from(temperature))
}

/// `e^x` for `x <= 0` to about 1e-15, from additions, multiplications and divisions only: the system's `exp` differs between
/// platforms in the last bit, which is enough to draw another token. Taylor series after reduction to |r| <= ln 2 / 2.
#[inline]
#[must_use]
pub fn exp(x: f64) -> f64 {
    /// Adding and subtracting 1.5 * 2^52 rounds to the nearest integer, halves to even: `core` has no function for it.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    if x < -700.0 {
        return 0.0;
    }
    let n = (x * core::f64::consts::LOG2_E + MAGIC) - MAGIC;
    // ln 2 in two parts, the first with enough trailing zeros that `n` times it is exact (Cody and Waite).
    let r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
    let mut sum = 1.0;
    let mut i = 13u8;
    while i > 0 {
        sum = 1.0 + sum * r / f64::from(i);
        i -= 1;
    }
    // n is in -1010 ..= 0, so the exponent field stays in range.
    sum * f64::from_bits(((1023 + n as i64) as u64) << 52)
}

/// The [`weight`]s of several logits, bit for bit: the same operations side by side, of which a compiler makes vector instructions.
/// A kernel weighs few logits and leaves [`exp`] early where it may; a host without top-k weighs the whole vocabulary for each token.
#[inline]
#[must_use]
pub fn weights<const N: usize>(logits: [f32; N], max: f32, temperature: f32) -> [f64; N] {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let x = logits.map(|logit| (f64::from(logit) - f64::from(max)) / f64::from(temperature));
    let n = x.map(|x| (x * core::f64::consts::LOG2_E + MAGIC) - MAGIC);
    let mut r = [0.0; N];
    for ((r, x), n) in r.iter_mut().zip(&x).zip(&n) {
        *r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
    }
    let mut sums = [1.0; N];
    let mut i = 13u8;
    while i > 0 {
        for (sum, r) in sums.iter_mut().zip(&r) {
            *sum = 1.0 + *sum * r / f64::from(i);
        }
        i -= 1;
    }
    for ((sum, x), n) in sums.iter_mut().zip(&x).zip(&n) {
        // Below -700 the exponent field would not hold `n`, and what was computed for infinity is no number.
        *sum = if *x < -700.0 {
            0.0
        } else {
            *sum * f64::from_bits(((1023 + *n as i64) as u64) << 52)
        };
    }
    sums
}

/// The `index`-th draw of `seed`, in [0, 1): SplitMix64 of a counter (Steele, Lea and Flood 2014).
#[inline]
#[must_use]
pub fn uniform(seed: u64, index: u64) -> f64 {
    // The seed is mixed first: streams of neighboring seeds would otherwise be shifts of one another.
    let z =
        mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_of_the_libraries() {
        for i in 0..200_000 {
            let x = -700.0 * (f64::from(i) / 200_000.0).powi(3);
            let (ours, theirs) = (exp(x), x.exp());
            assert!(
                (ours - theirs).abs() <= 4.5e-16 * theirs,
                "exp({x}) = {ours}, not {theirs}"
            );
        }
        for i in 0..50_000u32 {
            let logits = [0.0, 0.37, 1.0, 31.0]
                .map(|step| 20.0 - step * (f64::from(i) / 50_000.0).powi(2) as f32 * 30.0);
            let several = weights(logits, 20.0, 0.7);
            assert_eq!(
                several,
                logits.map(|logit| weight(logit, 20.0, 0.7)),
                "{logits:?}"
            );
        }
        assert_eq!(
            weights([f32::NEG_INFINITY, -1e30, 3.0], 3.0, 0.5),
            [0.0, 0.0, 1.0]
        );
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
    }
}
