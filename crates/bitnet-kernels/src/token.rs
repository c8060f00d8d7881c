//! The end of a decoded token's step: the choice of the next token.

use crate::{Global, Launch};

/// Threads of a block of [`ArgMax`].
const ARG_MAX_THREADS: u32 = 256;
/// Blocks of [`ArgMax`] a row.
const ARG_MAX_BLOCKS: u32 = 64;

/// Threads of a block of [`TakeBest`].
const TAKE_BEST_THREADS: u32 = 32;

/// What [`ArgMax`] and [`TakeBest`] write to the ring for logits with a NaN among them.
pub const NO_TOKEN: u32 = u32::MAX;

kernels! {
    /// Chooses the largest logit of every row, the first of equals, and makes it the next token of the row's sequence:
    /// `token = arg max`, `position += 1`, and the token goes to the host's ring.
    ///
    /// - Shapes: `logits` (rows, vocab); `best`, `done` (rows), 0 before and after; `tokens`, `positions`, `steps` (rows);
    ///   `ring` (ring_len, ring_rows), in memory that the host sees.
    /// - Launch: [`ArgMax::launch`]; 64 blocks of 256 threads a row; the last one done finishes.
    /// - Moves: `4 rows vocab` bytes, from L2. Bound: latency.
    ///
    /// A NaN gives [`NO_TOKEN`], on the ring alone: the token to embed stays, so that the next step reads valid memory.
    ///
    /// # Safety
    /// Lengths as above; `logits` 16-byte aligned; `ring_len` a power of two; at most `ring_rows` rows.
    arg_max, block = [ARG_MAX_THREADS, 1, 1], body = device::arg_max;
    pub struct ArgMax {
        /// Logits, (rows, vocab).
        pub logits: Global<f32>,
        /// Ordered bits of the largest logit, NaN above all, then its inverted index, (rows).
        pub best: Global<u64>,
        /// Blocks that are done, (rows).
        pub done: Global<u32>,
        /// The tokens to embed next, (rows).
        pub tokens: Global<u32>,
        /// Their positions, (rows).
        pub positions: Global<u32>,
        /// Steps taken since the host last set it, (rows).
        pub steps: Global<u32>,
        /// Word (`steps % ring_len`, row) gets the token plus 1, so that a word the host cleared stays 0 until then.
        pub ring: Global<u32>,
        /// Logits of a row.
        pub vocab: u32,
        /// Steps that the ring holds.
        pub ring_len: u32,
        /// Rows that a step has in the ring.
        pub ring_rows: u32,
    }

    /// Makes the largest logit of every row, which [`crate::screen::CertifiedGemv`] has found, the next token of the row's sequence, as
    /// [`ArgMax`] does.
    ///
    /// - Shapes: as of [`ArgMax`].
    /// - Launch: [`TakeBest::launch`]; a thread a row.
    /// - Bound: latency.
    ///
    /// Where nothing was found there is no token, as where a logit is a NaN.
    ///
    /// # Safety
    /// As for [`ArgMax`].
    take_best, block = [TAKE_BEST_THREADS, 1, 1], body = device::take_best;
    pub struct TakeBest {
        /// What [`ArgMax::best`] holds, or 0 where nothing was found; 0 afterwards, (rows).
        pub best: Global<u64>,
        /// As [`ArgMax::tokens`].
        pub tokens: Global<u32>,
        /// As [`ArgMax::positions`].
        pub positions: Global<u32>,
        /// As [`ArgMax::steps`].
        pub steps: Global<u32>,
        /// As [`ArgMax::ring`].
        pub ring: Global<u32>,
        /// Rows of the step.
        pub rows: u32,
        /// Steps that the ring holds.
        pub ring_len: u32,
        /// Rows that a step has in the ring.
        pub ring_rows: u32,
    }
}

impl TakeBest {
    /// The launch.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [self.rows.div_ceil(TAKE_BEST_THREADS), 1, 1],
            block: [TAKE_BEST_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }
}

