//! What the hardware does beyond plain Rust: the only place with inline assembly and LLVM intrinsics.
//!
//! Every function has two bodies: on nvptx64 the instruction its comment cites (sections of the PTX ISA manual, version
//! 8.x), on the host a call into the emulator, which checks what the hardware would silently get wrong. Names are those of
//! rust-cuda's `cuda_std` where it has the same thing.
//!
//! Barriers, shuffles, votes and matrix products are LLVM intrinsics, never `asm!`: LLVM knows those as *convergent* and
//! does not move them under a branch. Loads, stores, conversions and hints are `asm!`.

mod element;
mod float;
mod index;
mod integer;

mod shared;

mod atomic;
mod barrier;
mod global;
mod mma;
mod warp;

mod copy;
mod wgmma;

mod cluster;

pub use barrier::*;
pub use cluster::*;
pub use copy::*;
pub use element::{Element, Word};
pub use float::*;
pub use index::*;
pub use integer::*;
pub use mma::*;
pub use shared::Shared;
pub use warp::*;
pub use wgmma::*;
