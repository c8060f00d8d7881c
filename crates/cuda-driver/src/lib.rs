//! The CUDA driver, looked up at run time: programs build on a machine without CUDA, start on a machine without a driver
//! and say so, and use the GPU where there is one.
//!
//! Each function of [`sys`] looks its namesake up in `libcuda.so.1` (`nvcuda.dll` on Windows) when it is first called, and
//! returns `CUDA_ERROR_NOT_INITIALIZED` where there is no driver, or `CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND` where the
//! driver lacks it. Nothing is linked, and no variable has to be set to build. Call [`probe`] first: it says which of
//! driver, driver version, GPU and compute capability is missing.

mod codes;

mod library;

pub mod sys;

mod handles;
mod launch;
mod probe;

pub use handles::{Context, Device, DeviceAttribute, Event, Stream, driver_version, init};
pub use launch::{Launch, LaunchAttribute, launch_kernel};
pub use probe::{CudaVersion, Gpu, MIN_COMPUTE_CAPABILITY, MIN_CUDA, ProbeError, probe, require_driver};
