//! What 8-bit weights are multiplied with: two 8-bit terms of an activation.

use super::device::{Common, Format, Pieces, Room};
use super::{INT8_WORDS, Int8Gemv, MAX_COLS, ROWS};
use crate::intrinsics::*;

impl Format for Int8Gemv {
    const WORDS: u32 = INT8_WORDS;
    /// Of two columns each.
    type Sums = [[i32; 4]; 2];
    type Part = i32;

    /// The block's four columns.
    #[inline(always)]
    fn common(self) -> Common {
        let first = block_idx_y() * MAX_COLS;
        Common {
            w: self.w,
            y: self.y.offset(first as usize * self.n as usize),
            n: self.n,
            words: self.k / 4,
            cols: (self.cols - first).min(MAX_COLS),
        }
    }

    #[inline(always)]
    fn zero() -> [[i32; 4]; 2] {
        [[0; 4]; 2]
    }

    #[inline(always)]
    unsafe fn prepare(self, room: &Room, groups: u32) {
        let (first, cols) = (block_idx_y() * MAX_COLS, self.common().cols);
        let units = self.k / 16;
        let mut col = 0;
        while col < cols {
            let terms = self.terms.offset((first + col) as usize * (self.k / 2) as usize);
            let to = room.columns.offset(col * room.stride);
            let mut unit = thread_idx_x();
            // SAFETY: units are compared with their number.
            unsafe {
                while unit < groups * 8 {
                    let (mut high, mut low) = ([0; 4], [0; 4]);
                    if unit < units {
                        high = terms.load_l2_x4(unit as usize * 4);
                        low = terms.load_l2_x4((units + unit) as usize * 4);
                    }
                    to.store_x4(unit * 8, high);
                    to.store_x4(unit * 8 + 4, low);
                    unit += block_dim_x();
                }
                if thread_idx_x() == 0 {
                    room.worth
                        .store(col, self.unit.load_l2((first + col) as usize)[0]);
                }
            }
            col += 1;
        }
        // SAFETY: the whole block is here. Orders the columns before their loads.
        unsafe { sync_threads() };
    }

    #[inline(always)]
    unsafe fn multiply(sums: &mut [[i32; 4]; 2], [up, low]: Pieces, x: Shared<u32>, stride: u32, cols: u32) {
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        let mut set = 0;
        while set < 2 {
            if 2 * (set as u32) < cols {
                // Column 4 c + 2 h + e of B: token c, half h of the line, term e. Unused columns repeat the last.
                let token = (2 * set as u32 + g / 4).min(cols - 1);
                let x = x.offset(token * stride + (g / 2 % 2 * 4 + t) * 8 + g % 2 * 4);
                // SAFETY: the group's words were stored; the whole warp is here.
                unsafe {
                    let x = x.load_x4(0);
                    let mut s = 0;
                    while s < 2 {
                        let a = [up[2 * s], low[2 * s], up[2 * s + 1], low[2 * s + 1]];
                        sums[set] = mma_m16n8k32_s8_s8(a, [x[2 * s], x[2 * s + 1]], sums[set]);
                        s += 1;
                    }
                }
            }
            set += 1;
        }
    }

    #[inline(always)]
    unsafe fn store(sums: [[i32; 4]; 2], parts: Shared<i32>, cols: u32) {
        let (g, t) = (lane_id() / 4, lane_id() % 4);
        let mut set = 0;
        while set < 2 {
            // Columns 2 t and 2 t + 1 of B are both terms of token t / 2 with half t % 2 of the line, row g of A half g % 2.
            // The high terms alone may leave 32 bits, both together do not.
            let [a, b, c, d] = sums[set];
            let own = [(a << 8).wrapping_add(b), (c << 8).wrapping_add(d)];
            // SAFETY: the whole warp is here; places are below the warp's share.
            unsafe {
                let upper = own[0].wrapping_add(warp_shuffle_xor(FULL_MASK, own[0], 5));
                let lower = own[1].wrapping_add(warp_shuffle_xor(FULL_MASK, own[1], 5));
                let col = 2 * set as u32 + t / 2;
                if t % 2 == g % 2 && col < cols {
                    let (row, part) = if g % 2 == 1 {
                        (4 + g / 2, lower)
                    } else {
                        (g / 2, upper)
                    };
                    parts.store(col * ROWS + row, part);
                }
            }
            set += 1;
        }
    }

    #[inline(always)]
    fn add(a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }

    #[inline(always)]
    unsafe fn result(self, total: i32, row: u32, worth: f32) -> f32 {
        // SAFETY: the caller's row is one of the matrix.
        total as f32 * (unsafe { self.scales.load_constant(row as usize)[0] } * worth)
    }
}
