//! Linear layers: of one token, with norm and quantization in the kernel; of many, with a kernel for those before it.

use super::weights::Matrix;
use super::{Engine, WeightKind, launch};
use crate::error::Result;
use crate::stream::Stream;
use bitnet_kernels::decode_linear::{self, DecodeLinear, Epilogue, with_kernel};
use bitnet_kernels::quantize_rows::{self, QuantizeRows};
use bitnet_kernels::{Global, Kernel, Launch, bit_gemm};

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

/// Launches the kernel for a layer of one token.
struct OnStream<'a>(&'a Stream);

impl decode_linear::Use for OnStream<'_> {
    type Output = Result<()>;

    fn of<K: Kernel>(self, kernel: K, grid: Launch) -> Result<()> {
        // SAFETY: A1 and A6 of `engine`: the buffers have the shapes of the model, which `linear_of_one` gave; the kernel waits
        // before it reads what others wrote.
        unsafe { launch(self.0, &kernel, grid) }
    }
}

impl Engine {
    pub(super) fn linear(&self, linear: &Linear<'_>) -> Result<()> {
        match (linear.matrix.kind, self.batch) {
            (WeightKind::Bf16, _) => self.linear_dense(linear),
            (WeightKind::Ternary, 1) => self.linear_of_one(linear),
            (WeightKind::Ternary, _) => self.linear_of_many(linear),
        }
    }

    fn linear_of_one(&self, linear: &Linear<'_>) -> Result<()> {
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
            eps: linear.eps,
            activation: self.dims.activation as u32,
            row_b: starts[0],
            row_c: starts[1],
            scale_a: scales[0],
            scale_b: scales[1],
            scale_c: scales[2],
        };
        let (bits, run) = (self.gpu().multiplies_bits(), OnStream(&self.stream));
        with_kernel(layer, linear.epilogue, bits, linear.tile_rows, run)
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
        let plan = bit_gemm::Plan::new(*n, *k, self.batch, linear.epilogue == Epilogue::Gated);
        macro_rules! run {
            ($Params:ident) => {
                // SAFETY: as above.
                unsafe {
                    launch(
                        &self.stream,
                        &bit_gemm::$Params {
                            w: values.global(),
                            x: s.codes.global(),
                            unit: s.unit.global(),
                            sum: s.sum.global(),
                            y: linear.y,
                            n: *n as u32,
                            k: *k as u32,
                            cols: self.batch as u32,
                            activation: self.dims.activation as u32,
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
        use bit_gemm::Shape::{Mid16, Mid32, Narrow8, Narrow32, Wide64, Wide128};
        match (linear.epilogue, plan.shape) {
            (Epilogue::Store, Wide128) => run!(WideStore128),
            (Epilogue::Store, Wide64) => run!(WideStore64),
            (Epilogue::Store, Mid32) => run!(MidStore32),
            (Epilogue::Store, Mid16) => run!(MidStore16),
            (Epilogue::Store, Narrow32) => run!(NarrowStore32),
            (Epilogue::Store, Narrow8) => run!(NarrowStore8),
            (Epilogue::Add, Wide128) => run!(WideAdd128),
            (Epilogue::Add, Wide64) => run!(WideAdd64),
            (Epilogue::Add, Mid32) => run!(MidAdd32),
            (Epilogue::Add, Mid16) => run!(MidAdd16),
            (Epilogue::Add, Narrow32) => run!(NarrowAdd32),
            (Epilogue::Add, Narrow8) => run!(NarrowAdd8),
            (Epilogue::Gated, Wide128) => run!(WideGated128),
            (Epilogue::Gated, Wide64) => run!(WideGated64),
            (Epilogue::Gated, Mid32) => run!(MidGated32),
            (Epilogue::Gated, Mid16) => run!(MidGated16),
            (Epilogue::Gated, Narrow32) => run!(NarrowGated32),
            (Epilogue::Gated, Narrow8) => run!(NarrowGated8),
        }
    }
}
