//! Weights on the device, and how they get there.

use super::space::{Space, Use};
use super::{Architecture, Engine, Inputs};
use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::stream::Stream;
use bitnet_kernels::dense::Dequantize;
use bitnet_kernels::repack::Repack;
use bitnet_layout::WeightForm;
use bitnet_layout::mma_tile::{self, RowOrder};
use bitnet_layout::words::CODES_PER_WORD;

/// A ternary matrix in the canonical layout, of up to three projections stacked by rows.
#[derive(Clone, Copy, Debug)]
pub struct TernaryParts<'a> {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// `n` times the words of `k` columns.
    pub words: &'a [u32],
    /// Each projection.
    pub segments: &'a [SegmentParts<'a>],
}

/// A projection of a ternary matrix.
#[derive(Clone, Copy, Debug)]
pub struct SegmentParts<'a> {
    /// Rows.
    pub rows: usize,
    /// What a ternary unit is worth.
    pub scale: f32,
    /// Norm of its own input, (k), where the model has such norms.
    pub input_norm: Option<&'a [f32]>,
}

/// The weights of a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerParts<'a> {
    /// Norm before attention, (d_model).
    pub attn_norm: &'a [f32],
    /// Norm before the feed-forward block, (d_model).
    pub ffn_norm: &'a [f32],
    /// Norm of each head of queries, (head_dim).
    pub q_norm: Option<&'a [f32]>,
    /// Norm of each head of keys, (head_dim).
    pub k_norm: Option<&'a [f32]>,
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

/// How a matrix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Tiles of codes, which multiply codes of activations.
    Tiles,
    /// Rows of bfloat16, scales included.
    Scaled,
    /// Rows of -1, 0 and 1 in bfloat16.
    Units,
}

impl Form {
    /// That of a model's linear layers.
    pub(super) const fn of(model: &Architecture) -> Self {
        match (model.weights, model.inputs) {
            (WeightForm::Bf16, _) => Self::Scaled,
            (WeightForm::Ternary, Inputs::Int8) => Self::Tiles,
            (WeightForm::Ternary, Inputs::F32) => Self::Units,
        }
    }
}

/// A matrix, of up to three projections with a scale each.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) form: Form,
    pub(super) values: DeviceBuffer<u32>,
    pub(super) n: usize,
    pub(super) k: usize,
    order: RowOrder,
    pub(super) scales: [f32; 3],
    /// First rows of the second and third scale.
    pub(super) starts: [u32; 2],
}

/// A projection that norms its layer's input in its own way.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) matrix: Matrix,
    /// (k).
    pub(super) norm: DeviceBuffer<f32>,
    /// Where its outputs stand in a row of the layer's.
    pub(super) first: usize,
}

/// The weights of a linear layer.
#[derive(Debug)]
pub(super) enum Weights {
    /// All projections stacked by rows.
    Together(Matrix),
    /// Each with a norm of its own.
    Apart(Vec<Projection>),
}

/// The weights of a layer on the device.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn_norm: DeviceBuffer<f32>,
    pub(super) ffn_norm: DeviceBuffer<f32>,
    pub(super) q_norm: Option<DeviceBuffer<f32>>,
    pub(super) k_norm: Option<DeviceBuffer<f32>>,
    pub(super) attn_sub_norm: Option<DeviceBuffer<f32>>,
    pub(super) ffn_sub_norm: Option<DeviceBuffer<f32>>,
    pub(super) qkv: Weights,
    pub(super) o: Weights,
    pub(super) gate_up: Weights,
    pub(super) down: Weights,
}

impl Matrix {
    fn new(space: &Space<'_>, form: Form, n: usize, k: usize, order: RowOrder) -> Result<Self> {
        let words = match form {
            Form::Tiles => mma_tile::words(n, k),
            Form::Scaled | Form::Units => n * k / 2,
        };
        Ok(Self {
            form,
            values: space.alloc(Use::Weights, "the weights", words)?,
            n,
            k,
            order,
            scales: [0.0; 3],
            starts: [u32::MAX; 2],
        })
    }

