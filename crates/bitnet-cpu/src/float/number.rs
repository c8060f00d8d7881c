//! 16-bit numbers of dense matrices and caches.

use bitnet_layout::{bf16_to_f32, f16_to_f32, f32_to_bf16};

use crate::memory::Plain;

/// bfloat16: the upper half of an f32.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

/// IEEE half precision.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub(crate) struct F16(pub(crate) u16);

// SAFETY: a transparent wrapper of a plain type.
unsafe impl Plain for Bf16 {}
// SAFETY: a transparent wrapper of a plain type.
unsafe impl Plain for F16 {}

impl Bf16 {
    /// Its value, exactly.
    #[inline(always)]
    pub(crate) fn widen(self) -> f32 {
        bf16_to_f32(self.0)
    }

    /// The nearest number, ties to even.
    #[inline(always)]
    pub(crate) fn narrow(x: f32) -> Self {
        Self(f32_to_bf16(x))
    }
}

impl F16 {
    /// Its value, exactly.
    #[inline(always)]
    pub(crate) fn widen(self) -> f32 {
        f16_to_f32(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_value_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (bf16, f16) = (half::bf16::from_bits(bits), half::f16::from_bits(bits));
            let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(same(Bf16(bits).widen(), bf16.to_f32()), "bf16 {bits:#x}");
            assert!(same(F16(bits).widen(), f16.to_f32()), "f16 {bits:#x}");
        }
    }

    #[test]
    fn narrowing_rounds_to_even() {
        for high in (0..=u16::MAX).step_by(7) {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(Bf16::narrow(x).0, half::bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }
}
