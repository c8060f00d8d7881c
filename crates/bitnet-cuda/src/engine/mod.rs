//! A transformer on the GPU: its weights, pages of keys and values, and scratch, and the verbs that run it.
//!
//! One copy of the weights serves everything. A single token takes the fused kernels of [`bitnet_kernels::decode_linear`];
//! larger batches quantize their rows once and take [`bitnet_kernels::bit_gemm`]. Both give a token the same bits. All
//! memory is allocated in [`Engine::new`]; verbs take none on the device.
//!
//! What the `SAFETY` comments of this module rest on:
//!
//! - A1. Every buffer of [`Engine::new`] has the length that its field says, for the checked `Dims` and `Limits`: as many rows as a
//!   batch or the seats may have. Kernels get the same numbers.
//! - A2. A step begins with a kernel that nothing passes, or with the host's upload: those after it may read positions, tables,
//!   weights and old keys without waiting for their predecessors. All work goes to one stream.
//! - A3. What indexes memory is checked on the host before it is uploaded: `Bounds::plan` for batches, `Seats` for decoding. The
//!   device itself moves positions on only within the pages that `Seats::owe` counted, and chooses tokens of the vocabulary.
//! - A4. No two tokens of a launch have the same place in a page, and no page that one sequence writes to is seen by another: the
//!   same two check it.
//! - A5. Recordings are dropped before the buffers that they address, and no buffer is ever replaced.
//! - A6. Layers and matrices have the shapes of the model: `Engine::set_layer` takes no others.

mod space;

mod weights;

mod batch;
mod cache;
mod uploads;

mod attention;
mod scratch;

mod grids;
mod linear;

mod dense;

mod copy;
mod head;

mod verbs;

mod choice;
mod seats;

mod screen;

mod decode;
mod profile;

pub use batch::Batch;
pub use bitnet_kernels::sample::{MAX_TOP_K, Settings};
pub use choice::Choice;
pub use decode::Part;
pub use grids::Grids;
pub use profile::{PartTime, Profile};
pub use verbs::Intermediate;
pub use weights::{LayerParts, TernaryParts};

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::{LaunchConfig, Stream};
use batch::{Attention, Bounds};
use bitnet_kernels::attention::Heads;
pub use bitnet_kernels::cache::KvType;
use bitnet_kernels::cache::{PAGE, padded_head_dim};
use bitnet_kernels::{Global, Kernel, Launch, bit_gemm};
use bitnet_layout::Activation;
use cache::{Cache, MAX_PAGES, page_bytes};
use choice::Chooser;
use copy::Certified;
use decode::Recordings;
use head::{Embedding, Head};
use scratch::Scratch;
use screen::Screening;
use seats::{MAX_SEATS, Seats};
use space::{Space, Use};
use uploads::Uploads;
use weights::Layer;

/// Most tokens of a batch.
pub const MAX_BATCH: usize = 1 << 15;

/// Positions of a page of keys and values.
pub const PAGE_POSITIONS: usize = PAGE as usize;

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
    /// Whether decode steps find what they choose from in an 8-bit copy of the head, and compute of the head those logits alone: see
    /// [`bitnet_kernels::screen`]. Not of a head of 8 bits.
    pub is_certified: bool,
    /// Whether there are norms before the projections back to the residual stream.
    pub sub_norms: bool,
    /// Rotation of each pair of a head's elements, in radians a position, (head_dim / 2).
    pub frequencies: Vec<f32>,
    /// Gate of the feed-forward block.
    pub activation: Activation,
    /// How keys and values are kept.
    pub kv_type: KvType,
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
    /// Sequences of a batch; up to 256 of them can be decoded side by side.
    pub n_seqs: usize,
    /// Tokens of a batch.
    pub max_batch: usize,
    /// Pages of keys and values, which all sequences share: see [`Engine::kv_room`].
    pub n_pages: usize,
}

/// The room for pages of keys and values, beside everything else that a model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvRoom {
    /// Bytes of a page, in all layers.
    pub page_bytes: u64,
    /// Bytes that are free for pages.
    pub free_bytes: u64,
}

/// A model on a GPU.
#[derive(Debug)]
pub struct Engine {
    // Recordings refer to the buffers below, so they go first.
    recordings: Recordings,
    buffers: Buffers,
    /// Tokens for the host, (steps, seats).
    ring: SharedWords,
    uploads: Uploads,
    seats: Seats,
    screening: Screening,
    dims: Dims,
    limits: Limits,
    heads: Heads,
    bytes: space::Bytes,
    /// Tokens of the batch.
    batch: usize,
    rows: Rows,
    attention: Attention,
    /// The grids to take instead of [`Engine::default_grids`].
    forced: Option<Grids>,
    stream: Stream,
}

