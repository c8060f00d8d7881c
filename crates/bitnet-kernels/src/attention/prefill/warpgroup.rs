//! The body of the prefill kernel for Hopper: a warpgroup multiplies the queries of 64 rows with all keys of a step at once.
//!
//! The bits are those of the other kernels: a tensor core makes one sum of the 16 products of an instruction, wherever they stand in it,
//! and every instruction here has the products of one there, in the same order. What is to stand side by side for that are 8 bytes of
//! the cache: 32 dimensions (or keys) are four times 8, whose first halves are one instruction's and whose second halves the next one's.

use super::super::math::{self, Fold};
use super::warp::{Place, fold};
use super::{AttentionPrefill, HALF_BYTES, KEYS_BYTES, PAGE, VALUES_BYTES, WARPGROUP_DIMS as DIMS};
use crate::Global;
use crate::cache::device::Page;
use crate::intrinsics::*;

/// Where the 4 dimensions (or keys) `4 unit ..` of 64 stand among the operands: their place, in 8-byte units, in rows of 128 bytes.
#[inline(always)]
const fn operand(unit: u32) -> u32 {
    unit / 8 * 8 + unit % 2 * 4 + unit % 8 / 2
}

/// The key of a step that column `column` of the scores has: the inverse of [`operand`].
#[inline(always)]
const fn key_of(column: u32) -> u32 {
    let unit = column / 4;
    (unit / 8 * 8 + unit % 4 * 2 + unit % 8 / 4) * 4 + column % 4
}

/// Where unit `unit` of row `row` stands, in words from a half's start.
#[inline(always)]
const fn place_of(row: u32, unit: u32) -> u32 {
    swizzled_128(row, unit / 2) / 4 + unit % 2 * 2
}

/// A step's keys in shared memory: halves of (key, 64 dims).
#[derive(Clone, Copy)]
struct Keys(u32);

/// A step's values in shared memory: (dim, key), then 8 rows of ones, whose product is the sum of the weights.
#[derive(Clone, Copy)]
struct Values(u32);

/// Weighted values of the lower half of the dimensions.
type Lower = [f32; 32];
/// Weighted values of the upper half, and behind them the sums of the weights.
type Upper = [f32; 36];

impl Keys {
    #[inline(always)]
    fn of(step: u32) -> Self {
        Self(step % 2 * KEYS_BYTES)
    }

    /// Half `half` of the dimensions.
    #[inline(always)]
    fn half(self, half: u32) -> Shared<u32> {
        Shared::at(self.0 + half * HALF_BYTES)
    }

    /// Starts the copies of a step's keys, which lie in that page. Keys stand in the order of the columns of the scores.
    ///
    /// # Safety
    /// All lanes of the block call this; the page lies inside the cache; no lane uses the keys before.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn request(self, k: Global<u32>, page: Page<false>) {
        let (row, unit) = (thread_idx_x() / 32, thread_idx_x() % 32);
        let from = k.offset(page.key(key_of(row)) + (unit * 2) as usize);
        let to = self.half(unit / 16).offset(place_of(row, operand(unit % 16)));
        let mut i = 0;
        while i < PAGE / 8 {
            // The key of column `row + 8 i` is as many after that of column `row` whatever the row.
            let (column, key) = (8 * i, key_of(8 * i));
            // SAFETY: the caller's promise.
            unsafe { async_copy_8(to.offset(column * 32), from.offset((key * (DIMS / 2)) as usize)) };
            i += 1;
        }
    }
}

impl Values {
    #[inline(always)]
    fn of(step: u32) -> Self {
        Self(2 * KEYS_BYTES + step % 2 * VALUES_BYTES)
    }

    /// The dimensions, and behind them the ones.
    #[inline(always)]
    fn all(self) -> Shared<u32> {
        Shared::at(self.0)
    }

    /// Groups of products of [`Values::weighted`].
    const GROUPS: usize = 2;

