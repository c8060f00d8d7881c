//! The ternary products in the emulator, against the scalar reference: integers exactly, and the same bits for a row of
//! activations whether it comes alone or in a batch.

use bitnet_kernels::bench::bit_gemv::{self, BitGemv};
use bitnet_kernels::bit_gemm::{BitGemm, Shape as GemmShape};
use bitnet_kernels::decode_linear::{DecodeLinear, Epilogue, Operands, RELU2, SILU};
use bitnet_kernels::emulator::{Emulator, Fault};
use bitnet_kernels::quantize_rows::{self, QuantizeRows};
use bitnet_kernels::{Global, Kernel, KernelInfo, Launch, Use};
use bitnet_layout::mma_tile::{self, RowOrder};
use bitnet_layout::reference;
use bitnet_layout::words::{Shape, pack_row};

/// Random test data.
struct Random(bitnet_layout::random::Random);

impl Random {
    fn new(seed: u64) -> Self {
        Self(bitnet_layout::random::Random::new(seed))
    }

    fn next(&mut self) -> u32 {
        self.0.word()
    }

    fn i8(&mut self) -> i8 {
        // Extremes often: they are what overflows.
        match self.next() % 8 {
            0 => -128,
            1 => 127,
            _ => self.next() as i8,
        }
    }

    fn f32(&mut self) -> f32 {
        self.0.unit()
    }
}

struct Matrix {
    /// With columns of zeros to whole words.
    shape: Shape,
    k: usize,
    words: Vec<u32>,
}

impl Matrix {
    fn random(n: usize, k: usize, random: &mut Random) -> Self {
        let shape = Shape::new(n, k.next_multiple_of(16)).unwrap();
        let mut words = vec![0; shape.words()];
        for row in words.chunks_exact_mut(shape.words_per_row()) {
            let mut t: Vec<i8> = (0..k).map(|_| (random.next() % 3) as i8 - 1).collect();
            t.resize(shape.k(), 0);
            pack_row(&t, row);
        }
        Self { shape, k, words }
    }

    fn tiles(&self, order: RowOrder) -> Vec<u32> {
        let mut tiles = vec![u32::MAX; mma_tile::words(self.shape.n(), self.shape.k())];
        mma_tile::pack(self.shape, order, &self.words, 0, &mut tiles);
        tiles
    }

    fn product(&self, x: &[i8]) -> Vec<i32> {
        let mut y = vec![0; x.len() / self.k * self.shape.n()];
        let widened: Vec<i8> = x
            .chunks_exact(self.k)
            .flat_map(|row| {
                row.iter()
                    .copied()
                    .chain(std::iter::repeat(0))
                    .take(self.shape.k())
            })
            .collect();
        reference::linear(self.shape, &self.words, &widened, &mut y);
        y
    }
}

/// Rows of activations as words in the order of the kernels, padded to whole tiles.
fn padded(x: &[i8], k: usize) -> Vec<u32> {
    let mut words = Vec::new();
    for row in x.chunks_exact(k) {
        let mut row = row.to_vec();
        row.resize(mma_tile::tiles_k(k) * mma_tile::COLUMNS, 0);
        let start = words.len();
        words.resize(start + row.len() / 4, 0);
        for (i, b) in row.as_chunks::<4>().0.iter().enumerate() {
            words[start + mma_tile::activation_word(i as u32) as usize] =
                u32::from_le_bytes(b.map(|b| b as u8));
        }
    }
    words
}

/// Runs a kernel in the emulator.
struct InEmulator<'a>(&'a mut Emulator);

impl Use for InEmulator<'_> {
    type Output = Result<(), Fault>;

    fn of<K: Kernel + 'static>(self, kernel: K, launch: Launch) -> Self::Output {
        self.0.launch(&launch, &kernel)
    }
}

/// Runs a kernel in the emulator, in clusters of so many blocks.
struct InClusters<'a>(&'a mut Emulator, u32);

impl Use for InClusters<'_> {
    type Output = Result<(), Fault>;

    fn of<K: Kernel + 'static>(self, kernel: K, launch: Launch) -> Self::Output {
        self.0.launch_clusters(&launch, &kernel, self.1)
    }
}

/// Tells which kernel it is, and its launch.
struct Which;

impl Use for Which {
    type Output = (KernelInfo, Launch);

    fn of<K: Kernel>(self, _: K, launch: Launch) -> Self::Output {
        (K::INFO, launch)
    }
}

