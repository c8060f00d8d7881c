//! What bfloat16 weights are multiplied with: f32 as three bfloat16 terms.

use super::device::{Common, Format, Pieces, Room};
use super::{BF16_WORDS, Bf16Gemv, MAX_COLS, ROWS};
use crate::Global;
use crate::intrinsics::*;
use crate::reduce::warp_sum;

impl Format for Bf16Gemv {
    const WORDS: u32 = BF16_WORDS;
    type Sums = [f32; 4];
    type Part = f32;

    #[inline(always)]
    fn common(self) -> Common {
        let Self { w, y, n, k, cols, .. } = self;
        Common {
            w,
            y,
            n,
            words: k / 2,
            cols,
        }
    }

    #[inline(always)]
    fn zero() -> [f32; 4] {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn prepare(self, room: &Room, groups: u32) {
        let mut col = 0;
        while col < self.cols {
            let to = room.columns.offset(col * room.stride);
            // SAFETY: units lie in the column, squares are apart.
            unsafe {
                // Behind the last column, up to a whole line.
                let mut word = self.k / 8 * 12 + thread_idx_x();
                while word < groups * BF16_WORDS {
                    to.store(word, 0);
                    word += block_dim_x();
                }
                let inverse = split_column(
                    self.x.offset(col as usize * self.k as usize),
                    self.norm,
                    self.k,
                    self.eps,
                    room.squares.offset(col),
                    MAX_COLS,
                    |unit, pairs| {
                        // Step s of the products takes pairs 2 s and 2 s + 1, term by term.
                        let word = |i: usize| pairs[i / 6 * 2 + i % 2][i % 6 / 2];
                        let to = to.offset(unit * 12);
                        to.store_x4(0, core::array::from_fn(word));
                        to.store_x4(4, core::array::from_fn(|i| word(4 + i)));
                        to.store_x4(8, core::array::from_fn(|i| word(8 + i)));
                    },
                );
                if thread_idx_x() == 0 {
                    room.worth.store(col, inverse);
                }
            }
            col += 1;
        }
    }

    #[inline(always)]
    unsafe fn multiply(sums: &mut [f32; 4], [up, low]: Pieces, x: Shared<u32>, stride: u32, cols: u32) {
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        // Column 2 c + h of B: token c, half h of the line. Unused columns repeat the last.
        let x = x.offset((g / 2).min(cols - 1) * stride + (g % 2 * 4 + t) * 12);
        // SAFETY: the group's words were stored; the whole warp is here.
        unsafe {
            let x = [x.load_x4(0), x.load_x4(4), x.load_x4(8)];
            let mut i = 0;
            while i < 6 {
                let s = i / 3;
                let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                let b = [x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]];
                *sums = mma_m16n8k16_bf16(a, b, *sums);
                i += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn store(sums: [f32; 4], parts: Shared<f32>, cols: u32) {
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        // sums: row g of A with columns 2 t and 2 t + 1 of B, then row g + 8. Half g % 2 belongs to column 2 t + g % 2.
        let is_odd = g % 2 == 1;
        let own = if is_odd {
            [sums[1], sums[3]]
        } else {
            [sums[0], sums[2]]
        };
        // SAFETY: the whole warp is here; places are below the warp's share.
        unsafe {
            // The first half and the second, in an order that does not matter to a sum of two.
            let upper = own[0] + warp_shuffle_xor(FULL_MASK, own[0], 4);
            let lower = own[1] + warp_shuffle_xor(FULL_MASK, own[1], 4);
            if t < cols {
                let (row, part) = if is_odd {
                    (4 + g / 2, lower)
                } else {
                    (g / 2, upper)
                };
                parts.store(t * ROWS + row, part);
            }
        }
    }

    #[inline(always)]
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }

    #[inline(always)]
    unsafe fn result(self, total: f32, _: u32, worth: f32) -> f32 {
        total * worth
    }
}

/// Three bfloat16 pairs that add up to a pair of f32.
#[inline(always)]
fn split3(low: f32, high: f32) -> [u32; 3] {
    let (first, low, high) = take(low, high);
    let (second, low, high) = take(low, high);
    [first, second, f32_to_bf16x2(low, high)]
}

/// A pair rounded to bfloat16, and what is left of it.
#[inline(always)]
fn take(low: f32, high: f32) -> (u32, f32, f32) {
    let pair = f32_to_bf16x2(low, high);
    let [l, h] = bf16x2_to_f32(pair);
    (pair, low - l, high - h)
}

/// Splits `x norm` and returns `1 / rms(x)`, or 1 for a negative `eps`, on the first lane: the block's threads take turns at
/// eight elements, whose four pairs of three terms go to `store` with their place.
///
/// # Safety
/// All lanes of the block call this together. `x` and `norm` are `k` readable elements, 16-byte aligned, `k` a multiple of 8.
/// `squares` is a float for every warp, `stride` apart, that no lane touches before a barrier behind its last use.
#[inline(always)]
pub(crate) unsafe fn split_column(
    x: Global<f32>,
    norm: Global<f32>,
    k: u32,
    eps: f32,
    squares: Shared<f32>,
    stride: u32,
    mut store: impl FnMut(u32, [[u32; 3]; 4]),
) -> f32 {
    let mut square = 0.0;
    let mut unit = thread_idx_x();
    // SAFETY: units are compared with their number.
    unsafe {
        while unit < k / 8 {
            let at = unit as usize * 8;
            let (x, norm) = (
                [x.load_l2_x4(at), x.load_l2_x4(at + 4)],
                [norm.load_constant_x4(at), norm.load_constant_x4(at + 4)],
            );
            let mut i = 0;
            while i < 8 {
                square = fma(x[i / 4][i % 4], x[i / 4][i % 4], square);
                i += 1;
            }
            store(
                unit,
                core::array::from_fn(|i| {
                    let (x, norm) = (x[i / 2], norm[i / 2]);
                    let j = i % 2 * 2;
                    split3(x[j] * norm[j], x[j + 1] * norm[j + 1])
                }),
            );
            unit += block_dim_x();
        }
        let square = warp_sum(square);
        if lane_id() == 0 {
            squares.store(warp_id() * stride, square);
        }
        // Orders every warp's squares, and what the caller stored, before their loads.
        sync_threads();
        if thread_idx_x() != 0 || eps < 0.0 {
            return 1.0;
        }
        let mut square = 0.0;
        let mut warp = 0;
        while warp < block_dim_x() / WARP_SIZE {
            square += squares.load(warp * stride);
            warp += 1;
        }
        1.0 / sqrt(square / k as f32 + eps)
    }
}
