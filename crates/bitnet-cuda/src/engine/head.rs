//! The output head: logits of rows of the batch.

use super::dense::Product;
use super::space::{Space, Use};
use super::{Dims, Engine, HeadKind, launch};
use crate::error::{Error, Result};
use crate::memory::{DeviceBuffer, SharedWords};
use bitnet_kernels::dense_gemv::Int8Gemv;
use bitnet_kernels::int8_head::{Int8Columns, Int8Rows};
use bitnet_kernels::{Global, bf16_gemm};
use std::sync::atomic::Ordering;

/// Where the embedding is: (vocab, d_model) bfloat16, two a word.
#[derive(Debug)]
pub(super) enum Embedding {
    Device(DeviceBuffer<u32>),
    Host(SharedWords),
}

impl Embedding {
    pub(super) fn new(space: &Space<'_>, dims: &Dims) -> Result<Self> {
        let words = dims.vocab * dims.d_model / 2;
        Ok(match dims.head {
            HeadKind::Int8 => Self::Host(space.alloc_shared(words)?),
            HeadKind::Embedding | HeadKind::Own => {
                Self::Device(space.alloc(Use::Weights, "the embedding", words)?)
            }
        })
    }

    pub(super) fn global(&self) -> Global<u32> {
        match self {
            Self::Device(words) => words.global(),
            Self::Host(words) => words.global(),
        }
    }
}

/// The output head.
#[derive(Debug)]
pub(super) enum Head {
    /// The embedding, which is on the device.
    Embedding,
    /// (vocab, d_model) bfloat16, two a word.
    Own(DeviceBuffer<u32>),
    /// (vocab, d_model) i8, four a word, and what a unit of each row is worth.
    Int8 {
        rows: DeviceBuffer<u32>,
        scales: DeviceBuffer<f32>,
    },
}

impl Head {
    pub(super) fn new(space: &Space<'_>, dims: &Dims) -> Result<Self> {
        const WHAT: &str = "the output head";
        let elements = dims.vocab * dims.d_model;
        Ok(match dims.head {
            HeadKind::Embedding => Self::Embedding,
            HeadKind::Own => Self::Own(space.alloc(Use::Weights, WHAT, elements / 2)?),
            HeadKind::Int8 => Self::Int8 {
                rows: space.alloc(Use::Weights, WHAT, elements / 4)?,
                scales: space.alloc(Use::Weights, WHAT, dims.vocab)?,
            },
        })
    }
}

impl Engine {
    /// Writes words of the embedding, two bfloat16 each, from word `start`.
    ///
    /// # Errors
    /// When they do not fit, or the device fails.
    pub fn set_embedding(&mut self, start: usize, words: &[u32]) -> Result<()> {
        match &self.buffers.embedding {
            Embedding::Device(buffer) => self.stream.upload(buffer, start, words),
            Embedding::Host(all) => {
                let place = all.get(start..start.saturating_add(words.len()));
                let place = place.ok_or(Error::Range {
                    what: "copying the embedding",
                    start,
                    end: start.saturating_add(words.len()),
                    len: all.len(),
                })?;
                for (place, &word) in place.iter().zip(words) {
                    place.store(word, Ordering::Relaxed);
                }
                Ok(())
            }
        }
    }

