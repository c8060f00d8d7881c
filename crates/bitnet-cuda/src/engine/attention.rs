//! Attention of a batch: which kernels, and their launches.

use super::shares::Share;
use super::{Engine, launch};
use crate::error::{Error, Result};
use crate::stream::Dependent;
use bitnet_kernels::attention::{
    AttentionCluster, AttentionCluster32, AttentionCombine, AttentionDecode, AttentionPrefill,
    AttentionSerial, AttentionSerial128, DecodeInputs, Heads, Prefill,
};
use bitnet_kernels::rope::{self, RopeAppend};
use bitnet_kernels::{Kernel, Launch, Use};

/// Rows whose partial results fit the scratch: more are attended to in turns.
pub(super) const ROWS_AT_ONCE: usize = 64;

/// Launches the kernel that is found for the parameters in clusters that span the grid along x.
struct InCluster<'a>(Dependent<'a>);

impl Use for InCluster<'_> {
    type Output = Result<()>;

    fn of<K: Kernel>(self, kernel: K, launch: Launch) -> Result<()> {
        self.0
            .launch(&kernel, launch, |config| config.cluster(launch.grid[0]))
    }
}

impl Engine {
    /// Blocks of the clusters that attend and fold `steps` steps in one kernel; none where two kernels do it.
    fn cluster_blocks(&self, steps: usize) -> Option<u32> {
        let heads_per_kv = self.model.dims.n_heads / self.model.dims.n_kv_heads;
        AttentionCluster::blocks(steps as u32, heads_per_kv as u32)
            .filter(|_| self.gpu().has::<AttentionCluster32>())
    }

    /// Whether a block takes all steps of a token's key head, of so many rows over up to `steps` steps: with blocks for most multiprocessors that
    /// is faster than sharing the steps out, and with one for every second faster than clusters of four or eight blocks (docs/kernels.md).
    fn attends_serially(&self, rows: usize, steps: usize) -> bool {
        let (d, n_sms) = (&self.model.dims, self.gpu().properties().n_sms as usize);
        let blocks = rows * d.n_kv_heads;
        AttentionSerial::KEYS.contains(&self.heads)
            && d.n_heads / d.n_kv_heads <= AttentionSerial::MOST_HEADS as usize
            && self.gpu().has::<AttentionSerial128>()
            && (4 * blocks >= 3 * n_sms || (2 * blocks >= n_sms && (3..=8).contains(&steps)))
    }

    /// Whether one kernel attends so many rows over up to `steps` steps, without partial results.
    pub(super) fn attends_at_once(&self, rows: usize, steps: usize) -> bool {
        self.attends_serially(rows, steps) || self.cluster_blocks(steps).is_some()
    }

    /// Attention of one token of each sequence of a share, over up to `steps` steps: the `wanted` of its two parts, steps and fold.
    pub(super) fn attention_decode(
        &self,
        share: Share<'_>,
        layer: usize,
        steps: usize,
        wanted: [bool; 2],
    ) -> Result<()> {
        let is_serial = self.attends_serially(share.rows, steps);
        let blocks = self.cluster_blocks(steps).filter(|_| !is_serial);
        let room = blocks.unwrap_or(steps as u32);
        let (s, d) = (&self.buffers.scratch, &self.model.dims);
        let [takes_steps, folds] = wanted;
        if is_serial || blocks.is_some() {
            if !takes_steps {
                return Ok(());
            }
            let (inputs, out) = (
                self.decode_inputs(share, layer, room),
                share.of(s.attention.global(), d.d_q()),
            );
            return if is_serial {
                self.attention_serial(share, AttentionSerial::new(inputs, out))
            } else {
                self.attention_cluster(share, AttentionCluster::new(inputs, out))
            };
        }
        // Partial results have one place, so these parts of a share follow each other.
        for first in (0..share.rows).step_by(ROWS_AT_ONCE) {
            let part = Share {
                first: share.first + first,
                rows: ROWS_AT_ONCE.min(share.rows - first),
                ..share
            };
            let inputs = self.decode_inputs(part, layer, room);
            let decode = AttentionDecode::new(inputs, s.values.global(), s.sums.global());
            if takes_steps {
                self.attention_steps(part, decode)?;
            }
            if folds {
                self.attention_combine(part, &decode)?;
            }
        }
        Ok(())
    }

