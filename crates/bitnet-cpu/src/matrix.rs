//! Weight matrices as the kernels read them.

use bitnet_layout::DenseDtype;
use bitnet_layout::row_tiles::{self, Group, ROWS};
use bitnet_layout::words::CODES_PER_WORD;

use crate::error::check_size;
use crate::float::{Bf16, F16, Weights};
use crate::memory::{Buffer, Pages, Plain};
use crate::nodes::Nodes;
use crate::{Error, Result};

/// An (n, k) ternary matrix: tiles of 16 rows, and what a unit of each row is worth.
#[derive(Debug)]
pub struct TernaryMatrix {
    n: usize,
    k: usize,
    /// Tiles one after the other, `k / 16` groups each.
    tiles: Buffer<Group>,
    /// By tile; 0 for rows past `n`.
    scales: Vec<[f32; ROWS]>,
}

impl TernaryMatrix {
    /// Takes a matrix in the canonical layout of [`bitnet_layout::words`]; `segments` are consecutive row ranges, each a
    /// number of rows and the worth of a ternary unit in them.
    ///
    /// # Errors
    /// When the sizes do not fit each other, or memory cannot be had.
    pub fn new(n: usize, k: usize, words: &[u32], segments: &[(usize, f32)]) -> Result<Self> {
        check_size("columns past a multiple of 16", k % CODES_PER_WORD, 0)?;
        let words_per_row = k / CODES_PER_WORD;
        let expected = n.checked_mul(words_per_row).ok_or(Error::Memory {
            what: "a weight matrix",
            bytes: usize::MAX,
        })?;
        check_size("words of a weight matrix", words.len(), expected)?;
        check_size(
            "rows of its segments",
            segments.iter().map(|(rows, _)| rows).sum(),
            n,
        )?;
        let n_tiles = row_tiles::n_tiles(n);
        let mut tiles = Buffer::<Group>::zeroed("a weight matrix", n_tiles * words_per_row, Pages::Huge)?;
        if words_per_row > 0 {
            for (i, tile) in tiles.chunks_exact_mut(words_per_row).enumerate() {
                let first = i * ROWS * words_per_row;
                let end = words.len().min(first + ROWS * words_per_row);
                row_tiles::fill(&words[first..end], words_per_row, 0, tile);
            }
        }
        let rows = segments
            .iter()
            .flat_map(|&(rows, scale)| std::iter::repeat_n(scale, rows));
        let mut scales = vec![[0.0; ROWS]; n_tiles];
        for (scale, row) in scales.as_flattened_mut().iter_mut().zip(rows) {
            *scale = row;
        }
        Ok(Self { n, k, tiles, scales })
    }

    /// Outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tiles.bytes() + (self.scales.len() * size_of::<[f32; ROWS]>()) as u64
    }

    /// Moves the tiles, in `n_parts` equal runs that threads share alike, to the nodes of their threads.
    pub(crate) fn spread(&mut self, nodes: &Nodes, n_parts: usize) -> Result<()> {
        self.tiles.spread("a weight matrix", nodes, n_parts)
    }

    /// The scales of the rows, by tile.
    pub(crate) fn scales(&self) -> &[[f32; ROWS]] {
        &self.scales
    }

    /// Tile `i` and the scales of its rows.
    pub(crate) fn tile(&self, i: usize) -> (&[Group], &[f32; ROWS]) {
        let groups = self.k / CODES_PER_WORD;
        (&self.tiles[i * groups..][..groups], &self.scales[i])
    }
}

/// A dense (rows, cols) matrix, row-major: an embedding, an output head.
#[derive(Debug)]
pub struct DenseMatrix {
    rows: usize,
    cols: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Bf16(Buffer<Bf16>),
    F16(Buffer<F16>),
    F32(Buffer<f32>),
}

impl DenseMatrix {
    /// Rows that `read` is asked for at a time, in bytes.
    const READ_BYTES: usize = 4 << 20;

    /// Reads a matrix a few rows at a time, in order: `read(first, bytes)` fills `bytes` with the rows from `first`, as
    /// many as fit, elements in little-endian order.
    ///
    /// # Errors
    /// When memory cannot be had, or whatever `read` reports.
    pub fn read<E: From<Error>>(
        kind: DenseDtype,
        (rows, cols): (usize, usize),
        read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let data = match kind {
            DenseDtype::Bf16 => Data::Bf16(fill(rows, cols, |b| Bf16(u16::from_le_bytes(b)), read)?),
            DenseDtype::F16 => Data::F16(fill(rows, cols, |b| F16(u16::from_le_bytes(b)), read)?),
            DenseDtype::F32 => Data::F32(fill(rows, cols, f32::from_le_bytes, read)?),
        };
        Ok(Self { rows, cols, data })
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.data {
            Data::Bf16(data) => data.bytes(),
            Data::F16(data) => data.bytes(),
            Data::F32(data) => data.bytes(),
        }
    }

    /// Moves the rows to the nodes of the threads that share them.
    pub(crate) fn spread(&mut self, nodes: &Nodes) -> Result<()> {
        let what = "a dense matrix";
        match &mut self.data {
            Data::Bf16(data) => data.spread(what, nodes, 1),
            Data::F16(data) => data.spread(what, nodes, 1),
            Data::F32(data) => data.spread(what, nodes, 1),
        }
    }

    /// `len` rows from `first`.
    pub(crate) fn weights(&self, first: usize, len: usize) -> Weights<'_> {
        let range = first * self.cols..(first + len) * self.cols;
        match &self.data {
            Data::Bf16(data) => Weights::Bf16(&data[range]),
            Data::F16(data) => Weights::F16(&data[range]),
            Data::F32(data) => Weights::F32(&data[range]),
        }
    }
}

/// Reads a matrix of elements of `BYTES` bytes each.
fn fill<T: Plain, const BYTES: usize, E: From<Error>>(
    rows: usize,
    cols: usize,
    element: impl Fn([u8; BYTES]) -> T,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<Buffer<T>, E> {
    let what = "a dense matrix";
    let len = rows.checked_mul(cols).ok_or(Error::Memory {
        what,
        bytes: usize::MAX,
    })?;
    let mut data = Buffer::<T>::zeroed(what, len, Pages::Huge)?;
    if data.is_empty() {
        return Ok(data);
    }
    let rows_at_once = (DenseMatrix::READ_BYTES / (cols * BYTES)).clamp(1, rows);
    let mut bytes = Buffer::<u8>::zeroed(what, rows_at_once * cols * BYTES, Pages::Lazy)?;
    for (chunk, out) in data.chunks_mut(rows_at_once * cols).enumerate() {
        let bytes = &mut bytes[..out.len() * BYTES];
        read(chunk * rows_at_once, bytes)?;
        for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
            *out = element(bytes);
        }
    }
    Ok(data)
}
