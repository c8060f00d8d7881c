//! Dense matrices of a model, the embedding and the output head, out of every type that is read.
//!
//! Plain floats come as they are stored. Quantized types of GGUF files become f32, by the formulas of llama.cpp's
//! `ggml-quants.c`, one multiplication or subtraction rounded after the other.

use super::dtype::{Dtype, GgufType};
use super::tensors::Tensor;
use crate::{Dense, DenseDtype, Error, Result};

/// A table of a model, in its file.
pub(super) struct DenseTensor<'a> {
    tensor: Tensor<'a>,
    stored: Stored,
    shape: (usize, usize),
}

/// How a table is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Float(DenseDtype),
    Blocks(BlockType),
}

impl<'a> DenseTensor<'a> {
    /// Checks the type and shape of a table.
    pub(super) fn new(tensor: Tensor<'a>, shape: (usize, usize)) -> Result<Self> {
        let stored = match tensor.dtype() {
            Dtype::Float(dtype) => Stored::Float(dtype),
            Dtype::Gguf(kind) => Stored::Blocks(BlockType::of(kind).ok_or_else(|| {
                tensor.unsupported(format!(
                    "is of type {kind}; embeddings and output heads are read in F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, Q4_0 and IQ4_NL"
                ))
            })?),
            other => return Err(tensor.invalid(format!("has type {other}; expected BF16, F16 or F32"))),
        };
        tensor.expect_shape(&[shape.0, shape.1])?;
        Ok(Self {
            tensor,
            stored,
            shape,
        })
    }
}

impl Dense for DenseTensor<'_> {
    fn dtype(&self) -> DenseDtype {
        match self.stored {
            Stored::Float(dtype) => dtype,
            Stored::Blocks(_) => DenseDtype::F32,
        }
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let (rows, cols) = self.shape;
        let row_bytes = cols * self.dtype().size();
        let wanted = out.len() / row_bytes;
        if !out.len().is_multiple_of(row_bytes) || first > rows || wanted > rows - first {
            return Err(Error::Request(format!(
                "{} bytes from row {first} of tensor `{}`, which has {rows} rows of {row_bytes} bytes",
                out.len(),
                self.tensor.name()
            )));
        }
        match self.stored {
            Stored::Float(_) => self.tensor.read(first * row_bytes, out)?,
            Stored::Blocks(kind) => {
                // A few rows at a time, so that two copies of a large table are never there.
                let stored_row = cols / kind.values * kind.bytes;
                let at_once = ((1 << 20) / stored_row).max(1);
                let mut blocks = Vec::new();
                for (chunk, out) in out.chunks_mut(at_once * row_bytes).enumerate() {
                    let n = out.len() / row_bytes;
                    blocks.resize(n * stored_row, 0);
                    self.tensor
                        .read((first + chunk * at_once) * stored_row, &mut blocks)?;
                    let values = out.chunks_exact_mut(4 * kind.values);
                    for (block, out) in blocks.chunks_exact(kind.bytes).zip(values) {
                        kind.decode(block, out.as_chunks_mut().0);
                    }
                }
            }
        }
        check_finite(&self.tensor, self.dtype(), first * row_bytes, out)
    }
}

/// Refuses NaN and infinity among the values of a dense tensor, as `dtype` from byte `offset` of such values on.
pub(super) fn check_finite(
    tensor: &Tensor<'_>,
    dtype: DenseDtype,
    offset: usize,
    bytes: &[u8],
) -> Result<()> {
    let Some(at) = first_not_finite(dtype, bytes) else {
        return Ok(());
    };
    let (index, cols) = (
        offset / dtype.size() + at,
        tensor.shape().last().copied().unwrap_or(1),
    );
    Err(tensor.invalid(format!(
        "holds NaN or infinity at row {}, column {}; the file is damaged",
        index / cols,
        index % cols
    )))
}

