//! Attention of a batch: which kernels, and their launches.

use super::{Engine, launch};
use crate::error::Result;
use crate::stream::LaunchConfig;
use bitnet_kernels::attention::{
    self, AttentionCluster, AttentionCombine, AttentionDecode, AttentionPrefill,
};
use bitnet_kernels::cache::KvType;
use bitnet_kernels::rope::{self, RopeAppend, RopeAppendBf16, RopeAppendInt8};
use bitnet_kernels::{Global, Kernel, Launch};

/// Rows whose partial results fit the scratch: more are attended to in turns.
pub(super) const ROWS_AT_ONCE: usize = 64;

/// Launches the kernel for this engine's heads and type of keys and values: how, its parameters, and the kernels by padded width.
macro_rules! launch_by_width {
    ($engine:ident.$launch:ident($params:expr), $($kv_type:ident $width:pat => $Params:ident;)*) => {
        match ($engine.padded, $engine.dims.kv_type) {
            $(
                ($width, KvType::$kv_type) => {
                    $engine.$launch(attention::$Params::from($params), attention::$Params::launch)
                }
            )*
        }
    };
}

impl Engine {
    /// Blocks of the clusters that attend and fold `steps` steps in one kernel; none where two kernels do it.
    fn cluster_blocks(&self, steps: usize) -> Option<u32> {
        let heads_per_kv = self.dims.n_heads / self.dims.n_kv_heads;
        AttentionCluster::blocks(steps as u32, heads_per_kv as u32)
            .filter(|_| self.gpu().has::<attention::AttentionCluster32>())
    }

    /// Attention of one token of each sequence, over up to `steps` steps: the `wanted` of its two parts, steps and fold.
    pub(super) fn attention_decode(&self, layer: usize, steps: usize, wanted: [bool; 2]) -> Result<()> {
        let blocks = self.cluster_blocks(steps);
        let (s, d) = (&self.buffers.scratch, &self.dims);
        let [k_cache, v_cache] = self.buffers.cache.layer(layer);
        let decode = AttentionDecode {
            qkv: s.qkv.global(),
            positions: self.rows.positions,
            tables: self.rows.tables,
            cos: self.buffers.cos.global(),
            sin: self.buffers.sin.global(),
            k_cache,
            v_cache,
            values: s.values.global(),
            sums: s.sums.global(),
            batch: self.batch as u32,
            n_heads: d.n_heads as u32,
            n_kv_heads: d.n_kv_heads as u32,
            heads_per_kv: (d.n_heads / d.n_kv_heads) as u32,
            head_dim: d.head_dim as u32,
            table_len: self.rows.table_len as u32,
            steps: blocks.unwrap_or(steps as u32),
            q_scale: rope::q_scale(d.head_dim as u32),
        };
        if blocks.is_some() {
            let cluster = AttentionCluster::of(&decode, s.attention.global());
            return if wanted[0] {
                self.attention_cluster(cluster)
            } else {
                Ok(())
            };
        }
        for first in (0..self.batch).step_by(ROWS_AT_ONCE) {
            let rows = ROWS_AT_ONCE.min(self.batch - first);
            let part = AttentionDecode {
                qkv: decode.qkv.offset(first * (d.d_q() + 2 * d.d_kv())),
                positions: decode.positions.offset(first),
                tables: decode.tables.offset(first * self.rows.table_len),
                batch: rows as u32,
                ..decode
            };
            if wanted[0] {
                self.attention_steps(part)?;
            }
            if wanted[1] {
                self.attention_combine(&part, s.attention.global().offset(first * d.d_q()))?;
            }
        }
        Ok(())
    }

    /// The steps of some tokens' attention.
    fn attention_steps(&self, decode: AttentionDecode) -> Result<()> {
        // SAFETY: A3 and A4 of `engine`: tables, positions and the pages that tokens write to were checked on the host; A2: the
        // embedding or the host's upload lies between this launch and what wrote positions and the older part of the cache.
        unsafe {
            launch_by_width! { self.launch_width(decode),
                Bf16 32 => AttentionDecode32;
                Bf16 64 => AttentionDecode64;
                Bf16 128 => AttentionDecode128;
                Bf16 _ => AttentionDecode256;
                Int8 32 => AttentionDecode32Int8;
                Int8 64 => AttentionDecode64Int8;
                Int8 _ => AttentionDecode128Int8;
            }
        }
    }

