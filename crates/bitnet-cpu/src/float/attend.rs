//! Softmax attention of a few queries over the keys and values of one sequence, in pages.
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over arrays are what becomes registers and vectors"
)]

use super::exp::exp_lanes;
use super::isa::Isa;
use super::{Element, Lanes};

/// Queries that share one pass over keys and values: heads of a group, and tokens of a prompt.
pub(crate) const QUERIES: usize = 64;

/// Queries whose sums are in registers at a time, in a pass of many.
const GROUP: usize = 8;

/// Elements of a head, and positions of a block of values, that a pass of many keeps widened in the first-level cache.
const WIDE: (usize, usize) = (256, 32);

/// Groups of lanes of keys or values of a block, widened.
const WIDE_LANES: usize = WIDE.0 / 16 * WIDE.1;

/// Groups of lanes of a row for each query.
const ROW_LANES: usize = QUERIES * WIDE.0 / 16;

/// Groups of lanes in [`Attend::room`].
pub(crate) const ROOM: usize = WIDE_LANES + 2 * ROW_LANES;

/// One head of one sequence in a cache of pages, block after block of 16 positions.
#[derive(Clone, Copy)]
pub(crate) struct Paged<'a, T> {
    /// All pages.
    pub(crate) lanes: &'a [T],
    /// The sequence's pages.
    pub(crate) table: &'a [u32],
    /// Logarithm of the blocks of a page.
    pub(crate) shift: u32,
    /// Groups of lanes from one page to the next.
    pub(crate) stride: usize,
    /// Where the head begins in a page.
    pub(crate) first: usize,
    /// Groups of lanes of a block.
    pub(crate) width: usize,
}

impl<'a, T> Paged<'a, T> {
    /// All blocks of page `p` of the sequence, as far as the cache goes.
    #[inline(always)]
    fn page(&self, p: usize) -> &'a [T] {
        let rest = &self.lanes[self.table[p] as usize * self.stride + self.first..];
        &rest[..rest.len().min(self.width << self.shift)]
    }

    /// Block `b` of the sequence.
    #[inline(always)]
    fn block(&self, b: usize) -> &'a [T] {
        let page = self.table[b >> self.shift] as usize;
        let in_page = b & ((1 << self.shift) - 1);
        &self.lanes[page * self.stride + self.first + in_page * self.width..][..self.width]
    }
}

/// Factors of keys and values, one for each position.
#[derive(Clone, Copy)]
pub(crate) struct Scales<'a> {
    pub(crate) keys: Paged<'a, Lanes>,
    pub(crate) values: Paged<'a, Lanes>,
}

/// Queries over one key-value head of one sequence.
pub(crate) struct Attend<'a, E> {
    /// Queries, `d` elements each.
    pub(crate) q: &'a [&'a [f32]],
    /// Positions each query sees, from 0; at least 1.
    pub(crate) len: &'a [usize],
    /// In a block, by element, then position: `keys.block(b)[i][p]` is element i of position `16 b + p`.
    pub(crate) keys: Paged<'a, [E; 16]>,
    /// In a block, by position, `d` padded to a multiple of 16.
    pub(crate) values: Paged<'a, [E; 16]>,
    /// Where elements are multiples of a scale.
    pub(crate) scales: Option<Scales<'a>>,
    /// Factor of the products of queries and keys.
    pub(crate) scale: f32,
    /// Scratch: for each query, groups of 16 for all the positions it sees.
    pub(crate) scores: &'a mut [Lanes],
    /// Scratch: [`ROOM`] groups of 16.
    pub(crate) room: &'a mut [Lanes],
}

