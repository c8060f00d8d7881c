//! Attention of runs of consecutive tokens: prompts, and pieces of them.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod warp;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod warpgroup;

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;

use super::heads::Heads;
use crate::cache::{KvType, PAGE};
use crate::{Global, Launch};

/// Rows of a tensor core's tile.
const ROWS: u32 = 16;

/// A run of consecutive tokens of one sequence that a block works on, as the host writes it for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Row of the first token in the batch.
    pub row: u32,
    /// Tokens, 1 to [`tile_tokens`].
    pub count: u32,
    /// Row of the tokens' sequence in [`AttentionPrefill::tables`].
    pub table: u32,
    /// Position of the first token.
    pub position: u32,
}

impl Tile {
    /// The words of [`AttentionPrefill::tiles`].
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        [self.row, self.count, self.table, self.position]
    }

    /// Cuts a run, itself perhaps longer than a tile, into tiles.
    pub fn cut(self, n_heads: u32, n_kv_heads: u32, padded: u32) -> impl Iterator<Item = Self> {
        let size = tile_tokens(n_heads, n_kv_heads, padded);
        (0..self.count).step_by(size as usize).map(move |start| Self {
            row: self.row + start,
            count: size.min(self.count - start),
            table: self.table,
            position: self.position + start,
        })
    }
}

/// Most tokens of a [`Tile`].
#[must_use]
pub const fn tile_tokens(n_heads: u32, n_kv_heads: u32, padded: u32) -> u32 {
    let heads = n_heads / n_kv_heads;
    warps(padded) * if heads < ROWS { ROWS / heads } else { 1 }
}

/// Warps of a block, by what their registers hold.
const fn warps(padded: u32) -> u32 {
    if padded <= 128 { 8 } else { 4 }
}

/// Steps of keys and values that a block holds: the next is on its way while one is used, where shared memory allows it.
const fn stages(padded: u32) -> u32 {
    if padded <= 128 { 2 } else { 1 }
}

/// Bytes of a step's keys and values in shared memory: always bfloat16, and of 8-bit integers their scales.
const fn stage_bytes(padded: u32, kv: KvType) -> u32 {
    let scales = match kv {
        KvType::Bf16 => 0,
        KvType::Int8 => 2 * PAGE * 4,
    };
    2 * PAGE * padded * 2 + scales
}

/// Dimensions of a head that warpgroups attend to.
const WARPGROUP_DIMS: u32 = 128;
/// Bytes of half the dimensions of a step's keys as warpgroups take them, and of the values of half the dimensions: 64 rows of 128 bytes.
const HALF_BYTES: u32 = PAGE * 128;
/// Bytes of a step's keys.
const KEYS_BYTES: u32 = 2 * HALF_BYTES;
/// Bytes of a step's values, and of 8 rows of ones.
const VALUES_BYTES: u32 = 2 * HALF_BYTES + 8 * 128;

/// Bytes of the queries of two warpgroups.
const QUERIES_BYTES: u32 = 4 * HALF_BYTES;

/// Bytes of the queries that a block keeps in shared memory, because registers do not hold them; beside scales from 128
/// dimensions on.
const fn query_bytes(padded: u32, kv: KvType) -> u32 {
    let most = match kv {
        KvType::Bf16 => 128,
        KvType::Int8 => 64,
    };
    if padded <= most {
        0
    } else {
        warps(padded) * ROWS * padded * 2
    }
}

/// By what a prefill kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefill {
    /// By warps.
    Warps(Heads),
    /// By warpgroups, heads of [`Heads::Bf16x128`]: capability 9.0 alone.
    Warpgroups,
}

