//! Sixteen f32 lanes, in the registers of each instruction set.
//!
//! The compiler's own vectorizer was tried first: it finds the lanes in simple loops and loses them (gathers, pairs of
//! lanes, sums kept in memory) in others that look the same, so the loops that matter name their vectors.

#[cfg(target_arch = "aarch64")]
pub(super) mod arm;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use super::number::{Bf16, F16};

/// Adding and subtracting it rounds to an integer, halves to even, and leaves that integer in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Proof that an instruction set may be used here, and its operations on 16 lanes. Every operation rounds once, so all
/// implementations give the same bits.
pub(crate) trait Isa: Copy {
    /// 16 lanes.
    type Lanes: Copy;
    /// How many values of [`Isa::Lanes`] the registers hold, a few left over for operands.
    const ACCUMULATORS: usize;

    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::Lanes;
    /// Lanes from memory.
    fn load(self, x: &[f32; 16]) -> Self::Lanes;
    /// Lanes to memory.
    fn store(self, x: Self::Lanes, to: &mut [f32; 16]);
    /// bfloat16, widened.
    fn load_bf16(self, x: &[Bf16; 16]) -> Self::Lanes;
    /// IEEE half, widened.
    fn load_f16(self, x: &[F16; 16]) -> Self::Lanes;
    /// 8-bit integers, widened.
    fn load_i8(self, x: &[i8; 16]) -> Self::Lanes;
    /// The ternary values in bits `shift..shift + 2` of each word: the code less 1.
    fn load_codes(self, words: &[u32; 16], shift: u32) -> Self::Lanes;
    /// Integers less `less`, rounded.
    fn load_i32(self, x: &[i32; 16], less: i32) -> Self::Lanes;
    /// `a + b`.
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a * b`.
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// 0 where `a` is negative, `a` elsewhere.
    fn relu(self, a: Self::Lanes) -> Self::Lanes;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    /// The greater of `a` and `b`; `b` where one of them is NaN.
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;

    /// `x * 2^(n - ROUND)` of lanes `n` that [`ROUND`] has rounded to integers, from -252 to 254 with it taken off, rounded once.
    #[inline(always)]
    fn scale(self, x: Self::Lanes, n: Self::Lanes) -> Self::Lanes {
        let (mut lanes, mut powers) = ([0.0; 16], [0.0; 16]);
        self.store(x, &mut lanes);
        self.store(n, &mut powers);
        for (x, n) in lanes.iter_mut().zip(powers) {
            *x = scale(*x, n);
        }
        self.load(&lanes)
    }

    /// Asks for the cache line that lies `bytes` after `x`, where the instruction set can.
    #[inline(always)]
    fn prefetch<T>(self, x: &T, bytes: usize) {
        let _ = (x, bytes);
    }

    /// The greatest of the lanes, none of which is NaN.
    #[inline(always)]
    fn most(self, x: Self::Lanes) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        let mut most = lanes[0];
        for lane in lanes {
            most = if lane > most { lane } else { most };
        }
        most
    }

    /// The sum of the lanes, as a tree.
    #[inline(always)]
    fn sum(self, x: Self::Lanes) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        super::sum(lanes)
    }
}

/// `y * 2^(n - ROUND)` of an `n` that [`ROUND`] has rounded to an integer.
#[inline(always)]
pub(crate) fn scale(y: f32, n: f32) -> f32 {
    let n = n.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    y * power(half) * power(n.wrapping_sub(half))
}

/// `2^n` for n from -126 to 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Portable Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Isa for Portable {
    type Lanes = [f32; 16];
    const ACCUMULATORS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }

    #[inline(always)]
    fn store(self, x: [f32; 16], to: &mut [f32; 16]) {
        *to = x;
    }

    #[inline(always)]
    fn load_bf16(self, x: &[Bf16; 16]) -> [f32; 16] {
        x.map(Bf16::widen)
    }

    #[inline(always)]
    fn load_f16(self, x: &[F16; 16]) -> [f32; 16] {
        x.map(F16::widen)
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> [f32; 16] {
        x.map(f32::from)
    }

    #[inline(always)]
    fn load_codes(self, words: &[u32; 16], shift: u32) -> [f32; 16] {
        words.map(|word| (word >> shift & 3) as f32 - 1.0)
    }

    #[inline(always)]
    fn load_i32(self, x: &[i32; 16], less: i32) -> [f32; 16] {
        x.map(|x| (x - less) as f32)
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|l| a[l] + b[l])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|l| a[l] * b[l])
    }

    #[inline(always)]
    fn relu(self, a: [f32; 16]) -> [f32; 16] {
        a.map(|a| if a < 0.0 { 0.0 } else { a })
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|l| mul_add(a[l], b[l], c[l]))
    }

    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|l| if a[l] > b[l] { a[l] } else { b[l] })
    }
}

/// `a * b + c` rounded once, where the target has no instruction for it: the C library would take tens of nanoseconds.
///
/// The product of two f32 is exact in f64. Its sum with `c` is rounded to odd: to the neighbor with an odd last bit when
/// it is inexact, so that the second rounding, to f32, sees on which side of a tie the exact value lies (Boldo and
/// Melquiond, "Emulation of a FMA and correctly rounded sums", 2008; 53 bits are more than 24 + 2).
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // Knuth's two-sum: the exact error of the addition.
    let back = sum - product;
    let error = (product - (sum - back)) + (c - back);
    let bits = sum.to_bits();
    // An f64 sum of finite terms cannot overflow; the error of an infinite or NaN sum is NaN, and greater than nothing.
    let inexact = error.abs() > 0.0;
    let toward = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let odd = if inexact && bits & 1 == 0 {
        bits.wrapping_add(toward)
    } else {
        bits
    };
    f64::from_bits(odd) as f32
}

#[cfg(test)]
mod tests {
    use bitnet_layout::random::Random;

    use super::mul_add;

    #[test]
    fn the_portable_product_sum_rounds_once() {
        let mut random = Random::new(1);
        let mut next = || random.word();
        let check = |a: f32, b: f32, c: f32| {
            let (found, expected) = (mul_add(a, b, c), a.mul_add(b, c));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{a:e} * {b:e} + {c:e} = {found:e}, not {expected:e}");
        };
        for _ in 0..300_000 {
            // Any bits, then near cancellation and near ties, where a second rounding would show.
            let [a, b, c] = [next(), next(), next()].map(f32::from_bits);
            check(a, b, c);
            check(a, b, -(a * b));
            let [a, b] = [next(), next()].map(|bits| (bits % (1 << 24)) as f32);
            let exponent = (next() % 60) as i32 - 30;
            check(a, b, (next() % 4096) as f32 * 2f32.powi(exponent));
            check(a, b, -((next() % 4096) as f32) * 2f32.powi(exponent));
            check(a * 2f32.powi(-140), b * 2f32.powi(-10), 2f32.powi(-149));
        }
    }
}
