//! What the processor does for a model: the operations a transformer is made of, over plain slices.

use crate::activations::{self, Activations, Norm, Precision};
use crate::dot::{self, DotFn, Rows};
use crate::error::check_size;
use crate::float::{Float, TOKENS};
use crate::matrix::{DenseMatrix, TernaryMatrix};
use crate::pool::{Pool, Shards};
use crate::{Error, Result, Simd};

/// Weight bytes of a claim in a parallel loop: a few microseconds of streaming, far above the cost of claiming.
const CHUNK_BYTES: usize = 32 << 10;

/// Rows of activations multiplied with one tile before the next: their sums stay in the first-level cache.
const TOKEN_BLOCK: usize = 64;

/// An instruction set and the threads to use it with.
pub struct Cpu {
    simd: Simd,
    pub(crate) float: Float,
    dot: DotFn,
    pub(crate) pool: Pool,
}

/// What happens to the old values of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// They are replaced.
    Replace,
    /// The result is added to them.
    Add,
}

/// Where a matrix product goes: some columns of row-major rows, one row a token.
#[derive(Debug)]
pub struct Output<'a> {
    /// The rows.
    pub data: &'a mut [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// First column to write.
    pub first: usize,
    /// What happens to the old values.
    pub write: Write,
}

/// The gate of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `relu(gate)^2 * up`.
    Relu2,
    /// `gate * sigmoid(gate) * up`.
    Silu,
}

/// Rotations of the positions of a batch: (tokens, head_dim / 2) cosines, and as many sines.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// Heads inside row-major rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Elements from one row to the next.
    pub stride: usize,
    /// First column of the first head.
    pub first: usize,
    /// Heads.
    pub count: usize,
    /// Elements of a head.
    pub dim: usize,
}

impl Cpu {
    /// The best instruction set of this processor, or the one asked for, with `threads` threads, or as many as the
    /// system lets this process use.
    ///
    /// # Errors
    /// When the processor lacks the instruction set, or a thread cannot be started.
    pub fn new(simd: Option<Simd>, threads: Option<usize>) -> Result<Self> {
        let available = Simd::available();
        let simd = simd.unwrap_or(available[0]);
        let Some(dot) = dot::path(simd) else {
            return Err(Error::Simd {
                wanted: simd,
                available,
            });
        };
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        Ok(Self {
            simd,
            float: Float::new(simd),
            dot,
            pool: Pool::new(threads.max(1))?,
        })
    }

