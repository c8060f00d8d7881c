//! Linear layers: of one token, with norm and quantization in the kernel; of many, with a kernel for those before it.

use super::weights::Matrix;
use super::{Engine, WeightKind, launch};
use crate::error::Result;
use bitnet_kernels::decode_linear;
use bitnet_kernels::quantize_rows::{self, QuantizeRows};
use bitnet_kernels::{Global, bit_gemm};

/// A linear layer's epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Epilogue {
    Store,
    Add,
    Gated,
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
        let bits = self.gpu().multiplies_bits();
        let grid = decode_linear::launch(*n, *k, bits);
        macro_rules! run {
            ($Bits:ident, $Bytes:ident) => {
                if bits { run!($Bits) } else { run!($Bytes) }
            };
            ($Params:ident) => {
                // SAFETY: the buffers have the shapes of the model; the kernel waits before it reads what others wrote.
                unsafe {
                    launch(
                        &self.stream,
                        &decode_linear::$Params {
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
                        },
                        grid,
                    )
                }
            };
        }
        match (linear.epilogue, decode_linear::tiles_per_warp(*k)) {
            (Epilogue::Store, 2) => run!(DecodeStoreK2, DecodeStoreK2Bytes),
            (Epilogue::Store, 3) => run!(DecodeStoreK3, DecodeStoreK3Bytes),
            (Epilogue::Store, _) => run!(DecodeStoreK4, DecodeStoreK4Bytes),
            (Epilogue::Add, 2) => run!(DecodeAddK2, DecodeAddK2Bytes),
            (Epilogue::Add, 3) => run!(DecodeAddK3, DecodeAddK3Bytes),
            (Epilogue::Add, _) => run!(DecodeAddK4, DecodeAddK4Bytes),
            (Epilogue::Gated, 2) => run!(DecodeGatedK2, DecodeGatedK2Bytes),
            (Epilogue::Gated, 3) => run!(DecodeGatedK3, DecodeGatedK3Bytes),
            (Epilogue::Gated, _) => run!(DecodeGatedK4, DecodeGatedK4Bytes),
        }
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
        let plan = bit_gemm::Plan::new(*n, *k, self.batch);
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
        use bit_gemm::Shape::{Narrow8, Narrow32, Wide64, Wide128};
        match (linear.epilogue, plan.shape) {
            (Epilogue::Store, Wide128) => run!(WideStore128),
            (Epilogue::Store, Wide64) => run!(WideStore64),
            (Epilogue::Store, Narrow32) => run!(NarrowStore32),
            (Epilogue::Store, Narrow8) => run!(NarrowStore8),
            (Epilogue::Add, Wide128) => run!(WideAdd128),
            (Epilogue::Add, Wide64) => run!(WideAdd64),
            (Epilogue::Add, Narrow32) => run!(NarrowAdd32),
            (Epilogue::Add, Narrow8) => run!(NarrowAdd8),
            (Epilogue::Gated, Wide128) => run!(WideGated128),
            (Epilogue::Gated, Wide64) => run!(WideGated64),
            (Epilogue::Gated, Narrow32) => run!(NarrowGated32),
            (Epilogue::Gated, Narrow8) => run!(NarrowGated8),
        }
    }
}
