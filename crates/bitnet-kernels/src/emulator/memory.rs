//! Checked memory: bytes, which of them were written, and who touched them last.

use super::clock::{Clock, Epoch};
use super::fault::FaultKind;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

/// Why an access is refused.
pub(super) type Refusal = (FaultKind, String);

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
    /// By a bulk copy.
    AsyncWrite,
    AtomicRead,
    AtomicWrite,
}

/// Last accesses of a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Trace {
    write: Epoch,
    /// The last read that is not ordered before the others in `more`.
    read: Epoch,
    /// Head of a list of further reads in [`Space::reads`], 0 for none.
    more: u32,
}

/// Bytes with their history.
pub(super) struct Space {
    pub(super) bytes: Vec<u8>,
    written: Vec<bool>,
    traces: Vec<Trace>,
    /// Nodes of immutable lists: a read and the rest of the list.
    reads: Vec<(Epoch, u32)>,
    /// Whether anything was written since the traces were cleared.
    pub(super) is_touched: bool,
}

impl Space {
    pub(super) fn new(bytes: Vec<u8>, is_written: bool) -> Self {
        let written = vec![is_written; bytes.len()];
        Self {
            bytes,
            written,
            traces: Vec::new(),
            reads: vec![(Epoch::NONE, 0)],
            is_touched: false,
        }
    }

    /// Forgets who touched what: all that came before is ordered before all that comes.
    pub(super) fn clear_traces(&mut self) {
        self.traces = Vec::new();
        self.reads.truncate(1);
        self.is_touched = false;
    }

    /// Marks bytes written, or poisoned.
    pub(super) fn mark_written(&mut self, start: usize, len: usize, is_written: bool) {
        self.written[start..start + len].fill(is_written);
    }

    /// The first byte of the range that nobody wrote.
    pub(super) fn first_unwritten(&self, start: usize, len: usize) -> Option<usize> {
        (start..start + len).find(|&i| !self.written[i])
    }

    /// The last writes of a range that was accessed, each with its first byte.
    pub(super) fn last_writes(&self, start: usize, len: usize) -> impl Iterator<Item = (usize, Epoch)> {
        let writes = (start..start + len).map(|i| (i, self.traces[i].write));
        let mut last = None;
        writes.filter(move |&(_, write)| last.replace(write) != Some(write))
    }

    /// Whether the launch has written a byte of the range.
    pub(super) fn is_written_now(&self, start: usize, len: usize) -> bool {
        self.is_touched
            && self
                .traces
                .get(start..start + len)
                .is_some_and(|t| t.iter().any(|t| t.write != Epoch::NONE))
    }

    /// Whether every read of the list comes before what the lane does now.
    fn is_after_all(&self, (read, more): (Epoch, u32), clock: &Clock) -> bool {
        let mut node = (read, more);
        while node.0 == Epoch::NONE || clock.is_after(node.0) {
            if node.1 == 0 {
                return true;
            }
            node = self.reads[node.1 as usize];
        }
        false
    }

