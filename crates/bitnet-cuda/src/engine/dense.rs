//! Products of bfloat16 matrices: the output head, and all linear layers of a model that was loaded that way.

use super::linear::Linear;
use super::weights::{Form, Matrix};
use super::{Engine, launch};
use crate::error::Result;
use bitnet_kernels::Global;
use bitnet_kernels::bf16_gemm::{self, Bf16Gemm, SplitColumns};
use bitnet_kernels::decode_linear::Epilogue;
use bitnet_kernels::dense::AddRows;
use bitnet_kernels::dense_gemv::{self, Bf16Gemv};

/// `y[c] = W norm(x[c])` for rows c.
pub(super) struct Product {
    /// (n, k) bfloat16, two a word.
    pub(super) w: Global<u32>,
    /// (rows, k).
    pub(super) x: Global<f32>,
    /// (k).
    pub(super) norm: Global<f32>,
    /// Negative where there is no norm.
    pub(super) eps: f32,
    /// (rows, n).
    pub(super) y: Global<f32>,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Engine {
    /// A product of `rows` rows, 32 at most.
    ///
    /// # Safety
    /// The addresses have the shapes above and outlive the work, and every graph that records it.
    pub(super) unsafe fn product(&self, p: &Product, rows: usize) -> Result<()> {
        let (n, k, cols) = (p.n as u32, p.k as u32, rows as u32);
        let machine = self.gpu().machine();
        if cols <= Bf16Gemv::max_cols(p.k, machine.shared_limit) {
            let product = Bf16Gemv {
                w: p.w,
                x: p.x,
                norm: p.norm,
                y: p.y,
                n,
                k,
                cols,
                eps: p.eps,
            };
            // SAFETY: the caller's promise.
            return unsafe { launch(&self.stream, &product, product.launch(machine)) };
        }
        let s = &self.buffers.scratch;
        let split = SplitColumns {
            x: p.x,
            norm: p.norm,
            terms: s.terms.global(),
            inverse: s.term_unit.global(),
            k,
            cols,
            eps: p.eps,
        };
        // SAFETY: the caller's promise; the terms have room for 32 of the widest rows that this engine multiplies so.
        unsafe { launch(&self.stream, &split, split.launch())? };
        let product = Bf16Gemm {
            w: p.w,
            terms: s.terms.global(),
            inverse: s.term_unit.global(),
            y: p.y,
            n,
            k,
            cols,
            parts: dense_gemv::bf16_parts(p.k),
        };
        // SAFETY: as above.
        unsafe { launch(&self.stream, &product, Bf16Gemm::launch(p.n)) }
    }

    /// A product of a linear layer.
    pub(super) fn linear_dense(&self, linear: &Linear<'_, Matrix>) -> Result<()> {
        let (s, rows) = (&self.buffers.scratch, linear.share.rows);
        let (n, k) = (linear.weights.n, linear.weights.k);
        let to = match linear.epilogue {
            Epilogue::Store => linear.y,
            Epilogue::Add | Epilogue::Gated => s.product.global(),
        };
        let at_once = if rows <= dense_gemv::MAX_COLS as usize {
            rows
        } else {
            bf16_gemm::MAX_COLS as usize
        };
        for first in (0..rows).step_by(at_once) {
            let product = Product {
                w: linear.weights.values.global(),
                x: linear.x.offset(first * k),
                norm: linear.norm,
                eps: linear.eps,
                y: to.offset(first * n),
                n,
                k,
            };
            // SAFETY: input and output have a row for each token of the batch.
            unsafe { self.product(&product, at_once.min(rows - first))? };
        }
        if linear.weights.form == Form::Units {
            for (first, width, scale) in linear.weights.segments() {
                let columns = to.offset(first);
                self.scale(columns, n, columns, n, (rows, width), scale)?;
            }
        }
        match linear.epilogue {
            Epilogue::Store => Ok(()),
            Epilogue::Add => {
                let add = AddRows {
                    z: to,
                    y: linear.y,
                    len: (rows * n) as u32,
                };
                // SAFETY: as above; a row of the residual stream is a multiple of 32.
                unsafe { launch(&self.stream, &add, add.launch()) }
            }
            Epilogue::Gated => self.gate(to, to.offset(n / 2), n, linear.y, rows, n / 2),
        }
    }
}
