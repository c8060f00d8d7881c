//! Integer products of a batch: codes are unpacked once for many rows of activations.
//!
//! The loops around a kernel keep what is used again close by: a block of columns of two tiles, unpacked, stays in the
//! first-level cache while all rows of activations pass; those columns of the activations stay in the second-level cache
//! while the tiles of a panel pass; and sums wait in memory between blocks of columns.

use bitnet_layout::row_tiles::Group;

use crate::integer::{Block, COLUMN_STEP, Integer, Piece, Quad, SWEEP_ROWS, TOKEN_STEP};
use crate::memory::{Buffer, Pages};
use crate::{Error, Result};

/// Columns of a block: two tiles of them, unpacked, are 16 KiB.
const COLUMNS: usize = 512;

/// Most tiles of a panel, which one thread multiplies.
pub(crate) const PANEL: usize = 12;

/// Rows of activations of a panel.
pub(crate) const TOKENS: usize = 512;

/// Rows of activations that take as long to multiply as a panel's weights take to unpack.
const UNPACKING: usize = 32;

/// How a product of `n_tiles` and `n_tokens` is cut for some threads: tiles of a panel, at most `most`, and rows of activations of
/// a span, so that the threads end together. That the activations come from a farther cache for each panel counts as half a tile.
pub(crate) fn cut(n_tiles: usize, most: usize, n_tokens: usize, n_threads: usize) -> (usize, usize) {
    let spans = [TOKENS, TOKENS / 2, TOKENS / 4];
    let spans = spans
        .into_iter()
        .filter(|&span| span == TOKENS || span < n_tokens);
    let widths = (most.div_ceil(2)..=most).rev();
    let turns = |width: usize, span: usize| {
        let n_panels = n_tiles.div_ceil(width) * n_tokens.div_ceil(span);
        n_panels.div_ceil(n_threads) * (2 * width + 1) * (span.min(n_tokens) + UNPACKING)
    };
    let cuts = spans.flat_map(|span| widths.clone().map(move |width| (width, span)));
    cuts.min_by_key(|&(width, span)| turns(width, span))
        .unwrap_or((most, TOKENS))
}

/// Bytes of the activations of a span of a sweep, at most: beside a panel's weights they stay in the second-level cache.
const SPAN_BYTES: usize = 1 << 20;

/// Fewest rows of activations of a span where several threads could have fewer.
const LEAST_SPAN: usize = 64;

/// How a product of `n_pairs` pairs of tiles with some rows of `k` activations is cut for sweeps: pairs of a panel, and rows of a span. Threads
/// have rows of their own rather than columns, two threads the same ones, because what another core wrote comes slowly; and each
/// has some panels, so that they end together.
pub(crate) fn cut_sweeps(n_pairs: usize, (n_tokens, k): (usize, usize), n_threads: usize) -> (usize, usize) {
    let most = (SPAN_BYTES / k.max(1) / SWEEP_ROWS * SWEEP_ROWS).clamp(SWEEP_ROWS, TOKENS);
    let apart = (n_threads / 2).min(n_tokens / LEAST_SPAN);
    let n_spans = n_tokens.div_ceil(most).max(apart).max(1);
    let span = n_tokens.div_ceil(n_spans).next_multiple_of(SWEEP_ROWS);
    let n_spans = n_tokens.div_ceil(span);
    let width = n_pairs * n_spans / (4 * n_threads);
    (width.clamp(1, PANEL / 2), span)
}

/// What the kernels write between their loops, for each thread.
#[derive(Debug)]
pub(crate) struct Scratch {
    codes: Buffer<Quad>,
    sums: Buffer<[i32; 16]>,
    n_tokens: usize,
}

/// One thread's part of a [`Scratch`].
pub(crate) struct Workspace<'a> {
    pub(crate) codes: &'a mut [Quad],
    pub(crate) sums: &'a mut [[i32; 16]],
}

