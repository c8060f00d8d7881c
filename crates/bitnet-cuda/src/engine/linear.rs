//! Linear layers: of one token or a few, with norm and quantization in the kernel; of many, with a kernel for those before it.

use super::weights::Matrix;
use super::{Engine, launch};
use crate::error::Result;
use crate::layer::{launch_layer, takes_few};
use crate::stream::Dependent;
use bitnet_kernels::bit_gemm::{self, BitGemm};
use bitnet_kernels::decode_linear::{DecodeLinear, Epilogue};
use bitnet_kernels::quantize_rows::{self, QuantizeRows};
use bitnet_kernels::{Global, Kernel, Launch, Use};
use bitnet_layout::WeightForm;

/// Launches the kernel that is found for the parameters in clusters of so many blocks.
struct InClusters<'a>(Dependent<'a>, u32);

impl Use for InClusters<'_> {
    type Output = Result<()>;

    fn of<K: Kernel>(self, kernel: K, launch: Launch) -> Result<()> {
        self.0.launch(&kernel, launch, |config| config.cluster(self.1))
    }
}

/// The input and output of a linear layer.
pub(super) struct Linear<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) epilogue: Epilogue,
    pub(super) x: Global<f32>,
    pub(super) norm: Global<f32>,
    /// Negative where there is no norm.
    pub(super) eps: f32,
    pub(super) y: Global<f32>,
    /// Rows of tiles of a block, of a single token.
    pub(super) tile_rows: u32,
}

impl Engine {
    pub(super) fn linear(&self, linear: &Linear<'_>) -> Result<()> {
        let is_few = || {
            let k = linear.matrix.k;
            self.batch == 1 || takes_few(self.gpu(), linear.epilogue, k, self.batch)
        };
        match linear.matrix.kind {
            WeightForm::Bf16 => self.linear_dense(linear),
            WeightForm::Ternary if is_few() => self.linear_of_few(linear),
            WeightForm::Ternary => self.linear_of_many(linear),
        }
    }

    fn linear_of_few(&self, linear: &Linear<'_>) -> Result<()> {
        let Matrix {
            values,
            n,
            k,
            scales,
            starts,
            ..
        } = linear.matrix;
        let layer = DecodeLinear {
            w: values.global(),
            x: linear.x,
            norm: linear.norm,
            y: linear.y,
            n: *n as u32,
            k: *k as u32,
            cols: self.batch as u32,
            eps: linear.eps,
            activation: self.model.activation as u32,
            row_b: starts[0],
            row_c: starts[1],
            scale_a: scales[0],
            scale_b: scales[1],
            scale_c: scales[2],
        };
        // SAFETY: A1 and A6 of `engine`: the buffers have the shapes of the model; the kernel waits before it reads what others wrote.
        unsafe { launch_layer(&self.stream, layer, linear.epilogue, linear.tile_rows) }
    }

    fn linear_of_many(&self, linear: &Linear<'_>) -> Result<()> {
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
        ) = (linear.matrix, &self.buffers.scratch);
        let has_warpgroups = self.gpu().multiplies_by_warpgroups();
        let shape = bit_gemm::Shape::new(linear.epilogue, *n, *k, self.batch, has_warpgroups);
        let quantize = QuantizeRows {
            x: linear.x,
            norm: linear.norm,
            q: s.codes.global(),
            unit: s.unit.global(),
            sum: s.sum.global(),
            k: *k as u32,
            eps: linear.eps,
            rows: self.batch as u32,
            order: shape.order() as u32,
        };
        // SAFETY: the buffers have a row for each token of the batch, as wide as the widest input.
        unsafe {
            launch(
                &self.stream,
                &quantize,
                quantize_rows::launch(self.batch, *k, shape.order()),
            )?
        };
        let room = self.gpu().machine().shared_limit;
        let product = BitGemm {
            w: values.global(),
            x: s.codes.global(),
            unit: s.unit.global(),
            sum: s.sum.global(),
            y: linear.y,
            n: *n as u32,
            k: *k as u32,
            cols: self.batch as u32,
            activation: self.model.activation as u32,
            row_b: starts[0],
            row_c: starts[1],
            scale_a: scales[0],
            scale_b: scales[1],
            scale_c: scales[2],
            slots: shape.slots(linear.epilogue, *k, room),
        };
        // SAFETY: as above.
        let run = unsafe { Dependent::on(&self.stream) };
        product.with_kernel(
            (linear.epilogue, shape),
            InClusters(run, shape.cluster(product.slots)),
        )
    }
}