fn check_gemv(n: usize, k: usize, cols: usize, variant: (u32, u32, Operands), seed: u64) {
    let mut random = Random::new(seed + (n * 31 + k * 7 + cols) as u64);
    let matrix = Matrix::random(n, k, &mut random);
    let x: Vec<i8> = (0..cols * k).map(|_| random.i8()).collect();
    let exact = matrix.product(&x);
    let (row_b, row_c) = (n as u32 / 2, n as u32 - n as u32 / 4);
    let mut emulator = Emulator::new(seed);
    let y = emulator.uninit(cols * n);
    let (w, x) = (
        emulator.constant(&matrix.tiles(RowOrder::Plain)),
        emulator.constant(&padded(&x, k)),
    );
    let unit: Vec<f32> = (0..cols).map(|c| 1.0 / (c + 1) as f32).collect();
    let unit_buffer = emulator.constant(&unit);
    let params = BitGemv {
        w,
        x,
        unit: unit_buffer,
        y,
        n: n as u32,
        k: k as u32,
        cols: cols as u32,
        row_b,
        row_c,
        scale_a: 1.0,
        scale_b: 3.0,
        scale_c: 0.5,
    };
    let run = params.with_kernel(variant, InEmulator(&mut emulator));
    run.unwrap().unwrap();
    for (i, (&y, &exact)) in emulator.read(y).unwrap().iter().zip(&exact).enumerate() {
        let (col, row) = (i / n, (i % n) as u32);
        let scale = if row >= row_c {
            0.5
        } else if row >= row_b {
            3.0
        } else {
            1.0
        };
        let expected = exact as f32 * (scale * unit[col]);
        assert_eq!(
            y, expected,
            "({n}, {k}) column {col} row {row}, variant {variant:?}, seed {seed}"
        );
    }
}

#[test]
fn gemv_is_exact() {
    for &variant in BitGemv::KEYS {
        for (n, k) in [(1, 16), (15, 128), (16, 144), (17, 112), (33, 640), (65, 272)] {
            check_gemv(n, k, 1, variant, 1);
        }
        check_gemv(48, 384, 1, variant, 2);
        check_gemv(48, 384, 1, variant, 3);
        let widths: &[usize] = if variant.2 == Operands::Bits {
            &[]
        } else {
            &[2, 7, 8]
        };
        for &cols in widths {
            check_gemv(20, 160, cols, variant, 4);
        }
    }
}

/// More tiles than the warps of a block hold at once: the loop over chunks of k.
#[test]
fn gemv_of_long_rows() {
    for (variant, tiles) in [((2, 1), 20), ((2, 3), 54)] {
        check_gemv(
            3,
            (tiles + 1) * 128,
            1,
            (variant.0, variant.1, Operands::Bytes),
            5,
        );
        check_gemv(
            16,
            tiles * 128 + 16,
            2,
            (variant.0, variant.1, Operands::Bytes),
            6,
        );
    }
    check_gemv(3, 55 * 128, 1, (2, 3, Operands::Bits), 5);
}

#[test]
fn variants_cover_the_model_shapes() {
    for (n, k) in [
        (2560, 2560),
        (3840, 2560),
        (13824, 2560),
        (2560, 6912),
        (20480, 3200),
        (3200, 10240),
        (1, 16),
    ] {
        for variant in [bit_gemv::variant(n, k), bit_gemv::variant_on_bits(n, k)] {
            assert!(BitGemv::KEYS.contains(&variant), "({n}, {k}): {variant:?}");
        }
    }
}

/// What a linear layer of one token needs beyond its matrix.
struct Layer {
    n: usize,
    k: usize,
    eps: f32,
    activation: u32,
    scales: [f32; 3],
}

struct Buffers {
    tiles: Global<u32>,
    x: Global<f32>,
    norm: Global<f32>,
    y: Global<f32>,
}

fn outputs(kind: Epilogue, n: usize) -> usize {
    if kind == Epilogue::Gated { n / 2 } else { n }
}

impl Layer {
    fn row_b(&self, kind: Epilogue) -> u32 {
        if kind == Epilogue::Gated {
            u32::MAX
        } else {
            self.n as u32 / 2
        }
    }

    fn row_c(&self, kind: Epilogue) -> u32 {
        if kind == Epilogue::Gated {
            u32::MAX
        } else {
            self.n as u32 / 2 + 3
        }
    }

    fn params(&self, kind: Epilogue, b: &Buffers) -> DecodeLinear {
        DecodeLinear {
            w: b.tiles,
            x: b.x,
            norm: b.norm,
            y: b.y,
            n: self.n as u32,
            k: self.k as u32,
            cols: 1,
            eps: self.eps,
            activation: self.activation,
            row_b: self.row_b(kind),
            row_c: self.row_c(kind),
            scale_a: self.scales[0],
            scale_b: self.scales[1],
            scale_c: self.scales[2],
        }
    }

    /// The fused kernel for a few rows, if there is one.
    fn few(&self, emulator: &mut Emulator, kind: Epilogue, rows: usize, b: &Buffers) -> bool {
        let Some(key) = kind.key_of_few(self.k, rows) else {
            return false;
        };
        let params = DecodeLinear {
            cols: rows as u32,
            ..self.params(kind, b)
        };
        params.with_kernel(key, InEmulator(emulator)).unwrap().unwrap();
        true
    }

    /// The fused kernel, on bits in the first grid or on bytes.
    fn decode(&self, emulator: &mut Emulator, kind: Epilogue, bits: bool, b: &Buffers) {
        let tile_rows = kind.tile_rows(self.k).next().unwrap();
        let operands = if bits { Operands::Bits } else { Operands::Bytes };
        let key = kind.key(operands, self.k, tile_rows);
        let run = self.params(kind, b).with_kernel(key, InEmulator(emulator));
        run.unwrap().unwrap();
    }

