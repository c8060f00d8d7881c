//! The CUDA driver, looked up at run time: programs that use [`cust`] build on a machine without CUDA, start on a
//! machine without a driver and say so, and use the GPU where there is one.
//!
//! `cust` expects a CUDA installation twice. Its build script wants a folder with libraries, and the program must link
//! the `cu*` functions. This crate defines those functions; each looks its namesake up in `libcuda.so.1` on first use
//! and returns `CUDA_ERROR_NOT_INITIALIZED` where there is no driver, or `CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND`
//! where the driver lacks it. Use `cust` through this crate, and call [`probe`] first: it says which of driver, driver
//! version, GPU and compute capability is missing.
//!
//! # What a program that depends on this crate must set
//!
//! `cust`'s build script looks for CUDA in the environment variable `CUDA_LIBRARY_PATH`, `/opt/cuda` and
//! `/usr/local/cuda*`, and stops the build when none of them is a folder with a `lib64` in it. No dependency can set a
//! variable for another's build script, so where CUDA is not installed put this into the `.cargo/config.toml` of your
//! program (any folder that has a folder `lib64` will do, even an empty one):
//!
//! ```toml
//! [env]
//! CUDA_LIBRARY_PATH = "/usr"
//! ```
//!
//! Nothing in that folder is used: this crate's build script puts an empty `libcuda.so` on the link path. Linux only.

mod library;

mod launch;
mod symbols;

mod probe;

pub use cust;
pub use launch::{Launch, LaunchAttribute, launch_kernel};
pub use probe::{CudaVersion, Gpu, MIN_COMPUTE_CAPABILITY, MIN_CUDA, ProbeError, probe, require_driver};
