//! Large blocks of memory: zeroed, aligned, and weights on huge pages where the system has them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::nodes::Nodes;
use crate::{Error, Result};

/// Alignment of every buffer: a cache line, and the widest SIMD load.
const ALIGN: usize = 64;

/// Types for which every bit pattern is a value, zero included.
///
/// # Safety
/// The type must have no invalid bit pattern, no padding and nothing to drop.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: every bit pattern is an integer or a float.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: an array of plain values is plain.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// How a buffer is paged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Huge pages where the system allows: for what is streamed in full, like weights.
    Huge,
    /// Pages that cost nothing until they are touched: for what may never be filled, like a KV cache.
    Lazy,
}

/// A zeroed slice on the heap that does not grow; unlike `Vec` it is 64-byte aligned, its pages are chosen, and running
/// out of memory is an error.
#[derive(Debug)]
pub(crate) struct Buffer<T: Plain> {
    data: NonNull<T>,
    len: usize,
    block: Block,
}

/// What was asked of the system, and must be given back.
#[derive(Debug)]
enum Block {
    Empty,
    Heap(Layout),
    #[cfg(target_os = "linux")]
    Map {
        base: NonNull<libc::c_void>,
        bytes: usize,
    },
}

// SAFETY: a buffer owns its memory, and `T` is Send and Sync (a bound of `Plain`).
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros for `what`.
    pub(crate) fn zeroed(what: &'static str, len: usize, pages: Pages) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>());
        let memory = |bytes| Error::Memory { what, bytes };
        let bytes = bytes.ok_or_else(|| memory(usize::MAX))?;
        if bytes == 0 {
            return Ok(Self {
                data: NonNull::dangling(),
                len,
                block: Block::Empty,
            });
        }
        #[cfg(target_os = "linux")]
        if bytes >= linux::HUGE_PAGE {
            let (base, mapped, data) = linux::map(bytes, pages).ok_or_else(|| memory(bytes))?;
            return Ok(Self {
                data: data.cast(),
                len,
                block: Block::Map { base, bytes: mapped },
            });
        }
        let _ = pages;
        let align = ALIGN.max(align_of::<T>());
        let layout = Layout::from_size_align(bytes, align).map_err(|_| memory(bytes))?;
        // SAFETY: `bytes` is not 0, checked above.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| memory(bytes))?;
        Ok(Self {
            data: data.cast(),
            len,
            block: Block::Heap(layout),
        })
    }

    /// Moves the values to other memory, of each of `n_parts` equal runs the share of each node to that node: pages lie where they are first
    /// written. A buffer too small for a mapping of its own stays where it is, and so do all where there is one node.
    pub(crate) fn spread(&mut self, what: &'static str, nodes: &Nodes, n_parts: usize) -> Result<()> {
        if nodes.count() < 2 || !self.is_mapped() {
            return Ok(());
        }
        let mut to = Self::zeroed(what, self.len, Pages::Huge)?;
        let mut parts = Vec::new();
        #[cfg(target_os = "linux")]
        let end = to.as_ptr_range().end.cast();
        let (mut from, mut rest) = (&**self, &mut *to);
        for (node, share) in nodes.shares(self.len, n_parts) {
            let ((from_here, from_later), (here, later)) =
                (from.split_at(share.len()), rest.split_at_mut(share.len()));
            // A huge page would be whole on one node.
            #[cfg(target_os = "linux")]
            linux::keep_small(here.as_ptr().cast(), end);
            parts.push((node, (from_here, here)));
            (from, rest) = (from_later, later);
        }
        nodes.each(parts, |(from, to): (&[T], &mut [T])| to.copy_from_slice(from))?;
        *self = to;
        Ok(())
    }

    /// Whether the pages are this buffer's alone, and untouched until something is written.
    fn is_mapped(&self) -> bool {
        match self.block {
            Block::Empty | Block::Heap(_) => false,
            #[cfg(target_os = "linux")]
            Block::Map { .. } => true,
        }
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `data` is aligned and `len` zeroed or written values follow it; `T` has no invalid bit pattern.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        match self.block {
            Block::Empty => {}
            // SAFETY: `data` came from `alloc_zeroed` with this layout and is not used after this.
            Block::Heap(layout) => unsafe { dealloc(self.data.as_ptr().cast(), layout) },
            #[cfg(target_os = "linux")]
            Block::Map { base, bytes } => linux::unmap(base, bytes),
        }
    }
}

