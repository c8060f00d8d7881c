//! Runs the kernels of attention as a model's back end does, over a cache that the test holds.

use crate::common::Random;
use bitnet_kernels::attention::{
    AttentionCluster, AttentionCombine, AttentionDecode, AttentionPrefill, AttentionSerial, DecodeInputs,
    Heads, Prefill, Tile,
};
use bitnet_kernels::cache::{KvType, PAGE, READ_ONLY, padded_head_dim};
use bitnet_kernels::emulator::{Emulator, Fault};
use bitnet_kernels::rope::{RopeAppend, q_scale};
use bitnet_kernels::{Kernel, Launch, Use};
use bitnet_layout::{bf16_to_f32, f32_to_bf16};

/// The dimensions of an attention layer, its angles, and how it keeps keys and values.
pub(crate) struct Shape {
    pub(crate) n_heads: u32,
    pub(crate) n_kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) padded: u32,
    pub(crate) context: u32,
    pub(crate) kv_type: KvType,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Shape {
    pub(crate) fn new(kv_type: KvType, n_heads: u32, n_kv_heads: u32, head_dim: u32, context: u32) -> Self {
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
            kv_type,
            cos: angles.clone().map(|a| a.cos() as f32).collect(),
            sin: angles.map(|a| a.sin() as f32).collect(),
        }
    }

    /// The heads, as kernels are built for them.
    pub(crate) fn heads(&self) -> Heads {
        Heads::new(self.padded, self.kv_type).unwrap()
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

    /// What a head is worth in the cache, of its own dimensions.
    pub(crate) fn kept(&self, head: &[f32]) -> Vec<f32> {
        match self.kv_type {
            KvType::Bf16 => head.iter().map(|&x| bf16(x)).collect(),
            KvType::Int8 => {
                let largest = head.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
                if largest == 0.0 {
                    return vec![0.0; head.len()];
                }
                let times = 127.0 / largest;
                let of = |x: &f32| (x * times).round_ties_even() * (largest / 127.0);
                head.iter().map(of).collect()
            }
        }
    }
}

/// The value after a rounding to bfloat16.
pub(crate) fn bf16(x: f32) -> f32 {
    bf16_to_f32(f32_to_bf16(x))
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

    /// The same, where some columns of a token of the first sequence are `x`.
    pub(crate) fn with(
        mut self,
        shape: &Shape,
        position: usize,
        columns: std::ops::Range<usize>,
        x: f32,
    ) -> Self {
        self.values[position * shape.row_len()..][columns].fill(x);
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
    pub(crate) k: Vec<u8>,
    pub(crate) v: Vec<u8>,
    pub(crate) tables: Vec<Vec<u32>>,
}

/// What stands where nothing was put.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fill {
    Zero,
    /// No numbers: of 8-bit integers the scales, and the only code that nobody stores.
    Poison,
}

/// Bytes of one place: of an element of a key, of one of a value, and of the scale of both where there is one.
struct At {
    key: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
    scale: Option<std::ops::Range<usize>>,
}