    /// What attention of a share's tokens reads and writes, over up to `steps` steps.
    fn decode_inputs(&self, share: Share<'_>, layer: usize, steps: u32) -> DecodeInputs {
        let (s, d) = (&self.buffers.scratch, &self.model.dims);
        let [k_cache, v_cache] = self.buffers.cache.layer(layer);
        DecodeInputs {
            qkv: share.of(s.qkv.global(), d.d_q() + 2 * d.d_kv()),
            positions: share.of(self.rows.positions, 1),
            tables: share.of(self.rows.tables, self.rows.table_len),
            cos: self.buffers.cos.global(),
            sin: self.buffers.sin.global(),
            k_cache,
            v_cache,
            batch: share.rows as u32,
            n_heads: d.n_heads as u32,
            n_kv_heads: d.n_kv_heads as u32,
            heads_per_kv: (d.n_heads / d.n_kv_heads) as u32,
            head_dim: d.head_dim as u32,
            table_len: self.rows.table_len as u32,
            steps,
            q_scale: rope::q_scale(d.head_dim as u32),
        }
    }

    /// The steps of some tokens' attention.
    fn attention_steps(&self, share: Share<'_>, decode: AttentionDecode) -> Result<()> {
        // SAFETY: A3 and A4 of `engine`: tables, positions and the pages that tokens write to were checked on the host; A2: the
        // embedding or the host's upload lies between this launch and what wrote positions and the older part of the cache.
        let run = unsafe { Dependent::on(share.stream) };
        decode.with_kernel(self.heads, run)
    }

    /// Attention in a block for all steps of a key head.
    fn attention_serial(&self, share: Share<'_>, serial: AttentionSerial) -> Result<()> {
        // SAFETY: as in `attention_steps`; `attends_serially` compared the heads.
        let run = unsafe { Dependent::on(share.stream) };
        serial.with_kernel(self.heads, run).unwrap_or_else(|| {
            Err(Error::Request(format!(
                "no kernel attends {:?} serially",
                self.heads
            )))
        })
    }

    /// Attention in clusters of a block for each step that there is room for.
    fn attention_cluster(&self, share: Share<'_>, cluster: AttentionCluster) -> Result<()> {
        // SAFETY: as in `attention_steps`; the steps are what `cluster_blocks` allows.
        let run = unsafe { Dependent::on(share.stream) };
        cluster.with_kernel(self.heads, InCluster(run))
    }

    /// Folds the steps of some tokens.
    fn attention_combine(&self, share: Share<'_>, decode: &AttentionDecode) -> Result<()> {
        let combine = AttentionCombine {
            values: decode.values,
            sums: decode.sums,
            positions: decode.positions,
            out: share.of(self.buffers.scratch.attention.global(), self.model.dims.d_q()),
            batch: decode.batch,
            n_heads: decode.n_heads,
            head_dim: decode.head_dim,
            padded: self.heads.padded(),
            steps: decode.steps,
        };
        // SAFETY: A1: the partial results have room for these steps of 64 rows.
        unsafe { launch(share.stream, &combine, combine.launch()) }
    }

    /// By what the attention of runs of tokens multiplies.
    fn prefill(&self) -> Prefill {
        match self.heads {
            Heads::Bf16x128 if self.gpu().multiplies_by_warpgroups() => Prefill::Warpgroups,
            heads => Prefill::Warps(heads),
        }
    }

    /// Attention of runs of tokens, whose keys and values go to their pages first.
    pub(super) fn attention_prefill(&self, layer: usize, tiles: usize) -> Result<()> {
        let (s, d) = (&self.buffers.scratch, &self.model.dims);
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
            padded: self.heads.padded(),
            q_scale: rope::q_scale(d.head_dim as u32),
        };
        // SAFETY: A3 and A4 of `engine`: positions and places were checked by `begin`, which found no place twice.
        let run = unsafe { Dependent::on(&self.stream) };
        append.with_kernel(self.model.kv_type, run)?;
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
        let run = unsafe { Dependent::on(&self.stream) };
        prefill.with_kernel(self.prefill(), run)
    }
}
