//! The instruction sets this crate has code for, and which of them this processor runs.

use std::fmt;
use std::str::FromStr;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

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
    /// The same with 8-bit matrix products: several tokens by `smmla`, single ones as [`Simd::NeonDotprod`].
    NeonI8mm,
}

impl Simd {
    /// Every instruction set, on this processor or not.
    pub const ALL: [Self; 8] = [
        Self::Amx,
        Self::Avx512Vnni,
        Self::AvxVnni,
        Self::Avx2,
        Self::NeonI8mm,
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
            Self::Amx => Self::Avx512Vnni.is_available() && has_amx(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => {
                std::arch::is_aarch64_feature_detected!("neon")
                    && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => {
                Self::NeonDotprod.is_available() && std::arch::is_aarch64_feature_detected!("i8mm")
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
            Self::NeonI8mm => "neon-i8mm",
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

/// A name that is no instruction set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown instruction set {found:?}; known are {}", Simd::names(&Simd::ALL))]
pub struct UnknownSimd {
    /// What was given.
    pub found: String,
}

impl FromStr for Simd {
    type Err = UnknownSimd;

    fn from_str(name: &str) -> Result<Self, UnknownSimd> {
        let found = Self::ALL.into_iter().find(|simd| simd.name() == name);
        found.ok_or_else(|| UnknownSimd {
            found: name.to_owned(),
        })
    }
}

/// Whether the processor has AMX with 8-bit integers and the system lets this process use it.
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        /// EDX of CPUID leaf 7: AMX tiles, and their 8-bit products.
        const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
        let has_leaf = __cpuid(0).eax >= 7;
        has_leaf && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8 && permit_amx()
    })
}

/// Asks Linux for the tile registers: their state is large, so a process gets it only on request.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permit_amx() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two integers and touches no memory of ours; an old kernel refuses it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn permit_amx() -> bool {
    false
}
