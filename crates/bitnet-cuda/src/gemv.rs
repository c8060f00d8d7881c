//! The kernels that multiply a matrix with a token's activations, each behind one entry: how it stores a matrix, what it is
//! given and what it must return. The benchmark times these entries and the tests check them.

use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::stream::{Dependent, LaunchConfig, Stream};
use bitnet_kernels::Global;
use bitnet_kernels::bit_gemv::{
    BitGemvT2K1, BitGemvT2K2, BitGemvT2K3, BitGemvT2K3Bits, BitGemvT2K5, BitGemvT2K5Bits, BitGemvT4K1,
    BitGemvT4K2, BitGemvT5K2, BitGemvT5K2Bits, MAX_COLS, Plan,
};
use bitnet_kernels::decode_linear::{self, DecodeLinear, Epilogue, with_kernel};
use bitnet_kernels::dense_gemv::Bf16Gemv;
use bitnet_kernels::ref_gemv::RefGemv;
use bitnet_layout::mma_tile::{self, RowOrder};
use bitnet_layout::random::Random;
use bitnet_layout::reference;
use bitnet_layout::reference_tile::ReferenceTile;
use bitnet_layout::words::{Shape, unpack_word};

/// A ternary matrix and integer activations.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Rows and columns.
    pub shape: Shape,
    /// The matrix in the canonical layout.
    pub words: Vec<u32>,
    /// Activations, (cols, k).
    pub x: Vec<i8>,
}

impl Problem {
    /// Seeded random values; the first two columns and rows hold extremes: -128 throughout, all +1, all -1.
    ///
    /// # Errors
    /// When `k` is not a multiple of 16, or the matrix is empty or too large.
    pub fn random(n: usize, k: usize, cols: usize, seed: u64) -> Result<Self> {
        const PLUS: u32 = 0xaaaa_aaaa;
        const MINUS: u32 = 0;
        let shape = Shape::new(n, k).map_err(|e| Error::Request(e.to_string()))?;
        let mut random = Random::new(seed);
        let mut words: Vec<u32> = (0..shape.words()).map(|_| random.ternary_word()).collect();
        for (row, word) in [(0, PLUS), (1, MINUS)].into_iter().filter(|&(row, _)| row < n) {
            words[row * shape.words_per_row()..][..shape.words_per_row()].fill(word);
        }
        let mut x: Vec<i8> = (0..cols * k).map(|_| random.word() as i8).collect();
        if seed.is_multiple_of(4) {
            x[..k].fill(-128);
        }
        Ok(Self { shape, words, x })
    }

    /// Columns of activations.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.x.len() / self.shape.k()
    }

    /// The exact products, (cols, n), computed on all cores by [`bitnet_layout::reference`].
    #[must_use]
    pub fn product(&self) -> Vec<i32> {
        let (n, k, cols) = (self.shape.n(), self.shape.k(), self.cols());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let rows = n.div_ceil(threads);
        let parts: Vec<Vec<i32>> = std::thread::scope(|scope| {
            let bands = self.words.chunks(rows * self.shape.words_per_row());
            let handles: Vec<_> = bands.map(|band| scope.spawn(|| self.product_of(band))).collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_default())
                .collect()
        });
        debug_assert_eq!(parts.iter().map(Vec::len).sum::<usize>() * k, n * cols * k);
        let column = |c: usize| {
            parts
                .iter()
                .flat_map(move |part| part[c * part.len() / cols..][..part.len() / cols].iter().copied())
        };
        (0..cols).flat_map(column).collect()
    }

    /// Products of whole rows, (cols, rows).
    fn product_of(&self, band: &[u32]) -> Vec<i32> {
        let columns = self.x.chunks_exact(self.shape.k());
        let rows = || band.chunks_exact(self.shape.words_per_row());
        columns
            .flat_map(|x| rows().map(|row| reference::dot(row, x)))
            .collect()
    }
}

/// What a kernel is launched with, beside its matrix.
#[derive(Debug)]
pub struct Operands<'a> {
    /// Rows and columns of the matrix.
    pub shape: Shape,
    /// Columns of activations.
    pub cols: usize,
    /// What [`Gemv::activations`] gave.
    pub x: &'a DeviceBuffer<u32>,
    /// Ones, at least k and 8 of them: every scale and norm weight.
    pub ones: &'a DeviceBuffer<f32>,
    /// What [`Gemv::expected`] is compared with, of its length.
    pub y: &'a DeviceBuffer<u32>,
}

