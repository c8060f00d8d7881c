//! Where every code of a ternary weight matrix lives, and the scalar arithmetic every fast path must equal.
//!
//! The only crate that knows bit positions. It is shared by the converter, both back ends and the device code, so it
//! has no dependencies, no allocation and no `unsafe`. A file may use only files whose `mod` line stands above its own.
#![no_std]
#![forbid(unsafe_code)]

mod activation;
pub mod draw;
mod dtype;
pub mod ternary;
mod vocabulary;

pub mod act;
pub mod random;
pub mod words;

pub mod hf;
pub mod mma_tile;
pub mod reference;
pub mod reference_tile;
pub mod row_tiles;

pub mod gguf;

pub use activation::Activation;
pub use dtype::{DenseDtype, bf16_to_f32, f16_to_f32, f32_to_bf16};
pub use vocabulary::{Dims, Token, WeightForm};

#[cfg(test)]
extern crate std;
