//! The elements of a cache: where the key and the value of a position are.

use std::ops::Range;

use super::{KvRows, KvShape, Places};
use crate::Result;
use crate::cpu::Cpu;
use crate::float::{Attend, Narrow, Paged, Scales};
use crate::memory::{Buffer, Pages};
use crate::pool::Shards;

/// By layer, page and head; inside, keys are (block of 16 positions, element, position) and values (position, element,
/// padded to 16): in both the innermost 16 are the lanes of a sum.
#[derive(Debug)]
pub(super) struct Store<E: Narrow> {
    keys: Buffer<[E; 16]>,
    values: Buffer<[E; 16]>,
    /// By layer, page, head and block, a factor of each position; empty where elements are what they say.
    key_scales: Buffer<[f32; 16]>,
    value_scales: Buffer<[f32; 16]>,
}

/// Tokens whose keys and values take longer to store than threads take to begin and end a loop.
const FEW: usize = 4;

impl KvShape {
    /// Blocks of 16 positions of a page.
    fn blocks(&self) -> usize {
        self.page / 16
    }

    /// Groups of 16 elements of a padded head.
    fn columns(&self) -> usize {
        self.head_dim.div_ceil(16)
    }

    /// Blocks of 16 positions of all heads of all pages of all layers; `None` when they cannot be counted.
    pub(super) fn n_blocks(&self) -> Option<usize> {
        let sizes = [self.n_layers, self.n_pages, self.n_kv_heads];
        sizes.into_iter().try_fold(self.blocks(), usize::checked_mul)
    }

    /// The first block of a head of a page.
    fn block(&self, layer: usize, page: u32, head: usize) -> usize {
        let page = page as usize;
        assert!(layer < self.n_layers && page < self.n_pages && head < self.n_kv_heads);
        ((layer * self.n_pages + page) * self.n_kv_heads + head) * self.blocks()
    }

    /// Page and position in it of a token.
    fn place(&self, places: &Places, token: usize) -> (u32, usize) {
        let (table, pos) = places.get(token);
        (places.table(table)[pos / self.page], pos % self.page)
    }

    /// Cuts a batch where the block of positions changes: the first token of each run. All of it is one run where a block would be in
    /// several.
    fn runs(&self, places: &Places) -> Vec<usize> {
        let mut firsts: Vec<usize> = Vec::new();
        let mut blocks = Vec::new();
        for token in 0..places.len() {
            let (page, pos) = self.place(places, token);
            let block = (page, pos / 16);
            if blocks.last() != Some(&block) {
                firsts.push(token);
                blocks.push(block);
            }
        }
        blocks.sort_unstable();
        if blocks.windows(2).any(|pair| pair[0] == pair[1]) {
            firsts.truncate(1);
        }
        firsts
    }

    /// A head of a layer in a buffer that has `width` groups a block.
    fn paged<'a, T>(
        &self,
        buffer: &'a [T],
        at: (usize, usize),
        table: &'a [u32],
        width: usize,
    ) -> Paged<'a, T> {
        let (layer, head) = at;
        let blocks = self.n_kv_heads * self.blocks();
        let of_layer = self.n_pages * blocks * width;
        Paged {
            lanes: &buffer[layer * of_layer..][..of_layer],
            table,
            shift: self.blocks().trailing_zeros(),
            stride: blocks * width,
            first: head * self.blocks() * width,
            width,
        }
    }
}

impl<E: Narrow> Store<E> {
    /// `n_blocks` as counted by [`KvShape::n_blocks`].
    pub(super) fn new(shape: &KvShape, n_blocks: usize) -> Result<Self> {
        let what = "the KV cache";
        let len = |width: usize| n_blocks.saturating_mul(width);
        let n_scales = if E::SCALED { n_blocks } else { 0 };
        Ok(Self {
            keys: Buffer::zeroed(what, len(shape.head_dim), Pages::Lazy)?,
            values: Buffer::zeroed(what, len(16 * shape.columns()), Pages::Lazy)?,
            key_scales: Buffer::zeroed(what, n_scales, Pages::Lazy)?,
            value_scales: Buffer::zeroed(what, n_scales, Pages::Lazy)?,
        })
    }

    /// Bytes of a block of 16 positions.
    pub(super) fn block_bytes(shape: &KvShape) -> u64 {
        let elements = size_of::<[E; 16]>() * (shape.head_dim + 16 * shape.columns());
        let scales = if E::SCALED { 2 * size_of::<[f32; 16]>() } else { 0 };
        (elements + scales) as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        let scales = self.key_scales.bytes() + self.value_scales.bytes();
        self.keys.bytes() + self.values.bytes() + scales
    }

