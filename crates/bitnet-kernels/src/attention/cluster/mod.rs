//! Attention of decoded tokens in one kernel, for short contexts: a block for every step of 64 keys, as in
//! [`super::AttentionDecode`], and the blocks of a token's key head are a cluster that folds its steps.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;

use super::decode::{HEADS, WARPS, decode_family, step_bytes, with_inputs};
use super::heads::{Heads, heads_family};
use crate::cache::KvType;
use crate::{Global, Launch};

with_inputs! { decode_family! {
    /// Parameters of the decode kernels of short contexts, one for each of [`Heads`].
    ///
    /// `out[b][h] = O / L` of [`crate::attention`], and the new keys and values: what [`super::AttentionDecode`] and
    /// [`super::AttentionCombine`] do, with the same bits. Every block stores the step it has computed into the shared memory
    /// of the blocks of its cluster, to each the dimensions that it folds.
    ///
    /// - Shapes: as for [`super::AttentionDecode`]; `out` (batch, n_heads, head_dim).
    /// - Launch: in clusters of `steps` blocks along x; a block owns the query heads of one key head, one token and one step,
    ///   and of their outputs every `steps`-th chunk of 8 dimensions. Blocks of steps past the token's position only fold.
    /// - Moves: keys and values up to the position once, requested before the kernel waits for the one that writes `qkv`;
    ///   partial results once, between multiprocessors.
    /// - Bound: latency from `qkv` to `out`.
    ///
    /// # Safety
    /// As for [`super::AttentionDecode`]; `steps`, which are also the blocks of a cluster, and `heads_per_kv` as [`AttentionCluster::blocks`] gives and takes them;
    /// `out` 8-byte aligned.
    pub struct AttentionCluster {
        /// Output.
        pub out: Global<f32>,
    }
    [min_blocks = 1, arch = sm_90,]
    attention_cluster_32, AttentionCluster32, Bf16x32;
    attention_cluster_64, AttentionCluster64, Bf16x64;
    attention_cluster_128, AttentionCluster128, Bf16x128;
    attention_cluster_256, AttentionCluster256, Bf16x256;
    attention_cluster_32_int8, AttentionCluster32Int8, Int8x32;
    attention_cluster_64_int8, AttentionCluster64Int8, Int8x64;
    attention_cluster_128_int8, AttentionCluster128Int8, Int8x128;

} }

impl AttentionCluster {
    /// The power of two, of steps and of blocks of a cluster, that has room for `steps` steps; none where they are more than
    /// the 8 blocks that every GPU's clusters may have, or `heads_per_kv` more than 32, whose records always fit in shared
    /// memory. At least two: a block launched without a cluster cannot store to itself as to a cluster's (an illegal
    /// instruction on an H200).
    #[must_use]
    pub const fn blocks(steps: u32, heads_per_kv: u32) -> Option<u32> {
        if steps <= 8 && heads_per_kv <= 32 {
            Some(if steps < 2 { 2 } else { steps.next_power_of_two() })
        } else {
            None
        }
    }

    /// Whether the kernel lets the next one start right before it waits instead of at once: of a few tokens that leaves the product
    /// before this one alone with its weights (docs/kernels.md).
    #[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
    const fn lets_go_late(batch: u32) -> bool {
        3 <= batch && batch <= 8
    }
}

/// Threads of a block.
const fn threads(_: Heads) -> u32 {
    WARPS * 32
}

/// The grid, and the shared memory: of the step, the mbarrier, and a record for every step and [`HEADS`] heads.
fn launch(heads: Heads, p: &AttentionCluster) -> Launch {
    let (padded, kv) = (heads.padded(), heads.kv_type());
    let rounds = p.heads_per_kv.div_ceil(HEADS);
    Launch {
        grid: [p.steps, p.n_kv_heads, p.batch],
        block: [threads(heads), 1, 1],
        shared_bytes: records_at(padded, kv)
            + rounds * p.steps * 4 * record_floats(chunks_of_block(padded, p.steps)),
    }
}

/// Byte of the mbarrier in shared memory.
const fn mbarrier_at(padded: u32, kv: KvType) -> u32 {
    step_bytes(padded, kv)
}

/// Byte of the records in shared memory.
const fn records_at(padded: u32, kv: KvType) -> u32 {
    mbarrier_at(padded, kv) + 16
}

/// Floats of a record: two for every lane that holds a part of a chunk, then maximum and sum of every head.
const fn record_floats(chunks: u32) -> u32 {
    8 * HEADS * chunks + 2 * HEADS
}

/// Chunks of 8 dimensions that a block has room for; the last blocks of a large cluster fold none of a narrow head's four.
const fn chunks_of_block(padded: u32, steps: u32) -> u32 {
    let chunks = (padded / 8) >> steps.trailing_zeros();
    if chunks == 0 { 1 } else { chunks }
}
