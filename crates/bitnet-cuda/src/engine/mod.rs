//! A transformer on the GPU: its weights, key-value cache and scratch, and the verbs that run it.
//!
//! One copy of the weights serves everything. A single token takes the fused kernels of [`bitnet_kernels::decode_linear`];
//! larger batches quantize their rows once and take [`bitnet_kernels::bit_gemm`]. Both give a token the same bits. All
//! memory is allocated in [`Engine::new`]; verbs allocate nothing.

mod space;

mod weights;

mod scratch;

mod attention;
mod linear;

mod dense;

mod head;

mod verbs;

mod choice;
mod decode;
mod profile;

pub use bitnet_kernels::sample::{MAX_TOP_K, Settings};
pub use choice::Choice;
pub use decode::Part;
pub use profile::{PartTime, Profile};
pub use verbs::Intermediate;
pub use weights::{LayerParts, TernaryParts};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::{LaunchConfig, Stream};
use attention::Attention;
use bitnet_kernels::{Kernel, Launch, bit_gemm, rope};
use choice::Chooser;
use decode::Recordings;
use head::{Embedding, Head};
use scratch::Scratch;
use space::{Space, Use};
use weights::Layer;

/// Tokens of different sequences whose attention one launch of the decode kernels takes; wider batches of that kind take
/// the prompt kernels.
const DECODE_BATCH: usize = 64;

/// Most tokens of a batch.
pub const MAX_BATCH: usize = 1 << 15;

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
    /// How the weights of linear layers are kept.
    pub weights: WeightKind,
    /// What the output head is.
    pub head: HeadKind,
    /// Whether there are norms before the projections back to the residual stream.
    pub sub_norms: bool,
    /// Rotation of each pair of a head's elements, in radians a position, (head_dim / 2).
    pub frequencies: Vec<f32>,
    /// Gate: [`bitnet_kernels::decode_linear::RELU2`] or [`bitnet_kernels::decode_linear::SILU`].
    pub activation: u32,
}

/// How the weights of linear layers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// As ternary codes, 2 bits each, times 8-bit activations.
    Ternary,
    /// As bfloat16, times f32 activations: eight times the memory, what ternary weights are compared with.
    Bf16,
}

/// What the output head of a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// The embedding.
    Embedding,
    /// A matrix of its own, bfloat16.
    Own,
    /// A matrix that is rounded to 8 bits when it is loaded, see [`bitnet_kernels::int8_head`]. The embedding, of which a
    /// token needs one row, then stays in the host's memory.
    Int8,
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

/// A model on a GPU.
#[derive(Debug)]
pub struct Engine {
    // Recordings refer to the buffers below, so they go first.
    recordings: Recordings,
    dims: Dims,
    limits: Limits,
    padded: usize,
    layers: Vec<Layer>,
    embedding: Embedding,
    head: Head,
    final_norm: DeviceBuffer<f32>,
    /// What stands in for a norm's weight where there is no norm.
    ones: DeviceBuffer<f32>,
    /// (context, head_dim / 2).
    cos: DeviceBuffer<f32>,
    sin: DeviceBuffer<f32>,
    scratch: Scratch,
    chooser: Chooser,
    /// Tokens for the host, (steps, rows).
    ring: SharedWords,
    memory_bytes: u64,
    batch: usize,
    attention: Attention,
    stream: Stream,
}

/// The buffers of a model, without their contents.
struct Buffers {
    layers: Vec<Layer>,
    embedding: Embedding,
    head: Head,
    final_norm: DeviceBuffer<f32>,
    ones: DeviceBuffer<f32>,
    cos: DeviceBuffer<f32>,
    sin: DeviceBuffer<f32>,
    scratch: Scratch,
    chooser: Chooser,
}

impl Buffers {
    fn new(space: &Space<'_>, dims: &Dims, limits: Limits, padded: usize) -> Result<Self> {
        let cache_words = rope::cache_len(limits.n_seqs, dims.n_kv_heads, limits.context, padded) / 2;
        let angles = limits.context * (dims.head_dim / 2);
        Ok(Self {
            layers: (0..dims.n_layers)
                .map(|_| Layer::new(space, dims, cache_words))
                .collect::<Result<_>>()?,
            embedding: Embedding::new(space, dims)?,
            head: Head::new(space, dims)?,
            final_norm: space.alloc(Use::Weights, "the final norm", dims.d_model)?,
            ones: space.alloc(Use::Scratch, "norms", dims.widest())?,
            cos: space.alloc(Use::Scratch, "rotary angles", angles)?,
            sin: space.alloc(Use::Scratch, "rotary angles", angles)?,
            scratch: Scratch::new(space, dims, limits, padded)?,
            chooser: Chooser::new(space, dims, limits)?,
        })
    }
}

