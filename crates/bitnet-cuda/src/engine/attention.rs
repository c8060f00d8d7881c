//! Attention of a batch: which kernels, and their launches.

use super::{DECODE_BATCH, Engine, Input, launch};
use crate::error::Result;
use crate::stream::LaunchConfig;
use bitnet_kernels::attention::{
    AttentionCluster, AttentionCluster32, AttentionCluster64, AttentionCluster128, AttentionCluster256,
    AttentionCombine, AttentionDecode, AttentionDecode32, AttentionDecode64, AttentionDecode128,
    AttentionDecode256, AttentionPrefill, AttentionPrefill32, AttentionPrefill64, AttentionPrefill128,
    AttentionPrefill256, Tile,
};
use bitnet_kernels::rope::{self, RopeAppend};
use bitnet_kernels::{Kernel, Launch};

/// How the attention of a batch is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attention {
    /// One token of each of its sequences: the decode kernels, with room for this many steps of 64 keys.
    Decode { steps: usize },
    /// Runs of tokens: the prompt kernels, over this many tiles.
    Prefill { tiles: usize },
}

impl Engine {
    /// Chooses the kernels for a batch's attention; uploads the tiles of the prompt kernels.
    pub(super) fn plan_attention(&self, batch: &[Input]) -> Result<Attention> {
        let mut sequences: Vec<u32> = batch.iter().map(|t| t.sequence).collect();
        sequences.sort_unstable();
        sequences.dedup();
        if sequences.len() == batch.len() && batch.len() <= DECODE_BATCH {
            let last = batch.iter().map(|t| t.position).max().unwrap_or(0);
            return Ok(Attention::Decode {
                steps: (last / rope::BLOCK_KEYS) as usize + 1,
            });
        }
        let mut tiles: Vec<Tile> = Vec::new();
        let mut first = 0;
        for i in 1..=batch.len() {
            let continues = batch.get(i).is_some_and(|t| {
                t.sequence == batch[i - 1].sequence && t.position == batch[i - 1].position + 1
            });
            if !continues {
                let run = Tile {
                    row: first as u32,
                    count: (i - first) as u32,
                    sequence: batch[first].sequence,
                    position: batch[first].position,
                };
                let d = &self.dims;
                tiles.extend(run.cut(d.n_heads as u32, d.n_kv_heads as u32, self.padded as u32));
                first = i;
            }
        }
        let words: Vec<u32> = tiles.iter().flat_map(|tile| tile.words()).collect();
        self.stream.upload(&self.scratch.tiles, 0, &words)?;
        Ok(Attention::Prefill { tiles: tiles.len() })
    }

    /// Blocks of the clusters that attend and fold `steps` steps in one kernel; none where two kernels do it.
    fn cluster_blocks(&self, steps: usize) -> Option<u32> {
        let heads_per_kv = self.dims.n_heads / self.dims.n_kv_heads;
        AttentionCluster::blocks(steps as u32, heads_per_kv as u32)
            .filter(|_| self.gpu().has::<AttentionCluster32>())
    }

    /// The steps of every token's attention, and their fold where a cluster can hold them.
    pub(super) fn attention_decode(&self, layer: usize, steps: usize) -> Result<()> {
        let blocks = self.cluster_blocks(steps);
        let (l, s, d) = (&self.layers[layer], &self.scratch, &self.dims);
        let decode = AttentionDecode {
            qkv: s.qkv.global(),
            positions: s.positions.global(),
            sequences: s.sequences.global(),
            cos: self.cos.global(),
            sin: self.sin.global(),
            k_cache: l.k_cache.global(),
            v_cache: l.v_cache.global(),
            values: s.values.global(),
            sums: s.sums.global(),
            batch: self.batch as u32,
            n_heads: d.n_heads as u32,
            n_kv_heads: d.n_kv_heads as u32,
            heads_per_kv: (d.n_heads / d.n_kv_heads) as u32,
            head_dim: d.head_dim as u32,
            context: self.limits.context as u32,
            steps: blocks.unwrap_or(steps as u32),
            q_scale: rope::q_scale(d.head_dim as u32),
        };
        if blocks.is_some() {
            return self.attention_cluster(AttentionCluster::of(&decode, s.attention.global()));
        }
        // SAFETY: positions and sequences were checked by `begin`, or advanced by the device within the steps that were
        // asked for; each sequence has one token. The embedding or the host's upload lies between
        // this launch and the kernels that wrote positions and the older part of the cache.
        unsafe {
            match self.padded {
                32 => self.launch_width(AttentionDecode32::from(decode), AttentionDecode32::launch),
                64 => self.launch_width(AttentionDecode64::from(decode), AttentionDecode64::launch),
                128 => self.launch_width(AttentionDecode128::from(decode), AttentionDecode128::launch),
                _ => self.launch_width(AttentionDecode256::from(decode), AttentionDecode256::launch),
            }
        }
    }