impl Scratch {
    /// Quads of two tiles' blocks.
    pub(crate) const CODES: usize = 2 * COLUMNS / 4;

    /// For `n_threads` threads and batches up to `max_tokens`.
    pub(crate) fn new(n_threads: usize, max_tokens: usize) -> Result<Self> {
        let what = "the products of a batch";
        let n_tokens = max_tokens.min(TOKENS).next_multiple_of(TOKEN_STEP);
        let len = |each: usize| {
            let bytes = usize::MAX;
            n_threads.checked_mul(each).ok_or(Error::Memory { what, bytes })
        };
        Ok(Self {
            codes: Buffer::zeroed(what, len(Self::CODES)?, Pages::Lazy)?,
            sums: Buffer::zeroed(what, len(PANEL * n_tokens)?, Pages::Lazy)?,
            n_tokens,
        })
    }

    /// Size in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.codes.bytes() + self.sums.bytes()
    }

    /// The codes, and the sums, of all threads, and the sums of each.
    pub(crate) fn parts(&mut self) -> (&mut [Quad], &mut [[i32; 16]], usize) {
        (&mut self.codes, &mut self.sums, PANEL * self.n_tokens)
    }
}

/// `sums[i][t]` of up to [`PANEL`] tiles and `n_tokens` rows of activations, packed as in [`Block`] with `stride` pieces
/// for each step of rows; the sums of tile i begin at `i * n` for the `n` returned.
pub(crate) fn panel(
    kernels: &Integer,
    tiles: &[&[Group]],
    x: &[Piece],
    stride: usize,
    n_tokens: usize,
    work: &mut Workspace<'_>,
) -> usize {
    let padded = n_tokens.next_multiple_of(TOKEN_STEP);
    let k = stride * COLUMN_STEP;
    let columns = k.div_ceil(k.div_ceil(COLUMNS)).next_multiple_of(COLUMN_STEP);
    for first in (0..k).step_by(columns) {
        let end = k.min(first + columns);
        let n_quads = (end - first) / 4;
        for (pair, sums) in tiles.chunks(2).zip(work.sums.chunks_mut(2 * padded)) {
            let (low, high) = work.codes.split_at_mut(n_quads);
            let mut codes = [low, &mut high[..n_quads]];
            for (i, codes) in codes.iter_mut().enumerate() {
                // A panel with an odd number of tiles multiplies zeros in the place of the last.
                let tile = pair.get(i).copied().unwrap_or_default();
                let groups = tile.len().min(first / 16)..tile.len().min(end / 16);
                (kernels.unpack)(&tile[groups], codes);
            }
            let (low, high) = sums.split_at_mut(padded);
            (kernels.multiply)(&mut Block {
                codes: codes.map(|codes| &*codes),
                x: &x[first / COLUMN_STEP..],
                stride,
                n_tokens,
                sums: [low, high],
                more: first > 0,
            });
        }
    }
    padded
}

#[cfg(test)]
mod tests {
    use bitnet_layout::random::Random;
    use bitnet_layout::{reference, row_tiles, words};

    use super::*;
    use crate::Simd;

    #[test]
    fn threads_end_together() {
        // A 2B model's matrices, a prompt of 512: tiles, those of a panel that are columns of the output, threads.
        for (n_tiles, most, n_threads, expected) in [
            (160, PANEL, 1, (10, 512)),
            (160, PANEL, 2, (10, 512)),
            (160, PANEL, 16, (10, 512)),
            (432, PANEL / 2, 2, (6, 512)),
            (432, PANEL / 2, 16, (6, 256)),
            (160, PANEL, 64, (10, 128)),
        ] {
            assert_eq!(
                cut(n_tiles, most, 512, n_threads),
                expected,
                "{n_tiles} {n_threads}"
            );
        }
        // Fewer rows than a span, and more threads than there are panels.
        assert_eq!(cut(3, PANEL, 20, 1000).1, TOKENS);
    }

