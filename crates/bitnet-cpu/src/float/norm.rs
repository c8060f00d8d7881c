//! Rows of activations: norms, quantization, rotation.

use super::isa::{Isa, ROUND};

#[inline(always)]
pub(super) fn rms_norm<I: Isa>(isa: I, x: &mut [f32], w: &[f32], eps: f32) {
    assert_eq!(x.len(), w.len());
    let inverse = inverse_rms(isa, x, eps);
    for (x, &w) in x.iter_mut().zip(w) {
        *x = w * (*x * inverse);
    }
}

#[inline(always)]
pub(super) fn rms_norm_to<I: Isa>(isa: I, x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    assert!(x.len() == w.len() && x.len() == y.len());
    let inverse = inverse_rms(isa, x, eps);
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = w * (x * inverse);
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
fn inverse_rms<I: Isa>(isa: I, x: &[f32], eps: f32) -> f32 {
    // Four groups of lanes hide the latency of the additions.
    let mut sums = [isa.splat(0.0); 4];
    let (blocks, rest) = x.as_chunks::<64>();
    let mut last = [0.0; 64];
    last[..rest.len()].copy_from_slice(rest);
    for block in blocks.iter().chain([&last]) {
        for (sum, x) in sums.iter_mut().zip(block.as_chunks::<16>().0) {
            let x = isa.load(x);
            *sum = isa.mul_add(x, x, *sum);
        }
    }
    let total = isa.sum(isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])));
    1.0 / (total / x.len() as f32 + eps).sqrt()
}

/// `s = 127 / max(absmax, 1e-5)` and `q = round(x * s)`, halves to even. The clamp to -128..=127 of the definition never
/// acts: `absmax * s` is within a rounding of 127. A NaN or infinite element makes the inverse scale NaN or infinite.
///
/// Rows come from a far cache, which would be waited for: `next` is asked for while this one is computed.
#[inline(always)]
pub(super) fn quantize<I: Isa>(isa: I, x: &[f32], q: &mut [i8], next: &[f32]) -> (f32, i32) {
    assert_eq!(x.len(), q.len());
    // As integers the magnitudes of floats are in the order of the floats, with NaN above all.
    let mut max = 0;
    for (i, x) in x.chunks(BLOCK).enumerate() {
        ask(isa, next, 2 * i);
        max = x
            .iter()
            .fold(max, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
    }
    let max = f32::from_bits(max);
    let scale = 127.0 / if max < 1e-5 { 1e-5 } else { max };
    let mut sum = 0i32;
    for (i, (q, x)) in q.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).enumerate() {
        ask(isa, next, 2 * i + 1);
        for (q, &x) in q.iter_mut().zip(x) {
            let code = (x * scale + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
            *q = code;
            sum = sum.wrapping_add(i32::from(code));
        }
    }
    (1.0 / scale, sum)
}

/// Elements of a row that are quantized between two looks ahead: enough for the loops over them to keep their lanes.
const BLOCK: usize = 256;

/// Asks for the `i`th half of a [`BLOCK`] of `next`.
#[inline(always)]
fn ask<I: Isa>(isa: I, next: &[f32], i: usize) {
    for line in 0..BLOCK / 32 {
        if let Some(x) = next.get(i * BLOCK / 2 + 16 * line) {
            isa.prefetch(x, 0);
        }
    }
}

#[inline(always)]
pub(super) fn rotate(_: impl Isa, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}

#[cfg(test)]
mod tests {
    use bitnet_layout::act;

    use super::super::isa::Portable;
    use super::*;

    fn row(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 % 1000) as f32 - 499.5) * 0.01)
            .collect()
    }

    #[test]
    fn norm_of_a_row() {
        for n in [1, 15, 16, 63, 64, 65, 192, 2560] {
            let (x, w) = (row(n), row(n));
            let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / n as f64;
            let mut found = x.clone();
            rms_norm(Portable, &mut found, &w, 1e-5);
            for i in 0..n {
                let expected = f64::from(w[i]) * f64::from(x[i]) / (mean + 1e-5).sqrt();
                let error = (f64::from(found[i]) - expected).abs();
                // Four roundings and the sum's: 1e-6 relative leaves room for both.
                assert!(
                    error <= 1e-6 * expected.abs(),
                    "{n}, {i}: {} {expected}",
                    found[i]
                );
            }
        }
    }

    #[test]
    fn quantization_is_the_defined_one() {
        for n in [1, 16, 17, 100, 2560] {
            for factor in [1e-9, 1e-6, 1.0, 1e6, 1e30] {
                let x: Vec<f32> = row(n).iter().map(|x| x * factor).collect();
                let (mut found, mut expected) = (vec![0; n], vec![0; n]);
                let (inverse, sum) = quantize(Portable, &x, &mut found, &[]);
                let scale = act::quantize_row(&x, &mut expected);
                assert_eq!(found, expected);
                assert_eq!(inverse, 1.0 / scale);
                assert_eq!(sum, expected.iter().map(|&q| i32::from(q)).sum());
            }
        }
    }

    #[test]
    fn bad_numbers_are_not_hidden() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for i in [0, 5, 31] {
                let mut x = row(32);
                x[i] = bad;
                let mut q = vec![0; 32];
                assert!(!quantize(Portable, &x, &mut q, &[]).0.is_finite());
                rms_norm(Portable, &mut x, &row(32), 1e-5);
                assert!(x.iter().any(|x| x.is_nan()));
            }
        }
    }
}
