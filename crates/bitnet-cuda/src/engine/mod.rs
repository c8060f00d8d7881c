//! A transformer on the GPU: its weights, pages of keys and values, and scratch, and the verbs that run it.
//!
//! One copy of the weights serves everything. A single token takes the fused kernels of [`bitnet_kernels::decode_linear`];
//! larger batches quantize their rows once and take [`bitnet_kernels::bit_gemm`]. Both give a token the same bits. All
//! memory is allocated in [`Engine::new`]; verbs take none on the device.
//!
//! What the `SAFETY` comments of this module rest on:
//!
//! - A1. Every buffer of [`Engine::new`] has the length that its field says, for the checked `Architecture` and `Limits`: as many rows as a
//!   batch or the seats may have. Kernels get the same numbers.
//! - A2. A step begins with a kernel that nothing passes, or with the host's upload: those after it may read positions, tables,
//!   weights and old keys without waiting for their predecessors. All work goes to one stream, but for that of shares of a step, which have
//!   rows of their own: it begins after what that stream was given before and ends before what it is given next.
//! - A3. What indexes memory is checked on the host before it is uploaded: `Bounds::plan` for batches, `Seats` for decoding. The
//!   device itself moves positions on only within the pages that `Seats::owe` counted, and chooses tokens of the vocabulary.
//! - A4. No two tokens of a launch have the same place in a page, and no page that one sequence writes to is seen by another: the
//!   same two check it.
//! - A5. Recordings are dropped before the buffers that they address, and no buffer is ever replaced.
//! - A6. Layers and matrices have the shapes of the model: `Engine::set_layer` takes no others.

mod architecture;

mod space;

mod weights;

mod batch;
mod cache;
mod uploads;

mod shares;

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

pub use architecture::{Architecture, HeadKind, Inputs, Limits, MAX_BATCH, TableForm};
pub use batch::Batch;
pub use bitnet_kernels::sample::{MAX_TOP_K, Settings};
pub use choice::Choice;
pub use decode::Part;
pub use grids::Grids;
pub use profile::{PartTime, Profile};
pub use verbs::Intermediate;
pub use weights::{LayerParts, SegmentParts, TernaryParts};

use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::Event;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::{LaunchConfig, Stream};
use architecture::{MAX_PAGES, check_limits, check_model};
use batch::{Attention, Bounds};
use bitnet_kernels::attention::Heads;
pub use bitnet_kernels::cache::KvType;
use bitnet_kernels::cache::PAGE;
use bitnet_kernels::{Global, Kernel, Launch};
use cache::{Cache, page_bytes};
use choice::Chooser;
use copy::Certified;
use decode::Recordings;
use head::{Embedding, Head};
use scratch::Scratch;
use screen::Screening;
use seats::Seats;
use space::{Space, Use};
use uploads::Uploads;
use weights::Layer;

/// Positions of a page of keys and values.
pub const PAGE_POSITIONS: usize = PAGE as usize;

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
    model: Architecture,
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
    /// Streams of all [`shares::Share`]s of a step but the first.
    sides: Vec<Stream>,
    /// What streams wait for each other by.
    mark: Event,
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
    fn new(space: &Space<'_>, model: &Architecture, limits: Limits, heads: Heads) -> Result<Self> {
        let padded = heads.padded() as usize;
        // Idle rows are at any position of a page, however short the context.
        let angles = limits.table_len() * PAGE_POSITIONS * (model.dims.head_dim / 2);
        let inputs = Bounds::new(model, limits, heads).most_words();
        Ok(Self {
            layers: (0..model.dims.n_layers)
                .map(|_| Layer::new(space, model))
                .collect::<Result<_>>()?,
            embedding: Embedding::new(space, model)?,
            head: Head::new(space, model)?,
            certified: match model.is_certified {
                true => Some(Certified::new(space, model, limits)?),
                false => None,
            },
            final_norm: space.alloc(Use::Weights, "the final norm", model.dims.d_model)?,
            ones: space.alloc(
                Use::Scratch,
                "norms",
                model.dims.widest().max(model.table.stride(model.dims.d_model)),
            )?,
            cos: space.alloc(Use::Scratch, "rotary angles", angles)?,
            sin: space.alloc(Use::Scratch, "rotary angles", angles)?,
            cache: Cache::new(space, model, padded, limits.n_pages)?,
            scratch: Scratch::new(space, model, limits, padded, inputs)?,
            chooser: Chooser::new(space, model, limits)?,
        })
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
    pub fn kv_room(gpu: &Gpu, model: &Architecture, limits: Limits) -> Result<KvRoom> {
        let heads = check_model(model, gpu)?;
        let limits = Limits { n_pages: 0, ..limits };
        check_limits(Limits { n_pages: 1, ..limits })?;
        let rest = Space::planned(gpu);
        Buffers::new(&rest, model, limits, heads)?;
        let free_bytes = rest.check()?;
        let page_bytes = page_bytes(model, heads.padded() as usize);
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
    pub fn new(gpu: &Gpu, model: Architecture, limits: Limits) -> Result<Self> {
        let heads = check_model(&model, gpu)?;
        check_limits(limits)?;
        let planned = Space::planned(gpu);
        Buffers::new(&planned, &model, limits, heads)?;
        planned.check()?;
        let space = Space::of(gpu);
        let buffers = Buffers::new(&space, &model, limits, heads)?;
        let stream = gpu.stream()?;
        let half = model.dims.head_dim / 2;
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            // The angle is an f32; its cosine and sine are rounded once.
            let angle = |i: usize| (i / half) as f32 * model.frequencies[i % half];
            (0..limits.table_len() * PAGE_POSITIONS * half)
                .map(|i| of(f64::from(angle(i))) as f32)
                .collect()
        };
        stream.upload(&buffers.cos, 0, &table(f64::cos))?;
        stream.upload(&buffers.sin, 0, &table(f64::sin))?;
        stream.upload(&buffers.ones, 0, &vec![1.0; buffers.ones.len()])?;
        // What fills rows up is never written.
        stream.fill_bytes(&buffers.scratch.repeated, 0)?;
        buffers.cache.clear(&stream)?;
        buffers.chooser.clear(&stream)?;
        if let Some(certified) = &buffers.certified {
            certified.clear(&stream)?;
        }
        // Of rows that nobody has, attention writes nothing.
        stream.fill_bytes(&buffers.scratch.attention, 0)?;
        let bounds = Bounds::new(&model, limits, heads);
        // A table of counts is the largest of what decoding uploads.
        let largest = bounds.most_words().max(model.dims.vocab).max(limits.context);
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
            sides: (1..shares::MOST).map(|_| gpu.stream()).collect::<Result<_>>()?,
            mark: gpu.event()?,
            model,
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
