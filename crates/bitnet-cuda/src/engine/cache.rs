//! The pages of keys and values on the device: one pool, which all layers and sequences share.

use super::space::{Space, Use};
use super::{Dims, Limits, launch};
use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::stream::Stream;
use bitnet_kernels::Global;
use bitnet_kernels::cache::{CopyPages, PAGE, READ_ONLY, cache_len};

/// Most pages of a pool: their numbers, and 64 times those, fit the words in which tables and kernels count.
pub(super) const MAX_PAGES: usize = 1 << 25;

/// Keys and values of every layer: (layers, pages, ..) as [`bitnet_kernels::cache`] lays a page out.
#[derive(Debug)]
pub(super) struct Cache {
    k: DeviceBuffer<u32>,
    v: DeviceBuffer<u32>,
    n_layers: usize,
    /// Pages of a layer, the spare one included.
    all_pages: usize,
    /// Words of a page's keys, and of its values.
    page_words: usize,
}

impl Cache {
    /// Room for `n_pages` pages, and for the spare one.
    pub(super) fn new(space: &Space<'_>, dims: &Dims, padded: usize, n_pages: usize) -> Result<Self> {
        let page_words = page_words(dims, padded);
        let all_pages = n_pages + 1;
        let words = dims.n_layers.saturating_mul(all_pages).saturating_mul(page_words);
        Ok(Self {
            k: space.alloc(Use::Cache, "the KV cache", words)?,
            v: space.alloc(Use::Cache, "the KV cache", words)?,
            n_layers: dims.n_layers,
            all_pages,
            page_words,
        })
    }

    /// What a table holds where it has no page: the spare one, all zeros, which nobody writes to.
    pub(super) fn idle_entry(&self) -> u32 {
        (self.all_pages - 1) as u32 | READ_ONLY
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> [Global<u32>; 2] {
        let first = layer * self.all_pages * self.page_words;
        [&self.k, &self.v].map(|pool| pool.global().offset(first))
    }

    /// Zeros everywhere: pages are read whole, before what lies past a position is put aside.
    pub(super) fn clear(&self, stream: &Stream) -> Result<()> {
        stream.fill_bytes(&self.k, 0)?;
        stream.fill_bytes(&self.v, 0)
    }

    /// Copies pages in every layer: `n_pairs` pairs (source, target) that lie at `pairs` in device memory.
    ///
    /// # Safety
    /// The pairs are there, of pages of this cache, and no target is another pair's source or target.
    pub(super) unsafe fn copy(&self, stream: &Stream, pairs: Global<u32>, n_pairs: usize) -> Result<()> {
        let copy = CopyPages {
            pairs,
            k: self.k.global(),
            v: self.v.global(),
            n_pairs: n_pairs as u32,
            n_pages: self.all_pages as u32,
            page_words: self.page_words as u32,
            n_layers: self.n_layers as u32,
        };
        // SAFETY: the caller's promise; both pools have these layers and pages, of a multiple of 1024 words.
        unsafe { launch(stream, &copy, copy.launch()) }
    }
}

/// Words of a page's keys in one layer, and of its values.
fn page_words(dims: &Dims, padded: usize) -> usize {
    cache_len(1, dims.n_kv_heads, padded) / 2
}

/// Bytes of a page, keys and values, in all layers.
pub(super) fn page_bytes(dims: &Dims, padded: usize) -> u64 {
    (2 * 4 * dims.n_layers * page_words(dims, padded)) as u64
}

/// The pages of a pool, where everything else takes `rest_bytes` and the device has `free_bytes` free.
///
/// As many as are wanted and fit, keys and values taking at most what is left of 90 % of the free memory; one sequence's
/// context at least, however little is left then. What [`Limits::kv_bytes`] asks for is not made smaller.
pub(super) fn pages(limits: Limits, page_bytes: u64, rest_bytes: u64, free_bytes: u64) -> Result<usize> {
    let of_a_sequence = limits.table_len();
    if let Some(bytes) = limits.kv_bytes {
        let pages = usize::try_from(bytes / page_bytes).unwrap_or(usize::MAX);
        if pages == 0 || pages > MAX_PAGES {
            return Err(Error::Request(format!(
                "{bytes} bytes for keys and values are {pages} pages of {PAGE} positions, which take {page_bytes} bytes each; 1 to \
                 {MAX_PAGES} can be used"
            )));
        }
        return Ok(pages);
    }
    let wanted = limits.n_seqs.saturating_mul(of_a_sequence);
    let left = (free_bytes / 10 * 9).saturating_sub(rest_bytes) / page_bytes;
    // One is the spare page.
    let fit = usize::try_from(left).unwrap_or(usize::MAX).saturating_sub(1);
    Ok(wanted.min(fit.max(of_a_sequence)).min(MAX_PAGES))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        context: 640,
        n_seqs: 4,
        max_batch: 512,
        kv_bytes: None,
    };

    #[test]
    fn a_pool_takes_what_sequences_need_and_at_most_what_is_free() {
        // 40 pages of 100 bytes, and the spare one.
        assert_eq!(pages(LIMITS, 100, 900, 10_000).unwrap(), 40);
        assert_eq!(pages(LIMITS, 100, 900, 5_000).unwrap(), 35);
        // Less than a sequence is refused later, as what does not fit.
        assert_eq!(pages(LIMITS, 100, 900, 1_000).unwrap(), 10);
        assert_eq!(pages(LIMITS, 100, 900, 0).unwrap(), 10);
    }

    #[test]
    fn a_pool_of_a_size_is_that_size_or_an_error() {
        let of = |kv_bytes| {
            let limits = Limits {
                kv_bytes: Some(kv_bytes),
                ..LIMITS
            };
            pages(limits, 100, 900, 1_000)
        };
        assert_eq!(of(1_999).unwrap(), 19);
        for bytes in [0, 99, u64::MAX] {
            let error = of(bytes).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{bytes} bytes for keys and values")),
                "{error}"
            );
        }
    }
}
