//! Host side of the GPU.

pub mod ptx;
