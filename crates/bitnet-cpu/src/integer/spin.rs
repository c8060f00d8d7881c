//! Multiplications with operands at hand: what no product can exceed.

use std::hint::black_box;

use super::isa::Isa;

/// What [`spin`] did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spun {
    /// Products, each of a code and an activation, added up.
    pub(crate) n_products: u64,
    /// Their sums, so that they cannot be left out.
    pub(crate) sums: [i32; 16],
}

/// Steps that take one look at where their activations are.
const STEPS: usize = 7;

/// Multiplies and adds up, `n` runs of as many products as registers hold.
#[inline(always)]
pub(super) fn spin<I: Isa>(isa: I, n: usize, out: &mut Spun) {
    match I::BLOCK {
        (8, 2) => block::<I, 8, 2>(isa, n, out),
        (4, 1) => block::<I, 4, 1>(isa, n, out),
        (2, 1) => block::<I, 2, 1>(isa, n, out),
        _ => block::<I, 1, 1>(isa, n, out),
    }
}

#[inline(always)]
fn block<I: Isa, const T: usize, const W: usize>(isa: I, n: usize, out: &mut Spun) {
    // As often as the narrowest sums allow.
    let run = (I::RUN / STEPS).min(200);
    let words: [[u32; 16]; W] = black_box([[0x0201_0002; 16]; W]);
    let x: [[[i8; 4]; T]; STEPS] = black_box([[[1, -2, 3, -4]; T]; STEPS]);
    let mut quads = [isa.load(&words[0]); W];
    for (quad, words) in quads.iter_mut().zip(&words) {
        *quad = isa.load(words);
    }
    for _ in 0..n {
        let mut sums = [[isa.zero(); T]; W];
        for _ in 0..run {
            // Unknown, or one multiplication would do for all.
            let x = black_box(&x);
            for x in x {
                for t in 0..T {
                    let x = isa.four(x[t]);
                    for w in 0..W {
                        sums[w][t] = isa.add(sums[w][t], quads[w], x);
                    }
                }
            }
        }
        for sums in sums.into_iter().flatten() {
            isa.flush(sums, &mut out.sums);
        }
    }
    out.n_products += (n * run * STEPS * T * W * 64) as u64;
}
