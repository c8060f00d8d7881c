//! Runs kernels on the host, lane by lane, and reports what the hardware would silently get wrong.
//!
//! Every lane is a stackful coroutine that runs until it has to wait for others: at a barrier, a warp operation, an
//! mbarrier, or between two looks at a flag in global memory. A seed chooses who runs next, so a kernel whose result
//! changes with the seed is wrong. Accesses are checked as [`FaultKind`] lists; asynchronous copies arrive as late as
//! their waits allow.
//!
//! What it does not model: time, caches, partial warps that reconverge, weak memory beyond races (an unordered read is a
//! fault here, not an old value), and the bits of `exp2_approx`.

mod fault;

mod clock;

mod memory;

mod wait;

mod state;

mod access;
mod cluster;
mod sync;

pub(crate) mod products;

pub(crate) mod lane;

pub(crate) mod warpgroup;

#[cfg(test)]
mod tests;

pub use fault::{Fault, FaultKind};

use crate::raw::Raw;
use crate::{Global, Kernel, Launch};
use core::cell::RefCell;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use memory::{GlobalMemory, Space};
use state::{Block, STATE, State, Status, with};
use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::panic::AssertUnwindSafe;
use std::string::String;
use std::vec::Vec;

/// Bytes of a lane's stack: kernels keep a few registers' worth, but debug builds keep all of them at once.
const STACK_BYTES: usize = 128 << 10;

std::thread_local! {
    /// Stacks of lanes that have ended. Mapping and unmapping them takes longer than most launches.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// Rounds of polling without any change of memory after which spinning counts as hopeless.
const HOPELESS_ROUNDS: u32 = 10_000;

/// A device: global memory and a seed.
pub struct Emulator {
    seed: u64,
    memory: GlobalMemory,
}

/// Which blocks are on the device at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Residency {
    OneByOne,
    /// Clusters of this many blocks, one after another.
    Clusters(u32),
    All,
}

