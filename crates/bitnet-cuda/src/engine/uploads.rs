//! Small uploads that nobody waits for, through pinned host memory.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Event;
use crate::memory::{DeviceBuffer, SharedWords};
use crate::stream::Stream;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Uploads under way at most; the host waits for the oldest before one more.
const MAX_PENDING: usize = 256;

/// Pinned memory, used from its beginning to its end and then again.
#[derive(Debug)]
pub(super) struct Uploads {
    words: SharedWords,
    /// Where the next upload begins.
    head: usize,
    /// Words that the device may still have to read, from the oldest on, and the mark behind their copy.
    pending: VecDeque<(Range<usize>, Event)>,
    /// Marks to use again.
    events: Vec<Event>,
}

impl Uploads {
    /// Memory for uploads of up to `largest` words.
    pub(super) fn new(gpu: &Gpu, largest: usize) -> Result<Self> {
        Ok(Self {
            words: gpu.alloc_shared(largest.max(1 << 12).saturating_mul(4))?,
            head: 0,
            pending: VecDeque::new(),
            events: Vec::new(),
        })
    }

    /// Copies `parts`, one after the other, to the words of `target` from `start`, after all work given so far. Waits only
    /// until there is room for them.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        target: &DeviceBuffer<u32>,
        start: usize,
        parts: &[&[u32]],
    ) -> Result<()> {
        let len = parts.iter().map(|part| part.len()).sum();
        if len > self.words.len() {
            return Err(Error::Range {
                what: "copying to the GPU",
                start,
                end: start.saturating_add(len),
                len: self.words.len(),
            });
        }
        let place = place(self.head, len, self.words.len());
        let overlaps =
            |(range, _): &(Range<usize>, Event)| range.start < place.end && place.start < range.end;
        while self.pending.len() >= MAX_PENDING || self.pending.iter().any(overlaps) {
            if let Some((_, event)) = self.pending.pop_front() {
                event.wait()?;
                self.events.push(event);
            }
        }
        let source = parts.iter().flat_map(|part| part.iter());
        for (word, &value) in self.words[place.clone()].iter().zip(source) {
            word.store(value, Ordering::Relaxed);
        }
        stream.upload_pinned(target, start, &self.words, place.clone())?;
        let event = match self.events.pop() {
            Some(event) => event,
            None => stream.gpu().event()?,
        };
        stream.record(&event)?;
        self.head = place.end;
        self.pending.push_back((place, event));
        Ok(())
    }
}

/// Where `len` words go that come after `head`: there, or at the beginning.
fn place(head: usize, len: usize, room: usize) -> Range<usize> {
    let start = if head + len <= room { head } else { 0 };
    start..start + len
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn uploads_follow_each_other_and_begin_again() {
        assert_eq!(place(0, 4, 10), 0..4);
        assert_eq!(place(4, 6, 10), 4..10);
        assert_eq!(place(10, 1, 10), 0..1);
        assert_eq!(place(4, 7, 10), 0..7);
        assert_eq!(place(10, 0, 10), 10..10);
    }
}