    /// The batch kernels; mid blocks in so many bytes of shared memory.
    fn batch(
        &self,
        emulator: &mut Emulator,
        kind: Epilogue,
        (shape, rows): (GemmShape, usize),
        room: u32,
        b: &Buffers,
    ) {
        let order = shape.order();
        let padded = mma_tile::padded_rows(order, rows);
        let q = emulator.uninit(padded * quantize_rows::words_per_row(self.k));
        let (unit, sum) = (emulator.uninit(rows), emulator.uninit(rows));
        let quantize = QuantizeRows {
            x: b.x,
            norm: b.norm,
            q,
            unit,
            sum,
            k: self.k as u32,
            eps: self.eps,
            rows: rows as u32,
            order: order as u32,
        };
        emulator
            .launch(&quantize_rows::launch(rows, self.k, order), &quantize)
            .unwrap();
        let product = BitGemm {
            w: b.tiles,
            x: q,
            unit,
            sum,
            y: b.y,
            n: self.n as u32,
            k: self.k as u32,
            cols: rows as u32,
            activation: self.activation,
            row_b: self.row_b(kind),
            row_c: self.row_c(kind),
            scale_a: self.scales[0],
            scale_b: self.scales[1],
            scale_c: self.scales[2],
            slots: shape.slots(kind, self.k, room),
        };
        let cluster = shape.cluster(product.slots);
        product
            .with_kernel((kind, shape), InClusters(emulator, cluster))
            .unwrap();
    }
}

/// The layer in f64, with the codes as the kernels define them.
fn layer_reference(
    layer: &Layer,
    kind: Epilogue,
    matrix: &Matrix,
    x: &[f32],
    norm: &[f32],
    before: &[f32],
) -> Vec<f64> {
    let absmax = x
        .iter()
        .zip(norm)
        .map(|(x, w)| (x * w).abs())
        .fold(0.0f32, f32::max);
    let scale = 127.0 * (1.0 / absmax.max(1e-30));
    let q: Vec<i8> = x
        .iter()
        .zip(norm)
        .map(|(x, w)| (x * w * scale).round_ties_even() as i8)
        .collect();
    let rms =
        (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64 + f64::from(layer.eps)).sqrt();
    let unit = 1.0 / (f64::from(scale) * if layer.eps < 0.0 { 1.0 } else { rms });
    let z = matrix.product(&q);
    if kind == Epilogue::Gated {
        return (0..layer.n / 2)
            .map(|i| {
                let gate = f64::from(z[i]) * f64::from(layer.scales[0]) * unit;
                let up = f64::from(z[i + layer.n / 2]) * f64::from(layer.scales[1]) * unit;
                let gate = if layer.activation == RELU2 {
                    gate.max(0.0).powi(2)
                } else {
                    gate / (1.0 + (-gate).exp())
                };
                gate * up
            })
            .collect();
    }
    (0..layer.n)
        .map(|i| {
            let range =
                usize::from(i as u32 >= layer.row_b(kind)) + usize::from(i as u32 >= layer.row_c(kind));
            let before = if kind == Epilogue::Add {
                f64::from(before[i])
            } else {
                0.0
            };
            before + f64::from(z[i]) * f64::from(layer.scales[range]) * unit
        })
        .collect()
}

/// What blocks of a shape are tried with: the shared memory of GPUs with little of it and of those with much.
fn rooms(shape: GemmShape) -> &'static [u32] {
    match shape {
        GemmShape::Mid16 | GemmShape::Mid32 => &[99 << 10, 227 << 10],
        _ => &[99 << 10],
    }
}

