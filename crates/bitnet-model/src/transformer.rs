//! The transformer, written once over the verbs of a [`Backend`].

use std::ops::ControlFlow;

use crate::{Config, Error, Result, Sampler};

/// One token to compute: prompt tokens, decoded tokens and tokens of several sequences look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Vocabulary index.
    pub id: u32,
    /// Position in its sequence, from 0; positions of a sequence are computed in order, without gaps. Going back to an
    /// earlier position forgets it and what followed.
    pub pos: u32,
    /// Sequence slot, below [`Backend::n_seqs`].
    pub seq: u32,
}

impl Token {
    /// Consecutive tokens of sequence `seq`, the first of them at position `pos`.
    #[must_use]
    pub fn run(ids: &[u32], pos: usize, seq: u32) -> Vec<Self> {
        let token = |(pos, &id)| Self {
            id,
            // Every position of a context takes memory: a position past the limit is refused as one past the context.
            pos: u32::try_from(pos).unwrap_or(u32::MAX),
            seq,
        };
        (pos..).zip(ids).map(token).collect()
    }
}

/// An intermediate result that tests compare between back ends; all f32, row per batch token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// The residual stream, (tokens, d_model): after `embed`, `out_proj` or `down`.
    Residual,
    /// Query after RoPE, (tokens, d_q): after `qkv`.
    Query,
    /// Key after RoPE as it stands in the cache, (tokens, d_kv): after `qkv`.
    Key,
    /// Value as it stands in the cache, (tokens, d_kv): after `qkv`.
    Value,
    /// Attention output before its sub-norm, (tokens, d_q): after `attention`.
    Attention,
    /// Gated feed-forward activations before their sub-norm, (tokens, d_ffn): after `up_gate`.
    Gated,
}

/// A device that holds a model and runs its verbs. It owns weights, KV cache and scratch; `step` allocates nothing that
/// grows with use.
///
/// The verbs are called in the order of [`Backend::step`] for the batch that [`Backend::embed`] was given. The same
/// token of the same sequence gives the same bits whatever else is in the batch and however the prompt was cut.
pub trait Backend {
    /// The model's shape.
    fn config(&self) -> &Config;
    /// What runs the verbs, for people: `cpu (avx512-vnni, 2 threads)`, `cuda:0 (NVIDIA H200)`.
    fn name(&self) -> String;
    /// Sequence slots.
    fn n_seqs(&self) -> usize;
    /// Positions a slot can hold.
    fn context(&self) -> usize;
    /// Tokens one step can take.
    fn max_batch(&self) -> usize;
    /// Bytes this back end holds for weights, KV cache and scratch.
    fn memory_bytes(&self) -> u64;

    /// Starts a batch: residual = embedding rows of its tokens.
    ///
    /// # Errors
    /// When the batch is empty or too large, or a token, position or slot is out of range; nothing is computed then.
    fn embed(&mut self, batch: &[Token]) -> Result<()>;
    /// Norm, quantize, q k v projections, RoPE; appends k and v to the cache.
    ///
    /// # Errors
    /// When the device fails.
    fn qkv(&mut self, layer: usize) -> Result<()>;
    /// Causal softmax attention of each token over its own sequence.
    ///
    /// # Errors
    /// When the device fails.
    fn attention(&mut self, layer: usize) -> Result<()>;
    /// Sub-norm, quantize, o projection; adds to the residual.
    ///
    /// # Errors
    /// When the device fails.
    fn out_proj(&mut self, layer: usize) -> Result<()>;
    /// Norm, quantize, gate and up projections, activation.
    ///
    /// # Errors
    /// When the device fails.
    fn up_gate(&mut self, layer: usize) -> Result<()>;
    /// Sub-norm, quantize, down projection; adds to the residual.
    ///
    /// # Errors
    /// When the device fails.
    fn down(&mut self, layer: usize) -> Result<()>;
    /// Final norm and head for the batch rows `rows` (ascending, possibly none): (rows, vocab) f32, row-major.
    ///
    /// # Errors
    /// When a row is out of range or the device fails.
    fn logits(&mut self, rows: &[usize]) -> Result<&[f32]>;

    /// Decodes without the host in between, where the back end can: computes `first`, one token of each of some sequences,
    /// hands the tokens that `samplers` choose (one a sequence, in the same order) to `on_tokens`, which says whether to go
    /// on, and computes them in turn, for at most `n` steps. The tokens are those of [`Sampler::sample`], and the samplers
    /// have accepted all that were handed on. Returns false, having done nothing, where it cannot.
    ///
    /// Positions past the last tokens that were handed on may hold anything until they are computed again.
    ///
    /// # Errors
    /// As for the verbs and for [`Sampler::sample`].
    fn decode(
        &mut self,
        first: &[Token],
        samplers: &mut [Sampler],
        n: usize,
        on_tokens: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<bool> {
        let _ = (first, samplers, n, on_tokens);
        Ok(false)
    }

    /// An intermediate of the verb that just ran, for tests; `None` where the back end does not keep it.
    ///
    /// # Errors
    /// When the device fails.
    fn read(&mut self, tap: Tap) -> Result<Option<Vec<f32>>>;

    /// Runs the whole transformer on a batch and returns the logits of `rows`, (rows, vocab).
    ///
    /// # Errors
    /// As for the verbs.
    fn step(&mut self, batch: &[Token], rows: &[usize]) -> Result<&[f32]> {
        self.embed(batch)?;
        for layer in 0..self.config().n_layers {
            self.qkv(layer)?;
            self.attention(layer)?;
            self.out_proj(layer)?;
            self.up_gate(layer)?;
            self.down(layer)?;
        }
        self.logits(rows)
    }
}

/// Checks a batch against a back end's limits, for the start of [`Backend::embed`].
///
/// # Errors
/// Names the first token that is out of range.
pub fn check_batch(backend: &(impl Backend + ?Sized), batch: &[Token]) -> Result<()> {
    if batch.is_empty() || batch.len() > backend.max_batch() {
        return Err(Error::Request(format!(
            "a batch of {} tokens: this back end takes 1 to {}",
            batch.len(),
            backend.max_batch()
        )));
    }
    let vocab = backend.config().vocab;
    for token in batch {
        if token.id as usize >= vocab {
            return Err(Error::Request(format!(
                "token id {} is not below the vocabulary size {vocab}",
                token.id
            )));
        }
        if token.pos as usize >= backend.context() {
            return Err(Error::Request(format!(
                "position {} is past the context of {} tokens; raise it with --ctx-size or shorten the prompt",
                token.pos,
                backend.context()
            )));
        }
        if token.seq as usize >= backend.n_seqs() {
            return Err(Error::Request(format!(
                "sequence {} is not below {}",
                token.seq,
                backend.n_seqs()
            )));
        }
    }
    Ok(())
}
