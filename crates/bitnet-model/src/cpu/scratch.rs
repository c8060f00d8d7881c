//! What a step writes between its verbs, allocated once for the largest batch.

use bitnet_cpu::{Activations, Cpu, Precision, Rows};

use crate::{ActQuant, Config, Error, Result};

/// Rows of f32, one for each token of a batch.
pub(super) struct Scratch {
    pub(super) activations: Activations,
    /// (tokens, d_model)
    pub(super) residual: Rows,
    /// (tokens, d_q + 2 d_kv)
    pub(super) qkv: Rows,
    /// (tokens, d_q)
    pub(super) attention: Rows,
    /// (tokens, 2 d_ffn), or empty where gate and up are multiplied at once.
    pub(super) gate_up: Rows,
    /// (tokens, d_ffn)
    pub(super) gated: Rows,
    /// (tokens, d_model), input of the head.
    pub(super) last: Rows,
    /// (rows, vocab); reserved for every row of a batch, grown as rows are asked for.
    pub(super) logits: Vec<f32>,
    /// (tokens, head_dim / 2)
    pub(super) cos: Rows,
    /// (tokens, head_dim / 2)
    pub(super) sin: Rows,
    /// By element of a head below `head_dim / 2`, radians a position.
    pub(super) frequencies: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(c: &Config, cpu: &Cpu, max_batch: usize) -> Result<Self> {
        let too_large = |what: &str| {
            Error::Device(format!(
                "memory for {what} of {max_batch} tokens a step cannot be had; lower the batch size"
            ))
        };
        let zeros = |what: &'static str, width: usize| {
            Rows::zeroed(what, max_batch, width).map_err(|_| too_large(what))
        };
        let mut logits = Vec::new();
        let n_logits = max_batch.saturating_mul(c.vocab);
        logits
            .try_reserve_exact(n_logits)
            .map_err(|_| too_large("the logits"))?;
        let precision = match c.act_quant {
            ActQuant::Int8 => Precision::Int8,
            ActQuant::None => Precision::F32,
        };
        // As `Linear::is_split` says.
        let split_width = if c.linear_norm_eps.is_some() || !c.d_ffn.is_multiple_of(16) {
            2 * c.d_ffn
        } else {
            0
        };
        let max_k = c.d_model.max(c.d_q()).max(c.d_ffn);
        let half = c.head_dim / 2;
        Ok(Self {
            activations: Activations::new(precision, cpu.n_threads(), max_batch, max_k)
                .map_err(|_| too_large("activations"))?,
            residual: zeros("the residual stream", c.d_model)?,
            qkv: zeros("queries, keys and values", c.d_q() + 2 * c.d_kv())?,
            attention: zeros("the output of attention", c.d_q())?,
            gate_up: zeros("the feed-forward block", split_width)?,
            gated: zeros("the feed-forward block", c.d_ffn)?,
            last: zeros("the input of the head", c.d_model)?,
            logits,
            cos: zeros("the rotary embedding", half)?,
            sin: zeros("the rotary embedding", half)?,
            frequencies: c.rope_frequencies(),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        let Self {
            activations,
            residual,
            qkv,
            attention,
            gate_up,
            gated,
            last,
            logits,
            cos,
            sin,
            frequencies,
        } = self;
        let rows = [residual, qkv, attention, gate_up, gated, last, cos, sin];
        let n_rows: usize = rows.iter().map(|rows| rows.len()).sum();
        let floats = n_rows + logits.len() + frequencies.len();
        activations.bytes() + (floats * size_of::<f32>()) as u64
    }
}
