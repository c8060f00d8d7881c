//! The cache of keys and values, in pages, and attention over it.

/// Runs an expression on the store, whatever its elements.
macro_rules! with {
    ($data:expr, $store:ident => $body:expr) => {
        match $data {
            Data::Bf16($store) => $body,
            Data::F32($store) => $body,
            Data::Int8($store) => $body,
        }
    };
}

mod places;
mod store;
#[cfg(test)]
mod tests;

use crate::cpu::Cpu;
use crate::float::{Bf16, QUERIES, ROOM};
use crate::memory::{Buffer, Pages};
use crate::pool::Shards;
use crate::{Error, Result};
pub use places::Places;
use store::Store;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// bfloat16, rounded to nearest even.
    #[default]
    Bf16,
    /// f32, as computed.
    F32,
    /// 8-bit integers, with a scale for each head and position: half the memory of bfloat16, and results that differ.
    Int8,
}

/// Sizes of a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub n_layers: usize,
    /// Pages.
    pub n_pages: usize,
    /// Positions of a page: a power of two, at least 16.
    pub page: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Query heads: a multiple of the key-value heads; query head `h` uses `h / (n_heads / n_kv_heads)`.
    pub n_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Most positions of a sequence.
    pub context: usize,
}

/// Keys and values of every layer, in pages. Its memory is reserved at once and costs nothing before it is used.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    data: Data,
    /// For each thread, scores of [`QUERIES`] queries.
    scores: Buffer<[f32; 16]>,
    /// For each thread, [`ROOM`].
    room: Buffer<[f32; 16]>,
}

#[derive(Debug)]
enum Data {
    Bf16(Store<Bf16>),
    F32(Store<f32>),
    Int8(Store<i8>),
}

impl KvShape {
    /// Bytes of a page of all layers.
    #[must_use]
    pub fn page_bytes(&self, kind: KvType) -> u64 {
        let block = match kind {
            KvType::Bf16 => Store::<Bf16>::block_bytes(self),
            KvType::F32 => Store::<f32>::block_bytes(self),
            KvType::Int8 => Store::<i8>::block_bytes(self),
        };
        let heads = self.n_layers.saturating_mul(self.n_kv_heads) as u64;
        block.saturating_mul(heads).saturating_mul(self.page as u64 / 16)
    }
}

impl KvCache {
    /// A cache for `shape`, read by the threads of `cpu`.
    ///
    /// # Errors
    /// When memory cannot be had, a page is no power of two from 16 on, or the query heads are no multiple of the
    /// key-value heads.
    pub fn new(cpu: &Cpu, kind: KvType, shape: KvShape) -> Result<Self> {
        let past = shape
            .n_heads
            .checked_rem(shape.n_kv_heads)
            .unwrap_or(shape.n_heads);
        crate::error::check_size("query heads past a multiple of the key-value heads", past, 0)?;
        let page = shape.page.max(16).checked_next_power_of_two().unwrap_or(16);
        crate::error::check_size("positions of a page", shape.page, page)?;
        let what = "the KV cache";
        let bytes = usize::MAX;
        let n_blocks = shape.n_blocks().ok_or(Error::Memory { what, bytes })?;
        // The queries of a job share a sequence: room for all its positions.
        let n_scores = (cpu.n_threads() * QUERIES).saturating_mul(shape.context.div_ceil(16));
        Ok(Self {
            shape,
            data: match kind {
                KvType::Bf16 => Data::Bf16(Store::new(&shape, n_blocks)?),
                KvType::F32 => Data::F32(Store::new(&shape, n_blocks)?),
                KvType::Int8 => Data::Int8(Store::new(&shape, n_blocks)?),
            },
            scores: Buffer::zeroed("attention scores", n_scores, Pages::Lazy)?,
            room: Buffer::zeroed("attention", cpu.n_threads() * ROOM, Pages::Lazy)?,
        })
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Size in memory when every position is used.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        with!(&self.data, store => store.bytes()) + self.scores.bytes() + self.room.bytes()
    }

    /// The keys and the values of a token as they are in the cache, (n_kv_heads, head_dim) each.
    ///
    /// # Panics
    /// When the layer or the place is not in the cache.
    #[must_use]
    pub fn load(&self, layer: usize, places: &Places, token: usize) -> (Vec<f32>, Vec<f32>) {
        let (table, pos) = places.get(token);
        let (page, pos) = (places.table(table)[pos / self.shape.page], pos % self.shape.page);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in 0..self.shape.n_kv_heads {
            let to = (&mut keys, &mut values);
            with!(&self.data, store => store.get(&self.shape, (layer, head), (page, pos), to));
        }
        (keys, values)
    }

    /// Copies a page of every layer over another one.
    ///
    /// # Panics
    /// When one of them is not in the cache.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        with!(&mut self.data, store => store.copy(&self.shape, from, to));
    }
}

/// Keys and values of a batch.
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    /// A row for each token.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// Column of the (n_kv_heads, head_dim) keys.
    pub keys: usize,
    /// Column of the (n_kv_heads, head_dim) values.
    pub values: usize,
    /// Where each token is.
    pub places: &'a Places,
}

