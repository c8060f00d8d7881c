//! Every dimension of a model, validated once.

pub use bitnet_layout::Activation;

/// What happens to the input of a ternary linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActQuant {
    /// Absmax int8, one scale a token.
    Int8,
    /// None: the ternary weights multiply the float activations (checkpoints with baked-in weights).
    None,
}

/// The shape and constants of a model. Built by [`crate::Checkpoint`], which checks every relation between the fields:
/// holders may rely on `n_heads % n_kv_heads == 0`, an even `head_dim`, no zero dimension, and products that fit `usize`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the feed-forward block.
    pub d_ffn: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; query head `h` uses `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Elements of a head; `n_heads * head_dim` need not be `d_model`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest context the model was trained for, in tokens.
    pub max_context: usize,
    /// Epsilon of the block norms, sub-norms and final norm.
    pub rms_eps: f32,
    /// Base of the rotary embedding (half-split convention).
    pub rope_theta: f32,
    /// Gate of the feed-forward block.
    pub activation: Activation,
    /// Whether o_proj and down_proj have an RMSNorm before them (`attn_sub_norm`, `ffn_sub_norm`).
    pub sub_norms: bool,
    /// Whether each head of queries and keys has an RMSNorm before its rotation (`q_norm`, `k_norm`).
    pub qk_norms: bool,
    /// Epsilon of an RMSNorm of its own before every quantized linear layer (`use_rms_norm`), if there is one.
    pub linear_norm_eps: Option<f32>,
    /// Quantization of the input of the linear layers.
    pub act_quant: ActQuant,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Whether there is an output head at all; embedding models have none, and give no logits.
    pub has_head: bool,
    /// Whether the output head is ternary, with 8-bit inputs as the other linear layers.
    pub ternary_head: bool,
    /// First token of every sequence, if the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a sequence, from config.json and generation_config.json.
    pub eos: Vec<u32>,
}

impl Config {
    /// Columns of o_proj: `n_heads * head_dim`.
    #[must_use]
    pub fn d_q(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Rows of k_proj and of v_proj: `n_kv_heads * head_dim`.
    #[must_use]
    pub fn d_kv(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Rotation of each pair of a head's elements, in radians a position, (head_dim / 2): `1 / theta^(2 i / head_dim)` in f32,
    /// each operation rounded, as transformers computes it.
    #[must_use]
    pub fn rope_frequencies(&self) -> Vec<f32> {
        (0..self.head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.head_dim as f32;
                1.0 / (f64::from(self.rope_theta).powf(f64::from(exponent)) as f32)
            })
            .collect()
    }
}
