//! An 8-bit output head: rows of 8-bit weights, one scale a row, times activations of as many bits as an exact 32-bit
//! sum allows (about 13 at 2,560 columns), so that nearly all of the error is the weights'.

use bitnet_layout::act::head_largest;
use bitnet_layout::ternary::round_ties_even;

use crate::cpu::{Cpu, claim_bytes};
use crate::error::check_size;
use crate::memory::{Buffer, Pages};
use crate::pool::Shards;
use crate::{DenseMatrix, Error, Result, Simd};

/// Rows of a tile.
const ROWS: usize = 16;

/// Tiles that are read side by side, as in [`crate::integer`].
const TILES: usize = 4;

/// Two columns of the 16 rows of a tile.
type Pair = [[i8; 2]; ROWS];

/// An (n, k) matrix of 8-bit weights: `w[r][c]` is about `q[r][c] * scale[r]`.
#[derive(Debug)]
pub struct Int8Matrix {
    n: usize,
    k: usize,
    /// Tiles of 16 rows one after the other, `k / 2` pairs of columns each; zeros past `n`.
    tiles: Buffer<Pair>,
    /// By row; zeros past `n`.
    scales: Vec<[f32; ROWS]>,
}

/// Activations for an [`Int8Matrix`], allocated once for the largest batch.
#[derive(Debug)]
pub struct Int8Input {
    max_tokens: usize,
    k: usize,
    /// Rows of pairs of columns.
    q: Buffer<[i16; 2]>,
    /// By row, what a unit is worth.
    inverse: Vec<f32>,
}

impl Int8Matrix {
    /// Rounds each row of `w` to multiples of a 127th of its largest magnitude, on the threads of `cpu`.
    ///
    /// # Errors
    /// When memory cannot be had, or the columns are odd in number or more than an exact sum allows.
    pub fn new(cpu: &Cpu, w: &DenseMatrix) -> Result<Self> {
        let (n, k) = (w.rows(), w.cols());
        check_size("columns past an even number", k % 2, 0)?;
        check_size(
            "columns past those of an exact sum",
            k.saturating_sub(MAX_COLUMNS),
            0,
        )?;
        let n_tiles = n.div_ceil(ROWS);
        let mut tiles = Buffer::<Pair>::zeroed("an 8-bit head", n_tiles * (k / 2), Pages::Huge)?;
        let mut scales = vec![[0.0; ROWS]; n_tiles];
        let (shared_tiles, shared_scales) = (Shards::new(&mut tiles), Shards::new(&mut scales));
        cpu.pool.run(n_tiles, &|i, _| {
            // SAFETY: each tile is one chunk.
            let (tile, scales) = unsafe { (shared_tiles.get(i * (k / 2), k / 2), shared_scales.get(i, 1)) };
            let mut row = vec![0.0; k];
            for r in 0..ROWS.min(n - ROWS * i) {
                w.weights(ROWS * i + r, 1).copy_to(&mut row);
                let max = absmax(&row);
                // A row of zeros stays one; a NaN or an infinity makes the scale, and so every output, the same.
                let factor = if max == 0.0 { 0.0 } else { 127.0 / max };
                scales[0][r] = max / 127.0;
                for (pair, w) in tile.iter_mut().zip(row.as_chunks::<2>().0) {
                    pair[r] = w.map(|w| round_ties_even(w * factor) as i8);
                }
            }
        });
        Ok(Self { n, k, tiles, scales })
    }

    /// Outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tiles.bytes() + (self.scales.len() * size_of::<[f32; ROWS]>()) as u64
    }
}

impl Int8Input {
    /// Room for `max_tokens` rows of `k` columns.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(max_tokens: usize, k: usize) -> Result<Self> {
        let what = "the input of the head";
        let bytes = usize::MAX;
        let len = max_tokens
            .checked_mul(k / 2)
            .ok_or(Error::Memory { what, bytes })?;
        Ok(Self {
            max_tokens,
            k,
            q: Buffer::zeroed(what, len, Pages::Lazy)?,
            inverse: vec![0.0; max_tokens],
        })
    }

    /// Size in memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.q.bytes() + (self.inverse.len() * size_of::<f32>()) as u64
    }

    /// Quantizes the rows of `x`.
    fn fill(&mut self, x: &[f32]) {
        let largest = head_largest(self.k) as f32;
        let rows = self.q.chunks_exact_mut(self.k / 2).zip(&mut self.inverse);
        for ((q, inverse), x) in rows.zip(x.chunks_exact(self.k)) {
            let max = absmax(x);
            // The floor keeps the quotient finite; a NaN passes it.
            let scale = largest / if max < 1e-20 { 1e-20 } else { max };
            *inverse = 1.0 / scale;
            for (q, x) in q.iter_mut().zip(x.as_chunks::<2>().0) {
                *q = x.map(|x| round_ties_even(x * scale) as i16);
            }
        }
    }
}