    /// The instruction set in use.
    #[must_use]
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// Threads, the caller's among them.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Row `rows[t]` of `w` as row t of `out`, (rows, cols).
    ///
    /// # Panics
    /// When a row is not in the matrix or `out` is of another size.
    pub fn gather(&self, w: &DenseMatrix, rows: impl ExactSizeIterator<Item = usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * w.cols(), "size of the gathered rows");
        if w.cols() > 0 {
            for (row, out) in rows.zip(out.chunks_exact_mut(w.cols())) {
                w.weights(row, 1).copy_to(out);
            }
        }
    }

    /// Makes activations of the rows of `x`, (tokens, k): applies `norms` in order, then quantizes.
    ///
    /// # Panics
    /// When `x` is not whole rows, or they are more or longer than `activations` has room for, or a norm is of another
    /// length.
    pub fn prepare(&self, x: &[f32], k: usize, norms: &[Norm<'_>], activations: &mut Activations) {
        let a = activations;
        assert!(
            k > 0 && k <= a.max_k && x.len().is_multiple_of(k),
            "{} elements, {k} columns",
            x.len()
        );
        let n_tokens = x.len() / k;
        assert!(
            n_tokens <= a.max_tokens,
            "{n_tokens} tokens, room for {}",
            a.max_tokens
        );
        (a.n_tokens, a.k) = (n_tokens, k);
        let (stride, precision, max_k) = (activations::stride(k), a.precision, a.max_k);
        let (rows, q) = (Shards::new(&mut a.x), Shards::new(&mut a.q));
        let (inverse, sum) = (Shards::new(&mut a.inverse), Shards::new(&mut a.sum));
        self.pool.run(n_tokens, &|token, thread| {
            let first = match precision {
                Precision::Int8 => thread * max_k,
                Precision::F32 => token * k,
            };
            // SAFETY: rows differ between tokens, and threads between calls that run at one time.
            let row = unsafe { rows.get(first, k) };
            row.copy_from_slice(&x[token * k..][..k]);
            for norm in norms {
                (self.float.rms_norm)(row, norm.weight, norm.eps);
            }
            if precision == Precision::Int8 {
                // SAFETY: rows differ between tokens.
                let (q, inverse, sum) = unsafe {
                    (
                        q.get(token * stride, stride),
                        inverse.get(token, 1),
                        sum.get(token, 1),
                    )
                };
                let (q, padding) = q.split_at_mut(k);
                (inverse[0], sum[0]) = (self.float.quantize)(row, q);
                padding.fill(0);
            }
        });
    }

    /// `y = W x` for every row x of `activations`.
    ///
    /// # Panics
    /// When the columns of `w` are not those of the activations, or the output is too small.
    pub fn matmul(&self, w: &TernaryMatrix, activations: &Activations, output: Output<'_>) {
        let a = activations;
        assert_eq!(w.k(), a.k, "columns of the matrix and of the activations");
        assert!(output.first + w.n() <= output.stride, "columns of the output");
        assert!(
            a.n_tokens * output.stride <= output.data.len(),
            "rows of the output"
        );
        let Output {
            data,
            stride,
            first,
            write,
        } = output;
        let data = Shards::new(data);
        let tiles_at_once = (CHUNK_BYTES / (4 * w.k().max(1))).max(1);
        self.pool.run(w.n_tiles().div_ceil(tiles_at_once), &|chunk, _| {
            let begin = chunk * tiles_at_once;
            for i in begin..w.n_tiles().min(begin + tiles_at_once) {
                let rows = (w.n() - 16 * i).min(16);
                self.tile(w, i, a, |token, y| {
                    // SAFETY: a token's 16 columns of this tile are written by no other tile.
                    let out = unsafe { data.get(token * stride + first + 16 * i, rows) };
                    match write {
                        Write::Replace => out.copy_from_slice(&y[..rows]),
                        Write::Add => out.iter_mut().zip(y).for_each(|(out, y)| *out += y),
                    }
                });
            }
        });
    }

    /// Calls `emit(token, y)` with the 16 outputs of tile `i` for every row of activations.
    fn tile(&self, w: &TernaryMatrix, i: usize, a: &Activations, mut emit: impl FnMut(usize, &[f32; 16])) {
        let (tile, scales) = w.tile(i);
        let mut y = [0.0; 16];
        match a.precision {
            Precision::F32 => {
                for token in 0..a.n_tokens {
                    let sums = (self.float.ternary)(tile, &a.x[token * a.k..][..a.k]);
                    y = std::array::from_fn(|r| sums[r] * scales[r]);
                    emit(token, &y);
                }
            }
            Precision::Int8 => {
                let stride = activations::stride(a.k);
                let mut codes = [[0; 16]; TOKEN_BLOCK];
                for first in (0..a.n_tokens).step_by(TOKEN_BLOCK) {
                    let codes = &mut codes[..(a.n_tokens - first).min(TOKEN_BLOCK)];
                    let x = &a.q[first * stride..];
                    (self.dot)(tile, Rows { x, stride }, codes);
                    for (codes, token) in codes.iter().zip(first..) {
                        (self.float.dequantize)(codes, a.sum[token], a.inverse[token], scales, &mut y);
                        emit(token, &y);
                    }
                }
            }
        }
    }

    /// Row t of `out`, (tokens, n): the gate of the first n columns of row t of `x` applied to the n columns that follow.
    ///
    /// # Panics
    /// When `x`, (tokens, 2 n), is not twice the size of `out`, or `out` is not whole rows.
    pub fn gate(&self, gate: Gate, x: &[f32], n: usize, out: &mut [f32]) {
        assert!(n > 0 && out.len().is_multiple_of(n) && x.len() == 2 * out.len());
        let n_tokens = out.len() / n;
        let out = Shards::new(out);
        self.pool.run(n_tokens, &|token, _| {
            let (gates, ups) = x[2 * n * token..][..2 * n].split_at(n);
            // SAFETY: rows differ between tokens.
            let out = unsafe { out.get(token * n, n) };
            match gate {
                Gate::Relu2 => (self.float.relu2)(gates, ups, out),
                Gate::Silu => (self.float.silu)(gates, ups, out),
            }
        });
    }

    /// Rotates heads by the angles of their token: elements i and i + dim / 2 of a head are a pair.
    ///
    /// # Panics
    /// When the heads do not fit the rows, or there are fewer rows than angles.
    pub fn rotate(&self, x: &mut [f32], heads: Heads, angles: Angles<'_>) {
        let Heads {
            stride,
            first,
            count,
            dim,
        } = heads;
        let half = dim / 2;
        assert!(half > 0 && dim % 2 == 0 && first + count * dim <= stride);
        let rows = angles.cos.chunks_exact(half).zip(angles.sin.chunks_exact(half));
        assert!(rows.len() * stride <= x.len());
        for ((cos, sin), row) in rows.zip(x.chunks_exact_mut(stride)) {
            for head in row[first..][..count * dim].chunks_exact_mut(dim) {
                (self.float.rotate)(head, cos, sin);
            }
        }
    }

    /// RMSNorm of each row of `x`, (tokens, weights).
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn rms_norm(&self, x: &mut [f32], norm: Norm<'_>) {
        assert!(x.len().is_multiple_of(norm.weight.len().max(1)));
        for row in x.chunks_exact_mut(norm.weight.len().max(1)) {
            (self.float.rms_norm)(row, norm.weight, norm.eps);
        }
    }

    /// `y = W x` for every row of `x`, (tokens, cols), into `y`, (tokens, rows).
    ///
    /// # Errors
    /// When the sizes do not fit each other.
    pub fn dense(&self, w: &DenseMatrix, x: &[f32], y: &mut [f32]) -> Result<()> {
        let (rows, cols) = (w.rows(), w.cols());
        let n_tokens = x.len().checked_div(cols).unwrap_or(0);
        check_size("elements of the head's input", x.len(), n_tokens * cols)?;
        check_size("elements of the head's output", y.len(), n_tokens * rows)?;
        let rows_at_once = (CHUNK_BYTES / (2 * cols.max(1))).max(1);
        let y = Shards::new(y);
        self.pool.run(rows.div_ceil(rows_at_once), &|chunk, _| {
            let first = chunk * rows_at_once;
            let len = rows_at_once.min(rows - first);
            for block in (0..n_tokens).step_by(TOKENS) {
                let n = TOKENS.min(n_tokens - block);
                let inputs: [&[f32]; TOKENS] = std::array::from_fn(|t| {
                    if t < n {
                        &x[(block + t) * cols..][..cols]
                    } else {
                        &[][..]
                    }
                });
                let mut outputs: [&mut [f32]; TOKENS] = Default::default();
                for (t, output) in outputs[..n].iter_mut().enumerate() {
                    // SAFETY: rows `first ..` of one token are written by this chunk alone, each token once.
                    *output = unsafe { y.get((block + t) * rows + first, len) };
                }
                (self.float.dense)(w.weights(first, len), &inputs[..n], &mut outputs[..n]);
            }
        });
        Ok(())
    }
}
