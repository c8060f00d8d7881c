//! The first step of a forward pass: rows of the embedding.

use crate::{Global, Launch};

/// Threads of a block.
const THREADS: u32 = 256;

kernels! {
    /// `x[b] = table[tokens[b]]`, each element the sum of `terms` of bfloat16.
    ///
    /// - Shapes: `tokens` (batch); `table` rows of `stride` words, two elements each, in which lie d first terms, then d second ones, and so
    ///   on; `x` (batch, d).
    /// - Launch: [`Self::launch`]; a thread owns two elements.
    /// - Bound: latency; a row is read once. Nothing of the next kernel starts before this one's wait is over, so kernels
    ///   further down may read what steps before this one wrote without waiting for it.
    ///
    /// # Safety
    /// Lengths as above; `d` even; `terms` at least 1; every token below the vocabulary; `table` and `x` 8-byte aligned.
    embed_bf16, block = [THREADS, 1, 1], body = device::embed_bf16;
    pub struct EmbedBf16 {
        /// Token ids.
        pub tokens: Global<u32>,
        /// The embedding.
        pub table: Global<u32>,
        /// Output.
        pub x: Global<f32>,
        /// Tokens.
        pub batch: u32,
        /// Width of a row.
        pub d: u32,
        /// Terms of an element.
        pub terms: u32,
        /// Words from one row of the table to the next.
        pub stride: u32,
    }
}

impl EmbedBf16 {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [(self.d / 2).div_ceil(THREADS), self.batch, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{EmbedBf16, THREADS};
    use crate::intrinsics::*;

    #[inline(always)]
    pub(super) unsafe fn embed_bf16(p: EmbedBf16) {
        let (pair, row) = (block_idx_x() * THREADS + thread_idx_x(), block_idx_y() as usize);
        // Another kernel may have sampled the token.
        grid_dependency_wait();
        grid_dependency_launch();
        if pair < p.d / 2 {
            // SAFETY: the row is below the batch, the pair inside the row.
            unsafe {
                let token = p.tokens.load_l2(row)[0] as usize;
                let at = token * p.stride as usize + pair as usize;
                let mut values = bf16x2_to_f32(p.table.load_constant(at)[0]);
                let mut term = 1;
                while term < p.terms {
                    let more = bf16x2_to_f32(p.table.load_constant(at + (term * (p.d / 2)) as usize)[0]);
                    values = [values[0] + more[0], values[1] + more[1]];
                    term += 1;
                }
                p.x.store_x2(row * p.d as usize + 2 * pair as usize, values);
            }
        }
    }
}
