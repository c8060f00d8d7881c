//! RMSNorm and 8-bit quantization of a batch of rows, for the linear layers of prompts and batches.
//!
//! The same codes and `unit`, bit for bit, as [`crate::decode_linear`] computes for a single row: the columns are divided
//! among warps and lanes in the same way, so the squares are added in the same order.

use crate::{Global, Launch, decode_linear};
use bitnet_layout::mma_tile::{self, CodeOrder};

kernels! {
    /// `q[r] = round(x[r] norm * 127 / max|x[r] norm|)`, `unit[r] = 1 / (rms(x[r]) * 127 / max|x[r] norm|)`, and the sum of
    /// the codes.
    ///
    /// - Shapes: `x` (rows, k); `norm` (k); `q` (rows padded for the order, k padded to 128) i8, the padding written as zeros; `unit`,
    ///   `sum` (rows).
    /// - Launch: a block a row, warps as [`decode_linear::warps`] of k, a lane of which owns the columns of each of its tiles that it owns
    ///   there; and one warp that adds up what those have.
    /// - Moves: `4 rows k` bytes in, `rows k` bytes out.
    /// - Bound: latency; one row is a few KB.
    ///
    /// # Safety
    /// Lengths as above; `x` and `norm` 16-byte aligned, `k` a multiple of 4.
    quantize_rows, block = [MAX_WARPS * 32, 1, 1], min_blocks = 1, body = device::run;
    pub struct QuantizeRows {
        /// Rows to quantize, (rows, k).
        pub x: Global<f32>,
        /// Weight of the norm, (k); ones where there is none.
        pub norm: Global<f32>,
        /// Codes, four a word in that order.
        pub q: Global<u32>,
        /// What a code is worth, (rows).
        pub unit: Global<f32>,
        /// Sum of the codes, (rows).
        pub sum: Global<i32>,
        /// Columns.
        pub k: u32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
        /// Rows of `x`.
        pub rows: u32,
        /// The order of the codes: a [`CodeOrder`].
        pub order: u32,
    }
}

/// A block a row, and each of those that pad them in this order.
#[must_use]
pub fn launch(rows: usize, k: usize, order: CodeOrder) -> Launch {
    let warps = decode_linear::warps(k);
    Launch {
        grid: [mma_tile::padded_rows(order, rows) as u32, 1, 1],
        // One warp more adds up what the others have.
        block: [(warps + 1) * 32, 1, 1],
        shared_bytes: shared_bytes(warps),
    }
}

/// Most warps of a block, the one that adds up included.
const MAX_WARPS: u32 = decode_linear::max_warps(3) + 1;

/// Words from one warp's squares to the next one's: lanes that load four of a warp's each read different banks.
const SQUARES: u32 = 36;

/// Bytes of the squares of so many warps, a word for each lane, of their maxima and of the sums of their codes.
const fn shared_bytes(warps: u32) -> u32 {
    warps * (SQUARES + 2) * 4
}

