//! Attention on a real GPU over scattered pages: the same bits from decode, prefill and pieces of a prompt, and what f64
//! says. Returns early where there is no GPU.

mod gpu;

use bitnet_cuda::{DeviceBuffer, LaunchConfig, Stream};
use bitnet_kernels::attention::{
    AttentionCluster, AttentionCluster64, AttentionCombine, AttentionDecode, AttentionPrefill, DecodeInputs,
    Heads, Prefill, Tile,
};
use bitnet_kernels::cache::{CopyPages, KvType, PAGE, READ_ONLY, padded_head_dim};
use bitnet_kernels::rope::{RopeAppend, q_scale};
use bitnet_kernels::{Kernel, Launch, Use};
use bitnet_layout::random::Random;
use bitnet_layout::{bf16_to_f32, f32_to_bf16};

const CONTEXT: u32 = 512;
const SEQUENCES: u32 = 3;

/// Pages of a sequence.
const TABLE_LEN: u32 = CONTEXT / PAGE;

/// Rows and positions of tokens, and the table of each.
type Batch = (DeviceBuffer<f32>, DeviceBuffer<u32>, DeviceBuffer<u32>);

/// Launches a kernel on a stream, as the function says.
struct Run<'a>(&'a Stream, fn(Launch) -> LaunchConfig);

impl Use for Run<'_> {
    type Output = ();

    fn of<K: Kernel>(self, kernel: K, launch: Launch) {
        // SAFETY: as in `Layer::prefill`.
        unsafe { self.0.launch(&kernel, (self.1)(launch)) }.unwrap();
    }
}

/// An attention layer on the GPU.
struct Layer<'a> {
    stream: &'a Stream,
    kv_type: KvType,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    padded: u32,
    angles: [Vec<f32>; 2],
    tables: [DeviceBuffer<f32>; 2],
    k: DeviceBuffer<u32>,
    v: DeviceBuffer<u32>,
    /// Pages of every sequence, scattered.
    pages: Vec<u32>,
    /// Rows of the fused linear layer for every sequence and position.
    rows: Vec<f32>,
}

impl<'a> Layer<'a> {
    fn new(stream: &'a Stream, kv_type: KvType, n_heads: u32, n_kv_heads: u32, head_dim: u32) -> Self {
        let half = head_dim / 2;
        let angles = (0..CONTEXT).flat_map(|position| {
            (0..half).map(move |d| f64::from(position) * 1e4f64.powf(-f64::from(d) / f64::from(half)))
        });
        let angles = [
            angles.clone().map(|a| a.cos() as f32).collect::<Vec<_>>(),
            angles.map(|a| a.sin() as f32).collect(),
        ];
        let padded = padded_head_dim(head_dim).unwrap();
        let n_pages = SEQUENCES * TABLE_LEN;
        let len = kv_type.words(n_pages as usize, n_kv_heads as usize, padded as usize);
        let mut random = Random::new(5);
        let row = (n_heads + 2 * n_kv_heads) * head_dim;
        let rows = (0..SEQUENCES * CONTEXT * row)
            .map(|_| random.word() as i32 as f32 / i32::MAX as f32)
            .collect();
        Self {
            stream,
            kv_type,
            n_heads,
            n_kv_heads,
            head_dim,
            padded,
            tables: angles.each_ref().map(|t| stream.upload_new("angles", t).unwrap()),
            angles,
            k: stream.gpu().alloc("keys", len).unwrap(),
            v: stream.gpu().alloc("values", len).unwrap(),
            // 5 has no factor in common with their number.
            pages: (0..n_pages).map(|i| (5 * i + 3) % n_pages).collect(),
            rows,
        }
    }

    fn table(&self, sequence: u32) -> &[u32] {
        &self.pages[(sequence * TABLE_LEN) as usize..][..TABLE_LEN as usize]
    }

    /// Fills the cache with NaN.
    fn poison(&self) {
        self.stream.fill_bytes(&self.k, 0xff).unwrap();
        self.stream.fill_bytes(&self.v, 0xff).unwrap();
    }

    fn d_q(&self) -> usize {
        (self.n_heads * self.head_dim) as usize
    }

    fn row(&self, (sequence, position): (u32, u32)) -> &[f32] {
        let len = self.d_q() + 2 * (self.n_kv_heads * self.head_dim) as usize;
        &self.rows[(sequence * CONTEXT + position) as usize * len..][..len]
    }

