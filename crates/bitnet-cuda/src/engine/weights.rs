//! Weights on the device, and how they get there.

use super::space::{Space, Use};
use super::{Architecture, Engine};
use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::stream::Stream;
use bitnet_kernels::dense::Dequantize;
use bitnet_kernels::repack::Repack;
use bitnet_layout::WeightForm;
use bitnet_layout::mma_tile::{self, RowOrder};

/// A ternary matrix in the canonical layout, of up to three projections stacked by rows.
#[derive(Clone, Copy, Debug)]
pub struct TernaryParts<'a> {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// `n * k / 16` words.
    pub words: &'a [u32],
    /// Rows and scale of each projection.
    pub segments: &'a [(usize, f32)],
}

/// The weights of a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerParts<'a> {
    /// Norm before attention, (d_model).
    pub attn_norm: &'a [f32],
    /// Norm before the feed-forward block, (d_model).
    pub ffn_norm: &'a [f32],
    /// Norm of the attention's output, (d_q).
    pub attn_sub_norm: Option<&'a [f32]>,
    /// Norm of the gated activations, (d_ffn).
    pub ffn_sub_norm: Option<&'a [f32]>,
    /// q, k and v.
    pub qkv: TernaryParts<'a>,
    /// o.
    pub o: TernaryParts<'a>,
    /// gate and up.
    pub gate_up: TernaryParts<'a>,
    /// down.
    pub down: TernaryParts<'a>,
}

/// The matrix of a linear layer.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) kind: WeightForm,
    /// Tiles, or rows of bfloat16.
    pub(super) values: DeviceBuffer<u32>,
    pub(super) n: usize,
    pub(super) k: usize,
    order: RowOrder,
    pub(super) scales: [f32; 3],
    /// First rows of the second and third scale.
    pub(super) starts: [u32; 2],
}

/// The weights of a layer on the device.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn_norm: DeviceBuffer<f32>,
    pub(super) ffn_norm: DeviceBuffer<f32>,
    pub(super) attn_sub_norm: Option<DeviceBuffer<f32>>,
    pub(super) ffn_sub_norm: Option<DeviceBuffer<f32>>,
    pub(super) qkv: Matrix,
    pub(super) o: Matrix,
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
}

impl Matrix {
    fn new(space: &Space<'_>, kind: WeightForm, n: usize, k: usize, order: RowOrder) -> Result<Self> {
        let words = match kind {
            WeightForm::Ternary => mma_tile::words(n, k),
            WeightForm::Bf16 => n * k / 2,
        };
        Ok(Self {
            kind,
            values: space.alloc(Use::Weights, "the weights", words)?,
            n,
            k,
            order,
            scales: [0.0; 3],
            starts: [u32::MAX; 2],
        })
    }

    /// Uploads the canonical words and converts them on the device.
    fn set(&mut self, stream: &Stream, staging: &DeviceBuffer<u32>, parts: &TernaryParts<'_>) -> Result<()> {
        let rows: usize = parts.segments.iter().map(|s| s.0).sum();
        if (parts.n, parts.k) != (self.n, self.k)
            || parts.words.len() != self.n * self.k / 16
            || rows != self.n
            || !(1..=3).contains(&parts.segments.len())
        {
            return Err(Error::Request(format!(
                "a matrix of shape [{}, {}] with {} words and {rows} scaled rows where [{}, {}] was expected",
                parts.n,
                parts.k,
                parts.words.len(),
                self.n,
                self.k
            )));
        }
        let mut start = 0;
        for (i, &(rows, scale)) in parts.segments.iter().enumerate() {
            self.scales[i] = scale;
            if i > 0 {
                self.starts[i - 1] = start;
            }
            start += rows as u32;
        }
        stream.upload(staging, 0, parts.words)?;
        // The words were checked to be of this shape and fit the staging buffer, the values were allocated for it, and both
        // outlive the work: it is waited for.
        match self.kind {
            WeightForm::Ternary => {
                let repack = Repack {
                    words: staging.global(),
                    tiles: self.values.global(),
                    n: self.n as u32,
                    k: self.k as u32,
                    paired: (self.order == RowOrder::Paired).into(),
                };
                // SAFETY: as just said.
                unsafe { stream.launch(&repack, repack.launch())? };
            }
            WeightForm::Bf16 => {
                let dequantize = Dequantize {
                    words: staging.global(),
                    w: self.values.global(),
                    n: self.n as u32,
                    k: self.k as u32,
                    row_b: self.starts[0],
                    row_c: self.starts[1],
                    scale_a: self.scales[0],
                    scale_b: self.scales[1],
                    scale_c: self.scales[2],
                };
                // SAFETY: as just said.
                unsafe { stream.launch(&dequantize, dequantize.launch())? };
            }
        }
        stream.synchronize()
    }
}

