//! The body of the decode kernels of short contexts.

use super::super::decode::step::{Parts, Results, Step};
use super::super::decode::{HEADS, WARPS};
use super::super::math::{Factors, Fold, quotients};
use super::{AttentionCluster, chunks_of_block, mbarrier_at, record_floats, records_at};
use crate::Global;
use crate::cache::{KvType, PAGE};
use crate::intrinsics::*;

/// What the blocks of a cluster store into each other's shared memory: records by round of [`HEADS`] heads, then step.
///
/// Chunk c of 8 dimensions belongs to block c modulo the cluster's. A lane's two dimensions lie at its own number in the
/// chunk, so that neither their stores nor their loads meet in a bank.
struct Exchange {
    records: Shared<f32>,
    /// Ends its first phase when all records are here.
    full: Mbarrier,
    /// Blocks of the cluster.
    blocks: u32,
    /// This block's number in the cluster, and its step.
    rank: u32,
    /// Chunks of a head, and those that a record has room for.
    chunks: u32,
    own_chunks: u32,
}

/// What a lane folds: two dimensions of its head, and the same two of every `8 WARPS` times the cluster's blocks.
struct Own<'a> {
    exchange: &'a Exchange,
    /// Of the head's round and its first step.
    records: Shared<f32>,
    /// Of the first dimension.
    out: Global<f32>,
    dim: u32,
    head_dim: u32,
}

#[inline(always)]
pub(super) unsafe fn run<const CHUNKS: usize, const INT8: bool>(p: AttentionCluster) {
    let (padded, kv) = (Step::<CHUNKS, INT8>::PADDED, KvType::of(INT8));
    let (rank, kv_head, token) = (block_idx_x(), block_idx_y(), block_idx_z() as usize);
    let exchange = Exchange {
        records: Shared::at(records_at(padded, kv)),
        full: Mbarrier::at(mbarrier_at(padded, kv)),
        blocks: p.steps,
        rank,
        chunks: padded / 8,
        own_chunks: chunks_of_block(padded, p.steps),
    };
    let heads = p.heads_per_kv;
    // SAFETY: the parameters are the launch's; every branch around a warp, block or cluster operation is uniform. A block
    // ends only when it has received all that is stored to it.
    unsafe {
        if thread_idx_x() == 0 {
            exchange.full.init(1);
            Mbarrier::fence_init();
        }
        cluster_arrive_relaxed();
        // By the grid, which is there at once: a parameter would be a load before the next kernel may start.
        let lets_go_late = AttentionCluster::lets_go_late(grid_dim_z());
        if !lets_go_late {
            grid_dependency_launch();
        }
        let attention = Step::<CHUNKS, INT8>::new(p.inputs(), token, kv_head, rank);
        let steps = attention.position / PAGE + 1;
        if thread_idx_x() == 0 {
            exchange
                .full
                .arrive_expect(steps * heads * exchange.bytes_of_head());
        }
        // All blocks have started, and their mbarriers are initialized. Early, while the kernel before still runs.
        cluster_wait();
        if attention.has_keys() {
            // What does not depend on the kernel before is requested first.
            let mut fragments = attention.request_old();
            if lets_go_late {
                grid_dependency_launch();
            }
            attention.attend(&mut fragments, &Parts::new(padded, kv), &exchange);
        } else {
            if lets_go_late {
                grid_dependency_launch();
            }
            grid_dependency_wait();
        }
        // The lane's place, before the wait: it may take a while.
        let first_head = lane_id() / 4;
        let dim = 8 * (warp_id() * p.steps + rank) + 2 * (lane_id() % 4);
        let row = token as u32 * p.n_heads + kv_head * heads + first_head;
        let mut own = Own {
            exchange: &exchange,
            records: exchange.record(0, 0),
            out: p.out.offset((row * p.head_dim + dim) as usize),
            dim,
            head_dim: p.head_dim,
        };
        exchange.full.wait_cluster(0);
        if dim >= p.head_dim {
            return;
        }
        let mut head = first_head;
        while head < heads {
            // By comparisons: a table of jumps would be a load more.
            match (steps > 4, (steps - 1) % 4 > 1, steps.is_multiple_of(2)) {
                (false, false, false) => own.fold::<1>(),
                (false, false, true) => own.fold::<2>(),
                (false, true, false) => own.fold::<3>(),
                (false, true, true) => own.fold::<4>(),
                (true, false, false) => own.fold::<5>(),
                (true, false, true) => own.fold::<6>(),
                (true, true, false) => own.fold::<7>(),
                (true, true, true) => own.fold::<8>(),
            }
            own.records = own.records.offset(p.steps * exchange.record_floats());
            own.out = own.out.offset((HEADS * p.head_dim) as usize);
            head += HEADS;
        }
    }
}

