//! Dense rows times float activations: the output head.
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over arrays are what becomes registers and vectors"
)]

use super::Element;
use super::isa::Isa;
use super::number::{Bf16, F16};
use crate::integer::AHEAD;

/// Rows of activations that share one pass over the weights.
pub(crate) const TOKENS: usize = 4;

/// Columns of a step: two groups of lanes a row of activations, whatever the number of rows, because the order of the
/// sums is part of the result.
const COLUMNS: usize = 32;

/// Whole rows of a dense matrix.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a> {
    /// bfloat16.
    Bf16(&'a [Bf16]),
    /// IEEE half.
    F16(&'a [F16]),
    /// IEEE single.
    F32(&'a [f32]),
}

#[inline(always)]
pub(super) fn dense<I: Isa>(isa: I, w: Weights<'_>, x: &[&[f32]], y: &mut [&mut [f32]]) {
    match w {
        Weights::Bf16(w) => rows(isa, w, x, y),
        Weights::F16(w) => rows(isa, w, x, y),
        Weights::F32(w) => rows(isa, w, x, y),
    }
}

#[inline(always)]
fn rows<I: Isa, E: Element>(isa: I, w: &[E], x: &[&[f32]], y: &mut [&mut [f32]]) {
    let mut t = 0;
    while t < x.len() {
        let (x, y) = (&x[t..], &mut y[t..]);
        // Two groups of lanes for each pair of a row of weights and one of activations.
        t += match x.len() {
            4.. if I::ACCUMULATORS >= 16 => block::<I, E, 4, 2>(isa, w, x, y),
            2.. if I::ACCUMULATORS >= 16 => block::<I, E, 2, 4>(isa, w, x, y),
            2.. if I::ACCUMULATORS >= 4 => block::<I, E, 2, 1>(isa, w, x, y),
            _ if I::ACCUMULATORS >= 8 => block::<I, E, 1, 4>(isa, w, x, y),
            _ if I::ACCUMULATORS >= 4 => block::<I, E, 1, 2>(isa, w, x, y),
            _ => block::<I, E, 1, 1>(isa, w, x, y),
        };
    }
}

/// The first `T` rows of activations; returns `T`. `R` rows of weights are read side by side: one stream for each thread
/// does not keep all of the memory busy.
#[inline(always)]
fn block<I: Isa, E: Element, const T: usize, const R: usize>(
    isa: I,
    w: &[E],
    x: &[&[f32]],
    y: &mut [&mut [f32]],
) -> usize {
    let k = x[0].len();
    let whole = w.len() / (R * k) * R;
    let (w, rest) = w.split_at(whole * k);
    for (i, w) in w.chunks_exact(R * k).enumerate() {
        products::<I, E, T, R>(isa, w, x, &mut y[..T], R * i);
    }
    for (i, w) in rest.chunks_exact(k).enumerate() {
        products::<I, E, T, 1>(isa, w, x, &mut y[..T], whole + i);
    }
    T
}

/// `R` rows of weights, the first of which is row `first`, times the first `T` of activations.
#[inline(always)]
fn products<I: Isa, E: Element, const T: usize, const R: usize>(
    isa: I,
    w: &[E],
    x: &[&[f32]],
    y: &mut [&mut [f32]],
    first: usize,
) {
    const LINE: usize = 64;
    let k = x[0].len();
    let n_blocks = k / COLUMNS;
    let mut blocks: [&[[f32; COLUMNS]]; T] = [&[]; T];
    for (blocks, x) in blocks.iter_mut().zip(x) {
        *blocks = &x.as_chunks().0[..n_blocks];
    }
    let mut rows: [&[[E; COLUMNS]]; R] = [&[]; R];
    for (rows, w) in rows.iter_mut().zip(w.chunks_exact(k)) {
        *rows = &w.as_chunks().0[..n_blocks];
    }
    // What is asked for ahead lies in these rows, and near their end in the next `R`.
    let row_bytes = k * size_of::<E>();
    let n_here = row_bytes.saturating_sub(AHEAD) / size_of::<[E; COLUMNS]>();
    let mut sums = [[[isa.splat(0.0); 2]; T]; R];
    for i in 0..n_blocks {
        let skip = if i < n_here { 0 } else { (R - 1) * row_bytes };
        for r in 0..R {
            for line in (0..size_of::<[E; COLUMNS]>()).step_by(LINE) {
                isa.prefetch(&rows[r][i], AHEAD + skip + line);
            }
            add_products(isa, &mut sums[r], &rows[r][i], |t| &blocks[t][i]);
        }
    }
    if !k.is_multiple_of(COLUMNS) {
        // Columns past the last whole block, and zeros.
        let mut rests = [[0.0; COLUMNS]; T];
        for (rest, x) in rests.iter_mut().zip(x) {
            rest[..k % COLUMNS].copy_from_slice(&x[n_blocks * COLUMNS..k]);
        }
        for (sums, w) in sums.iter_mut().zip(w.chunks_exact(k)) {
            let mut last = [E::default(); COLUMNS];
            last[..k % COLUMNS].copy_from_slice(&w[n_blocks * COLUMNS..]);
            add_products(isa, sums, &last, |t| &rests[t]);
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (sums, y) in sums.into_iter().zip(&mut *y) {
            y[first + r] = isa.sum(isa.add(sums[0], sums[1]));
        }
    }
}

#[inline(always)]
fn add_products<'a, I: Isa, E: Element, const T: usize>(
    isa: I,
    sums: &mut [[I::Lanes; 2]; T],
    w: &[E; COLUMNS],
    x: impl Fn(usize) -> &'a [f32; COLUMNS],
) {
    for (half, w) in w.as_chunks::<16>().0.iter().enumerate() {
        let w = E::load(isa, w);
        for (t, sums) in sums.iter_mut().enumerate() {
            let x = isa.load(&x(t).as_chunks().0[half]);
            sums[half] = isa.mul_add(w, x, sums[half]);
        }
    }
}

impl Weights<'_> {
    /// Widens as many elements as `out` takes.
    pub(crate) fn copy_to(self, out: &mut [f32]) {
        match self {
            Self::Bf16(w) => out.iter_mut().zip(w).for_each(|(out, w)| *out = w.widen()),
            Self::F16(w) => out.iter_mut().zip(w).for_each(|(out, w)| *out = w.widen()),
            Self::F32(w) => out.copy_from_slice(&w[..out.len()]),
        }
    }
}