    /// Attention in clusters of a block for each step that there is room for.
    fn attention_cluster(&self, cluster: AttentionCluster) -> Result<()> {
        // SAFETY: as in `attention_steps`; the steps are what `cluster_blocks` allows.
        unsafe {
            launch_by_width! { self.launch_clusters(cluster),
                Bf16 32 => AttentionCluster32;
                Bf16 64 => AttentionCluster64;
                Bf16 128 => AttentionCluster128;
                Bf16 _ => AttentionCluster256;
                Int8 32 => AttentionCluster32Int8;
                Int8 64 => AttentionCluster64Int8;
                Int8 _ => AttentionCluster128Int8;
            }
        }
    }

    /// Folds the steps of some tokens into `out`.
    fn attention_combine(&self, decode: &AttentionDecode, out: Global<f32>) -> Result<()> {
        let combine = AttentionCombine {
            values: decode.values,
            sums: decode.sums,
            positions: decode.positions,
            out,
            batch: decode.batch,
            n_heads: decode.n_heads,
            head_dim: decode.head_dim,
            padded: self.padded as u32,
            steps: decode.steps,
        };
        // SAFETY: A1: the partial results have room for these steps of 64 rows.
        unsafe { launch(&self.stream, &combine, combine.launch()) }
    }

    /// Attention of runs of tokens, whose keys and values go to their pages first.
    pub(super) fn attention_prefill(&self, layer: usize, tiles: usize) -> Result<()> {
        let (s, d) = (&self.buffers.scratch, &self.dims);
        let [k_cache, v_cache] = self.buffers.cache.layer(layer);
        let append = RopeAppend {
            qkv: s.qkv.global(),
            positions: self.rows.positions,
            places: self.rows.places,
            cos: self.buffers.cos.global(),
            sin: self.buffers.sin.global(),
            q: s.queries.global(),
            k_cache,
            v_cache,
            batch: self.batch as u32,
            n_heads: d.n_heads as u32,
            n_kv_heads: d.n_kv_heads as u32,
            head_dim: d.head_dim as u32,
            padded: self.padded as u32,
            q_scale: rope::q_scale(d.head_dim as u32),
        };
        // SAFETY: A3 and A4 of `engine`: positions and places were checked by `begin`, which found no place twice.
        unsafe {
            match d.kv_type {
                KvType::Bf16 => self.launch_width(RopeAppendBf16::from(append), RopeAppendBf16::launch),
                KvType::Int8 => self.launch_width(RopeAppendInt8::from(append), RopeAppendInt8::launch),
            }?;
        }
        let prefill = AttentionPrefill {
            q: s.queries.global(),
            k_cache,
            v_cache,
            tiles: self.rows.tiles,
            tables: self.rows.tables,
            out: s.attention.global(),
            n_tiles: tiles as u32,
            n_heads: d.n_heads as u32,
            n_kv_heads: d.n_kv_heads as u32,
            head_dim: d.head_dim as u32,
            table_len: self.rows.table_len as u32,
        };
        // SAFETY: A3 and A4: the tiles were cut from the checked batch.
        unsafe {
            launch_by_width! { self.launch_width(prefill),
                Bf16 32 => AttentionPrefill32;
                Bf16 64 => AttentionPrefill64;
                Bf16 128 => AttentionPrefill128;
                Bf16 _ => AttentionPrefill256;
                Int8 32 => AttentionPrefill32Int8;
                Int8 64 => AttentionPrefill64Int8;
                Int8 _ => AttentionPrefill128Int8;
            }
        }
    }

    /// [`Engine::launch_width`] in clusters that span the grid along x.
    ///
    /// # Safety
    /// As for [`launch`].
    unsafe fn launch_clusters<K: Kernel>(&self, kernel: K, of: fn(&K) -> Launch) -> Result<()> {
        let launch = of(&kernel);
        let config = LaunchConfig::from(launch)
            .programmatic_dependent()
            .cluster(launch.grid[0]);
        // SAFETY: the caller's promise.
        unsafe { self.stream.launch(&kernel, config) }
    }

    /// [`launch`] of a kernel that computes its own launch.
    ///
    /// # Safety
    /// As for [`launch`].
    unsafe fn launch_width<K: Kernel>(&self, kernel: K, of: fn(&K) -> Launch) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { launch(&self.stream, &kernel, of(&kernel)) }
    }
}
