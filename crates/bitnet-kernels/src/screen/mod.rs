//! The certified output head: the logits that the choice of a token can depend on, with the bits of the bfloat16 head, for half the
//! bytes.
//!
//! An 8-bit copy of the head, [`crate::int8_head`], gives every logit within a bound. With `v` for what is kept of a row `w` and `z` for
//! what is kept of a column `y`, `w y - v z = (w - v) y + v (y - z)`, so by Cauchy and Schwarz
//!
//! `|w y - v z| <= |w - v| |y| + |v| |y - z|`,
//!
//! and a small share of `|w| |y|` covers the roundings of both products. Lengths are computed in units of the row or column, where their
//! squares neither vanish nor overflow, and rounded up; whatever has no finite bound is a candidate.
//!
//! [`ScreenThreshold`] finds a value that at least as many logits reach as are wanted: the k-th largest of the largest lower ends of
//! groups of rows. [`CertifiedGemv`] computes, in the order of sums of [`crate::dense_gemv::Bf16Gemv`] and in place, every logit whose
//! upper end reaches that value. The others stay as screened, which is below it; so the k largest, with all that equal the last of them,
//! are exact, and whatever takes the largest of the row takes what it would of the exact ones. There is no limit to the number of
//! candidates: at worst all rows are computed.
//!
//! Penalties change the order of logits. Tokens that a row's penalties can look at are candidates always, and count for no threshold.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;

use crate::dense_gemv::{BF16_WORDS, MAX_WARPS, Machine, ROWS, share, shared_bytes};
use crate::{Global, Launch};

/// Rows of the head of a block of [`ScreenThreshold`].
pub const CHUNK: u32 = 2048;
/// Groups of rows of a block, of which each gives its largest lower end.
const GROUPS: u32 = 32;
/// Threads of a block of [`ScreenThreshold`].
const THREADS: u32 = 256;
/// Most bands of rows that a block of [`CertifiedGemv`] looks at.
const MAX_BANDS: u32 = 1024;

/// Groups of a head of `vocab` rows.
#[must_use]
pub const fn groups(vocab: usize) -> usize {
    vocab.div_ceil(CHUNK as usize) * GROUPS as usize
}