/// A kernel that computes `y = W x`.
pub trait Gemv: Sync {
    /// What it is called in tables.
    fn name(&self) -> &'static str;
    /// The problem with activations that it multiplies exactly as they are.
    fn admit(&self, problem: Problem) -> Problem {
        problem
    }
    /// Most columns of activations in one launch; 0 for a shape that it cannot do.
    fn max_cols(&self, shape: Shape) -> usize;
    /// The matrix as it stores it.
    fn pack(&self, problem: &Problem) -> Vec<u32>;
    /// The activations as it takes them.
    fn activations(&self, problem: &Problem) -> Vec<u32>;
    /// What it must return for these exact products: every scale is 1.
    fn expected(&self, product: &[i32]) -> Vec<u32>;
    /// Launches it on the matrix at `w`, to start before its predecessor ends where it can.
    ///
    /// # Errors
    /// When the GPU cannot launch it.
    ///
    /// # Safety
    /// - `w` is the address of what `pack` gave, and the operands are what the other methods gave for the same problem.
    /// - They live until the work is done and every graph that recorded it is gone.
    unsafe fn launch(&self, stream: &Stream, w: Global<u32>, operands: &Operands<'_>) -> Result<()>;
}

/// Every entry: our bare product and the layer that a model runs, the reference project's product, and bfloat16.
pub const GEMVS: [&dyn Gemv; 4] = [&W2A8, &Layer, &Reference, &Bf16];

/// Ternary weights in tensor-core tiles, 8-bit activations: the product alone, as other projects' kernels compute it.
#[derive(Clone, Copy, Debug)]
pub struct W2A8;

impl Gemv for W2A8 {
    fn name(&self) -> &'static str {
        "W2A8"
    }

    fn max_cols(&self, _: Shape) -> usize {
        MAX_COLS as usize
    }

    fn pack(&self, problem: &Problem) -> Vec<u32> {
        let mut tiles = vec![0; mma_tile::words(problem.shape.n(), problem.shape.k())];
        mma_tile::pack(problem.shape, RowOrder::Plain, &problem.words, 0, &mut tiles);
        tiles
    }

    fn activations(&self, problem: &Problem) -> Vec<u32> {
        let k = problem.shape.k();
        let padded = mma_tile::tiles_k(k) * mma_tile::COLUMNS;
        let pad = |x: &[i8]| [x, &vec![0; padded - k]].concat();
        let words = words_of_bytes(&problem.x.chunks_exact(k).flat_map(pad).collect::<Vec<_>>());
        let mut ordered = vec![0; words.len()];
        for (i, &word) in words.iter().enumerate() {
            // Rows are whole groups of words, so the place in the whole is the place in the row.
            ordered[mma_tile::activation_word(i as u32) as usize] = word;
        }
        ordered
    }

    fn expected(&self, product: &[i32]) -> Vec<u32> {
        product.iter().map(|&y| (y as f32).to_bits()).collect()
    }

    unsafe fn launch(&self, stream: &Stream, w: Global<u32>, operands: &Operands<'_>) -> Result<()> {
        let Operands {
            shape,
            cols,
            x,
            ones,
            y,
        } = *operands;
        let bits = cols == 1 && stream.gpu().multiplies_bits();
        let plan = if bits {
            Plan::bits(shape.n(), shape.k())
        } else {
            Plan::new(shape.n(), shape.k(), cols as u32)
        };
        let config = LaunchConfig::from(plan.launch).programmatic_dependent();
        macro_rules! launch {
            ($Params:ident) => {{
                let params = $Params {
                    w,
                    x: x.global(),
                    unit: ones.global(),
                    y: y.global().cast(),
                    n: shape.n() as u32,
                    k: shape.k() as u32,
                    cols: cols as u32,
                    row_b: u32::MAX,
                    row_c: u32::MAX,
                    scale_a: 1.0,
                    scale_b: 1.0,
                    scale_c: 1.0,
                };
                // SAFETY: lengths by this trait's contract; buffers are aligned; the launch is the plan's.
                unsafe { stream.launch(&params, config) }
            }};
        }
        match (plan.tile_rows, plan.tiles_per_warp, bits) {
            (2, 1, false) => launch!(BitGemvT2K1),
            (4, 1, false) => launch!(BitGemvT4K1),
            (2, 2, false) => launch!(BitGemvT2K2),
            (4, 2, false) => launch!(BitGemvT4K2),
            (5, 2, false) => launch!(BitGemvT5K2),
            (2, 3, false) => launch!(BitGemvT2K3),
            (2, 5, false) => launch!(BitGemvT2K5),
            (5, 2, true) => launch!(BitGemvT5K2Bits),
            (2, 3, true) => launch!(BitGemvT2K3Bits),
            (2, 5, true) => launch!(BitGemvT2K5Bits),
            other => Err(Error::Request(format!("no bit_gemv of {other:?} is built"))),
        }
    }
}