    /// Rows and positions of tokens, and the table of each.
    fn batch(&self, tokens: &[(u32, u32)]) -> Batch {
        let rows: Vec<&[f32]> = tokens.iter().map(|&token| self.row(token)).collect();
        let positions: Vec<u32> = tokens.iter().map(|t| t.1).collect();
        let tables: Vec<&[u32]> = tokens.iter().map(|t| self.table(t.0)).collect();
        (
            self.stream.upload_new("rows", &rows.concat()).unwrap(),
            self.stream.upload_new("positions", &positions).unwrap(),
            self.stream.upload_new("tables", &tables.concat()).unwrap(),
        )
    }

    fn prefill(&self, runs: &[(u32, u32, u32)]) -> Vec<f32> {
        let tokens: Vec<_> = runs
            .iter()
            .flat_map(|&(sequence, start, count)| (start..start + count).map(move |p| (sequence, p)))
            .collect();
        let (mut row, mut tiles) = (0, Vec::new());
        for &(sequence, position, count) in runs {
            let run = Tile {
                row,
                count,
                table: sequence,
                position,
            };
            let cut = run.cut(self.n_heads, self.n_kv_heads, self.padded);
            tiles.extend(cut.flat_map(Tile::words));
            row += count;
        }
        let (rows, positions, _) = self.batch(&tokens);
        let places: Vec<u32> = tokens
            .iter()
            .map(|&(s, p)| self.table(s)[(p / PAGE) as usize] * PAGE + p % PAGE)
            .collect();
        let places = self.stream.upload_new("places", &places).unwrap();
        let tables = self.stream.upload_new("tables", &self.pages).unwrap();
        let (gpu, batch) = (self.stream.gpu(), tokens.len() as u32);
        let q = gpu
            .alloc("queries", (batch * self.n_heads * self.padded / 2) as usize)
            .unwrap();
        let out = gpu.alloc("out", tokens.len() * self.d_q()).unwrap();
        let tiles = self.stream.upload_new("tiles", &tiles).unwrap();
        let append = RopeAppend {
            qkv: rows.global(),
            positions: positions.global(),
            places: places.global(),
            cos: self.tables[0].global(),
            sin: self.tables[1].global(),
            q: q.global(),
            k_cache: self.k.global(),
            v_cache: self.v.global(),
            batch,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            padded: self.padded,
            q_scale: q_scale(self.head_dim),
        };
        let attend = AttentionPrefill {
            q: q.global(),
            k_cache: append.k_cache,
            v_cache: append.v_cache,
            tiles: tiles.global(),
            tables: tables.global(),
            out: out.global(),
            n_tiles: tiles.len() as u32 / 4,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            table_len: TABLE_LEN,
        };
        // The buffers have the lengths that the kernels' shapes say, and live until the download below.
        append.with_kernel(self.kv_type, Run(self.stream, LaunchConfig::from));
        attend.with_kernel(Prefill::Warps(self.heads()), Run(self.stream, LaunchConfig::from));
        let by_warps = self.stream.download_all(&out).unwrap();
        if self.heads() == Heads::Bf16x128 && gpu.multiplies_by_warpgroups() {
            attend.with_kernel(Prefill::Warpgroups, Run(self.stream, LaunchConfig::from));
            let by_warpgroups = self.stream.download_all(&out).unwrap();
            assert_eq!(bits(&by_warpgroups), bits(&by_warps), "{runs:?}");
        }
        by_warps
    }

    fn heads(&self) -> Heads {
        Heads::new(self.padded, self.kv_type).unwrap()
    }

    /// Decoding of a batch in `steps` steps.
    fn attend(&self, (rows, positions, tables): &Batch, steps: u32) -> DecodeInputs {
        DecodeInputs {
            qkv: rows.global(),
            positions: positions.global(),
            tables: tables.global(),
            cos: self.tables[0].global(),
            sin: self.tables[1].global(),
            k_cache: self.k.global(),
            v_cache: self.v.global(),
            batch: positions.len() as u32,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            heads_per_kv: self.n_heads / self.n_kv_heads,
            head_dim: self.head_dim,
            table_len: TABLE_LEN,
            steps,
            q_scale: q_scale(self.head_dim),
        }
    }

    fn decode(&self, tokens: &[(u32, u32)]) -> Vec<f32> {
        let inputs = self.batch(tokens);
        let (gpu, batch, steps) = (self.stream.gpu(), tokens.len() as u32, CONTEXT / 64);
        let partial = (batch * self.n_heads * steps) as usize;
        let values = gpu.alloc("values", partial * self.padded as usize).unwrap();
        let sums = gpu.alloc("sums", 2 * partial).unwrap();
        let out = gpu.alloc("out", tokens.len() * self.d_q()).unwrap();
        let attend = AttentionDecode::new(self.attend(&inputs, steps), values.global(), sums.global());
        let combine = AttentionCombine {
            values: values.global(),
            sums: sums.global(),
            positions: inputs.1.global(),
            out: out.global(),
            batch,
            n_heads: self.n_heads,
            head_dim: self.head_dim,
            padded: self.padded,
            steps,
        };
        attend.with_kernel(self.heads(), Run(self.stream, LaunchConfig::from));
        // SAFETY: as in `prefill`.
        unsafe {
            let dependent = LaunchConfig::from(combine.launch()).programmatic_dependent();
            self.stream.launch(&combine, dependent).unwrap();
        }
        self.stream.download_all(&out).unwrap()
    }

