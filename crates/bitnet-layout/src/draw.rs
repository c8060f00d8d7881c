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

/// Most tokens that masses can be added up of: their sum, and what is computed of it, fit in 64 bits.
pub const MAX_TOKENS: u32 = 1 << 23;

/// `exp((logit - max) * heat)` for `logit <= max`, where `heat` is one over the temperature: to about 1e-14, relative to itself.
///
/// For draws from a whole vocabulary, where [`weight`] with its divisions would be most of the work. Without branches and without
/// conversions to integers, so that a compiler makes vector instructions of several; the same bits wherever it is computed.
#[inline]
#[must_use]
pub fn share(logit: f32, max: f32, heat: f64) -> f64 {
    /// Adding 1.5 * 2^52 rounds to the nearest integer, which then lies in the lowest bits.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let x = (f64::from(logit) - f64::from(max)) * heat;
    let shifted = x * core::f64::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
    // Taylor series for |r| <= ln 2 / 2, by Horner's rule.
    let mut sum = 1.0 / 479_001_600.0;
    sum = sum * r + 1.0 / 39_916_800.0;
    sum = sum * r + 1.0 / 3_628_800.0;
    sum = sum * r + 1.0 / 362_880.0;
    sum = sum * r + 1.0 / 40_320.0;
    sum = sum * r + 1.0 / 5_040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    // Below, the exponent field would not hold `n`, and what was computed for infinity is no number.
    if x < -700.0 { 0.0 } else { sum * power }
}

/// A [`share`] as an integer, in units of 2^-40, rounded to the nearest: sums of these are exact, so they depend neither on the
/// order of the tokens nor on how many threads add them up. A share below 2^-41 is 0, and its token is never drawn.
#[inline]
#[must_use]
pub fn mass(share: f64) -> u64 {
    /// Adding 2^52 leaves an integer in the lowest bits.
    const MAGIC: f64 = 4_503_599_627_370_496.0;
    (share * (1u64 << 40) as f64 + MAGIC).to_bits() - MAGIC.to_bits()
}

/// The place of draw `random` (53 bits, see [`random_bits`]) in a total mass: `floor(random / 2^53 * total)`, exactly.
#[inline]
#[must_use]
pub fn place(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 53) as u64
}

/// The mass that the most likely tokens of a `total` mass must reach together: `top_p` of it, rounded up, at least 1.
#[inline]
#[must_use]
pub fn nucleus(total: u64, top_p: f32) -> u64 {
    const ONE: u64 = 1 << 53;
    let part = (f64::from(top_p) * ONE as f64) as u64;
    let goal = ((u128::from(part) * u128::from(total) + u128::from(ONE - 1)) >> 53) as u64;
    if goal == 0 { 1 } else { goal }
}

/// The bits of a logit, so that they order as unsigned numbers as logits do; -0 comes below +0.
#[inline]
#[must_use]
pub fn ordered(logit: f32) -> u32 {
    let bits = logit.to_bits();
    bits ^ ((bits as i32 >> 31) as u32 | 0x8000_0000)
}

/// The logit of [`ordered`] bits.
#[inline]
#[must_use]
pub fn unordered(ordered: u32) -> f32 {
    f32::from_bits(ordered ^ ((!ordered as i32 >> 31) as u32 | 0x8000_0000))
}

/// The most likely tokens that a cut keeps: those whose [`ordered`] logit is above `above`, and the first `ties` of those where it is
/// the same. The default keeps all: no logit but NaN has 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The [`ordered`] logit of the least likely token that is kept.
    pub above: u32,
    /// How many of the tokens with this logit are kept, the lowest first.
    pub ties: u32,
}

impl Cut {
    /// Digits of an [`ordered`] logit. A cut is found digit by digit, the highest first, from what the tokens of each value of a
    /// digit weigh together.
    pub const PASSES: u32 = 3;
    /// Values of a digit, at most.
    pub const BINS: u32 = 2048;

    /// The digit at `pass` of an [`ordered`] logit.
    #[inline]
    #[must_use]
    pub fn digit(pass: u32, ordered: u32) -> u32 {
        // The last has 10 bits, the others 11.
        match pass {
            0 => ordered >> 21,
            1 => ordered >> 10 & 0x7ff,
            _ => ordered & 0x3ff,
        }
    }

