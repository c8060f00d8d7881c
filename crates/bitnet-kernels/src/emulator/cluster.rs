//! Blocks of a cluster: the barrier that says they all have started, and stores into each other's shared memory.

use super::fault::FaultKind;
use super::memory::{Refusal, Use};
use super::state::State;
use super::wait::{InFlight, Next, Source};
use core::ops::Range;
use std::format;

impl State {
    /// The blocks of the current block's cluster.
    fn cluster(&self) -> Range<usize> {
        let first = self.current.0 / self.cluster_blocks * self.cluster_blocks;
        first..first + self.cluster_blocks
    }

    /// Arrives, and releases nothing.
    pub(super) fn cluster_arrive(&mut self) -> Result<(), Refusal> {
        let blocks = self.cluster();
        let lane = self.lane();
        if lane.cluster_arrivals > lane.cluster_waits {
            let detail = "arrives at the cluster's barrier again, and has not waited there".into();
            return Err((FaultKind::Misuse, detail));
        }
        lane.cluster_arrivals += 1;
        let expected: usize = self.blocks[blocks.clone()].iter().map(|b| b.lanes.len()).sum();
        let barrier = &mut self.blocks[blocks.start].cluster_barrier;
        barrier.n_arrived += 1;
        if barrier.n_arrived == expected {
            barrier.n_arrived = 0;
            barrier.phase += 1;
            for (slot, lane) in core::mem::take(&mut barrier.waiting) {
                self.wake_in(slot, [lane]);
            }
        }
        Ok(())
    }

    /// Whether the phase at which the lane has arrived is over.
    pub(super) fn cluster_wait(&mut self) -> Result<Next, Refusal> {
        let first = self.cluster().start;
        let (slot, lane) = self.current;
        let Some(waited) =
            Some(&mut self.blocks[slot].lanes[lane]).filter(|l| l.cluster_arrivals > l.cluster_waits)
        else {
            let detail = "waits at the cluster's barrier, and has not arrived there".into();
            return Err((FaultKind::Misuse, detail));
        };
        let phase = waited.cluster_arrivals;
        let barrier = &mut self.blocks[first].cluster_barrier;
        if barrier.phase < phase {
            barrier.waiting.push((slot, lane as u32));
            return Ok(Next::Wait);
        }
        self.lane().cluster_waits = phase;
        Ok(Next::Go)
    }

    /// The slot of block `rank` of the cluster, whose shared memory the lane may write.
    fn cluster_block(&mut self, rank: u32) -> Result<usize, Refusal> {
        let blocks = self.cluster();
        let refuse = |detail| Err((FaultKind::Cluster, detail));
        let slot = blocks.start + rank as usize;
        if slot >= blocks.end {
            return refuse(format!("block {rank} of a cluster of {}", blocks.len()));
        }
        if slot != self.current.0 && self.lane().cluster_waits == 0 {
            return refuse(format!("block {rank} of the cluster may not have started"));
        }
        let block = &self.blocks[slot];
        if block.n_done == block.lanes.len() {
            return refuse(format!("block {rank} of the cluster has ended"));
        }
        Ok(slot)
    }

    /// Starts a store whose bytes count for the phase under way of the mbarrier of block `rank` at `barrier`.
    pub(super) fn store_async(
        &mut self,
        destination: u32,
        words: [u32; 2],
        rank: u32,
        barrier: u32,
    ) -> Result<(), Refusal> {
        const BYTES: u32 = 8;
        let slot = self.cluster_block(rank)?;
        self.mbarrier_in(slot, barrier)?;
        self.shared_access_in(slot, destination, BYTES as usize, Use::Write)?;
        let n_lanes = self.block().lanes.len();
        let view = self.lane().clock.release(n_lanes);
        let store = InFlight {
            destination,
            source: Source::Words(words),
            bytes: BYTES,
            lane: self.current.1 as u32,
        };
        let block = &mut self.blocks[slot];
        block
            .shared
            .mark_written(destination as usize, BYTES as usize, false);
        block.in_flight.insert(destination, store);
        let waiting = self.mbarrier_in(slot, barrier)?.receive(store, &view);
        self.wake_in(slot, waiting);
        Ok(())
    }

    /// The current block has ended: no store into its shared memory may be left.
    pub(super) fn check_stores_landed(&mut self) {
        let mut in_flight = self.block().in_flight.values();
        let Some(store) = in_flight.find(|c| matches!(c.source, Source::Words(_))) else {
            return;
        };
        let detail = format!(
            "the block ends, and a store to its shared byte {} that lane {} of a block of the cluster started has not been waited for",
            store.destination, store.lane
        );
        self.fail(FaultKind::Cluster, None, detail);
    }
}
