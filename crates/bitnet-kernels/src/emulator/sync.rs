//! Where lanes meet: barriers of a block, operations of a warp, mbarriers.

use super::clock::release_all;
use super::fault::FaultKind;
use super::memory::{Refusal, Use};
use super::state::{State, Status};
use super::wait::{Caller, Group, Mbar, Next};
use std::boxed::Box;
use std::format;
use std::rc::Rc;
use std::vec::Vec;

impl State {
    /// Arrives at barrier `id`; `count` lanes end its phase, all of the block where there is none.
    pub(super) fn barrier(
        &mut self,
        id: u32,
        count: Option<u32>,
        waits: bool,
        caller: Caller,
    ) -> Result<Next, Refusal> {
        let lane = self.current.1 as u32;
        let block = self.block();
        let n_lanes = block.lanes.len();
        let expected = count.unwrap_or(n_lanes as u32);
        if id >= 16 || count.is_some_and(|c| c == 0 || c % 32 != 0) {
            let detail =
                format!("barrier {id} for {expected} lanes: ids are 0 to 15, counts multiples of 32");
            return Err((FaultKind::Misuse, detail));
        }
        if count.is_none() && block.n_done > 0 {
            let gone = block
                .lanes
                .iter()
                .position(|l| l.status == Status::Done)
                .unwrap_or(0);
            let detail = format!("barrier {id} of all lanes, but lane {gone} has left the kernel");
            return Err((FaultKind::Divergence, detail));
        }
        let barrier = &mut block.barriers[id as usize];
        if barrier.arrived.is_empty() {
            barrier.expected = expected;
        } else if barrier.expected != expected {
            let detail = format!(
                "barrier {id} for {expected} lanes, while others wait for {}",
                barrier.expected
            );
            return Err((FaultKind::Misuse, detail));
        }
        let (other, line) = *barrier.lines[lane as usize / 32].get_or_insert((lane, caller));
        if line != caller {
            let detail = format!("barrier {id}, which lane {other} of the same warp waits for at {line}");
            return Err((FaultKind::Divergence, detail));
        }
        if !waits {
            let view = block.lanes[lane as usize].clock.release(n_lanes);
            block.barriers[id as usize].released.join(&view);
        }
        let barrier = &mut block.barriers[id as usize];
        barrier.arrived.push((lane, waits));
        if barrier.arrived.len() < expected as usize {
            return Ok(if waits { Next::Wait } else { Next::Go });
        }
        let arrived = core::mem::take(&mut barrier.arrived);
        let released = core::mem::take(&mut barrier.released);
        barrier.lines = [None; 32];
        let waiting: Vec<u32> = arrived.iter().filter(|a| a.1).map(|a| a.0).collect();
        let mut view = release_all(waiting.iter().map(|&l| &block.lanes[l as usize].clock), n_lanes);
        view.join(&released);
        for &lane in &waiting {
            block.lanes[lane as usize].clock.view = view.clone();
        }
        self.wake(waiting);
        Ok(Next::Go)
    }

