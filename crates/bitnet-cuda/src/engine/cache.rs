//! The pages of keys and values on the device: one pool, which all layers and sequences share.

use super::space::{Space, Use};
use super::{Architecture, launch};
use crate::error::Result;
use crate::memory::DeviceBuffer;
use crate::stream::Stream;
use bitnet_kernels::Global;
use bitnet_kernels::cache::{CopyPages, READ_ONLY};

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
    pub(super) fn new(
        space: &Space<'_>,
        model: &Architecture,
        padded: usize,
        n_pages: usize,
    ) -> Result<Self> {
        let page_words = page_words(model, padded);
        let all_pages = n_pages + 1;
        let words = model
            .dims
            .n_layers
            .saturating_mul(all_pages)
            .saturating_mul(page_words);
        Ok(Self {
            k: space.alloc(Use::Cache, "the KV cache", words)?,
            v: space.alloc(Use::Cache, "the KV cache", words)?,
            n_layers: model.dims.n_layers,
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
        // SAFETY: the caller's promise; both pools have these layers and pages, of a multiple of 4 words.
        unsafe { launch(stream, &copy, copy.launch()) }
    }
}

/// Words of a page's keys in one layer, and of its values.
fn page_words(model: &Architecture, padded: usize) -> usize {
    model.kv_type.words(1, model.dims.n_kv_heads, padded)
}

/// Bytes of a page, keys and values, in all layers.
pub(super) fn page_bytes(model: &Architecture, padded: usize) -> u64 {
    (2 * 4 * model.dims.n_layers as u64).saturating_mul(page_words(model, padded) as u64)
}