fn check_layer(
    n: usize,
    k: usize,
    kind: Epilogue,
    eps: f32,
    activation: u32,
    shapes: &[(GemmShape, usize)],
    seed: u64,
) {
    let mut random = Random::new(seed * 1000 + (n + k) as u64);
    let layer = Layer {
        n,
        k,
        eps,
        activation,
        scales: [0.02, 0.03, 0.05],
    };
    let matrix = Matrix::random(n, k, &mut random);
    let order = if kind == Epilogue::Gated {
        RowOrder::Paired
    } else {
        RowOrder::Plain
    };
    let tiles = matrix.tiles(order);
    let most = shapes.iter().map(|s| s.1).max().unwrap_or(1);
    let x: Vec<f32> = (0..most * k).map(|i| random.f32() * (1 + i / k) as f32).collect();
    let norm: Vec<f32> = (0..k).map(|_| random.f32() + 1.5).collect();
    let outputs = outputs(kind, n);
    let before: Vec<f32> = (0..most * outputs).map(|_| random.f32()).collect();

    // Each row alone, through the fused kernel.
    let mut alone = Vec::new();
    for row in 0..most {
        let (x, before) = (&x[row * k..][..k], &before[row * outputs..][..outputs]);
        let [y, on_bytes] = [true, false].map(|bits| {
            let mut emulator = Emulator::new(seed);
            let buffers = Buffers {
                tiles: emulator.constant(&tiles),
                x: emulator.constant(x),
                norm: emulator.constant(&norm),
                y: if kind == Epilogue::Add {
                    emulator.buffer(before)
                } else {
                    emulator.uninit(outputs)
                },
            };
            layer.decode(&mut emulator, kind, bits, &buffers);
            emulator.read(buffers.y).unwrap()
        });
        assert!(y.iter().zip(&on_bytes).all(|(a, b)| a.to_bits() == b.to_bits()));
        let reference = layer_reference(&layer, kind, &matrix, x, &norm, before);
        let size = reference.iter().fold(0.0f64, |m, r| m.max(r.abs()));
        for (i, (&y, &r)) in y.iter().zip(&reference).enumerate() {
            let error = (f64::from(y) - r).abs();
            // A dozen float operations of relative error 2^-24 each.
            assert!(
                error <= 2e-6 * size,
                "{kind:?} ({n}, {k}) row {row} output {i}: {y} is not {r}"
            );
        }
        alone.extend(y);
    }

    // A few of the rows together, through the fused kernels: the same bits.
    for rows in 2..=most.min(4) {
        let mut emulator = Emulator::new(seed + 2);
        let buffers = Buffers {
            tiles: emulator.constant(&tiles),
            x: emulator.constant(&x[..rows * k]),
            norm: emulator.constant(&norm),
            y: if kind == Epilogue::Add {
                emulator.buffer(&before[..rows * outputs])
            } else {
                emulator.uninit(rows * outputs)
            },
        };
        if layer.few(&mut emulator, kind, rows, &buffers) {
            let y = emulator.read(buffers.y).unwrap();
            assert_eq!(y, alone[..rows * outputs], "{kind:?} ({n}, {k}), {rows} rows");
        }
    }

    // The rows together, through the batch kernels: the same bits.
    for (&(shape, rows), room) in shapes
        .iter()
        .flat_map(|s| rooms(s.0).iter().map(move |room| (s, *room)))
    {
        let mut emulator = Emulator::new(seed + 1);
        let buffers = Buffers {
            tiles: emulator.constant(&tiles),
            x: emulator.constant(&x[..rows * k]),
            norm: emulator.constant(&norm),
            y: if kind == Epilogue::Add {
                emulator.buffer(&before[..rows * outputs])
            } else {
                emulator.uninit(rows * outputs)
            },
        };
        layer.batch(&mut emulator, kind, (shape, rows), room, &buffers);
        let y = emulator.read(buffers.y).unwrap();
        assert_eq!(
            y,
            alone[..rows * outputs],
            "{kind:?} ({n}, {k}), {rows} rows, {shape:?}, {room} bytes"
        );
    }
}

#[test]
fn a_row_alone_and_in_a_batch() {
    let all = [
        (GemmShape::Narrow8, 3),
        (GemmShape::Flat8, 3),
        (GemmShape::Flat16, 3),
        (GemmShape::Flat32, 3),
        (GemmShape::Mid16, 3),
        (GemmShape::Mid32, 3),
    ];
    // Widths of whole words and others.
    for (n, k) in [(16, 128), (34, 272), (48, 96), (20, 276)] {
        check_layer(n, k, Epilogue::Store, 1e-5, RELU2, &all, 1);
        check_layer(n, k, Epilogue::Add, 1e-5, RELU2, &all, 2);
        check_layer(n, k, Epilogue::Gated, 1e-5, RELU2, &all, 3);
    }
    check_layer(48, 160, Epilogue::Gated, 1e-5, SILU, &all, 4);
    check_layer(48, 160, Epilogue::Add, -1.0, RELU2, &all, 5);
}

/// Rows of tiles that fill no block, columns that fill none or take turns, parts of k that are not whole.
#[test]
fn mid_blocks() {
    let shapes = [
        (GemmShape::Narrow8, 9),
        (GemmShape::Flat8, 9),
        (GemmShape::Flat16, 17),
        (GemmShape::Flat32, 35),
        (GemmShape::Mid16, 17),
        (GemmShape::Mid32, 35),
    ];
    for (i, kind) in [Epilogue::Store, Epilogue::Add, Epilogue::Gated]
        .into_iter()
        .enumerate()
    {
        check_layer(80, 656, kind, 1e-5, SILU, &shapes, 30 + i as u64);
    }
    // As many parts of k as flat blocks have.
    let flat = [
        (GemmShape::Flat8, 5),
        (GemmShape::Flat16, 10),
        (GemmShape::Flat32, 19),
    ];
    for kind in [Epilogue::Store, Epilogue::Add, Epilogue::Gated] {
        check_layer(66, 2560, kind, 1e-5, RELU2, &flat, 45);
    }
    let whole = [(GemmShape::Mid32, 9)];
    check_layer(32, 2560, Epilogue::Gated, 1e-5, RELU2, &whole, 40);
    check_layer(32, 2560, Epilogue::Store, 1e-5, RELU2, &whole, 41);
}

