//! Kernels that no model runs: what products are measured against, and probes of the compiler and the hardware. They have a PTX
//! module of their own.

pub mod bit_gemv;
pub mod probe;
pub mod ref_gemv;
pub mod stream_read;

use crate::KernelInfo;

/// The kernels of this folder.
pub(crate) const INFOS: &[KernelInfo] = kernels_of![
    bit_gemv::BitGemv::INFOS,
    probe::INFOS,
    ref_gemv::INFOS,
    stream_read::INFOS,
];
