//! The cache of keys and values, and attention over it.

use crate::cpu::Cpu;
use crate::float::{Attend, Bf16, Narrow, QUERIES, ROOM};
use crate::memory::{Buffer, Pages};
use crate::pool::Shards;
use crate::{Error, Result};

/// Element type of a [`KvCache`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// bfloat16, rounded to nearest even.
    #[default]
    Bf16,
    /// f32, as computed.
    F32,
}

/// Sizes of a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub n_layers: usize,
    /// Sequence slots.
    pub n_seqs: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Query heads: a multiple of the key-value heads; query head `h` uses `h / (n_heads / n_kv_heads)`.
    pub n_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions of a slot.
    pub context: usize,
}

/// Where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Sequence slot.
    pub seq: usize,
    /// Position in it.
    pub pos: usize,
}

/// Keys and values of every layer, slot and position. Its memory is reserved at once and costs nothing before it is used.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    /// Groups of 16 positions of a slot.
    n_blocks: usize,
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
}

/// By layer, slot and head; inside, keys are (block of 16 positions, element, position) and values (position, element,
/// padded to 16): in both the innermost 16 are the lanes of a sum.
#[derive(Debug)]
struct Store<E: Narrow> {
    keys: Buffer<[E; 16]>,
    values: Buffer<[E; 16]>,
}

impl KvShape {
    /// Index of a head of a slot of a layer among all of them.
    fn index(&self, layer: usize, seq: usize, head: usize) -> usize {
        assert!(layer < self.n_layers && seq < self.n_seqs && head < self.n_kv_heads);
        (layer * self.n_seqs + seq) * self.n_kv_heads + head
    }
}

impl KvCache {
    /// A cache for `shape`, read by the threads of `cpu`.
    ///
    /// # Errors
    /// When memory cannot be had, or the query heads are no multiple of the key-value heads.
    pub fn new(cpu: &Cpu, kind: KvType, shape: KvShape) -> Result<Self> {
        let past = shape
            .n_heads
            .checked_rem(shape.n_kv_heads)
            .unwrap_or(shape.n_heads);
        crate::error::check_size("query heads past a multiple of the key-value heads", past, 0)?;
        let n_blocks = shape.context.div_ceil(16);
        let n_columns = shape.head_dim.div_ceil(16);
        let slots = [shape.n_layers, shape.n_seqs, shape.n_kv_heads, n_blocks];
        let len = |last: usize| {
            let product = slots.into_iter().try_fold(last, usize::checked_mul);
            let what = "the KV cache";
            let bytes = usize::MAX;
            product.ok_or(Error::Memory { what, bytes })
        };
        let (keys, values) = (len(shape.head_dim)?, len(n_columns * 16)?);
        Ok(Self {
            shape,
            n_blocks,
            data: match kind {
                KvType::Bf16 => Data::Bf16(Store::new(keys, values)?),
                KvType::F32 => Data::F32(Store::new(keys, values)?),
            },
            scores: Buffer::zeroed(
                "attention scores",
                cpu.n_threads() * QUERIES * n_blocks,
                Pages::Lazy,
            )?,
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
        let data = match &self.data {
            Data::Bf16(store) => store.keys.bytes() + store.values.bytes(),
            Data::F32(store) => store.keys.bytes() + store.values.bytes(),
        };
        data + self.scores.bytes() + self.room.bytes()
    }

    /// The keys and the values of a token as they stand in the cache, (n_kv_heads, head_dim) each.
    ///
    /// # Panics
    /// When the place is not in the cache.
    #[must_use]
    pub fn load(&self, layer: usize, place: Place) -> (Vec<f32>, Vec<f32>) {
        assert!(place.pos < self.shape.context);
        let (d, n_blocks) = (self.shape.head_dim, self.n_blocks);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in 0..self.shape.n_kv_heads {
            let first = self.shape.index(layer, place.seq, head) * n_blocks;
            match &self.data {
                Data::Bf16(store) => store.get(first, place.pos, d, &mut keys, &mut values),
                Data::F32(store) => store.get(first, place.pos, d, &mut keys, &mut values),
            }
        }
        (keys, values)
    }
}

impl<E: Narrow> Store<E> {
    fn new(keys: usize, values: usize) -> Result<Self> {
        Ok(Self {
            keys: Buffer::zeroed("the KV cache", keys, Pages::Lazy)?,
            values: Buffer::zeroed("the KV cache", values, Pages::Lazy)?,
        })
    }

    /// Stores the keys and values of one head of a layer.
    fn put(&mut self, cpu: &Cpu, shape: KvShape, layer: usize, rows: KvRows<'_>) {
        let d = shape.head_dim;
        let (n_blocks, n_columns) = (shape.context.div_ceil(16), d.div_ceil(16));
        let (keys, values) = (Shards::new(&mut self.keys), Shards::new(&mut self.values));
        cpu.pool.run(shape.n_kv_heads, &|head, _| {
            for (place, row) in rows.places.iter().zip(rows.data.chunks_exact(rows.stride)) {
                let block = shape.index(layer, place.seq, head) * n_blocks + place.pos / 16;
                let (key, value) = (
                    &row[rows.keys + head * d..][..d],
                    &row[rows.values + head * d..][..d],
                );
                // SAFETY: a slot has the blocks of one head, and a head is in one call.
                let keys = unsafe { keys.get(block * d, d) };
                for (keys, &x) in keys.iter_mut().zip(key) {
                    keys[place.pos % 16] = E::narrow(x);
                }
                // SAFETY: as above.
                let values = unsafe { values.get((block * 16 + place.pos % 16) * n_columns, n_columns) };
                for (to, &x) in values.as_flattened_mut().iter_mut().zip(value) {
                    *to = E::narrow(x);
                }
            }
        });
    }

    /// Attention of `q` over the first `len` positions of the slot whose first block is `first`.
    fn job<'a>(
        &'a self,
        first: usize,
        n_blocks: usize,
        q: &'a [&'a [f32]],
        len: &'a [usize],
        (scores, room): (&'a mut [[f32; 16]], &'a mut [[f32; 16]]),
    ) -> Attend<'a, E> {
        let d = q[0].len();
        let n_columns = d.div_ceil(16);
        Attend {
            q,
            len,
            keys: &self.keys[first * d..][..n_blocks * d],
            values: &self.values[first * 16 * n_columns..][..n_blocks * 16 * n_columns],
            scale: 1.0 / (d as f32).sqrt(),
            scores,
            room,
        }
    }

    /// Appends a head's key and value to `keys` and `values`.
    fn get(&self, first: usize, pos: usize, d: usize, keys: &mut Vec<f32>, values: &mut Vec<f32>) {
        let block = &self.keys[(first + pos / 16) * d..][..d];
        keys.extend(block.iter().map(|keys| keys[pos % 16].widen()));
        let n_columns = d.div_ceil(16);
        let row = &self.values[(first * 16 + pos) * n_columns..][..n_columns];
        values.extend(row.as_flattened()[..d].iter().map(|x| x.widen()));
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
    /// Where each token stands.
    pub places: &'a [Place],
}