    /// Stores the keys and values of a batch in a layer; its places are in the cache.
    pub(super) fn put(&mut self, cpu: &Cpu, shape: &KvShape, layer: usize, rows: KvRows<'_>) {
        let (d, n_columns, n_heads) = (shape.head_dim, shape.columns(), shape.n_kv_heads);
        let (keys, values) = (Shards::new(&mut self.keys), Shards::new(&mut self.values));
        let scales = [&mut self.key_scales, &mut self.value_scales].map(|scales| Shards::new(scales));
        // A head of some tokens.
        let part = |tokens: Range<usize>, head: usize| {
            for token in tokens {
                let row = &rows.data[token * rows.stride..][..rows.stride];
                let (page, pos) = shape.place(rows.places, token);
                let (block, lane) = (shape.block(layer, page, head) + pos / 16, pos % 16);
                let key = &row[rows.keys + head * d..][..d];
                let value = &row[rows.values + head * d..][..d];
                let mut inverse = [1.0; 2];
                if E::SCALED {
                    for ((scales, row), inverse) in scales.iter().zip([key, value]).zip(&mut inverse) {
                        let (scale, times) = scale(row);
                        // SAFETY: a block is of one head, and all tokens of one batch that have it are in one call.
                        let lanes = unsafe { scales.get(block, 1) };
                        lanes[0][lane] = scale;
                        *inverse = times;
                    }
                }
                // SAFETY: as above.
                let keys = unsafe { keys.get(block * d, d) };
                for (keys, &x) in keys.iter_mut().zip(key) {
                    keys[lane] = E::narrow(x * inverse[0]);
                }
                // SAFETY: as above.
                let values = unsafe { values.get((block * 16 + lane) * n_columns, n_columns) };
                for (to, &x) in values.as_flattened_mut().iter_mut().zip(value) {
                    *to = E::narrow(x * inverse[1]);
                }
            }
        };
        let n_tokens = rows.places.len();
        if n_tokens < FEW {
            (0..n_heads).for_each(|head| part(0..n_tokens, head));
            return;
        }
        let firsts = shape.runs(rows.places);
        cpu.pool.run(firsts.len() * n_heads, &|chunk, _| {
            let (run, head) = (chunk / n_heads, chunk % n_heads);
            let end = firsts.get(run + 1).copied().unwrap_or(n_tokens);
            part(firsts[run]..end, head);
        });
    }

    /// Attention of `q`, over the first `len` positions of a sequence each, with a head of a layer.
    pub(super) fn job<'a>(
        &'a self,
        shape: &KvShape,
        at: (usize, usize),
        table: &'a [u32],
        (q, len): (&'a [&'a [f32]], &'a [usize]),
        (scores, room): (&'a mut [[f32; 16]], &'a mut [[f32; 16]]),
    ) -> Attend<'a, E> {
        let d = shape.head_dim;
        Attend {
            q,
            len,
            keys: shape.paged(&self.keys, at, table, d),
            values: shape.paged(&self.values, at, table, 16 * shape.columns()),
            scales: E::SCALED.then(|| Scales {
                keys: shape.paged(&self.key_scales, at, table, 1),
                values: shape.paged(&self.value_scales, at, table, 1),
            }),
            scale: 1.0 / (d as f32).sqrt(),
            scores,
            room,
        }
    }

    /// Appends the key and the value of a head at a position of a page.
    pub(super) fn get(
        &self,
        shape: &KvShape,
        (layer, head): (usize, usize),
        (page, pos): (u32, usize),
        (keys, values): (&mut Vec<f32>, &mut Vec<f32>),
    ) {
        let (d, n_columns) = (shape.head_dim, shape.columns());
        let (block, lane) = (shape.block(layer, page, head) + pos / 16, pos % 16);
        let of = |scales: &[[f32; 16]]| scales.get(block).map_or(1.0, |scales| scales[lane]);
        let (key_scale, value_scale) = (of(&self.key_scales), of(&self.value_scales));
        let column = &self.keys[block * d..][..d];
        keys.extend(column.iter().map(|keys| keys[lane].widen() * key_scale));
        let row = &self.values[(block * 16 + lane) * n_columns..][..n_columns];
        values.extend(row.as_flattened()[..d].iter().map(|x| x.widen() * value_scale));
    }

    /// Copies a page of every layer over another one.
    pub(super) fn copy(&mut self, shape: &KvShape, from: u32, to: u32) {
        let n = shape.n_kv_heads * shape.blocks();
        for layer in 0..shape.n_layers {
            let (from, to) = (shape.block(layer, from, 0), shape.block(layer, to, 0));
            let (d, wide) = (shape.head_dim, 16 * shape.columns());
            self.keys.copy_within(from * d..(from + n) * d, to * d);
            self.values.copy_within(from * wide..(from + n) * wide, to * wide);
            if E::SCALED {
                self.key_scales.copy_within(from..from + n, to);
                self.value_scales.copy_within(from..from + n, to);
            }
        }
    }

    /// Fills a page of every layer with what is no number, or the largest one of an integer type times that.
    #[cfg(test)]
    pub(super) fn poison(&mut self, shape: &KvShape, page: u32) {
        let n = shape.n_kv_heads * shape.blocks();
        for layer in 0..shape.n_layers {
            let first = shape.block(layer, page, 0);
            let (d, wide) = (shape.head_dim, 16 * shape.columns());
            self.keys[first * d..][..n * d].fill([E::narrow(f32::NAN); 16]);
            self.values[first * wide..][..n * wide].fill([E::narrow(f32::NAN); 16]);
            if E::SCALED {
                self.key_scales[first..][..n].fill([f32::NAN; 16]);
                self.value_scales[first..][..n].fill([f32::NAN; 16]);
            }
        }
    }
}

/// What a code of a row is worth, and its inverse: the largest element becomes 127. What is no number, or infinite, makes the scale
/// so, and with it all that is computed from the row.
fn scale(row: &[f32]) -> (f32, f32) {
    let max = row.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    if row.iter().any(|x| x.is_nan()) {
        (f32::NAN, 0.0)
    } else if max > 0.0 {
        (max / 127.0, 127.0 / max)
    } else {
        (0.0, 0.0)
    }
}
