//! Attention of decoded tokens: every step of 64 keys is a block's, the query is rotated and the new key and value are
//! appended on the way.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(super) mod step;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;

use super::heads::{Heads, heads_family};
use crate::cache::KvType;
use crate::{Global, Launch};

/// Warps of a block: each takes 16 of the keys, then a quarter of the dimensions.
pub(super) const WARPS: u32 = 4;

/// Query heads that a block takes at a time: half the rows of the tensor cores' tile.
pub(super) const HEADS: u32 = 8;

/// Calls a macro with the parameters that decode kernels have in common: those before their results, and those behind.
macro_rules! with_inputs {
    ($then:ident! { $($rest:tt)* }) => { $then! {
        [
            /// Output of the fused linear layer, (batch, n_heads + 2 n_kv_heads, head_dim).
            pub qkv: Global<f32>,
            /// Position of every token in its sequence, (batch).
            pub positions: Global<u32>,
            /// Pages of every token's sequence, (batch, table_len): see [`crate::cache`].
            pub tables: Global<u32>,
            /// Cosines, (context, head_dim / 2).
            pub cos: Global<f32>,
            /// Sines, (context, head_dim / 2).
            pub sin: Global<f32>,
            /// Keys of the layer, as [`crate::cache`] lays them out.
            pub k_cache: Global<u32>,
            /// Values of the layer.
            pub v_cache: Global<u32>,
        ]
        [
            /// Tokens.
            pub batch: u32,
            /// Query heads.
            pub n_heads: u32,
            /// Key and value heads.
            pub n_kv_heads: u32,
            /// Query heads of each: their quotient.
            pub heads_per_kv: u32,
            /// Dimensions of a head.
            pub head_dim: u32,
            /// Pages that a row of `tables` has room for.
            pub table_len: u32,
            /// Steps that partial results have room for.
            pub steps: u32,
            /// Factor of the queries, [`crate::rope::q_scale`].
            pub q_scale: f32,
        ]
        $($rest)*
    } };
}

macro_rules! inputs {
    ([$($before:tt)*] [$($behind:tt)*]) => {
        /// What decode kernels are given, beside the places of their results.
        #[derive(Clone, Copy, Debug)]
        pub struct DecodeInputs { $($before)* $($behind)* }
    };
}

with_inputs! { inputs! {} }

