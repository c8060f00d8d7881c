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
#[cfg(feature = "emulator")]
pub mod emulator;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub mod intrinsics;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub mod reduce;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod bits;

pub mod cache;

pub mod bf16_gemm;
pub mod bit_gemm;
pub mod bit_gemv;
pub mod decode_linear;
pub mod dense;
pub mod dense_gemv;
pub mod embed;
pub mod int8_gemm;
pub mod int8_head;
pub mod probe;
pub mod quantize_rows;
pub mod ref_gemv;
pub mod repack;
pub mod rope;
pub mod sample;
pub mod screen;
pub mod stream_read;
pub mod token;

pub mod attention;

#[cfg(not(target_arch = "nvptx64"))]
pub use abi::Use;
pub use abi::{Global, Kernel, KernelInfo, Launch};

/// Every kernel of the PTX modules, in the order of the `mod` lines.
pub const ALL: &[KernelInfo] = &[
    bit_gemv::BitGemvT2K1::INFO,
    bit_gemv::BitGemvT4K1::INFO,
    bit_gemv::BitGemvT2K2::INFO,
    bit_gemv::BitGemvT4K2::INFO,
    bit_gemv::BitGemvT5K2::INFO,
    bit_gemv::BitGemvT2K3::INFO,
    bit_gemv::BitGemvT2K5::INFO,
    bit_gemv::BitGemvT5K2Bits::INFO,
    bit_gemv::BitGemvT2K3Bits::INFO,
    bit_gemv::BitGemvT2K5Bits::INFO,
    decode_linear::DecodeStoreK2::INFO,
    decode_linear::DecodeStoreK3::INFO,
    decode_linear::DecodeStoreK4::INFO,
    decode_linear::DecodeAddK2::INFO,
    decode_linear::DecodeAddK3::INFO,
    decode_linear::DecodeAddK4::INFO,
    decode_linear::DecodeGatedK2::INFO,
    decode_linear::DecodeGatedK3::INFO,
    decode_linear::DecodeGatedK4::INFO,
    decode_linear::DecodeStoreK2Bytes::INFO,
    decode_linear::DecodeStoreK3Bytes::INFO,
    decode_linear::DecodeStoreK4Bytes::INFO,
    decode_linear::DecodeAddK2Bytes::INFO,
    decode_linear::DecodeAddK3Bytes::INFO,
    decode_linear::DecodeAddK4Bytes::INFO,
    decode_linear::DecodeGatedK2Bytes::INFO,
    decode_linear::DecodeGatedK3Bytes::INFO,
    decode_linear::DecodeGatedK4Bytes::INFO,
    decode_linear::DecodeStoreT5K2::INFO,
    decode_linear::DecodeStoreT6K2::INFO,
    decode_linear::DecodeAddT3K2::INFO,
    decode_linear::DecodeAddT5K2::INFO,
    decode_linear::DecodeAddT2K4::INFO,
    decode_linear::DecodeAddT3K4::INFO,
    decode_linear::DecodeGatedT8K2::INFO,
    decode_linear::DecodeGatedT9K2::INFO,
    decode_linear::DecodeGatedT10K2::INFO,
    decode_linear::DecodeGatedT11K2::INFO,
    decode_linear::DecodeGatedT12K2::INFO,
    dense::Dequantize::INFO,
    dense::AddRows::INFO,
    dense::GateRows::INFO,
    embed::EmbedBf16::INFO,
    int8_gemm::Int8Gemm::INFO,
    int8_head::Int8Rows::INFO,
    int8_head::RowBounds::INFO,
    int8_head::Int8Columns::INFO,
    quantize_rows::QuantizeRows::INFO,
    bit_gemm::WideStore64::INFO,
    bit_gemm::WideAdd64::INFO,
    bit_gemm::WideGated64::INFO,
    bit_gemm::WideStore128::INFO,
    bit_gemm::WideAdd128::INFO,
    bit_gemm::WideGated128::INFO,
    bit_gemm::MidStore16::INFO,
    bit_gemm::MidAdd16::INFO,
    bit_gemm::MidGated16::INFO,
    bit_gemm::MidStore32::INFO,
    bit_gemm::MidAdd32::INFO,
    bit_gemm::MidGated32::INFO,
    bit_gemm::NarrowStore8::INFO,
    bit_gemm::NarrowAdd8::INFO,
    bit_gemm::NarrowGated8::INFO,
    bit_gemm::NarrowStore32::INFO,
    bit_gemm::NarrowAdd32::INFO,
    bit_gemm::NarrowGated32::INFO,
    dense_gemv::Bf16Gemv::INFO,
    dense_gemv::Int8Gemv::INFO,
    bf16_gemm::SplitColumns::INFO,
    bf16_gemm::Bf16Gemm::INFO,
    probe::ProbeWarp::INFO,
    probe::ProbeMemory::INFO,
    probe::ProbeBulk::INFO,
    probe::ProbeDivergence::INFO,
    ref_gemv::RefGemv::INFO,
    token::ArgMax::INFO,
    sample::SelectLogits::INFO,
    sample::SelectKeys::INFO,
    sample::BestKey::INFO,
    sample::CutWhole::INFO,
    sample::WeighWhole::INFO,
    sample::DrawToken::INFO,
    sample::DrawWhole::INFO,
    screen::ScreenThreshold::INFO,
    screen::CertifiedGemv::INFO,
    stream_read::StreamRead::INFO,
    repack::Repack::INFO,
    cache::CopyPages::INFO,
    rope::RopeAppendBf16::INFO,
    rope::RopeAppendInt8::INFO,
    attention::AttentionCombine::INFO,
    attention::AttentionDecode32::INFO,
    attention::AttentionPrefill32::INFO,
    attention::AttentionDecode32Int8::INFO,
    attention::AttentionPrefill32Int8::INFO,
    attention::AttentionDecode64::INFO,
    attention::AttentionPrefill64::INFO,
    attention::AttentionDecode64Int8::INFO,
    attention::AttentionPrefill64Int8::INFO,
    attention::AttentionDecode128::INFO,
    attention::AttentionPrefill128::INFO,
    attention::AttentionDecode128Int8::INFO,
    attention::AttentionPrefill128Int8::INFO,
    attention::AttentionDecode256::INFO,
    attention::AttentionPrefill256::INFO,
    attention::AttentionCluster32::INFO,
    attention::AttentionCluster32Int8::INFO,
    attention::AttentionCluster64::INFO,
    attention::AttentionCluster64Int8::INFO,
    attention::AttentionCluster128::INFO,
    attention::AttentionCluster128Int8::INFO,
    attention::AttentionCluster256::INFO,
];

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: `trap` has no precondition.
    unsafe { core::arch::nvptx::trap() }
}