/// `y = softmax(scale * q K^T) V`. A position's lane and place in the order of every sum depend on the position alone.
#[inline(always)]
pub(super) fn attend<I: Isa, E: Element>(isa: I, mut job: Attend<'_, E>, y: &mut [&mut [f32]]) {
    let mut first = 0;
    if I::ACCUMULATORS >= 16 && job.q.len() >= 2 * GROUP && job.q[0].len() <= WIDE.0 {
        first = job.q.len() / GROUP * GROUP;
        groups(isa, &mut job, &mut y[..first]);
    }
    while first < job.q.len() {
        // `T` queries, values `16 W` columns at a time: `T * W` accumulators.
        let many = I::ACCUMULATORS >= 16;
        first += match job.q.len() - first {
            8.. if many => block::<I, E, 8, 2>(isa, &mut job, first, y),
            4.. if many => block::<I, E, 4, 4>(isa, &mut job, first, y),
            4.. => block::<I, E, 4, 1>(isa, &mut job, first, y),
            2.. if many => block::<I, E, 2, 8>(isa, &mut job, first, y),
            2.. => block::<I, E, 2, 2>(isa, &mut job, first, y),
            _ if many => block::<I, E, 1, 8>(isa, &mut job, first, y),
            _ => block::<I, E, 1, 4>(isa, &mut job, first, y),
        };
    }
}

/// The `T` queries from `first` on; returns `T`.
#[inline(always)]
fn block<I: Isa, E: Element, const T: usize, const W: usize>(
    isa: I,
    job: &mut Attend<'_, E>,
    first: usize,
    y: &mut [&mut [f32]],
) -> usize {
    let q: [&[f32]; T] = std::array::from_fn(|t| job.q[first + t]);
    let len: [usize; T] = std::array::from_fn(|t| job.len[first + t]);
    let d = q[0].len();
    let n_blocks = len.iter().max().map_or(0, |len| len.div_ceil(16));
    let mut b = 0;
    while b < n_blocks {
        let page = job.keys.page(b >> job.keys.shift);
        for keys in page.chunks_exact(d).take(n_blocks - b) {
            let products = products(isa, q, keys);
            for (t, products) in products.into_iter().enumerate() {
                let scores = &mut job.scores[t * n_blocks + b];
                isa.store(products, scores);
                for score in scores {
                    *score *= job.scale;
                }
            }
            b += 1;
        }
    }
    // A loop: a closure would be compiled as a function of its own, without the instruction set.
    let mut inverse = [0.0; T];
    for (t, inverse) in inverse.iter_mut().enumerate() {
        let scores = &mut job.scores[t * n_blocks..][..n_blocks];
        *inverse = weights(isa, job.scales, scores, len[t]);
    }
    let weights: [&[f32]; T] = std::array::from_fn(|t| &job.scores[t * n_blocks..].as_flattened()[..len[t]]);
    let (values, n_columns) = (job.values, d.div_ceil(16));
    let y = &mut y[first..][..T];
    let mut column = 0;
    while column < n_columns {
        if column + W <= n_columns {
            weigh::<I, E, T, W>(isa, weights, inverse, values, column, y);
            column += W;
        } else {
            weigh::<I, E, T, 1>(isa, weights, inverse, values, column, y);
            column += 1;
        }
    }
    T
}

/// Turns the products of a query with the keys of `len` positions into the weights of their values, and returns the
/// inverse of their sum. The scales of keys and values, where there are any, are multiplied in here: in the loops around, a
/// branch would keep their sums out of the registers.
#[inline(always)]
fn weights<I: Isa>(isa: I, scales: Option<Scales<'_>>, scores: &mut [Lanes], len: usize) -> f32 {
    let scores = &mut scores[..len.div_ceil(16)];
    if let Some(scales) = scales {
        scale(scores, scales.keys);
    }
    let inverse = 1.0 / softmax(isa, scores, len);
    if let Some(scales) = scales {
        scale(scores, scales.values);
    }
    inverse
}

/// Multiplies with the scale of each position.
#[inline(always)]
fn scale(blocks: &mut [Lanes], scales: Paged<'_, Lanes>) {
    for (b, lanes) in blocks.iter_mut().enumerate() {
        for (lane, scale) in lanes.iter_mut().zip(&scales.block(b)[0]) {
            *lane *= scale;
        }
    }
}

