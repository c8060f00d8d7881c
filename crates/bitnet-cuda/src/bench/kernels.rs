//! The kernels that are measured and compared, each behind one [`Gemv`].

use super::gemv::{Gemv, Operands};
use super::problem::Problem;
use crate::error::{Error, Result};
use crate::layer::launch_layer;
use crate::stream::{Dependent, LaunchConfig, Stream};
use bitnet_kernels::Global;
use bitnet_kernels::bench::bit_gemv::{self, BitGemv, MAX_COLS};
use bitnet_kernels::bench::ref_gemv::RefGemv;
use bitnet_kernels::decode_linear::{self, DecodeLinear, Epilogue};
use bitnet_kernels::dense_gemv::Bf16Gemv;
use bitnet_layout::f32_to_bf16;
use bitnet_layout::mma_tile::{self, RowOrder};
use bitnet_layout::reference_tile::ReferenceTile;
use bitnet_layout::words::{Shape, unpack_word};

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

    unsafe fn launch(&self, stream: &Stream, w: Global<u32>, operands: &Operands<'_>) -> Result<()> {
        let Operands {
            shape,
            cols,
            x,
            ones,
            y,
        } = *operands;
        let variant = if cols == 1 && stream.gpu().multiplies_bits() {
            bit_gemv::variant_on_bits(shape.n(), shape.k())
        } else {
            bit_gemv::variant(shape.n(), shape.k())
        };
        let params = BitGemv {
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
        // SAFETY: lengths by this trait's contract; buffers are aligned.
        let run = unsafe { Dependent::on(stream) };
        let launched = params.with_kernel(variant, run);
        launched.unwrap_or_else(|| Err(Error::Request(format!("no bit_gemv of {variant:?} is built"))))
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
            cols: 1,
            eps: -1.0,
            activation: decode_linear::RELU2,
            row_b: u32::MAX,
            row_c: u32::MAX,
            scale_a: 1.0,
            scale_b: 1.0,
            scale_c: 1.0,
        };
        // SAFETY: lengths by this trait's contract; buffers are aligned, k is a multiple of 16.
        unsafe { launch_layer(stream, layer, Epilogue::Store, 0) }
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
            .map(|&[low, high]| {
                u32::from(f32_to_bf16(low as f32)) | u32::from(f32_to_bf16(high as f32)) << 16
            })
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
        let pair =
            |t: &[i8; 2]| u32::from(f32_to_bf16(t[0].into())) | u32::from(f32_to_bf16(t[1].into())) << 16;
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

/// Four bytes a word, in memory order; `x` is a multiple of 4 long.
fn words_of_bytes(x: &[i8]) -> Vec<u32> {
    x.as_chunks::<4>()
        .0
        .iter()
        .map(|x| u32::from_le_bytes(x.map(i8::cast_unsigned)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
