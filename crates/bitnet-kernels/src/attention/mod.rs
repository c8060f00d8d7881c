//! Causal attention of grouped query heads over the cache that [`crate::rope`] fills: the same bits for a token whether it
//! was decoded or part of a prompt, whatever stands beside it in the batch and however the prompt was cut.
//!
//! All kernels work in steps of [`PAGE`](crate::cache::PAGE) keys at absolute positions, and do this for a row
//! (a token's query head; `q` carries the factor `log2(e) / sqrt(head_dim)`, see [`crate::rope::q_scale`]) and a step:
//!
//! - `s = q k` on the tensor cores, in the order of `math::score`; `m = max s`, over the keys up to the row's position;
//! - `p = 2^(s - m)` rounded to bfloat16; `l = p 1` and `o = p v` on the tensor cores, in the order of `math::values`.
//!
//! Then the steps are folded from the first to the last, see `math::Fold`: `M' = max(M, m)`,
//! `O = O 2^(M - M') + o 2^(m - M')`, `L` likewise; the output is `O / L`. A row of a tensor core's tile does not depend on
//! the other rows, so a row's place in a tile is free. So are two orders, and they are chosen so that fragments are what
//! 16-byte loads bring:
//!
//! - dimensions: lane `t` of a quad holds dimensions `32 i + 8 t ..` (8 of them) for the products 2 i and 2 i + 1;
//! - keys: column `2 t + e` of the score tile j is key `32 (j / 4) + 8 t + 2 (j % 4) + e` of the step, so that the score
//!   tiles 2 s and 2 s + 1 of a lane are its A fragment of the product s of the values, whose B fragment is keys
//!   `32 (s / 2) + 8 t + 4 (s % 2) ..` (4 of them).
//!
//! Of a cache of 8-bit integers the codes are the tensor cores' operands: bfloat16 holds them exactly. A score is multiplied by
//! its key's scale before anything else, and a weight by its value's before it is rounded; `l` is the sum of the weights
//! themselves in f32, in the order of `math::weights`.

mod heads;
#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod math;

mod combine;
mod decode;
mod prefill;

mod cluster;

mod serial;

use crate::KernelInfo;

pub use cluster::*;
pub use combine::AttentionCombine;
pub use decode::*;
pub use heads::Heads;
pub use prefill::*;
pub use serial::*;

/// The kernels of attention.
pub(crate) const INFOS: &[KernelInfo] = kernels_of![
    combine::INFOS,
    AttentionDecode::INFOS,
    AttentionPrefill::INFOS,
    AttentionCluster::INFOS,
    AttentionSerial::INFOS,
];
