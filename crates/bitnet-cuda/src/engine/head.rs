//! The output head: logits of rows of the batch.

use super::copy::Int8Copy;
use super::dense::Product;
use super::linear::Linear;
use super::shares::Share;
use super::space::{Space, Use};
use super::weights::{TernaryParts, Weights};
use super::{Architecture, Engine, HeadKind, launch};
use crate::error::{Error, Result};
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::Dependent;
use bitnet_kernels::decode_linear::Epilogue;
use bitnet_kernels::dense_gemv::{self, Int8Gemv};
use bitnet_kernels::int8_gemm::{self, Int8Gemm};
use bitnet_kernels::int8_head::Int8Columns;
use bitnet_kernels::int8_hopper::{self, Int8Hopper, Width};
use bitnet_kernels::rows::NormRows;
use bitnet_kernels::{Global, bf16_gemm};
use bitnet_layout::mma_tile::RowOrder;
use std::sync::atomic::Ordering;

/// Rows up to which warpgroups multiply an 8-bit head no faster than warps do.
const FEW: usize = 16;

/// Where the embedding is: (vocab, `TableForm::stride`) bfloat16, two a word.
#[derive(Debug)]
pub(super) enum Embedding {
    Device(DeviceBuffer<u32>),
    Host(SharedWords),
}

