//! The verbs of a step, for a batch that [`Engine::begin`] was given.

use super::attention::Attention;
use super::linear::{Epilogue, Linear};
use super::{Engine, Input, launch};
use crate::error::{Error, Result};
use bitnet_kernels::embed::EmbedBf16;

impl Engine {
    /// Takes a batch: checks it, uploads it, and writes the tokens' embeddings to the residual stream.
    ///
    /// # Errors
    /// When the batch is empty or too large, something in it is out of range, or the device fails.
    pub fn begin(&mut self, batch: &[Input]) -> Result<()> {
        let limits = self.limits;
        if batch.is_empty() || batch.len() > limits.max_batch {
            return Err(Error::Request(format!(
                "a batch of {} tokens; 1 to {} fit",
                batch.len(),
                limits.max_batch
            )));
        }
        if let Some(token) = batch.iter().find(|t| {
            t.id as usize >= self.dims.vocab
                || t.position as usize >= limits.context
                || t.sequence as usize >= limits.n_seqs
        }) {
            return Err(Error::Request(format!(
                "{token:?} is out of range of the model or of {limits:?}"
            )));
        }
        let column = |of: fn(&Input) -> u32| -> Vec<u32> { batch.iter().map(of).collect() };
        let s = &self.scratch;
        self.stream.upload(&s.tokens, 0, &column(|t| t.id))?;
        self.stream.upload(&s.positions, 0, &column(|t| t.position))?;
        self.stream.upload(&s.sequences, 0, &column(|t| t.sequence))?;
        self.batch = batch.len();
        self.attention = self.plan_attention(batch)?;
        self.embed()
    }

    /// Residual = embedding of the batch's tokens, which stand in device memory.
    pub(super) fn embed(&self) -> Result<()> {
        let (s, d) = (&self.scratch, self.dims.d_model as u32);
        let embed = EmbedBf16 {
            tokens: s.tokens.global(),
            table: self.embedding.global(),
            x: s.residual.global(),
            batch: self.batch as u32,
            d,
        };
        // SAFETY: token ids were checked against the vocabulary, or chosen from it by the device; buffers are as large as the
        // batch, which `begin` checked; the kernel waits before it reads the tokens.
        unsafe { launch(&self.stream, &embed, embed.launch()) }
    }

    /// Norm, quantization and projection to queries, keys and values of layer `layer`.
    ///
    /// # Errors
    /// When the device fails. This goes for the other verbs too.
    pub fn qkv(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        self.linear(&Linear {
            matrix: &l.qkv,
            epilogue: Epilogue::Store,
            x: self.scratch.residual.global(),
            norm: l.attn_norm.global(),
            eps: self.dims.eps,
            y: self.scratch.qkv.global(),
        })
    }

    /// Rotation, append to the cache, and attention of layer `layer`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn attention(&self, layer: usize) -> Result<()> {
        match self.attention {
            Attention::Decode { steps } => {
                self.attention_decode(layer, steps)?;
                self.attention_combine(steps)
            }
            Attention::Prefill { tiles } => self.attention_prefill(layer, tiles),
        }
    }

    /// Projection of the attention back to the residual stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn out_proj(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        self.linear(&Linear {
            matrix: &l.o,
            epilogue: Epilogue::Add,
            x: self.scratch.attention.global(),
            norm: l.attn_sub_norm.as_ref().unwrap_or(&self.ones).global(),
            eps: if self.dims.sub_norms { self.dims.eps } else { -1.0 },
            y: self.scratch.residual.global(),
        })
    }

    /// Gate and up projections and the gate.
    ///
    /// # Errors
    /// When the device fails.
    pub fn up_gate(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        self.linear(&Linear {
            matrix: &l.gate_up,
            epilogue: Epilogue::Gated,
            x: self.scratch.residual.global(),
            norm: l.ffn_norm.global(),
            eps: self.dims.eps,
            y: self.scratch.gated.global(),
        })
    }

    /// Projection of the gated activations back to the residual stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn down(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        self.linear(&Linear {
            matrix: &l.down,
            epilogue: Epilogue::Add,
            x: self.scratch.gated.global(),
            norm: l.ffn_sub_norm.as_ref().unwrap_or(&self.ones).global(),
            eps: if self.dims.sub_norms { self.dims.eps } else { -1.0 },
            y: self.scratch.residual.global(),
        })
    }

    /// An intermediate of the batch, row after row; for tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, what: Intermediate) -> Result<Vec<f32>> {
        let (s, d) = (&self.scratch, &self.dims);
        let (buffer, width) = match what {
            Intermediate::Residual => (&s.residual, d.d_model),
            Intermediate::Qkv => (&s.qkv, (d.n_heads + 2 * d.n_kv_heads) * d.head_dim),
            Intermediate::Attention => (&s.attention, d.n_heads * d.head_dim),
            Intermediate::Gated => (&s.gated, d.d_ffn),
        };
        let mut out = vec![0.0; self.batch * width];
        self.stream.download(buffer, 0, &mut out)?;
        Ok(out)
    }
}

/// What [`Engine::read`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intermediate {
    /// (batch, d_model).
    Residual,
    /// Before rotation, (batch, d_q + 2 d_kv).
    Qkv,
    /// (batch, d_q).
    Attention,
    /// (batch, d_ffn).
    Gated,
}