    /// Whether the digits before `pass` of an [`ordered`] logit are those of `self`.
    #[inline]
    #[must_use]
    pub fn matches(self, pass: u32, ordered: u32) -> bool {
        match pass {
            0 => true,
            1 => ordered >> 21 == self.above >> 21,
            _ => ordered >> 10 == self.above >> 10,
        }
    }

    /// The cut whose digit at `pass` is known too.
    #[inline]
    #[must_use]
    pub fn with(self, pass: u32, digit: u32) -> Self {
        let above = match pass {
            0 => digit << 21,
            1 => self.above | digit << 10,
            _ => self.above | digit,
        };
        Self { above, ties: 0 }
    }
}

/// The `index`-th draw of `seed`, in [0, 1): SplitMix64 of a counter (Steele, Lea and Flood 2014).
#[inline]
#[must_use]
pub fn uniform(seed: u64, index: u64) -> f64 {
    random_bits(seed, index) as f64 / (1u64 << 53) as f64
}

/// The 53 bits of [`uniform`].
#[inline]
#[must_use]
pub fn random_bits(seed: u64, index: u64) -> u64 {
    // The seed is mixed first: streams of neighboring seeds would otherwise be shifts of one another.
    let z =
        mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    z >> 11
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
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
    }

    #[test]
    fn shares_are_exponentials_and_masses_their_nearest_integers() {
        let mut before = 0;
        for i in 0..=200_000 {
            let logit = -700.0 * (1.0 - i as f32 / 200_000.0).powi(3);
            let (ours, theirs) = (share(logit, 0.0, 1.0), f64::from(logit).exp());
            assert!(
                (ours - theirs).abs() <= 4e-15 * theirs,
                "exp({logit}) = {ours}, not {theirs}"
            );
            assert_eq!(mass(ours), (ours * 2f64.powi(40)).round_ties_even() as u64);
            assert!(mass(ours) >= before, "a likelier token weighs no less");
            before = mass(ours);
        }
        assert_eq!(mass(share(3.5, 3.5, 1.0 / 0.7)), 1 << 40);
        // The smallest and the largest temperatures.
        let coldest = 1.0 / f64::from(f32::from_bits(1));
        assert_eq!([2.0, 3.0].map(|l| mass(share(l, 3.0, coldest))), [0, 1 << 40]);
        assert_eq!(mass(share(-9.0, 3.0, 1.0 / f64::from(f32::MAX))), 1 << 40);
        assert_eq!(share(f32::NEG_INFINITY, 3.0, 0.5), 0.0);
        assert_eq!(share(f32::MIN, f32::MAX, 1.0), 0.0);
    }

    #[test]
    fn places_and_goals_stay_within_the_total() {
        let most = (1 << 40) * u64::from(MAX_TOKENS);
        for total in [1, 7, 1 << 40, most] {
            assert_eq!(place(0, total), 0);
            assert!(place((1 << 53) - 1, total) < total);
            assert_eq!((nucleus(total, 0.0), nucleus(total, 1.0)), (1, total));
        }
        assert_eq!(place(1 << 52, 1001), 500);
        assert_eq!([0.5, 0.500_001].map(|p| nucleus(1000, p)), [500, 501]);
    }

    #[test]
    fn ordered_bits_order_as_logits_and_come_apart_into_digits() {
        let logits = [f32::NEG_INFINITY, f32::MIN, -1.5, -0.0, 0.0, 1e-40, 2.0, f32::MAX];
        for pair in logits.windows(2) {
            assert!(Cut::default().above < ordered(pair[0]) && ordered(pair[0]) < ordered(pair[1]));
        }
        for logit in logits {
            let bits = ordered(logit);
            assert_eq!(unordered(bits).to_bits(), logit.to_bits());
            let mut cut = Cut::default();
            for pass in 0..Cut::PASSES {
                assert!(cut.matches(pass, bits) && Cut::digit(pass, bits) < Cut::BINS);
                assert!(pass == 0 || !cut.matches(pass, !bits));
                cut = cut.with(pass, Cut::digit(pass, bits));
            }
            assert_eq!(cut.above, bits);
        }
    }
}
