//! The verbs of a step, for a batch that [`Engine::begin`] was given.

use super::weights::Matrix;
use super::{Attention, DECODE_BATCH, Engine, Input};
use crate::error::{Error, Result};
use crate::stream::{LaunchConfig, Stream};
use bitnet_kernels::attention::{
    AttentionCombine, AttentionDecode, AttentionDecode32, AttentionDecode64, AttentionDecode128,
    AttentionDecode256, AttentionPrefill, AttentionPrefill32, AttentionPrefill64, AttentionPrefill128,
    AttentionPrefill256, Tile,
};
use bitnet_kernels::bf16_gemv::{self, Bf16Gemv};
use bitnet_kernels::decode_linear::{self, SLOTS};
use bitnet_kernels::embed::EmbedBf16;
use bitnet_kernels::quantize_rows::{self, QuantizeRows};
use bitnet_kernels::rope::{self, RopeAppend};
use bitnet_kernels::token::DecodeStart;
use bitnet_kernels::{Global, Kernel, Launch, bit_gemm};

/// A linear layer's epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Epilogue {
    Store,
    Add,
    Gated,
}

/// The input and output of a linear layer.
struct Linear<'a> {
    matrix: &'a Matrix,
    epilogue: Epilogue,
    x: Global<f32>,
    norm: Global<f32>,
    /// Negative where there is no norm.
    eps: f32,
    y: Global<f32>,
    /// Place of the input's magnitudes: layer and number of the linear layer in it.
    slot: (usize, usize),
    /// Where the output's magnitudes go, and the weight of the norm that its reader applies.
    next: Option<((usize, usize), Global<f32>)>,
}

/// Layers' linear layers, as places of magnitudes.
const QKV: usize = 0;
const O: usize = 1;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

/// Launches `kernel` so that it may start before its predecessor ends.
///
/// # Safety
/// As for [`Stream::launch`]; the kernel waits for its predecessor before it uses what others wrote.
pub(super) unsafe fn launch<K: Kernel>(stream: &Stream, kernel: &K, launch: Launch) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { stream.launch(kernel, LaunchConfig::from(launch).programmatic_dependent()) }
}

impl Engine {
    /// Takes a batch: checks it, uploads it, and writes the tokens' embeddings to the residual stream.
    ///
    /// # Errors
    /// When the batch is empty or too large, something in it is out of range, or the device fails.
    pub fn begin(&mut self, batch: &[Input]) -> Result<()> {
        let limits = self.limits;
        if batch.is_empty() || batch.len() > limits.max_batch {
            return Err(Error::Request(format!(
                "a batch of {} tokens; 1 to {} fit",
                batch.len(),
                limits.max_batch
            )));
        }
        if let Some(token) = batch.iter().find(|t| {
            t.id as usize >= self.dims.vocab
                || t.position as usize >= limits.context
                || t.sequence as usize >= limits.n_seqs
        }) {
            return Err(Error::Request(format!(
                "{token:?} is out of range of the model or of {limits:?}"
            )));
        }
        let column = |of: fn(&Input) -> u32| -> Vec<u32> { batch.iter().map(of).collect() };
        let s = &self.scratch;
        self.stream.upload(&s.tokens, 0, &column(|t| t.id))?;
        self.stream.upload(&s.positions, 0, &column(|t| t.position))?;
        self.stream.upload(&s.sequences, 0, &column(|t| t.sequence))?;
        self.batch = batch.len();
        self.attention = self.plan_attention(batch)?;
        self.embed()
    }

