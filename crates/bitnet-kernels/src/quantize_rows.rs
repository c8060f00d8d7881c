//! RMSNorm and 8-bit quantization of a batch of rows, for the linear layers of prompts and batches.
//!
//! The same codes and `unit`, bit for bit, as [`crate::decode_linear`] computes for a single row: the columns are divided
//! among warps and lanes in the same way, so the squares are added in the same order.

use crate::{Global, Launch, decode_linear};
use bitnet_layout::mma_tile;

kernel! {
    /// `q[r] = round(x[r] norm * 127 / max|x[r] norm|)`, `unit[r] = 1 / (rms(x[r]) * 127 / max|x[r] norm|)`, and the sum of
    /// the codes.
    ///
    /// - Shapes: `x` (rows, k); `norm` (k); `q` (rows, k padded to 128) i8, the padding written as zeros; `unit`, `sum` (rows).
    /// - Launch: a block a row, warps as [`decode_linear::warps`] of k; a lane of a warp owns the columns of each
    ///   of its tiles that it owns there.
    /// - Moves: `4 rows k` bytes twice (the second time from L1), `rows k` bytes out.
    /// - Bound: latency; one row is a few KB.
    ///
    /// # Safety
    /// Lengths as above; `x` and `norm` 16-byte aligned, `k` a multiple of 4.
    quantize_rows, block = [640, 1, 1], body = device::run;
    pub struct QuantizeRows {
        /// Rows to quantize, (rows, k).
        pub x: Global<f32>,
        /// Weight of the norm, (k); ones where there is none.
        pub norm: Global<f32>,
        /// Codes, four a word in the order of [`mma_tile::activation_word`], (rows, k padded / 4).
        pub q: Global<u32>,
        /// What a code is worth, (rows).
        pub unit: Global<f32>,
        /// Sum of the codes, (rows).
        pub sum: Global<i32>,
        /// Columns.
        pub k: u32,
        /// Epsilon of the norm; negative where there is no norm.
        pub eps: f32,
    }
}

/// A block a row.
#[must_use]
pub fn launch(rows: usize, k: usize) -> Launch {
    let warps = decode_linear::warps(k);
    Launch {
        grid: [rows as u32, 1, 1],
        block: [warps * 32, 1, 1],
        shared_bytes: warps * 12,
    }
}

/// Words of a row of codes.
#[must_use]
pub const fn words_per_row(k: usize) -> usize {
    mma_tile::tiles_k(k) * mma_tile::COLUMNS / 4
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::QuantizeRows;
    use crate::decode_linear::device::{Scale, add_squares, codes, tile_column, unit};
    use crate::intrinsics::*;
    use crate::reduce::{warp_max, warp_sum};
    use bitnet_layout::mma_tile;

    #[inline(always)]
    pub(super) unsafe fn run(p: QuantizeRows) {
        let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
        let (row, tiles_k) = (block_idx_x() as usize, p.k.div_ceil(128));
        let mine = tile_column();
        let x = p.x.offset(row * p.k as usize);
        let q = p.q.offset(row * tiles_k as usize * 32);
        let maxima = Shared::<f32>::at(0);
        let squares = Shared::<f32>::at(warps * 4);
        let sums = Shared::<i32>::at(warps * 8);
        // SAFETY: columns are compared with k, tiles with their number; every branch around a warp or block operation is
        // uniform.
        unsafe {
            grid_dependency_launch();
            grid_dependency_wait();
            let (mut max, mut square) = (0.0f32, 0.0);
            let mut tile = warp;
            while tile < tiles_k {
                let col = (tile * 128 + mine) as usize;
                if tile * 128 + mine < p.k {
                    let (x, norm) = (x.load_l2_x4(col), p.norm.load_constant_x4(col));
                    square = add_squares(square, x);
                    let mut j = 0;
                    while j < 4 {
                        max = max.max((x[j] * norm[j]).abs());
                        j += 1;
                    }
                }
                tile += warps;
            }
            let (max, square) = (warp_max(max), warp_sum(square));
            if lane == 0 {
                maxima.store(warp, max);
                squares.store(warp, square);
            }
            // Orders every warp's maximum and squares before the loads below.
            sync_threads();
            let (mut max, mut square) = (0.0f32, 0.0);
            let mut i = 0;
            while i < warps {
                max = max.max(maxima.load(i));
                square += squares.load(i);
                i += 1;
            }
            let scale = Scale::new(max);
            let mut sum = 0;
            let mut tile = warp;
            while tile < tiles_k {
                let col = (tile * 128 + mine) as usize;
                let mut word = 0;
                if tile * 128 + mine < p.k {
                    word = codes(x.load_l2_x4(col), p.norm.load_constant_x4(col), scale.of_codes);
                }
                sum = dp4a(word, 0x0101_0101, sum);
                q.store(mma_tile::activation_word(col as u32 / 4) as usize, word);
                tile += warps;
            }
            let sum = warp_reduce_add(FULL_MASK, sum);
            if lane == 0 {
                sums.store(warp, sum);
            }
            // Orders every warp's sum before the loads below.
            sync_threads();
            if thread_idx_x() == 0 {
                let mut total = 0;
                let mut i = 0;
                while i < warps {
                    total += sums.load(i);
                    i += 1;
                }
                p.unit.store(row, unit(scale.worth, square, p.k, p.eps));
                p.sum.store(row, total);
            }
        }
    }
}
