//! Dense rows times float activations: the output head.

use super::isa::Isa;
use super::{Bf16, Element, F16};
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
        // Two groups of lanes a row of activations.
        t += match x.len() {
            4.. if I::ACCUMULATORS >= 8 => block::<I, E, 4>(isa, w, x, y),
            2.. if I::ACCUMULATORS >= 4 => block::<I, E, 2>(isa, w, x, y),
            _ => block::<I, E, 1>(isa, w, x, y),
        };
    }
}

/// The first `T` rows of activations; returns `T`.
#[inline(always)]
fn block<I: Isa, E: Element, const T: usize>(isa: I, w: &[E], x: &[&[f32]], y: &mut [&mut [f32]]) -> usize {
    let k = x[0].len();
    let n_blocks = k / COLUMNS;
    let blocks: [&[[f32; COLUMNS]]; T] = std::array::from_fn(|t| &x[t].as_chunks().0[..n_blocks]);
    // Columns past the last whole block, and zeros.
    let mut rests = [[0.0; COLUMNS]; T];
    for (rest, x) in rests.iter_mut().zip(x) {
        rest[..k % COLUMNS].copy_from_slice(&x[n_blocks * COLUMNS..k]);
    }
    for (r, w) in w.chunks_exact(k).enumerate() {
        let mut sums = [[isa.splat(0.0); 2]; T];
        let (w_blocks, w_rest) = w.as_chunks::<COLUMNS>();
        for (i, w) in w_blocks.iter().enumerate() {
            isa.prefetch(w, AHEAD);
            add_products(isa, &mut sums, w, |t| &blocks[t][i]);
        }
        if !w_rest.is_empty() {
            let mut w = [E::default(); COLUMNS];
            w[..w_rest.len()].copy_from_slice(w_rest);
            add_products(isa, &mut sums, &w, |t| &rests[t]);
        }
        for (sums, y) in sums.into_iter().zip(&mut *y) {
            y[r] = isa.sum(isa.add(sums[0], sums[1]));
        }
    }
    T
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