/// Declares the [`family!`] of prefill kernels.
macro_rules! prefill_family {
    (
        $(#[$meta:meta])*
        pub struct $Params:ident $fields:tt
        [$($options:tt)*] $($name:ident, $Kernel:ident, $heads:ident;)+
        [$($hopper:tt)*] $hopper_name:ident, $HopperKernel:ident;
    ) => {
        family! {
            $(#[$meta])*
            pub struct $Params $fields
            each Prefill;
            [$($options)*]
            $(
                $name, $Kernel, concat!("[`Heads::", stringify!($heads), "`]"),
                [{ Heads::$heads.padded() as usize / 32 }, { matches!(Heads::$heads.kv_type(), KvType::Int8) }, false],
                [Prefill::Warps(Heads::$heads)];
            )+
            [$($hopper)*]
            $hopper_name, $HopperKernel, "[`Prefill::Warpgroups`]", [4, false, true], [Prefill::Warpgroups];
        }
    };
}

prefill_family! {
    /// Parameters of the prefill kernels, one for each of [`Heads`].
    ///
    /// `out[b][h] = O / L` of [`crate::attention`] for the queries of [`crate::rope::RopeAppend`], which has also put the
    /// keys and values of the tokens into the cache.
    ///
    /// - Shapes: `q` (batch, n_heads, padded) bfloat16; `tiles` (n_tiles, 4), see [`Tile`]; `out` (batch, n_heads, head_dim).
    /// - Launch: a block owns a tile of tokens and the query heads of one key head (16 of them at most), a warp 16 rows of
    ///   that; the warps share every step's keys and values in shared memory. The last tiles start first: they are the
    ///   longest.
    /// - Moves: per block the cache up to its last position, from L2.
    /// - Bound: shared memory, of which every warp reads the whole step, and the latency of few warps: 118 us for 2048
    ///   tokens on an H200 (20 heads, 5 of keys, 128 wide), 180 TFLOP/s.
    ///
    /// # Safety
    /// Lengths as above; `q`, `tiles` and caches 16-byte, `out` 8-byte aligned; tiles inside the batch and the tables, which have
    /// fewer than 2^32 entries, those up to the tiles' last positions pages of the caches; `head_dim` a multiple of 4.
    pub struct AttentionPrefill {
        /// Rotated and scaled queries, two dimensions a word.
        pub q: Global<u32>,
        /// Keys of the layer, as [`crate::cache`] lays them out.
        pub k_cache: Global<u32>,
        /// Values of the layer.
        pub v_cache: Global<u32>,
        /// Runs of tokens, four words each.
        pub tiles: Global<u32>,
        /// Pages of the sequences, (tables, table_len): see [`crate::cache`].
        pub tables: Global<u32>,
        /// Output.
        pub out: Global<f32>,
        /// Runs.
        pub n_tiles: u32,
        /// Query heads.
        pub n_heads: u32,
        /// Key and value heads.
        pub n_kv_heads: u32,
        /// Dimensions of a head.
        pub head_dim: u32,
        /// Pages that a row of `tables` has room for.
        pub table_len: u32,
    }
    [min_blocks = 1,]
    attention_prefill_32, AttentionPrefill32, Bf16x32;
    attention_prefill_64, AttentionPrefill64, Bf16x64;
    attention_prefill_128, AttentionPrefill128, Bf16x128;
    attention_prefill_256, AttentionPrefill256, Bf16x256;
    attention_prefill_32_int8, AttentionPrefill32Int8, Int8x32;
    attention_prefill_64_int8, AttentionPrefill64Int8, Int8x64;
    attention_prefill_128_int8, AttentionPrefill128Int8, Int8x128;
    [min_blocks = 1, arch = sm_90a,]
    attention_prefill_warpgroup, AttentionPrefillWarpgroup;
}

/// Threads of a block.
const fn threads(by: Prefill) -> u32 {
    32 * match by {
        Prefill::Warps(heads) => warps(heads.padded()),
        Prefill::Warpgroups => warps(WARPGROUP_DIMS),
    }
}

/// The grid, and the shared memory that the bodies divide.
fn launch(by: Prefill, p: &AttentionPrefill) -> Launch {
    let parts = (p.n_heads / p.n_kv_heads).div_ceil(ROWS);
    Launch {
        grid: [p.n_tiles, p.n_kv_heads * parts, 1],
        block: [threads(by), 1, 1],
        shared_bytes: match by {
            Prefill::Warps(heads) => {
                let (padded, kv) = (heads.padded(), heads.kv_type());
                query_bytes(padded, kv) + stages(padded) * stage_bytes(padded, kv)
            }
            Prefill::Warpgroups => 2 * (KEYS_BYTES + VALUES_BYTES) + QUERIES_BYTES,
        },
    }
}