    /// Brings `data` to operation `name` of the lanes `mask`; the last to arrive computes everyone's result.
    pub(super) fn warp(
        &mut self,
        name: &'static str,
        mask: u32,
        data: [u32; 10],
        resolve: impl FnOnce(&[[u32; 10]; 32]) -> [[u32; 4]; 32],
    ) -> Result<Next, Refusal> {
        let lane = self.current.1 as u32;
        let (warp, within) = (lane / 32, lane % 32);
        let block = self.block();
        let n_lanes = block.lanes.len() as u32;
        let live = if n_lanes - 32 * warp >= 32 {
            u32::MAX
        } else {
            (1 << (n_lanes % 32)) - 1
        };
        if mask & 1 << within == 0 || mask & !live != 0 {
            let detail = format!("{name} with mask {mask:#010x} in a warp that has {live:#010x}");
            return Err((FaultKind::Misuse, detail));
        }
        let of_warp = |i: u32| &block.lanes[(32 * warp + i) as usize];
        if block.n_done > 0
            && let Some(i) = (0..32).find(|&i| mask >> i & 1 == 1 && of_warp(i).status == Status::Done)
        {
            let detail = format!(
                "{name} with mask {mask:#010x}, but lane {} has left the kernel",
                32 * warp + i
            );
            return Err((FaultKind::Divergence, detail));
        }
        let groups = &mut block.groups[warp as usize];
        let index = match groups.iter().position(|g| g.mask & mask != 0) {
            Some(i) if groups[i].name == name && groups[i].mask == mask => i,
            Some(i) => {
                let Group {
                    name: other,
                    mask: wide,
                    arrived,
                    ..
                } = groups[i];
                let detail = format!(
                    "{name} with mask {mask:#010x}, while lanes {arrived:#010x} of the warp wait in {other} with mask {wide:#010x}"
                );
                return Err((FaultKind::Divergence, detail));
            }
            None => {
                groups.push(Group {
                    name,
                    mask,
                    arrived: 0,
                    data: Box::new([[0; 10]; 32]),
                });
                groups.len() - 1
            }
        };
        let group = &mut groups[index];
        group.arrived |= 1 << within;
        group.data[within as usize] = data;
        if group.arrived != mask {
            return Ok(Next::Wait);
        }
        let group = groups.swap_remove(index);
        let results = resolve(&group.data);
        let members = (0..32).filter(|i| mask >> i & 1 == 1);
        for i in members.clone() {
            block.lanes[(32 * warp + i) as usize].result = results[i as usize];
        }
        self.wake(members.map(|i| 32 * warp + i));
        Ok(Next::Go)
    }

    /// Joins the clocks of the lanes of `mask` in the current warp, which have just met.
    pub(super) fn order_warp(&mut self, mask: u32) {
        let first = self.current.1 / 32 * 32;
        let block = self.block();
        let n_lanes = block.lanes.len();
        let members = || (0..32).filter(|i| mask >> i & 1 == 1).map(|i| first + i);
        let view = release_all(members().map(|l| &block.lanes[l].clock), n_lanes);
        for lane in members() {
            block.lanes[lane].clock.view = view.clone();
        }
    }

    /// A lane leaves: whoever waits for it waits in vain.
    pub(super) fn leave(&mut self) {
        let (slot, lane) = self.current;
        self.lane().status = Status::Done;
        self.progress += 1;
        self.blocks[slot].n_done += 1;
        if self.blocks[slot].n_done == self.blocks[slot].lanes.len() {
            self.check_stores_landed();
        }
        let block = &self.blocks[slot];
        let all = block.lanes.len() as u32;
        let barrier = block.barriers.iter().position(|b| {
            let has_arrived = b.arrived.iter().any(|a| a.0 as usize == lane);
            !b.arrived.is_empty() && b.expected == all && !has_arrived
        });
        let group = block.groups[lane / 32]
            .iter()
            .find(|g| g.mask >> (lane % 32) & 1 == 1);
        let (waiting, what) = match (barrier, group) {
            (Some(id), _) => (
                block.barriers[id].arrived[0].0,
                format!("barrier {id} of all lanes"),
            ),
            (_, Some(g)) => (
                (lane / 32 * 32) as u32 + g.arrived.trailing_zeros(),
                g.name.into(),
            ),
            (None, None) => return,
        };
        let location = block.lanes[waiting as usize].location;
        let detail = format!("waits in {what}, but lane {lane} has left the kernel");
        self.fail_at(slot, waiting as usize, FaultKind::Divergence, location, detail);
    }

    /// The mbarrier at `address`, which this lane may use.
    fn mbarrier(&mut self, address: u32) -> Result<&mut Mbar, Refusal> {
        self.mbarrier_in(self.current.0, address)
    }

    /// The mbarrier at `address` of a block's shared memory, which this lane may use.
    pub(super) fn mbarrier_in(&mut self, slot: usize, address: u32) -> Result<&mut Mbar, Refusal> {
        let lane = self.lane();
        let (clock, waits) = (lane.clock.clone(), lane.cluster_waits);
        let is_after = |bar: &Mbar| {
            clock.is_after(bar.initialized) || bar.fenced.is_some_and(|arrivals| waits > arrivals)
        };
        match self.blocks[slot].mbarriers.get_mut(&address) {
            None => Err((
                FaultKind::Misuse,
                format!("no mbarrier was initialized at shared byte {address}"),
            )),
            Some(bar) if !is_after(bar) => Err((
                FaultKind::Race,
                format!(
                    "uses the mbarrier at shared byte {address}; no barrier orders its initialization before"
                ),
            )),
            Some(bar) => Ok(bar),
        }
    }

