//! Floats as files hold them.

/// The nearest bfloat16, ties to even; NaN stays one.
#[inline(always)]
#[must_use]
pub const fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // Rounding must not carry a NaN's mantissa into infinity: keep it quiet instead.
    let nan = (bits >> 16) as u16 | 0x40;
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { nan } else { rounded }
}

/// What a bfloat16 is worth, exactly.
#[inline(always)]
#[must_use]
pub const fn bf16_to_f32(bf16: u16) -> f32 {
    f32::from_bits((bf16 as u32) << 16)
}

/// What a half is worth, exactly. Without a branch: exponent and mantissa are moved into place, and a product corrects the bias
/// of the exponent, subnormal numbers included.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(half: u16) -> f32 {
    /// 2^112: the exponent bias of f32 less that of f16.
    const BIAS: f32 = f32::from_bits((112 + 127) << 23);
    let bits = u32::from(half);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * BIAS;
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

/// Element type of a dense matrix as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenseDtype {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl DenseDtype {
    /// Bytes of an element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Converts stored (little endian) elements, exactly.
    ///
    /// # Panics
    /// When `bytes` has not one element for each of `out`.
    pub fn to_f32(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size());
        match self {
            Self::Bf16 => {
                for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = bf16_to_f32(u16::from_le_bytes(bytes));
                }
            }
            Self::F16 => {
                for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = f16_to_f32(u16::from_le_bytes(bytes));
                }
            }
            Self::F32 => {
                for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *out = f32::from_le_bytes(bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_widen_exactly() {
        for half in 0..=u16::MAX {
            let (exponent, mantissa) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
            let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
            let value = f16_to_f32(half);
            let expected = match (exponent, half & 1023) {
                (31, 0) => sign * f64::INFINITY,
                (31, _) => {
                    assert!(value.is_nan(), "{half:#x}");
                    continue;
                }
                (0, _) => sign * mantissa / f64::from(1 << 24),
                _ => sign * (1.0 + mantissa / 1024.0) * f64::from(1u32 << exponent) / f64::from(1 << 15),
            };
            assert_eq!(f64::from(value).to_bits(), expected.to_bits(), "{half:#x}");
        }
    }

    #[test]
    fn bf16_rounds_halves_to_even() {
        for (x, bits) in [
            (1.0, 0x3f80),
            (-1.0, 0xbf80),
            (257.0, 0x4380),
            (259.0, 0x4382),
            (0.0, 0),
            (f32::MAX, 0x7f80),
            (f32::INFINITY, 0x7f80),
        ] {
            assert_eq!(f32_to_bf16(x), bits, "{x}");
        }
        for payload in [1, 0x7f_ffff, 0x40_0000] {
            let nan = f32::from_bits(0x7f80_0000 | payload);
            assert!(bf16_to_f32(f32_to_bf16(nan)).is_nan(), "{payload:#x}");
        }
    }

    #[test]
    fn elements_of_every_type_become_f32() {
        for (dtype, bytes) in [
            (DenseDtype::Bf16, &[0x00, 0x3f, 0x40, 0xc0][..]),
            (DenseDtype::F16, &[0x00, 0x38, 0x00, 0xc2]),
            (DenseDtype::F32, &[0, 0, 0, 0x3f, 0, 0, 0x40, 0xc0]),
        ] {
            let mut out = [0.0; 2];
            assert_eq!(bytes.len(), 2 * dtype.size());
            dtype.to_f32(bytes, &mut out);
            assert_eq!(out, [0.5, -3.0], "{dtype:?}");
        }
    }
}