    /// Uploads words of the output head, as [`Engine::set_embedding`]; of a head of 8 bits whole rows.
    ///
    /// # Errors
    /// When the head is the embedding, the words do not fit, or the device fails.
    pub fn set_head(&mut self, start: usize, words: &[u32]) -> Result<()> {
        match &self.buffers.head {
            Head::Embedding => Err(Error::Request("the output head is the embedding".to_owned())),
            Head::Own(head) => self.stream.upload(head, start, words),
            Head::Int8 { rows, scales } => {
                let per_row = self.dims.d_model / 2;
                let (first, count) = (start / per_row, words.len() / per_row);
                let is_whole = start.is_multiple_of(per_row) && words.len().is_multiple_of(per_row);
                if !is_whole || first + count > self.dims.vocab {
                    return Err(Error::Request(format!(
                        "{} words of the output head from word {start}, where whole rows of {per_row} fit, {} of them",
                        words.len(),
                        self.dims.vocab
                    )));
                }
                if count == 0 {
                    return Ok(());
                }
                let staging = self.stream.upload_new("loading weights", words)?;
                let quantize = Int8Rows {
                    w: staging.global(),
                    q: rows.global_at(first * per_row / 2)?,
                    scales: scales.global_at(first)?,
                    k: self.dims.d_model as u32,
                };
                // SAFETY: the rows were compared with those of the buffers, which outlive the work: it is waited for.
                unsafe { self.stream.launch(&quantize, Int8Rows::launch(count as u32))? };
                self.stream.synchronize()
            }
        }
    }

    /// Final norm and output head for `rows` rows of the batch from `first`, as many as the logits buffer has at most.
    pub(super) fn head(&self, first: usize, rows: usize) -> Result<()> {
        let x = self
            .buffers
            .scratch
            .residual
            .global_at(first * self.dims.d_model)?;
        let w = match &self.buffers.head {
            Head::Embedding => self.buffers.embedding.global(),
            Head::Own(head) => head.global(),
            Head::Int8 { rows: w, scales } => return self.int8_head(x, rows, w, scales),
        };
        let (d, s) = (&self.dims, &self.buffers.scratch);
        let at_once = bf16_gemm::MAX_COLS as usize;
        for start in (0..rows).step_by(at_once) {
            let product = Product {
                w,
                x: x.offset(start * d.d_model),
                norm: self.buffers.final_norm.global(),
                eps: d.eps,
                y: s.logits.global().offset(start * d.vocab),
                n: d.vocab,
                k: d.d_model,
            };
            // SAFETY: the rows lie in the residual stream and the logits buffer has as many.
            unsafe { self.product(&product, at_once.min(rows - start))? };
        }
        Ok(())
    }

    /// Bytes of weights that the output head reads.
    pub(super) fn head_bytes(&self) -> u64 {
        match &self.buffers.head {
            Head::Embedding => (self.dims.vocab * self.dims.d_model * 2) as u64,
            Head::Own(head) => head.size_bytes(),
            Head::Int8 { rows, scales } => rows.size_bytes() + scales.size_bytes(),
        }
    }

    fn int8_head(
        &self,
        x: Global<f32>,
        rows: usize,
        w: &DeviceBuffer<u32>,
        scales: &DeviceBuffer<f32>,
    ) -> Result<()> {
        let (d, s) = (&self.dims, &self.buffers.scratch);
        let columns = Int8Columns {
            x,
            norm: self.buffers.final_norm.global(),
            terms: s.terms.global(),
            unit: s.term_unit.global(),
            k: d.d_model as u32,
            largest: Int8Columns::largest(d.d_model),
            eps: d.eps,
        };
        // SAFETY: the rows lie in the residual stream; the terms have room for as many as the logits buffer has.
        unsafe { launch(&self.stream, &columns, Int8Columns::launch(rows as u32))? };
        let head = Int8Gemv {
            w: w.global(),
            scales: scales.global(),
            terms: s.terms.global(),
            unit: s.term_unit.global(),
            y: s.logits.global(),
            n: d.vocab as u32,
            k: d.d_model as u32,
            cols: rows as u32,
        };
        // SAFETY: as above.
        unsafe { launch(&self.stream, &head, head.launch(self.gpu().machine())) }
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
            let run = (1..self.buffers.scratch.logit_rows)
                .take_while(|i| rows.get(done + i) == Some(&(first + i)))
                .count()
                + 1;
            self.head(first, run)?;
            self.stream.download(
                &self.buffers.scratch.logits,
                0,
                &mut out[done * vocab..(done + run) * vocab],
            )?;
            done += run;
        }
        Ok(())
    }
}