/// Words of a row of codes.
#[must_use]
pub const fn words_per_row(k: usize) -> usize {
    mma_tile::tiles_k(k) * mma_tile::COLUMNS / 4
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{QuantizeRows, SQUARES};
    use crate::decode_linear::device::{Scale, add_squares, codes, tile_column, unit};
    use crate::decode_linear::{max_warps, tiles_per_warp};
    use crate::intrinsics::*;
    use bitnet_layout::mma_tile::{self, CodeOrder};

    /// What one lane owns of a tile.
    #[derive(Clone, Copy)]
    struct Piece {
        x: [f32; 4],
        norm: [f32; 4],
    }

    impl Piece {
        const ZERO: Self = Self {
            x: [0.0; 4],
            norm: [0.0; 4],
        };

        #[inline(always)]
        fn largest(&self) -> f32 {
            let [a, b, c, d] = core::array::from_fn(|j| (self.x[j] * self.norm[j]).abs());
            a.max(b).max(c.max(d))
        }
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: QuantizeRows) {
        let warps = block_dim_x() / WARP_SIZE - 1;
        // SAFETY: the caller's promise; branches on k and on the warp are uniform.
        unsafe {
            if tiles_per_warp(p.k as usize) == 2 {
                if warp_id() < warps {
                    quantize::<2>(&p, warps);
                } else {
                    add_up::<{ max_warps(2) }>(&p, warps);
                }
            } else if warp_id() < warps {
                // All columns of up to 8192 stay in registers between the two passes.
                quantize::<4>(&p, warps);
            } else {
                add_up::<{ max_warps(3) }>(&p, warps);
            }
        }
    }

    /// The squares of each lane of `warps` warps, rows of [`SQUARES`] words.
    fn squares() -> Shared<f32> {
        Shared::at(0)
    }

    /// The largest `|x norm|` of each of `warps` warps.
    fn maxima(warps: u32) -> Shared<u32> {
        Shared::at(warps * SQUARES * 4)
    }

    /// The sum of the codes of each of `warps` warps.
    fn sums(warps: u32) -> Shared<i32> {
        Shared::at(warps * (SQUARES + 1) * 4)
    }

    /// The barrier behind which these are there, which only the warp that adds them up waits at.
    const SUMS: u32 = 1;

    /// The scale of the block's codes.
    ///
    /// # Safety
    /// The whole warp calls this, behind the barrier.
    #[inline(always)]
    unsafe fn scale(warps: u32) -> Scale {
        // SAFETY: the caller's promise.
        unsafe {
            let max = maxima(warps).load(if lane_id() < warps { lane_id() } else { 0 });
            Scale::new(f32::from_bits(warp_reduce_max_u32(FULL_MASK, max)))
        }
    }

    /// One of `warps` warps that share the row's columns, and keeps `KEPT` tiles in registers between the two passes.
    ///
    /// # Safety
    /// As for [`QuantizeRows`].
    #[inline(always)]
    unsafe fn quantize<const KEPT: usize>(p: &QuantizeRows, warps: u32) {
        let (lane, warp) = (lane_id(), warp_id());
        let (row, tiles_k) = (block_idx_x(), p.k.div_ceil(128));
        let x = p.x.offset(row as usize * p.k as usize);
        // Words from one tile of the row's codes to the next, and where the lane's stands in a tile.
        let word = tile_column() / 4;
        let (first, stride, place) = if p.order == CodeOrder::Warp as u32 {
            (row * tiles_k * 32, 32, mma_tile::activation_word(word))
        } else {
            // A block for each row, those that pad them included.
            (row * 32, grid_dim_x() * 32, mma_tile::warpgroup_word(row, word))
        };
        let q = p.q.offset((first + warp * stride + place) as usize);
        let step = warps * stride;
        // The first of this lane's columns of tile i of its warp. Rows that pad the others have none, and so zeros for codes.
        let column = |i: u32| (warp + i * warps) * 128 + tile_column();
        let columns = if row < p.rows { p.k } else { 0 };
        // SAFETY: columns are compared with k, tiles with their number; every branch around a warp or block operation is
        // uniform.
        unsafe {
            let norm_of = |i: u32| p.norm.load_constant_x4(column(i) as usize);
            let x_of = |i: u32| x.load_l2_x4(column(i) as usize);
            let again = |i: u32| {
                if column(i) < columns {
                    Piece {
                        x: x_of(i),
                        norm: norm_of(i),
                    }
                } else {
                    Piece::ZERO
                }
            };
            let mut kept = [Piece::ZERO; KEPT];
            let mut i = 0;
            while i < KEPT {
                if column(i as u32) < columns {
                    kept[i].norm = norm_of(i as u32);
                }
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            let mut i = 0;
            while i < KEPT {
                if column(i as u32) < columns {
                    kept[i].x = x_of(i as u32);
                }
                i += 1;
            }
            let (mut max, mut square) = (0.0f32, 0.0);
            let mut i = 0;
            while i < KEPT {
                square = add_squares(square, kept[i].x);
                max = max.max(kept[i].largest());
                i += 1;
            }
            let mut i = KEPT as u32;
            while warp + i * warps < tiles_k {
                let piece = again(i);
                square = add_squares(square, piece.x);
                max = max.max(piece.largest());
                i += 1;
            }
            squares().store(warp * SQUARES + lane, square);
            // Bits of floats that are not negative order as the floats do.
            let max = warp_reduce_max_u32(FULL_MASK, max.to_bits());
            if lane == 0 {
                maxima(warps).store(warp, max);
            }
            // Orders every warp's maximum and squares before their loads.
            sync_threads();
            let scale = scale(warps);
            let mut sum = 0;
            let mut put = |i: u32, piece: &Piece| {
                let word = codes(piece.x, piece.norm, scale.of_codes);
                sum = dp4a(word, 0x0101_0101, sum);
                if warp + i * warps < tiles_k {
                    q.store((i * step) as usize, word);
                }
            };
            let mut i = 0;
            while i < KEPT {
                put(i as u32, &kept[i]);
                i += 1;
            }
            let mut i = KEPT as u32;
            while warp + i * warps < tiles_k {
                put(i, &again(i));
                i += 1;
            }
            let sum = warp_reduce_add(FULL_MASK, sum);
            if lane == 0 {
                sums(warps).store(warp, sum);
            }
            sync_threads_arrive(SUMS, block_dim_x());
        }
    }

    /// The warp that adds up what up to `MOST` others have: their squares while they quantize, those of a warp as
    /// [`crate::reduce::warp_sum`] would, in one lane, and then warp by warp; and the sums of their codes.
    ///
    /// # Safety
    /// As for [`QuantizeRows`].
    #[inline(always)]
    unsafe fn add_up<const MOST: u32>(p: &QuantizeRows, warps: u32) {
        let (lane, row) = (lane_id(), block_idx_x());
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: the row is compared with their number, lanes with the number of warps; branches around warp operations are uniform.
        unsafe {
            // As in `quantize`.
            sync_threads();
            let of_warp = squares().offset(if lane < warps { lane * SQUARES } else { 0 });
            let mut parts = [[0.0f32; 4]; 8];
            let mut i = 0;
            while i < 8 {
                parts[i] = of_warp.load_x4(4 * i as u32);
                i += 1;
            }
            let mut half = 4;
            while half > 0 {
                let mut i = 0;
                while i < half {
                    parts[i] = core::array::from_fn(|j| parts[i][j] + parts[i + half][j]);
                    i += 1;
                }
                half /= 2;
            }
            let [a, b, c, d] = parts[0];
            let part = if lane < warps { (a + c) + (b + d) } else { 0.0 };
            // Zeros at the end change nothing.
            let (mut total, mut i) = (0.0, 0);
            while i < MOST {
                total += warp_shuffle_idx(FULL_MASK, part, i);
                i += 1;
            }
            let unit = unit(scale(warps).worth, total, p.k, p.eps);
            // Orders the sums of all warps before their loads.
            sync_threads_named(SUMS, block_dim_x());
            let sum = warp_reduce_add(FULL_MASK, if lane < warps { sums(warps).load(lane) } else { 0 });
            if lane == 0 && row < p.rows {
                p.unit.store(row as usize, unit);
                p.sum.store(row as usize, sum);
            }
        }
    }
}