    /// Chooses the kernels for a batch's attention; uploads the tiles of the prompt kernels.
    fn plan_attention(&self, batch: &[Input]) -> Result<Attention> {
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

    /// Residual = embedding of the batch's tokens, which stand in device memory.
    pub(super) fn embed(&self) -> Result<()> {
        let (s, d) = (&self.scratch, self.dims.d_model as u32);
        let embed = EmbedBf16 {
            tokens: s.tokens.global(),
            table: self.embedding.global(),
            x: s.residual.global(),
            batch: self.batch as u32,
            d,
        };
        // SAFETY: token ids were checked against the vocabulary, or chosen from it by the device; buffers are as large as
        // the batch, which `begin` checked. The kernel waits before it reads the tokens.
        unsafe { launch(&self.stream, &embed, embed.launch())? };
        if self.batch > 1 {
            return Ok(());
        }
        let Some(layer) = self.layers.first() else {
            return Ok(());
        };
        let start = DecodeStart {
            x: s.residual.global(),
            norm: layer.attn_norm.global(),
            slots: s.slots.global(),
            d,
            n_slots: s.slots.len() as u32,
        };
        // SAFETY: the residual stream has a row, the norm `d` weights; the kernel waits before anything else.
        unsafe { launch(&self.stream, &start, start.launch()) }
    }

    /// Norm, quantization and projection to queries, keys and values of layer `layer`.
    ///
    /// # Errors
    /// When the device fails. This goes for the other verbs too.
    pub fn qkv(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        self.linear(&Linear {
            matrix: &l.qkv,
            epilogue: Epilogue::Store,
            x: self.scratch.residual.global(),
            norm: l.attn_norm.global(),
            eps: self.dims.eps,
            y: self.scratch.qkv.global(),
            slot: (layer, QKV),
            next: None,
        })
    }

    /// Rotation, append to the cache, and attention of layer `layer`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn attention(&self, layer: usize) -> Result<()> {
        match self.attention {
            Attention::Decode { steps } => self.attention_decode(layer, steps),
            Attention::Prefill { tiles } => self.attention_prefill(layer, tiles),
        }
    }

