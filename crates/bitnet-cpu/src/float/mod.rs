//! Float arithmetic, written once over 16 lanes and compiled once for each instruction set.
//!
//! Every sum has a fixed order: 16 lanes (a few groups of them in turn), added up in a tree. Where a product is added with
//! one rounding, it is on every path, and where with two, too; so every path and every batch gives the same bits. NaN
//! and infinity are carried, not hidden: they reach the logits.

mod number;

mod isa;

mod element;
mod exp;

mod attend;
mod dense;
mod finish;
mod norm;
mod read;
mod ternary;

use bitnet_layout::Activation;
use bitnet_layout::row_tiles::Group;

pub(crate) use attend::{Attend, Paged, QUERIES, ROOM, Scales};
pub(crate) use dense::{TOKENS, Weights};
pub(crate) use element::{Element, Narrow};
pub use finish::Write;
pub(crate) use finish::{Finish, Sums};
pub(crate) use number::{Bf16, F16};

use crate::Simd;
use isa::Portable;

/// Partial sums.
type Lanes = [f32; 16];

/// Adds up lanes as a tree.
#[inline(always)]
fn sum(lanes: Lanes) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Declares the functions once: the table [`Float`] of pointers to them, and for each instruction set a module in which
/// they are compiled, with everything they call, for that set.
macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $body:path: ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        /// The float functions, compiled for one instruction set.
        #[derive(Clone, Copy)]
        pub(crate) struct Float {
            $($(#[$doc])* pub(crate) $name: fn($($ty),*) $(-> $ret)?,)*
        }

        impl Float {
            /// Those of an instruction set that this processor has; portable ones where it has not.
            pub(crate) fn new(simd: Simd) -> Self {
                if !simd.is_available() {
                    return Self { $($name: |$($arg),*| $body(Portable, $($arg),*),)* };
                }
                match simd {
                    #[cfg(target_arch = "x86_64")]
                    Simd::Avx512Vnni | Simd::Amx => Self {
                        // SAFETY: the features are available, checked above.
                        $($name: |$($arg),*| unsafe { avx512::$name($($arg),*) },)*
                    },
                    #[cfg(target_arch = "x86_64")]
                    Simd::Avx2 | Simd::AvxVnni => Self {
                        // SAFETY: the features are available, checked above.
                        $($name: |$($arg),*| unsafe { avx2::$name($($arg),*) },)*
                    },
                    #[cfg(target_arch = "aarch64")]
                    Simd::Neon | Simd::NeonDotprod | Simd::NeonI8mm => Self {
                        // SAFETY: the feature is available, checked above.
                        $($name: |$($arg),*| unsafe { neon::$name($($arg),*) },)*
                    },
                    _ => Self { $($name: |$($arg),*| $body(Portable, $($arg),*),)* },
                }
            }
        }

        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::*;
            $(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function is compiled for these features.
                $body(unsafe { isa::x86::Avx512::new() }, $($arg),*)
            })*
        }

        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::*;
            $(#[target_feature(enable = "avx2,fma,f16c")]
            pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function is compiled for these features.
                $body(unsafe { isa::x86::Avx2::new() }, $($arg),*)
            })*
        }

        #[cfg(target_arch = "aarch64")]
        mod neon {
            use super::*;
            $(#[target_feature(enable = "neon")]
            pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function is compiled for this feature.
                $body(unsafe { isa::arm::Neon::new() }, $($arg),*)
            })*
        }
    };
}

