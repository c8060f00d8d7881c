//! Float arithmetic, written once over 16 lanes and compiled once for each instruction set.
//!
//! Every sum has a fixed order: 16 lanes (a few groups of them in turn), added up in a tree. Where a product is added with
//! one rounding, it is on every path, and where with two, too; so every path and every batch gives the same bits. NaN
//! and infinity are carried, not hidden: they reach the logits.

mod attend;
mod dense;
mod element;
mod exp;
mod isa;
mod norm;
mod ternary;

use bitnet_layout::row_tiles::Group;

pub(crate) use attend::{Attend, QUERIES};
pub(crate) use dense::{TOKENS, Weights};
pub(crate) use element::{Bf16, Element, F16, Narrow};
pub(crate) use norm::Codes;
pub use norm::Write;

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
                    Simd::Neon | Simd::NeonDotprod => Self {
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
    /// Quantizes a row: `(1 / s, sum of q)`, where `x` is about `q / s`.
    quantize = norm::quantize: (x: &[f32], q: &mut [i8]) -> (f32, i32);
    /// `y[16 i + r] = (codes[i * stride][r] - sum) * (scales[i][r] * inverse)`, replaced or added, as long as y is.
    dequantize = norm::dequantize: (codes: &Codes<'_>, scales: &[[f32; 16]], write: Write, y: &mut [f32]);
    /// `y = relu(gate)^2 * up`.
    relu2 = norm::relu2: (gate: &[f32], up: &[f32], y: &mut [f32]);
    /// `y = gate * sigmoid(gate) * up`.
    silu = norm::silu: (gate: &[f32], up: &[f32], y: &mut [f32]);
    /// Rotates a head by the angles of its position, given as cosines and sines (d / 2 each).
    rotate = norm::rotate: (x: &mut [f32], cos: &[f32], sin: &[f32]);
    /// Ternary tile times float activations: `y[r] = sum over k of t[r][k] * x[k]`.
    ternary = ternary::ternary: (tile: &[Group], x: &[f32]) -> [f32; 16];
    /// Dense rows times up to [`TOKENS`] rows of activations: `y[t][r] = sum over k of w[r][k] * x[t][k]`.
    dense = dense::dense: (w: Weights<'_>, x: &[&[f32]], y: &mut [&mut [f32]]);
    /// Attention of up to [`QUERIES`] queries over the same keys and values, as bfloat16.
    attend_bf16 = attend::attend: (job: Attend<'_, Bf16>, y: &mut [&mut [f32]]);
    /// Attention of up to [`QUERIES`] queries over the same keys and values, as f32.
    attend_f32 = attend::attend: (job: Attend<'_, f32>, y: &mut [&mut [f32]]);
}
