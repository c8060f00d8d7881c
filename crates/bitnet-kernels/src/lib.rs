//! Device code. On the host this crate is its kernels' parameter structs and, for tests, an emulator.
#![no_std]