    /// [`Layer::decode`] in one kernel, where the GPU has clusters.
    fn decode_in_clusters(&self, tokens: &[(u32, u32)]) -> Option<Vec<f32>> {
        let gpu = self.stream.gpu();
        if !gpu.has::<AttentionCluster64>() {
            return None;
        }
        let inputs = self.batch(tokens);
        let heads_per_kv = self.n_heads / self.n_kv_heads;
        let last = tokens.iter().map(|t| t.1).max().unwrap();
        let steps = AttentionCluster::blocks(last / 64 + 1, heads_per_kv).unwrap();
        let out = gpu.alloc("out", tokens.len() * self.d_q()).unwrap();
        let attend = AttentionCluster::new(self.attend(&inputs, steps), out.global());
        let config = |launch: Launch| {
            LaunchConfig::from(launch)
                .programmatic_dependent()
                .cluster(launch.grid[0])
        };
        attend.with_kernel(self.heads(), Run(self.stream, config));
        Some(self.stream.download_all(&out).unwrap())
    }

    /// Head `head` of a row, rotated.
    fn rotated(&self, token: (u32, u32), head: u32) -> Vec<f32> {
        let (d, half) = (self.head_dim as usize, self.head_dim as usize / 2);
        let x = &self.row(token)[head as usize * d..][..d];
        let angle = |i: usize| token.1 as usize * half + i % half;
        (0..d)
            .map(|i| {
                let other = if i < half { -x[i + half] } else { x[i - half] };
                x[i] * self.angles[0][angle(i)] + other * self.angles[1][angle(i)]
            })
            .collect()
    }

    /// What a head is worth in the cache.
    fn kept(&self, head: &[f32]) -> Vec<f64> {
        match self.kv_type {
            KvType::Bf16 => head.iter().map(|&x| bf16(x)).collect(),
            KvType::Int8 => {
                let largest = head.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
                let code = |x: &f32| (x * (127.0 / largest)).round_ties_even();
                head.iter()
                    .map(|x| f64::from(code(x)) * f64::from(largest / 127.0))
                    .collect()
            }
        }
    }

    /// The attention of one head in f64, and the same of the values' magnitudes.
    fn reference(&self, (sequence, position): (u32, u32), head: u32) -> Vec<[f64; 2]> {
        let kv_head = head / (self.n_heads / self.n_kv_heads);
        let q: Vec<f64> = self
            .rotated((sequence, position), head)
            .iter()
            .map(|x| bf16(x * q_scale(self.head_dim)))
            .collect();
        let scores = (0..=position).map(|p| {
            let k = self.rotated((sequence, p), self.n_heads + kv_head);
            q.iter().zip(self.kept(&k)).map(|(q, k)| q * k).sum::<f64>()
        });
        let weights: Vec<f64> = scores.map(f64::exp2).collect();
        let sum: f64 = weights.iter().sum();
        let first = ((self.n_heads + self.n_kv_heads + kv_head) * self.head_dim) as usize;
        let d = self.head_dim as usize;
        let mut out = vec![[0.0; 2]; d];
        for (p, weight) in (0..).zip(&weights) {
            let values = self.kept(&self.row((sequence, p))[first..][..d]);
            for (out, value) in out.iter_mut().zip(values) {
                let term = weight / sum * value;
                *out = [out[0] + term, out[1] + term.abs()];
            }
        }
        out
    }
}

