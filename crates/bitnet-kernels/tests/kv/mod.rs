//! Runs the kernels of attention as a model's back end does, over a cache that the test holds.

use crate::common::Random;
use bitnet_kernels::Global;
use bitnet_kernels::attention::{
    AttentionCluster, AttentionCluster32, AttentionCluster64, AttentionCluster128, AttentionCluster256,
    AttentionCombine, AttentionDecode, AttentionDecode32, AttentionDecode64, AttentionDecode128,
    AttentionDecode256, AttentionPrefill, AttentionPrefill32, AttentionPrefill64, AttentionPrefill128,
    AttentionPrefill256, Tile,
};
use bitnet_kernels::cache::{PAGE, READ_ONLY, cache_len, padded_head_dim};
use bitnet_kernels::emulator::{Emulator, Fault};
use bitnet_kernels::rope::{RopeAppend, q_scale};

/// The dimensions of an attention layer, and its angles.
pub(crate) struct Shape {
    pub(crate) n_heads: u32,
    pub(crate) n_kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) padded: u32,
    pub(crate) context: u32,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Shape {
    pub(crate) fn new(n_heads: u32, n_kv_heads: u32, head_dim: u32, context: u32) -> Self {
        let half = head_dim / 2;
        let angles = (0..context).flat_map(|position| {
            (0..half).map(move |d| f64::from(position) * 1e4f64.powf(-f64::from(d) / f64::from(half)))
        });
        Self {
            n_heads,
            n_kv_heads,
            head_dim,
            padded: padded_head_dim(head_dim).unwrap(),
            context,
            cos: angles.clone().map(|a| a.cos() as f32).collect(),
            sin: angles.map(|a| a.sin() as f32).collect(),
        }
    }

    /// Floats of a token in the output of the fused linear layer.
    pub(crate) fn row_len(&self) -> usize {
        ((self.n_heads + 2 * self.n_kv_heads) * self.head_dim) as usize
    }

    /// Head `head` of a row, rotated.
    pub(crate) fn rotated(&self, row: &[f32], head: u32, position: u32) -> Vec<f32> {
        let (d, half) = (self.head_dim as usize, self.head_dim as usize / 2);
        let x = &row[head as usize * d..][..d];
        let angle = |i: usize| position as usize * half + i % half;
        (0..d)
            .map(|i| {
                let other = if i < half { -x[i + half] } else { x[i - half] };
                x[i] * self.cos[angle(i)] + other * self.sin[angle(i)]
            })
            .collect()
    }

    /// A head as the cache keeps it.
    pub(crate) fn padded(&self, head: &[f32]) -> Vec<u16> {
        let mut bits: Vec<u16> = head.iter().map(|&x| (bf16(x).to_bits() >> 16) as u16).collect();
        bits.resize(self.padded as usize, 0);
        bits
    }
}

/// The value after a rounding to bfloat16.
pub(crate) fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Outputs of the fused linear layer for every token of some sequences.
pub(crate) struct Rows {
    values: Vec<f32>,
    len: u32,
}

impl Rows {
    pub(crate) fn new(shape: &Shape, sequences: u32, len: u32) -> Self {
        let mut random = Random::new(7);
        let n = sequences as usize * len as usize * shape.row_len();
        Self {
            values: (0..n).map(|_| random.float()).collect(),
            len,
        }
    }

    /// The same, where the first `len` tokens of every sequence are those of the first one.
    pub(crate) fn alike(mut self, shape: &Shape, len: usize) -> Self {
        let (per_sequence, alike) = (self.len as usize * shape.row_len(), len * shape.row_len());
        let (first, others) = self.values.split_at_mut(per_sequence);
        for sequence in others.chunks_exact_mut(per_sequence) {
            sequence[..alike].copy_from_slice(&first[..alike]);
        }
        self
    }

