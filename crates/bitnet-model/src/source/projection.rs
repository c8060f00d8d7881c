//! One ternary matrix out of a checkpoint, from whatever form it is stored in to canonical words and a scale.
//!
//! Files are read in blocks of rows, by a few threads; the result does not depend on how many. The only whole matrix in
//! memory is the result, sixteen times smaller than a bf16 original.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_layout::hf;
use bitnet_layout::ternary::{WeightQuant, abs_sum};
use bitnet_layout::words::{Shape, pack_row};
use safetensors::Dtype;

use super::safetensors::{Tensor, TensorFiles};
use super::storage::Storage;
use crate::{DenseDtype, Error, Result};

/// Bytes a thread reads at a time: enough to pay for the call, little enough to stay in its cache.
const BLOCK_BYTES: usize = 256 << 10;

/// A ternary matrix of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection<'a> {
    tensors: &'a TensorFiles,
    weight: Tensor<'a>,
    storage: Storage,
    shape: Shape,
}

impl<'a> Projection<'a> {
    /// The matrix of linear layer `name` (`model.layers.0.self_attn.q_proj`), whose type and shape are checked.
    pub(crate) fn find(tensors: &'a TensorFiles, storage: Storage, name: &str, shape: Shape) -> Result<Self> {
        let weight = tensors.get(&format!("{name}.weight"))?;
        let (n, k) = (shape.n(), shape.k());
        match (storage, weight.dtype()) {
            (Storage::Master | Storage::Baked, Dtype::BF16 | Dtype::F16 | Dtype::F32) => {
                weight.expect_shape(&[n, k])?
            }
            (Storage::PackedMultiply | Storage::PackedDivide, Dtype::U8) => {
                weight.expect_shape(&[hf::packed_rows(n), k])?;
            }
            (Storage::Words, Dtype::U32) => weight.expect_shape(&[n, shape.words_per_row()])?,
            (_, found) => {
                let expected = match storage {
                    Storage::Master | Storage::Baked => "BF16, F16 or F32 (real weights)",
                    Storage::PackedMultiply | Storage::PackedDivide => "U8 (four weights to a byte)",
                    Storage::Words => "U32 (sixteen weights to a word)",
                };
                return Err(weight.invalid(format!(
                    "has type {found:?}; the quantization_config of config.json calls for {expected}"
                )));
            }
        }
        let projection = Self {
            tensors,
            weight,
            storage,
            shape,
        };
        if let Some(scale) = projection.scale_tensor()? {
            scale.float_dtype()?;
            if !matches!(scale.shape(), [] | [1]) {
                return Err(scale.invalid(format!("has shape {:?}; expected one value", scale.shape())));
            }
        }
        Ok(projection)
    }

