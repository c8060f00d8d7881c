//! Kernels that only test: each runs the intrinsics of one kind on known data, so that the emulator, the compiler and the
//! hardware can be held against each other. No model uses them.

use crate::{Global, Launch};

kernels! {
    /// Every warp operation and lane-local arithmetic on one warp: lane `l` reads `x[l]` and writes word `l` of row `r` of
    /// `y` for each operation `r`.
    ///
    /// - Shapes: `x` (32) u32, `y` (28, 32) u32.
    /// - Launch: one block of 32 lanes, no shared memory.
    ///
    /// # Safety
    /// Lengths as above.
    probe_warp, block = [32, 1, 1], body = device::warp;
    pub struct ProbeWarp {
        /// Any words, (32).
        pub x: Global<u32>,
        /// A row an operation, (28, 32).
        pub y: Global<u32>,
    }

    /// Vector loads and stores, shared memory, `cp.async`, `ldmatrix`, named barriers and atomics: reverses each row of
    /// 256 words through shared memory and counts blocks.
    ///
    /// - Shapes: `x`, `y` (blocks, 256) u32, `count` (2) u32, `top` (1) u64.
    /// - Launch: any grid along x, 64 lanes, 4 KB of shared memory.
    ///
    /// # Safety
    /// Lengths as above; `x` and `y` 16-byte aligned; `count` and `top` start at 0.
    probe_memory, block = [64, 1, 1], body = device::memory;
    pub struct ProbeMemory {
        /// Any words, (blocks, 256).
        pub x: Global<u32>,
        /// Rows of `x` reversed, (blocks, 256).
        pub y: Global<u32>,
        /// Blocks done, counted by an add with release; and by a plain one, (2).
        pub count: Global<u32>,
        /// The largest of `x[block][0] << 32 | block`, (1).
        pub top: Global<u64>,
    }

    /// Bulk copies under an mbarrier, two phases: `y = x` through shared memory, 1 KB a phase.
    ///
    /// - Shapes: `x`, `y` (blocks, 2, 256) u32.
    /// - Launch: any grid along x, 64 lanes, 1040 bytes of shared memory.
    ///
    /// # Safety
    /// Lengths as above, 16-byte aligned.
    probe_bulk, block = [64, 1, 1], arch = sm_90, body = device::bulk;
    pub struct ProbeBulk {
        /// Any words, (blocks, 2, 256).
        pub x: Global<u32>,
        /// The same words, (blocks, 2, 256).
        pub y: Global<u32>,
    }

    /// A branch, a barrier, and the same branch: `y[l] = 3 x[l ^ 1] + 1` on odd lanes, `2 x[l ^ 1]` on even ones.
    ///
    /// A compiler that threads the jumps puts a copy of the barrier on either side of the branch, and the two halves of a
    /// warp then wait at different barriers (rust-lang/rust#137086). The entry must hold exactly one `bar.sync`.
    ///
    /// - Shapes: `x`, `y` (64) u32. Launch: one block of 64 lanes, 256 bytes of shared memory.
    ///
    /// # Safety
    /// Lengths as above.
    probe_divergence, block = [64, 1, 1], body = device::divergence;
    pub struct ProbeDivergence {
        /// Any words, (64).
        pub x: Global<u32>,
        /// See above, (64).
        pub y: Global<u32>,
    }
}

impl ProbeWarp {
    /// Rows of `y`.
    pub const ROWS: usize = 28;

    /// One warp.
    #[must_use]
    pub fn launch() -> Launch {
        Launch {
            grid: [1, 1, 1],
            block: [32, 1, 1],
            shared_bytes: 0,
        }
    }
}

impl ProbeMemory {
    /// A block a row.
    #[must_use]
    pub fn launch(rows: u32) -> Launch {
        Launch {
            grid: [rows, 1, 1],
            block: [64, 1, 1],
            shared_bytes: 4096,
        }
    }
}

impl ProbeBulk {
    /// A block a row.
    #[must_use]
    pub fn launch(rows: u32) -> Launch {
        Launch {
            grid: [rows, 1, 1],
            block: [64, 1, 1],
            shared_bytes: 1040,
        }
    }
}

