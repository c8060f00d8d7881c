//! The output head: logits of rows of the batch.

use super::{Engine, launch};
use crate::error::{Error, Result};
use bitnet_kernels::bf16_gemm::{Bf16Gemm, SplitColumns};
use bitnet_kernels::bf16_gemv::{self, Bf16Gemv};

impl Engine {
    /// Final norm and output head for `rows` rows of the batch from `first`, as many as the logits buffer has at most.
    pub(super) fn head(&self, first: usize, rows: usize) -> Result<()> {
        let (d, s) = (&self.dims, &self.scratch);
        let w = self.head.as_ref().unwrap_or(&self.embedding).global();
        let x = s.residual.global_at(first * d.d_model)?;
        let (n, k, cols) = (d.vocab as u32, d.d_model as u32, rows as u32);
        if cols <= bf16_gemv::MAX_COLS {
            let head = Bf16Gemv {
                w,
                x,
                norm: self.final_norm.global(),
                y: s.logits.global(),
                n,
                k,
                cols,
                eps: d.eps,
            };
            // SAFETY: the rows lie in the residual stream and the logits buffer has as many.
            return unsafe { launch(&self.stream, &head, Bf16Gemv::launch(d.vocab, d.d_model)) };
        }
        let split = SplitColumns {
            x,
            norm: self.final_norm.global(),
            terms: s.terms.global(),
            inverse: s.inverse.global(),
            k,
            cols,
            eps: d.eps,
        };
        // SAFETY: as above; the terms are of this width, for the most columns.
        unsafe { launch(&self.stream, &split, split.launch())? };
        let head = Bf16Gemm {
            w,
            terms: s.terms.global(),
            inverse: s.inverse.global(),
            y: s.logits.global(),
            n,
            k,
            cols,
            parts: Bf16Gemm::parts(d.d_model),
        };
        // SAFETY: as above.
        unsafe { launch(&self.stream, &head, Bf16Gemm::launch(d.vocab)) }
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
            let run = (1..self.scratch.logit_rows)
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
}