    /// First row, rows and scale of each projection.
    pub(super) fn segments(&self) -> impl Iterator<Item = (usize, usize, f32)> {
        let n = self.n as u32;
        let first = [0, self.starts[0], self.starts[1]].map(|row| row.min(n) as usize);
        let end = [first[1], first[2], self.n];
        (0..3)
            .map(move |i| (first[i], end[i] - first[i], self.scales[i]))
            .filter(|(_, rows, _)| *rows > 0)
    }

    /// Uploads the canonical words and converts them on the device.
    fn set(
        &mut self,
        stream: &Stream,
        staging: &DeviceBuffer<u32>,
        words: &[u32],
        segments: &[SegmentParts<'_>],
    ) -> Result<()> {
        let mut start = 0;
        for (i, segment) in segments.iter().enumerate() {
            self.scales[i] = segment.scale;
            if i > 0 {
                self.starts[i - 1] = start;
            }
            start += segment.rows as u32;
        }
        stream.upload(staging, 0, words)?;
        let whole = self.k.next_multiple_of(CODES_PER_WORD) as u32;
        // The words were checked to be of this shape and fit the staging buffer, the values were allocated for it, and both
        // outlive the work: it is waited for.
        match self.form {
            Form::Tiles => {
                let repack = Repack {
                    words: staging.global(),
                    tiles: self.values.global(),
                    n: self.n as u32,
                    k: whole,
                    paired: (self.order == RowOrder::Paired).into(),
                };
                // SAFETY: as just said.
                unsafe { stream.launch(&repack, repack.launch())? };
            }
            Form::Scaled | Form::Units => {
                let [scale_a, scale_b, scale_c] = match self.form {
                    Form::Scaled => self.scales,
                    _ => [1.0; 3],
                };
                let dequantize = Dequantize {
                    words: staging.global(),
                    w: self.values.global(),
                    n: self.n as u32,
                    k: whole,
                    row_b: self.starts[0],
                    row_c: self.starts[1],
                    scale_a,
                    scale_b,
                    scale_c,
                };
                // SAFETY: as just said; columns of these are whole words.
                unsafe { stream.launch(&dequantize, dequantize.launch())? };
            }
        }
        stream.synchronize()
    }
}

impl Weights {
    /// Of projections of so many rows each.
    pub(super) fn new(
        space: &Space<'_>,
        model: &Architecture,
        rows: &[usize],
        k: usize,
        order: RowOrder,
    ) -> Result<Self> {
        let form = Form::of(model);
        if model.linear_norm_eps.is_none() {
            return Matrix::new(space, form, rows.iter().sum(), k, order).map(Self::Together);
        }
        let mut first = 0;
        let mut apart = Vec::with_capacity(rows.len());
        for &n in rows {
            apart.push(Projection {
                matrix: Matrix::new(space, form, n, k, RowOrder::Plain)?,
                norm: space.alloc(Use::Weights, "norms", k)?,
                first,
            });
            first += n;
        }
        Ok(Self::Apart(apart))
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let (one, apart) = match self {
            Self::Together(matrix) => (Some(matrix), &[][..]),
            Self::Apart(apart) => (None, &apart[..]),
        };
        one.into_iter()
            .chain(apart.iter().map(|projection| &projection.matrix))
    }

    /// Outputs.
    pub(super) fn n(&self) -> usize {
        self.matrices().map(|matrix| matrix.n).sum()
    }

    /// Columns.
    pub(super) fn k(&self) -> usize {
        self.matrices().next().map_or(0, |matrix| matrix.k)
    }

    /// Bytes of the matrices.
    pub(super) fn size_bytes(&self) -> u64 {
        self.matrices().map(|matrix| matrix.values.size_bytes()).sum()
    }

    /// Canonical words.
    fn words(&self) -> usize {
        self.n() * self.k().div_ceil(CODES_PER_WORD)
    }

