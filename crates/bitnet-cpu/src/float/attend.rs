//! Softmax attention of a few queries over one cache of keys and values.

use super::exp::exp;
use super::{Element, Lanes, sum};

/// Queries that share one pass over keys and values: heads of a group, and tokens of a prompt.
pub(crate) const QUERIES: usize = 8;

/// Queries over the cache of one key-value head of one sequence.
pub(crate) struct Attend<'a, E> {
    /// Queries, `d` elements each.
    pub(crate) q: &'a [&'a [f32]],
    /// Positions each query sees, from 0; at least 1.
    pub(crate) len: &'a [usize],
    /// By 16 positions, then element, then position: `keys[b][i][p]` is element i of position `16 b + p`.
    pub(crate) keys: &'a [[E; 16]],
    /// By position, `d` padded to a multiple of 16.
    pub(crate) values: &'a [[E; 16]],
    /// Factor of the products of queries and keys.
    pub(crate) scale: f32,
    /// Scratch: for each query, groups of 16 for all the positions it sees.
    pub(crate) scores: &'a mut [Lanes],
}

/// `y = softmax(scale * q K^T) V`. A position's lane and place in the order of every sum depend on the position alone.
#[inline(always)]
pub(super) fn attend<E: Element>(job: Attend<'_, E>, y: &mut [&mut [f32]]) {
    let Attend {
        q,
        len,
        keys,
        values,
        scale,
        scores,
    } = job;
    let mut first = 0;
    while first < q.len() {
        let rest = (&q[first..], &len[first..], &mut y[first..]);
        first += match rest.0.len() {
            8.. => block::<E, 8, 2>(rest, keys, values, scale, scores),
            4.. => block::<E, 4, 4>(rest, keys, values, scale, scores),
            2.. => block::<E, 2, 8>(rest, keys, values, scale, scores),
            _ => block::<E, 1, 8>(rest, keys, values, scale, scores),
        };
    }
}

/// The first `T` of the queries, values `16 W` elements at a time; returns `T`.
#[inline(always)]
fn block<E: Element, const T: usize, const W: usize>(
    (q, len, y): (&[&[f32]], &[usize], &mut [&mut [f32]]),
    keys: &[[E; 16]],
    values: &[[E; 16]],
    scale: f32,
    scores: &mut [Lanes],
) -> usize {
    let q: [&[f32]; T] = std::array::from_fn(|t| q[t]);
    let len: [usize; T] = std::array::from_fn(|t| len[t]);
    let d = q[0].len();
    let n_blocks = len.iter().max().map_or(0, |len| len.div_ceil(16));
    for (b, keys) in keys.chunks_exact(d).take(n_blocks).enumerate() {
        let products = products(q, keys);
        for (t, products) in products.into_iter().enumerate() {
            scores[t * n_blocks + b] = products.map(|product| product * scale);
        }
    }
    let mut inverse = [0.0; T];
    for t in 0..T {
        inverse[t] = 1.0 / softmax(&mut scores[t * n_blocks..][..n_blocks], len[t]);
    }
    let weights: [&[f32]; T] = std::array::from_fn(|t| &scores[t * n_blocks..].as_flattened()[..len[t]]);
    let stride = d.div_ceil(16);
    let mut column = 0;
    while column < stride {
        let width = if column + W <= stride { W } else { 1 };
        if width == W {
            let sums = weigh::<E, T, W>(weights, values, stride, column);
            finish(sums.map(|sums| sums), inverse, y, column);
        } else {
            let sums = weigh::<E, T, 1>(weights, values, stride, column);
            finish(sums, inverse, y, column);
        }
        column += width;
    }
    T
}

/// Products of `T` queries with 16 keys.
#[inline(always)]
fn products<E: Element, const T: usize>(q: [&[f32]; T], keys: &[[E; 16]]) -> [Lanes; T] {
    let q = q.map(|q| &q[..keys.len()]);
    let mut sums = [[0.0; 16]; T];
    for (i, keys) in keys.iter().enumerate() {
        let keys = keys.map(Element::widen);
        for (sums, q) in sums.iter_mut().zip(q) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum += q[i] * key;
            }
        }
    }
    sums
}

/// Turns the first `len` scores into `exp(score - max)` and returns their sum.
#[inline(always)]
fn softmax(scores: &mut [Lanes], len: usize) -> f32 {
    let (whole, rest) = (len / 16, len % 16);
    let scores = &mut scores[..len.div_ceil(16)];
    if rest > 0 {
        // What stands past the end belongs to no position of this query.
        scores[whole][rest..].fill(f32::NEG_INFINITY);
    }
    let mut max = [f32::NEG_INFINITY; 16];
    for scores in scores.iter() {
        for (max, &score) in max.iter_mut().zip(scores) {
            *max = if score > *max { score } else { *max };
        }
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; 16];
    for scores in scores.iter_mut() {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    sum(sums)
}

/// Sums of `16 W` columns of the values, weighted, in the order of positions.
#[inline(always)]
fn weigh<E: Element, const T: usize, const W: usize>(
    weights: [&[f32]; T],
    values: &[[E; 16]],
    stride: usize,
    column: usize,
) -> [[Lanes; W]; T] {
    let common = weights.iter().map(|weights| weights.len()).min().unwrap_or(0);
    let mut sums = [[[0.0; 16]; W]; T];
    let shared = weights.map(|weights| &weights[..common]);
    for (j, row) in values.chunks_exact(stride).take(common).enumerate() {
        for w in 0..W {
            let values = row[column + w].map(Element::widen);
            for (sums, weights) in sums.iter_mut().zip(shared) {
                for (sum, value) in sums[w].iter_mut().zip(values) {
                    *sum += weights[j] * value;
                }
            }
        }
    }
    // Later tokens of a prompt see a few positions more.
    for (sums, weights) in sums.iter_mut().zip(weights) {
        for (&weight, row) in weights[common..]
            .iter()
            .zip(values.chunks_exact(stride).skip(common))
        {
            for (w, sums) in sums.iter_mut().enumerate() {
                for (sum, value) in sums.iter_mut().zip(row[column + w]) {
                    *sum += weight * value.widen();
                }
            }
        }
    }
    sums
}

/// Divides sums by the softmax denominator and stores them at column `16 column`.
#[inline(always)]
fn finish<const T: usize, const W: usize>(
    sums: [[Lanes; W]; T],
    inverse: [f32; T],
    y: &mut [&mut [f32]],
    column: usize,
) {
    for ((sums, inverse), y) in sums.iter().zip(inverse).zip(y) {
        for (y, sum) in y[16 * column..].iter_mut().zip(sums.as_flattened()) {
            *y = sum * inverse;
        }
    }
}
