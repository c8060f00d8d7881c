//! What a back end is: a device that holds a model and computes batches; and the order of a step over its verbs.

use bitnet_cpu::{Ask, Best, KvType, ZeroCounts};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::pages::{Batch, Limits, Start};
use crate::sampler::Sampler;

/// What a back end holds and can take.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The model's shape.
    pub config: Config,
    /// What runs the model, for people: `cpu (avx512-vnni, 2 threads)`, `cuda:0 (NVIDIA H200)`.
    pub name: String,
    /// Positions of a page of keys and values.
    pub page: usize,
    /// Pages of the cache.
    pub n_pages: usize,
    /// Sequences that one step can take.
    pub max_seqs: usize,
    /// Positions that a sequence can have.
    pub context: usize,
    /// Tokens that one step can take.
    pub max_batch: usize,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Bytes of the output head that a decode step reads, but for single rows.
    pub head_bytes: u64,
    /// Bytes held for weights, keys and values, and scratch.
    pub memory_bytes: u64,
    /// Those of them that hold weights.
    pub weight_bytes: u64,
    /// Those of them that hold keys and values.
    pub kv_bytes: u64,
}

/// Most bytes of logits that are asked of one step beside those that tokens are chosen from: a vocabulary is wide, and a text long.
const LOGITS_BYTES: usize = 32 << 20;

impl Spec {
    /// Rows of logits that one step may give for a text that is there already: at most 32 MiB of them, but at least one.
    pub(crate) fn max_logit_rows(&self) -> usize {
        (LOGITS_BYTES / 4 / self.config.vocab.max(1)).clamp(1, self.max_batch.max(1))
    }

    /// What a batch must fit.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            page: self.page,
            n_pages: self.n_pages,
            vocab: self.config.vocab,
            context: self.context,
            max_batch: self.max_batch,
            max_seqs: self.max_seqs,
        }
    }

    /// Refuses what was made for another back end, and rows that are not in the batch or not in ascending order: the
    /// beginning of every [`Backend::step`].
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn check(&self, batch: &Batch, want: Want<'_>) -> Result<()> {
        self.check_limits(batch.limits())?;
        let n_tokens = batch.tokens().len();
        let rows = want.rows();
        let is_ascending = rows.is_sorted_by(|a, b| a < b);
        if !is_ascending || rows.last().is_some_and(|&last| last >= n_tokens) {
            return Err(Error::Request(format!(
                "results of rows {rows:?} of a batch of {n_tokens} tokens: rows must be below that, in ascending order"
            )));
        }
        Ok(())
    }

    /// Refuses what was made for another back end.
    ///
    /// # Errors
    /// Names both limits.
    pub fn check_limits(&self, found: Limits) -> Result<()> {
        let own = self.limits();
        if found != own {
            return Err(Error::Request(format!(
                "a batch made for {found:?}, and {} has {own:?}; make it with pages of this back end",
                self.name
            )));
        }
        Ok(())
    }
}

impl From<&Spec> for Limits {
    fn from(spec: &Spec) -> Self {
        spec.limits()
    }
}

/// What a step shall return, each for some rows of the batch, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// Nothing: keys and values alone, for all but the end of a prompt.
    Nothing,
    /// Logits, (rows, vocab).
    Logits(&'a [usize]),
    /// The residual stream after the final norm, which the head multiplies, (rows, `d_model`).
    Hidden(&'a [usize]),
}

impl<'a> Want<'a> {
    /// The rows.
    #[must_use]
    pub fn rows(self) -> &'a [usize] {
        match self {
            Self::Nothing => &[],
            Self::Logits(rows) | Self::Hidden(rows) => rows,
        }
    }
}

/// A device that holds a model: its weights, the pages of keys and values, and scratch.
///
/// The same token after the same tokens gives the same bits whatever else is in the batch, however the prompt was cut and
/// wherever its pages are.
pub trait Backend: Send {
    /// What it holds and can take.
    fn spec(&self) -> &Spec;