functions! {
    /// `x = w * (x / sqrt(mean(x^2) + eps))`.
    rms_norm = norm::rms_norm: (x: &mut [f32], w: &[f32], eps: f32);
    /// The same of `x` into `y`.
    rms_norm_to = norm::rms_norm_to: (x: &[f32], w: &[f32], eps: f32, y: &mut [f32]);
    /// Quantizes a row: `(1 / s, sum of q)`, where `x` is about `q / s`; asks for the row that comes `next` meanwhile.
    quantize = norm::quantize: (x: &[f32], q: &mut [i8], next: &[f32]) -> (f32, i32);
    /// Writes, adds or gates products.
    finish = finish::finish: (job: &Sums<'_>, y: &mut [&mut [f32]]);
    /// `y = relu(gates)^2 * ups`, or `y = gates * sigmoid(gates) * ups`.
    gate = finish::gate: (kind: Activation, gates: &[f32], ups: &[f32], y: &mut [f32]);
    /// Rotates a head by the angles of its position, given as cosines and sines (d / 2 each).
    rotate = norm::rotate: (x: &mut [f32], cos: &[f32], sin: &[f32]);
    /// Ternary tile times float activations: `y[r] = sum over k of t[r][k] * x[k]`.
    ternary = ternary::ternary: (tile: &[Group], x: &[f32]) -> [f32; 16];
    /// Dense rows times up to [`TOKENS`] rows of activations: `y[t][r] = sum over k of w[r][k] * x[t][k]`.
    dense = dense::dense: (w: Weights<'_>, x: &[&[f32]], y: &mut [&mut [f32]]);
    /// Reads everything, and returns some sum.
    read = read::read: (data: &[Lanes], ahead: usize) -> f32;
    /// Attention of up to [`QUERIES`] queries over the same keys and values, as bfloat16.
    attend_bf16 = attend::attend: (job: Attend<'_, Bf16>, y: &mut [&mut [f32]]);
    /// Attention of up to [`QUERIES`] queries over the same keys and values, as f32.
    attend_f32 = attend::attend: (job: Attend<'_, f32>, y: &mut [&mut [f32]]);
    /// Attention of up to [`QUERIES`] queries over the same keys and values, as 8-bit integers.
    attend_int8 = attend::attend: (job: Attend<'_, i8>, y: &mut [&mut [f32]]);
}

#[cfg(test)]
mod tests {
    use bitnet_layout::random::Random;

    use super::*;

    fn numbers(seed: u64, len: usize) -> Vec<f32> {
        let mut random = Random::new(seed);
        let next = std::iter::repeat_with(|| {
            let word = random.word();
            ((word >> 8) as f32 / 8_388_608.0 - 1.0) * [1.0, 1e-3, 40.0][word as usize % 3]
        });
        next.take(len).collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// What every function makes of the same inputs of `k` columns, bit by bit.
    fn outputs(float: &Float, k: usize) -> Vec<(&'static str, Vec<u32>)> {
        let mut out = Vec::new();
        let (x, w) = (numbers(1, k), numbers(2, k));
        let mut y = x.clone();
        (float.rms_norm)(&mut y, &w, 1e-5);
        out.push(("rms_norm", bits(&y)));
        let (mut q, mut q_norm) = (vec![0; k], vec![0.0; k]);
        (float.rms_norm_to)(&x, &w, 1e-5, &mut q_norm);
        out.push(("rms_norm_to", bits(&q_norm)));
        let (inverse, sum) = (float.quantize)(&x, &mut q, &w);
        out.push((
            "quantize",
            q.iter()
                .map(|&q| q as u32)
                .chain([inverse.to_bits(), sum as u32])
                .collect(),
        ));
        for (name, kind) in [("relu2", Activation::Relu2), ("silu", Activation::Silu)] {
            (float.gate)(kind, &x, &w, &mut y);
            out.push((name, bits(&y)));
        }
        let even = k / 2 * 2;
        (float.rotate)(&mut y[..even], &x[..even / 2], &w[..even / 2]);
        out.push(("rotate", bits(&y)));
        // Three tiles, the last not whole, of two tokens; or two that are gated.
        let sums: Vec<[i32; 16]> = (0..8)
            .map(|i| std::array::from_fn(|r| i * 1000 - 37 * r as i32))
            .collect();
        for finish in [
            Finish::Write(Write::Replace),
            Finish::Write(Write::Add),
            Finish::Gate(Activation::Relu2),
            Finish::Gate(Activation::Silu),
        ] {
            let scales = [[0.3; 16], [1.7; 16], [1e-3; 16]];
            let (scales, gated, len) = match finish {
                Finish::Write(_) => (&scales[..], &[][..], 37),
                Finish::Gate(_) => (&scales[..2], &scales[1..], 32),
            };
            let job = Sums {
                sums: &sums,
                stride: 2,
                sum: &[17, -5],
                inverse: &[inverse, 0.1],
                scales,
                gated,
                finish,
            };
            let mut y = numbers(3, 2 * len);
            let mut rows: Vec<&mut [f32]> = y.chunks_mut(len).collect();
            (float.finish)(&job, &mut rows);
            out.push(("finish", bits(&y)));
        }
        let tile: Vec<Group> = (0..k / 16)
            .map(|c| std::array::from_fn(|r| (c as u32 * 77 + r as u32) & 0x5555_5555))
            .collect();
        out.push(("ternary", bits(&(float.ternary)(&tile, &x))));
        // A block of four and some left over.
        let rows = 7;
        let weights = numbers(4, rows * k);
        let bf16: Vec<Bf16> = weights.iter().map(|&w| Bf16::narrow(w)).collect();
        let f16: Vec<F16> = weights
            .iter()
            .map(|&w| F16(half::f16::from_f32(w).to_bits()))
            .collect();
        let inputs: Vec<Vec<f32>> = (0..TOKENS as u64).map(|t| numbers(5 + t, k)).collect();
        for (name, weights) in [
            ("dense bf16", Weights::Bf16(&bf16)),
            ("dense f16", Weights::F16(&f16)),
            ("dense f32", Weights::F32(&weights)),
        ] {
            for n in 1..=TOKENS {
                let inputs: Vec<&[f32]> = inputs[..n].iter().map(Vec::as_slice).collect();
                let mut y = vec![vec![0.0; rows]; n];
                let mut slices: Vec<&mut [f32]> = y.iter_mut().map(Vec::as_mut_slice).collect();
                (float.dense)(weights, &inputs, &mut slices);
                out.push((name, bits(&y.concat())));
            }
        }
        out
    }

    #[test]
    fn every_path_gives_the_same_bits() {
        let portable = Float::new(Simd::Scalar);
        for k in (1..100).chain([640, 2560]) {
            let expected = outputs(&portable, k);
            for simd in Simd::available() {
                for (found, expected) in outputs(&Float::new(simd), k).iter().zip(&expected) {
                    assert_eq!(found, expected, "{simd}, k = {k}");
                }
            }
        }
    }

    #[test]
    fn attention_is_the_same_on_every_path_and_near_the_exact_value() {
        for (d, len) in [
            (4_usize, 1_usize),
            (16, 3),
            (32, 16),
            (96, 17),
            (100, 40),
            (128, 70),
            (256, 33),
            (272, 20),
        ] {
            let n_blocks = (len + QUERIES).div_ceil(16);
            let n_columns = d.div_ceil(16);
            let queries: Vec<Vec<f32>> = (0..QUERIES as u64).map(|t| numbers(t, d)).collect();
            let q: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
            let mut keys = vec![[0.0; 16]; n_blocks * d];
            keys.as_flattened_mut()
                .copy_from_slice(&numbers(20, n_blocks * d * 16));
            let mut values = vec![[0.0; 16]; n_blocks * 16 * n_columns];
            values
                .as_flattened_mut()
                .copy_from_slice(&numbers(21, n_blocks * 16 * n_columns * 16));
            // A query sees a position more than the one before.
            let lens: Vec<usize> = (0..QUERIES).map(|t| len + t / 2).collect();
            let run = |simd, n: usize| {
                let mut scores = vec![[f32::NAN; 16]; QUERIES * n_blocks];
                let mut y = vec![vec![f32::NAN; d]; n];
                let mut slices: Vec<&mut [f32]> = y.iter_mut().map(Vec::as_mut_slice).collect();
                let scores = &mut scores[..];
                // One page.
                let paged = |lanes, width| Paged {
                    lanes,
                    table: &[0],
                    shift: 20,
                    stride: 0,
                    first: 0,
                    width,
                };
                let job = Attend {
                    q: &q[..n],
                    len: &lens[..n],
                    keys: paged(&keys[..], d),
                    values: paged(&values[..], 16 * n_columns),
                    scales: None,
                    scale: 0.1,
                    scores,
                    room: &mut vec![[f32::NAN; 16]; ROOM],
                };
                (Float::new(simd).attend_f32)(job, &mut slices);
                y
            };
            let expected = run(Simd::Scalar, QUERIES);
            for (t, y) in expected.iter().enumerate() {
                let score = |j: usize| {
                    let products =
                        (0..d).map(|i| f64::from(queries[t][i]) * f64::from(keys[j / 16 * d + i][j % 16]));
                    0.1 * products.sum::<f64>()
                };
                let scores: Vec<f64> = (0..lens[t]).map(score).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (i, &found) in y.iter().enumerate() {
                    let value = |j: usize| f64::from(values[j * n_columns + i / 16][i % 16]);
                    let exact: f64 = weights.iter().enumerate().map(|(j, w)| w * value(j)).sum::<f64>() / sum;
                    // Scores up to a few hundred have errors of 1e-5, which the exponential passes on.
                    assert!(
                        (f64::from(found) - exact).abs() < 1e-3 * max.abs().max(40.0),
                        "{found} {exact}"
                    );
                }
            }
            for simd in Simd::available() {
                for n in 1..=QUERIES {
                    for (found, expected) in run(simd, n).iter().zip(&expected) {
                        assert_eq!(bits(found), bits(expected), "{simd}, d = {d}, {n} queries");
                    }
                }
            }
        }
    }
}
