//! What the processor does for a model: the operations a transformer is made of, over plain slices.

use bitnet_layout::words::CODES_PER_WORD;

use crate::activations::{self, Activations, Norm, Precision};
use crate::cores::cores;
use crate::error::check_size;
use crate::float::{Float, TOKENS};
use crate::integer::{Integer, TOKEN_STEP};
use crate::matrix::DenseMatrix;
use crate::nodes::{self, Nodes, Numa};
use crate::pool::{Pool, Shards};
use crate::{Error, Result, Simd};

/// Weight bytes of a claim in a parallel loop over `bytes`: enough claims that the threads end together, and each some
/// microseconds of streaming, because a claim waits for all reads before it.
pub(crate) fn claim_bytes(bytes: usize, n_threads: usize) -> usize {
    (bytes / (8 * n_threads)).clamp(32 << 10, 256 << 10)
}

/// An instruction set and the threads to use it with.
pub struct Cpu {
    simd: Simd,
    pub(crate) float: Float,
    pub(crate) integer: Integer,
    pub(crate) pool: Pool,
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
    /// Most threads: more only share the memory that a few of them keep busy.
    pub const MAX_THREADS: usize = 1024;

    /// The best instruction set of this processor, or the one asked for, with `threads` threads, or as many as the
    /// system lets this process use. No more run than there are cores: more would wait for each other, since a loop ends when
    /// every part that was begun is done, whoever has begun it.
    ///
    /// # Errors
    /// When the processor lacks the instruction set, or a thread cannot be started.
    pub fn new(simd: Option<Simd>, threads: Option<usize>) -> Result<Self> {
        Self::on(simd, threads, Numa::System)
    }