/// Index of the first element that is NaN or infinite: its exponent bits are all ones.
fn first_not_finite(dtype: DenseDtype, bytes: &[u8]) -> Option<usize> {
    fn find<const N: usize>(bytes: &[u8], exponent: u32, value: impl Fn([u8; N]) -> u32) -> Option<usize> {
        let all_ones = |&bytes: &[u8; N]| value(bytes) & exponent == exponent;
        let elements = bytes.as_chunks().0;
        // Whole blocks first: a loop without an early exit becomes SIMD, and damage is rare.
        let block = elements
            .chunks(4096)
            .position(|block| block.iter().fold(false, |any, e| any | all_ones(e)))?;
        elements[block * 4096..]
            .iter()
            .position(all_ones)
            .map(|at| block * 4096 + at)
    }
    match dtype {
        DenseDtype::Bf16 => find(bytes, 0x7f80, |bytes| u16::from_le_bytes(bytes).into()),
        DenseDtype::F16 => find(bytes, 0x7c00, |bytes| u16::from_le_bytes(bytes).into()),
        DenseDtype::F32 => find(bytes, 0x7f80_0000, u32::from_le_bytes),
    }
}

/// A quantized type: values and bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockType {
    kind: GgufType,
    values: usize,
    bytes: usize,
}

impl BlockType {
    fn of(kind: GgufType) -> Option<Self> {
        let (values, bytes) = match kind {
            GgufType::Q4_0 | GgufType::IQ4_NL => (32, 18),
            GgufType::Q8_0 => (32, 34),
            GgufType::Q4_K => (256, 144),
            GgufType::Q5_K => (256, 176),
            GgufType::Q6_K => (256, 210),
            _ => return None,
        };
        Some(Self { kind, values, bytes })
    }

    /// The values of a block, as little-endian f32.
    fn decode(self, block: &[u8], out: &mut [[u8; 4]]) {
        match self.kind {
            GgufType::Q8_0 => {
                let d = half(block);
                put(out, block[2..].iter().map(|&q| d * f32::from(q as i8)));
            }
            GgufType::Q4_0 => {
                let d = half(block);
                put(out, nibbles(&block[2..]).map(|q| d * f32::from(q as i8 - 8)));
            }
            GgufType::IQ4_NL => {
                let d = half(block);
                put(
                    out,
                    nibbles(&block[2..]).map(|q| d * f32::from(IQ4_NL[usize::from(q)])),
                );
            }
            GgufType::Q6_K => q6_k(block, out),
            GgufType::Q5_K => q45_k(block, &block[16..48], &block[48..], out),
            _ => q45_k(block, &[], &block[16..], out),
        }
    }
}

/// What the codes of IQ4_NL stand for.
const IQ4_NL: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

fn put(out: &mut [[u8; 4]], values: impl Iterator<Item = f32>) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.to_le_bytes();
    }
}

/// The low halves of all bytes, then the high halves.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4))
}

/// The half-precision float at the beginning of `bytes`.
fn half(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// `ql[128], qh[64], scales[16], d`: 6 bits, one 8-bit scale for 16 values.
fn q6_k(block: &[u8], out: &mut [[u8; 4]]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = half(d);
    put(
        out,
        (0..256).map(|i| {
            // A half of 128 values is four groups of 32, of which two share the bytes of `low`.
            let (part, group, at) = (i / 128, i % 128 / 32, i % 32);
            let byte = low[64 * part + 32 * (group % 2) + at];
            let low = (byte >> (4 * (group / 2))) & 15;
            let high = (high[32 * part + at] >> (2 * group)) & 3;
            let q = (low | high << 4) as i8 - 32;
            d * f32::from(scales[i / 16] as i8) * f32::from(q)
        }),
    );
}

/// `d, dmin, scales[12], (qh[32],) qs[128]`: 4 bits, or 5 with `high`; 32 values share a 6-bit scale and a 6-bit minimum.
fn q45_k(block: &[u8], high: &[u8], codes: &[u8], out: &mut [[u8; 4]]) {
    let (d, dmin) = (half(block), half(&block[2..]));
    let packed = &block[4..16];
    let scale = |j: usize| {
        let (scale, min) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            (
                packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4,
                packed[j + 4] >> 4 | (packed[j] >> 6) << 4,
            )
        };
        (d * f32::from(scale), dmin * f32::from(min))
    };
    put(
        out,
        (0..256).map(|i| {
            let (sub, at) = (i / 32, i % 32);
            let byte = codes[32 * (sub / 2) + at];
            let low = (byte >> (4 * (sub % 2))) & 15;
            let high = high.get(at).map_or(0, |byte| (byte >> sub) & 1);
            let (scale, min) = scale(sub);
            scale * f32::from(low | high << 4) - min
        }),
    );
}
