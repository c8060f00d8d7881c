//! A plain streaming read: the bandwidth that every other kernel's is compared with.

use crate::{Global, Launch};

kernels! {
    /// Reads `words` words once and writes the xor of each block's share.
    ///
    /// - Shapes: `x` (words), `y` (blocks).
    /// - Launch: any grid along x; [`StreamRead::launch`] fills the machine. A lane has 4 to 8 loads of 16 bytes in flight.
    /// - Moves: `4 words` bytes. Bound: DRAM.
    ///
    /// # Safety
    /// Lengths as above; `x` 16-byte aligned; `words` a multiple of 4.
    stream_read, block = [512, 1, 1], body = device::run;
    pub struct StreamRead {
        /// What is read, (words).
        pub x: Global<u32>,
        /// A word a block, so that the reads have a purpose, (blocks).
        pub y: Global<u32>,
        /// Words to read.
        pub words: u64,
    }
}

/// Lanes of a block.
const LANES: u32 = 512;

impl StreamRead {
    /// Two blocks for each of the device's `multiprocessors`: as many as are resident at once, so that none runs alone at the end.
    #[must_use]
    pub fn launch(multiprocessors: u32) -> Launch {
        Launch {
            grid: [multiprocessors * 2, 1, 1],
            block: [LANES, 1, 1],
            shared_bytes: LANES / 32 * 4,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::StreamRead;
    use crate::intrinsics::*;

    /// Loads of a round.
    const DEPTH: usize = 4;

    #[inline(always)]
    fn fold(mut mix: u32, words: [[u32; 4]; DEPTH]) -> u32 {
        let mut i = 0;
        while i < DEPTH {
            mix ^= words[i][0] ^ words[i][1] ^ words[i][2] ^ words[i][3];
            i += 1;
        }
        mix
    }

    #[inline(always)]
    pub(super) unsafe fn run(p: StreamRead) {
        // SAFETY: indices are compared with `words`; every branch around a warp or block operation is uniform.
        unsafe {
            let lanes = (grid_dim_x() * block_dim_x()) as usize;
            let quads = p.words as usize / 4;
            let mut quad = (block_idx_x() * block_dim_x() + thread_idx_x()) as usize;
            let mut mix = 0;
            // Each round asks for its words before it uses those of the round before, so that loads never pause.
            let mut last = [[0; 4]; DEPTH];
            while quad + (DEPTH - 1) * lanes < quads {
                let mut next = [[0; 4]; DEPTH];
                let mut i = 0;
                while i < DEPTH {
                    next[i] = p.x.load_stream_x4((quad + i * lanes) * 4);
                    i += 1;
                }
                mix = fold(mix, last);
                last = next;
                quad += DEPTH * lanes;
            }
            mix = fold(mix, last);
            while quad < quads {
                let v = p.x.load_stream_x4(quad * 4);
                mix ^= v[0] ^ v[1] ^ v[2] ^ v[3];
                quad += lanes;
            }
            let mut step = WARP_SIZE / 2;
            while step > 0 {
                mix ^= warp_shuffle_xor(FULL_MASK, mix, step);
                step /= 2;
            }
            let parts = Shared::<u32>::at(0);
            if lane_id() == 0 {
                parts.store(warp_id(), mix);
            }
            // Orders every warp's part before the loads below.
            sync_threads();
            if thread_idx_x() == 0 {
                let mut total = 0;
                let mut warp = 0;
                while warp < block_dim_x() / WARP_SIZE {
                    total ^= parts.load(warp);
                    warp += 1;
                }
                p.y.store(block_idx_x() as usize, total);
            }
        }
    }
}
