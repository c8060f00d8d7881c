//! Device memory of an engine: counted before any of it is taken, so that a model that does not fit is refused as a whole.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{DeviceBuffer, Element, SharedWords};
use std::cell::Cell;

/// What device memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Weights,
    Cache,
    Scratch,
}

/// Bytes by use: weights, key-value cache, scratch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    pub(super) weights: u64,
    pub(super) cache: u64,
    pub(super) scratch: u64,
}

impl Bytes {
    pub(super) fn total(self) -> u64 {
        self.weights
            .saturating_add(self.cache)
            .saturating_add(self.scratch)
    }

    fn add(mut self, of: Use, bytes: u64) -> Self {
        let part = match of {
            Use::Weights => &mut self.weights,
            Use::Cache => &mut self.cache,
            Use::Scratch => &mut self.scratch,
        };
        *part = part.saturating_add(bytes);
        self
    }
}

/// Where buffers come from.
#[derive(Debug)]
pub(super) struct Space<'g> {
    /// None only counts.
    gpu: Option<&'g Gpu>,
    empty: &'g Gpu,
    bytes: Cell<Bytes>,
}

impl<'g> Space<'g> {
    /// Counts, and gives buffers of no elements.
    pub(super) fn planned(gpu: &'g Gpu) -> Self {
        Self {
            gpu: None,
            empty: gpu,
            bytes: Cell::default(),
        }
    }

    /// Allocates.
    pub(super) fn of(gpu: &'g Gpu) -> Self {
        Self {
            gpu: Some(gpu),
            ..Self::planned(gpu)
        }
    }

    /// A buffer of `len` elements; `what` is for the error message.
    pub(super) fn alloc<T: Element>(&self, of: Use, what: &str, len: usize) -> Result<DeviceBuffer<T>> {
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        self.bytes.set(self.bytes.get().add(of, bytes));
        match self.gpu {
            Some(gpu) => gpu.alloc(what, len),
            None => self.empty.alloc(what, 0),
        }
    }

    /// Host memory that the device can reach, which does not count.
    pub(super) fn alloc_shared(&self, len: usize) -> Result<SharedWords> {
        self.empty.alloc_shared(if self.gpu.is_some() { len } else { 0 })
    }

    /// What was asked for so far.
    pub(super) fn bytes(&self) -> Bytes {
        self.bytes.get()
    }

    /// Refuses what was counted when it is more than the device has free.
    pub(super) fn check(&self) -> Result<()> {
        let (free_bytes, total_bytes) = self.empty.memory()?;
        let bytes = self.bytes();
        if bytes.total() <= free_bytes {
            return Ok(());
        }
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        Err(Error::OutOfMemory {
            what: format!(
                "the model ({} MB of weights, {} MB of keys and values, {} MB of scratch)",
                megabytes(bytes.weights),
                megabytes(bytes.cache),
                megabytes(bytes.scratch)
            ),
            needed_bytes: bytes.total(),
            free_bytes,
            total_bytes,
        })
    }
}