impl Exchange {
    /// Bytes that this block receives of a head's step.
    #[inline(always)]
    fn bytes_of_head(&self) -> u32 {
        let own_chunks = (self.chunks + self.blocks - 1 - self.rank) >> self.blocks.trailing_zeros();
        32 * own_chunks + 8
    }

    /// Floats from a record to the next.
    #[inline(always)]
    fn record_floats(&self) -> u32 {
        record_floats(self.own_chunks)
    }

    /// The record of a step of the heads around `head`.
    #[inline(always)]
    fn record(&self, head: u32, step: u32) -> Shared<f32> {
        let record = head / HEADS * self.blocks + step;
        self.records.offset(record * self.record_floats())
    }

    /// Place of maximum and sum of `head` in its record.
    #[inline(always)]
    fn sums(&self, head: u32) -> u32 {
        64 * self.own_chunks + 2 * (head % HEADS)
    }
}

impl Own<'_> {
    /// Folds `STEPS` steps of the lane's head. Their number is a constant, so that all loads go out together.
    ///
    /// # Safety
    /// All records are here; the lane's first dimensions are the head's.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn fold<const STEPS: usize>(&self) {
        let exchange = self.exchange;
        // SAFETY: the caller's promise; dimensions past the head's were not stored and are not loaded.
        unsafe {
            let load = |place: u32| -> [[f32; 2]; STEPS] {
                core::array::from_fn(|step| {
                    self.records
                        .load_x2(step as u32 * exchange.record_floats() + place)
                })
            };
            let sums = load(exchange.sums(lane_id() / 4));
            let mut place = 64 * warp_id() + 2 * lane_id();
            let mut values = load(place);
            let mut fold = Fold::EMPTY;
            let factors: [Factors; STEPS] = core::array::from_fn(|step| {
                let [max, sum] = sums[step];
                let factors = fold.rescale(max);
                fold.sum = factors.fold(fold.sum, sum);
                factors
            });
            let (mut out, mut dim) = (self.out, self.dim);
            loop {
                let mut o = [0.0; 2];
                let mut step = 0;
                while step < STEPS {
                    let [low, high] = values[step];
                    o = [factors[step].fold(o[0], low), factors[step].fold(o[1], high)];
                    step += 1;
                }
                let [quotients] = quotients([o], fold.sum);
                out.store_x2(0, quotients);
                let dims = 8 * WARPS * exchange.blocks;
                dim += dims;
                if dim >= self.head_dim {
                    return;
                }
                out = out.offset(dims as usize);
                place += 64 * WARPS;
                values = load(place);
            }
        }
    }
}

impl Results for Exchange {
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn put_values(&self, head: u32, chunk: u32, values: [f32; 2]) {
        let own = chunk >> self.blocks.trailing_zeros();
        let place = self.record(head, self.rank).offset(64 * own + 2 * lane_id());
        // SAFETY: the caller's promise; the block waits for these bytes.
        unsafe { place.store_async_x2(values, chunk & (self.blocks - 1), self.full) }
    }

    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn put_sums(&self, head: u32, sums: [f32; 2]) {
        let rank = 4 * warp_id() + lane_id() % 4;
        if rank < self.blocks {
            let place = self.record(head, self.rank).offset(self.sums(head));
            // SAFETY: the caller's promise; the block waits for these bytes.
            unsafe { place.store_async_x2(sums, rank, self.full) }
        }
    }
}