/// The value after a rounding to bfloat16.
fn bf16(x: f32) -> f64 {
    bf16_to_f32(f32_to_bf16(x)).into()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_token_has_the_same_bits_however_it_is_computed() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    let shapes = [(20, 5, 128), (32, 32, 100), (8, 1, 64)];
    let types = [KvType::Bf16, KvType::Int8];
    for (kv_type, (n_heads, n_kv_heads, head_dim)) in types.into_iter().flat_map(|t| shapes.map(|s| (t, s))) {
        let layer = Layer::new(&stream, kv_type, n_heads, n_kv_heads, head_dim);
        let (d_q, len) = (layer.d_q(), 300);
        layer.poison();
        let whole = layer.prefill(&[(1, 0, len)]);
        for position in [0, 1, 63, 64, 65, 299] {
            for head in [0, n_heads - 1] {
                let at = position as usize * d_q + (head * head_dim) as usize;
                for (got, [expected, magnitude]) in
                    whole[at..].iter().zip(layer.reference((1, position), head))
                {
                    // A weight and the weights' sum are each off by a bfloat16 rounding, 2^-9.
                    let bound = magnitude * (2f64.powi(-8) + 2f64.powi(-12));
                    assert!(
                        (f64::from(*got) - expected).abs() <= bound,
                        "{kv_type:?}, position {position}, head {head}: {got} for {expected}"
                    );
                }
            }
        }

        layer.poison();
        let mut pieces = Vec::new();
        for (start, end) in [(0, 1), (1, 128), (128, 228), (228, len)] {
            pieces.extend(layer.prefill(&[(1, start, end - start)]));
        }
        assert!(
            bits(&pieces) == bits(&whole),
            "{kv_type:?} {n_heads} {head_dim}: pieces"
        );

        // From an empty cache, token by token.
        layer.poison();
        for position in 0..len {
            let out = layer.decode(&[(1, position)]);
            let expected = &whole[position as usize * d_q..][..d_q];
            assert!(
                bits(&out) == bits(expected),
                "{kv_type:?} {n_heads} {head_dim}: decode of {position}"
            );
        }
        layer.poison();
        for position in 0..len {
            let Some(out) = layer.decode_in_clusters(&[(1, position)]) else {
                println!("skipped: this GPU has no clusters");
                break;
            };
            let expected = &whole[position as usize * d_q..][..d_q];
            assert!(
                bits(&out) == bits(expected),
                "{kv_type:?} {n_heads} {head_dim}: decode of {position} in clusters"
            );
        }

        layer.poison();
        let batch = layer.prefill(&[(2, 0, 70), (1, 0, len), (0, 0, 5)]);
        assert!(bits(&batch[70 * d_q..(70 + len as usize) * d_q]) == bits(&whole));
        let tokens = [(0, 5), (1, len), (2, 70)];
        let decoded = layer.decode(&tokens);
        if let Some(out) = layer.decode_in_clusters(&tokens) {
            assert!(
                bits(&out) == bits(&decoded),
                "{kv_type:?} {n_heads} {head_dim}: in clusters"
            );
        }
        layer.poison();
        let long = layer.prefill(&[(1, 0, len + 1)]);
        assert!(bits(&decoded[d_q..2 * d_q]) == bits(&long[len as usize * d_q..]));
    }
}

/// Pages that are copied hold what the others do; a row that may only read leaves its page as it was.
#[test]
fn pages_are_copied_and_read_only_ones_stay() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    for kv_type in [KvType::Bf16, KvType::Int8] {
        check_copies(Layer::new(&stream, kv_type, 8, 2, 64));
    }
}

fn check_copies(mut layer: Layer<'_>) {
    let stream = layer.stream;
    let (d_q, len) = (layer.d_q(), 100);
    layer.poison();
    let whole = layer.prefill(&[(1, 0, len + 1)]);
    let last = &whole[len as usize * d_q..];

    // Sequence 0 takes up where sequence 1 was after 100 tokens: its first page is shared, its second a copy.
    let copied = [layer.table(1)[1], layer.table(0)[1]];
    layer.pages[0] = layer.table(1)[0];
    let pairs = stream.upload_new("pairs", &copied).unwrap();
    let copy = CopyPages {
        pairs: pairs.global(),
        k: layer.k.global(),
        v: layer.v.global(),
        n_pairs: 1,
        n_pages: SEQUENCES * TABLE_LEN,
        page_words: layer.kv_type.words(1, 2, layer.padded as usize) as u32,
        n_layers: 1,
    };
    // SAFETY: both pages are the pool's, which has one layer of this shape.
    unsafe { stream.launch(&copy, copy.launch()).unwrap() };
    let of_a_sequence = layer.rows.len() / SEQUENCES as usize;
    layer.rows.copy_within(of_a_sequence..2 * of_a_sequence, 0);
    assert!(bits(&layer.decode(&[(0, len)])) == bits(last));

    let before = [&layer.k, &layer.v].map(|pool| stream.download_all(pool).unwrap());
    layer.pages[2 * TABLE_LEN as usize..].fill(copied[0] | READ_ONLY);
    let out = layer.decode(&[(2, 3), (0, len)]);
    assert!(bits(&out[d_q..]) == bits(last));
    let after = [&layer.k, &layer.v].map(|pool| stream.download_all(pool).unwrap());
    assert!(after == before);
}