/// A block that is not full, all lanes of the largest and more outputs than lanes; a warp with more tiles than it holds at a time.
#[test]
fn a_few_rows() {
    let shapes = [(GemmShape::Narrow8, 2)];
    for (i, kind) in [Epilogue::Store, Epilogue::Add, Epilogue::Gated]
        .into_iter()
        .enumerate()
    {
        assert_eq!(
            [2, 3, 4, 5].map(|rows| kind.key_of_few(2560, rows).map(|key| key.4)),
            [Some(2), None, None, None]
        );
        check_layer(200, 656, kind, 1e-5, SILU, &shapes, 50 + i as u64);
    }
    check_layer(80, 2560, Epilogue::Add, 1e-5, RELU2, &shapes, 53);
    assert!(Epilogue::Add.key_of_few(6912, 2).is_some());
    check_layer(
        66,
        6912,
        Epilogue::Add,
        1e-5,
        RELU2,
        &[(GemmShape::Narrow8, 2)],
        54,
    );
    check_layer(
        18,
        65 * 128,
        Epilogue::Add,
        1e-5,
        RELU2,
        &[(GemmShape::Narrow8, 2)],
        55,
    );
}

/// More tiles of a part than there is room for, and than its warps have weights of.
#[test]
fn mid_blocks_of_long_rows() {
    let shapes = [
        (GemmShape::Narrow8, 9),
        (GemmShape::Mid16, 2),
        (GemmShape::Mid32, 33),
    ];
    check_layer(18, 6912, Epilogue::Add, 1e-5, RELU2, &shapes, 42);
    check_layer(18, 66 * 128, Epilogue::Store, 1e-5, RELU2, &shapes[1..2], 43);
    check_layer(18, 3296, Epilogue::Gated, 1e-5, RELU2, &shapes[..2], 44);
}

#[test]
fn wide_blocks() {
    let wide = [(GemmShape::Wide64, 5), (GemmShape::Wide128, 5)];
    for kind in [Epilogue::Store, Epilogue::Add, Epilogue::Gated] {
        check_layer(34, 160, kind, 1e-5, RELU2, &wide, 6);
    }
    // Two blocks each way, more tiles along k than a ring has.
    check_layer(
        144,
        656,
        Epilogue::Store,
        1e-5,
        RELU2,
        &[(GemmShape::Wide64, 66), (GemmShape::Wide128, 66)],
        7,
    );
    for kind in [Epilogue::Add, Epilogue::Gated] {
        check_layer(176, 352, kind, 1e-5, SILU, &[(GemmShape::Wide128, 131)], 13);
    }
}

#[test]
fn blocks_of_warpgroups() {
    let shapes = [
        GemmShape::Hopper64x2,
        GemmShape::Hopper64x4,
        GemmShape::Hopper128,
        GemmShape::Hopper160,
    ];
    let few = shapes.map(|shape| (shape, 5));
    check_layer(34, 160, Epilogue::Add, 1e-5, RELU2, &few, 50);
    for (n, kind, shape, k) in [
        (80, Epilogue::Add, GemmShape::Hopper64x2, 1008),
        (80, Epilogue::Store, GemmShape::Hopper64x4, 1904),
        (144, Epilogue::Gated, GemmShape::Hopper128, 1008),
        (144, Epilogue::Add, GemmShape::Hopper160, 880),
    ] {
        // Two blocks each way; then more tiles along k than a ring has.
        check_layer(n, 160, kind, 1e-5, SILU, &[(shape, 161)], 51);
        check_layer(34, k, kind, 1e-5, SILU, &[(shape, 3)], 52);
    }
}

/// Rows that fill no block, parts of k without a tile, more tiles than a warp has weights of; clusters that divide k.
#[test]
fn slim_blocks() {
    let [some, many] = [(GemmShape::Slim32, 18), (GemmShape::Slim64, 33)];
    check_layer(34, 160, Epilogue::Add, 1e-5, RELU2, &[some, many], 60);
    for kind in [Epilogue::Store, Epilogue::Add, Epilogue::Gated] {
        check_layer(144, 656, kind, 1e-5, SILU, &[some], 61);
        check_layer(80, 272, kind, 1e-5, SILU, &[many], 62);
        check_layer(34, 21 * 128, kind, 1e-5, SILU, &[some], 63);
    }
    // Two blocks along the columns.
    for kind in [Epilogue::Store, Epilogue::Add] {
        check_layer(80, 272, kind, 1e-5, SILU, &[(GemmShape::Slim32, 49)], 65);
        check_layer(34, 33 * 128, kind, 1e-5, SILU, &[(GemmShape::Slim32, 33)], 66);
    }
    for (kind, k) in [(Epilogue::Add, 25 * 128), (Epilogue::Store, 33 * 128 - 16)] {
        assert_eq!(GemmShape::Slim64.slots(kind, k, 227 << 10), 2);
        assert_eq!(
            GemmShape::Slim32.slots(kind, k, 227 << 10),
            1 + u32::from(k > 32 * 128)
        );
        check_layer(34, k, kind, 1e-5, SILU, &[some, many], 64);
    }
}

/// Parts of k that are not whole, and as many as there may be; rows of tiles that fill no block.
#[test]
fn long_flat_blocks() {
    for (n, k) in [(18, 25 * 128 - 16), (34, 6912)] {
        check_layer(
            n,
            k,
            Epilogue::Add,
            1e-5,
            RELU2,
            &[(GemmShape::FlatLong8, 7), (GemmShape::FlatLong16, 11)],
            66,
        );
    }
}

