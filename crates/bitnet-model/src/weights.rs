//! Weights on their way from a checkpoint to a back end: canonical, shape-checked, one layer at a time.

use crate::{Config, DenseDtype, Result};

/// A (n, k) ternary matrix in the canonical layout of [`bitnet_layout::words`], possibly several projections that share
/// their input, stacked by rows.
#[derive(Clone, Debug, PartialEq)]
pub struct TernaryTensor {
    /// Outputs.
    pub n: usize,
    /// Inputs, filled up to a multiple of 16 with columns of zeros.
    pub k: usize,
    /// `n * k / 16` words, row-major, every code valid.
    pub words: Vec<u32>,
    /// Row ranges with a scale of their own, in order; their rows sum to `n`.
    pub segments: Vec<Segment>,
}

/// Consecutive rows of a [`TernaryTensor`] that come from one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Rows.
    pub rows: usize,
    /// What a ternary unit is worth: `w = t * scale`.
    pub scale: f32,
    /// Weight (k) of the RMSNorm of this projection's own input, in models that have one.
    pub input_norm: Option<Vec<f32>>,
}

/// One transformer layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    /// RMSNorm before attention, (d_model).
    pub attn_norm: Vec<f32>,
    /// q, k and v stacked: (d_q + 2 d_kv, d_model); three segments.
    pub qkv: TernaryTensor,
    /// RMSNorm of each head of the query before its rotation, (head_dim).
    pub q_norm: Option<Vec<f32>>,
    /// RMSNorm of each head of the key before its rotation, (head_dim).
    pub k_norm: Option<Vec<f32>>,
    /// RMSNorm before o, (d_q).
    pub attn_sub_norm: Option<Vec<f32>>,
    /// (d_model, d_q); one segment.
    pub o: TernaryTensor,
    /// RMSNorm before the feed-forward block, (d_model).
    pub ffn_norm: Vec<f32>,
    /// gate, then up: (2 d_ffn, d_model); two segments.
    pub gate_up: TernaryTensor,
    /// RMSNorm before down, (d_ffn).
    pub ffn_sub_norm: Option<Vec<f32>>,
    /// (d_model, d_ffn); one segment.
    pub down: TernaryTensor,
}

/// A dense (rows, cols) matrix that is still in its file: the embedding or the output head.
pub trait Dense {
    /// Element type in the file.
    fn dtype(&self) -> DenseDtype;
    /// Rows and columns.
    fn shape(&self) -> (usize, usize);
    /// Reads rows `first ..` as they are stored (little endian) until `out` is full.
    ///
    /// # Errors
    /// When `out` is not a whole number of rows of the matrix, or the file cannot be read.
    fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()>;
}

/// Where a back end gets its weights: an opened checkpoint, or a test's random model.
///
/// Readers ask for the parts in any order; asking in the order embedding, layers, final norm, head reads a file once
/// from front to back.
pub trait WeightSource {
    /// The model's shape.
    fn config(&self) -> &Config;
    /// The token embedding, (vocab, d_model).
    ///
    /// # Errors
    /// When the tensor is missing or of an unexpected shape or type.
    fn embedding(&self) -> Result<Box<dyn Dense + '_>>;
    /// Layer `index`.
    ///
    /// # Errors
    /// When a tensor is missing, of an unexpected shape or type, or holds an invalid code or scale.
    fn layer(&self, index: usize) -> Result<LayerWeights>;
    /// RMSNorm before the head, (d_model).
    ///
    /// # Errors
    /// As for [`WeightSource::embedding`].
    fn final_norm(&self) -> Result<Vec<f32>>;
    /// The output head (vocab, d_model), or `None` where it is the embedding, or ternary, or there is none.
    ///
    /// # Errors
    /// As for [`WeightSource::embedding`].
    fn head(&self) -> Result<Option<Box<dyn Dense + '_>>>;
    /// The output head where it is ternary ([`Config::ternary_head`]): (vocab, d_model), one segment.
    ///
    /// # Errors
    /// As for [`WeightSource::layer`].
    fn ternary_head(&self) -> Result<Option<TernaryTensor>> {
        Ok(None)
    }
}

/// Whether a token alone leaves out what squared ReLU makes zero: rows whose gate is not positive, and columns of zeros; a few
/// tokens leave out the columns that none of them needs, where those are most. The same
/// bits from less memory traffic; rows and columns are read from copies of two thirds of the feed-forward weights. On a processor, with
/// 8-bit activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkipZeros {
    /// Where that pays: where the copies are too large for caches (64 MiB), and take at most a quarter of the memory that is free beside
    /// the weights.
    #[default]
    Auto,
    /// The copies are made wherever there are such zeros; what is read is still decided for each token, by how many there are.
    On,
    /// All is read.
    Off,
}

/// How the output head is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LmHead {
    /// Certified where that pays: where the head is too large for caches (64 MiB) and the copy takes at most a quarter of the memory
    /// that is free beside the weights, and the linear layers are ternary. Else as stored.
    #[default]
    Auto,
    /// With the numbers of the checkpoint.
    Stored,
    /// As stored, and beside it a copy of 8-bit integers from which the best logits are found: about half the bytes of bf16 to read for
    /// each token, half as much memory again, and the same logits to the bit.
    Certified,
    /// As 8-bit integers, one scale a row: half the bytes of bf16 to read for each token, and logits that differ.
    Int8,
}