    pub(super) fn attention_decode(&self, layer: usize, steps: usize) -> Result<()> {
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
            head_dim: d.head_dim as u32,
            context: self.limits.context as u32,
            steps: steps as u32,
            q_scale: rope::q_scale(d.head_dim as u32),
        };
        // SAFETY: positions and sequences were checked by `begin`, or advanced by the device within the steps that were
        // asked for; each sequence has one token. `DecodeStart`, or the host's upload, lies between this launch and the
        // kernels that wrote positions and the older part of the cache.
        unsafe {
            match self.padded {
                32 => self.launch_width(AttentionDecode32::from(decode), AttentionDecode32::launch)?,
                64 => self.launch_width(AttentionDecode64::from(decode), AttentionDecode64::launch)?,
                128 => self.launch_width(AttentionDecode128::from(decode), AttentionDecode128::launch)?,
                _ => self.launch_width(AttentionDecode256::from(decode), AttentionDecode256::launch)?,
            }
        }
        let combine = AttentionCombine {
            values: s.values.global(),
            sums: s.sums.global(),
            positions: s.positions.global(),
            out: s.attention.global(),
            weight: l.attn_sub_norm.as_ref().unwrap_or(&self.ones).global(),
            slots: self.slots((layer, O))?,
            batch: self.batch as u32,
            n_heads: d.n_heads as u32,
            head_dim: d.head_dim as u32,
            padded: self.padded as u32,
            steps: steps as u32,
            publish: (self.batch == 1).into(),
        };
        // SAFETY: the partial results were sized for these steps; slots are published for a single token alone.
        unsafe { launch(&self.stream, &combine, combine.launch()) }
    }

    fn attention_prefill(&self, layer: usize, tiles: usize) -> Result<()> {
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

    /// [`launch`] of a kernel that computes its own launch.
    ///
    /// # Safety
    /// As for [`launch`].
    unsafe fn launch_width<K: Kernel>(&self, kernel: K, of: fn(&K) -> Launch) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { launch(&self.stream, &kernel, of(&kernel)) }
    }

    /// Projection of the attention back to the residual stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn out_proj(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        self.linear(&Linear {
            matrix: &l.o,
            epilogue: Epilogue::Add,
            x: self.scratch.attention.global(),
            norm: l.attn_sub_norm.as_ref().unwrap_or(&self.ones).global(),
            eps: if self.dims.sub_norms { self.dims.eps } else { -1.0 },
            y: self.scratch.residual.global(),
            slot: (layer, O),
            next: Some(((layer, GATE_UP), l.ffn_norm.global())),
        })
    }

    /// Gate and up projections and the gate.
    ///
    /// # Errors
    /// When the device fails.
    pub fn up_gate(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        self.linear(&Linear {
            matrix: &l.gate_up,
            epilogue: Epilogue::Gated,
            x: self.scratch.residual.global(),
            norm: l.ffn_norm.global(),
            eps: self.dims.eps,
            y: self.scratch.gated.global(),
            slot: (layer, GATE_UP),
            next: Some((
                (layer, DOWN),
                l.ffn_sub_norm.as_ref().unwrap_or(&self.ones).global(),
            )),
        })
    }

    /// Projection of the gated activations back to the residual stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn down(&self, layer: usize) -> Result<()> {
        let l = &self.layers[layer];
        // After the last layer nobody reads the magnitudes: they go where they harm nobody.
        let (next, norm) = match self.layers.get(layer + 1) {
            Some(next) => ((layer + 1, QKV), &next.attn_norm),
            None => ((layer, QKV), &self.final_norm),
        };
        self.linear(&Linear {
            matrix: &l.down,
            epilogue: Epilogue::Add,
            x: self.scratch.gated.global(),
            norm: l.ffn_sub_norm.as_ref().unwrap_or(&self.ones).global(),
            eps: if self.dims.sub_norms { self.dims.eps } else { -1.0 },
            y: self.scratch.residual.global(),
            slot: (layer, DOWN),
            next: Some((next, norm.global())),
        })
    }

    fn slots(&self, (layer, linear): (usize, usize)) -> Result<Global<u32>> {
        self.scratch.slots.global_at((layer * 4 + linear) * SLOTS)
    }

    fn linear(&self, linear: &Linear<'_>) -> Result<()> {
        if self.batch == 1 {
            self.linear_of_one(linear)
        } else {
            self.linear_of_many(linear)
        }
    }

    fn linear_of_one(&self, linear: &Linear<'_>) -> Result<()> {
        let Matrix {
            tiles,
            n,
            k,
            scales,
            starts,
            ..
        } = linear.matrix;
        let grid = decode_linear::launch(*n, *k, linear.epilogue == Epilogue::Gated);
        // A layer that only stores publishes nothing: any valid address serves.
        let (next, next_norm) = linear.next.unwrap_or((linear.slot, linear.norm));
        let (absmax, next_absmax) = (self.slots(linear.slot)?, self.slots(next)?);
        macro_rules! run {
            ($Params:ident) => {
                // SAFETY: the buffers have the shapes of the model; the input's magnitudes were published by the kernel that
                // wrote it; the kernel waits before it reads what others wrote.
                unsafe {
                    launch(
                        &self.stream,
                        &decode_linear::$Params {
                            w: tiles.global(),
                            x: linear.x,
                            norm: linear.norm,
                            absmax,
                            y: linear.y,
                            next_norm,
                            next_absmax,
                            n: *n as u32,
                            k: *k as u32,
                            eps: linear.eps,
                            activation: self.dims.activation,
                            row_b: starts[0],
                            row_c: starts[1],
                            scale_a: scales[0],
                            scale_b: scales[1],
                            scale_c: scales[2],
                        },
                        grid,
                    )
                }
            };
        }
        match (linear.epilogue, decode_linear::tiles_per_warp(*k)) {
            (Epilogue::Store, 2) => run!(DecodeStoreK2),
            (Epilogue::Store, 3) => run!(DecodeStoreK3),
            (Epilogue::Store, _) => run!(DecodeStoreK4),
            (Epilogue::Add, 2) => run!(DecodeAddK2),
            (Epilogue::Add, 3) => run!(DecodeAddK3),
            (Epilogue::Add, _) => run!(DecodeAddK4),
            (Epilogue::Gated, 2) => run!(DecodeGatedK2),
            (Epilogue::Gated, 3) => run!(DecodeGatedK3),
            (Epilogue::Gated, _) => run!(DecodeGatedK4),
        }
    }

    fn linear_of_many(&self, linear: &Linear<'_>) -> Result<()> {
        let (
            Matrix {
                tiles,
                n,
                k,
                scales,
                starts,
                ..
            },
            s,
        ) = (linear.matrix, &self.scratch);
        let quantize = QuantizeRows {
            x: linear.x,
            norm: linear.norm,
            q: s.codes.global(),
            unit: s.unit.global(),
            sum: s.sum.global(),
            k: *k as u32,
            eps: linear.eps,
        };
        // SAFETY: the buffers have a row for each token of the batch, as wide as the widest input.
        unsafe { launch(&self.stream, &quantize, quantize_rows::launch(self.batch, *k))? };
        let plan = bit_gemm::Plan::new(*n, *k, self.batch);
        macro_rules! run {
            ($Params:ident) => {
                // SAFETY: as above.
                unsafe {
                    launch(
                        &self.stream,
                        &bit_gemm::$Params {
                            w: tiles.global(),
                            x: s.codes.global(),
                            unit: s.unit.global(),
                            sum: s.sum.global(),
                            y: linear.y,
                            n: *n as u32,
                            k: *k as u32,
                            cols: self.batch as u32,
                            activation: self.dims.activation,
                            row_b: starts[0],
                            row_c: starts[1],
                            scale_a: scales[0],
                            scale_b: scales[1],
                            scale_c: scales[2],
                        },
                        plan.launch,
                    )
                }
            };
        }
        use bit_gemm::Shape::{Narrow8, Narrow32, Wide};
        match (linear.epilogue, plan.shape) {
            (Epilogue::Store, Wide) => run!(WideStore),
            (Epilogue::Store, Narrow32) => run!(NarrowStore32),
            (Epilogue::Store, Narrow8) => run!(NarrowStore8),
            (Epilogue::Add, Wide) => run!(WideAdd),
            (Epilogue::Add, Narrow32) => run!(NarrowAdd32),
            (Epilogue::Add, Narrow8) => run!(NarrowAdd8),
            (Epilogue::Gated, Wide) => run!(WideGated),
            (Epilogue::Gated, Narrow32) => run!(NarrowGated32),
            (Epilogue::Gated, Narrow8) => run!(NarrowGated8),
        }
    }

    /// Final norm and output head for `rows` rows of the batch from `first`, 8 at most, into the logits buffer.
    pub(super) fn head(&self, first: usize, rows: usize) -> Result<()> {
        let d = &self.dims;
        let head = Bf16Gemv {
            w: self.head.as_ref().unwrap_or(&self.embedding).global(),
            x: self.scratch.residual.global_at(first * d.d_model)?,
            norm: self.final_norm.global(),
            y: self.scratch.logits.global(),
            n: d.vocab as u32,
            k: d.d_model as u32,
            cols: rows as u32,
            eps: d.eps,
        };
        // SAFETY: the rows lie in the residual stream, the logits buffer has 8 rows.
        unsafe { launch(&self.stream, &head, Bf16Gemv::launch(d.vocab, d.d_model)) }
    }

    /// Logits of batch rows `rows`, ascending, (rows, vocab), into `out`.
    ///
    /// # Errors
    /// When a row is outside the batch, `out` has another length, or the device fails.
    pub fn logits(&self, rows: &[usize], out: &mut [f32]) -> Result<()> {
        let vocab = self.dims.vocab;
        if out.len() != rows.len() * vocab || rows.iter().any(|&row| row >= self.batch) {
            return Err(Error::Request(format!(
                "logits of rows {rows:?} into {} floats; the batch has {} rows of {vocab}",
                out.len(),
                self.batch
            )));
        }
        let mut done = 0;
        while done < rows.len() {
            let first = rows[done];
            let run = (1..bf16_gemv::MAX_COLS as usize)
                .take_while(|i| rows.get(done + i) == Some(&(first + i)))
                .count()
                + 1;
            self.head(first, run)?;
            self.stream.download(
                &self.scratch.logits,
                0,
                &mut out[done * vocab..(done + run) * vocab],
            )?;
            done += run;
        }
        Ok(())
    }

    /// An intermediate of the batch, row after row; for tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, what: Intermediate) -> Result<Vec<f32>> {
        let (s, d) = (&self.scratch, &self.dims);
        let (buffer, width) = match what {
            Intermediate::Residual => (&s.residual, d.d_model),
            Intermediate::Qkv => (&s.qkv, (d.n_heads + 2 * d.n_kv_heads) * d.head_dim),
            Intermediate::Attention => (&s.attention, d.n_heads * d.head_dim),
            Intermediate::Gated => (&s.gated, d.d_ffn),
        };
        let mut out = vec![0.0; self.batch * width];
        self.stream.download(buffer, 0, &mut out)?;
        Ok(out)
    }
}

/// What [`Engine::read`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intermediate {
    /// (batch, d_model).
    Residual,
    /// Before rotation, (batch, d_q + 2 d_kv).
    Qkv,
    /// (batch, d_q).
    Attention,
    /// (batch, d_ffn).
    Gated,
}
