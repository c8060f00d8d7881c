//! The arithmetic that every kernel of attention shares, so that they share its bits.

use crate::intrinsics::*;

/// Below every score, and finite, so that differences of maxima are numbers.
pub(super) const LOWEST: f32 = -1e30;

/// Two bfloat16 ones.
pub(super) const ONES: u32 = 0x3f80_3f80;

/// The key of column `column` of score tile `tile`, counted from the step's first.
#[inline(always)]
pub(super) fn key_of(tile: u32, column: u32) -> u32 {
    32 * (tile / 4) + 8 * (column / 2) + 2 * (tile % 4) + column % 2
}

/// Adds the products of 32 dimensions to a score tile, 16 rows by 8 keys: `q` are the A fragments of the products 2 i and
/// 2 i + 1, `k` dimensions `32 i + 8 quad ..` of the key of column `group`. A score adds its products in the order of i.
///
/// # Safety
/// All lanes of the warp call this together.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(super) unsafe fn score(q: &[[u32; 4]; 2], k: &[u32; 4], s: [f32; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let s = mma_m16n8k16_bf16(q[0], [k[0], k[1]], s);
        mma_m16n8k16_bf16(q[1], [k[2], k[3]], s)
    }
}

/// The weights of a row's step.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    /// The row's maximum.
    pub(super) max: f32,
    /// The sum of all 64 weights, before they were multiplied and rounded; of 8-bit integers alone.
    pub(super) sum: f32,
    /// The row's half of the A fragments of the four products of the values.
    pub(super) half: [[u32; 2]; 4],
}

/// What the keys' or the values' integers are worth: of the columns of [`weights`].
pub(super) type Scales = [[f32; 2]; 8];

/// The scales of a lane's columns, from those of keys `8 quad ..` (8 of them), and of keys `32 + 8 quad ..`.
#[inline(always)]
pub(super) fn scales(of_keys: [[[f32; 4]; 2]; 2]) -> Scales {
    core::array::from_fn(|j| {
        let four = of_keys[j / 4][j % 4 / 2];
        [four[2 * (j % 2)], four[2 * (j % 2) + 1]]
    })
}

/// The weights of a row's step. Of 8-bit integers, weights are multiplied by the scales of their `values`, which are asked for by
/// score tile.
///
/// `s[j]` are the row's columns `2 quad` and `2 quad + 1` of score tile j; those past its position are negative infinity.
///
/// # Safety
/// All lanes of the warp call this together.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(super) unsafe fn weights<const INT8: bool>(
    s: &[[f32; 2]; 8],
    values: impl Fn(usize) -> [f32; 2],
) -> Weights {
    let mut max = LOWEST;
    let mut j = 0;
    while j < 8 {
        max = max.max(s[j][0].max(s[j][1]));
        j += 1;
    }
    // SAFETY: the caller's promise.
    unsafe {
        max = max.max(warp_shuffle_xor(FULL_MASK, max, 1));
        max = max.max(warp_shuffle_xor(FULL_MASK, max, 2));
    }
    let mut sums = [0.0; 2];
    let mut weight = |j: usize| {
        let mut p = s[j].map(|s| exp2_approx(s - max));
        if INT8 {
            sums = [sums[0] + p[0], sums[1] + p[1]];
            let values = values(j);
            // What a row does not see is nothing to it, whatever its scale is.
            let weigh = |e: usize| {
                if s[j][e] == f32::NEG_INFINITY {
                    0.0
                } else {
                    p[e] * values[e]
                }
            };
            p = [weigh(0), weigh(1)];
        }
        f32_to_bf16x2(p[0], p[1])
    };
    let mut half = [[0; 2]; 4];
    let mut product = 0;
    while product < 4 {
        half[product] = [weight(2 * product), weight(2 * product + 1)];
        product += 1;
    }
    let mut sum = sums[0] + sums[1];
    if INT8 {
        // SAFETY: the caller's promise.
        unsafe {
            sum += warp_shuffle_xor(FULL_MASK, sum, 1);
            sum += warp_shuffle_xor(FULL_MASK, sum, 2);
        }
    }
    Weights { max, sum, half }
}

/// The A fragments of the values' products, from those of the rows `group` and `group + 8`.
#[inline(always)]
pub(super) fn fragments(low: [[u32; 2]; 4], high: [[u32; 2]; 4]) -> [[u32; 4]; 4] {
    core::array::from_fn(|i| [low[i][0], high[i][0], low[i][1], high[i][1]])
}

/// Sums of the weights of rows `group` (elements 0 and 1) and `group + 8`.
///
/// # Safety
/// All lanes of the warp call this together.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(super) unsafe fn sums(p: &[[u32; 4]; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe { values(p, &[[ONES; 4]; 2]) }
}