/// Where the kernels find the tokens of a batch.
#[derive(Clone, Copy, Debug)]
struct Rows {
    tokens: Global<u32>,
    positions: Global<u32>,
    /// Places in the cache; of the prompt kernels.
    places: Global<u32>,
    /// Tiles; of the prompt kernels.
    tiles: Global<u32>,
    tables: Global<u32>,
    /// Entries of a row of the tables.
    table_len: usize,
}

/// The buffers of a model.
#[derive(Debug)]
struct Buffers {
    layers: Vec<Layer>,
    embedding: Embedding,
    head: Head,
    certified: Option<Certified>,
    final_norm: DeviceBuffer<f32>,
    /// What stands in for a norm's weight where there is no norm.
    ones: DeviceBuffer<f32>,
    /// (positions of whole pages, head_dim / 2).
    cos: DeviceBuffer<f32>,
    sin: DeviceBuffer<f32>,
    cache: Cache,
    scratch: Scratch,
    chooser: Chooser,
}

impl Buffers {
    fn new(space: &Space<'_>, dims: &Dims, limits: Limits, heads: Heads) -> Result<Self> {
        let padded = heads.padded() as usize;
        // Idle rows are at any position of a page, however short the context.
        let angles = limits.table_len() * PAGE_POSITIONS * (dims.head_dim / 2);
        let inputs = Bounds::new(dims, limits, heads).most_words();
        Ok(Self {
            layers: (0..dims.n_layers)
                .map(|_| Layer::new(space, dims))
                .collect::<Result<_>>()?,
            embedding: Embedding::new(space, dims)?,
            head: Head::new(space, dims)?,
            certified: match dims.is_certified {
                true => Some(Certified::new(space, dims, limits)?),
                false => None,
            },
            final_norm: space.alloc(Use::Weights, "the final norm", dims.d_model)?,
            ones: space.alloc(Use::Scratch, "norms", dims.widest())?,
            cos: space.alloc(Use::Scratch, "rotary angles", angles)?,
            sin: space.alloc(Use::Scratch, "rotary angles", angles)?,
            cache: Cache::new(space, dims, padded, limits.n_pages)?,
            scratch: Scratch::new(space, dims, limits, padded, inputs)?,
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
    fn seats(self) -> usize {
        self.n_seqs.min(MAX_SEATS)
    }

    /// Most rows of a step.
    fn rows(self) -> usize {
        self.max_batch.max(self.seats())
    }

    /// Pages of a sequence.
    fn table_len(self) -> usize {
        self.context.div_ceil(PAGE_POSITIONS)
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
    /// The room that a model of this shape leaves for pages, whose number in `limits` does not matter.
    ///
    /// # Errors
    /// As for [`Engine::new`]; when not even the rest of the model fits.
    pub fn kv_room(gpu: &Gpu, dims: &Dims, limits: Limits) -> Result<KvRoom> {
        let heads = check_dims(dims, gpu)?;
        let limits = Limits { n_pages: 0, ..limits };
        check_limits(Limits { n_pages: 1, ..limits })?;
        let rest = Space::planned(gpu);
        Buffers::new(&rest, dims, limits, heads)?;
        let free_bytes = rest.check()?;
        let page_bytes = page_bytes(dims, heads.padded() as usize);
        // The spare page is of the rest.
        let most_bytes = (MAX_PAGES as u64 - 1).saturating_mul(page_bytes);
        Ok(KvRoom {
            page_bytes,
            free_bytes: free_bytes.min(most_bytes),
        })
    }

    /// Allocates everything a model of this shape needs; its weights come with the `set_…` functions.
    ///
    /// # Errors
    /// When the kernels do not support the shape, or the device has too little memory: then none was taken.
    pub fn new(gpu: &Gpu, dims: Dims, limits: Limits) -> Result<Self> {
        let heads = check_dims(&dims, gpu)?;
        check_limits(limits)?;
        let planned = Space::planned(gpu);
        Buffers::new(&planned, &dims, limits, heads)?;
        planned.check()?;
        let space = Space::of(gpu);
        let buffers = Buffers::new(&space, &dims, limits, heads)?;
        let stream = gpu.stream()?;
        let half = dims.head_dim / 2;
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            // The angle is an f32; its cosine and sine are rounded once.
            let angle = |i: usize| (i / half) as f32 * dims.frequencies[i % half];
            (0..limits.table_len() * PAGE_POSITIONS * half)
                .map(|i| of(f64::from(angle(i))) as f32)
                .collect()
        };
        stream.upload(&buffers.cos, 0, &table(f64::cos))?;
        stream.upload(&buffers.sin, 0, &table(f64::sin))?;
        stream.upload(&buffers.ones, 0, &vec![1.0; dims.widest()])?;
        buffers.cache.clear(&stream)?;
        buffers.chooser.clear(&stream)?;
        if let Some(certified) = &buffers.certified {
            certified.clear(&stream)?;
        }
        // Of rows that nobody has, attention writes nothing.
        stream.fill_bytes(&buffers.scratch.attention, 0)?;
        let bounds = Bounds::new(&dims, limits, heads);
        // A table of counts is the largest of what decoding uploads.
        let largest = bounds.most_words().max(dims.vocab).max(limits.context);
        Ok(Self {
            recordings: Recordings::default(),
            ring: buffers.chooser.ring(gpu)?,
            uploads: Uploads::new(gpu, largest)?,
            screening: Screening::default(),
            seats: Seats::new(bounds, buffers.cache.idle_entry()),
            rows: buffers.chooser.rows(),
            buffers,
            bytes: space.bytes(),
            batch: 0,
            attention: Attention::Prefill { tiles: 0 },
            forced: None,
            stream,
            dims,
            limits,
            heads,
        })
    }

    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        self.stream.gpu()
    }

    /// Pages of keys and values.
    #[must_use]
    pub fn n_pages(&self) -> usize {
        self.limits.n_pages
    }

    /// Device memory of weights, cache and scratch.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.bytes.total()
    }

    /// Device memory of weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.bytes.weights
    }