    /// Records an access of `start .. start + len`, which is in bounds, by a lane.
    pub(super) fn access(
        &mut self,
        start: usize,
        len: usize,
        how: Use,
        clock: &Clock,
    ) -> Result<(), Refusal> {
        if self.traces.is_empty() {
            const EMPTY: Trace = Trace {
                write: Epoch::NONE,
                read: Epoch::NONE,
                more: 0,
            };
            self.traces = vec![EMPTY; self.bytes.len()];
        }
        let atomic = matches!(how, Use::AtomicRead | Use::AtomicWrite);
        let now = match how {
            Use::AsyncWrite => clock.epoch(atomic).in_async_proxy(),
            _ => clock.epoch(atomic),
        };
        let conflicts =
            |then: Epoch| then != Epoch::NONE && !(atomic && then.is_atomic()) && !clock.is_after(then);
        let reads = matches!(how, Use::Read | Use::AtomicRead);
        if reads {
            if let Some(i) = self.first_unwritten(start, len) {
                return Err((
                    FaultKind::Unwritten,
                    format!("reads byte {i}, which nobody wrote"),
                ));
            }
        } else {
            self.is_touched = true;
            self.written[start..start + len].fill(true);
        }
        // Bytes of one access mostly have one history: each is looked at once.
        let mut i = start;
        while i < start + len {
            let trace = self.traces[i];
            let same = self.traces[i..start + len]
                .iter()
                .take_while(|&&t| t == trace)
                .count();
            if conflicts(trace.write) {
                let does = if reads { "reads" } else { "writes" };
                return Err(race(does, i, "wrote", trace.write));
            }
            let new = if !reads {
                let mut read = (trace.read, trace.more);
                loop {
                    if conflicts(read.0) {
                        return Err(race("writes", i, "read", read.0));
                    }
                    if read.1 == 0 {
                        break;
                    }
                    read = self.reads[read.1 as usize];
                }
                Trace {
                    write: now,
                    read: Epoch::NONE,
                    more: 0,
                }
            } else if trace.read == now {
                trace
            } else {
                let old = (trace.read, trace.more);
                let more = if self.is_after_all(old, clock) {
                    0
                } else if trace.read.same_lane(now) {
                    trace.more
                } else {
                    self.reads.push(old);
                    (self.reads.len() - 1) as u32
                };
                Trace {
                    read: now,
                    more,
                    ..trace
                }
            };
            self.traces[i..i + same].fill(new);
            i += same;
        }
        Ok(())
    }
}

fn race(does: &str, byte: usize, did: &str, other: Epoch) -> Refusal {
    let (block, lane) = (other.block(), other.lane());
    (
        FaultKind::Race,
        format!("{does} byte {byte}, which block {block}, lane {lane} {did}; nothing orders the two"),
    )
}

/// A global buffer.
pub(super) struct Buffer {
    pub(super) space: Space,
    pub(super) is_constant: bool,
    /// Whether an earlier launch wrote it.
    pub(super) is_produced: bool,
}

/// Global memory: buffers far apart, so that an index past the end of one does not land in the next.
#[derive(Default)]
pub(super) struct GlobalMemory {
    pub(super) buffers: Vec<Buffer>,
}

/// Address of buffer 0; buffer `i` is `i << SPACING` further.
const BASE: u64 = 0x7f00_0000_0000_0000;
const SPACING: u32 = 32;
/// Bytes before a buffer's start that still count as its own address range, so that small negative indices are named.
const MARGIN: u64 = 256;

impl GlobalMemory {
    pub(super) fn add(&mut self, space: Space, is_constant: bool) -> u64 {
        self.buffers.push(Buffer {
            space,
            is_constant,
            is_produced: false,
        });
        BASE + ((self.buffers.len() as u64 - 1) << SPACING) + MARGIN
    }

    /// The buffer and the offset of `len` bytes at `address`.
    pub(super) fn find(&self, address: u64, len: usize) -> Result<(usize, usize), Refusal> {
        let id = (address.wrapping_sub(BASE) >> SPACING) as usize;
        let Some(buffer) = self.buffers.get(id) else {
            let detail = format!("{len} bytes at {address:#x}, which is in no buffer");
            return Err((FaultKind::OutOfBounds, detail));
        };
        let offset = (address & ((1 << SPACING) - 1)) as i64 - MARGIN as i64;
        let size = buffer.space.bytes.len();
        if offset < 0 || offset as usize + len > size {
            let detail = format!("{len} bytes at offset {offset} of buffer {id}, which has {size}");
            return Err((FaultKind::OutOfBounds, detail));
        }
        // What is longer than any lane's access is a bulk copy, which is aligned to 16 bytes whatever its length.
        if len.is_power_of_two() && !(offset as usize).is_multiple_of(len.min(16)) {
            let detail = format!("{len} bytes at offset {offset} of buffer {id}");
            return Err((FaultKind::Misaligned, detail));
        }
        Ok((id, offset as usize))
    }
}
