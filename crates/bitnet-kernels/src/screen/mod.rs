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
//! [`ScreenGroups`] leaves the largest lower and upper ends of groups of rows. The k-th largest of the lower ones is a value that at least as
//! many logits reach as are wanted. [`CertifiedGemv`] computes, in the order of sums of [`crate::dense_gemv::Bf16Gemv`] and in place, every
//! logit whose upper end reaches that value. The others stay as screened, which is below it; so the k largest, with all that equal the last of them,
//! are exact, and whatever takes the largest of the row takes what it would of the exact ones. There is no limit to the number of
//! candidates: at worst all rows are computed.
//!
//! Penalties change the order of logits. Tokens that a row's penalties can look at are candidates always, and count for no threshold.

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device;

use crate::dense_gemv::{BF16_WORDS, MAX_WARPS, Machine, share, shared_bytes};
use crate::{Global, Launch};

/// Rows of the head of a block of [`ScreenGroups`].
pub const CHUNK: u32 = 2048;
/// Groups of rows of a block.
const GROUPS: u32 = 32;
/// Rows of a group.
#[cfg_attr(
    not(any(target_arch = "nvptx64", feature = "emulator")),
    expect(dead_code, reason = "the host asks for no rows")
)]
const GROUP_ROWS: u32 = CHUNK / GROUPS;
/// Threads of a block of [`ScreenGroups`].
const THREADS: u32 = 256;
/// Blocks of [`ScreenGroups`] for each multiprocessor, which run at once.
const RESIDENT: u32 = 3;
/// Most groups that a block of [`CertifiedGemv`] looks at.
const MAX_GROUPS: u32 = 4096;
/// Groups of which a warp of [`CertifiedGemv`] has room for all rows.
const PER_WARP: u32 = 8;

/// Groups of a head of `vocab` rows.
#[must_use]
pub const fn groups(vocab: usize) -> usize {
    row_groups(vocab as u32) as usize
}

const fn row_groups(rows: u32) -> u32 {
    rows.div_ceil(CHUNK) * GROUPS
}

kernels! {
    /// Between what ends the logits of groups of 64 rows lie: the largest lower end that a logit of the group has, and the largest upper end.
    ///
    /// - Shapes: as the fields say.
    /// - Launch: [`ScreenGroups::launch`]; a block owns 2048 rows of some columns, whose bounds it reads once.
    /// - Moves: `(4 cols + 8) vocab` bytes, from L2. Bound: L2.
    ///
    /// # Safety
    /// Lengths as above; `row_bounds` and `column_bounds` 8-byte aligned; nothing that this kernel may overlap writes `settings`.
    screen_groups, block = [THREADS, 1, 1], min_blocks = RESIDENT, body = device::groups;
    pub struct ScreenGroups {
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
        /// The largest lower end of each group, of tokens that are not recent, (cols, [`groups`]).
        pub lowers: Global<f32>,
        /// The largest upper end of each group, infinity where there is none or a token is recent, (cols, [`groups`]).
        pub uppers: Global<f32>,
        /// Logits that were computed so far, 1; by [`CertifiedGemv`].
        pub products: Global<u32>,
        /// In memory that the host sees: gets the number of before this step, 1.
        pub published: Global<u32>,
        /// Rows of the head.
        pub vocab: u32,
        /// Columns.
        pub cols: u32,
    }

    /// `y[c][i] = r[c] * sum over k of w[i][k] norm[k] x[c][k]` with `r[c] = 1 / rms(x[c])`, for those rows i of each column c whose
    /// score in `y` can reach the column's threshold, or has no bound, or whose token is recent where penalties are on.
    ///
    /// - Shapes: `w` (n, k) bfloat16, row-major; `x` (cols, k); `norm` (k); `y` (cols, n), scores before; the rest as the fields say.
    /// - Launch: [`CertifiedGemv::launch`]; a block finds its column's threshold, takes turns at groups of rows, and computes what it finds
    ///   in them.
    /// - Moves: a 64th of `8 cols n` bytes from L2, what is in groups that reach the threshold, and `2 k` for each product.
    /// - Bound: latency where products are few.
    ///
    /// # Safety
    /// Lengths as above; `w`, `x` and `norm` 16-byte aligned, the bounds 8-byte aligned; `k` a multiple of 8; nothing that this kernel may overlap
    /// writes `settings`; the launch is
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
        /// Of [`ScreenGroups`], (cols, [`groups`]).
        pub lowers: Global<f32>,
        /// Of [`ScreenGroups`], (cols, [`groups`]).
        pub uppers: Global<f32>,
        /// [`crate::sample::Settings`] of each column, (cols, [`crate::sample::Settings::WORDS`]).
        pub settings: Global<u32>,
        /// How often each token is recent, (cols, n); read where the column's penalties are on.
        pub counts: Global<u32>,
        /// Products computed so far, wrapping, 1.
        pub products: Global<u32>,
        /// For [`crate::token::TakeBest`], (cols), where `keeps_best`.
        pub best: Global<u64>,
        /// Rows of the matrix.
        pub n: u32,
        /// Columns of the matrix.
        pub k: u32,
        /// Whether the largest logit of each column is left in `best`.
        pub keeps_best: u32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
    }
}

impl ScreenGroups {
    /// As many blocks as run at once, each with a share of the columns.
    #[must_use]
    pub fn launch(&self, machine: Machine) -> Launch {
        let chunks = self.vocab.div_ceil(CHUNK);
        let at_once = (RESIDENT * machine.multiprocessors / chunks).max(1);
        let each = self.cols.div_ceil(at_once);
        Launch {
            grid: [chunks, self.cols.div_ceil(each), 1],
            block: [THREADS, 1, 1],
            // What belongs to its columns.
            shared_bytes: each * 12,
        }
    }
}

impl CertifiedGemv {
    /// As many blocks as are resident at once, a share for each column.
    #[must_use]
    pub fn launch(&self, cols: u32, machine: Machine) -> Launch {
        let (warps, _) = share(2 * self.k);
        let groups = row_groups(self.n);
        let blocks = (2 * machine.multiprocessors / cols).max(groups.div_ceil(MAX_GROUPS));
        let blocks = blocks.clamp(1, groups);
        Launch {
            grid: [blocks, cols, 1],
            block: [warps * 32, 1, 1],
            shared_bytes: Self::shared_bytes(self.k, groups.div_ceil(blocks)),
        }
    }

    /// Shared memory of a block that looks at `groups` groups: what a product takes, what the warps tell each other, each warp's list of
    /// groups, and of rows.
    const fn shared_bytes(k: u32, groups: u32) -> u32 {
        let (warps, _) = share(2 * k);
        let lists = own(groups, warps) + PER_WARP * CHUNK / GROUPS;
        shared_bytes(2 * k, 1, BF16_WORDS) + 4 * warps * (4 + lists)
    }

    /// Whether a block that may have `shared_limit` bytes of shared memory can compute products of `k` elements.
    #[must_use]
    pub const fn takes(k: usize, shared_limit: u32) -> bool {
        k < 1 << 20 && Self::shared_bytes(k as u32, MAX_GROUPS) <= shared_limit
    }
}

/// Room for what each of `warps` warps finds in its share of `groups` groups.
const fn own(groups: u32, warps: u32) -> u32 {
    let all = warps * 32;
    groups.div_ceil(if all == 0 { 1 } else { all }) * 32
}
