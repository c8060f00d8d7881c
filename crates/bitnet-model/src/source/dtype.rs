//! Element types of tensors, of every kind of file that is read.

use std::fmt;

use crate::DenseDtype;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// Floats one after the other.
    Float(DenseDtype),
    /// Bytes: four ternary weights each, where a matrix of them is meant.
    U8,
    /// Words: sixteen ternary weights each.
    U32,
    /// Another type of safetensors files.
    Safetensors(safetensors::Dtype),
    /// A type of GGUF files that is no plain float.
    Gguf(GgufType),
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(DenseDtype::Bf16) => f.write_str("BF16"),
            Self::Float(DenseDtype::F16) => f.write_str("F16"),
            Self::Float(DenseDtype::F32) => f.write_str("F32"),
            Self::U8 => f.write_str("U8"),
            Self::U32 => f.write_str("U32"),
            Self::Safetensors(other) => write!(f, "{other:?}"),
            Self::Gguf(kind) => kind.fmt(f),
        }
    }
}

impl From<safetensors::Dtype> for Dtype {
    fn from(dtype: safetensors::Dtype) -> Self {
        match dtype {
            safetensors::Dtype::BF16 => Self::Float(DenseDtype::Bf16),
            safetensors::Dtype::F16 => Self::Float(DenseDtype::F16),
            safetensors::Dtype::F32 => Self::Float(DenseDtype::F32),
            safetensors::Dtype::U8 => Self::U8,
            safetensors::Dtype::U32 => Self::U32,
            other => Self::Safetensors(other),
        }
    }
}

/// A type of GGUF files, by the number that stands in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GgufType(pub(crate) u32);

/// What is known of a type: values and bytes of a block, and bytes in front of each row.
struct Known {
    number: u32,
    name: &'static str,
    block: usize,
    bytes: usize,
    row: usize,
}

const fn known(number: u32, name: &'static str, block: usize, bytes: usize, row: usize) -> Known {
    Known {
        number,
        name,
        block,
        bytes,
        row,
    }
}

/// The types whose sizes follow from their shape alone. Numbers are those of llama.cpp up to 42, of PrismML's fork from 142,
/// and of ik_llama.cpp otherwise.
const KNOWN: [Known; 27] = [
    known(0, "F32", 1, 4, 0),
    known(1, "F16", 1, 2, 0),
    known(2, "Q4_0", 32, 18, 0),
    known(3, "Q4_1", 32, 20, 0),
    known(6, "Q5_0", 32, 22, 0),
    known(7, "Q5_1", 32, 24, 0),
    known(8, "Q8_0", 32, 34, 0),
    known(10, "Q2_K", 256, 84, 0),
    known(11, "Q3_K", 256, 110, 0),
    known(12, "Q4_K", 256, 144, 0),
    known(13, "Q5_K", 256, 176, 0),
    known(14, "Q6_K", 256, 210, 0),
    known(20, "IQ4_NL", 32, 18, 0),
    known(23, "IQ4_XS", 256, 136, 0),
    known(24, "I8", 1, 1, 0),
    known(25, "I16", 1, 2, 0),
    known(26, "I32", 1, 4, 0),
    known(27, "I64", 1, 8, 0),
    known(28, "F64", 1, 8, 0),
    known(30, "BF16", 1, 2, 0),
    known(34, "TQ1_0", 256, 54, 0),
    known(35, "TQ2_0", 256, 66, 0),
    known(134, "IQ1_BN", 64, 13, 2),
    known(135, "IQ2_BN", 64, 16, 4),
    known(142, "PQ2_0", 128, 34, 0),
    known(143, "PTQ1_0", 128, 28, 0),
    known(335, "IQ2_BN_R4", 64, 16, 4),
];

impl GgufType {
    pub(crate) const Q4_0: Self = Self(2);
    pub(crate) const Q8_0: Self = Self(8);
    pub(crate) const Q4_K: Self = Self(12);
    pub(crate) const Q5_K: Self = Self(13);
    pub(crate) const Q6_K: Self = Self(14);
    pub(crate) const IQ4_NL: Self = Self(20);
    pub(crate) const TQ1_0: Self = Self(34);
    pub(crate) const TQ2_0: Self = Self(35);
    pub(crate) const I2_S: Self = Self(36);
    pub(crate) const I8_S: Self = Self(37);
    pub(crate) const TL1: Self = Self(38);
    pub(crate) const TL2: Self = Self(39);
    pub(crate) const Q2_0: Self = Self(42);
    pub(crate) const IQ1_BN: Self = Self(134);
    pub(crate) const IQ2_BN: Self = Self(135);
    pub(crate) const PQ2_0: Self = Self(142);
    pub(crate) const PTQ1_0: Self = Self(143);
    pub(crate) const IQ2_BN_R4: Self = Self(335);

    fn known(self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.number == self.0)
    }

    /// Bytes of `rows` rows of `cols` values: `Ok(None)` where the type does not say, `Err` with what `cols` must be a multiple
    /// of.
    pub(crate) fn bytes(self, rows: u64, cols: u64) -> Result<Option<u64>, usize> {
        let (block, bytes, row) = match (self, self.known()) {
            (Self::I2_S, _) => {
                // Its blocks of 128 may cross rows; 32 bytes with the scale follow them.
                return match rows.checked_mul(cols) {
                    Some(values) if values.is_multiple_of(128) => Ok(Some(values / 4 + 32)),
                    _ => Err(128),
                };
            }
            (Self::Q2_0, _) => (64, 18, 0),
            (_, Some(known)) => (known.block, known.bytes, known.row),
            (_, None) => return Ok(None),
        };
        if !cols.is_multiple_of(block as u64) {
            return Err(block);
        }
        let of_row = (cols / block as u64)
            .checked_mul(bytes as u64)
            .and_then(|bytes| bytes.checked_add(row as u64));
        // No file is that large.
        Ok(Some(
            of_row
                .and_then(|of_row| of_row.checked_mul(rows))
                .unwrap_or(u64::MAX),
        ))
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.known()) {
            (Self::I2_S, _) => f.write_str("I2_S"),
            (Self::I8_S, _) => f.write_str("I8_S"),
            (Self::TL1, _) => f.write_str("TL1"),
            (Self::TL2, _) => f.write_str("TL2"),
            (Self::Q2_0, _) => f.write_str("Q2_0"),
            (_, Some(known)) => f.write_str(known.name),
            (Self(number), None) => write!(f, "number {number}"),
        }
    }
}

impl From<GgufType> for Dtype {
    fn from(kind: GgufType) -> Self {
        match kind.0 {
            0 => Self::Float(DenseDtype::F32),
            1 => Self::Float(DenseDtype::F16),
            30 => Self::Float(DenseDtype::Bf16),
            _ => Self::Gguf(kind),
        }
    }
}
