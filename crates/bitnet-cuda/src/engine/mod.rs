//! A transformer on the GPU: its weights, key-value cache and scratch, and the verbs that run it.
//!
//! One copy of the weights serves everything. A single token takes the fused kernels of [`bitnet_kernels::decode_linear`];
//! larger batches quantize their rows once and take [`bitnet_kernels::bit_gemm`]. Both give a token the same bits. All
//! memory is allocated in [`Engine::new`]; verbs allocate nothing.

mod decode;
mod verbs;
mod weights;

pub use verbs::Intermediate;
pub use weights::{LayerParts, TernaryParts};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::Stream;
use bitnet_kernels::decode_linear::SLOTS;
use bitnet_kernels::{bf16_gemv, quantize_rows, rope};
use decode::Recordings;
use weights::Layer;

/// Tokens of different sequences whose attention one launch of the decode kernels takes; wider batches of that kind take
/// the prompt kernels.
const DECODE_BATCH: usize = 32;

/// Words of the ring through which the host reads decoded tokens.
const RING: usize = 1024;

/// The shape of a model, in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Dims {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the feed-forward block.
    pub d_ffn: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Rows of the embedding and of the output head.
    pub vocab: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Whether the output head is a matrix of its own.
    pub own_head: bool,
    /// Whether there are norms before the projections back to the residual stream.
    pub sub_norms: bool,
    /// Rotation of each pair of a head's elements, in radians a position, (head_dim / 2).
    pub frequencies: Vec<f32>,
    /// Gate: [`bitnet_kernels::decode_linear::RELU2`] or [`bitnet_kernels::decode_linear::SILU`].
    pub activation: u32,
}

/// How much an engine can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences.
    pub n_seqs: usize,
    /// Tokens of a batch.
    pub max_batch: usize,
}

/// One token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Vocabulary index.
    pub id: u32,
    /// Position in its sequence.
    pub position: u32,
    /// Sequence.
    pub sequence: u32,
}

/// How the attention of a batch is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attention {
    /// One token of each of its sequences: the decode kernels, with room for this many steps of 64 keys.
    Decode { steps: usize },
    /// Runs of tokens: the prompt kernels, over this many tiles.
    Prefill { tiles: usize },
}

/// A model on a GPU.
#[derive(Debug)]
pub struct Engine {
    // Recordings refer to the buffers below, so they go first.
    recordings: Recordings,
    dims: Dims,
    limits: Limits,
    padded: usize,
    layers: Vec<Layer>,
    /// (vocab, d_model) bfloat16, two a word.
    embedding: DeviceBuffer<u32>,
    head: Option<DeviceBuffer<u32>>,
    final_norm: DeviceBuffer<f32>,
    /// What stands in for a norm's weight where there is no norm.
    ones: DeviceBuffer<f32>,
    /// (context, head_dim / 2).
    cos: DeviceBuffer<f32>,
    sin: DeviceBuffer<f32>,
    scratch: Scratch,
    batch: usize,
    attention: Attention,
    stream: Stream,
}

/// Buffers of a step.
#[derive(Debug)]
struct Scratch {
    tokens: DeviceBuffer<u32>,
    positions: DeviceBuffer<u32>,
    sequences: DeviceBuffer<u32>,
    /// (tiles, 4), see [`bitnet_kernels::attention::Tile`].
    tiles: DeviceBuffer<u32>,
    /// (batch, d_model).
    residual: DeviceBuffer<f32>,
    /// (batch, d_q + 2 d_kv).
    qkv: DeviceBuffer<f32>,
    /// (batch, n_heads, padded) bfloat16, two a word.
    queries: DeviceBuffer<u32>,
    /// (batch, d_q).
    attention: DeviceBuffer<f32>,
    /// (batch, d_ffn).
    gated: DeviceBuffer<f32>,
    /// Codes of the rows before a linear layer, (batch, padded columns / 4).
    codes: DeviceBuffer<u32>,
    /// What they are worth, (batch).
    unit: DeviceBuffer<f32>,
    /// Their sums, (batch).
    sum: DeviceBuffer<i32>,
    /// Partial attention, (decode batch, n_heads, steps, padded) and (…, 2).
    values: DeviceBuffer<f32>,
    sums: DeviceBuffer<f32>,
    /// Largest magnitudes before every linear layer, (n_layers, 4, SLOTS).
    slots: DeviceBuffer<u32>,
    /// (8, vocab).
    logits: DeviceBuffer<f32>,
    /// State of the choice of tokens on the device.
    best: DeviceBuffer<u64>,
    done: DeviceBuffer<u32>,
    steps: DeviceBuffer<u32>,
    ring: SharedWords,
}