    /// Its tensor of weights.
    pub(crate) fn weight(&self) -> Tensor<'a> {
        self.weight
    }

    /// Its rows and columns.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The tensor of its scale, in storages that have one.
    pub(crate) fn scale_tensor(&self) -> Result<Option<Tensor<'a>>> {
        match self.storage {
            Storage::Master | Storage::Baked => Ok(None),
            _ => self
                .tensors
                .get(&format!("{}_scale", self.weight.name()))
                .map(Some),
        }
    }

    /// Reads the codes into `words`, which has the shape's length, and returns the scale: `w = t * scale`.
    pub(crate) fn read(&self, words: &mut [u32]) -> Result<f32> {
        assert_eq!(words.len(), self.shape.words());
        match self.storage {
            Storage::Master => self.ternarize(words),
            Storage::Baked => self.recover(words),
            Storage::PackedMultiply | Storage::PackedDivide => {
                self.unpack(words)?;
                self.check_codes(words)?;
                self.stored_scale()
            }
            Storage::Words => {
                self.copy(words)?;
                self.check_codes(words)?;
                self.stored_scale()
            }
        }
    }

    fn stored_scale(&self) -> Result<f32> {
        let Some(tensor) = self.scale_tensor()? else {
            unreachable!("only storages with a scale tensor ask for it")
        };
        let dtype = tensor.float_dtype()?;
        let mut stored = [0.0];
        tensor.read_all(|bytes| {
            dtype.to_f32(bytes, &mut stored);
            Ok::<_, Error>(())
        })?;
        let scale = match self.storage {
            Storage::PackedDivide => 1.0 / stored[0],
            _ => stored[0],
        };
        if scale.is_finite() && scale > 0.0 {
            Ok(scale)
        } else {
            Err(tensor.invalid(format!("is {}; expected a positive number", stored[0])))
        }
    }

    fn check_codes(&self, words: &[u32]) -> Result<()> {
        match self.shape.first_invalid(words) {
            None => Ok(()),
            Some((row, col)) => Err(self.weight.invalid(format!(
                "holds the invalid code 3 for row {row}, column {col}; the file is damaged"
            ))),
        }
    }

    /// Canonical words, as they are; one thread, because the checksum is taken in order.
    fn copy(&self, words: &mut [u32]) -> Result<()> {
        let mut rest = words;
        self.weight.read_all(|bytes| {
            let (copied, later) = std::mem::take(&mut rest).split_at_mut(bytes.len() / 4);
            for (word, &bytes) in copied.iter_mut().zip(bytes.as_chunks().0) {
                *word = u32::from_le_bytes(bytes);
            }
            rest = later;
            Ok(())
        })
    }

    /// Four rows to a byte.
    fn unpack(&self, words: &mut [u32]) -> Result<()> {
        let (n, k, per_row) = (self.shape.n(), self.shape.k(), self.shape.words_per_row());
        let packed_rows = hf::packed_rows(n);
        let rows_per_block = (BLOCK_BYTES / k).max(1);
        // Block b of every plane: the rows of words that packed rows b * rows_per_block .. fill.
        let mut blocks: Vec<Vec<&mut [u32]>> = Vec::new();
        for plane in words.chunks_mut(packed_rows * per_row) {
            for (block, rows) in plane.chunks_mut(rows_per_block * per_row).enumerate() {
                if blocks.len() == block {
                    blocks.push(Vec::with_capacity(4));
                }
                blocks[block].push(rows);
            }
        }
        in_parallel(blocks.into_iter().enumerate(), |(block, planes), scratch| {
            let rows = planes[0].len() / per_row;
            let bytes = scratch.bytes(rows * k);
            self.weight.read(block * rows_per_block * k, bytes)?;
            for (plane, rows) in planes.into_iter().enumerate() {
                for (packed, words) in bytes.chunks_exact(k).zip(rows.chunks_exact_mut(per_row)) {
                    hf::unpack_row(packed, plane, words);
                }
            }
            Ok(())
        })
    }

    /// Master weights: one pass for the mean, one for the codes.
    fn ternarize(&self, words: &mut [u32]) -> Result<f32> {
        let (n, k) = (self.shape.n(), self.shape.k());
        let mut sums = vec![0.0; n];
        let per_block = self.rows_per_block();
        in_parallel(
            sums.chunks_mut(per_block).enumerate(),
            |(block, sums), scratch| {
                let first = block * per_block;
                let rows = self.real_rows(first..first + sums.len(), scratch)?;
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = abs_sum(&rows[row * k..][..k]);
                    if !sum.is_finite() {
                        let col = rows[row * k..].iter().position(|w| !w.is_finite()).unwrap_or(0);
                        return Err(self.weight.invalid(format!(
                            "holds {} at row {}, column {col}; the file is damaged",
                            rows[row * k + col],
                            first + row
                        )));
                    }
                }
                Ok(())
            },
        )?;
        let quant = WeightQuant::from_abs_sum(sums.iter().sum(), n * k);
        if !(quant.scale.is_finite() && quant.scale > 0.0) {
            return Err(self
                .weight
                .invalid("holds weights too large to quantize; the file is damaged"));
        }
        self.encode(words, |w| Some(quant.quantize(w)))?;
        Ok(quant.scale)
    }

    /// Weights that are 0 and plus or minus one magnitude: one pass for the magnitude, one for the codes.
    fn recover(&self, words: &mut [u32]) -> Result<f32> {
        let (n, k) = (self.shape.n(), self.shape.k());
        let mut largest = vec![0.0f32; n];
        let per_block = self.rows_per_block();
        in_parallel(
            largest.chunks_mut(per_block).enumerate(),
            |(block, largest), scratch| {
                let first = block * per_block;
                let rows = self.real_rows(first..first + largest.len(), scratch)?;
                for (row, largest) in rows.chunks_exact(k).zip(largest) {
                    *largest = row.iter().fold(0.0, |max, w| w.abs().max(max));
                }
                Ok(())
            },
        )?;
        let magnitude = largest.into_iter().fold(0.0, f32::max);
        self.encode(words, |w| match w {
            0.0 => Some(0),
            w if w == magnitude && w.is_finite() => Some(1),
            w if w == -magnitude && w.is_finite() => Some(-1),
            _ => None,
        })?;
        // Any scale serves a matrix of zeros.
        Ok(if magnitude > 0.0 { magnitude } else { 1.0 })
    }

    /// Fills `words` from real weights, with the ternary value of each.
    fn encode(&self, words: &mut [u32], ternary: impl Fn(f32) -> Option<i8> + Sync) -> Result<()> {
        let (k, per_row, per_block) = (self.shape.k(), self.shape.words_per_row(), self.rows_per_block());
        let blocks = words.chunks_mut(per_block * per_row).enumerate();
        in_parallel(blocks, |(block, words), scratch| {
            let first = block * per_block;
            self.real_rows(first..first + words.len() / per_row, scratch)?;
            let Scratch { floats, codes, .. } = scratch;
            codes.resize(k, 0);
            for (row, (floats, words)) in floats
                .chunks_exact(k)
                .zip(words.chunks_exact_mut(per_row))
                .enumerate()
            {
                for (col, (code, &w)) in codes.iter_mut().zip(floats).enumerate() {
                    *code = ternary(w).ok_or_else(|| self.not_ternary(w, first + row, col))?;
                }
                pack_row(codes, words);
            }
            Ok(())
        })
    }

    fn not_ternary(&self, w: f32, row: usize, col: usize) -> Error {
        self.weight.unsupported(format!(
            "holds {w} at row {row}, column {col}, so it is not ternary: config.json has no quantization_config, and without one \
             the weights must be 0 and plus or minus one value as stored; this is not a BitNet checkpoint"
        ))
    }

    fn rows_per_block(&self) -> usize {
        (BLOCK_BYTES / (4 * self.shape.k())).max(1)
    }

    /// Reads rows of a real matrix into `scratch.floats`.
    fn real_rows<'s>(&self, rows: Range<usize>, scratch: &'s mut Scratch) -> Result<&'s [f32]> {
        let dtype: DenseDtype = self.weight.float_dtype()?;
        let row_bytes = self.shape.k() * dtype.size();
        self.weight
            .read(rows.start * row_bytes, scratch.bytes(rows.len() * row_bytes))?;
        scratch.floats.resize(rows.len() * self.shape.k(), 0.0);
        dtype.to_f32(&scratch.bytes, &mut scratch.floats);
        Ok(&scratch.floats)
    }
}