    pub(crate) fn row(&self, shape: &Shape, sequence: u32, position: u32) -> Vec<f32> {
        let at = (sequence * self.len + position) as usize * shape.row_len();
        self.values[at..][..shape.row_len()].to_vec()
    }

    fn batch(&self, shape: &Shape, tokens: &[(u32, u32)]) -> Vec<f32> {
        let rows = tokens.iter().map(|&(s, p)| self.row(shape, s, p));
        rows.collect::<Vec<_>>().concat()
    }
}

/// Keys and values of a layer, in pages, and the pages of every sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cache {
    pub(crate) k: Vec<u16>,
    pub(crate) v: Vec<u16>,
    pub(crate) tables: Vec<Vec<u32>>,
}

impl Cache {
    /// Sequences of the shape's context. Their pages lie scattered, from the last to the first, each between two that nobody
    /// holds.
    pub(crate) fn new(shape: &Shape, sequences: u32, fill: u16) -> Self {
        let (per_sequence, pages) = (shape.context / PAGE, sequences * shape.context / PAGE);
        let len = cache_len(
            2 * pages as usize + 1,
            shape.n_kv_heads as usize,
            shape.padded as usize,
        );
        let page = |sequence: u32, i: u32| 2 * (pages - 1 - sequence * per_sequence - i) + 1;
        let table = |sequence| (0..per_sequence).map(|i| page(sequence, i)).collect();
        Self {
            k: vec![fill; len],
            v: vec![fill; len],
            tables: (0..sequences).map(table).collect(),
        }
    }

    /// The same keys and values, where `to` has the first pages of `from` for its own.
    pub(crate) fn shared(&self, from: usize, to: usize, pages: usize) -> Self {
        let mut cache = self.clone();
        let table = cache.tables[from][..pages].to_vec();
        cache.tables[to][..pages].copy_from_slice(&table);
        cache
    }

    /// The tables of `sequences`, each with `len` entries; those that a table has not are of a page that nobody holds.
    fn rows(&self, sequences: impl Iterator<Item = u32>, len: u32) -> Vec<u32> {
        sequences
            .flat_map(|sequence| {
                let mut row = self.tables[sequence as usize].clone();
                row.resize(len as usize, 0);
                row
            })
            .collect()
    }

    /// Any keys and values.
    pub(crate) fn random(shape: &Shape, sequences: u32) -> Self {
        let mut random = Random::new(13);
        let mut cache = Self::new(shape, sequences, 0);
        for x in cache.k.iter_mut().chain(&mut cache.v) {
            *x = (bf16(random.float()).to_bits() >> 16) as u16;
        }
        cache
    }

    /// Key and value of one position.
    pub(crate) fn entry(&self, shape: &Shape, sequence: u32, head: u32, position: u32) -> [Vec<u16>; 2] {
        let at = |d: usize| self.at(shape, sequence, head, position, d);
        let (k, v) = (0..shape.padded as usize)
            .map(|d| (self.k[at(d)[0]], self.v[at(d)[1]]))
            .unzip();
        [k, v]
    }

    /// Where a dimension of a key and of a value lies.
    fn at(&self, shape: &Shape, sequence: u32, head: u32, position: u32, d: usize) -> [usize; 2] {
        let page = self.tables[sequence as usize][(position / PAGE) as usize] & !READ_ONLY;
        let (padded, p) = (shape.padded as usize, (position % PAGE) as usize);
        let base = (page * shape.n_kv_heads + head) as usize * PAGE as usize * padded;
        [base + p * padded + d, base + d * PAGE as usize + p]
    }

    /// This cache with `fill` at positions `position ..` of a sequence.
    pub(crate) fn poisoned_from(&self, shape: &Shape, sequence: u32, position: u32, fill: u16) -> Self {
        let mut cache = self.clone();
        for head in 0..shape.n_kv_heads {
            for p in position..shape.context {
                for d in 0..shape.padded as usize {
                    let [k, v] = self.at(shape, sequence, head, p, d);
                    (cache.k[k], cache.v[v]) = (fill, fill);
                }
            }
        }
        cache
    }
}

