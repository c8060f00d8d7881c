//! The 8-bit copy of an output head: the head itself, or what a certified head is screened with.

use super::space::{Space, Use};
use super::{Architecture, Limits};
use crate::error::{Error, Result};
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::Stream;
use bitnet_kernels::int8_head::{Int8Rows, RowBounds};
use bitnet_kernels::{Global, screen};

/// A matrix rounded to 8 bits.
#[derive(Debug)]
pub(super) struct Int8Copy {
    /// (vocab, d_model) i8, four a word.
    pub(super) rows: DeviceBuffer<u32>,
    /// What a unit of each row is worth, (vocab).
    pub(super) scales: DeviceBuffer<f32>,
    vocab: usize,
    d_model: usize,
}

impl Int8Copy {
    pub(super) fn new(space: &Space<'_>, model: &Architecture, what: &str) -> Result<Self> {
        let (vocab, d_model) = (model.dims.vocab, model.dims.d_model);
        Ok(Self {
            rows: space.alloc(Use::Weights, what, vocab * d_model / 4)?,
            scales: space.alloc(Use::Weights, what, vocab)?,
            vocab,
            d_model,
        })
    }

    /// Bytes that a product reads.
    pub(super) fn size_bytes(&self) -> u64 {
        self.rows.size_bytes() + self.scales.size_bytes()
    }

    /// The rows that `len` words of two bfloat16 from word `start` on are: the first, and how many.
    ///
    /// # Errors
    /// When they are not whole rows of the matrix.
    pub(super) fn place(&self, start: usize, len: usize) -> Result<(usize, usize)> {
        let per_row = self.d_model / 2;
        let (first, count) = (start / per_row, len / per_row);
        let is_whole = start.is_multiple_of(per_row) && len.is_multiple_of(per_row);
        if !is_whole || first + count > self.vocab {
            return Err(Error::Request(format!(
                "{len} words of the output head from word {start}, where whole rows of {per_row} fit, {} of them",
                self.vocab
            )));
        }
        Ok((first, count))
    }

    /// Rounds `count` rows from `first` on, which are at `w` in bfloat16.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// The rows are rows of the matrix, and at `w` are as many until the stream has done it.
    pub(super) unsafe fn round(
        &self,
        stream: &Stream,
        w: Global<u32>,
        first: usize,
        count: usize,
    ) -> Result<()> {
        let quantize = Int8Rows {
            w,
            q: self.rows.global_at(first * self.d_model / 4)?,
            scales: self.scales.global_at(first)?,
            k: self.d_model as u32,
        };
        // SAFETY: the caller's promise; the buffers have room for every row.
        unsafe { stream.launch(&quantize, Int8Rows::launch(count as u32)) }
    }
}

/// What a certified head has beside the head.
#[derive(Debug)]
pub(super) struct Certified {
    pub(super) copy: Int8Copy,
    /// Of the rows, (vocab, 2).
    pub(super) row_bounds: DeviceBuffer<f32>,
    /// Largest lower and upper ends of groups of rows, (seats, groups) each.
    pub(super) lowers: DeviceBuffer<f32>,
    pub(super) uppers: DeviceBuffer<f32>,
    /// Logits that were computed, 1; and what the host knows of it.
    pub(super) products: DeviceBuffer<u32>,
    pub(super) published: SharedWords,
}

impl Certified {
    pub(super) fn new(space: &Space<'_>, model: &Architecture, limits: Limits) -> Result<Self> {
        const COPY: &str = "an 8-bit copy of the output head";
        const SCREEN: &str = "the screening of logits";
        let groups = limits.seats() * screen::groups(model.dims.vocab);
        Ok(Self {
            copy: Int8Copy::new(space, model, COPY)?,
            row_bounds: space.alloc(Use::Weights, COPY, 2 * model.dims.vocab)?,
            lowers: space.alloc(Use::Scratch, SCREEN, groups)?,
            uppers: space.alloc(Use::Scratch, SCREEN, groups)?,
            products: space.alloc(Use::Scratch, SCREEN, 1)?,
            published: space.alloc_shared(1)?,
        })
    }

    /// The state before any step.
    pub(super) fn clear(&self, stream: &Stream) -> Result<()> {
        stream.fill_bytes(&self.products, 0)
    }

    /// Copies and bounds `count` rows from `first` on of the head, which begins at `head`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Safety
    /// As for [`Int8Copy::round`].
    pub(super) unsafe fn copy_rows(
        &self,
        stream: &Stream,
        head: Global<u32>,
        first: usize,
        count: usize,
    ) -> Result<()> {
        let d_model = self.copy.d_model;
        let w = head.offset(first * d_model / 2);
        let bounds = RowBounds {
            w,
            q: self.copy.rows.global_at(first * d_model / 4)?,
            scales: self.copy.scales.global_at(first)?,
            bounds: self.row_bounds.global_at(2 * first)?,
            k: d_model as u32,
        };
        // SAFETY: the caller's promise; the bounds have room for every row.
        unsafe {
            self.copy.round(stream, w, first, count)?;
            stream.launch(&bounds, RowBounds::launch(count as u32))
        }
    }
}