    /// Device memory of keys and values.
    #[must_use]
    pub fn kv_bytes(&self) -> u64 {
        self.bytes.cache
    }
}

/// Refuses what would leave the 32 bits in which kernels count.
fn check_limits(limits: Limits) -> Result<()> {
    for (what, found, most) in [
        ("context", limits.context, 1 << 26),
        ("number of sequences", limits.n_seqs, 1 << 16),
        ("batch", limits.max_batch, MAX_BATCH),
        ("number of pages", limits.n_pages, MAX_PAGES - 1),
    ] {
        if found == 0 || found > most {
            return Err(Error::Request(format!(
                "the GPU kernels do not support a {what} of {found}: it must be 1 to {most}"
            )));
        }
    }
    if limits.n_seqs.saturating_mul(limits.table_len()) > u32::MAX as usize {
        return Err(Error::Request(format!(
            "the GPU kernels do not support {} sequences of {} positions at once",
            limits.n_seqs, limits.context
        )));
    }
    Ok(())
}

/// The heads that there are kernels for, when the kernels can run a model of this shape.
fn check_dims(dims: &Dims, gpu: &Gpu) -> Result<Heads> {
    let refuse = |what: &str, found: usize, needed: &str| {
        Err(Error::Request(format!(
            "the GPU kernels do not support a {what} of {found}: {needed}"
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
    if dims.is_certified && (dims.head == HeadKind::Int8 || !Engine::certifies(gpu, dims.d_model)) {
        return Err(Error::Request(
            "the GPU kernels do not support a certified output head of 8 bits or of a hidden size that shared memory has no room for"
                .to_owned(),
        ));
    }
    if dims.frequencies.len() != dims.head_dim / 2 {
        return refuse(
            "head size",
            dims.head_dim,
            "there must be a frequency for every pair of elements",
        );
    }
    match padded_head_dim(dims.head_dim as u32) {
        Some(padded) if dims.head_dim.is_multiple_of(8) => match Heads::new(padded, dims.kv_type) {
            Some(heads) => Ok(heads),
            None => refuse(
                "head size",
                dims.head_dim,
                "8-bit keys and values are of up to 128",
            ),
        },
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
            n_pages: 64,
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
            (Limits { n_pages: 0, ..good }, "a number of pages of 0"),
            (
                Limits {
                    n_pages: 1 << 25,
                    ..good
                },
                "a number of pages of 33554432",
            ),
        ] {
            let error = check_limits(bad).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
