//! The instruction sets this crate has code for, and which of them this processor runs.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A code path. All paths give the same bits; they differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// Portable Rust, compiled for the baseline of the target.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C: 8-bit products by `vpmaddubsw`.
    Avx2,
    /// The same with AVX-VNNI: `vpdpbusd` on 256 bits.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI: `vpdpbusd` on 512 bits.
    Avx512Vnni,
    /// The same with AMX: batches by `tdpbssd` on tiles, single tokens as [`Simd::Avx512Vnni`].
    Amx,
    /// AArch64: `smull` and `sadalp`.
    Neon,
    /// AArch64 with the dot product extension: `sdot`.
    NeonDotprod,
}

impl Simd {
    /// Every instruction set, on this processor or not.
    pub const ALL: [Self; 7] = [
        Self::Amx,
        Self::Avx512Vnni,
        Self::AvxVnni,
        Self::Avx2,
        Self::NeonDotprod,
        Self::Neon,
        Self::Scalar,
    ];

    /// Those this processor can run, best first; the last is always [`Simd::Scalar`].
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|simd| simd.is_available()).collect()
    }

    /// Whether this processor can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Vnni.is_available() && crate::integer::amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => {
                std::arch::is_aarch64_feature_detected!("neon")
                    && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            _ => false,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
        }
    }

    /// Names in a list, for messages.
    pub(crate) fn names(list: &[Self]) -> String {
        list.iter().map(|simd| simd.name()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Simd {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|simd| simd.name() == name);
        found.ok_or_else(|| Error::SimdName {
            found: name.to_owned(),
        })
    }
}