/// A product of which only the launch is asked for.
fn nothing(emulator: &mut Emulator) -> BitGemm {
    let (word, one) = (emulator.constant(&[0u32]), emulator.constant(&[1.0f32]));
    BitGemm {
        w: word,
        x: word,
        unit: one,
        sum: emulator.constant(&[0i32]),
        y: one,
        n: 1,
        k: 1,
        cols: 1,
        activation: RELU2,
        row_b: 0,
        row_c: 0,
        scale_a: 1.0,
        scale_b: 1.0,
        scale_c: 1.0,
        slots: 1,
    }
}

/// Large products get the larger blocks, unless these would leave slots empty; every shape covers the product and fits.
#[test]
fn plans() {
    let shape = |n, k, cols| GemmShape::new(Epilogue::Add, n, k, cols, false);
    assert_eq!(shape(13824, 2560, 8), GemmShape::Narrow8);
    assert_eq!(shape(13824, 2560, 9), GemmShape::Flat16);
    assert_eq!(shape(2560, 6912, 9), GemmShape::Mid16);
    assert_eq!(shape(3840, 2560, 32), GemmShape::Mid32);
    assert_eq!(shape(3840, 2560, 64), GemmShape::Flat32);
    let gated = GemmShape::new(Epilogue::Gated, 13824, 2560, 32, false);
    assert_eq!(gated, GemmShape::Flat32);
    assert_eq!(shape(2560, 6912, 64), GemmShape::Mid32);
    assert_eq!(shape(13824, 2560, 65), GemmShape::Wide64);
    assert_eq!(shape(13824, 2560, 512), GemmShape::Wide64);
    assert_eq!(shape(13824, 2560, 1024), GemmShape::Wide128);
    assert_eq!(shape(13824, 2560, 2048), GemmShape::Wide128);
    assert_eq!(shape(3840, 2560, 512), GemmShape::Wide64);
    assert_eq!(shape(3840, 2560, 2048), GemmShape::Wide128);
    assert_eq!(shape(2560, 6912, 512), GemmShape::Wide64);
    assert_eq!(shape(2560, 6912, 2048), GemmShape::Wide64);
    // By warpgroups: as many small blocks as run at once, or large ones.
    let shape = |n, cols| GemmShape::new(Epilogue::Store, n, 2560, cols, true);
    assert_eq!(shape(13824, 3), GemmShape::Flat8);
    assert_eq!(shape(13824, 8), GemmShape::Flat8);
    assert_eq!(shape(13824, 16), GemmShape::Flat16);
    assert_eq!(shape(13824, 17), GemmShape::Slim32);
    assert_eq!(shape(13824, 64), GemmShape::Slim64);
    let add = |k, cols| GemmShape::new(Epilogue::Add, 2560, k, cols, true);
    assert_eq!(add(2560, 64), GemmShape::Slim32);
    let down = |k| add(k, 16);
    assert_eq!(
        [4, 5].map(|cols| add(2560, cols)),
        [GemmShape::Narrow8, GemmShape::Flat8]
    );
    assert_eq!(
        [4, 5].map(|cols| add(6912, cols)),
        [GemmShape::Narrow8, GemmShape::FlatLong8]
    );
    assert_eq!(down(6912), GemmShape::FlatLong16);
    assert_eq!(down(57 * 128), GemmShape::Mid16);
    let deep = |kind, k, cols| GemmShape::new(kind, 4096, k, cols, true);
    assert_eq!(deep(Epilogue::Gated, 24 * 128, 64), GemmShape::Slim64);
    assert_eq!(deep(Epilogue::Gated, 25 * 128, 64), GemmShape::Mid32);
    assert_eq!(deep(Epilogue::Store, 192 * 128, 64), GemmShape::Slim64);
    assert_eq!(deep(Epilogue::Store, 193 * 128, 64), GemmShape::Mid32);
    assert_eq!(deep(Epilogue::Add, 256 * 128, 64), GemmShape::Slim32);
    assert_eq!(deep(Epilogue::Add, 257 * 128, 64), GemmShape::Mid32);
    assert_eq!(shape(3840, 65), GemmShape::Hopper64x4);
    assert_eq!(shape(3840, 512), GemmShape::Hopper64x2);
    assert_eq!(shape(2560, 2048), GemmShape::Hopper160);
    assert_eq!(shape(13824, 256), GemmShape::Hopper128);
    let mut emulator = Emulator::new(0);
    let product = BitGemm {
        n: 1000,
        k: 640,
        cols: 300,
        ..nothing(&mut emulator)
    };
    for wide in [GemmShape::Wide64, GemmShape::Wide128] {
        let (_, launch) = product.with_kernel((Epilogue::Store, wide), Which);
        let width = if wide == GemmShape::Wide64 { 64 } else { 128 };
        assert_eq!(launch.grid, [8, 300u32.div_ceil(width), 1]);
        // What a block may have on every GPU from capability 8.0 on.
        assert!(launch.shared_bytes <= 99 * 1024);
    }
    // Of the 2B model, on an H100: two blocks of gate and up a multiprocessor, one of the others.
    for (kind, n, k, cols, blocks, most) in [
        (Epilogue::Store, 3840, 2560, 32, [120, 1], 113),
        (Epilogue::Add, 2560, 2560, 64, [80, 2], 113),
        (Epilogue::Gated, 13824, 2560, 64, [216, 1], 113),
        (Epilogue::Add, 2560, 6912, 32, [80, 1], 227),
        (Epilogue::Add, 2560, 6912, 64, [80, 1], 227),
    ] {
        for room in [99 << 10, 227 << 10] {
            let product = BitGemm {
                n,
                k,
                cols,
                slots: GemmShape::Mid32.slots(kind, k as usize, room),
                ..product
            };
            let (info, launch) = product.with_kernel((kind, GemmShape::Mid32), Which);
            assert_eq!(launch.grid[..2], blocks, "{kind:?} ({n}, {k})");
            assert!(launch.block[0] <= info.block[0]);
            assert!(launch.shared_bytes <= room.min(most << 10), "{kind:?} ({n}, {k})");
        }
    }
}

