//! Dense rows times float activations: the output head.

use super::{Bf16, Element, F16, sum};

/// Rows of activations that share one pass over the weights.
pub(crate) const TOKENS: usize = 4;

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
pub(super) fn dense(w: Weights<'_>, x: &[&[f32]], y: &mut [&mut [f32]]) {
    match w {
        Weights::Bf16(w) => rows(w, Element::widen, x, y),
        Weights::F16(w) => rows(w, F16::widen, x, y),
        Weights::F32(w) => rows(w, Element::widen, x, y),
    }
}

#[inline(always)]
fn rows<E: Copy>(w: &[E], widen: impl Fn(E) -> f32 + Copy, x: &[&[f32]], y: &mut [&mut [f32]]) {
    if let (Some(x), Some(y)) = (x.as_array::<TOKENS>(), y.as_mut_array::<TOKENS>()) {
        block(w, widen, *x, y);
    } else {
        for (x, y) in x.iter().zip(y) {
            block(w, widen, [x], std::array::from_mut(y));
        }
    }
}

/// Two groups of lanes a row of activations, whatever the number of rows: the order of the sums is part of the result.
#[inline(always)]
fn block<E: Copy, const T: usize>(
    w: &[E],
    widen: impl Fn(E) -> f32 + Copy,
    x: [&[f32]; T],
    y: &mut [&mut [f32]; T],
) {
    let k = x[0].len();
    let (x_blocks, x_rest) = (
        x.map(|x| x[..k].as_chunks::<32>().0),
        x.map(|x| x.as_chunks::<32>().1),
    );
    for (r, w) in w.chunks_exact(k).enumerate() {
        let mut sums = [[[0.0; 16]; 2]; T];
        let (w_blocks, w_rest) = w.as_chunks::<32>();
        for (i, w) in w_blocks.iter().enumerate() {
            for half in 0..2 {
                let w: [f32; 16] = std::array::from_fn(|l| widen(w[16 * half + l]));
                for (sums, x) in sums.iter_mut().zip(x_blocks) {
                    for l in 0..16 {
                        sums[half][l] += w[l] * x[i][16 * half + l];
                    }
                }
            }
        }
        for (i, &w) in w_rest.iter().enumerate() {
            for (sums, x) in sums.iter_mut().zip(x_rest) {
                sums[i / 16][i % 16] += widen(w) * x[i];
            }
        }
        for (sums, y) in sums.into_iter().zip(y.iter_mut()) {
            y[r] = sum(std::array::from_fn(|l| sums[0][l] + sums[1][l]));
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