/// Whole groups of queries: keys and values are widened once for all of them.
#[inline(always)]
fn groups<I: Isa, E: Element>(isa: I, job: &mut Attend<'_, E>, y: &mut [&mut [f32]]) {
    let d = job.q[0].len();
    let n_columns = d.div_ceil(16);
    let lens = &job.len[..y.len()];
    let longest = lens.iter().copied().max().unwrap_or(0);
    let n_blocks = longest.div_ceil(16);
    let (wide, room) = job.room.split_at_mut(WIDE_LANES);
    let (queries, sums) = room.split_at_mut(ROW_LANES);
    // Rows a constant distance apart need one pointer.
    let queries = &mut queries.as_flattened_mut().as_chunks_mut::<{ WIDE.0 }>().0[..y.len()];
    for (row, q) in queries.iter_mut().zip(job.q) {
        row[..d].copy_from_slice(q);
    }
    let queries = queries.as_chunks::<GROUP>().0;
    let lens = lens.as_chunks::<GROUP>().0;
    let sums = &mut sums[..y.len() * n_columns];
    sums.fill([0.0; 16]);
    for b in 0..n_blocks.div_ceil(2) {
        widen(isa, job.keys.block(2 * b), &mut wide[..d]);
        if 2 * b + 1 < n_blocks {
            widen(isa, job.keys.block(2 * b + 1), &mut wide[d..]);
        }
        for (g, q) in queries.iter().enumerate() {
            if lens[g].iter().all(|&len| len <= 32 * b) {
                continue;
            }
            // In the last turn the second block may be past the end: its products are not stored.
            let products = pair(isa, q, &wide[..2 * d]);
            for t in 0..GROUP {
                let first = (g * GROUP + t) * n_blocks;
                let scores = &mut job.scores[first + 2 * b..first + n_blocks];
                for (products, scores) in products.iter().zip(scores) {
                    isa.store(isa.mul(products[t], isa.splat(job.scale)), scores);
                }
            }
        }
    }
    let mut inverse = [0.0; QUERIES];
    for (q, inverse) in inverse[..y.len()].iter_mut().enumerate() {
        let scores = &mut job.scores[q * n_blocks..][..n_blocks];
        *inverse = weights(isa, job.scales, scores, job.len[q]);
    }
    for first in (0..longest).step_by(WIDE.1) {
        let end = longest.min(first + WIDE.1);
        for at in (first..end).step_by(16) {
            let rows = job.values.block(at / 16).chunks_exact(n_columns);
            for (j, row) in rows.take(end - at).enumerate() {
                for (pair, columns) in row.chunks(2).enumerate() {
                    let to = 2 * WIDE.1 * pair + columns.len() * (at - first + j);
                    widen(isa, columns, &mut wide[to..][..columns.len()]);
                }
            }
        }
        for (g, lens) in lens.iter().enumerate() {
            let mut weights = [[0.0; WIDE.1]; GROUP];
            let mut n = [0; GROUP];
            for t in 0..GROUP {
                let scores = &job.scores[(g * GROUP + t) * n_blocks..][..n_blocks];
                n[t] = end.min(lens[t]).saturating_sub(first);
                // Those of later positions are copied too, and not used.
                for (weights, scores) in weights[t]
                    .as_chunks_mut::<16>()
                    .0
                    .iter_mut()
                    .zip(&scores[first / 16..])
                {
                    *weights = *scores;
                }
            }
            let sums = &mut sums[g * GROUP * n_columns..][..GROUP * n_columns];
            for (pair, values) in wide.chunks(2 * WIDE.1).enumerate().take(n_columns.div_ceil(2)) {
                let at = (2 * pair, n_columns);
                if 2 * pair + 1 < n_columns {
                    add_weighed::<I, 2>(isa, (&weights, &n), values, at, sums);
                } else {
                    add_weighed::<I, 1>(isa, (&weights, &n), values, at, sums);
                }
            }
        }
    }
    for (q, y) in y.iter_mut().enumerate() {
        let inverse = isa.splat(inverse[q]);
        for (sums, y) in sums[q * n_columns..].iter_mut().zip(y.chunks_mut(16)) {
            let values = isa.mul(isa.load(sums), inverse);
            if let Some(y) = y.as_mut_array() {
                isa.store(values, y);
            } else {
                isa.store(values, sums);
                y.copy_from_slice(&sums[..y.len()]);
            }
        }
    }
}