    /// Starts the weighted values of half the dimensions, [`Lower`] or [`Upper`].
    ///
    /// # Safety
    /// All lanes of a warpgroup call this; the values are there, and stay until the sums have been waited for.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn weighted<S: Sums>(self, half: u32, weights: &[[u32; 4]; 4]) -> Pending<S> {
        let values = self.all().offset(half * HALF_BYTES / 4);
        // SAFETY: the caller's promise.
        unsafe {
            S::product([weights[0], weights[1]], values).plus([weights[2], weights[3]], values.offset(16))
        }
    }

    /// The dimension and the unit of keys that the lane copies first; its others are of every 16th dimension. A warp's are whole lines of the
    /// cache, and lie in different banks.
    #[inline(always)]
    fn own_unit() -> (u32, u32) {
        let (warp, lane) = (warp_id(), lane_id());
        (
            warp / 4 * 8 + lane / 2 % 8,
            warp % 4 * 4 + lane / 16 * 2 + lane % 2,
        )
    }

    /// Where the lane's first unit stands: those of its other rows, 16 apart, are as far apart.
    #[inline(always)]
    fn own(self) -> Shared<u32> {
        let (dim, unit) = Self::own_unit();
        self.all().offset(place_of(dim, operand(unit)))
    }

    /// Writes the ones.
    ///
    /// # Safety
    /// All lanes of the block call this, once.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn init(self) {
        // SAFETY: the word is this lane's alone.
        unsafe { self.all().offset(DIMS * 32 + thread_idx_x()).store(0, math::ONES) };
    }

    /// Starts the copies of a step's values, which lie in that page.
    ///
    /// # Safety
    /// All lanes of the block call this; the page lies inside the cache; no lane uses the values before.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn request(self, v: Global<u32>, page: Page<false>) {
        let (dim, unit) = Self::own_unit();
        let (from, to) = (v.offset(page.value(4 * unit, dim)), self.own());
        let mut i = 0;
        while i < DIMS / 16 {
            // SAFETY: the caller's promise.
            unsafe { async_copy_8(to.offset(16 * i * 32), from.offset((16 * i * 4) as usize)) };
            i += 1;
        }
    }

    /// Zeros the values past key `last`: a product takes them all in, and zero times a NaN would count.
    ///
    /// # Safety
    /// All lanes of the block call this, between barriers.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn clear_after(self, last: u32) {
        let (first, own) = (4 * Self::own_unit().1, self.own());
        if first + 3 <= last {
            return;
        }
        let mask = |key: u32| match () {
            () if key < last => u32::MAX,
            () if key <= last => 0xffff,
            () => 0,
        };
        let mut i = 0;
        while i < DIMS / 16 {
            let at = own.offset(16 * i * 32);
            // SAFETY: the unit is this lane's alone.
            unsafe {
                let w = at.load_x2(0);
                at.store_x2(0, [w[0] & mask(first), w[1] & mask(first + 2)]);
            }
            i += 1;
        }
    }
}

/// The queries of a warpgroup in shared memory, halves of (row, 64 dims).
#[derive(Clone, Copy)]
struct Queries(u32);

impl Queries {
    /// The warpgroup's.
    #[inline(always)]
    fn new() -> Self {
        Self(2 * (KEYS_BYTES + VALUES_BYTES) + warp_id() / 4 * 2 * HALF_BYTES)
    }

    /// Half `half` of the dimensions.
    #[inline(always)]
    fn half(self, half: u32) -> Shared<u32> {
        Shared::at(self.0 + half * HALF_BYTES)
    }

