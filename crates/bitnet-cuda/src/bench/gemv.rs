//! What a kernel that multiplies a matrix with a token's activations has in common with the others: how it stores a matrix, what it
//! is given and what it must return.

use super::problem::Problem;
use crate::error::{Error, Result};
use crate::memory::DeviceBuffer;
use crate::stream::Stream;
use bitnet_kernels::Global;
use bitnet_kernels::bench::bit_gemv::MAX_COLS;
use bitnet_layout::words::Shape;

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
    /// What it must return for these exact products: every scale is 1, and sums of integers below 2^24 are exact in f32, in any order.
    fn expected(&self, product: &[i32]) -> Vec<u32> {
        product.iter().map(|&y| (y as f32).to_bits()).collect()
    }
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
