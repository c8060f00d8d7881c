//! The cache of keys and values, in pages of [`PAGE`] positions, and copies of pages.
//!
//! A layer's cache is two arrays, made for the fragments of the tensor cores: keys as (page, kv head, position
//! in the page, dim), values as (page, kv head, run, dim, position in the run). `dim` is the head's dimension padded with zeros to
//! [`padded_head_dim`]. A run is as many positions as 16 bytes have room for, which a lane takes at once of a dimension, and what the
//! first positions of a page hold comes first, of values as of keys. In run r dimension d stands at place `d ^ (2 r mod 8)` (of 8-bit
//! integers `d ^ (4 r mod 8)`), so that lanes that read several runs of a copy in shared memory find them in different banks. Values of heads that
//! are padded to 256 dimensions lie as (page, kv head, dim, position in the page): the prompt kernel has no register left for more.
//!
//! [`KvType`] says what elements are: bfloat16, or 8-bit integers. Behind the integers of a page and head then lie the scales of
//! their positions, f32: with `m` the largest magnitude of a key or value, the scale is `m / 127` and an element
//! `x * (127 / m)`, rounded half to even; of a row of zeros both factors are zero, and one that holds a NaN has a NaN for its
//! scale and zeros for elements.
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

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// bfloat16, rounded half to even.
    #[default]
    Bf16,
    /// 8-bit integers, with a scale for each head and position: about half the memory. Of heads of up to 128 dimensions: of wider
    /// ones the prompt kernel's registers do not hold what they take.
    Int8,
}

impl KvType {
    /// What the kernels' parameter of the same meaning says.
    #[must_use]
    pub const fn of(int8: bool) -> Self {
        if int8 { Self::Int8 } else { Self::Bf16 }
    }

    /// Words of the keys (and again of the values) of one head in a page: its elements, and behind them their scales.
    #[must_use]
    pub const fn head_words(self, padded_head_dim: usize) -> usize {
        let elements = PAGE as usize * padded_head_dim;
        match self {
            Self::Bf16 => elements / 2,
            Self::Int8 => elements / 4 + PAGE as usize,
        }
    }

    /// Words of the keys (and again of the values) of `pages` pages of a layer; saturates.
    #[must_use]
    pub const fn words(self, pages: usize, n_kv_heads: usize, padded_head_dim: usize) -> usize {
        pages
            .saturating_mul(n_kv_heads)
            .saturating_mul(self.head_words(padded_head_dim))
    }
}