/// Queries of a batch, and room for what attention makes of them.
#[derive(Debug)]
pub struct Queries<'a> {
    /// A row for each token, `stride` apart, that begins with its (n_heads, head_dim) queries.
    pub q: &'a [f32],
    /// Elements from one row of `q` to the next.
    pub stride: usize,
    /// Where each token stands.
    pub places: &'a [Place],
    /// (tokens, n_heads * head_dim).
    pub out: &'a mut [f32],
}

impl Cpu {
    /// Stores the keys and values of a batch in layer `layer`.
    ///
    /// # Panics
    /// When a place is not in the cache, or the rows are too short.
    pub fn store(&self, kv: &mut KvCache, layer: usize, rows: KvRows<'_>) {
        let shape = kv.shape;
        assert!(rows.places.iter().all(|place| place.pos < shape.context));
        assert!(rows.stride > 0 && rows.places.len() * rows.stride <= rows.data.len());
        match &mut kv.data {
            Data::Bf16(store) => store.put(self, shape, layer, rows),
            Data::F32(store) => store.put(self, shape, layer, rows),
        }
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
            ..
        } = kv.shape;
        let Queries {
            q,
            stride,
            places,
            out,
        } = queries;
        assert_eq!(out.len(), places.len() * n_heads * d);
        assert!(places.iter().all(|place| place.pos < context));
        let group = n_heads / n_kv_heads;
        // Tokens of a chunk: as many as fill a block of queries.
        let n_tokens = (QUERIES / group).max(1);
        let n_spans = places.len().div_ceil(n_tokens);
        let n_scores = QUERIES * kv.n_blocks;
        let (scores, room) = (Shards::new(&mut kv.scores), Shards::new(&mut kv.room));
        let out = Shards::new(out);
        let (data, slots, n_blocks) = (&kv.data, kv.shape, kv.n_blocks);
        let float = self.float;
        self.pool.run(n_spans * n_kv_heads, &|chunk, thread| {
            let (span, head) = (chunk / n_kv_heads, chunk % n_kv_heads);
            // SAFETY: `thread` differs between calls that run at one time.
            let scores = unsafe { scores.get(thread * n_scores, n_scores) };
            // SAFETY: as above.
            let room = unsafe { room.get(thread * ROOM, ROOM) };
            let first = span * n_tokens;
            let tokens = first..places.len().min(first + n_tokens);
            let members = tokens.flat_map(|token| (0..group).map(move |member| (token, member)));
            let mut members = members.peekable();
            while let Some(&(token, _)) = members.peek() {
                let seq = places[token].seq;
                let mut rows: [&[f32]; QUERIES] = [&[]; QUERIES];
                let mut len = [0; QUERIES];
                let mut y: [&mut [f32]; QUERIES] = std::array::from_fn(|_| &mut [][..]);
                let mut n = 0;
                while n < QUERIES
                    && let Some((token, member)) = members.next_if(|&(token, _)| places[token].seq == seq)
                {
                    let column = (head * group + member) * d;
                    rows[n] = &q[token * stride + column..][..d];
                    len[n] = places[token].pos + 1;
                    // SAFETY: a token and a head are in one chunk, and there once.
                    y[n] = unsafe { out.get(token * n_heads * d + column, d) };
                    n += 1;
                }
                let (rows, len, y) = (&rows[..n], &len[..n], &mut y[..n]);
                let slot = slots.index(layer, seq, head) * n_blocks;
                let scratch = (&mut *scores, &mut *room);
                match data {
                    Data::Bf16(store) => {
                        (float.attend_bf16)(store.job(slot, n_blocks, rows, len, scratch), y)
                    }
                    Data::F32(store) => (float.attend_f32)(store.job(slot, n_blocks, rows, len, scratch), y),
                }
            }
        });
    }
}
