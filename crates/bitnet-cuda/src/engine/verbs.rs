//! The verbs of a step, for a batch that [`Engine::begin`] was given.

use super::batch::{Attention, Batch, Bounds};
use super::linear::Linear;
use super::shares::Share;
use super::weights::Layer;
use super::{Engine, Rows, launch};
use crate::error::{Error, Result};
use bitnet_kernels::decode_linear::Epilogue;
use bitnet_kernels::embed::EmbedBf16;
use bitnet_kernels::rows::NormRows;

impl Engine {
    /// Takes a batch: checks it, uploads it in one piece without waiting, copies the pages that it says, and writes the tokens'
    /// embeddings to the residual stream.
    ///
    /// # Errors
    /// When the batch is empty or too large, something in it is out of range, two tokens have the same place, a page that one
    /// sequence writes to is another's too, or the device fails.
    pub fn begin(&mut self, batch: &Batch<'_>) -> Result<()> {
        // Whatever happens, the batch before is over.
        self.batch = 0;
        let plan = self.bounds().plan(batch)?;
        let Self {
            uploads,
            stream,
            buffers,
            ..
        } = self;
        let inputs = &buffers.scratch.inputs;
        uploads.send(stream, inputs, 0, &[&plan.words])?;
        let at = |start: usize| inputs.global().offset(start);
        if plan.copies > 0 {
            // SAFETY: A3 and A4: the plan checked the pairs, which were uploaded before.
            unsafe { buffers.cache.copy(stream, at(plan.pairs), plan.copies)? };
        }
        self.rows = Rows {
            tokens: at(0),
            positions: at(plan.positions),
            places: at(plan.places),
            tiles: at(plan.tiles),
            tables: at(plan.tables),
            table_len: plan.table_len,
        };
        self.batch = batch.tokens.len();
        self.attention = plan.attention;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        self.embed()
    }