impl Layer {
    pub(super) fn new(space: &Space<'_>, model: &Architecture) -> Result<Self> {
        let (d_q, d_kv) = (model.dims.d_q(), model.dims.d_kv());
        let norm = |n: usize| space.alloc(Use::Weights, "norms", n);
        let sub_norm = |n: usize| {
            if model.sub_norms {
                norm(n).map(Some)
            } else {
                Ok(None)
            }
        };
        Ok(Self {
            attn_norm: norm(model.dims.d_model)?,
            ffn_norm: norm(model.dims.d_model)?,
            attn_sub_norm: sub_norm(d_q)?,
            ffn_sub_norm: sub_norm(model.dims.d_ffn)?,
            qkv: Matrix::new(
                space,
                model.weights,
                d_q + 2 * d_kv,
                model.dims.d_model,
                RowOrder::Plain,
            )?,
            o: Matrix::new(space, model.weights, model.dims.d_model, d_q, RowOrder::Plain)?,
            gate_up: Matrix::new(
                space,
                model.weights,
                2 * model.dims.d_ffn,
                model.dims.d_model,
                RowOrder::Paired,
            )?,
            down: Matrix::new(
                space,
                model.weights,
                model.dims.d_model,
                model.dims.d_ffn,
                RowOrder::Plain,
            )?,
        })
    }
}

impl Engine {
    /// A buffer that [`Engine::set_layer`] uploads through, large enough for every matrix.
    ///
    /// # Errors
    /// When the device is full.
    pub fn staging(&self) -> Result<DeviceBuffer<u32>> {
        let largest = self.buffers.layers.first().map_or(0, |l| {
            [&l.qkv, &l.o, &l.gate_up, &l.down]
                .iter()
                .map(|m| m.n * m.k / 16)
                .max()
                .unwrap_or(0)
        });
        self.gpu().alloc("loading weights", largest)
    }

    /// Uploads layer `index`.
    ///
    /// # Errors
    /// When a part does not have the shape the engine was made for, or the device fails.
    pub fn set_layer(
        &mut self,
        index: usize,
        parts: &LayerParts<'_>,
        staging: &DeviceBuffer<u32>,
    ) -> Result<()> {
        let n_layers = self.buffers.layers.len();
        let Some(layer) = self.buffers.layers.get_mut(index) else {
            return Err(Error::Request(format!("layer {index} of {n_layers}")));
        };
        let stream = &self.stream;
        upload_norm(stream, &layer.attn_norm, parts.attn_norm)?;
        upload_norm(stream, &layer.ffn_norm, parts.ffn_norm)?;
        for (buffer, norm) in [
            (&layer.attn_sub_norm, parts.attn_sub_norm),
            (&layer.ffn_sub_norm, parts.ffn_sub_norm),
        ] {
            match (buffer, norm) {
                (Some(buffer), Some(norm)) => upload_norm(stream, buffer, norm)?,
                (None, None) => {}
                _ => {
                    return Err(Error::Request(format!(
                        "layer {index} has other sub-norms than the model"
                    )));
                }
            }
        }
        layer.qkv.set(stream, staging, &parts.qkv)?;
        layer.o.set(stream, staging, &parts.o)?;
        layer.gate_up.set(stream, staging, &parts.gate_up)?;
        layer.down.set(stream, staging, &parts.down)
    }

    /// Uploads the norm before the output head, (d_model).
    ///
    /// # Errors
    /// When it has another length, or the device fails.
    pub fn set_final_norm(&mut self, norm: &[f32]) -> Result<()> {
        upload_norm(&self.stream, &self.buffers.final_norm, norm)
    }
}

fn upload_norm(stream: &Stream, buffer: &DeviceBuffer<f32>, norm: &[f32]) -> Result<()> {
    if norm.len() != buffer.len() {
        return Err(Error::Request(format!(
            "a norm of {} weights where {} were expected",
            norm.len(),
            buffer.len()
        )));
    }
    stream.upload(buffer, 0, norm)
}
