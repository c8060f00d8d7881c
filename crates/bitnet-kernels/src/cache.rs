//! The cache of keys and values, in pages of [`PAGE`] positions, and copies of pages.
//!
//! A layer's cache is two arrays of bfloat16, made for the fragments of the tensor cores: keys as (page, kv head, position
//! in the page, dim), values as (page, kv head, dim, position in the page), so that consecutive positions of one dimension
//! lie together. `dim` is the head's dimension padded with zeros to [`padded_head_dim`].
//!
//! A sequence's positions `64 i ..` lie in the page that entry i of its row of a *table* names. Entries past its last position
//! may hold anything that is a page. Nothing else says where a key lies, so sequences may share pages, and their pages
//! may lie anywhere.

use crate::{Global, Launch};

/// Positions of a page, and keys of one step of attention.
pub const PAGE: u32 = 64;

/// A flag of a table's entry: the page is read, and the token's own key and value are not stored. So do rows of a batch that
/// stand in for sequences which are not there.
pub const READ_ONLY: u32 = 1 << 31;

/// Threads of a block of [`CopyPages`].
const THREADS: u32 = 256;
/// Words that a thread of [`CopyPages`] moves.
const WORDS: u32 = 4;

/// The dimensions that a head occupies in the cache: 32, 64, 128 or 256; none where a head is too wide, or not a multiple
/// of 4, which the kernels' vector loads need.
#[must_use]
pub const fn padded_head_dim(head_dim: u32) -> Option<u32> {
    match head_dim {
        0 => None,
        _ if !head_dim.is_multiple_of(4) => None,
        1..=32 => Some(32),
        33..=64 => Some(64),
        65..=128 => Some(128),
        129..=256 => Some(256),
        _ => None,
    }
}

/// The bfloat16 elements of the keys (and again of the values) of `pages` pages of a layer; saturates.
#[must_use]
pub const fn cache_len(pages: usize, n_kv_heads: usize, padded_head_dim: usize) -> usize {
    pages
        .saturating_mul(n_kv_heads)
        .saturating_mul(PAGE as usize * padded_head_dim)
}

kernel! {
    /// Copies whole pages in every layer: what a sequence does before it writes to a page that it shares.
    ///
    /// - Shapes: `pairs` (n_pairs, 2): source, target; `k`, `v` (n_layers, n_pages, page_words).
    /// - Launch: [`CopyPages::launch`]; a block owns 1024 words of a page of one layer, of keys or of values.
    /// - Moves: both arrays of every page once in and once out. Bound: memory.
    ///
    /// # Safety
    /// Lengths as above; every page below `n_pages`; no target is another pair's source or target; `k` and `v` 16-byte
    /// aligned; `page_words` a multiple of 1024.
    copy_pages, block = [THREADS, 1, 1], body = device::copy_pages;
    pub struct CopyPages {
        /// Pages to copy from and to.
        pub pairs: Global<u32>,
        /// Keys of all layers, two dimensions a word.
        pub k: Global<u32>,
        /// Values of all layers, two positions a word.
        pub v: Global<u32>,
        /// Pairs.
        pub n_pairs: u32,
        /// Pages of a layer.
        pub n_pages: u32,
        /// Words of a page's keys, and of its values.
        pub page_words: u32,
        /// Layers.
        pub n_layers: u32,
    }
}

impl CopyPages {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [
                self.page_words / (THREADS * WORDS),
                2 * self.n_layers,
                self.n_pairs,
            ],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
pub(crate) mod device {
    use super::{CopyPages, PAGE, READ_ONLY, THREADS, WORDS};
    use crate::intrinsics::*;

    /// Where keys and values of one page and kv head lie in a cache.
    #[derive(Clone, Copy)]
    pub(crate) struct Page {
        /// Element of the first key and of the first value.
        base: usize,
        /// Dimensions of a head in the cache.
        padded: u32,
    }

    impl Page {
        /// The page that a table's `entry` names.
        #[inline(always)]
        pub(crate) fn new(entry: u32, n_kv_heads: u32, kv_head: u32, padded: u32) -> Self {
            let head = (entry & !READ_ONLY) as usize * n_kv_heads as usize + kv_head as usize;
            Self {
                base: head * (PAGE * padded) as usize,
                padded,
            }
        }

        /// Element of dimension 0 of the key at position `place` of the page.
        #[inline(always)]
        pub(crate) fn key(self, place: u32) -> usize {
            self.base + (place * self.padded) as usize
        }

        /// Element of dimension `dim` of the value at position `place` of the page.
        #[inline(always)]
        pub(crate) fn value(self, place: u32, dim: u32) -> usize {
            self.base + (dim * PAGE + place) as usize
        }
    }

    #[inline(always)]
    pub(super) unsafe fn copy_pages(p: CopyPages) {
        let (layer, pair) = (block_idx_y() / 2, block_idx_z() as usize);
        let cache = if block_idx_y().is_multiple_of(2) { p.k } else { p.v };
        let word = WORDS * (block_idx_x() * THREADS + thread_idx_x());
        let at = |page: u32| {
            let page = layer as usize * p.n_pages as usize + page as usize;
            page * p.page_words as usize + word as usize
        };
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: pages and layers are inside the cache, and the words inside the page.
        unsafe {
            let [from, to] = p.pairs.load_x2(2 * pair);
            cache.store_x4(at(to), cache.load_l2_x4(at(from)));
        }
    }
}