/// The linear layer of a decoded token, which is what a model runs: it quantizes its f32 activations and multiplies, in one
/// kernel. Here without a norm.
#[derive(Clone, Copy, Debug)]
pub struct Layer;

impl Gemv for Layer {
    fn name(&self) -> &'static str {
        "W2A8 layer"
    }

    /// Activations are quantized so that the largest is 127: where it is, codes are the activations and a unit is 1.
    fn admit(&self, mut problem: Problem) -> Problem {
        for column in problem.x.chunks_exact_mut(problem.shape.k()) {
            column.iter_mut().for_each(|x| *x = (*x).max(-127));
            column[0] = 127;
        }
        problem
    }

    fn max_cols(&self, _: Shape) -> usize {
        1
    }

    fn pack(&self, problem: &Problem) -> Vec<u32> {
        W2A8.pack(problem)
    }

    fn activations(&self, problem: &Problem) -> Vec<u32> {
        problem.x.iter().map(|&x| f32::from(x).to_bits()).collect()
    }

    fn expected(&self, product: &[i32]) -> Vec<u32> {
        W2A8.expected(product)
    }

    unsafe fn launch(&self, stream: &Stream, w: Global<u32>, operands: &Operands<'_>) -> Result<()> {
        let Operands {
            shape, x, ones, y, ..
        } = *operands;
        let (n, k) = (shape.n(), shape.k());
        let layer = DecodeLinear {
            w,
            x: x.global().cast(),
            norm: ones.global(),
            y: y.global().cast(),
            n: n as u32,
            k: k as u32,
            eps: -1.0,
            activation: decode_linear::RELU2,
            row_b: u32::MAX,
            row_c: u32::MAX,
            scale_a: 1.0,
            scale_b: 1.0,
            scale_c: 1.0,
        };
        let (epilogue, bits) = (Epilogue::Store, stream.gpu().multiplies_bits());
        let tile_rows = epilogue.tile_rows(k).next().unwrap_or_default();
        // SAFETY: lengths by this trait's contract; buffers are aligned, k is a multiple of 16.
        let run = unsafe { Dependent::on(stream) };
        with_kernel(layer, epilogue, bits, tile_rows, run)
    }
}

/// The reference project's layout and kernel.
#[derive(Clone, Copy, Debug)]
pub struct Reference;

impl Gemv for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn max_cols(&self, shape: Shape) -> usize {
        usize::from(ReferenceTile::new(shape.n(), shape.k()).is_ok())
    }

    fn pack(&self, problem: &Problem) -> Vec<u32> {
        let mut tiles = vec![0; problem.words.len()];
        if let Ok(layout) = ReferenceTile::new(problem.shape.n(), problem.shape.k()) {
            layout.pack(&problem.words, &mut tiles);
        }
        tiles
    }

    fn activations(&self, problem: &Problem) -> Vec<u32> {
        words_of_bytes(&problem.x)
    }

    fn expected(&self, product: &[i32]) -> Vec<u32> {
        let pairs = product.as_chunks::<2>().0.iter();
        pairs
            .map(|&[low, high]| u32::from(bf16(low as f32)) | u32::from(bf16(high as f32)) << 16)
            .collect()
    }

    unsafe fn launch(&self, stream: &Stream, w: Global<u32>, operands: &Operands<'_>) -> Result<()> {
        let Operands {
            shape, x, ones, y, ..
        } = *operands;
        let params = RefGemv {
            w,
            x: x.global(),
            s: ones.global(),
            y: y.global().cast(),
            n: shape.n() as u32,
            k: shape.k() as u32,
            row_b: u32::MAX,
            row_c: u32::MAX,
            scale_a: 1.0,
            scale_b: 1.0,
            scale_c: 1.0,
        };
        // SAFETY: lengths by this trait's contract; `max_cols` admits only whole tiles.
        unsafe { stream.launch(&params, RefGemv::launch(shape.n())) }
    }
}

/// bfloat16 weights and f32 activations: the output head, and the unquantized model.
#[derive(Clone, Copy, Debug)]
pub struct Bf16;