/// Weighted values: 16 rows by 8 dimensions. `v[i]` are keys `32 i + 8 quad ..` of dimension `group` of the eight.
///
/// # Safety
/// All lanes of the warp call this together.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub(super) unsafe fn values(p: &[[u32; 4]; 4], v: &[[u32; 4]; 2]) -> [f32; 4] {
    let mut o = [0.0; 4];
    let mut i = 0;
    while i < 2 {
        // SAFETY: the caller's promise.
        unsafe {
            o = mma_m16n8k16_bf16(p[2 * i], [v[i][0], v[i][1]], o);
            o = mma_m16n8k16_bf16(p[2 * i + 1], [v[i][2], v[i][3]], o);
        }
        i += 1;
    }
    o
}

/// The steps of a row folded so far: their maximum and the sum of their weights, relative to it.
#[derive(Clone, Copy)]
pub(super) struct Fold {
    pub(super) max: f32,
    pub(super) sum: f32,
}

/// What the fold so far and the next step are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    old: f32,
    new: f32,
}

impl Fold {
    /// No step.
    pub(super) const EMPTY: Self = Self {
        max: LOWEST,
        sum: 0.0,
    };

    /// Takes in a step of which `max` is the maximum, [`LOWEST`] if the row sees none of its keys: then, with zeros for its
    /// sums, nothing changes, to the bit.
    #[inline(always)]
    pub(super) fn rescale(&mut self, max: f32) -> Factors {
        let before = self.max;
        self.max = before.max(max);
        let new = exp2_approx(max - self.max);
        Factors {
            old: exp2_approx(before - self.max),
            // Zero times minus zero, and only that, adds nothing to minus zero.
            new: if max == LOWEST { -0.0 } else { new },
        }
    }
}

impl Factors {
    /// The fold of a sum over the steps before and the same sum over the next one.
    #[inline(always)]
    pub(super) fn fold(self, before: f32, next: f32) -> f32 {
        fma(next, self.new, before * self.old)
    }
}

/// Quotients by a sum of weights: those of `/`, for which each value would wait, as it takes a branch.
#[inline(always)]
pub(super) fn quotients<const N: usize>(values: [[f32; 2]; N], sum: f32) -> [[f32; 2]; N] {
    /// Between these neither a quotient nor what it is corrected by leaves the range of normal numbers.
    const LEAST: f32 = 1.0 / MOST;
    const MOST: f32 = (1u64 << 60) as f32;
    let (mut least, mut most) = (sum, sum);
    let mut n = 0;
    while n < N {
        let [low, high] = values[n].map(f32::abs);
        least = least.min(low.min(high));
        most = most.max(low.max(high));
        n += 1;
    }
    if least < LEAST || most > MOST {
        return values.map(|pair| pair.map(|value| value / sum));
    }
    let reciprocal = refined(sum, reciprocal_approx(sum));
    values.map(|pair| pair.map(|value| quotient(value, sum, reciprocal)))
}

/// The reciprocal of `sum` from one that is a unit in the last place away at most.
#[inline(always)]
fn refined(sum: f32, reciprocal: f32) -> f32 {
    fma(fma(-sum, reciprocal, 1.0), reciprocal, reciprocal)
}

/// `value / sum` by what is left of it after a first and a second estimate, with a [`refined`] reciprocal.
#[inline(always)]
fn quotient(value: f32, sum: f32, reciprocal: f32) -> f32 {
    let first = value * reciprocal;
    let second = fma(fma(-sum, first, value), reciprocal, first);
    fma(fma(-sum, second, value), reciprocal, second)
}

#[cfg(test)]
mod tests {
    use super::{quotient, quotients, refined};
    use bitnet_layout::draw::random_bits;

    /// Also with reciprocals that are as far off as a GPU's may be.
    #[test]
    fn quotients_are_those_of_a_division() {
        let mut drawn = 0;
        let mut random = || {
            drawn += 1;
            random_bits(1, drawn) as u32
        };
        let mut scaled = |least: i32, most: i32| {
            let exponent = least + (random() % (most - least) as u32) as i32;
            f32::from_bits(random() >> 9 | 0x3f80_0000) * (exponent as f32).exp2()
        };
        for _ in 0..200_000 {
            let (value, sum) = (scaled(-60, 60), scaled(0, 20));
            let reciprocal = 1.0 / sum;
            for near in [reciprocal.next_down(), reciprocal, reciprocal.next_up()] {
                let got = quotient(value, sum, refined(sum, near));
                assert_eq!(
                    got.to_bits(),
                    (value / sum).to_bits(),
                    "{value:e} / {sum:e} by {near:e}"
                );
            }
            let values = [[value, -scaled(-140, 127)]];
            let expected = values.map(|pair| pair.map(|value| (value / sum).to_bits()));
            assert_eq!(
                quotients(values, sum).map(|pair| pair.map(f32::to_bits)),
                expected
            );
        }
        let zeros = quotients([[0.0, -0.0], [f32::INFINITY, 1.0]], 3.0);
        assert_eq!(
            zeros.map(|pair| pair.map(f32::to_bits)),
            [[0, 1 << 31], [f32::INFINITY.to_bits(), (1.0f32 / 3.0).to_bits()]]
        );
    }
}
