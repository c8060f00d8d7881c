//! Host side of the GPU.