impl Gemv for Bf16 {
    fn name(&self) -> &'static str {
        "BF16"
    }

    fn max_cols(&self, shape: Shape) -> usize {
        if shape.k().is_multiple_of(32) {
            // What every GPU gives a block.
            Bf16Gemv::max_cols(shape.k(), 99 * 1024) as usize
        } else {
            0
        }
    }

    fn pack(&self, problem: &Problem) -> Vec<u32> {
        let pair = |t: &[i8; 2]| u32::from(bf16(t[0].into())) | u32::from(bf16(t[1].into())) << 16;
        problem
            .words
            .iter()
            .flat_map(|&word| {
                let values = unpack_word(word);
                std::array::from_fn::<u32, 8, _>(|i| pair(&[values[2 * i], values[2 * i + 1]]))
            })
            .collect()
    }

    fn activations(&self, problem: &Problem) -> Vec<u32> {
        problem.x.iter().map(|&x| f32::from(x).to_bits()).collect()
    }

    fn expected(&self, product: &[i32]) -> Vec<u32> {
        // Sums of integers below 2^24 are exact in f32, in any order.
        product.iter().map(|&y| (y as f32).to_bits()).collect()
    }

    unsafe fn launch(&self, stream: &Stream, w: Global<u32>, operands: &Operands<'_>) -> Result<()> {
        let Operands {
            shape,
            cols,
            x,
            ones,
            y,
        } = *operands;
        let params = Bf16Gemv {
            w,
            x: x.global().cast(),
            norm: ones.global(),
            y: y.global().cast(),
            n: shape.n() as u32,
            k: shape.k() as u32,
            cols: cols as u32,
            eps: -1.0,
        };
        let config = LaunchConfig::from(params.launch(stream.gpu().machine())).programmatic_dependent();
        // SAFETY: lengths by this trait's contract; `max_cols` admits only multiples of 32 columns.
        unsafe { stream.launch(&params, config) }
    }
}

/// Computes `problem`, or the nearest that `kernel` admits, and compares every result with the exact one.
///
/// # Errors
/// When the device fails, or a result is wrong: the first one, with what was expected.
pub fn check(stream: &Stream, kernel: &dyn Gemv, problem: &Problem) -> Result<()> {
    let problem = &kernel.admit(problem.clone());
    let w = stream.upload_new("weights", &kernel.pack(problem))?;
    let expected = kernel.expected(&problem.product());
    let x = stream.upload_new("activations", &kernel.activations(problem))?;
    let ones = stream.upload_new("scales", &vec![1.0_f32; problem.shape.k().max(MAX_COLS as usize)])?;
    let y = stream.gpu().alloc("results", expected.len())?;
    let operands = Operands {
        shape: problem.shape,
        cols: problem.cols(),
        x: &x,
        ones: &ones,
        y: &y,
    };
    // What no result can be, so that one that is not written shows.
    stream.fill_bytes(&y, 0xff)?;
    // SAFETY: all of it comes from this kernel's methods and lives until the results are read.
    unsafe { kernel.launch(stream, w.global(), &operands) }?;
    compare(kernel, problem.shape, &expected, &stream.download_all(&y)?)
}

/// Compares results with what is expected of them.
pub(crate) fn compare(kernel: &dyn Gemv, shape: Shape, expected: &[u32], found: &[u32]) -> Result<()> {
    match expected
        .iter()
        .zip(found)
        .position(|(expected, found)| expected != found)
    {
        None => Ok(()),
        Some(i) => Err(Error::Request(format!(
            "{} is wrong on {} x {}: word {i} of the result is {:#010x}, expected {:#010x}",
            kernel.name(),
            shape.n(),
            shape.k(),
            found[i],
            expected[i]
        ))),
    }
}

/// Four bytes a word, in memory order; `x` is a multiple of 4 long.
fn words_of_bytes(x: &[i8]) -> Vec<u32> {
    x.as_chunks::<4>()
        .0
        .iter()
        .map(|x| u32::from_le_bytes(x.map(i8::cast_unsigned)))
        .collect()
}

/// The nearest bfloat16, halves to even, of a number that is not NaN.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_hold_valid_codes_extremes_and_their_products() {
        let problem = Problem::random(5, 48, 3, 4).unwrap();
        assert_eq!(problem.shape.first_invalid(&problem.words), None);
        assert_eq!(problem.cols(), 3);
        let product = problem.product();
        assert_eq!(product.len(), 15);
        assert_eq!(product[..2], [-128 * 48, 128 * 48]);
        let mut expected = vec![0; 15];
        reference::linear(problem.shape, &problem.words, &problem.x, &mut expected);
        assert_eq!(product, expected);
        assert!(Problem::random(5, 40, 1, 0).is_err());
    }

    #[test]
    fn a_layer_gets_activations_that_are_their_own_codes() {
        let problem = Layer.admit(Problem::random(5, 48, 1, 4).unwrap());
        assert_eq!((problem.x[0], problem.x[1]), (127, -127));
        assert_eq!(
            Layer.activations(&problem)[..2],
            [127f32, -127.0].map(f32::to_bits)
        );
        assert_eq!(problem.product().len(), 5);
    }

    #[test]
    fn bf16_rounds_halves_to_even() {
        for (x, bits) in [
            (1.0, 0x3f80),
            (-1.0, 0xbf80),
            (257.0, 0x4380),
            (259.0, 0x4382),
            (0.0, 0),
        ] {
            assert_eq!(bf16(x), bits, "{x}");
        }
    }
}
