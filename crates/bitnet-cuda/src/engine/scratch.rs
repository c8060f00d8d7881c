//! Buffers of a step.

use super::attention::ROWS_AT_ONCE;
use super::space::{Space, Use};
use super::weights::Form;
use super::{Architecture, HeadKind, Limits};
use crate::error::Result;
use crate::memory::DeviceBuffer;
use bitnet_kernels::{bf16_gemm, dense_gemv, int8_hopper, quantize_rows};
use bitnet_layout::mma_tile::{self, CodeOrder};

/// Buffers of a step.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The words of a batch, see [`super::batch::Plan`].
    pub(super) inputs: DeviceBuffer<u32>,
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
    /// Partial attention, (rows at once, n_heads, steps, padded) and (…, 2).
    pub(super) values: DeviceBuffer<f32>,
    pub(super) sums: DeviceBuffer<f32>,
    /// Products of bfloat16 layers before their epilogue, (batch, widest output).
    pub(super) product: DeviceBuffer<f32>,
    /// Rows that were normed before projections norm them once more, (batch, widest input).
    pub(super) normed: DeviceBuffer<f32>,
    /// Products of projections that stand apart, (batch, widest output).
    pub(super) apart: DeviceBuffer<f32>,
    /// Rows before an output head of several terms, once for each: (rows at once, `TableForm::stride`).
    pub(super) repeated: DeviceBuffer<f32>,
    /// Terms of the rows before the output head, and what their sums are multiplied by: see [`bf16_gemm::SplitColumns`] and
    /// [`bitnet_kernels::int8_head::Int8Columns`].
    pub(super) terms: DeviceBuffer<u32>,
    pub(super) term_unit: DeviceBuffer<f32>,
    /// How far off their products are at most, (logit_rows, 2): see [`bitnet_kernels::int8_head::Int8Columns`].
    pub(super) term_bounds: DeviceBuffer<f32>,
    /// Rows of `logits`.
    pub(super) logit_rows: usize,
    /// (logit_rows, vocab).
    pub(super) logits: DeviceBuffer<f32>,
}

impl Scratch {
    pub(super) fn new(
        space: &Space<'_>,
        model: &Architecture,
        limits: Limits,
        padded: usize,
        inputs: usize,
    ) -> Result<Self> {
        let max_batch = limits.rows();
        let (d_q, d_kv) = (model.dims.d_q(), model.dims.d_kv());
        let attention_rows = limits.seats().min(ROWS_AT_ONCE) * model.dims.n_heads * limits.table_len();
        let few = dense_gemv::MAX_COLS as usize;
        let logit_rows = max_batch
            .clamp(few, bf16_gemm::MAX_COLS as usize)
            .max(limits.seats());
        // In passes by warpgroups too.
        let widest = int8_hopper::Width::Many.columns();
        let passes = logit_rows.div_ceil(widest as usize);
        let of_int8 = passes * int8_hopper::term_words(widest, model.dims.d_model);
        let of_head = match model.head {
            HeadKind::Int8 => of_int8,
            HeadKind::Embedding | HeadKind::Own if model.is_certified => {
                bf16_gemm::term_words(model.dims.d_model).max(of_int8)
            }
            HeadKind::Embedding | HeadKind::Own => {
                bf16_gemm::term_words(model.table.stride(model.dims.d_model))
            }
            HeadKind::None | HeadKind::Ternary => 0,
        };
        let (of_layers, product) = match Form::of(model) {
            Form::Tiles => (0, 0),
            Form::Scaled | Form::Units => (
                bf16_gemm::term_words(model.dims.widest()),
                max_batch * model.dims.d_model.max(2 * model.dims.d_ffn),
            ),
        };
        let (normed, apart) = match model.linear_norm_eps {
            Some(_) => (
                max_batch * model.dims.widest(),
                max_batch * (d_q.max(d_kv)).max(2 * model.dims.d_ffn),
            ),
            None => (0, 0),
        };
        let head_row = match model.head {
            HeadKind::Embedding | HeadKind::Own if !model.table.is_plain(model.dims.d_model) => {
                model.table.stride(model.dims.d_model)
            }
            _ => 0,
        };
        let term_words = of_head.max(of_layers);
        let words = |what: &str, len: usize| space.alloc(Use::Scratch, what, len);
        let floats = |what: &str, len: usize| space.alloc(Use::Scratch, what, len);
        Ok(Self {
            inputs: words("tokens and their pages", inputs)?,
            residual: floats("the residual stream", max_batch * model.dims.d_model)?,
            qkv: floats("queries, keys and values", max_batch * (d_q + 2 * d_kv))?,
            queries: words("queries", max_batch * model.dims.n_heads * padded / 2)?,
            attention: floats("attention", max_batch * d_q)?,
            gated: floats("gated activations", max_batch * model.dims.d_ffn)?,
            codes: words(
                "quantized activations",
                mma_tile::padded_rows(CodeOrder::Warpgroup, max_batch)
                    * quantize_rows::words_per_row(model.dims.widest()),
            )?,
            unit: floats("activation scales", max_batch)?,
            sum: space.alloc(Use::Scratch, "activation sums", max_batch)?,
            values: floats("partial attention", attention_rows * padded)?,
            sums: floats("partial attention", attention_rows * 2)?,
            product: floats("products", product)?,
            normed: floats("normed rows", normed)?,
            apart: floats("products", apart)?,
            repeated: floats("the head's input", head_row * bf16_gemm::MAX_COLS as usize)?,
            terms: words("the head's input", term_words)?,
            term_unit: floats("the head's input", logit_rows)?,
            term_bounds: floats("the head's input", 2 * logit_rows)?,
            logit_rows,
            logits: floats("logits", logit_rows * model.dims.vocab)?,
        })
    }
}