impl Embedding {
    pub(super) fn new(space: &Space<'_>, model: &Architecture) -> Result<Self> {
        let words = model.dims.vocab * model.table.stride(model.dims.d_model) / 2;
        Ok(match model.head {
            HeadKind::Int8 => Self::Host(space.alloc_shared(words)?),
            HeadKind::None | HeadKind::Embedding | HeadKind::Own | HeadKind::Ternary => {
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
    None,
    /// The embedding, which is on the device.
    Embedding,
    /// (vocab, `TableForm::stride`) bfloat16, two a word.
    Own(DeviceBuffer<u32>),
    /// Rounded.
    Int8(Int8Copy),
    Ternary(Weights),
}

impl Head {
    pub(super) fn new(space: &Space<'_>, model: &Architecture) -> Result<Self> {
        const WHAT: &str = "the output head";
        let (vocab, d_model) = (model.dims.vocab, model.dims.d_model);
        let elements = vocab * model.table.stride(d_model);
        Ok(match model.head {
            HeadKind::None => Self::None,
            HeadKind::Embedding => Self::Embedding,
            HeadKind::Own => Self::Own(space.alloc(Use::Weights, WHAT, elements / 2)?),
            HeadKind::Int8 => Self::Int8(Int8Copy::new(space, model, WHAT)?),
            HeadKind::Ternary => {
                Self::Ternary(Weights::new(space, model, &[vocab], d_model, RowOrder::Plain)?)
            }
        })
    }

    /// That of a ternary one.
    pub(super) fn ternary(&self) -> Option<&Weights> {
        match self {
            Self::Ternary(weights) => Some(weights),
            Self::None | Self::Embedding | Self::Own(_) | Self::Int8(_) => None,
        }
    }
}

impl Engine {
    /// Writes words of the embedding, two bfloat16 each, from word `start`, rows being as [`super::TableForm`] says; whole rows of
    /// one that is a certified head.
    ///
    /// # Errors
    /// When they do not fit, or the device fails.
    pub fn set_embedding(&mut self, start: usize, words: &[u32]) -> Result<()> {
        match &self.buffers.embedding {
            Embedding::Device(buffer) => {
                self.stream.upload(buffer, start, words)?;
                match self.buffers.head {
                    Head::Embedding => self.copy_head(start, words.len()),
                    Head::None | Head::Own(_) | Head::Int8(_) | Head::Ternary(_) => Ok(()),
                }
            }
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

    /// Uploads words of the output head, as [`Engine::set_embedding`]; of one of 8 bits and of a certified one whole rows.
    ///
    /// # Errors
    /// When the head is the embedding, ternary or none, the words do not fit, or the device fails.
    pub fn set_head(&mut self, start: usize, words: &[u32]) -> Result<()> {
        match &self.buffers.head {
            Head::None | Head::Embedding | Head::Ternary(_) => Err(Error::Request(
                "the output head is not a matrix of its own in bfloat16".to_owned(),
            )),
            Head::Own(head) => {
                self.stream.upload(head, start, words)?;
                self.copy_head(start, words.len())
            }
            Head::Int8(copy) => {
                let (first, count) = copy.place(start, words.len())?;
                if count == 0 {
                    return Ok(());
                }
                let staging = self.stream.upload_new("loading weights", words)?;
                // SAFETY: `place` compared the rows with the matrix; the staging outlives the work, which is waited for.
                unsafe { copy.round(&self.stream, staging.global(), first, count)? };
                self.stream.synchronize()
            }
        }
    }

    /// Uploads a ternary output head, with the scale and the norm that it has, through a buffer that [`Engine::staging`] made.
    ///
    /// # Errors
    /// When the head is another, the matrix has another shape, or the device fails.
    pub fn set_ternary_head(&mut self, parts: &TernaryParts<'_>, staging: &DeviceBuffer<u32>) -> Result<()> {
        match &mut self.buffers.head {
            Head::Ternary(weights) => weights.set(&self.stream, staging, parts),
            Head::None | Head::Embedding | Head::Own(_) | Head::Int8(_) => {
                Err(Error::Request("the output head is not ternary".to_owned()))
            }
        }
    }

    /// Brings the copy of a certified head up to date for `len` words from word `start`, which were uploaded.
    fn copy_head(&self, start: usize, len: usize) -> Result<()> {
        let Some(certified) = &self.buffers.certified else {
            return Ok(());
        };
        let (first, count) = certified.copy.place(start, len)?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: `place` compared the rows with the matrix, which lives as long as the engine.
        unsafe { certified.copy_rows(&self.stream, self.head_rows(), first, count) }
    }

    /// The head as it was uploaded, in bfloat16; of another the embedding.
    pub(super) fn head_rows(&self) -> Global<u32> {
        match &self.buffers.head {
            Head::Own(head) => head.global(),
            Head::None | Head::Embedding | Head::Int8(_) | Head::Ternary(_) => {
                self.buffers.embedding.global()
            }
        }
    }

    /// Final norm and output head for `rows` rows of the batch from `first`, as many as the logits buffer has at most.
    pub(super) fn head(&self, first: usize, rows: usize) -> Result<()> {
        let x = self
            .buffers
            .scratch
            .residual
            .global_at(first * self.model.dims.d_model)?;
        let (d, s) = (&self.model.dims, &self.buffers.scratch);
        let norm = self.buffers.final_norm.global();
        match &self.buffers.head {
            Head::None => return Err(Error::Request("the model has no output head".to_owned())),
            Head::Int8(copy) => return self.int8_product(x, rows, copy),
            Head::Ternary(weights) => {
                return self.linear(&Linear {
                    weights,
                    epilogue: Epilogue::Store,
                    x,
                    norm,
                    eps: self.model.eps,
                    y: s.logits.global(),
                    share: Share { rows, ..self.whole() },
                    tile_rows: self.grids().qkv,
                });
            }
            Head::Embedding | Head::Own(_) => {}
        }
        let table = self.model.table;
        let at_once = bf16_gemm::MAX_COLS as usize;
        for start in (0..rows).step_by(at_once) {
            let (x, n_rows) = (x.offset(start * d.d_model), at_once.min(rows - start));
            let y = s.logits.global().offset(start * d.vocab);
            let plain = Product {
                w: self.head_rows(),
                x,
                norm,
                eps: self.model.eps,
                y,
                n: d.vocab,
                k: d.d_model,
            };
            let product = if table.is_plain(d.d_model) {
                plain
            } else {
                self.repeat(x, n_rows)?;
                Product {
                    x: s.repeated.global(),
                    norm: self.buffers.ones.global(),
                    eps: -1.0,
                    k: table.stride(d.d_model),
                    ..plain
                }
            };
            // SAFETY: the rows lie in the residual stream and the logits buffer has as many.
            unsafe { self.product(&product, n_rows)? };
        }
        Ok(())
    }

    /// Norms `rows` rows at `x`, at most as many as a product takes, and writes each as often as the head has terms: the product of all is
    /// the sum of their products.
    fn repeat(&self, x: Global<f32>, rows: usize) -> Result<()> {
        let (d_model, table) = (self.model.dims.d_model, self.model.table);
        for term in 0..table.terms {
            let norm = NormRows {
                x,
                norm: self.buffers.final_norm.global(),
                y: self.buffers.scratch.repeated.global().offset(term * d_model),
                rows: rows as u32,
                groups: 1,
                width: d_model as u32,
                x_stride: d_model as u32,
                y_stride: table.stride(d_model) as u32,
                eps: self.model.eps,
            };
            // SAFETY: the rows lie in the residual stream, and there is room for as many as a product takes.
            unsafe { launch(&self.stream, &norm, norm.launch())? };
        }
        Ok(())
    }

    /// Bytes of weights that the output head of a decode step reads, but for single rows.
    #[must_use]
    pub fn head_bytes(&self) -> u64 {
        let row = self.model.table.stride(self.model.dims.d_model);
        let whole = (self.model.dims.vocab * row * 2) as u64;
        match (&self.buffers.head, &self.buffers.certified) {
            (Head::None, _) => 0,
            (Head::Int8(copy), _) => copy.size_bytes(),
            (Head::Ternary(weights), _) => weights.size_bytes(),
            (_, Some(certified)) => certified.copy.size_bytes() + certified.row_bounds.size_bytes(),
            (Head::Embedding | Head::Own(_), None) => whole,
        }
    }

    /// Final norm of `rows` rows at `x`, and their products with a rounded head, as many as the logits buffer has at most.
    pub(super) fn int8_product(&self, x: Global<f32>, rows: usize, copy: &Int8Copy) -> Result<()> {
        let (d, s) = (&self.model.dims, &self.buffers.scratch);
        let machine = self.gpu().machine();
        let width = (rows > FEW && self.gpu().multiplies_by_warpgroups()).then(|| Width::new(rows));
        let columns = Int8Columns {
            x,
            norm: self.buffers.final_norm.global(),
            terms: s.terms.global(),
            unit: s.term_unit.global(),
            bounds: s.term_bounds.global(),
            cols: rows as u32,
            width: width.map_or(0, Width::columns),
            k: d.d_model as u32,
            largest: Int8Columns::largest(d.d_model),
            eps: self.model.eps,
        };
        // SAFETY: the rows lie in the residual stream; the terms have room for as many as the logits buffer has.
        unsafe { launch(&self.stream, &columns, columns.launch())? };
        if rows <= dense_gemv::MAX_COLS as usize {
            let product = Int8Gemv {
                w: copy.rows.global(),
                scales: copy.scales.global(),
                terms: s.terms.global(),
                unit: s.term_unit.global(),
                y: s.logits.global(),
                n: d.vocab as u32,
                k: d.d_model as u32,
                cols: rows as u32,
            };
            // SAFETY: as above.
            return unsafe { launch(&self.stream, &product, product.launch(machine)) };
        }
        if let Some(width) = width {
            let at_once = width.columns() as usize;
            let pass_words = int8_hopper::term_words(width.columns(), d.d_model);
            for (pass, start) in (0..rows).step_by(at_once).enumerate() {
                let product = Int8Hopper {
                    w: copy.rows.global(),
                    scales: copy.scales.global(),
                    terms: s.terms.global().offset(pass * pass_words),
                    unit: s.term_unit.global().offset(start),
                    y: s.logits.global().offset(start * d.vocab),
                    n: d.vocab as u32,
                    k: d.d_model as u32,
                    cols: at_once.min(rows - start) as u32,
                    blocks: machine.multiprocessors,
                };
                // SAFETY: as above; the copy is written when a model is loaded.
                let run = unsafe { Dependent::on(&self.stream) };
                product.with_kernel(width, run)?;
            }
            return Ok(());
        }
        let at_once = int8_gemm::MAX_COLS as usize;
        for start in (0..rows).step_by(at_once) {
            let product = Int8Gemm {
                w: copy.rows.global(),
                scales: copy.scales.global(),
                terms: s.terms.global().offset(start * d.d_model / 2),
                unit: s.term_unit.global().offset(start),
                y: s.logits.global().offset(start * d.vocab),
                n: d.vocab as u32,
                k: d.d_model as u32,
                cols: at_once.min(rows - start) as u32,
                room: machine.shared_limit,
            };
            // SAFETY: as above; the copy is written when a model is loaded.
            unsafe { launch(&self.stream, &product, product.launch(machine))? };
        }
        Ok(())
    }

    /// Logits of batch rows `rows`, ascending, (rows, vocab), into `out`.
    ///
    /// # Errors
    /// When a row is outside the batch, `out` has another length, or the device fails.
    pub fn logits(&self, rows: &[usize], out: &mut [f32]) -> Result<()> {
        let vocab = self.model.dims.vocab;
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