impl ProbeDivergence {
    /// One block.
    #[must_use]
    pub fn launch() -> Launch {
        Launch {
            grid: [1, 1, 1],
            block: [64, 1, 1],
            shared_bytes: 256,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{ProbeBulk, ProbeDivergence, ProbeMemory, ProbeWarp};
    use crate::intrinsics::*;
    use crate::reduce;

    #[inline(always)]
    pub(super) unsafe fn warp(p: ProbeWarp) {
        // SAFETY: one full warp, converged; rows are below `ROWS`.
        unsafe {
            let lane = lane_id();
            let x = p.x.load(lane as usize);
            let small = f32::from_word(0x3f80_0000 | x >> 9);
            let odd = x & 1 != 0;
            let put = |row: usize, value: u32| p.y.store(row * 32 + lane as usize, value);
            put(0, warp_shuffle_xor(FULL_MASK, x, 5));
            put(1, warp_shuffle_down(FULL_MASK, x, 3));
            put(2, warp_shuffle_up(FULL_MASK, x, 4));
            put(3, warp_shuffle_idx(FULL_MASK, x, lane * 7));
            put(4, warp_vote_all(FULL_MASK, odd).into());
            put(5, warp_vote_any(FULL_MASK, odd).into());
            put(6, warp_vote_ballot(FULL_MASK, odd));
            put(7, warp_reduce_add(FULL_MASK, x as i32) as u32);
            put(8, warp_reduce_max(FULL_MASK, x as i32) as u32);
            put(9, warp_reduce_min(FULL_MASK, x as i32) as u32);
            put(10, warp_reduce_max_u32(FULL_MASK, x));
            put(11, warp_reduce_min_u32(FULL_MASK, x));
            put(12, dp4a(x, x >> 3, 5) as u32);
            put(13, dp4a_u8_i8(x, x >> 3, -5) as u32);
            put(14, byte_permute(x, !x, 0x7250));
            put(15, pack_i8x4([x as i32 >> 20, x as i32 >> 25, -300, 77]));
            put(16, round_to_i32((small - 1.5) * 64.0) as u32);
            put(17, f32_to_bf16x2(small, -small));
            put(18, sqrt(small).to_bits());
            put(19, fma(small, small, -1.0).to_bits());
            put(20, reduce::warp_sum(small).to_bits());
            put(21, warp_shuffle_xor(FULL_MASK, small, 9).to_bits());
            let a = [x, x ^ 0x55, x >> 2, !x];
            let b = [x << 1, x >> 5];
            let s = mma_m16n8k32_s8_s8(a, b, [1, 2, 3, 4]);
            let u = mma_m16n8k32_u8_s8(a, b, [1, 2, 3, 4]);
            put(22, (s[0] ^ s[1] << 1 ^ s[2] << 2 ^ s[3] << 3) as u32);
            put(23, (u[0] ^ u[1] << 1 ^ u[2] << 2 ^ u[3] << 3) as u32);
            // Small integers, so that every order of adding gives the same bits.
            let pair = |v: u32| f32_to_bf16x2((v & 7) as f32, (v >> 3 & 7) as f32);
            let f = mma_m16n8k16_bf16(a.map(pair), b.map(pair), [0.5, 1.5, 2.5, 3.5]);
            put(24, f[0].to_bits());
            put(25, f[1].to_bits());
            put(26, f[2].to_bits());
            put(27, f[3].to_bits());
            sync_warp(FULL_MASK);
        }
    }

    #[inline(always)]
    pub(super) unsafe fn memory(p: ProbeMemory) {
        // SAFETY: indices stay in the block's row and in the 4 KB of shared memory; barriers are on every lane's way.
        unsafe {
            let lane = thread_idx_x();
            let block = block_idx_x();
            let row = p.x.offset(block as usize * 256);
            let staged = Shared::<u32>::at(0);
            let reversed = Shared::<u32>::at(1024);
            let flags = Shared::<u8>::at(2048);
            let arrived = Shared::<u32>::at(3072);
            async_copy_16(staged.offset(lane * 4), row.offset(lane as usize * 4));
            async_copy_commit();
            flags.store(lane, 1);
            if lane == 0 {
                arrived.store(0, 0);
            }
            row.prefetch_l2(lane as usize);
            async_copy_wait::<0>();
            // Orders the copies and flags of all lanes before the loads below.
            sync_threads();
            arrived.add(0, 1);
            // Each matrix of 8 rows of 16 bytes holds 32 words: warp 0 takes the first half of the row, warp 1 the second.
            let words = load_matrix_x4(staged.offset(warp_id() * 128 + lane_id() * 4));
            let mut i = 0;
            while i < 4 {
                // Word `lane` of matrix `i`.
                reversed.store(
                    255 - (warp_id() * 128 + i * 32 + lane_id()),
                    words[i as usize] + flags.load(lane ^ 63) as u32,
                );
                i += 1;
            }
            // Orders the reversed words before the other warp's loads: arrivals and waits of both.
            sync_threads_named(3, 64);
            let quad = reversed.load_x4(lane * 4);
            p.y.store_x4(block as usize * 256 + lane as usize * 4, quad.map(|w| w - 1));
            if lane == 0 {
                p.top
                    .fetch_max(0, (row.load_stream(0)[0] as u64) << 32 | block as u64);
                p.count.add_release(0, arrived.load(0) / 64);
                device_fence();
                p.count.fetch_add(1, 1);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn bulk(p: ProbeBulk) {
        // SAFETY: indices stay in the block's rows; the mbarrier is initialized before any lane waits.
        unsafe {
            let lane = thread_idx_x();
            let base = block_idx_x() as usize * 512;
            let staged = Shared::<u32>::at(0);
            let full = Mbarrier::at(1024);
            if lane == 0 {
                full.init(1);
                Mbarrier::fence_init();
            }
            // Orders the initialization before the waits.
            sync_threads();
            grid_dependency_wait();
            let mut phase = 0;
            while phase < 2 {
                let first = base + phase as usize * 256;
                if lane == 0 {
                    full.arrive_expect(1024);
                    bulk_copy(staged, p.x.offset(first), 1024, full);
                }
                full.wait(phase);
                let quad = staged.load_x4(lane * 4);
                p.y.store_x4(first + lane as usize * 4, quad);
                // Orders these loads before the next phase's copy.
                sync_threads();
                phase += 1;
            }
            grid_dependency_launch();
        }
    }

    #[inline(always)]
    pub(super) unsafe fn divergence(p: ProbeDivergence) {
        // SAFETY: 64 lanes, 64 words.
        unsafe {
            let lane = thread_idx_x();
            let word = Shared::<u32>::at(0);
            let x = p.x.load(lane as usize);
            let odd = if lane & 1 != 0 {
                word.store(lane, 2 * x);
                true
            } else {
                word.store(lane, 3 * x);
                false
            };
            // Orders every store before the neighbor's load.
            sync_threads();
            let y = if odd {
                word.load(lane ^ 1) + 1
            } else {
                word.load(lane ^ 1)
            };
            p.y.store(lane as usize, y);
        }
    }
}