#[inline(always)]
fn widen<I: Isa, E: Element>(isa: I, from: &[[E; 16]], to: &mut [Lanes]) {
    for (from, to) in from.iter().zip(to) {
        isa.store(E::load(isa, from), to);
    }
}

/// Products of a group of queries with two blocks of keys.
#[inline(always)]
fn pair<I: Isa>(isa: I, q: &[[f32; WIDE.0]; GROUP], keys: &[Lanes]) -> [[I::Lanes; GROUP]; 2] {
    let d = (keys.len() / 2).min(WIDE.0);
    let (low, high) = (&keys[..d], &keys[keys.len() - d..]);
    let mut sums = [[isa.splat(0.0); GROUP]; 2];
    for i in 0..d {
        let (low, high) = (isa.load(&low[i]), isa.load(&high[i]));
        for t in 0..GROUP {
            let q = isa.splat(q[t][i]);
            sums[0][t] = isa.mul_add(q, low, sums[0][t]);
            sums[1][t] = isa.mul_add(q, high, sums[1][t]);
        }
    }
    sums
}

/// Adds `W` groups of columns, from `column` on, of the first `n[t]` of some values, weighted, to the sums of each of a group of
/// queries, in the order of positions. The values are those groups of one position after the other.
#[inline(always)]
fn add_weighed<I: Isa, const W: usize>(
    isa: I,
    (weights, n): (&[[f32; WIDE.1]; GROUP], &[usize; GROUP]),
    values: &[Lanes],
    (column, stride): (usize, usize),
    stored: &mut [Lanes],
) {
    let rows: &[[Lanes; W]] = values.as_chunks().0;
    let rows: &[_; WIDE.1] = rows.first_chunk().expect("room for all positions of a pass");
    // A loop over references: an iterator of the array would be copied, and waited for, in every call.
    let mut common = n[0];
    for &n in n {
        common = common.min(n);
    }
    let mut sums = [[isa.splat(0.0); W]; GROUP];
    for t in 0..GROUP {
        for w in 0..W {
            sums[t][w] = isa.load(&stored[t * stride + column + w]);
        }
    }
    for j in 0..common.min(WIDE.1) {
        for w in 0..W {
            let values = isa.load(&rows[j][w]);
            for t in 0..GROUP {
                sums[t][w] = isa.mul_add(isa.splat(weights[t][j]), values, sums[t][w]);
            }
        }
    }
    for t in 0..GROUP {
        for w in 0..W {
            isa.store(sums[t][w], &mut stored[t * stride + column + w]);
        }
    }
    for t in 0..GROUP {
        // Later tokens of a prompt see a few positions more.
        for j in common..n[t] {
            for w in 0..W {
                let sum = &mut stored[t * stride + column + w];
                let values = isa.load(&rows[j][w]);
                isa.store(isa.mul_add(isa.splat(weights[t][j]), values, isa.load(sum)), sum);
            }
        }
    }
}

/// Products of `T` queries with 16 keys.
#[inline(always)]
fn products<I: Isa, E: Element, const T: usize>(isa: I, q: [&[f32]; T], keys: &[[E; 16]]) -> [I::Lanes; T] {
    let q: [&[f32]; T] = std::array::from_fn(|t| &q[t][..keys.len()]);
    let mut sums = [isa.splat(0.0); T];
    for (i, keys) in keys.iter().enumerate() {
        let keys = E::load(isa, keys);
        for (sum, q) in sums.iter_mut().zip(q) {
            *sum = isa.mul_add(isa.splat(q[i]), keys, *sum);
        }
    }
    sums
}