/// Columns whose exact sum leaves activations 8 bits.
const MAX_COLUMNS: usize = i32::MAX as usize / (127 * 128);

/// Largest magnitude, NaN if there is one: as integers the magnitudes of floats are in their order, with NaN above all.
fn absmax(x: &[f32]) -> f32 {
    let max = x.iter().fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
    f32::from_bits(max)
}

impl Cpu {
    /// `y = W x` for every row of `x`, (tokens, k), into `y`, (tokens, n).
    ///
    /// # Errors
    /// When the sizes do not fit each other or `input` has no room for so many rows.
    pub fn dense_int8(&self, w: &Int8Matrix, x: &[f32], input: &mut Int8Input, y: &mut [f32]) -> Result<()> {
        let (n, k) = (w.n, w.k);
        let n_tokens = x.len().checked_div(k).unwrap_or(0);
        check_size("elements of the head's input", x.len(), n_tokens * k)?;
        check_size("elements of the head's output", y.len(), n_tokens * n)?;
        check_size("columns of the room for the head's input", input.k, k)?;
        check_size(
            "tokens past that room",
            n_tokens.saturating_sub(input.max_tokens),
            0,
        )?;
        input.fill(x);
        let dot = path(self.simd());
        let (q, inverse) = (&*input.q, &input.inverse);
        let claim = claim_bytes(n * k, self.n_threads());
        let tiles_at_once = (claim / (ROWS * k.max(1))).max(1);
        let y = Shards::new(y);
        self.pool
            .run(w.scales.len().div_ceil(tiles_at_once), &|chunk, _| {
                let first = chunk * tiles_at_once;
                let end = w.scales.len().min(first + tiles_at_once);
                for i in (first..end).step_by(TILES) {
                    // Past the last tile it is multiplied again, for nothing.
                    let tiles = std::array::from_fn(|t| {
                        let tile = (i + t).min(w.scales.len() - 1);
                        &w.tiles[tile * (k / 2)..][..k / 2]
                    });
                    for token in 0..n_tokens {
                        let sums = dot(&tiles, &q[token * (k / 2)..][..k / 2]);
                        for (i, sums) in (i..end).zip(sums) {
                            let rows = ROWS.min(n - ROWS * i);
                            // SAFETY: each tile is in one chunk, and each token once in its loop.
                            let y = unsafe { y.get(token * n + ROWS * i, rows) };
                            for ((y, sum), scale) in y.iter_mut().zip(sums).zip(w.scales[i]) {
                                *y = sum as f32 * (scale * inverse[token]);
                            }
                        }
                    }
                }
            });
        Ok(())
    }
}

/// `sum over k of w[r][k] * x[k]` for the 16 rows of each tile, exactly; tiles and `x` are of one length.
type DotFn = fn(tiles: &[&[Pair]; TILES], x: &[[i16; 2]]) -> [[i32; ROWS]; TILES];

/// The code of an instruction set, the portable one where it has none of its own or this processor lacks it.
fn path(simd: Simd) -> DotFn {
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the guard found the features.
        Simd::Amx | Simd::Avx512Vnni if simd.is_available() => |tiles, x| unsafe { x86::avx512(tiles, x) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::AvxVnni | Simd::Avx2 if simd.is_available() => |tiles, x| unsafe { x86::avx2(tiles, x) },
        _ => portable,
    }
}

