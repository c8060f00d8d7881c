//! From the canonical layout to tiles, on the device: a matrix is uploaded as it stands in the file.

use crate::{Global, Launch};
use bitnet_layout::mma_tile;

/// Threads of a block.
const THREADS: u32 = 256;

kernels! {
    /// `tiles[i]` = the word of the canonical matrix that [`mma_tile`] puts there, or 0 in the padding.
    ///
    /// - Shapes: `words` canonical (n, k); `tiles` [`mma_tile::words`] of (n, k).
    /// - Launch: [`Repack::launch`]; a block owns a row of tiles, a thread four words of a tile at a time.
    /// - Moves: `n k / 4` bytes in and out. Bound: DRAM; it runs once a matrix.
    ///
    /// # Safety
    /// Lengths as above; `k` a multiple of 16; `tiles` 16-byte aligned.
    repack, block = [THREADS, 1, 1], body = device::run;
    pub struct Repack {
        /// The matrix in the canonical layout.
        pub words: Global<u32>,
        /// The matrix in tiles.
        pub tiles: Global<u32>,
        /// Rows.
        pub n: u32,
        /// Columns, those that fill the last word up included.
        pub k: u32,
        /// 1 for [`mma_tile::RowOrder::Paired`], 0 for [`mma_tile::RowOrder::Plain`].
        pub paired: u32,
    }
}

impl Repack {
    /// The launch for these parameters.
    #[must_use]
    pub fn launch(&self) -> Launch {
        Launch {
            grid: [mma_tile::tiles_n(self.n as usize) as u32, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{Repack, THREADS};
    use crate::intrinsics::*;
    use bitnet_layout::mma_tile::RowOrder;

    #[inline(always)]
    pub(super) unsafe fn run(p: Repack) {
        let (band, lane) = (block_idx_x(), thread_idx_x() % 32);
        let (n, per_row, tiles_k) = (p.n as usize, p.k / 16, p.k.div_ceil(128));
        let order = if p.paired == 0 {
            RowOrder::Plain
        } else {
            RowOrder::Paired
        };
        let mut tile = thread_idx_x() / 32;
        while tile < tiles_k {
            let mut words = [0; 4];
            let mut j = 0;
            while j < 4 {
                // The inverse of `mma_tile::index`.
                let row = order.matrix_row((band * 16 + lane / 4 + j % 2 * 8) as usize, n);
                let chunk = tile * 8 + lane % 4 * 2 + j / 2;
                if row < n && chunk < per_row {
                    // SAFETY: row and chunk are inside the matrix.
                    words[j as usize] =
                        unsafe { p.words.load_constant(row * per_row as usize + chunk as usize)[0] };
                }
                j += 1;
            }
            let quad = (band * tiles_k + tile) * 32 + lane;
            // SAFETY: the quad is inside the tiles.
            unsafe { p.tiles.store_x4(quad as usize * 4, words) };
            tile += THREADS / 32;
        }
    }
}
