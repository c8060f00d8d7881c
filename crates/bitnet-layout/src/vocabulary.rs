//! What host and devices call the same things by.

/// A vocabulary index at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Vocabulary index.
    pub id: u32,
    /// Position in its sequence, from 0.
    pub pos: u32,
}

/// The sizes of a transformer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the feed-forward block.
    pub d_ffn: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; query head `h` uses `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Elements of a head; `n_heads * head_dim` need not be `d_model`.
    pub head_dim: usize,
    /// Rows of the embedding and of the output head.
    pub vocab: usize,
}

impl Dims {
    /// Elements of a token's queries.
    #[must_use]
    pub const fn d_q(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Elements of a token's keys, and of its values.
    #[must_use]
    pub const fn d_kv(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Columns of the widest linear layer.
    #[must_use]
    pub fn widest(&self) -> usize {
        self.d_model.max(self.d_ffn).max(self.d_q())
    }
}

/// How the weights of linear layers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightForm {
    /// As ternary codes, two bits each, times 8-bit activations.
    #[default]
    Ternary,
    /// As bfloat16, times f32 activations: eight times the memory, what ternary weights are compared with.
    Bf16,
}
