//! The reference project's own GEMV, to measure against: its layout, its division of work, its inner loop, and nothing of
//! ours. Unlike the original it takes any shape, and each row has the scale of its own projection (the original
//! divides rows among scales in equal parts, which is wrong for q, k and v of unequal heights).

use crate::{Global, Launch};

kernels! {
    /// `y[n] = bf16((sum over k of t[n][k] x[k]) / s * scale(n))`, the sum exact.
    ///
    /// - Shapes: `w` tiles of (n, k); `x` (k) i8; `s` (1); `y` (n) bfloat16.
    /// - Launch: a block of 8 x 16 lanes for 16 rows; lane (c, r) takes row r and columns `16 c ..` of every 128.
    /// - Layout: [`bitnet_layout::reference_tile`]. Moves: `n k / 4` bytes of weights, `x` once a row of lanes.
    /// - Bound: latency; 4 bytes of weights a lane are in flight.
    ///
    /// # Safety
    /// Lengths as above; `x` 16-byte aligned; `n` a multiple of 16 and `k` of 32.
    ref_gemv, block = [8, 16, 1], body = device::run;
    pub struct RefGemv {
        /// Weights in tiles.
        pub w: Global<u32>,
        /// Activations, four a word, (k / 4).
        pub x: Global<u32>,
        /// Scale of the activations, `127 / absmax`, (1).
        pub s: Global<f32>,
        /// Output, bfloat16, (n).
        pub y: Global<u16>,
        /// Rows.
        pub n: u32,
        /// Columns.
        pub k: u32,
        /// First row that has `scale_b`.
        pub row_b: u32,
        /// First row that has `scale_c`.
        pub row_c: u32,
        /// What a ternary unit of the first rows is worth.
        pub scale_a: f32,
        /// What a ternary unit of rows `row_b ..` is worth.
        pub scale_b: f32,
        /// What a ternary unit of rows `row_c ..` is worth.
        pub scale_c: f32,
    }
}

impl RefGemv {
    /// A block for 16 rows.
    #[must_use]
    pub fn launch(n: usize) -> Launch {
        Launch {
            grid: [(n / 16) as u32, 1, 1],
            block: [8, 16, 1],
            shared_bytes: 0,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::RefGemv;
    use crate::intrinsics::*;
    use crate::tiles::row_scale;

    /// 2 in every byte: codes are `t + 2`.
    const TWOS: u32 = 0x0202_0202;
    /// The top bit of every byte.
    const SIGNS: u32 = 0x8080_8080;

    #[inline(always)]
    pub(super) unsafe fn run(p: RefGemv) {
        let (chunk, r) = (thread_idx_x(), thread_idx_y());
        let row = block_idx_x() * 16 + r;
        // Word of (row, 16-column chunk): ReferenceTile::word_index, with the division by the tile hoisted.
        let band = block_idx_x() * (p.k / 32);
        let within = 16 * (r / 8) + r % 8;
        let mut sum = 0;
        let mut c = chunk;
        // SAFETY: chunks are compared with k; all lanes of a warp reach the shuffles.
        unsafe {
            while c < p.k / 16 {
                let w =
                    p.w.load_constant((32 * (band + c / 2) + 8 * (c % 2) + within) as usize)[0];
                let x = p.x.load_x4((c * 4) as usize);
                let mut i = 0;
                while i < 4 {
                    // The top bit lent to each byte keeps borrows inside it: codes 1 to 3 become -1 to 1.
                    let t = ((w >> (2 * i) & 0x0303_0303 | SIGNS) - TWOS) ^ SIGNS;
                    sum = dp4a(t, x[i], sum);
                    i += 1;
                }
                c += 8;
            }
            let mut step = 4;
            while step > 0 {
                sum += warp_shuffle_xor(FULL_MASK, sum, step);
                step /= 2;
            }
            if chunk == 0 {
                let scale = row_scale(row, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c]);
                p.y.store(row as usize, f32_to_bf16(sum as f32 / p.s.load(0) * scale));
            }
        }
    }
}
