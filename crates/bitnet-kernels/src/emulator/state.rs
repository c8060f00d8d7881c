//! A launch in progress: resident blocks, their lanes, and what each lane waits for.

use super::clock::{Clock, View};
use super::fault::{Fault, FaultKind};
use super::memory::{GlobalMemory, Space};
use super::wait::{Barrier, ClusterBarrier, Group, InFlight, Mbar};
use core::cell::RefCell;
use core::panic::Location;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

/// Where a lane is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) thread: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) block_dim: [u32; 3],
    pub(crate) grid: [u32; 3],
}

/// What a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ready,
    /// Between two looks at global memory that others may write.
    Polling,
    /// In the named call, until others arrive.
    Waiting(&'static str),
    Done,
}

pub(super) struct Lane {
    pub(super) place: Place,
    pub(super) clock: Clock,
    pub(super) status: Status,
    pub(super) location: Option<&'static Location<'static>>,
    /// What the last warp operation gave this lane.
    pub(super) result: [u32; 4],
    /// The coroutine's way back to the scheduler.
    pub(super) yielder: *const corosensei::Yielder<(), ()>,
    /// Closed groups of `cp.async`, oldest first, and the open one.
    pub(super) copies: VecDeque<Vec<InFlight>>,
    pub(super) open_copies: Vec<InFlight>,
    /// Seen through relaxed loads, effective at the next fence; and released by the last fence.
    pub(super) acquired: Rc<View>,
    pub(super) fenced: Option<Rc<View>>,
    /// The lane's clock at its last fence for the async proxy: earlier writes are seen there.
    pub(super) proxy_fenced: u32,
    /// A dependent access made so far, for `grid_dependency_wait`.
    pub(super) early: Option<(String, &'static Location<'static>)>,
    /// How often the lane has arrived, and has waited, at the cluster's barrier.
    pub(super) cluster_arrivals: u32,
    pub(super) cluster_waits: u32,
}

pub(super) struct Block {
    pub(super) number: u32,
    pub(super) shared: Space,
    pub(super) lanes: Vec<Lane>,
    pub(super) n_done: usize,
    /// Warp operations under way, by warp.
    pub(super) groups: Vec<Vec<Group>>,
    pub(super) barriers: [Barrier; 16],
    pub(super) mbarriers: BTreeMap<u32, Mbar>,
    /// Copies that have not arrived, by destination; no two overlap.
    pub(super) in_flight: BTreeMap<u32, InFlight>,
    /// In use in the first block of a cluster.
    pub(super) cluster_barrier: ClusterBarrier,
}

pub(super) struct State {
    pub(super) kernel: &'static str,
    pub(super) memory: GlobalMemory,
    pub(super) blocks: Vec<Block>,
    /// Blocks of a cluster: consecutive ones.
    pub(super) cluster_blocks: usize,
    pub(super) current: (usize, usize),
    pub(super) ready: VecDeque<(usize, usize)>,
    pub(super) polling: Vec<(usize, usize)>,
    /// Changes of memory and ends of lanes so far: spinning is hopeless while this stands still.
    pub(super) progress: u64,
    pub(super) releases: BTreeMap<u64, Rc<View>>,
    pub(super) fault: Option<Fault>,
}

std::thread_local! {
    /// The launch that runs on this thread.
    pub(super) static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// Calls `f` with the launch on this thread.
pub(super) fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(|state| {
        f(state
            .as_mut()
            .expect("device intrinsics run inside Emulator::launch"))
    })
}

impl State {
    pub(super) fn block(&mut self) -> &mut Block {
        &mut self.blocks[self.current.0]
    }

    pub(super) fn lane(&mut self) -> &mut Lane {
        &mut self.blocks[self.current.0].lanes[self.current.1]
    }

    /// Lets lanes of the current block run again.
    pub(super) fn wake(&mut self, lanes: impl IntoIterator<Item = u32>) {
        self.wake_in(self.current.0, lanes);
    }

    /// Lets lanes of a block run again.
    pub(super) fn wake_in(&mut self, slot: usize, lanes: impl IntoIterator<Item = u32>) {
        for lane in lanes {
            let entry = &mut self.blocks[slot].lanes[lane as usize];
            if matches!(entry.status, Status::Waiting(_)) {
                entry.status = Status::Ready;
                self.ready.push_back((slot, lane as usize));
            }
        }
    }

    /// Records a fault of the current lane.
    pub(super) fn fail(
        &mut self,
        kind: FaultKind,
        location: Option<&'static Location<'static>>,
        detail: String,
    ) {
        let (slot, lane) = self.current;
        self.fail_at(slot, lane, kind, location, detail);
    }

    pub(super) fn fail_at(
        &mut self,
        slot: usize,
        lane: usize,
        kind: FaultKind,
        location: Option<&'static Location<'static>>,
        detail: String,
    ) {
        self.fault.get_or_insert(Fault {
            kernel: self.kernel,
            kind,
            block: self.blocks[slot].number,
            lane: lane as u32,
            location,
            detail,
        });
    }
}

impl Block {
    pub(super) fn new(number: u32, grid: [u32; 3], block_dim: [u32; 3], shared_bytes: u32) -> Self {
        let n_lanes = block_dim.iter().product::<u32>();
        let split = |i: u32, dim: [u32; 3]| [i % dim[0], i / dim[0] % dim[1], i / dim[0] / dim[1]];
        let lane = |lane| Lane {
            place: Place {
                thread: split(lane, block_dim),
                block: split(number, grid),
                block_dim,
                grid,
            },
            clock: Clock::new(number, lane),
            status: Status::Ready,
            location: None,
            result: [0; 4],
            yielder: core::ptr::null(),
            copies: VecDeque::new(),
            open_copies: Vec::new(),
            acquired: Rc::default(),
            fenced: None,
            proxy_fenced: 0,
            early: None,
            cluster_arrivals: 0,
            cluster_waits: 0,
        };
        Self {
            number,
            // A pattern that is no plausible value, so that a test which misses the report still sees garbage.
            shared: Space::new(std::vec![0xcd; shared_bytes as usize], false),
            lanes: (0..n_lanes).map(lane).collect(),
            n_done: 0,
            groups: (0..n_lanes.div_ceil(32)).map(|_| Vec::new()).collect(),
            barriers: Default::default(),
            mbarriers: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            cluster_barrier: ClusterBarrier::default(),
        }
    }
}