    /// What a batch must fit.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds::new(&self.model, self.limits, self.heads)
    }

    /// A layer, of those that there are.
    fn layer(&self, index: usize) -> Result<&Layer> {
        let layers = &self.buffers.layers;
        layers
            .get(index)
            .ok_or_else(|| Error::Request(format!("layer {index} of {}", layers.len())))
    }

    /// Residual = embedding of the batch's tokens, which stand in device memory.
    pub(super) fn embed(&self) -> Result<()> {
        let (s, d) = (&self.buffers.scratch, self.model.dims.d_model as u32);
        let embed = EmbedBf16 {
            tokens: self.rows.tokens,
            table: self.buffers.embedding.global(),
            x: s.residual.global(),
            batch: self.batch as u32,
            d,
            terms: self.model.table.terms as u32,
            stride: self.model.table.stride(d as usize) as u32 / 2,
        };
        // SAFETY: A1 and A3 of `engine`; the kernel waits before it reads the tokens.
        unsafe { launch(&self.stream, &embed, embed.launch()) }
    }

    /// Norm, quantization and projection to queries, keys and values of layer `layer`, and the norms of their heads.
    ///
    /// # Errors
    /// When there is no such layer or the device fails. This goes for the other verbs too.
    pub fn qkv(&self, layer: usize) -> Result<()> {
        self.qkv_of(self.whole(), layer)
    }

    /// [`Engine::qkv`] of some rows.
    pub(super) fn qkv_of(&self, share: Share<'_>, layer: usize) -> Result<()> {
        let (l, d, s) = (self.layer(layer)?, &self.model.dims, &self.buffers.scratch);
        let width = d.d_q() + 2 * d.d_kv();
        let qkv = share.of(s.qkv.global(), width);
        self.linear(&Linear {
            weights: &l.qkv,
            epilogue: Epilogue::Store,
            x: share.of(s.residual.global(), d.d_model),
            norm: l.attn_norm.global(),
            eps: self.model.eps,
            y: qkv,
            share,
            tile_rows: self.grids().qkv,
        })?;
        for (norm, first, heads) in [(&l.q_norm, 0, d.n_heads), (&l.k_norm, d.d_q(), d.n_kv_heads)] {
            let Some(norm) = norm else { continue };
            let norm = NormRows {
                x: qkv.offset(first),
                norm: norm.global(),
                y: qkv.offset(first),
                rows: share.rows as u32,
                groups: heads as u32,
                width: d.head_dim as u32,
                x_stride: width as u32,
                y_stride: width as u32,
                eps: self.model.eps,
            };
            // SAFETY: A1 of `engine`; a head is its own place.
            unsafe { launch(share.stream, &norm, norm.launch())? };
        }
        Ok(())
    }

    /// Rotation, append to the cache, and attention of layer `layer`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn attention(&self, layer: usize) -> Result<()> {
        self.layer(layer)?;
        match self.attention {
            Attention::Decode { steps } => self.attention_decode(self.whole(), layer, steps, [true; 2]),
            Attention::Prefill { tiles } => self.attention_prefill(layer, tiles),
        }
    }

    /// Projection of the attention back to the residual stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn out_proj(&self, layer: usize) -> Result<()> {
        self.out_proj_of(self.whole(), layer)
    }

    /// [`Engine::out_proj`] of some rows.
    pub(super) fn out_proj_of(&self, share: Share<'_>, layer: usize) -> Result<()> {
        let (l, d, s) = (self.layer(layer)?, &self.model.dims, &self.buffers.scratch);
        self.linear(&Linear {
            weights: &l.o,
            epilogue: Epilogue::Add,
            x: share.of(s.attention.global(), d.d_q()),
            norm: l.attn_sub_norm.as_ref().unwrap_or(&self.buffers.ones).global(),
            eps: self.sub_norm_eps(),
            y: share.of(s.residual.global(), d.d_model),
            share,
            tile_rows: self.grids().out_proj,
        })
    }

    /// Gate and up projections and the gate.
    ///
    /// # Errors
    /// When the device fails.
    pub fn up_gate(&self, layer: usize) -> Result<()> {
        self.up_gate_of(self.whole(), layer)
    }

    /// [`Engine::up_gate`] of some rows.
    pub(super) fn up_gate_of(&self, share: Share<'_>, layer: usize) -> Result<()> {
        let (l, d, s) = (self.layer(layer)?, &self.model.dims, &self.buffers.scratch);
        self.linear(&Linear {
            weights: &l.gate_up,
            epilogue: Epilogue::Gated,
            x: share.of(s.residual.global(), d.d_model),
            norm: l.ffn_norm.global(),
            eps: self.model.eps,
            y: share.of(s.gated.global(), d.d_ffn),
            share,
            tile_rows: self.grids().up_gate,
        })
    }

    /// Projection of the gated activations back to the residual stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn down(&self, layer: usize) -> Result<()> {
        self.down_of(self.whole(), layer)
    }

    /// [`Engine::down`] of some rows.
    pub(super) fn down_of(&self, share: Share<'_>, layer: usize) -> Result<()> {
        let (l, d, s) = (self.layer(layer)?, &self.model.dims, &self.buffers.scratch);
        self.linear(&Linear {
            weights: &l.down,
            epilogue: Epilogue::Add,
            x: share.of(s.gated.global(), d.d_ffn),
            norm: l.ffn_sub_norm.as_ref().unwrap_or(&self.buffers.ones).global(),
            eps: self.sub_norm_eps(),
            y: share.of(s.residual.global(), d.d_model),
            share,
            tile_rows: self.grids().down,
        })
    }

    /// Epsilon of the norms before the projections back to the residual stream; negative where there are none.
    const fn sub_norm_eps(&self) -> f32 {
        if self.model.sub_norms {
            self.model.eps
        } else {
            -1.0
        }
    }

    /// Row `row` of the residual stream, (d_model), into `out`.
    ///
    /// # Errors
    /// When the row is outside the batch, `out` has another length, or the device fails.
    pub fn residual(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let d_model = self.model.dims.d_model;
        if row >= self.batch || out.len() != d_model {
            return Err(Error::Request(format!(
                "row {row} of {} into {} floats; a row has {d_model}",
                self.batch,
                out.len()
            )));
        }
        let residual = &self.buffers.scratch.residual;
        self.stream.download(residual, row * d_model, out)
    }

    /// An intermediate of the batch, row after row.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, what: Intermediate) -> Result<Vec<f32>> {
        let (s, d) = (&self.buffers.scratch, &self.model.dims);
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