    /// Uploads the matrices.
    pub(super) fn set(
        &mut self,
        stream: &Stream,
        staging: &DeviceBuffer<u32>,
        parts: &TernaryParts<'_>,
    ) -> Result<()> {
        let (n, k) = (self.n(), self.k());
        let rows: usize = parts.segments.iter().map(|s| s.rows).sum();
        if parts.n != n
            || parts.k != k.next_multiple_of(CODES_PER_WORD)
            || parts.words.len() != self.words()
            || rows != n
            || !(1..=3).contains(&parts.segments.len())
        {
            return Err(Error::Request(format!(
                "a matrix of shape [{}, {}] with {} words and {rows} scaled rows where [{n}, {k}] was expected",
                parts.n,
                parts.k,
                parts.words.len(),
            )));
        }
        let apart = match self {
            Self::Together(matrix) if parts.segments.iter().all(|s| s.input_norm.is_none()) => {
                return matrix.set(stream, staging, parts.words, parts.segments);
            }
            Self::Apart(apart) if apart.len() == parts.segments.len() => apart,
            Self::Together(_) | Self::Apart(_) => {
                return Err(Error::Request(format!(
                    "{} projections whose norms are other than the model's",
                    parts.segments.len()
                )));
            }
        };
        let mut words = parts.words;
        for (projection, segment) in apart.iter_mut().zip(parts.segments) {
            let matrix = &mut projection.matrix;
            let own = matrix.n * matrix.k.div_ceil(CODES_PER_WORD);
            let (Some(norm), true, Some((own, rest))) = (
                segment.input_norm,
                segment.rows == matrix.n,
                words.split_at_checked(own),
            ) else {
                return Err(Error::Request(format!(
                    "a projection of {} rows where {} with a norm of their input were expected",
                    segment.rows, matrix.n
                )));
            };
            upload_norm(stream, &projection.norm, norm)?;
            matrix.set(stream, staging, own, std::slice::from_ref(segment))?;
            words = rest;
        }
        Ok(())
    }
}

impl Layer {
    pub(super) fn new(space: &Space<'_>, model: &Architecture) -> Result<Self> {
        let (d, d_q, d_kv) = (&model.dims, model.dims.d_q(), model.dims.d_kv());
        let norm = |n: usize| space.alloc(Use::Weights, "norms", n);
        let norm_if = |is_there: bool, n: usize| {
            if is_there { norm(n).map(Some) } else { Ok(None) }
        };
        let weights = |rows: &[usize], k, order| Weights::new(space, model, rows, k, order);
        Ok(Self {
            attn_norm: norm(d.d_model)?,
            ffn_norm: norm(d.d_model)?,
            q_norm: norm_if(model.qk_norms, d.head_dim)?,
            k_norm: norm_if(model.qk_norms, d.head_dim)?,
            attn_sub_norm: norm_if(model.sub_norms, d_q)?,
            ffn_sub_norm: norm_if(model.sub_norms, d.d_ffn)?,
            qkv: weights(&[d_q, d_kv, d_kv], d.d_model, RowOrder::Plain)?,
            o: weights(&[d.d_model], d_q, RowOrder::Plain)?,
            gate_up: weights(&[d.d_ffn; 2], d.d_model, RowOrder::Paired)?,
            down: weights(&[d.d_model], d.d_ffn, RowOrder::Plain)?,
        })
    }
}

impl Engine {
    /// A buffer that [`Engine::set_layer`] uploads through, large enough for every matrix.
    ///
    /// # Errors
    /// When the device is full.
    pub fn staging(&self) -> Result<DeviceBuffer<u32>> {
        let of_layers = (self.buffers.layers.first())
            .map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down])
            .into_iter()
            .flatten();
        let largest = of_layers
            .chain(self.buffers.head.ternary())
            .map(Weights::words)
            .max();
        self.gpu().alloc("loading weights", largest.unwrap_or(0))
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
            (&layer.q_norm, parts.q_norm),
            (&layer.k_norm, parts.k_norm),
            (&layer.attn_sub_norm, parts.attn_sub_norm),
            (&layer.ffn_sub_norm, parts.ffn_sub_norm),
        ] {
            match (buffer, norm) {
                (Some(buffer), Some(norm)) => upload_norm(stream, buffer, norm)?,
                (None, None) => {}
                _ => {
                    return Err(Error::Request(format!(
                        "layer {index} has other norms than the model"
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
