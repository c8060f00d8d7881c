//! A few rows of activations times tiles as they lie in memory: weights are read and unpacked once for all of them, and their sums
//! stay in registers.
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over arrays are what becomes registers"
)]

use std::ops::Range;

use bitnet_layout::row_tiles::Group;

use super::block::{COLUMN_STEP, Piece, TOKEN_STEP};
use super::dot::{AHEAD, TILES};
use super::isa::Isa;

/// Groups of a step of columns.
const GROUPS: usize = COLUMN_STEP / 16;

/// Quads of a step of columns.
const QUADS: usize = COLUMN_STEP / 4;

/// Steps of columns that are asked for ahead of their use.
const STEPS_AHEAD: usize = AHEAD / (GROUPS * size_of::<Group>());

/// Most rows of activations whose sums are in registers at a time.
const MOST: usize = 8;

/// Tiles of one length, and the rows to multiply them with.
#[derive(Clone, Copy)]
pub(crate) struct Few<'a> {
    /// The tiles.
    pub(crate) tiles: [&'a [Group]; TILES],
    /// Those that come next, whose beginnings are asked for; any where there are none.
    pub(crate) next: [&'a [Group]; TILES],
    /// Activations of all columns, a step of rows of them.
    pub(crate) x: &'a [Piece],
    /// How many of its rows there are.
    pub(crate) n_tokens: usize,
}

/// `out[i n_tokens + t][r] = sum over k of codes[i][r][k] * x[t][k]` for the 16 rows r of each tile i.
///
/// # Panics
/// When the tiles are not of one length, or the activations or `out` not of theirs.
#[inline(always)]
pub(super) fn few<I: Isa>(isa: I, job: &Few<'_>, out: &mut [[i32; 16]]) {
    let n = job.n_tokens;
    let n_groups = job.tiles[0].len();
    assert!(
        (1..=TOKEN_STEP).contains(&n) && out.len() == TILES * n,
        "{n} rows"
    );
    assert_eq!(job.x.len(), n_groups.div_ceil(GROUPS), "pieces of activations");
    for tile in job.tiles {
        assert_eq!(tile.len(), n_groups, "groups of a tile");
    }
    out.fill([0; 16]);
    let held = I::HELD;
    let n_passes = n.div_ceil(held.min(MOST));
    let width = held / n.div_ceil(n_passes);
    for pass in 0..n_passes {
        let rows = n * pass / n_passes..n * (pass + 1) / n_passes;
        match width {
            4.. if const { I::HELD >= 4 } => in_tiles::<I, 4>(isa, job, rows, out),
            2.. if const { I::HELD >= 2 } => in_tiles::<I, 2>(isa, job, rows, out),
            _ => in_tiles::<I, 1>(isa, job, rows, out),
        }
    }
}

/// Some rows of activations times all tiles, `W` at a time.
#[inline(always)]
fn in_tiles<I: Isa, const W: usize>(isa: I, job: &Few<'_>, rows: Range<usize>, out: &mut [[i32; 16]]) {
    let (first, n) = (rows.start, rows.len());
    for tile in (0..TILES).step_by(W) {
        match n {
            1 => in_rows::<I, 1, W>(isa, job, tile, first, out),
            2 if const { I::HELD >= 2 * W } => in_rows::<I, 2, W>(isa, job, tile, first, out),
            3 if const { I::HELD >= 3 * W } => in_rows::<I, 3, W>(isa, job, tile, first, out),
            4 if const { I::HELD >= 4 * W } => in_rows::<I, 4, W>(isa, job, tile, first, out),
            5 if const { I::HELD >= 5 * W } => in_rows::<I, 5, W>(isa, job, tile, first, out),
            6 if const { I::HELD >= 6 * W } => in_rows::<I, 6, W>(isa, job, tile, first, out),
            7 if const { I::HELD >= 7 * W } => in_rows::<I, 7, W>(isa, job, tile, first, out),
            8 if const { I::HELD >= 8 * W } => in_rows::<I, 8, W>(isa, job, tile, first, out),
            _ => unreachable!("{n} rows of activations and {W} tiles in registers"),
        }
    }
}

/// `T` rows of activations from `first` times `W` tiles from `tile`.
#[inline(always)]
fn in_rows<I: Isa, const T: usize, const W: usize>(
    isa: I,
    job: &Few<'_>,
    tile: usize,
    first: usize,
    out: &mut [[i32; 16]],
) {
    // Later passes find the weights in a cache.
    let is_first = first == 0;
    let (mut steps, mut rest) = ([&[][..]; W], [&[][..]; W]);
    let mut later = [std::ptr::null::<Group>(); W];
    for w in 0..W {
        (steps[w], rest[w]) = job.tiles[tile + w].as_chunks::<GROUPS>();
        let follows = tile + W + w;
        let next = if follows < TILES {
            job.tiles[follows]
        } else {
            job.next[follows - TILES]
        };
        later[w] = next.as_ptr();
    }
    let n_steps = steps[0].len();
    let run = const { I::RUN / QUADS };
    let mut begin = 0;
    while begin < job.x.len() {
        let end = job.x.len().min(begin.saturating_add(run));
        let mut sums = [[isa.zero(); T]; W];
        for s in begin..end.min(n_steps) {
            let x: &[[i8; COLUMN_STEP]; T] = job.x[s][first..].first_chunk().expect("rows of a step");
            if is_first {
                let ahead = s + STEPS_AHEAD;
                for w in 0..W {
                    let line = match ahead < n_steps {
                        true => steps[w][ahead].as_ptr(),
                        false => later[w].wrapping_add(GROUPS * (ahead - n_steps)),
                    };
                    for g in 0..GROUPS {
                        isa.prefetch(line.wrapping_add(g));
                    }
                }
            }
            for g in 0..GROUPS {
                let mut groups = [&steps[0][s][g]; W];
                for w in 1..W {
                    groups[w] = &steps[w][s][g];
                }
                sums = add_group(isa, sums, groups, x, g);
            }
        }
        if end > n_steps {
            let x: &[[i8; COLUMN_STEP]; T] = job.x[n_steps][first..].first_chunk().expect("rows of a step");
            for g in 0..rest[0].len() {
                let mut groups = [&rest[0][g]; W];
                for w in 1..W {
                    groups[w] = &rest[w][g];
                }
                sums = add_group(isa, sums, groups, x, g);
            }
        }
        for w in 0..W {
            let out = &mut out[(tile + w) * job.n_tokens + first..][..T];
            for t in 0..T {
                isa.flush(sums[w][t], &mut out[t]);
            }
        }
        begin = end;
    }
}

/// Adds the products of a group of each tile with the columns of group `g` of a step.
#[inline(always)]
fn add_group<I: Isa, const T: usize, const W: usize>(
    isa: I,
    mut sums: [[I::Sums; T]; W],
    groups: [&Group; W],
    x: &[[i8; COLUMN_STEP]; T],
    g: usize,
) -> [[I::Sums; T]; W] {
    let mut words = [isa.load(groups[0]); W];
    for w in 1..W {
        words[w] = isa.load(groups[w]);
    }
    for p in 0..4 {
        for w in 0..W {
            let quad = isa.plane(words[w]);
            words[w] = isa.next(words[w]);
            for t in 0..T {
                let x = isa.four(x[t].as_chunks::<4>().0[4 * g + p]);
                sums[w][t] = isa.add(sums[w][t], quad, x);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use bitnet_layout::random::Random;
    use bitnet_layout::{reference, row_tiles, words};

    use super::*;
    use crate::Simd;
    use crate::integer::Integer;

    /// Every path with `x`, (tokens, k), against the reference.
    fn check(k: usize, t: &[i8], x: &[i8]) {
        let (n, n_tokens) = (16 * TILES, x.len() / k);
        let shape = words::Shape::new(n, k).unwrap();
        let mut packed = vec![0; shape.words()];
        words::pack_row(t, &mut packed);
        let mut expected = vec![0; n * n_tokens];
        reference::linear(shape, &packed, x, &mut expected);
        let mut tiles = vec![vec![[0; 16]; k / 16]; TILES];
        for (i, tile) in tiles.iter_mut().enumerate() {
            row_tiles::fill(&packed, k / 16, i, tile);
        }
        // Rows past the last may be read, and must not matter.
        let mut pieces = vec![[[99; COLUMN_STEP]; TOKEN_STEP]; k.div_ceil(COLUMN_STEP)];
        for (token, x) in x.chunks_exact(k).enumerate() {
            for (piece, x) in pieces.iter_mut().zip(x.chunks(COLUMN_STEP)) {
                piece[token] = [0; COLUMN_STEP];
                piece[token][..x.len()].copy_from_slice(x);
            }
        }
        for simd in Simd::available() {
            let tiles = std::array::from_fn(|i| &tiles[i][..]);
            let job = Few {
                tiles,
                next: tiles,
                x: &pieces,
                n_tokens,
            };
            let mut out = vec![[i32::MIN; 16]; TILES * n_tokens];
            (Integer::new(simd).unwrap().few)(&job, &mut out);
            for (token, x) in x.chunks_exact(k).enumerate() {
                let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
                for i in 0..TILES {
                    let found = out[i * n_tokens + token].map(|codes| codes - sum);
                    let expected = &expected[token * n + 16 * i..][..16];
                    assert_eq!(
                        found, expected,
                        "{simd}, k = {k}, tile {i}, token {token} of {n_tokens}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_path_equals_the_reference() {
        let mut random = Random::new(3);
        // Around whole steps of columns, where 16-bit sums are widened, and where reading ahead leaves a tile.
        for k in [16, 48, 64, 80, 192, 208, 496, 512, 528, 1040, 2560] {
            let t: Vec<i8> = (0..16 * TILES * k)
                .map(|_| (random.word() % 3) as i8 - 1)
                .collect();
            for n_tokens in 1..=TOKEN_STEP {
                let x: Vec<i8> = (0..n_tokens * k).map(|_| random.word() as i8).collect();
                check(k, &t, &x);
            }
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        for (k, n_tokens) in [(16, 3), (1040, 4), (6912, 7), (16384, 16)] {
            for (t, x) in [(1, -128), (1, 127), (-1, -128)] {
                check(k, &vec![t; 16 * TILES * k], &vec![x; n_tokens * k]);
            }
        }
    }
}