    /// Copies rows `group` and `group + 8` of the warp, given by the words of `q` where they start; none for rows of zeros.
    ///
    /// # Safety
    /// All lanes of the warp call this, once; the rows are readable.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn store(self, q: Global<u32>, rows: [Option<usize>; 2]) {
        let (group, quad) = (lane_id() / 4, lane_id() % 4);
        let mut row = 0;
        while row < 2 {
            let to = warp_id() % 4 * 16 + group + 8 * row as u32;
            let mut i = 0;
            while i < 8 {
                let unit = 4 * i + quad;
                // SAFETY: the caller's promise; a unit is one lane's.
                unsafe {
                    let words = match rows[row] {
                        Some(start) => q.load_l2_x2(start + 2 * unit as usize),
                        None => [0; 2],
                    };
                    self.half(unit / 16)
                        .offset(place_of(to, operand(unit % 16)))
                        .store_x2(0, words);
                }
                i += 1;
            }
            row += 1;
        }
    }

    /// Starts the scores of a step.
    ///
    /// # Safety
    /// All lanes of the warpgroup call this; queries and keys are there, and these stay until the scores have been waited for.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn scores(self, keys: Keys) -> Pending<[f32; 32]> {
        // SAFETY: the caller's promise.
        unsafe {
            <[f32; 32]>::product_of_shared(self.half(0), keys.half(0))
                .plus_of_shared(self.half(1), keys.half(1))
        }
    }
}

/// The weights of a step of rows `group` and `group + 8`.
#[derive(Clone, Copy)]
struct Weights {
    /// The rows' maxima.
    max: [f32; 2],
    /// The A fragments of the products of the values.
    fragments: [[u32; 4]; 4],
}

impl Weights {
    /// Of no step.
    const NONE: Self = Self {
        max: [math::LOWEST; 2],
        fragments: [[0; 4]; 4],
    };

