//! A checkpoint that tells how much of it has been read: for progress bars.

use std::cell::{Cell, RefCell};

use super::checkpoint::Checkpoint;
use crate::{Config, Dense, DenseDtype, LayerWeights, Result, WeightSource};

/// A checkpoint that calls back as it is read.
///
/// ```
/// use bitnet_model::{Checkpoint, Device, LoadOptions, Watched, open_backend};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let checkpoint = Checkpoint::open(folder)?;
/// let mut report = |done, total| eprint!("\r{done} of {total} bytes");
/// let backend = open_backend(&Watched::new(&checkpoint, &mut report), LoadOptions::default())?;
/// # Ok::<(), bitnet_model::Error>(())
/// ```
pub struct Watched<'a> {
    checkpoint: &'a Checkpoint,
    done_bytes: Cell<u64>,
    total_bytes: u64,
    report: RefCell<&'a mut dyn FnMut(u64, u64)>,
}

impl<'a> Watched<'a> {
    /// Calls `report` with the bytes that have been read and those that there are, at once with 0.
    pub fn new(checkpoint: &'a Checkpoint, report: &'a mut dyn FnMut(u64, u64)) -> Self {
        let total_bytes = bytes(checkpoint, "");
        report(0, total_bytes);
        Self {
            checkpoint,
            done_bytes: Cell::new(0),
            total_bytes,
            report: RefCell::new(report),
        }
    }

    fn add(&self, bytes: u64) {
        self.done_bytes.set(self.done_bytes.get() + bytes);
        // A reader may ask for a part again.
        let done_bytes = self.done_bytes.get().min(self.total_bytes);
        (self.report.borrow_mut())(done_bytes, self.total_bytes);
    }

    fn dense<'s>(&'s self, inner: Box<dyn Dense + 's>) -> Box<dyn Dense + 's> {
        Box::new(WatchedDense {
            inner,
            add: Box::new(|bytes| self.add(bytes)),
        })
    }
}

impl WeightSource for Watched<'_> {
    fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    fn embedding(&self) -> Result<Box<dyn Dense + '_>> {
        Ok(self.dense(self.checkpoint.embedding()?))
    }

    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let layer = self.checkpoint.layer(index)?;
        self.add(bytes(self.checkpoint, &self.checkpoint.layer_prefix(index)));
        Ok(layer)
    }

    fn final_norm(&self) -> Result<Vec<f32>> {
        self.checkpoint.final_norm()
    }

    fn head(&self) -> Result<Option<Box<dyn Dense + '_>>> {
        Ok(self.checkpoint.head()?.map(|head| self.dense(head)))
    }
}

struct WatchedDense<'a> {
    inner: Box<dyn Dense + 'a>,
    add: Box<dyn Fn(u64) + 'a>,
}

impl Dense for WatchedDense<'_> {
    fn dtype(&self) -> DenseDtype {
        self.inner.dtype()
    }

    fn shape(&self) -> (usize, usize) {
        self.inner.shape()
    }

    fn read_rows(&self, first: usize, out: &mut [u8]) -> Result<()> {
        self.inner.read_rows(first, out)?;
        (self.add)(out.len() as u64);
        Ok(())
    }
}

/// Size of the tensors whose names begin with `prefix`.
fn bytes(checkpoint: &Checkpoint, prefix: &str) -> u64 {
    let tensors = checkpoint.tensors().iter();
    tensors
        .filter(|tensor| tensor.name().starts_with(prefix))
        .map(|tensor| tensor.n_bytes() as u64)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, open_backend};

    #[test]
    fn it_reports_up_to_all_but_the_last_norm() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/bitnet-packed");
        let checkpoint = Checkpoint::open(folder).unwrap();
        let mut reports = Vec::new();
        let mut report = |done, total| reports.push((done, total));
        open_backend(&Watched::new(&checkpoint, &mut report), Device::Cpu).unwrap();
        let total = bytes(&checkpoint, "");
        let norm = bytes(&checkpoint, "model.norm.");
        assert_eq!(reports[0], (0, total));
        assert!(norm > 0 && reports.len() > checkpoint.config().n_layers);
        assert!(reports.is_sorted() && reports.iter().all(|&(_, all)| all == total));
        assert_eq!(reports.last(), Some(&(total - norm, total)));
    }
}