/// Queries of a batch, and room for what attention makes of them.
#[derive(Debug)]
pub struct Queries<'a> {
    /// A row for each token, `stride` apart, that begins with its (n_heads, head_dim) queries.
    pub q: &'a [f32],
    /// Elements from one row of `q` to the next.
    pub stride: usize,
    /// Where each token is.
    pub places: &'a Places,
    /// (tokens, n_heads * head_dim).
    pub out: &'a mut [f32],
}

/// How attention is cut into chunks: tokens of one, and queries of a token that share a head of keys and values. As many as fill
/// a block of queries, and fewer where threads would have little to share: first fewer tokens, which are of different sequences
/// where they are few, then, where there would be no chunk for each thread, fewer queries, each of which reads all keys and values.
fn cut(n_tokens: usize, n_kv_heads: usize, group: usize, n_threads: usize) -> (usize, usize) {
    let most = (QUERIES / group).max(1);
    let each = (n_tokens * n_kv_heads / (4 * n_threads)).clamp(1, most);
    let n_chunks = n_tokens.div_ceil(each) * n_kv_heads;
    let mut parts = (1..=group).filter(|parts| group.is_multiple_of(*parts));
    let n_parts = parts.find(|parts| n_chunks * parts >= n_threads).unwrap_or(group);
    (each, group / n_parts)
}

impl Cpu {
    /// Stores the keys and values of a batch in layer `layer`.
    ///
    /// # Panics
    /// When a place is not in the cache, or the rows are too short.
    pub fn store(&self, kv: &mut KvCache, layer: usize, rows: KvRows<'_>) {
        let shape = kv.shape;
        assert!(rows.places.fit(shape.n_pages, shape.page));
        assert!(rows.stride > 0 && rows.places.len() * rows.stride <= rows.data.len());
        with!(&mut kv.data, store => store.put(self, &shape, layer, rows));
    }

    /// Causal softmax attention of every query over the positions of its own sequence up to its own, in layer `layer`.
    ///
    /// # Panics
    /// When a place is not in the cache, or a slice is too short.
    pub fn attention(&self, kv: &mut KvCache, layer: usize, queries: Queries<'_>) {
        let KvShape {
            n_heads,
            n_kv_heads,
            head_dim: d,
            context,
            n_pages,
            page,
            ..
        } = kv.shape;
        let Queries {
            q,
            stride,
            places,
            out,
        } = queries;
        assert_eq!(out.len(), places.len() * n_heads * d);
        assert!(layer < kv.shape.n_layers && places.fit(n_pages, page));
        assert!(places.positions().all(|pos| pos < context));
        let group = n_heads / n_kv_heads;
        let (n_tokens, n_members) = cut(places.len(), n_kv_heads, group, self.n_threads());
        let (n_spans, n_parts) = (places.len().div_ceil(n_tokens), group / n_members);
        let n_scores = QUERIES * context.div_ceil(16);
        let (scores, room) = (Shards::new(&mut kv.scores), Shards::new(&mut kv.room));
        let out = Shards::new(out);
        let (data, shape) = (&kv.data, &kv.shape);
        let float = self.float;
        self.pool.run(n_spans * n_kv_heads * n_parts, &|chunk, thread| {
            let (chunk, part) = (chunk / n_parts, chunk % n_parts);
            let (span, head) = (chunk / n_kv_heads, chunk % n_kv_heads);
            // SAFETY: `thread` differs between calls that run at one time.
            let scores = unsafe { scores.get(thread * n_scores, n_scores) };
            // SAFETY: as above.
            let room = unsafe { room.get(thread * ROOM, ROOM) };
            let first = span * n_tokens;
            let tokens = first..places.len().min(first + n_tokens);
            let members = tokens.flat_map(|token| {
                (part * n_members..(part + 1) * n_members).map(move |member| (token, member))
            });
            let mut members = members.peekable();
            while let Some(&(token, _)) = members.peek() {
                let (table, _) = places.get(token);
                let mut rows: [&[f32]; QUERIES] = [&[]; QUERIES];
                let mut len = [0; QUERIES];
                let mut y: [&mut [f32]; QUERIES] = std::array::from_fn(|_| &mut [][..]);
                let mut n = 0;
                while n < QUERIES
                    && let Some((token, member)) = members.next_if(|&(token, _)| places.get(token).0 == table)
                {
                    let column = (head * group + member) * d;
                    rows[n] = &q[token * stride + column..][..d];
                    len[n] = places.get(token).1 + 1;
                    // SAFETY: a token and a head are in one chunk, and there once.
                    y[n] = unsafe { out.get(token * n_heads * d + column, d) };
                    n += 1;
                }
                let (queries, y) = ((&rows[..n], &len[..n]), &mut y[..n]);
                let (at, table) = ((layer, head), places.table(table));
                let scratch = (&mut *scores, &mut *room);
                match data {
                    Data::Bf16(store) => {
                        (float.attend_bf16)(store.job(shape, at, table, queries, scratch), y)
                    }
                    Data::F32(store) => (float.attend_f32)(store.job(shape, at, table, queries, scratch), y),
                    Data::Int8(store) => {
                        (float.attend_int8)(store.job(shape, at, table, queries, scratch), y)
                    }
                }
            }
        });
    }
}
