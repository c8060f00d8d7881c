//! Measures and checks kernels outside of a model: those of [`GEMVS`] as a model runs them, inside a CUDA graph, one after the other.
//! Only with the feature `bench`; a GPU has its kernels when [`Gpu::with_bench`] has opened it.

mod problem;

mod gemv;

mod kernels;

pub use gemv::{Gemv, Operands, check};
pub use kernels::{Bf16, GEMVS, Layer, Reference, W2A8};
pub use problem::Problem;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::memory::DeviceBuffer;
use crate::stream::{LaunchConfig, Stream};
use bitnet_kernels::bench::stream_read::StreamRead;
use gemv::compare;

/// Weights that a cold pass goes through before it sees the same again: several times any L2 cache.
const COLD_BYTES: u64 = 400_000_000;

/// Weights that one graph goes through, which decides how many nodes it has.
const GRAPH_BYTES: u64 = 4_000_000_000;

/// Fewest and most nodes of a graph: enough to hide its start, few enough to build quickly.
const NODES: (usize, usize) = (16, 400);

/// Runs of each graph, of which the median counts.
const RUNS: usize = 11;

/// Largest read of the bandwidth measurement, and the share of the device's memory it may take.
const PEAK_BYTES: u64 = 4 << 30;

/// What one kernel takes on one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measurement {
    /// Microseconds a product with weights that no cache holds.
    pub cold_us: f64,
    /// Microseconds a product with the same weights again and again.
    pub hot_us: f64,
    /// Bytes that a product must move: weights, activations and results.
    pub bytes: u64,
    /// Copies of the weights that the cold run goes through.
    pub n_copies: usize,
    /// Products in a graph.
    pub n_nodes: usize,
}

/// A GPU to measure on.
#[derive(Debug)]
pub struct Bench {
    stream: Stream,
}

impl Bench {
    /// Measures on `gpu`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self {
            stream: gpu.stream()?,
        })
    }

    /// Bytes a second that a plain streaming read of device memory reaches, in GB/s.
    ///
    /// # Errors
    /// When the device fails.
    pub fn peak_gb_per_s(&self) -> Result<f64> {
        let gpu = self.stream.gpu();
        let (free, _) = gpu.memory()?;
        let words = (PEAK_BYTES.min(free / 2) / 16 * 4) as usize;
        let launch = StreamRead::launch(gpu.properties().n_sms);
        let x = gpu.alloc::<u32>("the bandwidth measurement", words)?;
        let y = gpu.alloc::<u32>("the bandwidth measurement", launch.grid[0] as usize)?;
        self.stream.fill_bytes(&x, 0x5a)?;
        let kernel = StreamRead {
            x: x.global(),
            y: y.global(),
            words: words as u64,
        };
        const N_NODES: usize = 4;
        let graph = self.stream.capture(|stream| {
            for _ in 0..N_NODES {
                // SAFETY: `x` has `words` words, a multiple of 4, and `y` one a block; both outlive the graph.
                unsafe { stream.launch(&kernel, LaunchConfig::from(launch)) }?;
            }
            Ok(())
        })?;
        let us = self.median_us(&graph)? / N_NODES as f64;
        Ok(x.size_bytes() as f64 / us / 1e3)
    }

    /// Times `kernel` on an (n, k) matrix and one column, after checking its results; `None` where it cannot do the shape.
    ///
    /// # Errors
    /// When the device fails or is too small, or a result is wrong.
    pub fn measure(&self, kernel: &dyn Gemv, n: usize, k: usize) -> Result<Option<Measurement>> {
        let problem = kernel.admit(Problem::random(n, k, 1, 1)?);
        if kernel.max_cols(problem.shape) == 0 {
            return Ok(None);
        }
        let stream = &self.stream;
        let packed = kernel.pack(&problem);
        let expected = kernel.expected(&problem.product());
        let weight_bytes = (packed.len() * size_of::<u32>()) as u64;
        let n_copies = COLD_BYTES.div_ceil(weight_bytes).max(2) as usize;
        // Copies start at multiples of 256 bytes, as buffers of their own would.
        let stride = packed.len().next_multiple_of(64);
        let w = stream
            .gpu()
            .alloc::<u32>("copies of the weights", stride * n_copies)?;
        stream.upload(&w, 0, &packed)?;
        for copy in 1..n_copies {
            stream.copy(&w, copy * stride, &w, 0, packed.len())?;
        }
        let x = stream.upload_new("activations", &kernel.activations(&problem))?;
        let ones = stream.upload_new("scales", &vec![1.0_f32; k.max(8)])?;
        let y = stream.gpu().alloc("results", expected.len())?;
        let operands = Operands {
            shape: problem.shape,
            cols: 1,
            x: &x,
            ones: &ones,
            y: &y,
        };
        let wanted = (GRAPH_BYTES / weight_bytes).clamp(NODES.0 as u64, NODES.1 as u64) as usize;
        let n_nodes = wanted.next_multiple_of(n_copies);
        let record = |nodes: usize, copies: usize| {
            stream.capture(|stream| {
                (0..nodes).try_for_each(|node| {
                    let w = w.global_at(node % copies * stride)?;
                    // SAFETY: each copy is what `pack` gave; all buffers outlive the graphs below.
                    unsafe { kernel.launch(stream, w, &operands) }
                })
            })
        };
        let check = |graph: &Graph, y: &DeviceBuffer<u32>| {
            // What no result can be, so that one that is not written shows.
            stream.fill_bytes(y, 0xff)?;
            stream.replay(graph)?;
            compare(kernel, problem.shape, &expected, &stream.download_all(y)?)
        };
        // One product, then all of them: the last copy is checked after the others ran.
        check(&record(1, 1)?, &y)?;
        let cold = record(n_nodes, n_copies)?;
        check(&cold, &y)?;
        let cold_us = self.median_us(&cold)? / n_nodes as f64;
        check(&cold, &y)?;
        let hot = record(n_nodes, 1)?;
        let hot_us = self.median_us(&hot)? / n_nodes as f64;
        check(&hot, &y)?;
        let bytes = weight_bytes + x.size_bytes() + y.size_bytes();
        Ok(Some(Measurement {
            cold_us,
            hot_us,
            bytes,
            n_copies,
            n_nodes,
        }))
    }

    /// Median time of a graph, after two runs that do not count.
    fn median_us(&self, graph: &Graph) -> Result<f64> {
        let gpu = self.stream.gpu();
        let (start, end) = (gpu.event()?, gpu.event()?);
        let mut times = Vec::with_capacity(RUNS);
        for run in 0..RUNS + 2 {
            self.stream.record(&start)?;
            self.stream.replay(graph)?;
            self.stream.record(&end)?;
            let us = end.elapsed_us(&start)?;
            if run >= 2 {
                times.push(us);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[RUNS / 2])
    }
}
