//! The input of ternary matrices: a row for each token, normed and quantized.

use bitnet_layout::words::CODES_PER_WORD;

use crate::gemm;
use crate::integer::{COLUMN_STEP, Line, TOKEN_STEP};
use crate::memory::{Buffer, Pages};
use crate::{Error, Result};

/// What the rows are multiplied as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 8-bit integers, one scale a row.
    Int8,
    /// Floats as they are.
    F32,
}

/// An RMSNorm: `w * (x / sqrt(mean(x^2) + eps))`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// One weight a column.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// Rows of activations, filled by [`crate::Cpu::prepare`] and read by [`crate::Cpu::matmul`]; allocated once for the
/// largest batch.
#[derive(Debug)]
pub struct Activations {
    pub(crate) precision: Precision,
    pub(crate) max_tokens: usize,
    pub(crate) max_k: usize,
    pub(crate) n_tokens: usize,
    pub(crate) k: usize,
    /// Int8: scratch, a row for each thread. F32: the rows.
    pub(crate) x: Buffer<f32>,
    /// The rows of 8-bit values, padded with zeros to whole [`Columns`]: one as it is, several packed in pieces, as
    /// [`crate::integer::Few`] and [`crate::gemm`] read them.
    pub(crate) q: Buffer<Columns>,
    /// A row of 8-bit values for each thread.
    pub(crate) row: Buffer<Columns>,
    /// By row, what an 8-bit unit is worth.
    pub(crate) inverse: Vec<f32>,
    /// By row, the sum of its 8-bit values.
    pub(crate) sum: Vec<i32>,
    /// For products of many rows.
    pub(crate) scratch: gemm::Scratch,
    /// For products that leave zeros out.
    pub(crate) zeros: ZeroRoom,
}

/// 8-bit values of as many columns as a kernel takes in one step.
pub(crate) type Columns = [i8; COLUMN_STEP];

impl Activations {
    /// Room for `max_tokens` rows of `max_k` columns, to be filled by `n_threads` threads. Columns are filled up to whole words of
    /// weights.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(precision: Precision, n_threads: usize, max_tokens: usize, max_k: usize) -> Result<Self> {
        let what = "activations";
        let max_k = max_k
            .checked_next_multiple_of(CODES_PER_WORD)
            .unwrap_or(usize::MAX);
        let size = |rows: usize, cols: usize| {
            let bytes = usize::MAX;
            rows.checked_mul(cols).ok_or(Error::Memory { what, bytes })
        };
        let (x_rows, q_rows) = match precision {
            Precision::Int8 => (n_threads, max_tokens),
            Precision::F32 => (max_tokens, 0),
        };
        // Kernels read whole steps of rows.
        let padded = q_rows.checked_next_multiple_of(TOKEN_STEP).unwrap_or(usize::MAX);
        Ok(Self {
            precision,
            max_tokens,
            max_k,
            n_tokens: 0,
            k: 0,
            x: Buffer::zeroed(what, size(x_rows, max_k)?, Pages::Lazy)?,
            q: Buffer::zeroed(what, size(padded, steps(max_k))?, Pages::Huge)?,
            row: Buffer::zeroed(what, size(n_threads, steps(max_k))?, Pages::Lazy)?,
            inverse: vec![0.0; q_rows],
            sum: vec![0; q_rows],
            scratch: gemm::Scratch::new(n_threads, q_rows)?,
            zeros: ZeroRoom::default(),
        })
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.x.bytes() + self.q.bytes() + (self.sum.len() * 8) as u64 + self.scratch.bytes()
    }

    /// Of some rows of 8-bit values, at most [`TOKEN_STEP`], the columns in which one at least is not zero.
    pub(crate) fn n_nonzero(&self) -> usize {
        if self.n_tokens == 1 {
            return n_nonzero(&self.q[..steps(self.k)], |&columns| columns);
        }
        let pieces = &self.q.as_chunks::<TOKEN_STEP>().0[..steps(self.k)];
        n_nonzero(pieces, |rows| any(&rows[..self.n_tokens]))
    }

    /// How much products left out so far, because it was zero.
    #[must_use]
    pub fn zeros(&self) -> ZeroCounts {
        self.zeros.counts
    }
}

/// Steps of columns of a row of `k`.
pub(crate) fn steps(k: usize) -> usize {
    k.div_ceil(COLUMN_STEP)
}

/// Columns in which what `columns` gives for the steps is not zero. They are counted side by side, in bytes, which compilers turn into
/// vector code: other threads wait.
fn n_nonzero<T>(steps: &[T], columns: impl Fn(&T) -> Columns) -> usize {
    let count = |steps: &[T]| {
        let mut n = [0_u8; COLUMN_STEP];
        for step in steps {
            let columns = columns(step);
            n.iter_mut()
                .zip(columns)
                .for_each(|(n, x)| *n += u8::from(x != 0));
        }
        n.into_iter().map(usize::from).sum::<usize>()
    };
    steps.chunks(usize::from(u8::MAX)).map(count).sum()
}

/// For each column, something that is zero only where all rows are.
pub(crate) fn any(rows: &[Columns]) -> Columns {
    let mut any = [0; COLUMN_STEP];
    for row in rows {
        any.iter_mut().zip(row).for_each(|(any, x)| *any |= x);
    }
    any
}

/// How much was left out of products with a few rows of activations: what none of them needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroCounts {
    /// Rows that were multiplied.
    pub rows: u64,
    /// Rows that there were.
    pub of_rows: u64,
    /// Columns that were read.
    pub columns: u64,
    /// Columns that there were.
    pub of_columns: u64,
}

impl ZeroCounts {
    /// Those since `earlier` ones.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            rows: self.rows - earlier.rows,
            of_rows: self.of_rows - earlier.of_rows,
            columns: self.columns - earlier.columns,
            of_columns: self.of_columns - earlier.of_columns,
        }
    }

    /// The share of the rows, and of the columns, that was left out; none where nothing could be. Of several tokens rows never are.
    #[must_use]
    pub fn shares(self) -> Option<(f64, f64)> {
        let share = |n: u64, of: u64| match of {
            0 => 0.0,
            _ => 1.0 - n as f64 / of as f64,
        };
        let counted = self.of_columns > 0;
        counted.then(|| {
            (
                share(self.rows, self.of_rows),
                share(self.columns, self.of_columns),
            )
        })
    }
}

/// What products without zeros write, grown as it is needed; and how they went.
#[derive(Debug, Default)]
pub(crate) struct ZeroRoom {
    /// Activations, as [`crate::integer::SomeRows::x`].
    pub(crate) x: Vec<[Line; 4]>,
    /// By thread, then row of activations, sums of its columns; zeros between products.
    pub(crate) sums: Vec<[i32; 16]>,
    /// Whether `sums` are something else, because a product did not end.
    pub(crate) is_dirty: bool,
    pub(crate) counts: ZeroCounts,
}

impl ZeroRoom {
    /// Puts the activations where the rows of weights want them.
    pub(crate) fn spread(&mut self, q: &[i8], width: usize) {
        self.x.clear();
        self.x.resize(width, [[0; 16]; 4]);
        for (i, columns) in q.as_chunks::<CODES_PER_WORD>().0.iter().enumerate() {
            for (p, four) in columns.as_chunks::<4>().0.iter().enumerate() {
                self.x[i / 16][p][i % 16] = u32::from_le_bytes(four.map(|x| x as u8));
            }
        }
    }
}
