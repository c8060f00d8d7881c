//! One ternary matrix out of a checkpoint, from whatever form it is stored in to canonical words and a scale.
//!
//! Files are read in blocks of rows, by a few threads; the result does not depend on how many. The only whole matrix in
//! memory is the result, sixteen times smaller than a bf16 original.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet_layout::ternary::{WeightQuant, abs_sum};
use bitnet_layout::words::{CODES_PER_WORD, Shape, pack_row};
use bitnet_layout::{gguf, hf};

use super::dtype::{Dtype, GgufType};
use super::roles::Names;
use super::storage::{GgufForm, I2sLayout, Storage};
use super::tensors::{Tensor, TensorFiles};
use super::ternary_types::{RowType, Scales};
use crate::{DenseDtype, Error, Result};

/// Bytes a thread reads at a time: enough to pay for the call, little enough to stay in its cache.
const BLOCK_BYTES: usize = 256 << 10;

/// Magnitudes that are counted before a matrix is said to have many.
const MANY: usize = 1000;

/// A ternary matrix of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection<'a> {
    weight: Tensor<'a>,
    scale: Option<Tensor<'a>>,
    form: Form,
    /// Its columns are those of the matrix, filled up to whole words with zeros.
    shape: Shape,
    /// Columns of the matrix.
    cols: usize,
    /// Rows of a head, where each two that are rotated together stand together in the file.
    paired: Option<usize>,
}

/// How a matrix is stored.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Real weights, made ternary by their mean.
    Master,
    /// Real weights that are 0 and plus or minus one magnitude.
    Baked {
        or_master: bool,
        gguf: bool,
    },
    /// Four rows to a byte; `divide` by the scale, or multiply.
    Packed {
        divide: bool,
    },
    /// Canonical words.
    Words,
    I2s(I2sLayout),
    Rows(RowType),
}

impl<'a> Projection<'a> {
    /// The matrix of the tensor `name` with `n` rows and `k` columns, whose type and shape are checked. Where the rows of heads
    /// can be stored in pairs, `head` is how many a head has.
    pub(crate) fn find(
        tensors: &'a TensorFiles,
        names: Names,
        storage: Storage,
        name: &str,
        (n, k): (usize, usize),
        head: Option<usize>,
    ) -> Result<Self> {
        let weight = tensors.get(name)?;
        let shape = k
            .checked_next_multiple_of(CODES_PER_WORD)
            .map(|k| Shape::new(n, k));
        let shape = match shape {
            Some(Ok(shape)) => shape,
            _ => {
                return Err(
                    weight.invalid(format!("is to have {n} rows of {k}; no memory has room for them"))
                );
            }
        };
        let form = match (storage, weight.dtype()) {
            (Storage::Master, Dtype::Float(_)) => Form::Master,
            (Storage::Baked, Dtype::Float(_)) => Form::Baked {
                or_master: false,
                gguf: false,
            },
            (Storage::PackedMultiply, Dtype::U8) => Form::Packed { divide: false },
            (Storage::PackedDivide, Dtype::U8) => Form::Packed { divide: true },
            (Storage::Words, Dtype::U32) => Form::Words,
            (Storage::Gguf(options), dtype) => gguf_form(&weight, dtype, options)?,
            (_, found) => {
                let expected = match storage {
                    Storage::PackedMultiply | Storage::PackedDivide => "U8 (four weights to a byte)",
                    Storage::Words => "U32 (sixteen weights to a word)",
                    _ => "BF16, F16 or F32 (real weights)",
                };
                return Err(weight.invalid(format!(
                    "has type {found}; the quantization_config of config.json calls for {expected}"
                )));
            }
        };
        match form {
            Form::Packed { .. } => weight.expect_shape(&[hf::packed_rows(n), k])?,
            Form::Words => weight.expect_shape(&[n, shape.words_per_row()])?,
            _ => weight.expect_shape(&[n, k])?,
        }
        let together = match form {
            Form::Rows(kind) => kind.rows,
            Form::I2s(I2sLayout::Rows4) => 4,
            _ => 1,
        };
        if !n.is_multiple_of(together) {
            return Err(weight.invalid(format!(
                "has {n} rows, which are stored in fours; expected a multiple of 4"
            )));
        }
        let scale = tensors.find(&names.scale(name));
        if scale.is_none() && matches!(form, Form::Packed { .. } | Form::Words) {
            tensors.get(&names.scale(name))?;
        }
        if let Some(scale) = scale.filter(|_| !matches!(form, Form::Master)) {
            scale.float_dtype()?;
            if !matches!(scale.shape(), [] | [1]) {
                return Err(scale.invalid(format!("has shape {:?}; expected one value", scale.shape())));
            }
        }
        let paired = matches!(storage, Storage::Gguf(options) if options.paired_heads);
        Ok(Self {
            weight,
            scale,
            form,
            shape,
            cols: k,
            paired: head.filter(|_| paired),
        })
    }

