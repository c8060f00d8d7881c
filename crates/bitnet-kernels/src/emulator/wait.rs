//! What lanes wait for: copies under way, barriers, operations of a warp, mbarriers.

use super::clock::{Epoch, View};
use core::panic::Location;
use std::boxed::Box;
use std::rc::Rc;
use std::vec::Vec;

/// Where a lane called what it waits in.
pub(super) type Caller = &'static Location<'static>;

/// What an asynchronous copy brings.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The bytes at an address of global memory, as they are when it arrives.
    Global(u64),
    /// The operands of a store into another block's shared memory.
    Words([u32; 2]),
}

/// An asynchronous copy that has not been waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) destination: u32,
    pub(super) source: Source,
    pub(super) bytes: u32,
    pub(super) lane: u32,
}

/// A hardware barrier of a block.
#[derive(Default)]
pub(super) struct Barrier {
    /// Lanes of the phase under way, and whether they wait.
    pub(super) arrived: Vec<(u32, bool)>,
    /// The first lane of each warp to arrive, and from which line.
    pub(super) lines: [Option<(u32, Caller)>; 32],
    pub(super) expected: u32,
    /// Released by those who arrived without waiting.
    pub(super) released: Rc<View>,
}

/// A warp operation that waits for lanes.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) mask: u32,
    pub(super) arrived: u32,
    pub(super) data: Box<[[u32; 10]; 32]>,
}

/// An mbarrier object.
pub(super) struct Mbar {
    pub(super) arrivals: u32,
    pub(super) pending: u32,
    /// Bytes announced and not yet arrived.
    pub(super) bytes: i64,
    pub(super) phase: u32,
    /// Released by the arrivals of the phase under way, and by those of the last one.
    pub(super) gathering: Rc<View>,
    pub(super) published: Rc<View>,
    pub(super) copies: Vec<InFlight>,
    pub(super) waiting: Vec<u32>,
    pub(super) initialized: Epoch,
    /// How often its initializer had arrived at the cluster's barrier when it fenced the initialization: whoever has waited
    /// there more often comes after it.
    pub(super) fenced: Option<u32>,
}

impl Mbar {
    /// Counts a copy for the phase under way, with what its issuer has seen and done; gives the lanes that wait.
    pub(super) fn receive(&mut self, copy: InFlight, view: &Rc<View>) -> Vec<u32> {
        self.gathering.join(view);
        self.copies.push(copy);
        core::mem::take(&mut self.waiting)
    }
}

/// The barrier of a cluster.
#[derive(Default)]
pub(super) struct ClusterBarrier {
    /// Phases that have ended.
    pub(super) phase: u32,
    pub(super) n_arrived: usize,
    /// Block and lane of those who wait.
    pub(super) waiting: Vec<(usize, u32)>,
}

/// What the calling lane does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Wait,
}