    pub(super) fn mbarrier_init(&mut self, address: u32, arrivals: u32) -> Result<(), Refusal> {
        if arrivals == 0 || arrivals >= 1 << 20 {
            return Err((FaultKind::Misuse, format!("an mbarrier for {arrivals} arrivals")));
        }
        self.shared_access(address, 8, Use::Write)?;
        let block = self.block();
        // Its bytes mean nothing to plain loads.
        block.shared.mark_written(address as usize, 8, false);
        let initialized = self.lane().clock.epoch(false);
        let bar = Mbar {
            arrivals,
            pending: arrivals,
            bytes: 0,
            phase: 0,
            gathering: Rc::default(),
            published: Rc::default(),
            copies: Vec::new(),
            waiting: Vec::new(),
            initialized,
            fenced: None,
        };
        self.block().mbarriers.insert(address, bar);
        Ok(())
    }

    /// Fences this lane's initializations for the cluster.
    pub(super) fn mbarrier_fence_init(&mut self) {
        let (slot, lane) = self.current;
        let block = &mut self.blocks[slot];
        let lane = &block.lanes[lane];
        let now = lane.clock.epoch(false);
        for bar in block.mbarriers.values_mut() {
            if bar.initialized.same_lane(now) {
                bar.fenced.get_or_insert(lane.cluster_arrivals);
            }
        }
    }

    pub(super) fn mbarrier_arrive(&mut self, address: u32, bytes: u32) -> Result<(), Refusal> {
        let n_lanes = self.block().lanes.len();
        let view = self.lane().clock.release(n_lanes);
        let bar = self.mbarrier(address)?;
        if bar.pending == 0 {
            let detail = format!(
                "one arrival more than the {} of the phase of the mbarrier at shared byte {address}",
                bar.arrivals
            );
            return Err((FaultKind::Misuse, detail));
        }
        bar.gathering.join(&view);
        bar.bytes += i64::from(bytes);
        bar.pending -= 1;
        self.mbarrier_advance(address)
    }

    /// Ends the phase when all arrivals and bytes are in.
    fn mbarrier_advance(&mut self, address: u32) -> Result<(), Refusal> {
        let bar = self.mbarrier(address)?;
        if bar.pending == 0 && bar.bytes == 0 {
            bar.phase += 1;
            bar.pending = bar.arrivals;
            bar.published = core::mem::take(&mut bar.gathering);
            let waiting = core::mem::take(&mut bar.waiting);
            self.wake(waiting);
        }
        Ok(())
    }

    /// Whether the phase of `parity` has ended. Asking is what lets pending copies arrive: they are as late as they may be.
    pub(super) fn mbarrier_wait(&mut self, address: u32, parity: u32) -> Result<Next, Refusal> {
        let copies = core::mem::take(&mut self.mbarrier(address)?.copies);
        for copy in copies {
            self.finish_copy(copy)?;
            self.mbarrier(address)?.bytes -= i64::from(copy.bytes);
        }
        self.mbarrier_advance(address)?;
        let lane = self.current.1 as u32;
        let bar = self.mbarrier(address)?;
        if bar.phase & 1 == parity & 1 {
            bar.waiting.push(lane);
            return Ok(Next::Wait);
        }
        let published = bar.published.clone();
        self.lane().clock.view.join(&published);
        Ok(Next::Go)
    }

    /// Starts a copy whose bytes count for the phase under way of the mbarrier at `address`.
    pub(super) fn bulk_copy(
        &mut self,
        destination: u32,
        source: u64,
        bytes: u32,
        address: u32,
        caller: Caller,
    ) -> Result<(), Refusal> {
        self.mbarrier(address)?;
        let copy = self.start_copy(destination, source, bytes, Use::AsyncWrite, caller)?;
        let n_lanes = self.block().lanes.len();
        let view = self.lane().clock.release(n_lanes);
        let waiting = self.mbarrier(address)?.receive(copy, &view);
        self.wake(waiting);
        Ok(())
    }
}