    /// Its tensor of weights.
    pub(crate) fn weight(&self) -> Tensor<'a> {
        self.weight
    }

    /// Its rows and columns, the latter filled up to whole words.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Its columns.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The tensor of its scale, where there is one.
    pub(crate) fn scale_tensor(&self) -> Option<Tensor<'a>> {
        self.scale
    }

    /// Reads the codes into `words`, which has the shape's length, and returns the scale: `w = t * scale`.
    pub(crate) fn read(&self, words: &mut [u32]) -> Result<f32> {
        assert_eq!(words.len(), self.shape.words());
        let scale = match self.form {
            Form::Master => self.ternarize(words)?,
            Form::Baked { or_master, .. } => match self.recover(words)? {
                Some(scale) => self.with_scale_tensor(scale)?,
                None if or_master => self.ternarize(words)?,
                None => return Err(self.not_ternary()?),
            },
            Form::Packed { divide } => {
                self.unpack(words)?;
                self.check_codes(words)?;
                self.stored_scale(divide)?
            }
            Form::Words => {
                self.copy(words)?;
                self.check_codes(words)?;
                self.stored_scale(false)?
            }
            Form::I2s(layout) => {
                let scale = self.i2s(layout, words)?;
                self.with_scale_tensor(scale)?
            }
            Form::Rows(kind) => {
                let scale = self.blocks(kind, words)?;
                self.check_codes(words)?;
                self.with_scale_tensor(scale)?
            }
        };
        if let Some(head) = self.paired {
            self.unpair(head, words);
        }
        Ok(scale)
    }

    fn stored_scale(&self, divide: bool) -> Result<f32> {
        let Some(tensor) = self.scale else {
            unreachable!("it was there when the projection was found")
        };
        let stored = tensor.read_scalar()?;
        let scale = if divide { 1.0 / stored } else { stored };
        if scale.is_finite() && scale > 0.0 {
            Ok(scale)
        } else {
            Err(tensor.invalid(format!("is {stored}; expected a positive number")))
        }
    }

    /// A scale that stands in the weights, times one that may stand beside them.
    fn with_scale_tensor(&self, scale: f32) -> Result<f32> {
        match self.scale {
            Some(_) => Ok(scale * self.stored_scale(false)?),
            None => Ok(scale),
        }
    }

    fn check_codes(&self, words: &[u32]) -> Result<()> {
        let Some((row, col)) = self.shape.first_invalid(words) else {
            return Ok(());
        };
        let q2_0 = self.weight.dtype() == Dtype::Gguf(GgufType::Q2_0);
        Err(if q2_0 {
            self.weight.unsupported(format!(
                "holds a value of two units at row {row}, column {col}: it is not ternary, and no BitNet model's"
            ))
        } else {
            self.weight.invalid(format!(
                "holds the invalid code 3 for row {row}, column {col}; the file is damaged"
            ))
        })
    }

    /// I2_S: codes, and the scale behind them.
    fn i2s(&self, layout: I2sLayout, words: &mut [u32]) -> Result<f32> {
        let (n, k) = (self.shape.n(), self.cols);
        let flat = k.is_multiple_of(CODES_PER_WORD);
        match layout {
            I2sLayout::Rows4 => {
                let per_row = self.shape.words_per_row();
                let at_once = (BLOCK_BYTES / k).max(1);
                let blocks = words.chunks_mut(4 * at_once * per_row).enumerate();
                in_parallel(blocks, |(block, words), scratch| {
                    let fours = words.len() / (4 * per_row);
                    self.weight.read(block * at_once * k, scratch.bytes(fours * k))?;
                    let mut padded = vec![0x55; per_row * CODES_PER_WORD];
                    for (bytes, words) in scratch
                        .bytes
                        .chunks_exact(k)
                        .zip(words.chunks_exact_mut(4 * per_row))
                    {
                        padded[..k].copy_from_slice(bytes);
                        for (row, words) in words.chunks_exact_mut(per_row).enumerate() {
                            gguf::i2s_four_rows(&padded, row, words);
                        }
                    }
                    Ok(())
                })?;
            }
            // Blocks may cross rows: the matrix is read as one long row.
            _ if flat => self.i2s_flat(layout, words)?,
            _ => {
                let mut long = vec![0; n * k / CODES_PER_WORD];
                self.i2s_flat(layout, &mut long)?;
                let mut codes = vec![0; long.len() * CODES_PER_WORD];
                bitnet_layout::words::unpack_row(&long, &mut codes);
                let mut row = vec![0; self.shape.k()];
                for (codes, words) in codes
                    .chunks_exact(k)
                    .zip(words.chunks_exact_mut(self.shape.words_per_row()))
                {
                    row[..k].copy_from_slice(codes);
                    pack_row(&row, words);
                }
            }
        }
        self.check_codes(words)?;
        let mut scale = [0; 4];
        self.weight.read(n * k / 4, &mut scale)?;
        let scale = f32::from_le_bytes(scale);
        if scale == 0.0 && words.iter().all(|&word| word == 0x5555_5555) {
            // Any scale serves a matrix of zeros.
            return Ok(1.0);
        }
        self.positive(scale)
    }

    fn i2s_flat(&self, layout: I2sLayout, words: &mut [u32]) -> Result<()> {
        let blocks = words.chunks_mut(BLOCK_BYTES / 4).enumerate();
        in_parallel(blocks, |(block, words), scratch| {
            let bytes = scratch.bytes(4 * words.len());
            self.weight.read(block * BLOCK_BYTES, bytes)?;
            match layout {
                I2sLayout::Arm64 => {
                    for (words, bytes) in words.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
                        *words = gguf::i2s_arm(bytes);
                    }
                }
                _ => {
                    for (words, bytes) in words.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
                        *words = gguf::i2s(bytes);
                    }
                }
            }
            Ok(())
        })
    }

    /// Rows with scales of their own, or of their blocks, which must agree.
    fn blocks(&self, kind: RowType, words: &mut [u32]) -> Result<f32> {
        let bytes_of = kind.bytes(self.cols);
        let at_once = (BLOCK_BYTES / bytes_of).max(1);
        let per_group = kind.rows * self.shape.words_per_row();
        let all = Mutex::new(Scales::default());
        let blocks = words.chunks_mut(at_once * per_group).enumerate();
        in_parallel(blocks, |(block, words), scratch| {
            let groups = words.len() / per_group;
            self.weight
                .read(block * at_once * bytes_of, scratch.bytes(groups * bytes_of))?;
            let mut scales = Scales::default();
            for (bytes, words) in scratch
                .bytes
                .chunks_exact(bytes_of)
                .zip(words.chunks_exact_mut(per_group))
            {
                kind.decode(bytes, words, &mut scales)
                    .map_err(|scale| self.bad_scale(scale))?;
            }
            all.lock()
                .expect("no thread panics while it adds scales")
                .merge(scales);
            Ok(())
        })?;
        let scales = all.into_inner().expect("no thread panics while it adds scales");
        scales.one().map_err(|n| {
            self.weight.unsupported(format!(
                "carries {n} different scales{}; models quantized in groups (Bonsai, BitCPM) are not supported",
                if n >= MANY { " or more" } else { "" }
            ))
        })
    }

    fn positive(&self, scale: f32) -> Result<f32> {
        if scale.is_finite() && scale > 0.0 {
            Ok(scale)
        } else {
            Err(self.bad_scale(scale))
        }
    }

    fn bad_scale(&self, scale: f32) -> Error {
        self.weight.invalid(format!(
            "has the scale {scale}; expected a positive number: the file is damaged"
        ))
    }

    /// Puts the rows of each head, stored as pairs that are rotated together, in the order of halves.
    fn unpair(&self, head: usize, words: &mut [u32]) {
        let per_row = self.shape.words_per_row();
        let mut pairs = Vec::new();
        for words in words.chunks_exact_mut(head * per_row) {
            pairs.clear();
            pairs.extend_from_slice(words);
            for (row, words) in words.chunks_exact_mut(per_row).enumerate() {
                let (half, i) = (row / (head / 2), row % (head / 2));
                words.copy_from_slice(&pairs[(2 * i + half) * per_row..][..per_row]);
            }
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
        let (n, k, per_row) = (self.shape.n(), self.cols, self.shape.words_per_row());
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
            // Columns past the last are zeros.
            let mut padded = vec![0x55; self.shape.k()];
            for (plane, rows) in planes.into_iter().enumerate() {
                for (packed, words) in bytes.chunks_exact(k).zip(rows.chunks_exact_mut(per_row)) {
                    if packed.len() == padded.len() {
                        hf::unpack_row(packed, plane, words);
                    } else {
                        padded[..k].copy_from_slice(packed);
                        hf::unpack_row(&padded, plane, words);
                    }
                }
            }
            Ok(())
        })
    }

    /// Master weights: one pass for the mean, one for the codes.
    fn ternarize(&self, words: &mut [u32]) -> Result<f32> {
        let (n, k) = (self.shape.n(), self.cols);
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
        self.encode(words, |w| quant.quantize(w))?;
        Ok(quant.scale)
    }

    /// Weights that are 0 and plus or minus one magnitude: one pass for the magnitude, one for the codes. `None` where there are
    /// others.
    fn recover(&self, words: &mut [u32]) -> Result<Option<f32>> {
        let (n, k) = (self.shape.n(), self.cols);
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
        let other = AtomicBool::new(false);
        self.encode(words, |w| match w {
            0.0 => 0,
            w if w == magnitude && w.is_finite() => 1,
            w if w == -magnitude && w.is_finite() => -1,
            _ => {
                other.store(true, Ordering::Relaxed);
                0
            }
        })?;
        Ok(match (other.into_inner(), magnitude > 0.0) {
            (true, _) => None,
            (false, true) => Some(magnitude),
            // Any scale serves a matrix of zeros.
            (false, false) => Some(1.0),
        })
    }

    /// Fills `words` from real weights, with the ternary value of each.
    fn encode(&self, words: &mut [u32], ternary: impl Fn(f32) -> i8 + Sync) -> Result<()> {
        let (k, per_row, per_block) = (self.cols, self.shape.words_per_row(), self.rows_per_block());
        let blocks = words.chunks_mut(per_block * per_row).enumerate();
        in_parallel(blocks, |(block, words), scratch| {
            let first = block * per_block;
            self.real_rows(first..first + words.len() / per_row, scratch)?;
            let Scratch { floats, codes, .. } = scratch;
            // Columns past the last are zeros.
            codes.clear();
            codes.resize(self.shape.k(), 0);
            for (floats, words) in floats.chunks_exact(k).zip(words.chunks_exact_mut(per_row)) {
                for (code, &w) in codes.iter_mut().zip(floats) {
                    *code = ternary(w);
                }
                pack_row(codes, words);
            }
            Ok(())
        })
    }

    /// Why real weights are not ternary as they are stored.
    fn not_ternary(&self) -> Result<Error> {
        let mut magnitudes = BTreeSet::new();
        let mut scratch = Scratch::default();
        let per_block = self.rows_per_block();
        for first in (0..self.shape.n()).step_by(per_block) {
            let rows = self.real_rows(first..self.shape.n().min(first + per_block), &mut scratch)?;
            if let Some(at) = rows.iter().position(|w| !w.is_finite()) {
                return Ok(self.weight.invalid(format!(
                    "holds {} at row {}, column {}; the file is damaged",
                    rows[at],
                    first + at / self.cols,
                    at % self.cols
                )));
            }
            magnitudes.extend(rows.iter().filter(|w| **w != 0.0).map(|w| w.abs().to_bits()));
            if magnitudes.len() >= MANY {
                break;
            }
        }
        let count = match magnitudes.len() {
            MANY.. => format!("{MANY} magnitudes or more"),
            n => format!("{n} magnitudes"),
        };
        let why = match self.form {
            Form::Baked { gguf: true, .. } => "",
            _ => {
                ": config.json has no quantization_config, and without one the weights must be 0 and plus or minus one value as \
                 stored"
            }
        };
        Ok(self.weight.not_ternary(format!(
            "holds weights of {count}, so it is not ternary{why}; if these are the master weights of a BitNet model, ternarize them"
        )))
    }

    fn rows_per_block(&self) -> usize {
        (BLOCK_BYTES / (4 * self.cols)).max(1)
    }

    /// Reads rows of a real matrix into `scratch.floats`.
    fn real_rows<'s>(&self, rows: Range<usize>, scratch: &'s mut Scratch) -> Result<&'s [f32]> {
        let dtype: DenseDtype = self.weight.float_dtype()?;
        let row_bytes = self.cols * dtype.size();
        self.weight
            .read(rows.start * row_bytes, scratch.bytes(rows.len() * row_bytes))?;
        scratch.floats.resize(rows.len() * self.cols, 0.0);
        dtype.to_f32(&scratch.bytes, &mut scratch.floats);
        Ok(&scratch.floats)
    }
}

