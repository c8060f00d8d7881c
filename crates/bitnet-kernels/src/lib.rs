//! Device code. On the host this crate is its kernels' parameter structs and, with the feature `emulator`, a SIMT
//! emulator that runs the same source lane by lane.
//!
//! A file may use only files whose `mod` line stands above its own, so the list below is also the reading order.
#![cfg_attr(all(doctest, feature = "emulator"), doc = include_str!("../README.md"))]
#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(
        abi_ptx,
        abi_unadjusted,
        asm_experimental_arch,
        link_llvm_intrinsics,
        stdarch_nvptx
    ),
    allow(internal_features)
)]

#[cfg(feature = "emulator")]
extern crate std;

#[macro_use]
mod abi;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod raw;

#[cfg(feature = "emulator")]
pub mod emulator;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub mod intrinsics;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub mod reduce;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod bits;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod tiles;

pub mod decode_linear;

pub mod bit_gemm;
pub mod dense;
pub mod int8_hopper;

pub mod int8_head;
pub mod quantize_rows;
pub mod rows;

pub mod dense_gemv;

pub mod bf16_gemm;
pub mod embed;
pub mod int8_gemm;
pub mod repack;
pub mod token;

pub mod sample;
pub mod screen;

pub mod cache;
pub mod rope;

pub mod attention;

pub mod bench;

#[cfg(not(target_arch = "nvptx64"))]
pub use abi::Use;
pub use abi::{Global, Kernel, KernelInfo, Launch};
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub use raw::Raw;

/// Every kernel that a model runs: those of the PTX modules that are always loaded.
pub const MODEL: &[KernelInfo] = kernels_of![
    decode_linear::DecodeLinear::INFOS,
    bit_gemm::BitGemm::INFOS,
    dense::INFOS,
    int8_head::INFOS,
    int8_hopper::Int8Hopper::INFOS,
    quantize_rows::INFOS,
    rows::INFOS,
    dense_gemv::INFOS,
    bf16_gemm::INFOS,
    embed::INFOS,
    int8_gemm::INFOS,
    repack::INFOS,
    token::INFOS,
    sample::INFOS,
    screen::INFOS,
    cache::INFOS,
    rope::RopeAppend::INFOS,
    attention::INFOS,
];

/// Every kernel of [`mod@bench`]: those of the PTX modules that only measurements load.
pub const BENCH: &[KernelInfo] = bench::INFOS;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: `trap` has no precondition.
    unsafe { core::arch::nvptx::trap() }
}
