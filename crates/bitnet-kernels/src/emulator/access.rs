//! Loads, stores and copies of a lane, checked.

use super::fault::FaultKind;
use super::memory::{Refusal, Use};
use super::state::State;
use super::wait::{InFlight, Source};
use core::panic::Location;
use std::format;

/// How a load reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Plain,
    /// Through the read-only path.
    Constant,
}

/// Memory order of an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

impl State {
    /// Checks and records an access of global memory; gives buffer and offset.
    pub(super) fn global_access(
        &mut self,
        address: u64,
        len: usize,
        how: Use,
        access: Access,
        caller: &'static Location<'static>,
    ) -> Result<(usize, usize), Refusal> {
        let (id, offset) = self.memory.find(address, len)?;
        let (slot, lane) = self.current;
        let lane = &mut self.blocks[slot].lanes[lane];
        let buffer = &mut self.memory.buffers[id];
        let writes = matches!(how, Use::Write | Use::AtomicWrite);
        if (writes || buffer.is_produced) && lane.early.is_none() {
            let verb = if writes { "writes" } else { "reads" };
            lane.early = Some((format!("{verb} offset {offset} of buffer {id}"), caller));
        }
        let named = |(kind, detail)| (kind, format!("buffer {id}: {detail}"));
        if buffer.is_constant {
            if writes {
                let detail = format!("writes offset {offset} of a constant");
                return Err(named((FaultKind::ReadOnly, detail)));
            }
            return Ok((id, offset));
        }
        if access == Access::Constant && buffer.space.is_written_now(offset, len) {
            let detail = format!("constant load of offset {offset}, which this launch writes");
            return Err(named((FaultKind::ReadOnly, detail)));
        }
        buffer
            .space
            .access(offset, len, how, &lane.clock)
            .map_err(named)?;
        Ok((id, offset))
    }

    /// Checks and records an access of the block's shared memory; gives the offset.
    pub(super) fn shared_access(&mut self, address: u32, len: usize, how: Use) -> Result<usize, Refusal> {
        self.shared_access_in(self.current.0, address, len, how)
    }

    /// Checks and records an access of a block's shared memory; gives the offset.
    pub(super) fn shared_access_in(
        &mut self,
        slot: usize,
        address: u32,
        len: usize,
        how: Use,
    ) -> Result<usize, Refusal> {
        let (own, lane) = self.current;
        let remote = (slot != own).then(|| self.blocks[own].lanes[lane].clock.clone());
        let block = &mut self.blocks[slot];
        let size = block.shared.bytes.len();
        let start = address as usize;
        if start + len > size {
            let detail = format!("{len} bytes at shared byte {start} of {size}");
            return Err((FaultKind::OutOfBounds, detail));
        }
        if len.is_power_of_two() && !start.is_multiple_of(len) {
            return Err((
                FaultKind::Misaligned,
                format!("{len} bytes at shared byte {start}"),
            ));
        }
        let overlaps = |at: u32, bytes: u32| (at as usize) < start + len && start < (at + bytes) as usize;
        let last = block.in_flight.range(..(start + len) as u32).next_back();
        if let Some((_, copy)) = last.filter(|(at, c)| overlaps(**at, c.bytes)) {
            let detail = format!(
                "{len} bytes at shared byte {start}, where a copy that lane {} started has not been waited for",
                copy.lane
            );
            return Err((FaultKind::InFlight, detail));
        }
        if matches!(how, Use::Write | Use::AsyncWrite) && block.mbarriers.keys().any(|&at| overlaps(at, 8)) {
            let detail = format!("writes shared byte {start}, which is part of an mbarrier");
            return Err((FaultKind::Misuse, detail));
        }
        let clock = remote.as_ref().unwrap_or(&block.lanes[lane].clock);
        block
            .shared
            .access(start, len, how, clock)
            .map_err(|(kind, detail)| (kind, format!("shared memory: {detail}")))?;
        Ok(start)
    }