/// How a tensor of a GGUF file is read, or why it is not.
fn gguf_form(weight: &Tensor<'_>, dtype: Dtype, options: GgufForm) -> Result<Form> {
    let Dtype::Gguf(kind) = dtype else {
        return Ok(Form::Baked {
            or_master: options.ternarize,
            gguf: true,
        });
    };
    if kind == GgufType::I2_S {
        return Ok(Form::I2s(options.i2s));
    }
    if let Some(kind) = RowType::of(kind) {
        return Ok(Form::Rows(kind));
    }
    Err(weight.unsupported(match kind {
        GgufType::TL1 | GgufType::TL2 => format!(
            "is of type {kind} ({}), whose layout depends on the build of bitnet.cpp that wrote it; convert the original with -q i2_s, or \
             download the I2_S file",
            kind.0
        ),
        GgufType::Q4_0 => "is of type Q4_0, which cannot hold +s and -s alike: llama-quantize falls back to it where a width is no \
                           multiple of 256; use the I2_S file or the safetensors folder of the model"
            .into(),
        GgufType::PQ2_0 | GgufType::PTQ1_0 => format!(
            "is of type {kind} ({}), of PrismML's Bonsai models, which are quantized in groups; only their own programs run those",
            kind.0
        ),
        GgufType::I8_S => "is of type I8_S, which is no ternary type; use an I2_S file of a language model".into(),
        _ => format!(
            "is of type {kind}, which holds no ternary weights; use an I2_S, TQ1_0 or TQ2_0 file, or the safetensors folder of the model"
        ),
    }))
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