impl Cache {
    /// Sequences of the shape's context. Their pages lie scattered, from the last to the first, each between two that nobody
    /// holds.
    pub(crate) fn new(shape: &Shape, sequences: u32, fill: Fill) -> Self {
        let (per_sequence, pages) = (shape.context / PAGE, sequences * shape.context / PAGE);
        let (heads, padded) = (shape.n_kv_heads as usize, shape.padded as usize);
        let n_pages = 2 * pages as usize + 1;
        let page = |sequence: u32, i: u32| 2 * (pages - 1 - sequence * per_sequence - i) + 1;
        let table = |sequence| (0..per_sequence).map(|i| page(sequence, i)).collect();
        let head: Vec<u8> = match (fill, shape.kv_type) {
            (Fill::Zero, kv_type) => vec![0; 4 * kv_type.head_words(padded)],
            (Fill::Poison, KvType::Bf16) => 0x7fffu16.to_le_bytes().repeat(PAGE as usize * padded),
            (Fill::Poison, KvType::Int8) => {
                let scales = f32::NAN.to_le_bytes().repeat(PAGE as usize);
                [vec![0x80; PAGE as usize * padded], scales].concat()
            }
        };
        Self {
            k: head.repeat(n_pages * heads),
            v: head.repeat(n_pages * heads),
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
        let mut cache = Self::new(shape, sequences, Fill::Zero);
        let head_bytes = 4 * shape.kv_type.head_words(shape.padded as usize);
        let elements = (PAGE * shape.padded) as usize;
        for head in cache
            .k
            .chunks_exact_mut(head_bytes)
            .chain(cache.v.chunks_exact_mut(head_bytes))
        {
            match shape.kv_type {
                KvType::Bf16 => {
                    for x in head.chunks_exact_mut(2) {
                        x.copy_from_slice(&bf16(random.float()).to_le_bytes()[2..]);
                    }
                }
                KvType::Int8 => {
                    head[..elements].fill_with(|| random.word() as u8);
                    for x in head[elements..].chunks_exact_mut(4) {
                        x.copy_from_slice(&(random.float() / 127.0).to_le_bytes());
                    }
                }
            }
        }
        cache
    }

    /// What key and value of one position are worth, in all dimensions of the cache.
    pub(crate) fn entry(&self, shape: &Shape, sequence: u32, head: u32, position: u32) -> [Vec<f32>; 2] {
        let f32_at =
            |bytes: &[u8], at: std::ops::Range<usize>| f32::from_le_bytes(bytes[at].try_into().unwrap());
        let worth =
            |bytes: &[u8], element: std::ops::Range<usize>, scale: Option<std::ops::Range<usize>>| match (
                scale,
                &bytes[element],
            ) {
                (None, &[low, high]) => f32::from_le_bytes([0, 0, low, high]),
                (Some(scale), &[code]) => f32::from(code as i8) * f32_at(bytes, scale),
                _ => unreachable!("elements of one or two bytes"),
            };
        (0..shape.padded as usize)
            .map(|d| {
                let at = self.at(shape, sequence, head, position, d);
                (
                    worth(&self.k, at.key, at.scale.clone()),
                    worth(&self.v, at.value, at.scale),
                )
            })
            .unzip::<f32, f32, Vec<f32>, Vec<f32>>()
            .into()
    }

    /// Where a dimension of a key and of a value lies.
    fn at(&self, shape: &Shape, sequence: u32, head: u32, position: u32, d: usize) -> At {
        let page = self.tables[sequence as usize][(position / PAGE) as usize] & !READ_ONLY;
        let (padded, p) = (shape.padded as usize, (position % PAGE) as usize);
        let head = (page * shape.n_kv_heads + head) as usize;
        let base = 4 * head * shape.kv_type.head_words(padded);
        let size = match shape.kv_type {
            KvType::Bf16 => 2,
            KvType::Int8 => 1,
        };
        let bytes = |element: usize| base + size * element..base + size * (element + 1);
        let scale = base + PAGE as usize * padded + 4 * p;
        let (run, in_run) = (p / (16 / size), p % (16 / size));
        let value = if padded > 128 {
            d * PAGE as usize + p
        } else {
            let place = d ^ (run * (4 / size) % 8);
            (run * padded + place) * (16 / size) + in_run
        };
        At {
            key: bytes(p * padded + d),
            value: bytes(value),
            scale: (size == 1).then_some(scale..scale + 4),
        }
    }

    /// This cache as if nothing had been put at positions `position ..` of a sequence.
    pub(crate) fn poisoned_from(&self, shape: &Shape, sequence: u32, position: u32, fill: Fill) -> Self {
        let mut cache = self.clone();
        let other = Self::new(shape, self.tables.len() as u32, fill);
        for head in 0..shape.n_kv_heads {
            for p in position..shape.context {
                for d in 0..shape.padded as usize {
                    let at = self.at(shape, sequence, head, p, d);
                    for (to, from, element) in [
                        (&mut cache.k, &other.k, at.key),
                        (&mut cache.v, &other.v, at.value),
                    ] {
                        to[element.clone()].copy_from_slice(&from[element]);
                        if let Some(scale) = at.scale.clone() {
                            to[scale.clone()].copy_from_slice(&from[scale]);
                        }
                    }
                }
            }
        }
        cache
    }
}

/// Launches a kernel, in clusters of some blocks where there are some.
struct Run<'a>(&'a mut Emulator, Option<u32>);

