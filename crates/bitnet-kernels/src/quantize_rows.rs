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
    /// - Launch: a block a row, warps as [`decode_linear::warps`] of k; a lane of a warp owns the columns of each
    ///   of its tiles that it owns there.
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
        block: [warps * 32, 1, 1],
        shared_bytes: MAX_WARPS * 12,
    }
}

/// Most warps of a block, a multiple of 4.
const MAX_WARPS: u32 = 20;

/// Words of a row of codes.
#[must_use]
pub const fn words_per_row(k: usize) -> usize {
    mma_tile::tiles_k(k) * mma_tile::COLUMNS / 4
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{MAX_WARPS, QuantizeRows};
    use crate::decode_linear::device::{Scale, add_squares, codes, tile_column, unit};
    use crate::intrinsics::*;
    use crate::reduce::warp_sum;
    use bitnet_layout::mma_tile::{self, CodeOrder};

    /// Tiles that a warp keeps in registers between the two passes: all of them for up to 8192 columns.
    const KEPT: usize = 4;

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
            let mut max = 0.0f32;
            let mut j = 0;
            while j < 4 {
                max = max.max((self.x[j] * self.norm[j]).abs());
                j += 1;
            }
            max
        }
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: QuantizeRows) {
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (row, tiles_k) = (block_idx_x() as usize, p.k.div_ceil(128));
        let x = p.x.offset(row * p.k as usize);
        // Words from one tile of the row's codes to the next, and where the lane's stands in a tile.
        let word = tile_column() / 4;
        let (first, stride, place) = if p.order == CodeOrder::Warp as u32 {
            (row * tiles_k as usize * 32, 32, mma_tile::activation_word(word))
        } else {
            // A block for each row, those that pad them included.
            (
                row * 32,
                grid_dim_x() * 32,
                mma_tile::warpgroup_word(row as u32, word),
            )
        };
        let q = p.q.offset(first + place as usize);
        let maxima = Shared::<u32>::at(0);
        let squares = Shared::<f32>::at(MAX_WARPS * 4);
        let sums = Shared::<i32>::at(MAX_WARPS * 8);
        // The first of this lane's columns of tile i of its warp.
        let column = |i: u32| (warp + i * warps) * 128 + tile_column();
        // SAFETY: columns are compared with k, tiles with their number; every branch around a warp or block operation is
        // uniform.
        unsafe {
            let norm_of = |i: u32| p.norm.load_constant_x4(column(i) as usize);
            let x_of = |i: u32| x.load_l2_x4(column(i) as usize);
            let again = |i: u32| {
                if column(i) < p.k {
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
                if column(i as u32) < p.k {
                    kept[i].norm = norm_of(i as u32);
                }
                i += 1;
            }
            grid_dependency_launch();
            grid_dependency_wait();
            if block_idx_x() >= p.rows {
                let mut i = warp;
                while i < tiles_k {
                    q.store(i as usize * stride as usize, 0);
                    i += warps;
                }
                return;
            }
            let mut i = 0;
            while i < KEPT {
                if column(i as u32) < p.k {
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
            // Bits of floats that are not negative order as the floats do.
            let max = warp_reduce_max_u32(FULL_MASK, max.to_bits());
            if lane == 0 {
                maxima.store(warp, max);
            }
            // Orders every warp's maximum before the loads below.
            sync_threads();
            // The codes wait for the maximum alone.
            let square = warp_sum(square);
            let max = maxima.load(if lane < warps { lane } else { 0 });
            let scale = Scale::new(f32::from_bits(warp_reduce_max_u32(FULL_MASK, max)));
            let mut sum = 0;
            let mut put = |i: u32, piece: &Piece| {
                let word = codes(piece.x, piece.norm, scale.of_codes);
                sum = dp4a(word, 0x0101_0101, sum);
                q.store((warp + i * warps) as usize * stride as usize, word);
            };
            let mut i = 0;
            while i < KEPT {
                if warp + i as u32 * warps < tiles_k {
                    put(i as u32, &kept[i]);
                }
                i += 1;
            }
            let mut i = KEPT as u32;
            while warp + i * warps < tiles_k {
                put(i, &again(i));
                i += 1;
            }
            let sum = warp_reduce_add(FULL_MASK, sum);
            if lane == 0 {
                sums.store(warp, sum);
                squares.store(warp, square);
            }
            if warp == 0 && lane >= warps && lane < MAX_WARPS {
                squares.store(lane, 0.0);
            }
            // Orders every warp's sum and squares before the loads below.
            sync_threads();
            if warp == 0 {
                let total = warp_reduce_add(FULL_MASK, if lane < warps { sums.load(lane) } else { 0 });
                if lane == 0 {
                    p.sum.store(row, total);
                }
            } else if warp == 1 {
                // All loads are under way before the first addition; zeros at the end change nothing.
                let mut parts = [[0.0; 4]; MAX_WARPS as usize / 4];
                let mut i = 0;
                while i < parts.len() {
                    parts[i] = squares.load_x4(4 * i as u32);
                    i += 1;
                }
                let (mut square, mut i) = (0.0, 0);
                while i < MAX_WARPS as usize {
                    square += parts[i / 4][i % 4];
                    i += 1;
                }
                if lane == 0 {
                    p.unit.store(row, unit(scale.worth, square, p.k, p.eps));
                }
            }
        }
    }
}