kernels! {
    /// Copies whole pages in every layer: what a sequence does before it writes to a page that it shares.
    ///
    /// - Shapes: `pairs` (n_pairs, 2): source, target; `k`, `v` (n_layers, n_pages, page_words).
    /// - Launch: [`CopyPages::launch`]; a block owns 1024 words of a page of one layer, of keys or of values.
    /// - Moves: both arrays of every page once in and once out. Bound: memory.
    ///
    /// # Safety
    /// Lengths as above; every page below `n_pages`; no target is another pair's source or target; `k` and `v` 16-byte
    /// aligned; `page_words` a multiple of 4.
    copy_pages, block = [THREADS, 1, 1], body = device::copy_pages;
    pub struct CopyPages {
        /// Pages to copy from and to.
        pub pairs: Global<u32>,
        /// Keys of all layers.
        pub k: Global<u32>,
        /// Values of all layers.
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
                self.page_words.div_ceil(THREADS * WORDS),
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
    use super::{CopyPages, KvType, PAGE, READ_ONLY, THREADS, WORDS};
    use crate::Global;
    use crate::intrinsics::*;

    /// What pages are read from: a cache, or a copy of a page in shared memory.
    pub(crate) trait Source: Copy {
        /// Two words from word `at` on.
        ///
        /// # Safety
        /// They are readable and lie on a multiple of their size. This goes for both.
        unsafe fn two(self, at: usize) -> [u32; 2];

        /// Four words.
        ///
        /// # Safety
        /// As for [`Source::two`].
        unsafe fn four(self, at: usize) -> [u32; 4];
    }

    impl Source for Global<u32> {
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn two(self, at: usize) -> [u32; 2] {
            // SAFETY: the caller's promise.
            unsafe { self.load_l2_x2(at) }
        }

        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn four(self, at: usize) -> [u32; 4] {
            // SAFETY: the caller's promise.
            unsafe { self.load_l2_x4(at) }
        }
    }

    impl Source for Shared<u32> {
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn two(self, at: usize) -> [u32; 2] {
            // SAFETY: the caller's promise.
            unsafe { self.load_x2(at as u32) }
        }

        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        unsafe fn four(self, at: usize) -> [u32; 4] {
            // SAFETY: the caller's promise.
            unsafe { self.load_x4(at as u32) }
        }
    }

    /// Where keys and values of one page and kv head lie in a cache: of 8-bit integers, or of bfloat16.
    #[derive(Clone, Copy)]
    pub(crate) struct Page<const INT8: bool> {
        /// Word of the first key and of the first value.
        base: usize,
        /// Dimensions of a head in the cache.
        padded: u32,
    }

    impl<const INT8: bool> Page<INT8> {
        /// Elements of a word.
        const PER_WORD: u32 = if INT8 { 4 } else { 2 };

        /// Positions of a run of values.
        pub(crate) const RUN: u32 = 4 * Self::PER_WORD;

        /// The page that a table's `entry` names.
        #[inline(always)]
        pub(crate) fn new(entry: u32, n_kv_heads: u32, kv_head: u32, padded: u32) -> Self {
            let head = (entry & !READ_ONLY) as usize * n_kv_heads as usize + kv_head as usize;
            Self {
                base: head * KvType::of(INT8).head_words(padded as usize),
                padded,
            }
        }

        /// The page as its copy begins at word 0.
        #[inline(always)]
        pub(crate) fn copied(self) -> Self {
            Self { base: 0, ..self }
        }

        /// Word of the first key and of the first value.
        #[inline(always)]
        pub(crate) fn start(self) -> usize {
            self.base
        }

        /// Word of dimension 0 of the key at position `place` of the page.
        #[inline(always)]
        pub(crate) fn key(self, place: u32) -> usize {
            self.base + (place * self.padded / Self::PER_WORD) as usize
        }

        /// Word of dimension `dim` of the value at position `place` of the page, the first of a word.
        #[inline(always)]
        pub(crate) fn value(self, place: u32, dim: u32) -> usize {
            self.base + (4 * self.run(place, dim) + place % Self::RUN / Self::PER_WORD) as usize
        }

        /// Element, counted as such, of dimension `dim` of the value at position `place` of the page.
        #[inline(always)]
        pub(crate) fn value_element(self, place: u32, dim: u32) -> usize {
            self.base * Self::PER_WORD as usize
                + (self.run(place, dim) * Self::RUN + place % Self::RUN) as usize
        }

        /// Which 16 bytes of the values hold dimension `dim` of the run of position `place`.
        #[inline(always)]
        fn run(self, place: u32, dim: u32) -> u32 {
            let run = place / Self::RUN;
            if Self::has_runs(self.padded) {
                run * self.padded + (dim ^ (run * Self::PER_WORD % 8))
            } else {
                dim * (PAGE / Self::RUN) + run
            }
        }

        /// Whether values lie by runs; else all positions of a dimension lie one after the other.
        #[inline(always)]
        pub(crate) const fn has_runs(padded: u32) -> bool {
            padded <= 128
        }

        /// Word of the scale of the key, and of the value, at position `place` of the page.
        #[inline(always)]
        pub(crate) fn scale(self, place: u32) -> usize {
            self.base + (PAGE * self.padded / 4 + place) as usize
        }

        /// Eight neighboring elements from word `at` on: four words of bfloat16, or two of integers and two zeros.
        ///
        /// # Safety
        /// They are readable, and lie on a multiple of their size.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub(crate) unsafe fn load_eight(from: impl Source, at: usize) -> [u32; 4] {
            // SAFETY: the caller's promise.
            unsafe {
                if INT8 {
                    let [low, high] = from.two(at);
                    [low, high, 0, 0]
                } else {
                    from.four(at)
                }
            }
        }

        /// What [`Page::load_eight`] loaded as bfloat16, exactly.
        #[inline(always)]
        pub(crate) fn widen_eight(eight: [u32; 4]) -> [u32; 4] {
            if INT8 {
                let ([a, b], [c, d]) = (i8x4_to_bf16(eight[0]), i8x4_to_bf16(eight[1]));
                [a, b, c, d]
            } else {
                eight
            }
        }
    }

    /// Four signed bytes as bfloat16, the lowest first; exact.
    #[inline(always)]
    pub(crate) fn i8x4_to_bf16(word: u32) -> [u32; 2] {
        // The 7 low bits of a byte b, as the mantissa of a number from 128 on, are 128 more than b, or 256 more where b is
        // negative; its sign in the mantissa of another such number makes that 128 or 256.
        let widen = |selector| {
            let bytes = byte_permute(word, 0x4343_4343, selector);
            bf16x2_sub(bytes & 0xff7f_ff7f, bytes & 0xff80_ff80)
        };
        [widen(0x4140), widen(0x4342)]
    }

    /// How a key or a value is rounded to 8 bits.
    #[derive(Clone, Copy)]
    pub(crate) struct Scale {
        /// What an integer is worth.
        pub(crate) worth: f32,
        /// What an element is multiplied by.
        times: f32,
    }

    impl Scale {
        /// Of the largest of all [`Scale::magnitude`].
        #[inline(always)]
        pub(crate) fn new(magnitude: u32) -> Self {
            let largest = f32::from_bits(magnitude);
            match () {
                () if magnitude > f32::INFINITY.to_bits() => Self {
                    worth: f32::NAN,
                    times: 0.0,
                },
                () if magnitude > 0 => Self {
                    worth: largest / 127.0,
                    times: 127.0 / largest,
                },
                () => Self {
                    worth: 0.0,
                    times: 0.0,
                },
            }
        }

        /// What orders elements by their magnitude, and a NaN after all of them.
        #[inline(always)]
        pub(crate) fn magnitude(x: f32) -> u32 {
            x.to_bits() & 0x7fff_ffff
        }

        /// Four elements as bytes, the first lowest.
        #[inline(always)]
        pub(crate) fn codes(self, x: [f32; 4]) -> u32 {
            pack_i8x4(x.map(|x| round_to_i32(x * self.times)))
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
        if word >= p.page_words {
            return;
        }
        // SAFETY: pages and layers are inside the cache, and the words inside the page.
        unsafe {
            let [from, to] = p.pairs.load_x2(2 * pair);
            cache.store_x4(at(to), cache.load_l2_x4(at(from)));
        }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::device::i8x4_to_bf16;
    use crate::intrinsics::bf16x2_to_f32;

    #[test]
    fn bytes_widen_exactly() {
        for byte in i8::MIN..=i8::MAX {
            let bytes = [byte, byte.wrapping_add(1), !byte, byte.wrapping_mul(3)];
            let widened = i8x4_to_bf16(u32::from_le_bytes(bytes.map(|b| b as u8))).map(bf16x2_to_f32);
            assert_eq!(widened.concat(), bytes.map(f32::from));
        }
    }
}