impl Dims {
    /// Elements of a token's queries.
    fn d_q(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Elements of a token's keys, and of its values.
    fn d_kv(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Columns of the widest linear layer.
    fn widest(&self) -> usize {
        self.d_model.max(self.d_ffn).max(self.d_q())
    }
}

impl Limits {
    /// Sequences that are decoded side by side on the device.
    fn decode_batch(self) -> usize {
        self.max_batch.min(self.n_seqs).min(DECODE_BATCH)
    }
}

/// Launches `kernel` so that it may start before its predecessor ends.
///
/// # Safety
/// As for [`Stream::launch`]; the kernel waits for its predecessor before it uses what others wrote.
unsafe fn launch<K: Kernel>(stream: &Stream, kernel: &K, launch: Launch) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { stream.launch(kernel, LaunchConfig::from(launch).programmatic_dependent()) }
}

impl Engine {
    /// Allocates everything a model of this shape needs; its weights come with the `set_…` functions.
    ///
    /// # Errors
    /// When the kernels do not support the shape, or the device has too little memory.
    pub fn new(gpu: &Gpu, dims: Dims, limits: Limits) -> Result<Self> {
        let padded = check_dims(&dims)?;
        check_limits(limits)?;
        let limits = Limits {
            context: limits.context.next_multiple_of(rope::BLOCK_KEYS as usize),
            ..limits
        };
        let planned = Space::planned(gpu);
        Buffers::new(&planned, &dims, limits, padded)?;
        planned.check()?;
        let space = Space::of(gpu);
        let buffers = Buffers::new(&space, &dims, limits, padded)?;
        let stream = gpu.stream()?;
        let half = dims.head_dim / 2;
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            // The angle is an f32; its cosine and sine are rounded once.
            let angle = |i: usize| (i / half) as f32 * dims.frequencies[i % half];
            (0..limits.context * half)
                .map(|i| of(f64::from(angle(i))) as f32)
                .collect()
        };
        stream.upload(&buffers.cos, 0, &table(f64::cos))?;
        stream.upload(&buffers.sin, 0, &table(f64::sin))?;
        stream.upload(&buffers.ones, 0, &vec![1.0; dims.widest()])?;
        for layer in &buffers.layers {
            // Blocks of 64 are read whole, before what lies past the position is put aside.
            stream.fill_bytes(&layer.v_cache, 0)?;
            stream.fill_bytes(&layer.k_cache, 0)?;
        }
        buffers.chooser.clear(&stream)?;
        let Buffers {
            layers,
            embedding,
            head,
            final_norm,
            ones,
            cos,
            sin,
            scratch,
            chooser,
        } = buffers;
        Ok(Self {
            recordings: Recordings::default(),
            layers,
            embedding,
            head,
            final_norm,
            ones,
            cos,
            sin,
            scratch,
            ring: chooser.ring(gpu)?,
            chooser,
            memory_bytes: space.bytes().total(),
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

    /// Sequences that [`Engine::decode`] takes at a time.
    #[must_use]
    pub fn decode_batch(&self) -> usize {
        self.limits.decode_batch()
    }

    /// Device memory of weights, cache and scratch.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

/// Refuses what would leave the 32 bits in which kernels count.
fn check_limits(limits: Limits) -> Result<()> {
    for (what, found, most) in [
        ("context", limits.context, 1 << 26),
        ("number of sequences", limits.n_seqs, 1 << 16),
        ("batch", limits.max_batch, MAX_BATCH),
    ] {
        if found == 0 || found > most {
            return Err(Error::Request(format!(
                "the GPU kernels do not support a {what} of {found}: it must be 1 to {most}"
            )));
        }
    }
    Ok(())
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
    if dims.widest() > bit_gemm::MAX_K {
        let most = format!("sums would leave 32 bits beyond {}", bit_gemm::MAX_K);
        return refuse("layer width", dims.widest(), &most);
    }
    if dims.weights == WeightKind::Bf16 && !dims.d_q().is_multiple_of(32) {
        return refuse("width of all heads", dims.d_q(), "it must be a multiple of 32");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_kernels_cannot_count_are_refused() {
        let good = Limits {
            context: 4096,
            n_seqs: 1,
            max_batch: 512,
        };
        assert!(check_limits(good).is_ok());
        for (bad, what) in [
            (
                Limits {
                    context: usize::MAX,
                    ..good
                },
                "a context of 18446744073709551615",
            ),
            (
                Limits {
                    n_seqs: 1 << 20,
                    ..good
                },
                "a number of sequences of 1048576",
            ),
            (Limits { max_batch: 0, ..good }, "a batch of 0"),
        ] {
            let error = check_limits(bad).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
