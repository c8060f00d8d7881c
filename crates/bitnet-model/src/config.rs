//! Every dimension of a model, validated once.

use bitnet_cpu::ZeroCounts;
pub use bitnet_layout::Activation;

use crate::error::{Error, Result};
use bitnet_layout::Dims;

/// Inputs of a ternary linear layer: sums of 8-bit products over more would not fit 32 bits.
pub(crate) const MAX_COLUMNS: usize = 1 << 23;
/// Positions that 32-bit arithmetic on them can take without a thought.
pub(crate) const MAX_POSITIONS: usize = 1 << 24;

/// What happens to the input of a ternary linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActQuant {
    /// Absmax int8, one scale a token.
    Int8,
    /// None: the ternary weights multiply the float activations (checkpoints with baked-in weights).
    None,
}

/// The shape and constants of a model, of a [`crate::Checkpoint`] or made by [`Config::new`] and changed from there. Back ends
/// refuse one that breaks the rules of [`Config::check`] before they look at anything else.
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
    /// A model of this shape, otherwise as the BitNet b1.58 models of Microsoft are: squared ReLU, norms before o_proj and
    /// down_proj, 8-bit inputs of linear layers, the embedding as output head; a rotary base of 500,000, epsilons of 1e-5, a context
    /// of 4,096, and no tokens that begin or end a text.
    ///
    /// ```
    /// use bitnet_model::{Config, Dims};
    ///
    /// let dims = Dims { d_model: 64, d_ffn: 128, n_layers: 2, n_heads: 4, n_kv_heads: 2, head_dim: 16, vocab: 50 };
    /// let mut config = Config::new(dims)?;
    /// config.eos = vec![49];
    /// config.check()?;
    /// assert!(Config::new(Dims { n_kv_heads: 3, ..dims }).is_err());
    /// # Ok::<(), bitnet_model::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Config::check`].
    pub fn new(dims: Dims) -> Result<Self> {
        let config = Self {
            d_model: dims.d_model,
            d_ffn: dims.d_ffn,
            n_layers: dims.n_layers,
            n_heads: dims.n_heads,
            n_kv_heads: dims.n_kv_heads,
            head_dim: dims.head_dim,
            vocab: dims.vocab,
            max_context: 4096,
            rms_eps: 1e-5,
            rope_theta: 500_000.0,
            activation: Activation::Relu2,
            sub_norms: true,
            qk_norms: false,
            linear_norm_eps: None,
            act_quant: ActQuant::Int8,
            tied_head: true,
            has_head: true,
            ternary_head: false,
            bos: None,
            eos: Vec::new(),
        };
        config.check().map(|()| config)
    }

    /// Refuses what no back end could run: a size of 0, query heads that are no multiple of the key heads, an odd head, columns that
    /// are no multiple of 4 or more than 2^23, a context of more than 2^24, constants that are not positive, and tokens outside
    /// the vocabulary.
    ///
    /// # Errors
    /// Names the field and what it must be.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Request(format!("the model's {message}")));
        for (name, size) in [
            ("d_model", self.d_model),
            ("d_ffn", self.d_ffn),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("vocab", self.vocab),
            ("max_context", self.max_context),
        ] {
            if size == 0 {
                return refuse(format!("{name} is 0; it must be at least 1"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return refuse(format!(
                "n_heads is {}, which is no multiple of n_kv_heads {}",
                self.n_heads, self.n_kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!(
                "head_dim is {}; rotary embeddings need an even one",
                self.head_dim
            ));
        }
        for (name, columns) in [
            ("d_model", self.d_model),
            ("d_ffn", self.d_ffn),
            ("n_heads * head_dim", self.n_heads.saturating_mul(self.head_dim)),
        ] {
            if !columns.is_multiple_of(4) || columns > MAX_COLUMNS {
                return refuse(format!(
                    "{name} is {columns}; it must be a multiple of 4 and at most {MAX_COLUMNS}"
                ));
            }
        }
        if self.max_context > MAX_POSITIONS {
            return refuse(format!(
                "max_context is {}; it must be at most {MAX_POSITIONS}",
                self.max_context
            ));
        }
        // Ids have 32 bits, and the largest matrix is of f32.
        let table = self.vocab.saturating_mul(self.d_model).saturating_mul(4);
        if u32::try_from(self.vocab).is_err() || isize::try_from(table).is_err() {
            return refuse(format!("vocab is {}, which no memory holds", self.vocab));
        }
        for (name, constant) in [
            ("rms_eps", self.rms_eps),
            ("rope_theta", self.rope_theta),
            ("linear_norm_eps", self.linear_norm_eps.unwrap_or(1.0)),
        ] {
            if !(constant > 0.0 && constant.is_finite()) {
                return refuse(format!("{name} is {constant}; it must be positive"));
            }
        }
        match self
            .bos
            .iter()
            .chain(&self.eos)
            .find(|&&id| id as usize >= self.vocab)
        {
            None => Ok(()),
            Some(id) => refuse(format!(
                "bos or eos is {id}, which is not below its vocab {}",
                self.vocab
            )),
        }
    }

    /// Its sizes.
    #[must_use]
    pub fn dims(&self) -> Dims {
        Dims {
            d_model: self.d_model,
            d_ffn: self.d_ffn,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            vocab: self.vocab,
        }
    }

    /// Weights of the linear layers.
    #[must_use]
    pub fn linear_weights(&self) -> u64 {
        let attention = self.d_model * (2 * self.d_q() + 2 * self.d_kv());
        (self.n_layers * (attention + 3 * self.d_model * self.d_ffn)) as u64
    }

    /// The share of the weights of the linear layers that was read by the steps that `zeros` counted; `None` where it counted none.
    #[must_use]
    pub fn share_read(&self, zeros: ZeroCounts) -> Option<f64> {
        // Each step has asked for the columns of all layers.
        let steps = zeros.of_columns as f64 / (self.n_layers * self.d_ffn.next_multiple_of(16)) as f64;
        let left_out = (zeros.of_rows - zeros.rows + zeros.of_columns - zeros.columns) as f64;
        let read = 1.0 - left_out * self.d_model as f64 / (steps * self.linear_weights() as f64);
        (steps > 0.0).then_some(read)
    }

    /// Columns of o_proj: `n_heads * head_dim`.
    #[must_use]
    pub fn d_q(&self) -> usize {
        self.dims().d_q()
    }

    /// Rows of k_proj and of v_proj: `n_kv_heads * head_dim`.
    #[must_use]
    pub fn d_kv(&self) -> usize {
        self.dims().d_kv()
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