/// Appends and attends runs of (sequence, first position, tokens): the outputs of all tokens, and the cache after.
pub(crate) fn prefill(
    emulator: &mut Emulator,
    shape: &Shape,
    rows: &Rows,
    cache: &Cache,
    runs: &[(u32, u32, u32)],
) -> Result<(Vec<f32>, Cache), Fault> {
    let tokens: Vec<(u32, u32)> = runs
        .iter()
        .flat_map(|&(sequence, start, count)| (start..start + count).map(move |p| (sequence, p)))
        .collect();
    let mut row = 0;
    let mut tiles = Vec::new();
    for &(sequence, position, count) in runs {
        let run = Tile {
            row,
            count,
            table: sequence,
            position,
        };
        tiles.extend(run.cut(shape.n_heads, shape.n_kv_heads, shape.padded));
        row += count;
    }
    let batch = tokens.len() as u32;
    let table_len = shape.context / PAGE;
    let place = |&(sequence, position): &(u32, u32)| {
        cache.tables[sequence as usize][(position / PAGE) as usize] * PAGE + position % PAGE
    };
    let append = RopeAppend {
        qkv: emulator.constant(&rows.batch(shape, &tokens)),
        positions: emulator.constant(&tokens.iter().map(|t| t.1).collect::<Vec<_>>()),
        places: emulator.constant(&tokens.iter().map(place).collect::<Vec<_>>()),
        cos: emulator.constant(&shape.cos),
        sin: emulator.constant(&shape.sin),
        q: emulator.uninit((batch * shape.n_heads * shape.padded / 2) as usize),
        k_cache: emulator.buffer(&cache.k).cast(),
        v_cache: emulator.buffer(&cache.v),
        batch,
        n_heads: shape.n_heads,
        n_kv_heads: shape.n_kv_heads,
        head_dim: shape.head_dim,
        padded: shape.padded,
        q_scale: q_scale(shape.head_dim),
    };
    emulator.launch(&append.launch(), &append)?;
    let params = AttentionPrefill {
        q: append.q,
        k_cache: append.k_cache,
        v_cache: append.v_cache.cast(),
        tiles: emulator.constant(&tiles.iter().flat_map(|t| t.words()).collect::<Vec<_>>()),
        tables: emulator.constant(&cache.rows(0..cache.tables.len() as u32, table_len)),
        out: emulator.uninit((batch * shape.n_heads * shape.head_dim) as usize),
        n_tiles: tiles.len() as u32,
        n_heads: shape.n_heads,
        n_kv_heads: shape.n_kv_heads,
        head_dim: shape.head_dim,
        table_len,
    };
    macro_rules! launch {
        ($Params:ident) => {{
            let params = $Params::from(params);
            emulator.launch(&params.launch(), &params)?;
        }};
    }
    match shape.padded {
        32 => launch!(AttentionPrefill32),
        64 => launch!(AttentionPrefill64),
        128 => launch!(AttentionPrefill128),
        _ => launch!(AttentionPrefill256),
    }
    let cache = Cache {
        k: emulator.read(append.k_cache.cast())?,
        v: emulator.read(append.v_cache)?,
        tables: cache.tables.clone(),
    };
    Ok((emulator.read(params.out)?, cache))
}

/// Decoding of tokens (sequence, position), with room for partial results of `steps` steps.
fn attend(
    emulator: &mut Emulator,
    shape: &Shape,
    rows: &Rows,
    cache: &Cache,
    tokens: &[(u32, u32)],
    steps: u32,
    [values, sums]: [Global<f32>; 2],
) -> AttentionDecode {
    let table_len = steps.max(shape.context / PAGE);
    AttentionDecode {
        qkv: emulator.constant(&rows.batch(shape, tokens)),
        positions: emulator.constant(&tokens.iter().map(|t| t.1).collect::<Vec<_>>()),
        tables: emulator.constant(&cache.rows(tokens.iter().map(|t| t.0), table_len)),
        cos: emulator.constant(&shape.cos),
        sin: emulator.constant(&shape.sin),
        k_cache: emulator.buffer(&cache.k).cast(),
        v_cache: emulator.buffer(&cache.v).cast(),
        values,
        sums,
        batch: tokens.len() as u32,
        n_heads: shape.n_heads,
        n_kv_heads: shape.n_kv_heads,
        heads_per_kv: shape.n_heads / shape.n_kv_heads,
        head_dim: shape.head_dim,
        table_len,
        steps,
        q_scale: q_scale(shape.head_dim),
    }
}