/// What a thread needs for a block; kept from block to block.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    floats: Vec<f32>,
    codes: Vec<i8>,
}

impl Scratch {
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        self.bytes.resize(len, 0);
        &mut self.bytes
    }
}

/// Does `work` on every block, on as many threads as the machine has. Blocks are begun in order, and the error of the first
/// block that fails is returned, so neither depends on the threads.
fn in_parallel<T: Send>(
    blocks: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(T, &mut Scratch) -> Result<()> + Sync,
) -> Result<()> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(blocks.len());
    let queue = Mutex::new(blocks.enumerate());
    let first_error = Mutex::new(None::<(usize, Error)>);
    let stop = AtomicBool::new(false);
    let worker = || {
        let mut scratch = Scratch::default();
        while !stop.load(Ordering::Relaxed) {
            let next = queue
                .lock()
                .expect("no thread panics while it takes a block")
                .next();
            let Some((index, block)) = next else { return };
            if let Err(error) = work(block, &mut scratch) {
                stop.store(true, Ordering::Relaxed);
                let mut first = first_error
                    .lock()
                    .expect("no thread panics while it records an error");
                if first.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                    *first = Some((index, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(worker);
        }
        worker();
    });
    match first_error
        .into_inner()
        .expect("no thread panics while it records an error")
    {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}