/// Declares a [`heads_family!`] of decode kernels by the places of their results.
macro_rules! decode_family {
    (
        [$( $(#[$before_meta:meta])* pub $before:ident: $before_type:ty, )*]
        [$( $(#[$behind_meta:meta])* pub $behind:ident: $behind_type:ty, )*]
        $(#[$meta:meta])*
        pub struct $Params:ident { $( $(#[$result_meta:meta])* pub $result:ident: $result_type:ty, )* }
        $($kernels:tt)*
    ) => {
        heads_family! {
            $(#[$meta])*
            pub struct $Params {
                $( $(#[$before_meta])* pub $before: $before_type, )*
                $( $(#[$result_meta])* pub $result: $result_type, )*
                $( $(#[$behind_meta])* pub $behind: $behind_type, )*
            }
            $($kernels)*
        }

        impl $Params {
            /// The parameters of kernels that leave what they make of `inputs` there.
            #[must_use]
            pub const fn new(inputs: $crate::attention::DecodeInputs, $( $result: $result_type ),*) -> Self {
                let $crate::attention::DecodeInputs { $( $before, )* $( $behind, )* } = inputs;
                Self { $( $before, )* $( $result, )* $( $behind, )* }
            }

            /// All but the places of results.
            #[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
            #[inline(always)]
            fn inputs(self) -> $crate::attention::DecodeInputs {
                let Self { $( $before, )* $( $behind, )* .. } = self;
                $crate::attention::DecodeInputs { $( $before, )* $( $behind, )* }
            }
        }
    };
}
pub(super) use {decode_family, with_inputs};

with_inputs! { decode_family! {
    /// Parameters of the decode kernels, one for each of [`Heads`].
    ///
    /// For every token b, head h and step: `m`, `l` and `o` of [`crate::attention`] for the query of the token, rotated as
    /// [`crate::rope::RopeAppend`] does it, over the keys of the cache before the token and its own, which the block of
    /// the token's step puts into the cache. [`crate::attention::AttentionCombine`] folds the steps. A step reads one entry of
    /// the table: its page. Where that is [`crate::cache::READ_ONLY`] nothing is stored, and a key of zeros stands for the
    /// token's own.
    ///
    /// - Shapes: as for [`crate::rope::RopeAppend`]; `values` (batch, n_heads, steps, padded); `sums` (batch, n_heads,
    ///   steps, 2).
    /// - Launch: a block owns the query heads of one key head, one token and one step. Blocks of steps past the token's
    ///   position return at once, so that one grid serves every position below `64 steps`.
    /// - Moves: keys and values up to the position once, requested before the kernel waits for the one that writes `qkv`.
    /// - Bound: latency from `qkv` to the partial results: 2.1 us behind another kernel at position 300, 3.3 us with
    ///   `AttentionCombine`, on an H200 (20 heads, 5 of keys, 128 wide, in a graph with programmatic dependent launch). A fold by
    ///   the block that finishes last took 0.6 us longer than the kernel of its own.
    ///
    /// # Safety
    /// Lengths and alignment as for `RopeAppend`, caches 16-byte and partial results 8-byte aligned; positions below
    /// `64 steps` and the context; `steps` at most `table_len`, and every entry of `tables` up to there a page of the caches;
    /// no page that a token writes to is another token's, unless read-only. `positions`, `tables` and the cache before the
    /// positions are written by no kernel that this one may overlap.
    pub struct AttentionDecode {
        /// Weighted values of every step.
        pub values: Global<f32>,
        /// Maximum and sum of weights of every step.
        pub sums: Global<f32>,
    }
    [min_blocks = 1,]
    attention_decode_32, AttentionDecode32, Bf16x32;
    attention_decode_64, AttentionDecode64, Bf16x64;
    attention_decode_128, AttentionDecode128, Bf16x128;
    attention_decode_256, AttentionDecode256, Bf16x256;
    attention_decode_32_int8, AttentionDecode32Int8, Int8x32;
    attention_decode_64_int8, AttentionDecode64Int8, Int8x64;
    attention_decode_128_int8, AttentionDecode128Int8, Int8x128;

} }

/// Threads of a block.
const fn threads(_: Heads) -> u32 {
    WARPS * 32
}

/// The grid and the shared memory.
fn launch(heads: Heads, p: &AttentionDecode) -> Launch {
    Launch {
        grid: [p.n_kv_heads, p.steps, p.batch],
        block: [threads(heads), 1, 1],
        shared_bytes: step_bytes(heads.padded(), heads.kv_type()),
    }
}

/// Shared memory of a step, which `step::Parts` divides.
pub(super) const fn step_bytes(padded: u32, kv: KvType) -> u32 {
    HEADS * row_bytes(padded) + 2 * new_bytes(padded, kv) + SCORES_BYTES
}

/// Shared memory of steps that a block takes one after the other: with a second place for scores, and copies of the pages of two steps.
pub(super) const fn serial_bytes(padded: u32, kv: KvType) -> u32 {
    pages_start(padded, kv) + 4 * page_bytes(padded, kv) + 4 * 8
}

/// Where those copies begin: keys and values of the steps with even numbers, then of the others; behind them their barriers.
const fn pages_start(padded: u32, kv: KvType) -> u32 {
    (step_bytes(padded, kv) + SCORES_BYTES).next_multiple_of(128)
}

/// Bytes of a head's keys, and of its values, in a page.
const fn page_bytes(padded: u32, kv: KvType) -> u32 {
    4 * kv.head_words(padded as usize) as u32
}

/// Bytes of the new key, and of the new value: of 8-bit integers as f32, since all of it is there before its scale is known.
const fn new_bytes(padded: u32, kv: KvType) -> u32 {
    match kv {
        KvType::Bf16 => 2 * padded,
        KvType::Int8 => 4 * padded,
    }
}

/// Bytes from a query row in shared memory to the next: 64 more than its elements, so that two rows lie in different banks.
const fn row_bytes(padded: u32) -> u32 {
    2 * padded + 64
}

/// Bytes from a lane's 16 scores in shared memory to the next lane's: 16 more than the scores, to spread the banks.
const SCORES_STRIDE: u32 = 80;
/// Bytes of all lanes' scores.
const SCORES_BYTES: u32 = 32 * SCORES_STRIDE;