/// Slim blocks, of the 2B model and of the longest rows, fit a multiprocessor of an H100.
#[test]
fn slim_plans() {
    let mut emulator = Emulator::new(0);
    let nothing = nothing(&mut emulator);
    for (kind, n, k, cols, grid) in [
        (Epilogue::Store, 3840, 2560, 32, [60, 1]),
        (Epilogue::Store, 3840, 2560, 64, [60, 1]),
        (Epilogue::Add, 2560, 2560, 64, [40, 2]),
        (Epilogue::Gated, 13824, 2560, 32, [108, 1]),
        (Epilogue::Gated, 13824, 2560, 64, [108, 1]),
        (Epilogue::Add, 2560, 6912, 32, [80, 1]),
        (Epilogue::Add, 2560, 6912, 64, [80, 2]),
        (Epilogue::Gated, 64, 24 * 128, 64, [1, 1]),
        (Epilogue::Gated, 64, 32 * 128, 32, [1, 1]),
        (Epilogue::Store, 64, 192 * 128, 64, [8, 1]),
        (Epilogue::Add, 64, 256 * 128, 32, [8, 1]),
    ] {
        let shape = GemmShape::new(kind, n, k, cols, true);
        let product = BitGemm {
            n: n as u32,
            k: k as u32,
            cols: cols as u32,
            slots: shape.slots(kind, k, 227 << 10),
            ..nothing
        };
        let (info, launch) = product.with_kernel((kind, shape), Which);
        assert_eq!(launch.grid, [grid[0], grid[1], 1], "{kind:?} ({n}, {k})");
        assert!(launch.block[0] <= info.block[0] && launch.grid[0].is_multiple_of(product.slots));
        assert!(
            launch.shared_bytes <= 227 << 10,
            "{kind:?} ({n}, {k}): {}",
            launch.shared_bytes
        );
    }
}

/// Every count of tiles a warp, and more tiles than the warps hold at once.
#[test]
fn long_rows() {
    for tiles in [41, 55, 65] {
        check_layer(
            18,
            tiles * 128 - 32,
            Epilogue::Add,
            1e-5,
            RELU2,
            &[(GemmShape::Narrow8, 2)],
            8,
        );
    }
    check_layer(
        16,
        41 * 128,
        Epilogue::Gated,
        1e-5,
        RELU2,
        &[(GemmShape::Narrow8, 1)],
        9,
    );
    check_layer(
        16,
        55 * 128,
        Epilogue::Gated,
        1e-5,
        RELU2,
        &[(GemmShape::Narrow8, 1)],
        10,
    );
    check_layer(
        16,
        41 * 128,
        Epilogue::Store,
        1e-5,
        RELU2,
        &[(GemmShape::Narrow8, 1)],
        11,
    );
    check_layer(
        16,
        55 * 128,
        Epilogue::Store,
        1e-5,
        RELU2,
        &[(GemmShape::Narrow8, 1)],
        12,
    );
}

#[test]
fn rows_of_zeros() {
    let matrix = Matrix::random(16, 64, &mut Random::new(1));
    let layer = Layer {
        n: 16,
        k: 64,
        eps: 1e-5,
        activation: RELU2,
        scales: [1.0; 3],
    };
    let mut emulator = Emulator::new(0);
    let buffers = Buffers {
        tiles: emulator.constant(&matrix.tiles(RowOrder::Plain)),
        x: emulator.constant(&[0.0; 64]),
        norm: emulator.constant(&[1.0; 64]),
        y: emulator.uninit(16),
    };
    layer.decode(&mut emulator, Epilogue::Store, true, &buffers);
    assert_eq!(emulator.read(buffers.y).unwrap(), [0.0; 16]);
}

/// Every grid, with a last block that is not full: the bits of the first grid.
#[test]
fn grids_change_no_bit() {
    // The fewest columns whose blocks have lanes for every grid of two tiles a warp; of four tiles a warp.
    for (k, n_grids) in [(5 * 128 - 32, [3, 3, 6]), (41 * 128 - 16, [1, 3, 1])] {
        for (kind, n_grids) in [Epilogue::Store, Epilogue::Add, Epilogue::Gated]
            .into_iter()
            .zip(n_grids)
        {
            let grids: Vec<u32> = kind.tile_rows(k).collect();
            assert_eq!(grids.len(), n_grids, "{kind:?}, {k} columns");
            for &tile_rows in &grids[1..] {
                check_grid(kind, k, tile_rows);
            }
        }
    }
}