fn portable(tiles: &[&[Pair]; TILES], x: &[[i16; 2]]) -> [[i32; ROWS]; TILES] {
    tiles.map(|tile| {
        let mut sums = [0; ROWS];
        for (pair, x) in tile.iter().zip(x) {
            let x = x.map(i32::from);
            for (sum, w) in sums.iter_mut().zip(pair) {
                *sum += i32::from(w[0]) * x[0] + i32::from(w[1]) * x[1];
            }
        }
        sums
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Pair, ROWS, TILES};
    use crate::integer::AHEAD;

    /// A pair of activations as one lane value.
    #[inline(always)]
    fn lane(x: [i16; 2]) -> i32 {
        i32::from(x[0] as u16) | i32::from(x[1]) << 16
    }

    /// Asks for the line [`AHEAD`] of a pair of columns.
    #[inline(always)]
    fn prefetch(pair: &Pair) {
        let ahead = pair.as_ptr().cast::<i8>().wrapping_add(AHEAD);
        // SAFETY: a prefetch reads nothing that the program sees and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn avx512(tiles: &[&[Pair]; TILES], x: &[[i16; 2]]) -> [[i32; ROWS]; TILES] {
        let tiles = tiles.map(|tile| &tile[..x.len()]);
        // Two sums a tile hide the latency of 5 cycles.
        let mut sums = [[_mm512_setzero_si512(); 2]; TILES];
        for (c, &x) in x.iter().enumerate() {
            let x = _mm512_set1_epi32(lane(x));
            for (sums, tile) in sums.iter_mut().zip(tiles) {
                if c % 2 == 0 {
                    prefetch(&tile[c]);
                }
                // SAFETY: a pair of columns of 16 rows is 32 readable bytes.
                let w = unsafe { _mm256_loadu_si256(tile[c].as_ptr().cast()) };
                sums[c % 2] = _mm512_dpwssd_epi32(sums[c % 2], _mm512_cvtepi8_epi16(w), x);
            }
        }
        let mut out = [[0; ROWS]; TILES];
        for (sums, out) in sums.into_iter().zip(&mut out) {
            // SAFETY: `out` is 64 writable bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_add_epi32(sums[0], sums[1])) };
        }
        out
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(tiles: &[&[Pair]; TILES], x: &[[i16; 2]]) -> [[i32; ROWS]; TILES] {
        let tiles = tiles.map(|tile| &tile[..x.len()]);
        let mut sums = [[_mm256_setzero_si256(); 2]; TILES];
        for (c, &x) in x.iter().enumerate() {
            let x = _mm256_set1_epi32(lane(x));
            for (sums, tile) in sums.iter_mut().zip(tiles) {
                prefetch(&tile[c]);
                for (sum, half) in sums.iter_mut().zip(tile[c].as_chunks::<8>().0) {
                    // SAFETY: a pair of columns of 8 rows is 16 readable bytes.
                    let w = unsafe { _mm_loadu_si128(half.as_ptr().cast()) };
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_cvtepi8_epi16(w), x));
                }
            }
        }
        let mut out = [[0; ROWS]; TILES];
        for (sums, out) in sums.into_iter().zip(&mut out) {
            for (sums, out) in sums.into_iter().zip(out.as_chunks_mut::<8>().0) {
                // SAFETY: `out` is 32 writable bytes.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use bitnet_layout::random::Random;

    use super::*;
    use crate::DenseDtype;

    fn matrix(rows: usize, cols: usize, w: &[f32]) -> DenseMatrix {
        let read = |first: usize, out: &mut [u8]| {
            for (out, w) in out.as_chunks_mut::<4>().0.iter_mut().zip(&w[first * cols..]) {
                *out = w.to_le_bytes();
            }
            Ok::<(), Error>(())
        };
        DenseMatrix::read(DenseDtype::F32, (rows, cols), read).unwrap()
    }

    fn numbers(seed: u64, len: usize) -> Vec<f32> {
        let mut random = Random::new(seed);
        let next = std::iter::repeat_with(|| (random.word() >> 8) as f32 / 8_388_608.0 - 1.0);
        next.take(len).collect()
    }

    #[test]
    fn every_path_gives_the_same_bits_near_the_exact_product() {
        for (n, k, n_tokens) in [(1, 2, 1), (15, 16, 2), (16, 18, 1), (33, 64, 3), (40, 2560, 2)] {
            let (w, x) = (numbers(1, n * k), numbers(2, n_tokens * k));
            let mut expected: Option<Vec<u32>> = None;
            for simd in Simd::available() {
                let cpu = Cpu::new(Some(simd), Some(2)).unwrap();
                let head = Int8Matrix::new(&cpu, &matrix(n, k, &w)).unwrap();
                let mut input = Int8Input::new(n_tokens, k).unwrap();
                let mut y = vec![f32::NAN; n_tokens * n];
                cpu.dense_int8(&head, &x, &mut input, &mut y).unwrap();
                for (i, &found) in y.iter().enumerate() {
                    let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                    let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    // Each weight is off by at most half a 127th of the largest, 1; six sigma of their sum.
                    let bound = 6.0 * (k as f64).sqrt() / 254.0;
                    assert!(
                        (f64::from(found) - exact).abs() < bound,
                        "{simd} {n} {k}: {found} {exact}"
                    );
                }
                let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
                assert_eq!(&bits, expected.get_or_insert(bits.clone()), "{simd} {n} {k}");
            }
        }
    }

    #[test]
    fn extremes_do_not_overflow_and_bad_numbers_show() {
        for k in [2, 2560, 8192, MAX_COLUMNS / 2 * 2] {
            for simd in Simd::available() {
                let cpu = Cpu::new(Some(simd), Some(1)).unwrap();
                let mut w = vec![-3.0; 2 * k];
                w[k..].fill(0.0);
                let head = Int8Matrix::new(&cpu, &matrix(2, k, &w)).unwrap();
                let mut input = Int8Input::new(1, k).unwrap();
                let mut y = [f32::NAN; 2];
                cpu.dense_int8(&head, &vec![5.0; k], &mut input, &mut y).unwrap();
                let exact = -15.0 * k as f32;
                assert!(
                    (y[0] - exact).abs() <= 1e-6 * exact.abs() && y[1] == 0.0,
                    "{simd} {k} {y:?}"
                );
                cpu.dense_int8(&head, &vec![f32::NAN; k], &mut input, &mut y)
                    .unwrap();
                assert!(y.iter().all(|y| y.is_nan()), "{simd} {k} {y:?}");
            }
        }
    }
}