    /// An atomic load (`Use::AtomicRead`), store or update (`Use::AtomicWrite`); gives the value before.
    pub(super) fn atomic(
        &mut self,
        address: u64,
        len: usize,
        order: Order,
        how: Use,
        caller: &'static Location<'static>,
        update: impl FnOnce(u64) -> u64,
    ) -> Result<u64, Refusal> {
        let (id, offset) = self.global_access(address, len, how, Access::Plain, caller)?;
        let bytes = &mut self.memory.buffers[id].space.bytes[offset..offset + len];
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(bytes);
        let old = u64::from_le_bytes(raw);
        let new = update(old);
        bytes.copy_from_slice(&new.to_le_bytes()[..len]);
        self.progress += u64::from(new != old);
        // What this atomic sees, by acquiring or until a fence; and what others will see of this lane.
        if let Some(seen) = self.releases.get(&address).cloned() {
            if matches!(order, Order::Acquire | Order::AcqRel) {
                self.lane().clock.view.join(&seen);
            } else {
                self.lane().acquired.join(&seen);
            }
        }
        if how == Use::AtomicWrite {
            let n_lanes = self.block().lanes.len();
            let released = match order {
                Order::Release | Order::AcqRel => Some(self.lane().clock.release(n_lanes)),
                Order::Relaxed | Order::Acquire => self.lane().fenced.clone(),
            };
            if let Some(released) = released {
                self.releases.entry(address).or_default().join(&released);
            }
        }
        Ok(old)
    }

    /// A fence: what relaxed atomics saw counts from here on, and later relaxed atomics release what was done before.
    pub(super) fn fence(&mut self) {
        let n_lanes = self.block().lanes.len();
        let lane = self.lane();
        let acquired = core::mem::take(&mut lane.acquired);
        lane.clock.view.join(&acquired);
        lane.fenced = Some(lane.clock.release(n_lanes));
    }

    /// This lane's writes so far are seen by the async proxy, once a barrier orders them.
    pub(super) fn async_proxy_fence(&mut self) {
        let lane = self.lane();
        lane.proxy_fenced = lane.clock.tick();
    }

    /// Checks and records a read of the block's shared memory by the async proxy; gives the offset.
    pub(super) fn async_proxy_read(&mut self, address: u32, len: usize) -> Result<usize, Refusal> {
        let start = self.shared_access(address, len, Use::Read)?;
        let block = self.block();
        let unfenced = block.shared.last_writes(start, len).find(|(_, write)| {
            !write.is_in_async_proxy() && write.clock() > block.lanes[write.lane() as usize].proxy_fenced
        });
        match unfenced {
            None => Ok(start),
            Some((byte, write)) => {
                let detail = format!(
                    "reads byte {byte} of shared memory in the async proxy; lane {} wrote it and no proxy fence came after",
                    write.lane()
                );
                Err((FaultKind::Race, detail))
            }
        }
    }

    /// Checks an asynchronous copy from global memory and counts it as in flight.
    pub(super) fn start_copy(
        &mut self,
        destination: u32,
        source: u64,
        bytes: u32,
        how: Use,
        caller: &'static Location<'static>,
    ) -> Result<InFlight, Refusal> {
        let len = bytes as usize;
        // A copy of 8 bytes is one lane's.
        let unit = if len == 8 { 8 } else { 16 };
        if len == 0
            || !len.is_multiple_of(unit)
            || !destination.is_multiple_of(unit as u32)
            || !source.is_multiple_of(unit as u64)
        {
            let detail = format!(
                "a copy of {len} bytes from {source:#x} to shared byte {destination}: all must be multiples of {unit}"
            );
            return Err((FaultKind::Misaligned, detail));
        }
        for at in (0..len).step_by(unit) {
            self.global_access(source + at as u64, unit, Use::Read, Access::Plain, caller)?;
            self.shared_access(destination + at as u32, unit, how)?;
        }
        let copy = InFlight {
            destination,
            source: Source::Global(source),
            bytes,
            lane: self.current.1 as u32,
        };
        let block = self.block();
        block.shared.mark_written(destination as usize, len, false);
        block.in_flight.insert(destination, copy);
        Ok(copy)
    }

    /// The data of a copy arrives.
    pub(super) fn finish_copy(&mut self, copy: InFlight) -> Result<(), Refusal> {
        let (start, len) = (copy.destination as usize, copy.bytes as usize);
        let slot = self.current.0;
        let block = &mut self.blocks[slot];
        block.in_flight.remove(&copy.destination);
        let target = &mut block.shared.bytes[start..start + len];
        match copy.source {
            Source::Global(address) => {
                let (id, offset) = self.memory.find(address, len)?;
                target.copy_from_slice(&self.memory.buffers[id].space.bytes[offset..offset + len]);
            }
            Source::Words(words) => target.copy_from_slice(&bytes::<8>(&words)),
        }
        block.shared.mark_written(start, len, true);
        Ok(())
    }
}

/// Words to bytes, little endian.
pub(crate) fn bytes<const N: usize>(words: &[u32]) -> [u8; N] {
    core::array::from_fn(|i| words[i / 4].to_le_bytes()[i % 4])
}
