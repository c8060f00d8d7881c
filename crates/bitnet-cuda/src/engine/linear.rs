//! Linear layers: of one token or a few, with norm and quantization in the kernel; of many, with a kernel for those before it.

use super::shares::Share;
use super::weights::{Form, Matrix, Projection, Weights};
use super::{Engine, launch};
use crate::error::{Error, Result};
use crate::layer::{launch_layer, takes_few};
use crate::stream::Dependent;
use bitnet_kernels::bit_gemm::{self, BitGemm};
use bitnet_kernels::decode_linear::{DecodeLinear, Epilogue};
use bitnet_kernels::dense::GateRows;
use bitnet_kernels::quantize_rows::{self, QuantizeRows};
use bitnet_kernels::rows::{NormRows, ScaleRows};
use bitnet_kernels::{Global, Kernel, Launch, Use};

/// Launches the kernel that is found for the parameters in clusters of so many blocks.
struct InClusters<'a>(Dependent<'a>, u32);

impl Use for InClusters<'_> {
    type Output = Result<()>;

    fn of<K: Kernel>(self, kernel: K, launch: Launch) -> Result<()> {
        self.0.launch(&kernel, launch, |config| config.cluster(self.1))
    }
}

/// A linear layer, or the product of one of its matrices: input and output.
pub(super) struct Linear<'a, W = Weights> {
    pub(super) weights: &'a W,
    pub(super) epilogue: Epilogue,
    /// (rows, k).
    pub(super) x: Global<f32>,
    pub(super) norm: Global<f32>,
    /// Negative where there is no norm.
    pub(super) eps: f32,
    /// (rows, n); gated, (rows, n / 2).
    pub(super) y: Global<f32>,
    pub(super) share: Share<'a>,
    /// Rows of tiles of a block, of a single token.
    pub(super) tile_rows: u32,
}

impl<W> Linear<'_, W> {
    /// The same of a matrix.
    const fn of<'m>(&'m self, weights: &'m Matrix) -> Linear<'m, Matrix> {
        Linear {
            weights,
            epilogue: self.epilogue,
            x: self.x,
            norm: self.norm,
            eps: self.eps,
            y: self.y,
            share: self.share,
            tile_rows: self.tile_rows,
        }
    }
}

impl Engine {
    pub(super) fn linear(&self, linear: &Linear<'_>) -> Result<()> {
        match linear.weights {
            Weights::Together(matrix) => self.linear_together(&linear.of(matrix)),
            Weights::Apart(projections) => self.linear_apart(linear, projections),
        }
    }

    fn linear_together(&self, linear: &Linear<'_, Matrix>) -> Result<()> {
        let (weights, rows) = (linear.weights, linear.share.rows);
        let is_few = || rows == 1 || takes_few(self.gpu(), linear.epilogue, weights.k, rows);
        match weights.form {
            Form::Scaled | Form::Units => self.linear_dense(linear),
            Form::Tiles if is_few() => self.linear_of_few(linear),
            Form::Tiles => self.linear_of_many(linear),
        }
    }

    /// A layer whose projections norm its input each in its own way, after the layer's norm where there is one.
    fn linear_apart(&self, linear: &Linear<'_>, projections: &[Projection]) -> Result<()> {
        let (s, rows) = (&self.buffers.scratch, linear.share.rows);
        let (n, k) = (linear.weights.n(), linear.weights.k());
        let mut x = linear.x;
        if linear.eps >= 0.0 {
            let norm = NormRows {
                x,
                norm: linear.norm,
                y: s.normed.global(),
                rows: rows as u32,
                groups: 1,
                width: k as u32,
                x_stride: k as u32,
                y_stride: k as u32,
                eps: linear.eps,
            };
            // SAFETY: there is room for the widest input of every row.
            unsafe { launch(&self.stream, &norm, norm.launch())? };
            x = s.normed.global();
        }
        let part = |projection: &Projection, epilogue, y| {
            self.linear_together(&Linear {
                epilogue,
                x,
                norm: projection.norm.global(),
                eps: self.model.linear_norm_eps.unwrap_or(-1.0),
                y,
                ..linear.of(&projection.matrix)
            })
        };
        match (projections, linear.epilogue) {
            ([only], epilogue @ (Epilogue::Store | Epilogue::Add)) => part(only, epilogue, linear.y),
            ([gate, up], Epilogue::Gated) => {
                let width = gate.matrix.n;
                let (of_gate, of_up) = (s.apart.global(), s.apart.global().offset(rows * width));
                part(gate, Epilogue::Store, of_gate)?;
                part(up, Epilogue::Store, of_up)?;
                self.gate(of_gate, of_up, width, linear.y, rows, width)
            }
            (_, Epilogue::Store) => projections.iter().try_for_each(|projection| {
                let (to, width) = (linear.y.offset(projection.first), projection.matrix.n);
                if rows == 1 {
                    return part(projection, Epilogue::Store, to);
                }
                part(projection, Epilogue::Store, s.apart.global())?;
                self.scale(s.apart.global(), width, to, n, (rows, width), 1.0)
            }),
            (_, epilogue) => Err(Error::Request(format!(
                "{} projections apart, of a layer of {epilogue:?}",
                projections.len()
            ))),
        }
    }