impl Emulator {
    /// A device without buffers. Seed 0 runs lanes in order; any other seed shuffles them in its own way.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            memory: GlobalMemory::default(),
        }
    }

    /// A buffer with `data`, 256-byte aligned.
    pub fn buffer<T: Raw>(&mut self, data: &[T]) -> Global<T> {
        Global::new(self.memory.add(Space::new(to_bytes(data), true), false))
    }

    /// A buffer with `data` that kernels must not write; accesses to it are the cheapest to check.
    pub fn constant<T: Raw>(&mut self, data: &[T]) -> Global<T> {
        Global::new(self.memory.add(Space::new(to_bytes(data), true), true))
    }

    /// A buffer of `len` elements that must be written before they are read.
    pub fn uninit<T: Raw>(&mut self, len: usize) -> Global<T> {
        let bytes = std::vec![0xcd; len * size_of::<T>()];
        Global::new(self.memory.add(Space::new(bytes, false), false))
    }

    /// Every element of the buffer that starts at `buffer`.
    ///
    /// # Errors
    /// When an element was never written.
    pub fn read<T: Raw>(&self, buffer: Global<T>) -> Result<Vec<T>, Fault> {
        let host_fault = |(kind, detail)| Fault {
            kernel: "host",
            kind,
            block: 0,
            lane: 0,
            location: None,
            detail,
        };
        let (id, offset) = self.memory.find(buffer.address(), 0).map_err(host_fault)?;
        let space = &self.memory.buffers[id].space;
        if let Some(byte) = space.first_unwritten(offset, space.bytes.len() - offset) {
            let detail = format!("byte {byte} of buffer {id}, which no kernel wrote");
            return Err(host_fault((FaultKind::Unwritten, detail)));
        }
        let size = size_of::<T>();
        Ok(space.bytes[offset..]
            .chunks_exact(size)
            .map(|chunk| {
                let mut raw = [0; 8];
                raw[..size].copy_from_slice(chunk);
                T::from_raw(u64::from_le_bytes(raw))
            })
            .collect())
    }

    /// Runs a kernel, its blocks one after another.
    ///
    /// # Errors
    /// The first fault; buffers then hold what was written until then.
    pub fn launch<K: Kernel + 'static>(&mut self, launch: &Launch, params: &K) -> Result<(), Fault> {
        self.run(launch, params, Residency::OneByOne)
    }

    /// Runs a kernel with all its blocks on the device at once, for kernels whose blocks wait for each other.
    ///
    /// # Errors
    /// As for [`Emulator::launch`].
    pub fn launch_cooperative<K: Kernel + 'static>(
        &mut self,
        launch: &Launch,
        params: &K,
    ) -> Result<(), Fault> {
        self.run(launch, params, Residency::All)
    }

    /// Runs a kernel in clusters of `blocks` blocks along x, one cluster after another.
    ///
    /// # Errors
    /// As for [`Emulator::launch`].
    pub fn launch_clusters<K: Kernel + 'static>(
        &mut self,
        launch: &Launch,
        params: &K,
        blocks: u32,
    ) -> Result<(), Fault> {
        self.run(launch, params, Residency::Clusters(blocks))
    }

    fn run<K: Kernel + 'static>(
        &mut self,
        launch: &Launch,
        params: &K,
        residency: Residency,
    ) -> Result<(), Fault> {
        let crate::KernelInfo { name, block, .. } = K::INFO;
        let misuse = |detail| {
            Err(Fault {
                kernel: name,
                kind: FaultKind::Misuse,
                block: 0,
                lane: 0,
                location: None,
                detail,
            })
        };
        if (0..3).any(|axis| launch.block[axis] == 0 || launch.block[axis] > block[axis]) {
            return misuse(format!(
                "launched with {:?} lanes a block; it has at most {block:?}",
                launch.block
            ));
        }
        let cluster_blocks = match residency {
            Residency::Clusters(blocks) => blocks,
            Residency::OneByOne | Residency::All => 1,
        };
        if cluster_blocks == 0 || !launch.grid[0].is_multiple_of(cluster_blocks) {
            return misuse(format!(
                "clusters of {cluster_blocks} blocks in a grid of {}",
                launch.grid[0]
            ));
        }
        let state = State {
            kernel: name,
            memory: core::mem::take(&mut self.memory),
            blocks: Vec::new(),
            cluster_blocks: cluster_blocks as usize,
            current: (0, 0),
            ready: VecDeque::new(),
            polling: Vec::new(),
            progress: 0,
            releases: BTreeMap::new(),
            fault: None,
        };
        STATE.set(Some(state));
        let n_blocks = launch.grid.iter().product::<u32>();
        let mut scheduler = Scheduler {
            random: self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            lanes: Vec::new(),
            residency,
        };
        let chunk = match residency {
            Residency::OneByOne | Residency::Clusters(_) => cluster_blocks,
            Residency::All => n_blocks.max(1),
        };
        for first in (0..n_blocks).step_by(chunk as usize) {
            if !scheduler.run_blocks(launch, params, first..(first + chunk).min(n_blocks)) {
                break;
            }
        }
        scheduler.drop_lanes();
        let mut state = STATE.take().expect("set above, and only this function takes it");
        for buffer in &mut state.memory.buffers {
            buffer.is_produced |= buffer.space.is_touched;
            buffer.space.clear_traces();
        }
        self.memory = state.memory;
        state.fault.map_or(Ok(()), Err)
    }
}

/// Runs the lanes of resident blocks in an order that the seed chooses.
struct Scheduler {
    random: u64,
    /// Coroutines by block and lane; done ones are gone.
    lanes: Vec<Vec<Option<Coroutine<(), (), ()>>>>,
    residency: Residency,
}