/// Appends and attends tokens (sequence, position), one of a sequence: outputs, and the cache after.
pub(crate) fn decode(
    emulator: &mut Emulator,
    shape: &Shape,
    rows: &Rows,
    cache: &Cache,
    tokens: &[(u32, u32)],
) -> Result<(Vec<f32>, Cache), Fault> {
    let batch = tokens.len() as u32;
    // One more step than the positions need.
    let steps = tokens.iter().map(|t| t.1).max().unwrap() / 64 + 2;
    let partial = batch * shape.n_heads * steps;
    let values = emulator.uninit((partial * shape.padded) as usize);
    let sums = emulator.uninit(2 * partial as usize);
    let params = attend(emulator, shape, rows, cache, tokens, steps, [values, sums]);
    macro_rules! launch {
        ($Params:ident) => {{
            let params = $Params::from(params);
            emulator.launch(&params.launch(), &params)?;
        }};
    }
    match shape.padded {
        32 => launch!(AttentionDecode32),
        64 => launch!(AttentionDecode64),
        128 => launch!(AttentionDecode128),
        _ => launch!(AttentionDecode256),
    }
    let d_q = (shape.n_heads * shape.head_dim) as usize;
    let combine = AttentionCombine {
        values: params.values,
        sums: params.sums,
        positions: params.positions,
        out: emulator.uninit(batch as usize * d_q),
        batch,
        n_heads: shape.n_heads,
        head_dim: shape.head_dim,
        padded: shape.padded,
        steps,
    };
    emulator.launch(&combine.launch(), &combine)?;
    let out = emulator.read(combine.out)?;
    let cache = Cache {
        k: emulator.read(params.k_cache.cast())?,
        v: emulator.read(params.v_cache.cast())?,
        tables: cache.tables.clone(),
    };
    Ok((out, cache))
}

/// Shared memory that a block of any GPU has.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// [`decode`] in one kernel, in clusters of `steps` blocks: outputs, and the cache after.
pub(crate) fn decode_in_clusters(
    emulator: &mut Emulator,
    shape: &Shape,
    rows: &Rows,
    cache: &Cache,
    tokens: &[(u32, u32)],
    steps: u32,
) -> Result<(Vec<f32>, Cache), Fault> {
    let batch = tokens.len() as u32;
    let out = emulator.uninit((batch * shape.n_heads * shape.head_dim) as usize);
    // No partial results are left.
    let params = attend(emulator, shape, rows, cache, tokens, steps, [out, out]);
    let params = AttentionCluster::of(&params, out);
    macro_rules! launch {
        ($Params:ident) => {{
            let params = $Params::from(params);
            let launch = params.launch();
            assert!(launch.shared_bytes <= PLAIN_SHARED_BYTES, "{launch:?}");
            emulator.launch_clusters(&launch, &params, steps)?;
        }};
    }
    match shape.padded {
        32 => launch!(AttentionCluster32),
        64 => launch!(AttentionCluster64),
        128 => launch!(AttentionCluster128),
        _ => launch!(AttentionCluster256),
    }
    let cache = Cache {
        k: emulator.read(params.k_cache.cast())?,
        v: emulator.read(params.v_cache.cast())?,
        tables: cache.tables.clone(),
    };
    Ok((emulator.read(params.out)?, cache))
}
