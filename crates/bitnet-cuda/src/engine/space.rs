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

    /// Refuses what is more than the device has free.
    fn fit(self, free_bytes: u64, total_bytes: u64) -> Result<()> {
        if self.total() <= free_bytes {
            return Ok(());
        }
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        Err(Error::OutOfMemory {
            what: format!(
                "the model ({} MB of weights, {} MB of keys and values, {} MB of scratch)",
                megabytes(self.weights),
                megabytes(self.cache),
                megabytes(self.scratch)
            ),
            needed_bytes: self.total(),
            free_bytes,
            total_bytes,
        })
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
    gpu: &'g Gpu,
    /// Whether it only counts.
    is_planned: bool,
    bytes: Cell<Bytes>,
}

impl<'g> Space<'g> {
    /// Counts, and gives buffers of no elements.
    pub(super) fn planned(gpu: &'g Gpu) -> Self {
        Self {
            gpu,
            is_planned: true,
            bytes: Cell::default(),
        }
    }

    /// Allocates.
    pub(super) fn of(gpu: &'g Gpu) -> Self {
        Self {
            is_planned: false,
            ..Self::planned(gpu)
        }
    }

    /// A buffer of `len` elements; `what` is for the error message.
    pub(super) fn alloc<T: Element>(&self, of: Use, what: &str, len: usize) -> Result<DeviceBuffer<T>> {
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        self.bytes.set(self.bytes.get().add(of, bytes));
        self.gpu.alloc(what, if self.is_planned { 0 } else { len })
    }

    /// Host memory that the device can reach, which does not count.
    pub(super) fn alloc_shared(&self, len: usize) -> Result<SharedWords> {
        self.gpu.alloc_shared(if self.is_planned { 0 } else { len })
    }

    /// What was asked for so far.
    pub(super) fn bytes(&self) -> Bytes {
        self.bytes.get()
    }

    /// The bytes that are free beside what was counted, which is refused when it is more than the device has free.
    pub(super) fn check(&self) -> Result<u64> {
        let (free_bytes, total_bytes) = self.gpu.memory()?;
        self.bytes().fit(free_bytes, total_bytes)?;
        Ok(free_bytes - self.bytes().total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_its_parts() {
        let bytes = Bytes::default()
            .add(Use::Weights, 1_178_000_000)
            .add(Use::Cache, 314_000_000)
            .add(Use::Cache, 1_000_000)
            .add(Use::Scratch, 55_000_000);
        assert!(bytes.fit(1_548_000_000, 2_000_000_000).is_ok());
        let error = bytes.fit(1_547_999_999, 2_000_000_000).unwrap_err().to_string();
        assert!(
            error.contains(
                "the model (1178 MB of weights, 315 MB of keys and values, 55 MB of scratch): 1548 MB needed, 1547 MB free of \
                 2000 MB; choose a smaller context or batch"
            ),
            "{error}"
        );
        // Sizes that no computer has do not wrap.
        let absurd = bytes.add(Use::Scratch, u64::MAX);
        assert!(absurd.fit(u64::MAX - 1, u64::MAX).is_err());
    }
}