    /// Those of a step's scores, of which the rows do not see the keys past their positions.
    ///
    /// # Safety
    /// All lanes of the warp call this together.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn new(mut s: [f32; 32], tile: &Place, step: u32) -> Self {
        let first_key = step * PAGE;
        if first_key + PAGE - 1 > tile.first {
            let mut i = 0;
            while i < 32 {
                let column = (i / 4 * 8 + i % 2) as u32 + 2 * (lane_id() % 4);
                if first_key + key_of(column) > tile.positions[i % 4 / 2] {
                    s[i] = f32::NEG_INFINITY;
                }
                i += 1;
            }
        }
        let row = |half: usize| core::array::from_fn(|j| [s[4 * j + 2 * half], s[4 * j + 2 * half + 1]]);
        // SAFETY: the caller's promise.
        let [low, high] = unsafe { [0, 1].map(|half| math::weights::<false>(&row(half), |_| [0.0; 2])) };
        Self {
            max: [low.max, high.max],
            fragments: settled(math::fragments(low.half, high.half)),
        }
    }

    /// Folds the weighted values of a step, of which the upper half begins when the lower one has ended.
    ///
    /// # Safety
    /// As for [`Values::weighted`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn fold(
        &self,
        folds: &mut [Fold; 2],
        out: &mut [[f32; 32]; 2],
        lower: Pending<Lower>,
        values: Values,
    ) {
        let factors = [folds[0].rescale(self.max[0]), folds[1].rescale(self.max[1])];
        // SAFETY: the caller's promise.
        unsafe {
            let lower = lower.wait();
            let upper = values.weighted::<Upper>(1, &self.fragments);
            fold(&mut out[0], factors, &lower);
            let upper = upper.wait();
            fold(&mut out[1], factors, &upper);
            let mut i = 0;
            while i < 2 {
                folds[i].sum = factors[i].fold(folds[i].sum, upper[32 + 2 * i]);
                i += 1;
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn run(p: AttentionPrefill) {
    grid_dependency_launch();
    grid_dependency_wait();
    // SAFETY: the tile is below `n_tiles`.
    let tile = unsafe { Place::load(&p) };
    let steps = tile.last / PAGE + 1;
    // Steps of the warpgroup: it needs none past its last position, or of its own where it has no tokens.
    let own_steps = match tile.is_idle(warp_id() / 4 * 4) {
        true => 0,
        false => tile.last_of_warps(warp_id() / 4 * 4 + 3) / PAGE + 1,
    };
    // SAFETY: the entries of the steps up to the last position are pages of the cache; every branch around a warp or block
    // operation is uniform, around a warpgroup's in all of it.
    unsafe {
        let entry_of = |step: u32| {
            p.tables
                .load_constant((tile.table + step.min(steps - 1)) as usize)[0]
        };
        let page = |entry: u32| Page::<false>::new(entry, p.n_kv_heads, tile.kv_head, DIMS);
        let entries = [entry_of(0), entry_of(1)];
        Keys::of(0).request(p.k_cache, page(entries[0]));
        async_copy_commit();
        if steps > 1 {
            Keys::of(1).request(p.k_cache, page(entries[1]));
        }
        Values::of(0).request(p.v_cache, page(entries[0]));
        async_copy_commit();
        Values::of(0).init();
        Values::of(1).init();
        let queries = Queries::new();
        queries.store(p.q, tile.rows.map(|row| row.map(|row| row * (DIMS / 2) as usize)));
        async_copy_wait::<1>();
        async_proxy_fence();
        // Makes the queries and every lane's copies of the first keys visible.
        sync_threads();
        let mut folds = [Fold::EMPTY; 2];
        let mut out = [[0.0; 32]; 2];
        let mut weights = Weights::NONE;
        if own_steps > 0 {
            weights = Weights::new(queries.scores(Keys::of(0)).wait(), &tile, 0);
        }
        // Read a step before they are needed, so that no copy waits for them.
        let (mut of_values, mut of_keys) = (entries[1], entry_of(2));
        let mut step = 0;
        while step < steps {
            async_copy_wait::<0>();
            async_proxy_fence();
            // Makes every lane's copies of these values and the next keys visible, and orders every use of the values before, and of
            // the keys of these weights, ahead of the copies below.
            sync_threads();
            let values = Values::of(step);
            if step * PAGE + PAGE - 1 > tile.last {
                values.clear_after(tile.last - step * PAGE);
                async_proxy_fence();
                // Orders the zeros before the products below.
                sync_threads();
            }
            let mut request = || {
                if step + 1 < steps {
                    Values::of(step + 1).request(p.v_cache, page(of_values));
                    if step + 2 < steps {
                        Keys::of(step + 2).request(p.k_cache, page(of_keys));
                    }
                    async_copy_commit();
                    (of_values, of_keys) = (of_keys, entry_of(step + 3));
                }
            };
            if step + 1 < own_steps {
                // The next step's scores, and this one's values, while copies start and those scores become weights.
                let scores = queries.scores(Keys::of(step + 1));
                let lower = values.weighted(0, &weights.fragments);
                request();
                let next = Weights::new(scores.wait_but::<{ Values::GROUPS }>(), &tile, step + 1);
                weights.fold(&mut folds, &mut out, lower, values);
                weights = next;
            } else {
                request();
                if step < own_steps {
                    let lower = values.weighted(0, &weights.fragments);
                    weights.fold(&mut folds, &mut out, lower, values);
                }
            }
            step += 1;
        }
        let mut half = 0;
        while half < 2 {
            if let Some(row) = tile.rows[half] {
                let sum = folds[half].sum;
                let mut i = 0;
                while i < 16 {
                    let dim = 8 * i as u32 + 2 * (lane_id() % 4);
                    if dim < p.head_dim {
                        let o = &out[i / 8][i % 8 * 4 + 2 * half..];
                        p.out
                            .store_x2(row * p.head_dim as usize + dim as usize, [o[0] / sum, o[1] / sum]);
                    }
                    i += 1;
                }
            }
            half += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{key_of, operand};

    #[test]
    fn columns_and_units_are_each_others_inverse() {
        for key in 0..64 {
            assert_eq!(key_of(operand(key / 4) * 4 + key % 4), key);
        }
        // The first halves of four times 8 keys, then their second halves.
        let first = core::array::from_fn(|column| key_of(column as u32));
        assert_eq!(
            first,
            [0u32, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
        );
    }
}
