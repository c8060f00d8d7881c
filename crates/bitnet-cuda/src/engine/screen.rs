//! The certified output head of decode steps: of each row the logits that its choice can depend on.

use super::choice::Kernels;
use super::{Engine, launch};
use crate::error::Result;
use crate::gpu::Gpu;
use bitnet_kernels::screen::{CertifiedGemv, ScreenGroups};
use std::sync::atomic::Ordering;

/// Where more than one logit in so many was computed, the whole head would have been less work.
const MOST: u32 = 8;

/// Most steps that go to the whole head at once after screenings that were for nothing.
const MAX_REST: usize = 64;

/// How the screening went, as the host knows it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Screening {
    /// Logits computed when it last looked, wrapping.
    products: u32,
    /// Steps that screen nothing, and how many there are after the next screening that is for nothing.
    rest: usize,
    next_rest: usize,
}

impl Screening {
    /// Whether the next `steps` steps screen.
    pub(super) fn screens(&mut self, steps: usize) -> bool {
        let screens = self.rest == 0;
        self.rest = self.rest.saturating_sub(steps);
        screens
    }

    /// Takes note that `products` logits were computed up to now, in a step of `rows` rows of `vocab` since the last time.
    fn went(&mut self, products: u32, rows: usize, vocab: usize) {
        let made = products.wrapping_sub(self.products);
        self.products = products;
        if made as usize > rows * vocab / MOST as usize {
            self.next_rest = (2 * self.next_rest).clamp(1, MAX_REST);
            self.rest = self.next_rest;
        } else if made > 0 {
            self.next_rest = 0;
        }
    }
}

impl Engine {
    /// Whether a model of this hidden size can have a certified head on this GPU.
    #[must_use]
    pub fn certifies(gpu: &Gpu, d_model: usize) -> bool {
        CertifiedGemv::takes(d_model, gpu.machine().shared_limit)
    }

    /// Takes note of how the screening of the steps done by now went; the last of them had `rows` rows.
    pub(super) fn watch_screening(&mut self, rows: usize) {
        if let Some(certified) = &self.buffers.certified {
            let products = certified
                .published
                .iter()
                .map(|word| word.load(Ordering::Relaxed));
            let products = products.sum();
            self.screening.went(products, rows, self.model.dims.vocab);
        }
    }

    /// Whether the head of a step leaves the most likely tokens, which are all that these kernels choose.
    pub(super) fn keeps_best(&self, kernels: Kernels, screens: bool) -> bool {
        screens && self.buffers.certified.is_some() && kernels == Kernels::default()
    }

    /// The head of a decode step: of every row those logits, as [`Engine::head`] computes them, that can be among as many of the
    /// largest as the row's choice keeps, or that penalties can change; of the others what is less than any of these.
    pub(super) fn head_of_step(&self, kernels: Kernels, screens: bool) -> Result<()> {
        let rows = self.batch;
        let (d, s, c) = (&self.model.dims, &self.buffers.scratch, &self.buffers.chooser);
        let Some(certified) = self.buffers.certified.as_ref().filter(|_| screens) else {
            return self.head(0, rows);
        };
        let x = s.residual.global();
        self.int8_product(x, rows, &certified.copy)?;
        let groups = ScreenGroups {
            scores: s.logits.global(),
            row_bounds: certified.row_bounds.global(),
            column_bounds: s.term_bounds.global(),
            settings: c.settings(),
            counts: c.counts(),
            lowers: certified.lowers.global(),
            uppers: certified.uppers.global(),
            products: certified.products.global(),
            published: certified.published.global(),
            vocab: d.vocab as u32,
            cols: rows as u32,
        };
        let machine = self.gpu().machine();
        // SAFETY: there is a row of every buffer for each seat, and the buffers live as long as the engine, which drops its recordings
        // first.
        unsafe { launch(&self.stream, &groups, groups.launch(machine))? };
        let some = CertifiedGemv {
            w: self.head_rows(),
            x,
            norm: self.buffers.final_norm.global(),
            y: s.logits.global(),
            row_bounds: certified.row_bounds.global(),
            column_bounds: s.term_bounds.global(),
            lowers: certified.lowers.global(),
            uppers: certified.uppers.global(),
            settings: c.settings(),
            counts: c.counts(),
            products: certified.products.global(),
            best: c.best.global(),
            n: d.vocab as u32,
            k: d.d_model as u32,
            keeps_best: u32::from(self.keeps_best(kernels, screens)),
            eps: self.model.eps,
        };
        let grid = some.launch(rows as u32, machine);
        // SAFETY: as above; that a block can have its shared memory was checked when the engine was made.
        unsafe { launch(&self.stream, &some, grid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn screenings_for_nothing_are_followed_by_steps_of_the_whole_head() {
        let mut screening = Screening::default();
        let (vocab, mut products) = (1000, u32::MAX - 20);
        screening.went(products, usize::MAX / vocab, vocab);
        assert!(screening.screens(8));
        for rest in [1, 2, 4] {
            products = products.wrapping_add(500);
            screening.went(products, 2, vocab);
            assert_eq!((0..rest).filter(|_| screening.screens(1)).count(), 0);
            assert!(screening.screens(1));
        }
        // Nothing new is known.
        screening.went(products, 2, vocab);
        products = products.wrapping_add(40);
        screening.went(products, 2, vocab);
        assert!(screening.screens(1));
        products = products.wrapping_add(500);
        screening.went(products, 2, vocab);
        assert!(!screening.screens(8) && screening.screens(1));
    }
}
