//! Which accesses are ordered: vector clocks over the lanes of all blocks.
//!
//! Lane clocks count the lane's releases. A [`View`] says how far its holder has seen every other lane; barriers join the
//! views of their lanes. Views share their parts, since after a barrier all lanes of a block have the same one.

use core::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

/// One access: block, lane, the lane's clock, whether it was atomic and in the async proxy, in one word; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch(u64);

impl Epoch {
    pub(super) const NONE: Self = Self(0);
    const ATOMIC: u64 = 1 << 62;
    const ASYNC: u64 = 1 << 63;

    pub(super) fn new(block: u32, lane: u32, clock: u32, atomic: bool) -> Self {
        let flag = if atomic { Self::ATOMIC } else { 0 };
        Self(flag | u64::from(block) << 42 | u64::from(lane) << 32 | u64::from(clock))
    }

    pub(super) fn block(self) -> u32 {
        (self.0 >> 42 & 0xf_ffff) as u32
    }

    pub(super) fn lane(self) -> u32 {
        (self.0 >> 32 & 0x3ff) as u32
    }

    pub(super) fn clock(self) -> u32 {
        self.0 as u32
    }

    /// The same access, made in the async proxy.
    pub(super) fn in_async_proxy(self) -> Self {
        Self(self.0 | Self::ASYNC)
    }

    pub(super) fn is_in_async_proxy(self) -> bool {
        self.0 & Self::ASYNC != 0
    }

    pub(super) fn is_atomic(self) -> bool {
        self.0 & Self::ATOMIC != 0
    }

    pub(super) fn same_lane(self, other: Self) -> bool {
        (self.0 ^ other.0) >> 32 & !((Self::ATOMIC | Self::ASYNC) >> 32) == 0
    }
}

/// What has been seen: for each block, each lane's clock.
#[derive(Clone, Debug, Default)]
pub(super) struct View(BTreeMap<u32, Rc<[u32]>>);

impl View {
    /// Whether the access `epoch` comes before whatever the holder does next.
    pub(super) fn has_seen(&self, epoch: Epoch) -> bool {
        self.0
            .get(&epoch.block())
            .is_some_and(|lanes| lanes[epoch.lane() as usize] >= epoch.clock())
    }

    /// Sees all that `other` has seen.
    pub(super) fn join(self: &mut Rc<Self>, other: &Rc<Self>) {
        if Rc::ptr_eq(self, other) {
            return;
        }
        for (block, theirs) in &other.0 {
            let joined = match self.0.get(block) {
                Some(ours) if Rc::ptr_eq(ours, theirs) => continue,
                Some(ours) if ours.iter().zip(&**theirs).all(|(a, b)| a >= b) => continue,
                Some(ours) => ours.iter().zip(&**theirs).map(|(&a, &b)| a.max(b)).collect(),
                None => theirs.clone(),
            };
            Rc::make_mut(self).0.insert(*block, joined);
        }
    }
}

/// A lane's own clock and what it has seen.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    block: u32,
    lane: u32,
    now: Cell<u32>,
    pub(super) view: Rc<View>,
}

impl Clock {
    pub(super) fn new(block: u32, lane: u32) -> Self {
        Self {
            block,
            lane,
            now: Cell::new(1),
            view: Rc::default(),
        }
    }

    /// The epoch of an access made now.
    pub(super) fn epoch(&self, atomic: bool) -> Epoch {
        Epoch::new(self.block, self.lane, self.now.get(), atomic)
    }

    /// Whether `epoch` comes before what this lane does now.
    pub(super) fn is_after(&self, epoch: Epoch) -> bool {
        (epoch.block() == self.block && epoch.lane() == self.lane) || self.view.has_seen(epoch)
    }

    /// Moves on; gives the time of everything so far.
    pub(super) fn tick(&self) -> u32 {
        self.now.replace(self.now.get() + 1)
    }

    /// What this lane hands over when it releases: all it has seen and done; its clock moves on.
    pub(super) fn release(&self, n_lanes: usize) -> Rc<View> {
        release_all(core::iter::once(self), n_lanes)
    }
}

/// The joint release of several lanes of one block.
pub(super) fn release_all<'a>(lanes: impl Iterator<Item = &'a Clock>, n_lanes: usize) -> Rc<View> {
    let mut view: Option<Rc<View>> = None;
    let mut own: Vec<(u32, u32, u32)> = Vec::new();
    for clock in lanes {
        match &mut view {
            None => view = Some(clock.view.clone()),
            Some(view) => view.join(&clock.view),
        }
        own.push((clock.block, clock.lane, clock.now.get()));
        clock.now.set(clock.now.get() + 1);
    }
    let mut view = view.unwrap_or_default();
    if let Some(&(block, ..)) = own.first() {
        let mut lanes = match view.0.get(&block) {
            Some(lanes) => lanes.to_vec(),
            None => std::vec![0; n_lanes],
        };
        for (_, lane, now) in own {
            lanes[lane as usize] = now;
        }
        Rc::make_mut(&mut view).0.insert(block, lanes.into());
    }
    view
}
