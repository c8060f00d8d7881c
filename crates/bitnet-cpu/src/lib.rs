//! CPU kernels of BitNet b1.58: ternary weights times 8-bit activations, and everything around them.
//!
//! Knows matrices, rows and caches, no model. [`Cpu`] chooses an instruction set once and owns the threads; every
//! operation is a method on it, over plain slices. Results do not depend on the instruction set, on the number of
//! threads, or on what else is in a batch: integers are exact, and every float sum has one order.
//!
//! ```
//! use bitnet_cpu::{Activations, Cpu, Output, Precision, TernaryMatrix, Write};
//!
//! # fn main() -> bitnet_cpu::Result<()> {
//! let cpu = Cpu::new(None, Some(1))?;
//! // One row of 16 weights, all +1 (code 2), each worth 0.5.
//! let w = TernaryMatrix::new(1, 16, &[0xaaaa_aaaa], &[(1, 0.5)])?;
//! let mut x = Activations::new(Precision::Int8, cpu.n_threads(), 1, 16)?;
//! cpu.prepare(&[2.0; 16], 16, &[], &mut x);
//! let mut y = [0.0];
//! cpu.matmul(&w, &mut x, Output { data: &mut y, stride: 1, first: 0, write: Write::Replace });
//! assert_eq!(y, [16.0]);
//! # Ok(())
//! # }
//! ```
//!
//! A file may use only files whose `mod` line stands above its own, so the list below is also the reading order.

mod cores;
mod simd;

mod error;

mod nodes;

mod memory;
mod pool;

mod integer;

mod float;

mod gemm;

mod activations;
mod matrix;

mod cpu;

mod int8;
mod kv;
mod limits;
mod matmul;
mod screen;

mod zeros;

mod place;

pub use activations::{Activations, Norm, Precision, ZeroCounts};
pub use bitnet_layout::{Activation, DenseDtype};
pub use cpu::{Angles, Cpu, Heads};
pub use error::{Error, Result};
pub use float::Write;
pub use int8::{Int8Input, Int8Matrix};
pub use kv::{KvCache, KvRows, KvShape, KvType, Places, Queries};
pub use matmul::Output;
pub use matrix::{DenseMatrix, TernaryMatrix};
pub use memory::Rows;
pub use nodes::Numa;
pub use place::OnNode;
pub use screen::{Ask, Best, ScreenCounts, ScreenMatrix, ScreenRoom};
pub use simd::{Simd, UnknownSimd};
pub use zeros::{TernaryColumns, TernaryRows};