    #[test]
    fn threads_that_sweep_have_rows_of_their_own() {
        for (n_pairs, k, n_threads, expected) in [
            (80, 2560, 1, (6, 256)),
            (80, 2560, 2, (6, 256)),
            (80, 2560, 16, (6, 64)),
            (432, 2560, 16, (6, 64)),
            (80, 6912, 16, (6, 64)),
            (80, 6912, 2, (6, 128)),
            (80, 2560, 64, (2, 64)),
        ] {
            assert_eq!(
                cut_sweeps(n_pairs, (512, k), n_threads),
                expected,
                "{n_pairs} {k} {n_threads}"
            );
        }
        // Few rows are one span, and there are panels for many threads.
        assert_eq!(cut_sweeps(80, (20, 2560), 16), (1, SWEEP_ROWS));
        assert_eq!(cut_sweeps(1, (1, 1 << 30), 1000), (1, SWEEP_ROWS));
    }

    #[test]
    fn every_path_equals_the_reference() {
        let mut random = Random::new(7);
        for k in [16, 48, 64, 80, 640, 1152, 1168, 2560, 6912] {
            for n_tiles in [1, 2, 3, PANEL] {
                for n_tokens in [1, 2, 11, 12, 13, 16, 17, 31, 33, 48] {
                    let n = 16 * n_tiles;
                    if n * k * n_tokens > 3_000_000 {
                        continue;
                    }
                    let extreme = n_tokens == 2;
                    let mut t: Vec<i8> = (0..n * k).map(|_| (random.word() % 3) as i8 - 1).collect();
                    let mut x: Vec<i8> = (0..n_tokens * k).map(|_| random.word() as i8).collect();
                    if extreme {
                        t.fill(1);
                        x.fill(-128);
                    }
                    check(k, &t, &x);
                }
            }
        }
    }

    fn check(k: usize, t: &[i8], x: &[i8]) {
        let (n, n_tokens) = (t.len() / k, x.len() / k);
        let shape = words::Shape::new(n, k).unwrap();
        let mut packed = vec![0; shape.words()];
        words::pack_row(t, &mut packed);
        let mut expected = vec![0; n * n_tokens];
        reference::linear(shape, &packed, x, &mut expected);
        let mut tiles = vec![vec![[0; 16]; k / 16]; n / 16];
        for (i, tile) in tiles.iter_mut().enumerate() {
            row_tiles::fill(&packed, k / 16, i, tile);
        }
        let tiles: Vec<&[Group]> = tiles.iter().map(Vec::as_slice).collect();
        // Rows past the last are read and must not matter.
        let stride = k.div_ceil(COLUMN_STEP);
        let mut pieces = vec![[[99; COLUMN_STEP]; TOKEN_STEP]; n_tokens.div_ceil(TOKEN_STEP) * stride];
        for (i, x) in x.chunks_exact(k).enumerate() {
            let mut row = vec![[0; COLUMN_STEP]; stride];
            row.as_flattened_mut()[..k].copy_from_slice(x);
            for (piece, columns) in pieces[i / TOKEN_STEP * stride..].iter_mut().zip(row) {
                piece[i % TOKEN_STEP] = columns;
            }
        }
        for simd in Simd::available() {
            let kernels = Integer::new(simd).unwrap();
            let mut scratch = Scratch::new(1, n_tokens).unwrap();
            let (codes, sums, _) = scratch.parts();
            sums.as_flattened_mut().fill(i32::MIN);
            let mut work = Workspace { codes, sums };
            let each = panel(&kernels, &tiles, &pieces, stride, n_tokens, &mut work);
            for (token, x) in x.chunks_exact(k).enumerate() {
                let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
                for i in 0..tiles.len() {
                    let found = work.sums[i * each + token].map(|codes| codes - sum);
                    let expected = &expected[token * n + 16 * i..][..16];
                    assert_eq!(
                        found, expected,
                        "{simd}, k = {k}, tile {i}, token {token} of {n_tokens}"
                    );
                }
            }
        }
    }
}