impl Engine {
    /// Allocates everything a model of this shape needs; its weights come with the `set_…` functions.
    ///
    /// # Errors
    /// When the kernels do not support the shape, or the device has too little memory.
    pub fn new(gpu: &Gpu, dims: Dims, limits: Limits) -> Result<Self> {
        let padded = check_dims(&dims)?;
        let stream = gpu.stream()?;
        let Limits {
            n_seqs, max_batch, ..
        } = limits;
        let block = rope::BLOCK_KEYS as usize;
        let context = limits.context.next_multiple_of(block);
        let limits = Limits { context, ..limits };
        let (d_q, d_kv) = (dims.n_heads * dims.head_dim, dims.n_kv_heads * dims.head_dim);
        let widest = dims.d_model.max(dims.d_ffn).max(d_q);
        let cache_words = rope::cache_len(n_seqs, dims.n_kv_heads, context, padded) / 2;
        let decode_rows = max_batch.min(DECODE_BATCH) * dims.n_heads * (context / block);
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            let half = dims.head_dim / 2;
            // The angle is an f32; its cosine and sine are rounded once.
            let angle = |i: usize| (i / half) as f32 * dims.frequencies[i % half];
            (0..context * half)
                .map(|i| of(f64::from(angle(i))) as f32)
                .collect()
        };
        let scratch = Scratch {
            tokens: gpu.alloc("token ids", max_batch)?,
            positions: gpu.alloc("positions", max_batch)?,
            sequences: gpu.alloc("sequences", max_batch)?,
            tiles: gpu.alloc("tiles of tokens", max_batch * 4)?,
            residual: gpu.alloc("the residual stream", max_batch * dims.d_model)?,
            qkv: gpu.alloc("queries, keys and values", max_batch * (d_q + 2 * d_kv))?,
            queries: gpu.alloc("queries", max_batch * dims.n_heads * padded / 2)?,
            attention: gpu.alloc("attention", max_batch * d_q)?,
            gated: gpu.alloc("gated activations", max_batch * dims.d_ffn)?,
            codes: gpu.alloc(
                "quantized activations",
                max_batch * quantize_rows::words_per_row(widest),
            )?,
            unit: gpu.alloc("activation scales", max_batch)?,
            sum: gpu.alloc("activation sums", max_batch)?,
            values: gpu.alloc("partial attention", decode_rows * padded)?,
            sums: gpu.alloc("partial attention", decode_rows * 2)?,
            slots: gpu.alloc("magnitudes", dims.n_layers * 4 * SLOTS)?,
            logits: gpu.alloc("logits", bf16_gemv::MAX_COLS as usize * dims.vocab)?,
            best: stream.upload_new("the choice of tokens", &[0])?,
            done: stream.upload_new("the choice of tokens", &[0])?,
            steps: stream.upload_new("the choice of tokens", &[0])?,
            ring: gpu.alloc_shared(RING)?,
        };
        let head_words = dims.vocab * dims.d_model / 2;
        Ok(Self {
            recordings: Recordings::default(),
            layers: (0..dims.n_layers)
                .map(|_| Layer::new(gpu, &dims, cache_words))
                .collect::<Result<_>>()?,
            embedding: gpu.alloc("the embedding", head_words)?,
            head: if dims.own_head {
                Some(gpu.alloc("the output head", head_words)?)
            } else {
                None
            },
            final_norm: gpu.alloc("the final norm", dims.d_model)?,
            ones: stream.upload_new("norms", &vec![1.0; widest])?,
            cos: stream.upload_new("rotary angles", &table(f64::cos))?,
            sin: stream.upload_new("rotary angles", &table(f64::sin))?,
            scratch,
            batch: 0,
            attention: Attention::Prefill { tiles: 0 },
            stream,
            dims,
            limits,
            padded,
        })
    }

    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.stream.gpu()
    }

    /// What it can hold; the context is rounded up to whole blocks of the cache.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Device memory of weights, cache and scratch.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let s = &self.scratch;
        let scratch = [
            &s.residual,
            &s.qkv,
            &s.attention,
            &s.gated,
            &s.unit,
            &s.values,
            &s.sums,
            &s.logits,
            &self.cos,
            &self.sin,
            &self.ones,
            &self.final_norm,
        ];
        let words = [
            &s.tokens,
            &s.positions,
            &s.sequences,
            &s.tiles,
            &s.queries,
            &s.codes,
            &s.slots,
            &self.embedding,
        ];
        let head = self.head.as_ref().map_or(0, DeviceBuffer::size_bytes);
        let layers: u64 = self.layers.iter().map(Layer::size_bytes).sum();
        scratch.iter().map(|b| b.size_bytes()).sum::<u64>()
            + words.iter().map(|b| b.size_bytes()).sum::<u64>()
            + s.sum.size_bytes()
            + head
            + layers
    }
}

/// The padded width of a head, when the kernels can run a model of this shape.
fn check_dims(dims: &Dims) -> Result<usize> {
    let refuse = |what: &str, found: usize, needed: &str| {
        Err(Error::Request(format!(
            "the GPU kernels do not support a {what} of {found}: {needed}; use --device cpu"
        )))
    };
    for (what, found) in [("hidden size", dims.d_model), ("feed-forward size", dims.d_ffn)] {
        if !found.is_multiple_of(32) {
            return refuse(what, found, "it must be a multiple of 32");
        }
    }
    if dims.frequencies.len() != dims.head_dim / 2 {
        return refuse(
            "head size",
            dims.head_dim,
            "there must be a frequency for every pair of elements",
        );
    }
    match rope::padded_head_dim(dims.head_dim as u32) {
        Some(padded) if dims.head_dim.is_multiple_of(8) => Ok(padded as usize),
        _ => refuse("head size", dims.head_dim, "it must be a multiple of 8 up to 256"),
    }
}