impl ArgMax {
    /// The launch for this many rows.
    #[must_use]
    pub const fn launch(rows: u32) -> Launch {
        Launch {
            grid: [ARG_MAX_BLOCKS, rows, 1],
            block: [ARG_MAX_THREADS, 1, 1],
            shared_bytes: ARG_MAX_THREADS / 32 * 8 + 4,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use super::{ARG_MAX_BLOCKS, ARG_MAX_THREADS, ArgMax, NO_TOKEN, TAKE_BEST_THREADS, TakeBest};
    use crate::Global;
    use crate::intrinsics::*;

    /// Bits that order as the floats do, NaN above all.
    #[inline(always)]
    fn ordered(x: f32) -> u32 {
        let bits = x.to_bits();
        if x.is_nan() {
            u32::MAX
        } else if bits >> 31 == 0 {
            bits | 1 << 31
        } else {
            !bits
        }
    }

    /// The key of the largest of a warp's values, the first of equals: what [`ArgMax::best`] holds. `ordered` is 0 where a lane has none.
    ///
    /// # Safety
    /// The whole warp calls this.
    #[inline(always)]
    unsafe fn key_of_warp(ordered: u32, index: u32) -> u64 {
        // SAFETY: the caller's promise.
        unsafe {
            let top = warp_reduce_max_u32(FULL_MASK, ordered);
            let first = warp_reduce_min_u32(FULL_MASK, if ordered == top { index } else { u32::MAX });
            // Inverted, so that of equal logits the first has the larger key.
            (top as u64) << 32 | !first as u64
        }
    }

    /// Leaves the largest of a warp's logits for [`TakeBest`], each with its index; `u32::MAX` where a lane has none.
    ///
    /// # Safety
    /// The whole warp calls this; there is an element `row` of `best`.
    #[inline(always)]
    pub(crate) unsafe fn offer(best: Global<u64>, row: usize, logit: f32, index: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let key = key_of_warp(if index == u32::MAX { 0 } else { ordered(logit) }, index);
            if lane_id() == 0 {
                best.fetch_max(row, key);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn take_best(p: TakeBest) {
        let row = block_idx_x() * TAKE_BEST_THREADS + thread_idx_x();
        grid_dependency_launch();
        grid_dependency_wait();
        if row < p.rows {
            // SAFETY: the row is one of the step's, which this thread alone has.
            unsafe {
                p.state()
                    .advance(row as usize, token_of(p.best.load_relaxed(row as usize)));
                p.best.store_relaxed(row as usize, 0);
            }
        }
    }

    /// The token of a key, or what the ring gets where there is none.
    #[inline(always)]
    fn token_of(key: u64) -> Result<u32, u32> {
        if key != 0 && key >> 32 != u32::MAX as u64 {
            Ok(!(key as u32))
        } else {
            Err(NO_TOKEN)
        }
    }

    /// What a step leaves of each row's sequence: fields of every kernel that ends one.
    #[derive(Clone, Copy)]
    pub(crate) struct State {
        pub(crate) tokens: Global<u32>,
        pub(crate) positions: Global<u32>,
        pub(crate) steps: Global<u32>,
        pub(crate) ring: Global<u32>,
        pub(crate) ring_len: u32,
        pub(crate) ring_rows: u32,
    }

    /// Gives parameters that have its fields a method for it.
    macro_rules! state {
        ($($Params:ty)*) => {$(
            impl $Params {
                #[inline(always)]
                fn state(&self) -> $crate::token::device::State {
                    let Self { tokens, positions, steps, ring, ring_len, ring_rows, .. } = *self;
                    $crate::token::device::State { tokens, positions, steps, ring, ring_len, ring_rows }
                }
            }
        )*};
    }
    pub(crate) use state;

    state! { ArgMax TakeBest }

    impl State {
        /// Ends the step of a row: `next` is the token to embed next, or what the ring gets where there is none.
        ///
        /// # Safety
        /// There is such a row, which no other thread has.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub(crate) unsafe fn advance(&self, row: usize, next: Result<u32, u32>) {
            // SAFETY: the caller's promise.
            unsafe {
                // The next step must find a row of the embedding whatever happened here.
                if let Ok(token) = next {
                    self.tokens.store(row, token);
                }
                let step = self.steps.load_l2(row)[0];
                let place = (step & (self.ring_len - 1)) * self.ring_rows;
                let word = match next {
                    Ok(token) => token + 1,
                    Err(word) => word,
                };
                self.ring.store_relaxed(place as usize + row, word);
                self.positions.store(row, self.positions.load_l2(row)[0] + 1);
                self.steps.store(row, step + 1);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn arg_max(p: ArgMax) {
        let (me, row) = (thread_idx_x(), block_idx_y() as usize);
        let logits = p.logits.offset(row * p.vocab as usize);
        // Every row begins on a multiple of 16 bytes, or none is read by four.
        let quads = if p.vocab.is_multiple_of(4) { p.vocab / 4 } else { 0 };
        let keys = Shared::<u64>::at(0);
        // SAFETY: indices are compared with the vocabulary; every branch around a warp or block operation is uniform, and the
        // last part runs on one thread.
        unsafe {
            grid_dependency_launch();
            grid_dependency_wait();
            let (mut best, mut index) = (0, u32::MAX);
            let mut quad = block_idx_x() * ARG_MAX_THREADS + me;
            while quad < quads {
                let x = logits.load_l2_x4(quad as usize * 4);
                let mut j = 0;
                while j < 4 {
                    let key = ordered(x[j]);
                    // Indices rise, so the first of equals stays.
                    if key > best {
                        (best, index) = (key, quad * 4 + j as u32);
                    }
                    j += 1;
                }
                quad += ARG_MAX_BLOCKS * ARG_MAX_THREADS;
            }
            let mut one = quads * 4 + block_idx_x() * ARG_MAX_THREADS + me;
            while one < p.vocab {
                let key = ordered(logits.load_l2(one as usize)[0]);
                if key > best {
                    (best, index) = (key, one);
                }
                one += ARG_MAX_BLOCKS * ARG_MAX_THREADS;
            }
            let key = key_of_warp(best, index);
            if lane_id() == 0 {
                keys.store(warp_id(), key);
            }
            // Orders every warp's key before the loads below.
            sync_threads();
            if me == 0 {
                let mut key = 0;
                let mut warp = 0;
                while warp < ARG_MAX_THREADS / 32 {
                    key = key.max(keys.load(warp));
                    warp += 1;
                }
                p.best.fetch_max(row, key);
                if p.done.fetch_add_acq_rel(row, 1) == ARG_MAX_BLOCKS - 1 {
                    p.state().advance(row, token_of(p.best.load_relaxed(row)));
                    p.best.store_relaxed(row, 0);
                    p.done.store_relaxed(row, 0);
                }
            }
        }
    }
}