/// Turns the first `len` scores into `exp(score - max)` and returns their sum.
#[inline(always)]
fn softmax<I: Isa>(isa: I, scores: &mut [Lanes], len: usize) -> f32 {
    let (whole, rest) = (len / 16, len % 16);
    let scores = &mut scores[..len.div_ceil(16)];
    if rest > 0 {
        // What stands past the end belongs to no position of this query.
        scores[whole][rest..].fill(f32::NEG_INFINITY);
    }
    // Two, so that one need not wait for the other.
    let mut max = [isa.splat(f32::NEG_INFINITY); 2];
    let (pairs, last) = scores.as_chunks::<2>();
    for pair in pairs {
        max[0] = isa.max(isa.load(&pair[0]), max[0]);
        max[1] = isa.max(isa.load(&pair[1]), max[1]);
    }
    if let [last] = last {
        max[0] = isa.max(isa.load(last), max[0]);
    }
    // None of them is NaN: every number was taken instead.
    let less = isa.splat(-isa.most(isa.max(max[0], max[1])));
    let mut sums = isa.splat(0.0);
    for scores in scores {
        let weights = exp_lanes(isa, isa.add(isa.load(scores), less));
        sums = isa.add(sums, weights);
        isa.store(weights, scores);
    }
    isa.sum(sums)
}

/// Columns `16 column ..` of `W` groups of the values, weighted and added up in the order of positions.
#[inline(always)]
fn weigh<I: Isa, E: Element, const T: usize, const W: usize>(
    isa: I,
    weights: [&[f32]; T],
    inverse: [f32; T],
    values: Paged<'_, [E; 16]>,
    column: usize,
    y: &mut [&mut [f32]],
) {
    let n_columns = values.width / 16;
    let common = weights.iter().map(|weights| weights.len()).min().unwrap_or(0);
    let mut sums = [[isa.splat(0.0); W]; T];
    let (mut first, page) = (0, 16usize << values.shift);
    while first < common {
        let n = (common - first).min(page);
        let shared: [&[f32]; T] = std::array::from_fn(|t| &weights[t][first..first + n]);
        let rows = values.page((first / 16) >> values.shift).chunks_exact(n_columns);
        for (j, row) in rows.take(n).enumerate() {
            let Some(row): Option<&[[E; 16]; W]> = row[column..].first_chunk() else {
                break;
            };
            for w in 0..W {
                let values = E::load(isa, &row[w]);
                for t in 0..T {
                    sums[t][w] = isa.mul_add(isa.splat(shared[t][j]), values, sums[t][w]);
                }
            }
        }
        first += n;
    }
    // Through memory: were the loop below to index `sums`, they would stay in memory in the loop above.
    let mut stored = [[[0.0; 16]; W]; T];
    for t in 0..T {
        for w in 0..W {
            isa.store(sums[t][w], &mut stored[t][w]);
        }
    }
    for ((stored, y), (weights, inverse)) in stored.iter().zip(y).zip(weights.into_iter().zip(inverse)) {
        // Later tokens of a prompt see a few positions more.
        let mut sums: [I::Lanes; W] = std::array::from_fn(|w| isa.load(&stored[w]));
        for j in common..weights.len() {
            let row = &values.block(j / 16)[j % 16 * n_columns + column..];
            let weight = weights[j];
            for w in 0..W {
                sums[w] = isa.mul_add(isa.splat(weight), E::load(isa, &row[w]), sums[w]);
            }
        }
        let inverse = isa.splat(inverse);
        for (sum, y) in sums.into_iter().zip(y[16 * column..].chunks_mut(16)) {
            let mut lanes = [0.0; 16];
            isa.store(isa.mul(sum, inverse), &mut lanes);
            y.copy_from_slice(&lanes[..y.len()]);
        }
    }
}