    /// Copies the pages that the batch says, then computes its tokens: keys and values go to their pages. Returns what is
    /// wanted, row-major f32, valid until the next step; nothing where nothing is.
    ///
    /// # Errors
    /// When the batch was made for another back end, a row is out of range, or the device fails.
    fn step(&mut self, batch: &Batch, want: Want<'_>) -> Result<&[f32]>;

    /// Decoding without the host in between, where the device can.
    fn decoder(&mut self) -> Option<&mut dyn Decoder> {
        None
    }

    /// The parts of a step, where it is made of them: [`crate::conformance`] compares two back ends part by part.
    fn verbs(&mut self) -> Option<&mut dyn Verbs> {
        None
    }

    /// The best logits without the others, where the output head is kept so that they can be found.
    fn certified(&mut self) -> Option<&mut dyn CertifiedHead> {
        None
    }

    /// What it left out so far because it was zero.
    fn zeros(&self) -> ZeroCounts {
        ZeroCounts::default()
    }
}

/// An output head that finds the best logits without computing all of them.
pub trait CertifiedHead {
    /// For each row of `hidden`, as [`Want::Hidden`] gives them, the logits that one of `asks` wants, and others: each has the bits
    /// that [`Want::Logits`] gives, and all that are not finite are among them.
    ///
    /// # Errors
    /// When there is not one of `asks` for each row, or the device fails.
    fn best(&mut self, hidden: &[f32], asks: &[Ask<'_>]) -> Result<Vec<Best>>;
}

/// So that one can be lent to whom else would own it.
impl<B: Backend + ?Sized> Backend for &mut B {
    fn spec(&self) -> &Spec {
        (**self).spec()
    }

    fn step(&mut self, batch: &Batch, want: Want<'_>) -> Result<&[f32]> {
        (**self).step(batch, want)
    }

    fn decoder(&mut self) -> Option<&mut dyn Decoder> {
        (**self).decoder()
    }

    fn verbs(&mut self) -> Option<&mut dyn Verbs> {
        (**self).verbs()
    }

    fn certified(&mut self) -> Option<&mut dyn CertifiedHead> {
        (**self).certified()
    }

    fn zeros(&self) -> ZeroCounts {
        (**self).zeros()
    }
}

/// Decoding on the device, driven by the caller: sequences take seats, steps are given to the device ahead of time, and
/// their tokens are read behind it.
///
/// A sequence may take or leave a seat between any two calls. Tokens that were computed ahead for one that left are
/// dropped; what they wrote is past the sequence's end and counts for nothing.
pub trait Decoder {
    /// Seats that there are.
    fn seats(&self) -> usize;

    /// Steps that can be given to the device and not be read yet.
    fn lookahead(&self) -> usize;

    /// Puts a sequence on a seat that is not taken: `start` is computed in the next step, and the token that `sampler`
    /// would choose after it in the one after that. Returns false, having done nothing, where the device cannot choose as this
    /// sampler does.
    ///
    /// # Errors
    /// When the seat is taken or there is none, `start` was made for another back end, or the device fails.
    fn seat(&mut self, seat: usize, start: Start<'_>, sampler: &Sampler) -> Result<bool>;

    /// The table of a sequence has grown.
    ///
    /// # Errors
    /// When nobody has the seat, a page is not of this device, or the device fails.
    fn pages(&mut self, seat: usize, pages: &[u32]) -> Result<()>;

    /// Frees a seat, if it is taken.
    fn leave(&mut self, seat: usize);

    /// Gives the device `steps` more steps, of every sequence that has a seat now. The caller has reserved pages for them.
    ///
    /// # Errors
    /// When no seat is taken, more than [`Decoder::lookahead`] steps would be unread, a sequence's pages end, or the device
    /// fails.
    fn ahead(&mut self, steps: usize) -> Result<()>;

    /// Waits for the oldest step that has not been read, and appends the token chosen on each seat, ascending: (seat, id). In
    /// place of an id stands why there is none, such as [`Error::Damaged`] where the model computed something that is not a
    /// number. That seat's sequence cannot go on and must leave; the others do not depend on it.
    ///
    /// # Errors
    /// When there is no step to read, or the device fails.
    fn next(&mut self, out: &mut Vec<(usize, Result<u32>)>) -> Result<()>;
}

/// An intermediate result that is compared between back ends; all f32, a row for each token of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// The residual stream, (tokens, `d_model`): after `begin`, `out_proj` or `down`.
    Residual,
    /// Query after RoPE, (tokens, `d_q`): after `qkv`.
    Query,
    /// Key after RoPE as it stands in the cache, (tokens, `d_kv`): after `qkv`.
    Key,
    /// Value as it stands in the cache, (tokens, `d_kv`): after `qkv`.
    Value,
    /// Attention output before its sub-norm, (tokens, `d_q`): after `attention`.
    Attention,
    /// Gated feed-forward activations before their sub-norm, (tokens, `d_ffn`): after `up_gate`.
    Gated,
}

/// The parts of a step. [`transformer`] calls them in their order; out of it, they compute with whatever they find.
pub trait Verbs {
    /// Transformer layers.
    fn n_layers(&self) -> usize;

    /// Starts a batch: copies pages, residual = embedding rows of its tokens.
    ///
    /// # Errors
    /// When the batch was made for another back end or the device fails.
    fn begin(&mut self, batch: &Batch) -> Result<()>;

    /// Norm, quantize, q k v projections, RoPE; keys and values go to their pages.
    ///
    /// # Errors
    /// When there is no such layer or the device fails.
    fn qkv(&mut self, layer: usize) -> Result<()>;

    /// Causal softmax attention of each token over its own sequence.
    ///
    /// # Errors
    /// When there is no such layer or the device fails.
    fn attention(&mut self, layer: usize) -> Result<()>;

    /// Sub-norm, quantize, o projection; adds to the residual.
    ///
    /// # Errors
    /// When there is no such layer or the device fails.
    fn out_proj(&mut self, layer: usize) -> Result<()>;

    /// Norm, quantize, gate and up projections, activation.
    ///
    /// # Errors
    /// When there is no such layer or the device fails.
    fn up_gate(&mut self, layer: usize) -> Result<()>;

    /// Sub-norm, quantize, down projection; adds to the residual.
    ///
    /// # Errors
    /// When there is no such layer or the device fails.
    fn down(&mut self, layer: usize) -> Result<()>;

    /// Final norm of the wanted rows, and the head.
    ///
    /// # Errors
    /// When a row is out of range or the device fails.
    fn head(&mut self, want: Want<'_>) -> Result<&[f32]>;

    /// An intermediate of the verb that just ran; `None` where the back end does not keep it.
    ///
    /// # Errors
    /// When the device fails.
    fn read(&mut self, tap: Tap) -> Result<Option<Vec<f32>>>;
}

/// A whole step: the transformer, written once over the verbs.
///
/// # Errors
/// As for the verbs.
pub fn transformer<'v>(verbs: &'v mut dyn Verbs, batch: &Batch, want: Want<'_>) -> Result<&'v [f32]> {
    verbs.begin(batch)?;
    if batch.tokens().is_empty() {
        return Ok(&[]);
    }
    for layer in 0..verbs.n_layers() {
        verbs.qkv(layer)?;
        verbs.attention(layer)?;
        verbs.out_proj(layer)?;
        verbs.up_gate(layer)?;
        verbs.down(layer)?;
    }
    verbs.head(want)
}