impl Use for Run<'_> {
    type Output = Result<(), Fault>;

    fn of<K: Kernel + 'static>(self, kernel: K, launch: Launch) -> Self::Output {
        match self.1 {
            None => self.0.launch(&launch, &kernel),
            Some(blocks) => self.0.launch_clusters(&launch, &kernel, blocks),
        }
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
        v_cache: emulator.buffer(&cache.v).cast(),
        batch,
        n_heads: shape.n_heads,
        n_kv_heads: shape.n_kv_heads,
        head_dim: shape.head_dim,
        padded: shape.padded,
        q_scale: q_scale(shape.head_dim),
    };
    append.with_kernel(shape.kv_type, Run(emulator, None))?;
    let params = AttentionPrefill {
        q: append.q,
        k_cache: append.k_cache,
        v_cache: append.v_cache,
        tiles: emulator.constant(&tiles.iter().flat_map(|t| t.words()).collect::<Vec<_>>()),
        tables: emulator.constant(&cache.rows(0..cache.tables.len() as u32, table_len)),
        out: emulator.uninit((batch * shape.n_heads * shape.head_dim) as usize),
        n_tiles: tiles.len() as u32,
        n_heads: shape.n_heads,
        n_kv_heads: shape.n_kv_heads,
        head_dim: shape.head_dim,
        table_len,
    };
    params.with_kernel(Prefill::Warps(shape.heads()), Run(emulator, None))?;
    let out: Vec<f32> = emulator.read(params.out)?;
    if shape.heads() == Heads::Bf16x128 {
        let params = AttentionPrefill {
            out: emulator.uninit(out.len()),
            ..params
        };
        params.with_kernel(Prefill::Warpgroups, Run(emulator, None))?;
        let by_warpgroups: Vec<f32> = emulator.read(params.out)?;
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&by_warpgroups), bits(&out), "by warpgroups");
    }
    let cache = Cache {
        k: emulator.read(append.k_cache.cast())?,
        v: emulator.read(append.v_cache.cast())?,
        tables: cache.tables.clone(),
    };
    Ok((out, cache))
}

/// Decoding of tokens (sequence, position) in `steps` steps.
fn attend(
    emulator: &mut Emulator,
    shape: &Shape,
    rows: &Rows,
    cache: &Cache,
    tokens: &[(u32, u32)],
    steps: u32,
) -> DecodeInputs {
    let table_len = steps.max(shape.context / PAGE);
    DecodeInputs {
        qkv: emulator.constant(&rows.batch(shape, tokens)),
        positions: emulator.constant(&tokens.iter().map(|t| t.1).collect::<Vec<_>>()),
        tables: emulator.constant(&cache.rows(tokens.iter().map(|t| t.0), table_len)),
        cos: emulator.constant(&shape.cos),
        sin: emulator.constant(&shape.sin),
        k_cache: emulator.buffer(&cache.k).cast(),
        v_cache: emulator.buffer(&cache.v).cast(),
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
    let inputs = attend(emulator, shape, rows, cache, tokens, steps);
    let params = AttentionDecode::new(inputs, values, sums);
    params.with_kernel(shape.heads(), Run(emulator, None))?;
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

/// [`decode`] in one kernel, a block for all steps of a key head; `None` where these heads have no such kernel.
pub(crate) fn decode_serially(
    emulator: &mut Emulator,
    shape: &Shape,
    rows: &Rows,
    cache: &Cache,
    tokens: &[(u32, u32)],
) -> Option<Result<(Vec<f32>, Cache), Fault>> {
    let out = emulator.uninit((tokens.len() as u32 * shape.n_heads * shape.head_dim) as usize);
    let params = AttentionSerial::new(attend(emulator, shape, rows, cache, tokens, 1), out);
    let run = params.with_kernel(shape.heads(), Run(emulator, None))?;
    Some(run.and_then(|()| {
        let cache = Cache {
            k: emulator.read(params.k_cache.cast())?,
            v: emulator.read(params.v_cache.cast())?,
            tables: cache.tables.clone(),
        };
        Ok((emulator.read(params.out)?, cache))
    }))
}

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
    let params = AttentionCluster::new(attend(emulator, shape, rows, cache, tokens, steps), out);
    params.with_kernel(shape.heads(), Run(emulator, Some(steps)))?;
    let cache = Cache {
        k: emulator.read(params.k_cache.cast())?,
        v: emulator.read(params.v_cache.cast())?,
        tables: cache.tables.clone(),
    };
    Ok((emulator.read(params.out)?, cache))
}