    /// The same with threads on memory nodes; with [`Numa::Isolate`] no more than that node has processors.
    ///
    /// # Errors
    /// As for [`Cpu::new`], or when the system does not tell which processors are near which memory, as other systems than Linux.
    pub fn on(simd: Option<Simd>, threads: Option<usize>, numa: Numa) -> Result<Self> {
        let available = Simd::available();
        let simd = simd.unwrap_or(available[0]);
        let Some(integer) = Integer::new(simd) else {
            return Err(Error::Simd {
                wanted: simd,
                available,
            });
        };
        let threads = threads.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            cores.min(Self::MAX_THREADS)
        });
        if threads > Self::MAX_THREADS {
            return Err(Error::Threads {
                wanted: threads,
                max: Self::MAX_THREADS,
            });
        }
        // Tests want threads to be in each other's way.
        let most = if cfg!(test) { Self::MAX_THREADS } else { cores() };
        Ok(Self {
            simd,
            float: Float::new(simd),
            integer,
            pool: match Nodes::new(numa, |processors| threads.clamp(1, most.min(processors)))? {
                Some(nodes) => Pool::on(nodes)?,
                None => Pool::new(threads.clamp(1, most))?,
            },
        })
    }

    /// The same with threads on two nodes, whatever the machine has.
    #[cfg(test)]
    pub(crate) fn on_halves(simd: Simd, threads: usize) -> Self {
        let mut cpu = Self::new(Some(simd), Some(1)).unwrap();
        cpu.pool = Pool::on(Nodes::halves(threads)).unwrap();
        cpu
    }

    /// Memory nodes that the calling thread may run on; 1 where the system does not tell.
    #[must_use]
    pub fn memory_nodes() -> usize {
        nodes::count()
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

    /// Row `rows(t)` of `w` as row t of `out`, (tokens, cols).
    ///
    /// # Panics
    /// When a row is not in the matrix or `out` is of another size.
    pub fn gather(&self, w: &DenseMatrix, rows: &(dyn Fn(usize) -> usize + Sync), out: &mut [f32]) {
        let cols = w.cols();
        let n_tokens = out.len().checked_div(cols).unwrap_or(0);
        assert_eq!(out.len(), n_tokens * cols, "size of the gathered rows");
        let out = Shards::new(out);
        self.pool.run(n_tokens, &|token, _| {
            // SAFETY: rows differ between tokens.
            let out = unsafe { out.get(token * cols, cols) };
            w.weights(rows(token), 1).copy_to(out);
        });
    }

    /// The cosine and the sine of each token's position times each frequency, (tokens, frequencies).
    ///
    /// # Panics
    /// When `cos` and `sin` are not whole rows, or not as many.
    pub fn angles(
        &self,
        position: &(dyn Fn(usize) -> usize + Sync),
        frequencies: &[f32],
        cos: &mut [f32],
        sin: &mut [f32],
    ) {
        let n = frequencies.len();
        let n_tokens = cos.len().checked_div(n).unwrap_or(0);
        assert!(
            cos.len() == n_tokens * n && sin.len() == cos.len(),
            "rows of angles"
        );
        let (cos, sin) = (Shards::new(cos), Shards::new(sin));
        self.pool.run(n_tokens, &|token, _| {
            let pos = position(token);
            // SAFETY: rows differ between tokens.
            let (cos, sin) = unsafe { (cos.get(token * n, n), sin.get(token * n, n)) };
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                // The angle is an f32, as it is in transformers; its cosine and sine are rounded once.
                let angle = f64::from(pos as f32 * frequency);
                (*cos, *sin) = (angle.cos() as f32, angle.sin() as f32);
            }
        });
    }

    /// Makes activations of the rows of `x`, (tokens, k): applies `norms` in order, then quantizes. Where k is no multiple of 16,
    /// the rows are filled up with zeros to the next, which the columns of a [`crate::TernaryMatrix`] then are.
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
        let width = k.next_multiple_of(CODES_PER_WORD);
        (a.n_tokens, a.k) = (n_tokens, width);
        let (n_steps, max_steps) = (activations::steps(k), activations::steps(a.max_k));
        let (precision, max_k) = (a.precision, a.max_k);
        let packed = precision == Precision::Int8 && n_tokens > 1;
        let (rows, q) = (Shards::new(&mut a.x), Shards::new(&mut a.q));
        let (inverse, sum) = (Shards::new(&mut a.inverse), Shards::new(&mut a.sum));
        let row = Shards::new(&mut a.row);
        self.pool.run(n_tokens, &|token, thread| {
            let first = match precision {
                Precision::Int8 => thread * max_k,
                Precision::F32 => token * width,
            };
            // SAFETY: rows differ between tokens, and threads between calls that run at one time.
            let floats = unsafe { rows.get(first, width) };
            // A product before this one has read the lines that are written below: cores that have them are asked for them now.
            let place = token / TOKEN_STEP * TOKEN_STEP * n_steps + token % TOKEN_STEP;
            if packed {
                (0..n_steps).for_each(|piece| q.ask(place + TOKEN_STEP * piece));
            }
            let (floats, padding) = floats.split_at_mut(k);
            padding.fill(0.0);
            let from = &x[token * k..][..k];
            if let Some((first, norms)) = norms.split_first() {
                (self.float.rms_norm_to)(from, first.weight, first.eps, floats);
                for norm in norms {
                    (self.float.rms_norm)(floats, norm.weight, norm.eps);
                }
            } else {
                floats.copy_from_slice(from);
            }
            if precision == Precision::F32 {
                return;
            }
            // SAFETY: as above.
            let (inverse, sum) = unsafe { (inverse.get(token, 1), sum.get(token, 1)) };
            let row = match packed {
                // SAFETY: as above.
                true => unsafe { row.get(thread * max_steps, n_steps) },
                // SAFETY: as above.
                false => unsafe { q.get(token * n_steps, n_steps) },
            };
            let (values, padding) = row.as_flattened_mut().split_at_mut(k);
            let next = &x[(token + 1) * k..];
            (inverse[0], sum[0]) = (self.float.quantize)(floats, values, &next[..k.min(next.len())]);
            padding.fill(0);
            if packed {
                for (piece, columns) in row.iter().enumerate() {
                    // SAFETY: a row of a piece belongs to one token.
                    unsafe { q.get(place + TOKEN_STEP * piece, 1)[0] = *columns };
                }
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
        let n_tokens = angles.cos.len() / half;
        let (cos, sin) = (angles.cos, angles.sin);
        assert!(
            cos.len() == n_tokens * half && sin.len() == cos.len(),
            "angles of a token"
        );
        let x = Shards::new(x);
        self.pool.run(n_tokens, &|token, _| {
            // SAFETY: rows differ between tokens.
            let row = unsafe { x.get(token * stride + first, count * dim) };
            for head in row.chunks_exact_mut(dim) {
                (self.float.rotate)(head, &cos[token * half..][..half], &sin[token * half..][..half]);
            }
        });
    }

    /// RMSNorm of each of the heads in the rows of `x`.
    ///
    /// # Panics
    /// When the heads do not fit the rows, `x` is not whole rows, or the norm is of another length than a head.
    pub fn norm_heads(&self, x: &mut [f32], heads: Heads, norm: Norm<'_>) {
        let Heads {
            stride,
            first,
            count,
            dim,
        } = heads;
        assert!(dim > 0 && norm.weight.len() == dim && first + count * dim <= stride);
        assert!(x.len().is_multiple_of(stride), "whole rows");
        for row in x.chunks_exact_mut(stride) {
            for head in row[first..first + count * dim].chunks_exact_mut(dim) {
                (self.float.rms_norm)(head, norm.weight, norm.eps);
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
        let claim = claim_bytes(2 * rows * cols, self.n_threads());
        let rows_at_once = (claim / (2 * cols.max(1))).max(1);
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
