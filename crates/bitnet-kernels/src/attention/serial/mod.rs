//! Attention of many decoded tokens: a block for every key head of a token, which takes the token's steps one after the other and folds
//! them on the way.
//!
//! Bulk copies bring what pages hold before the token to shared memory, of two steps at a time: keys two steps ahead, values one. Neither partial results nor
//! a second kernel are needed.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;

use super::decode::{HEADS, WARPS, decode_family, serial_bytes, with_inputs};
use super::heads::{Heads, heads_family};
use crate::{Global, Launch};

with_inputs! { decode_family! {
    /// Parameters of the decode kernels of many tokens, one for each of those [`Heads`] that larger models have.
    ///
    /// `out[b][h] = O / L` of [`crate::attention`], and the new keys and values: what [`super::AttentionDecode`] and
    /// [`super::AttentionCombine`] do, with the same bits.
    ///
    /// - Shapes: as for [`super::AttentionDecode`]; `out` (batch, n_heads, head_dim).
    /// - Launch: a block owns the query heads of one key head and one token.
    /// - Moves: keys and values up to the position once, those of the first step requested before the kernel waits for the one that
    ///   writes `qkv`.
    /// - Bound: DRAM where blocks fill the multiprocessors; latency of a step times steps otherwise.
    ///
    /// # Safety
    /// As for [`super::AttentionDecode`]; `heads_per_kv` at most [`AttentionSerial::MOST_HEADS`]; `out` 8-byte aligned.
    pub struct AttentionSerial {
        /// Output.
        pub out: Global<f32>,
    }
    some:
    [min_blocks = 3, arch = sm_90,]
    attention_serial_128, AttentionSerial128, Bf16x128;
    [min_blocks = 2, arch = sm_90,]
    attention_serial_128_int8, AttentionSerial128Int8, Int8x128;

} }

impl AttentionSerial {
    /// Most query heads of a key head: a block takes them all at once.
    pub const MOST_HEADS: u32 = HEADS;
}

/// Threads of a block.
const fn threads(_: Heads) -> u32 {
    WARPS * 32
}

/// The grid and the shared memory.
fn launch(heads: Heads, p: &AttentionSerial) -> Launch {
    Launch {
        grid: [p.n_kv_heads, p.batch, 1],
        block: [threads(heads), 1, 1],
        shared_bytes: serial_bytes(heads.padded(), heads.kv_type()),
    }
}