/// Rows of numbers between operations: zeroed, and on huge pages where the system has them, because a product of many rows
/// writes a few columns of each.
#[derive(Debug)]
pub struct Rows(Buffer<f32>);

impl Rows {
    /// `rows` times `columns` zeros for `what`.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn zeroed(what: &'static str, rows: usize, columns: usize) -> Result<Self> {
        let bytes = usize::MAX;
        let len = rows.checked_mul(columns).ok_or(Error::Memory { what, bytes })?;
        Ok(Self(Buffer::zeroed(what, len, Pages::Huge)?))
    }
}

impl Deref for Rows {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Rows {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ptr::NonNull;

    use super::Pages;

    /// Size and alignment of a huge page on x86-64 and (with 4 KB pages) AArch64.
    pub(super) const HUGE_PAGE: usize = 2 << 20;

    /// Maps `bytes` zeros at a multiple of [`HUGE_PAGE`]: the mapping, its size, and the first aligned byte.
    pub(super) fn map(
        bytes: usize,
        pages: Pages,
    ) -> Option<(NonNull<libc::c_void>, usize, NonNull<libc::c_void>)> {
        let mapped = bytes.checked_add(HUGE_PAGE)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the system's choice touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let base = NonNull::new(base)?;
        let skip = base.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `skip` is below `HUGE_PAGE`, and `mapped` is `bytes` plus that.
        let data = unsafe { base.byte_add(skip) };
        if pages == Pages::Huge {
            // A refusal leaves small pages, which are slower and just as right.
            // SAFETY: `data` and the `bytes` after it lie in the mapping made above.
            unsafe { libc::madvise(data.as_ptr(), bytes, libc::MADV_HUGEPAGE) };
        }
        Some((base, mapped, data))
    }

    /// Has what lies around `at` in a mapping, whose data ends at `end`, consist of small pages, unless a huge page begins there anyway.
    pub(super) fn keep_small(at: *const u8, end: *const u8) {
        let before = at.addr() % HUGE_PAGE;
        if before > 0 {
            let page = at.wrapping_sub(before).cast_mut();
            let len = HUGE_PAGE.min(end.addr() - page.addr());
            // A refusal leaves a huge page, which is as right.
            // SAFETY: the advice changes no byte, and the data of a mapping begins at a multiple of `HUGE_PAGE`, so all of this is in it.
            unsafe { libc::madvise(page.cast(), len, libc::MADV_NOHUGEPAGE) };
        }
    }

    /// Gives back a mapping made by [`map`].
    pub(super) fn unmap(base: NonNull<libc::c_void>, bytes: usize) {
        // SAFETY: `map` returned `base` and `bytes`; the only caller is the drop of the buffer that owns them.
        unsafe { libc::munmap(base.as_ptr(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_and_aligned() {
        for len in [0, 1, 63, 4097, 3 << 20] {
            for pages in [Pages::Huge, Pages::Lazy] {
                let mut buffer = Buffer::<u32>::zeroed("test", len, pages).unwrap();
                assert_eq!(buffer.len(), len);
                assert!(buffer.iter().all(|&x| x == 0));
                assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(ALIGN));
                buffer.fill(u32::MAX);
            }
        }
    }

    #[test]
    fn what_is_spread_keeps_its_values() {
        let nodes = Nodes::halves(3);
        for len in [0, 100, (1 << 20) + 17, 3 << 20] {
            for n_parts in [1, 2] {
                let mut buffer = Buffer::<u32>::zeroed("test", len, Pages::Lazy).unwrap();
                (0..).zip(&mut *buffer).for_each(|(i, x)| *x = i);
                let before = buffer.as_ptr();
                buffer.spread("test", &nodes, n_parts).unwrap();
                assert!(buffer.iter().zip(0..).all(|(&x, i)| x == i), "{len} {n_parts}");
                let is_large = cfg!(target_os = "linux") && len > 1000;
                assert_eq!(buffer.as_ptr() != before, is_large, "{len} {n_parts}");
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_had_are_errors() {
        for len in [usize::MAX, usize::MAX / 4, 1 << 55] {
            let error = Buffer::<u32>::zeroed("the test", len, Pages::Lazy).unwrap_err();
            assert!(error.to_string().contains("the test"), "{error}");
        }
    }
}
