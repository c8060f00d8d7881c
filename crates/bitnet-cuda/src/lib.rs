//! Host side of the GPU: opens it, holds its memory, loads the kernels of [`bitnet_kernels`] and launches them.
//!
//! [`Stream::launch`] is the only launch; [`Gpu`] resolves every kernel once. The PTX is stored beside this crate
//! ([`ptx`]) and embedded, so that a program needs neither CUDA nor a special compiler to build, and a driver only to use
//! a GPU. The feature `bench` adds what measures kernels, with a module of its own. `docs/gpu.md` tells how the PTX is made. A file may use only files whose `mod` line stands above its own.
//!
//! ```
//! use bitnet_cuda::{Gpu, Reporting};
//!
//! // Without a driver or a GPU this is an error that says which.
//! match Gpu::new(0, Reporting::Late) {
//!     Ok(gpu) => println!("{} has {} multiprocessors", gpu.properties().name, gpu.properties().n_sms),
//!     Err(error) => println!("{error}"),
//! }
//! ```

mod error;
pub mod ptx;

mod gpu;
mod graph;
mod memory;
mod stream;

mod layer;

#[cfg(feature = "bench")]
pub mod bench;

pub mod engine;

pub use cuda_driver::{CudaVersion, ProbeError, probe};
pub use error::{Error, Result};
pub use gpu::{Gpu, KernelUsage, Properties, Reporting};
pub use graph::{Event, Graph};
pub use memory::{DeviceBuffer, Element, SharedWords};
pub use stream::{LaunchConfig, Stream};