    /// Attention in clusters of a block for each step that there is room for.
    fn attention_cluster(&self, cluster: AttentionCluster) -> Result<()> {
        // SAFETY: as in `attention_decode`; the steps are what `cluster_blocks` allows.
        unsafe {
            match self.padded {
                32 => self.launch_clusters(AttentionCluster32::from(cluster), AttentionCluster32::launch),
                64 => self.launch_clusters(AttentionCluster64::from(cluster), AttentionCluster64::launch),
                128 => self.launch_clusters(AttentionCluster128::from(cluster), AttentionCluster128::launch),
                _ => self.launch_clusters(AttentionCluster256::from(cluster), AttentionCluster256::launch),
            }
        }
    }

    /// Folds the steps of [`Engine::attention_decode`], where it has not.
    pub(super) fn attention_combine(&self, steps: usize) -> Result<()> {
        if self.cluster_blocks(steps).is_some() {
            return Ok(());
        }
        let (s, d) = (&self.scratch, &self.dims);
        let combine = AttentionCombine {
            values: s.values.global(),
            sums: s.sums.global(),
            positions: s.positions.global(),
            out: s.attention.global(),
            batch: self.batch as u32,
            n_heads: d.n_heads as u32,
            head_dim: d.head_dim as u32,
            padded: self.padded as u32,
            steps: steps as u32,
        };
        // SAFETY: the partial results were sized for these steps.
        unsafe { launch(&self.stream, &combine, combine.launch()) }
    }

    pub(super) fn attention_prefill(&self, layer: usize, tiles: usize) -> Result<()> {
        let (l, s, d) = (&self.layers[layer], &self.scratch, &self.dims);
        let append = RopeAppend {
            qkv: s.qkv.global(),
            positions: s.positions.global(),
            sequences: s.sequences.global(),
            cos: self.cos.global(),
            sin: self.sin.global(),
            q: s.queries.global(),
            k_cache: l.k_cache.global(),
            v_cache: l.v_cache.global().cast(),
            batch: self.batch as u32,
            n_heads: d.n_heads as u32,
            n_kv_heads: d.n_kv_heads as u32,
            head_dim: d.head_dim as u32,
            padded: self.padded as u32,
            context: self.limits.context as u32,
            q_scale: rope::q_scale(d.head_dim as u32),
        };
        // SAFETY: positions and sequences were checked by `begin`; the caches have the engine's context.
        unsafe { launch(&self.stream, &append, append.launch())? };
        let prefill = AttentionPrefill {
            q: s.queries.global(),
            k_cache: l.k_cache.global(),
            v_cache: l.v_cache.global(),
            tiles: s.tiles.global(),
            out: s.attention.global(),
            n_tiles: tiles as u32,
            n_heads: d.n_heads as u32,
            n_kv_heads: d.n_kv_heads as u32,
            head_dim: d.head_dim as u32,
            context: self.limits.context as u32,
        };
        // SAFETY: the tiles were cut from the checked batch.
        unsafe {
            match self.padded {
                32 => self.launch_width(AttentionPrefill32::from(prefill), AttentionPrefill32::launch),
                64 => self.launch_width(AttentionPrefill64::from(prefill), AttentionPrefill64::launch),
                128 => self.launch_width(AttentionPrefill128::from(prefill), AttentionPrefill128::launch),
                _ => self.launch_width(AttentionPrefill256::from(prefill), AttentionPrefill256::launch),
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
