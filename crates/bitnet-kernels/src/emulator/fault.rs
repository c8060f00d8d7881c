//! What a kernel did wrong.

use core::fmt;
use core::panic::Location;
use std::string::String;

/// The kinds of fault the emulator reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An access outside every buffer, or outside the block's shared memory.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A read of shared memory, or of a poisoned global buffer, that nobody wrote.
    Unwritten,
    /// Two lanes at one byte, one of them writing, with nothing that orders them.
    Race,
    /// A store to a read-only buffer, or a constant load of what this launch writes.
    ReadOnly,
    /// A barrier, shuffle, vote or matrix product that not all of its lanes reach.
    Divergence,
    /// Every lane that is left waits for another.
    Deadlock,
    /// An access to memory that an asynchronous copy has not been waited for.
    InFlight,
    /// An access before `grid_dependency_wait` to what an earlier kernel may still write or read.
    Dependency,
    /// A store into the shared memory of a block of the cluster that may not have started or has ended, or that may arrive
    /// after the block's end.
    Cluster,
    /// A call whose arguments are invalid: counts, masks, an mbarrier that was never initialized.
    Misuse,
    /// The kernel's Rust code panicked.
    Panic,
}

/// A fault, where and by whom.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kernel.
    pub kernel: &'static str,
    /// What kind.
    pub kind: FaultKind,
    /// Number of the block in the grid, x fastest.
    pub block: u32,
    /// Number of the lane in the block, x fastest.
    pub lane: u32,
    /// The line that called the intrinsic, where there is one.
    pub location: Option<&'static Location<'static>>,
    /// Address, size and the other party.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            kind,
            block,
            lane,
            detail,
            ..
        } = self;
        write!(f, "{kernel}: {kind:?} at block {block}, lane {lane}")?;
        if let Some(location) = self.location {
            write!(f, ", {location}")?;
        }
        write!(f, ": {detail}")
    }
}

impl core::error::Error for Fault {}
