//! Buffers of a step.

use super::space::{Space, Use};
use super::{Dims, HeadKind, Limits, WeightKind};
use crate::error::Result;
use crate::memory::DeviceBuffer;
use bitnet_kernels::{bf16_gemm, dense_gemv, quantize_rows, rope};

/// Buffers of a step.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) tokens: DeviceBuffer<u32>,
    pub(super) positions: DeviceBuffer<u32>,
    pub(super) sequences: DeviceBuffer<u32>,
    /// (tiles, 4), see [`bitnet_kernels::attention::Tile`].
    pub(super) tiles: DeviceBuffer<u32>,
    /// (batch, d_model).
    pub(super) residual: DeviceBuffer<f32>,
    /// (batch, d_q + 2 d_kv).
    pub(super) qkv: DeviceBuffer<f32>,
    /// (batch, n_heads, padded) bfloat16, two a word.
    pub(super) queries: DeviceBuffer<u32>,
    /// (batch, d_q).
    pub(super) attention: DeviceBuffer<f32>,
    /// (batch, d_ffn).
    pub(super) gated: DeviceBuffer<f32>,
    /// Codes of the rows before a linear layer, (batch, padded columns / 4).
    pub(super) codes: DeviceBuffer<u32>,
    /// What they are worth, (batch).
    pub(super) unit: DeviceBuffer<f32>,
    /// Their sums, (batch).
    pub(super) sum: DeviceBuffer<i32>,
    /// Partial attention, (decode batch, n_heads, steps, padded) and (…, 2).
    pub(super) values: DeviceBuffer<f32>,
    pub(super) sums: DeviceBuffer<f32>,
    /// Products of bfloat16 layers before their epilogue, (batch, widest output).
    pub(super) product: DeviceBuffer<f32>,
    /// Terms of the rows before the output head, and what their sums are multiplied by: see [`bf16_gemm::SplitColumns`] and
    /// [`bitnet_kernels::int8_head::Int8Columns`].
    pub(super) terms: DeviceBuffer<u32>,
    pub(super) term_unit: DeviceBuffer<f32>,
    /// Rows of `logits`.
    pub(super) logit_rows: usize,
    /// (logit_rows, vocab).
    pub(super) logits: DeviceBuffer<f32>,
}

impl Scratch {
    pub(super) fn new(space: &Space<'_>, dims: &Dims, limits: Limits, padded: usize) -> Result<Self> {
        let Limits {
            context, max_batch, ..
        } = limits;
        let (d_q, d_kv) = (dims.d_q(), dims.d_kv());
        let decode_rows = limits.decode_batch() * dims.n_heads * (context / rope::BLOCK_KEYS as usize);
        let few = dense_gemv::MAX_COLS as usize;
        let logit_rows = max_batch
            .clamp(few, bf16_gemm::MAX_COLS as usize)
            .max(limits.decode_batch());
        let of_head = match dims.head {
            HeadKind::Int8 => logit_rows * dims.d_model / 2,
            HeadKind::Embedding | HeadKind::Own => bf16_gemm::term_words(dims.d_model),
        };
        let (of_layers, product) = match dims.weights {
            WeightKind::Ternary => (0, 0),
            WeightKind::Bf16 => (
                bf16_gemm::term_words(dims.widest()),
                max_batch * dims.d_model.max(2 * dims.d_ffn),
            ),
        };
        let term_words = of_head.max(of_layers);
        let words = |what: &str, len: usize| space.alloc(Use::Scratch, what, len);
        let floats = |what: &str, len: usize| space.alloc(Use::Scratch, what, len);
        Ok(Self {
            tokens: words("token ids", max_batch)?,
            positions: words("positions", max_batch)?,
            sequences: words("sequences", max_batch)?,
            tiles: words("tiles of tokens", max_batch * 4)?,
            residual: floats("the residual stream", max_batch * dims.d_model)?,
            qkv: floats("queries, keys and values", max_batch * (d_q + 2 * d_kv))?,
            queries: words("queries", max_batch * dims.n_heads * padded / 2)?,
            attention: floats("attention", max_batch * d_q)?,
            gated: floats("gated activations", max_batch * dims.d_ffn)?,
            codes: words(
                "quantized activations",
                max_batch * quantize_rows::words_per_row(dims.widest()),
            )?,
            unit: floats("activation scales", max_batch)?,
            sum: space.alloc(Use::Scratch, "activation sums", max_batch)?,
            values: floats("partial attention", decode_rows * padded)?,
            sums: floats("partial attention", decode_rows * 2)?,
            product: floats("products", product)?,
            terms: words("the head's input", term_words)?,
            term_unit: floats("the head's input", logit_rows)?,
            logit_rows,
            logits: floats("logits", logit_rows * dims.vocab)?,
        })
    }
}
