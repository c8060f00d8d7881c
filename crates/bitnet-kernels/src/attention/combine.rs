//! Folds the partial results of decode's steps.

use crate::{Global, Launch};

/// Widest head.
const MAX_THREADS: u32 = 256;

kernels! {
    /// `out[b][h] = O / L` of the left fold over the steps of token b's head h.
    ///
    /// - Shapes: `values` (batch, n_heads, steps, padded); `sums` (batch, n_heads, steps, 2): maximum, sum of weights;
    ///   `positions` (batch); `out` (batch, n_heads, head_dim).
    /// - Launch: [`AttentionCombine::launch`]; a block owns a head, a thread a dimension.
    /// - Moves: every partial result of the tokens' own steps once, from L2.
    /// - Bound: latency; up to 16 steps are requested at a time.
    ///
    /// # Safety
    /// Lengths as above; `steps` covers every position; `padded` 32, 64, 128 or 256, at least `head_dim`.
    attention_combine, block = [MAX_THREADS, 1, 1], min_blocks = 1, body = device::run;
    pub struct AttentionCombine {
        /// Weighted values of every step.
        pub values: Global<f32>,
        /// Maximum and sum of weights of every step.
        pub sums: Global<f32>,
        /// Position of every token.
        pub positions: Global<u32>,
        /// Output.
        pub out: Global<f32>,
        /// Tokens.
        pub batch: u32,
        /// Query heads.
        pub n_heads: u32,
        /// Dimensions of a head.
        pub head_dim: u32,
        /// Dimensions of a head in `values`.
        pub padded: u32,
        /// Steps a head has room for.
        pub steps: u32,
    }
}

impl AttentionCombine {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [self.n_heads, self.batch, 1],
            block: [self.padded, 1, 1],
            shared_bytes: 0,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::super::math::{Fold, LOWEST};
    use super::AttentionCombine;
    use crate::Global;
    use crate::cache::PAGE;
    use crate::intrinsics::*;

    /// One dimension of a head: the fold of `steps` steps, whose `values` lie `stride` apart, requested `ROUND` at a time.
    ///
    /// # Safety
    /// The elements are readable, the sums on a multiple of 8 bytes.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn fold<const ROUND: usize>(
        values: Global<f32>,
        stride: u32,
        sums: Global<f32>,
        steps: u32,
    ) -> f32 {
        let mut fold = Fold::EMPTY;
        let mut out = 0.0;
        let mut first = 0;
        while first < steps {
            let mut value = [0.0; ROUND];
            let mut sum = [[0.0; 2]; ROUND];
            let mut i = 0;
            while i < ROUND as u32 {
                // Past the end the last step again, unused: a branch would keep the loads from going out together.
                let step = (first + i).min(steps - 1);
                // SAFETY: the caller's promise.
                unsafe {
                    value[i as usize] = values.load_l2((step * stride) as usize)[0];
                    sum[i as usize] = sums.load_l2_x2(2 * step as usize);
                }
                i += 1;
            }
            let mut i = 0;
            while i < ROUND as u32 {
                let is_step = first + i < steps;
                let [max, weights] = sum[i as usize];
                let factors = fold.rescale(if is_step { max } else { LOWEST });
                fold.sum = factors.fold(fold.sum, if is_step { weights } else { 0.0 });
                out = factors.fold(out, if is_step { value[i as usize] } else { 0.0 });
                i += 1;
            }
            first += ROUND as u32;
        }
        out / fold.sum
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: AttentionCombine) {
        let (head, token, d) = (block_idx_x(), block_idx_y(), thread_idx_x());
        let row = token as usize * p.n_heads as usize + head as usize;
        let at = row * p.steps as usize;
        grid_dependency_launch();
        // SAFETY: the head is the block's, the dimension below the padded ones, the steps up to the token's position.
        unsafe {
            let steps = p.positions.load_l2(token as usize)[0] / PAGE + 1;
            grid_dependency_wait();
            let values = p.values.offset(at * p.padded as usize + d as usize);
            let sums = p.sums.offset(2 * at);
            // A short context has no use for a long round.
            let out = if steps <= 4 {
                fold::<4>(values, p.padded, sums, steps)
            } else {
                fold::<16>(values, p.padded, sums, steps)
            };
            if d < p.head_dim {
                p.out.store(row * p.head_dim as usize + d as usize, out);
            }
        }
    }
}