    /// `y = activation(gate) up` in rows of `width`, those of gate and up `stride` apart.
    pub(super) fn gate(
        &self,
        gate: Global<f32>,
        up: Global<f32>,
        stride: usize,
        y: Global<f32>,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        let gate = GateRows {
            gate,
            up,
            y,
            rows: rows as u32,
            width: width as u32,
            stride: stride as u32,
            activation: self.model.activation as u32,
        };
        // SAFETY: A1 of `engine`: the buffers have a row for each token of the batch.
        unsafe { launch(&self.stream, &gate, gate.launch()) }
    }

    /// `y = scale x` in `rows` rows of `width`.
    pub(super) fn scale(
        &self,
        x: Global<f32>,
        x_stride: usize,
        y: Global<f32>,
        y_stride: usize,
        (rows, width): (usize, usize),
        scale: f32,
    ) -> Result<()> {
        let scale = ScaleRows {
            x,
            y,
            rows: rows as u32,
            width: width as u32,
            x_stride: x_stride as u32,
            y_stride: y_stride as u32,
            scale,
        };
        // SAFETY: A1 of `engine`: the buffers have a row for each token of the batch.
        unsafe { launch(&self.stream, &scale, scale.launch()) }
    }

    fn linear_of_few(&self, linear: &Linear<'_, Matrix>) -> Result<()> {
        let Matrix {
            values,
            n,
            k,
            scales,
            starts,
            ..
        } = linear.weights;
        let share = linear.share;
        let layer = DecodeLinear {
            w: values.global(),
            x: linear.x,
            norm: linear.norm,
            y: linear.y,
            n: *n as u32,
            k: *k as u32,
            cols: share.rows as u32,
            eps: linear.eps,
            activation: self.model.activation as u32,
            row_b: starts[0],
            row_c: starts[1],
            scale_a: scales[0],
            scale_b: scales[1],
            scale_c: scales[2],
        };
        // SAFETY: A1 and A6 of `engine`: the buffers have the shapes of the model; the kernel waits before it reads what others wrote.
        unsafe { launch_layer(share.stream, layer, linear.epilogue, linear.tile_rows) }
    }

    fn linear_of_many(&self, linear: &Linear<'_, Matrix>) -> Result<()> {
        let (
            Matrix {
                values,
                n,
                k,
                scales,
                starts,
                ..
            },
            s,
            share,
        ) = (linear.weights, &self.buffers.scratch, linear.share);
        // Shares have their codes as far apart as the widest rows would be, and no share is padded but the last.
        let codes = share.of(
            s.codes.global(),
            quantize_rows::words_per_row(self.model.dims.widest()),
        );
        let (unit, sum) = (share.of(s.unit.global(), 1), share.of(s.sum.global(), 1));
        let has_warpgroups = self.gpu().multiplies_by_warpgroups();
        let shape = bit_gemm::Shape::new(linear.epilogue, *n, *k, share.rows, has_warpgroups);
        let quantize = QuantizeRows {
            x: linear.x,
            norm: linear.norm,
            q: codes,
            unit,
            sum,
            k: *k as u32,
            eps: linear.eps,
            rows: share.rows as u32,
            order: shape.order() as u32,
        };
        // SAFETY: the buffers have a row for each token of the batch, as wide as the widest input.
        unsafe {
            launch(
                share.stream,
                &quantize,
                quantize_rows::launch(share.rows, *k, shape.order()),
            )?
        };
        let room = self.gpu().machine().shared_limit;
        let product = BitGemm {
            w: values.global(),
            x: codes,
            unit,
            sum,
            y: linear.y,
            n: *n as u32,
            k: *k as u32,
            cols: share.rows as u32,
            activation: self.model.activation as u32,
            row_b: starts[0],
            row_c: starts[1],
            scale_a: scales[0],
            scale_b: scales[1],
            scale_c: scales[2],
            slots: shape.slots(linear.epilogue, *k, room),
        };
        // SAFETY: as above.
        let run = unsafe { Dependent::on(share.stream) };
        product.with_kernel(
            (linear.epilogue, shape),
            InClusters(run, shape.cluster(product.slots)),
        )
    }
}