kernels! {
    /// A value that at least as many logits reach as each column's choice keeps, from between what ends they lie.
    ///
    /// - Shapes: as the fields say.
    /// - Launch: [`ScreenThreshold::launch`]; a block owns 2048 scores of a column, the last one done finishes.
    /// - Moves: `(4 cols + 8) vocab` bytes, from L2. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above; `row_bounds` and `column_bounds` 8-byte aligned.
    screen_threshold, block = [THREADS, 1, 1], body = device::threshold;
    pub struct ScreenThreshold {
        /// Logits as screened, (cols, vocab).
        pub scores: Global<f32>,
        /// As [`crate::int8_head::RowBounds`] leaves them, (vocab, 2).
        pub row_bounds: Global<f32>,
        /// As [`crate::int8_head::Int8Columns`] leaves them, (cols, 2).
        pub column_bounds: Global<f32>,
        /// [`crate::sample::Settings`] of each column, (cols, [`crate::sample::Settings::WORDS`]).
        pub settings: Global<u32>,
        /// How often each token is recent, (cols, vocab); read where the column's penalties are on.
        pub counts: Global<u32>,
        /// The largest lower end of each group, (cols, [`groups`]).
        pub maxima: Global<f32>,
        /// Blocks that are done, (cols), 0 before and after.
        pub done: Global<u32>,
        /// The value, (cols); negative infinity where there is none.
        pub threshold: Global<f32>,
        /// Logits that were computed so far, 1; by [`CertifiedGemv`].
        pub products: Global<u32>,
        /// In memory that the host sees: gets the number of before this step, 1.
        pub published: Global<u32>,
        /// Rows of the head.
        pub vocab: u32,
    }

    /// `y[c][i] = r[c] * sum over k of w[i][k] norm[k] x[c][k]` with `r[c] = 1 / rms(x[c])`, for those rows i of each column c whose
    /// score in `y` can reach the column's threshold, or has no bound, or whose token is recent where penalties are on.
    ///
    /// - Shapes: `w` (n, k) bfloat16, row-major; `x` (cols, k); `norm` (k); `y` (cols, n), scores before; the rest as the fields say.
    /// - Launch: [`CertifiedGemv::launch`]; a block takes turns at bands of 8 rows of a column, and computes what it finds in them.
    /// - Moves: `(4 cols + 8) n` bytes from L2, and `2 k` for each product.
    /// - Bound: latency where products are few.
    ///
    /// # Safety
    /// Lengths as above; `w`, `x` and `norm` 16-byte aligned, the bounds 8-byte aligned; `k` a multiple of 8; the launch is
    /// [`CertifiedGemv::launch`]'s, and a block can have its shared memory.
    certified_gemv, block = [MAX_WARPS * 32, 1, 1], min_blocks = 2, body = device::recompute;
    pub struct CertifiedGemv {
        /// Weights, pairs of bfloat16, (n, k / 2).
        pub w: Global<u32>,
        /// Input rows, (cols, k).
        pub x: Global<f32>,
        /// Weight of the norm of the input, (k); ones where there is none.
        pub norm: Global<f32>,
        /// Scores, and then products, (cols, n).
        pub y: Global<f32>,
        /// As [`crate::int8_head::RowBounds`] leaves them, (n, 2).
        pub row_bounds: Global<f32>,
        /// As [`crate::int8_head::Int8Columns`] leaves them, (cols, 2).
        pub column_bounds: Global<f32>,
        /// Of [`ScreenThreshold`], (cols).
        pub threshold: Global<f32>,
        /// [`crate::sample::Settings`] of each column, (cols, [`crate::sample::Settings::WORDS`]).
        pub settings: Global<u32>,
        /// How often each token is recent, (cols, n); read where the column's penalties are on.
        pub counts: Global<u32>,
        /// Products computed so far, wrapping, 1.
        pub products: Global<u32>,
        /// Rows of the matrix.
        pub n: u32,
        /// Columns of the matrix.
        pub k: u32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
    }
}

impl ScreenThreshold {
    /// Blocks of 2048 rows by columns.
    #[must_use]
    pub const fn launch(&self, cols: u32) -> Launch {
        Launch {
            grid: [self.vocab.div_ceil(CHUNK), cols, 1],
            block: [THREADS, 1, 1],
            shared_bytes: (2 * THREADS / 32 + 1) * 4,
        }
    }
}

impl CertifiedGemv {
    /// As many blocks a column as are resident at once, for many columns a share of them.
    #[must_use]
    pub fn launch(&self, cols: u32, machine: Machine) -> Launch {
        let (warps, _) = share(2 * self.k);
        let resident = 2 * machine.multiprocessors;
        let bands = self.n.div_ceil(ROWS);
        let blocks = (2 * resident / cols).min(resident);
        let blocks = blocks.max(bands.div_ceil(MAX_BANDS)).min(bands);
        Launch {
            grid: [blocks, cols, 1],
            block: [warps * 32, 1, 1],
            shared_bytes: Self::shared_bytes(self.k, bands.div_ceil(blocks)),
        }
    }

    /// Shared memory of a block that looks at `bands` bands: what a product takes, each warp's list of rows, and their lengths.
    const fn shared_bytes(k: u32, bands: u32) -> u32 {
        let (warps, _) = share(2 * k);
        shared_bytes(2 * k, 1, BF16_WORDS) + 4 * (warps * own(bands, warps) + warps)
    }

    /// Whether a block that may have `shared_limit` bytes of shared memory can compute products of `k` elements.
    #[must_use]
    pub const fn takes(k: usize, shared_limit: u32) -> bool {
        k < 1 << 20 && Self::shared_bytes(k as u32, MAX_BANDS) <= shared_limit
    }
}

/// Room for the rows that each of `warps` warps finds in its share of `bands` bands.
const fn own(bands: u32, warps: u32) -> u32 {
    let all = warps * 32;
    (bands * ROWS).div_ceil(if all == 0 { 1 } else { all }) * 32
}