impl Scheduler {
    /// Runs blocks to their end; false after a fault.
    fn run_blocks<K: Kernel + 'static>(
        &mut self,
        launch: &Launch,
        params: &K,
        numbers: core::ops::Range<u32>,
    ) -> bool {
        let block_dim = launch.block;
        let n_lanes = block_dim.iter().product::<u32>() as usize;
        with(|state| {
            state.blocks = numbers
                .clone()
                .map(|number| Block::new(number, launch.grid, block_dim, launch.shared_bytes))
                .collect();
            state.ready = (0..numbers.len())
                .flat_map(|slot| (0..n_lanes).map(move |lane| (slot, lane)))
                .collect();
            state.polling.clear();
        });
        self.lanes = numbers
            .map(|_| (0..n_lanes).map(|_| Some(Self::spawn(*params))).collect())
            .collect();
        let mut idle_rounds = 0;
        let mut progress = 0;
        loop {
            while let Some(next) = self.pick() {
                self.resume(next);
                if with(|state| state.fault.is_some()) {
                    return false;
                }
            }
            let spins = with(|state| {
                idle_rounds = if state.progress == progress {
                    idle_rounds + 1
                } else {
                    0
                };
                progress = state.progress;
                let polling = core::mem::take(&mut state.polling);
                let spins = !polling.is_empty();
                state.ready.extend(polling);
                spins
            });
            if !spins || idle_rounds > HOPELESS_ROUNDS {
                return with(|state| !report_stall(state, self.residency));
            }
        }
    }

    /// A coroutine that runs the kernel's body for whichever lane it is resumed as.
    fn spawn<K: Kernel + 'static>(params: K) -> Coroutine<(), (), ()> {
        let stack = STACKS.with_borrow_mut(Vec::pop).unwrap_or_else(|| {
            DefaultStack::new(STACK_BYTES).expect("the host has address space for a lane's stack")
        });
        Coroutine::with_stack(stack, move |yielder, ()| {
            with(|state| state.lane().yielder = yielder);
            // SAFETY: this is a lane of the emulator.
            let body = AssertUnwindSafe(|| unsafe { params.run() });
            if let Err(panic) = std::panic::catch_unwind(body) {
                let text = panic.downcast_ref::<&str>().map(|s| String::from(*s));
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                with(|state| state.fail(FaultKind::Panic, None, text.unwrap_or_default()));
            }
        })
    }

    /// The lane that runs next.
    fn pick(&mut self) -> Option<(usize, usize)> {
        let random = &mut self.random;
        with(|state| {
            if *random != 0 && !state.ready.is_empty() {
                // xorshift64: any nonzero seed visits every state.
                *random ^= *random << 13;
                *random ^= *random >> 7;
                *random ^= *random << 17;
                let i = (*random % state.ready.len() as u64) as usize;
                state.ready.swap(0, i);
            }
            state.ready.pop_front()
        })
    }

    fn resume(&mut self, (slot, lane): (usize, usize)) {
        with(|state| {
            state.current = (slot, lane);
            state.lane().status = Status::Ready;
        });
        let entry = &mut self.lanes[slot][lane];
        let Some(mut coroutine) = entry.take() else {
            return;
        };
        match coroutine.resume(()) {
            CoroutineResult::Yield(()) => {
                *entry = Some(coroutine);
                with(|state| {
                    if state.lane().status == Status::Polling {
                        state.polling.push((slot, lane));
                    }
                });
            }
            CoroutineResult::Return(()) => {
                STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
                with(State::leave);
            }
        }
    }

    /// Ends lanes that a fault left in the middle.
    fn drop_lanes(&mut self) {
        for coroutine in self.lanes.iter_mut().flatten().flatten() {
            // SAFETY: kernel bodies and the intrinsics they call hold only `Copy` values across a switch, so nothing on
            // the lane's stack needs to be dropped.
            unsafe { coroutine.force_reset() };
        }
    }
}

/// When nobody can run: a fault if a lane is left; says whether there was one.
fn report_stall(state: &mut State, residency: Residency) -> bool {
    let lanes = || {
        let blocks = state.blocks.iter().enumerate();
        blocks.flat_map(|(slot, block)| {
            block
                .lanes
                .iter()
                .enumerate()
                .map(move |(lane, l)| (slot, lane, l))
        })
    };
    let n_left = lanes().filter(|(_, _, l)| l.status != Status::Done).count();
    // The lane whose wait is most likely the cause: those at barriers wait for the others.
    let rank = |status: Status| match status {
        Status::Done => 3,
        Status::Waiting("a barrier") => 2,
        Status::Waiting(_) => 1,
        Status::Ready | Status::Polling => 0,
    };
    let Some((slot, lane, entry)) = lanes()
        .filter(|(_, _, l)| l.status != Status::Done)
        .min_by_key(|(_, _, l)| rank(l.status))
    else {
        return false;
    };
    let (kind, detail) = match entry.status {
        Status::Waiting("Mbarrier::wait") => {
            (FaultKind::Deadlock, "waits for an mbarrier phase that never ends")
        }
        Status::Waiting(_) => (FaultKind::Divergence, "waits for lanes that never come"),
        _ if residency == Residency::OneByOne => (
            FaultKind::Deadlock,
            "spins on memory that nobody changes; blocks that wait for each other need launch_cooperative",
        ),
        _ => (FaultKind::Deadlock, "spins on memory that nobody changes"),
    };
    let what = match entry.status {
        Status::Waiting(name) => name,
        _ => "an atomic load",
    };
    let detail = format!("in {what}: {detail} ({n_left} lanes are left)");
    let location = entry.location;
    state.fail_at(slot, lane, kind, location, detail);
    true
}

fn to_bytes<T: Raw>(data: &[T]) -> Vec<u8> {
    data.iter()
        .flat_map(|v| v.to_raw().to_le_bytes().into_iter().take(size_of::<T>()))
        .collect()
}