/// A block and a bit more in a grid, against the first grid.
fn check_grid(kind: Epilogue, k: usize, tile_rows: u32) {
    let n = tile_rows as usize * 16 + 22;
    let mut random = Random::new(14 + (n + k) as u64);
    let layer = Layer {
        n,
        k,
        eps: 1e-5,
        activation: RELU2,
        scales: [0.02, 0.03, 0.05],
    };
    let order = if kind == Epilogue::Gated {
        RowOrder::Paired
    } else {
        RowOrder::Plain
    };
    let tiles = Matrix::random(n, k, &mut random).tiles(order);
    let x: Vec<f32> = (0..k).map(|_| random.f32()).collect();
    let norm: Vec<f32> = (0..k).map(|_| random.f32() + 1.5).collect();
    let before: Vec<f32> = (0..outputs(kind, n)).map(|_| random.f32()).collect();
    let first = kind.tile_rows(k).next().unwrap();
    let [expected, found] = [first, tile_rows].map(|tile_rows| {
        let mut emulator = Emulator::new(15);
        let buffers = Buffers {
            tiles: emulator.constant(&tiles),
            x: emulator.constant(&x),
            norm: emulator.constant(&norm),
            y: if kind == Epilogue::Add {
                emulator.buffer(&before)
            } else {
                emulator.uninit(before.len())
            },
        };
        let params = layer.params(kind, &buffers);
        let key = kind.key(Operands::Bits, k, tile_rows);
        let (_, launch) = params.with_kernel(key, Which).unwrap();
        assert_eq!(launch.grid[0], (mma_tile::tiles_n(n) as u32).div_ceil(tile_rows));
        params
            .with_kernel(key, InEmulator(&mut emulator))
            .unwrap()
            .unwrap();
        let y = emulator.read(buffers.y).unwrap();
        y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
    });
    assert_eq!(found, expected, "{kind:?} ({n}, {k}) in blocks of {tile_rows}");
}

/// Any matrix has a kernel for each epilogue, on bits and on bytes.
#[test]
fn every_layer_has_a_kernel() {
    for k in (1..=70).map(|tiles| 128 * tiles) {
        for kind in [Epilogue::Store, Epilogue::Add, Epilogue::Gated] {
            for operands in [Operands::Bits, Operands::Bytes] {
                for tile_rows in 0..13 {
                    let key = kind.key(operands, k, tile_rows);
                    assert!(DecodeLinear::KEYS.contains(&key), "{k}: {key:?}");
                }
            }
        }
    }
}

/// Every grid has a kernel of its own, whose block has a lane for each output; what is not built is the first grid.
#[test]
fn grids_of_the_model_shapes() {
    let blocks = |kind: Epilogue, n: usize, k: usize| -> Vec<u32> {
        let mut emulator = Emulator::new(0);
        let (one, tile) = (emulator.constant(&[1.0f32]), emulator.constant(&[0u32]));
        let (buffers, layer) = (
            Buffers {
                tiles: tile,
                x: one,
                norm: one,
                y: one,
            },
            Layer {
                n,
                k,
                eps: 1e-5,
                activation: RELU2,
                scales: [1.0; 3],
            },
        );
        let params = layer.params(kind, &buffers);
        let mut names = std::collections::BTreeSet::new();
        let grids: Vec<u32> = kind.tile_rows(k).collect();
        let found = grids.iter().map(|&tile_rows| {
            let key = kind.key(Operands::Bits, k, tile_rows);
            let (info, launch) = params.with_kernel(key, Which).unwrap();
            assert!(names.insert(info.name), "{} twice", info.name);
            assert!(launch.block[0] <= info.block[0]);
            let outputs = tile_rows * if kind == Epilogue::Gated { 8 } else { 16 };
            assert!(outputs <= launch.block[0]);
            assert_eq!(info.min_sm, if tile_rows == grids[0] { 80 } else { 90 });
            launch.grid[0]
        });
        let found = found.collect();
        let [other, first] =
            [99, grids[0]].map(|t| params.with_kernel(kind.key(Operands::Bits, k, t), Which));
        assert_eq!(other, first);
        found
    };
    assert_eq!(blocks(Epilogue::Store, 3840, 2560), [60, 48, 40]);
    assert_eq!(blocks(Epilogue::Add, 2560, 2560), [40, 54, 32]);
    assert_eq!(blocks(Epilogue::Gated, 13824, 2560), [216, 108, 96, 87, 79, 72]);
    assert_eq!(blocks(Epilogue::Add, 2560, 6912), [40, 54, 80]);
    // Two warps: no lanes for five rows of tiles.
    assert_eq!(blocks(Epilogue::Store, 160, 128), [3]);
    assert_eq!(blocks(Epilogue::Gated, 160, 128), [3, 2]);
}
