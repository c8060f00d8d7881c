//! Weights, and whoever calls, near the threads that read them.

use crate::Result;
use crate::cpu::Cpu;
use crate::matrix::{DenseMatrix, TernaryMatrix};
use crate::nodes::Stay;
use crate::zeros::TernaryRows;

/// The calling thread's stay near its share of the weights: [`Cpu::stay`].
#[derive(Debug)]
#[must_use = "the thread stays until this is dropped"]
pub struct OnNode {
    _stay: Option<Stay>,
}

impl Cpu {
    /// Memory nodes that the threads stay on; 1 where they go where the system puts them.
    #[must_use]
    pub fn n_nodes(&self) -> usize {
        self.pool.nodes().map_or(1, |nodes| nodes.count())
    }

    /// Keeps the calling thread, which takes part in every operation, on the memory node of its share of the weights, until the result is
    /// dropped. Without it the thread goes where the system puts it, which costs speed alone.
    pub fn stay(&self) -> OnNode {
        OnNode {
            _stay: self.pool.stay(),
        }
    }

    /// Moves a matrix into the memory of the nodes whose threads read it, each its share; `is_gated` for [`Cpu::matmul_gated`], whose threads
    /// have shares of both halves. Does nothing where threads are on one node or none.
    ///
    /// # Errors
    /// When memory cannot be had, or a thread started.
    pub fn place(&self, w: &mut TernaryMatrix, is_gated: bool) -> Result<()> {
        match self.pool.nodes() {
            Some(nodes) => w.spread(nodes, if is_gated { 2 } else { 1 }),
            None => Ok(()),
        }
    }

    /// The same for the rows that squared ReLU leaves out.
    ///
    /// # Errors
    /// As for [`Cpu::place`].
    pub fn place_rows(&self, w: &mut TernaryRows) -> Result<()> {
        match self.pool.nodes() {
            Some(nodes) => w.spread(nodes),
            None => Ok(()),
        }
    }

    /// The same for a dense matrix.
    ///
    /// # Errors
    /// As for [`Cpu::place`].
    pub fn place_dense(&self, w: &mut DenseMatrix) -> Result<()> {
        match self.pool.nodes() {
            Some(nodes) => w.spread(nodes),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_layout::random::Random;

    use super::*;
    use crate::{Activation, Activations, Numa, Output, Precision, Simd, Write};

    /// A gated and a plain product of three rows, with weights where the threads of `cpu` read them.
    fn products(cpu: &Cpu) -> Vec<Vec<f32>> {
        // Large enough for mappings of their own, which end within a huge page.
        let (n, k, n_tokens) = (2 * 1808, 2560, 3);
        let mut random = Random::new(3);
        let words: Vec<u32> = (0..n * k / 16).map(|_| random.word() & 0x5555_5555).collect();
        let x: Vec<f32> = (0..n_tokens * k).map(|_| random.word() as i32 as f32).collect();
        let mut w = TernaryMatrix::new(n, k, &words, &[(n, 0.5)]).unwrap();
        let mut activations = Activations::new(Precision::Int8, cpu.n_threads(), n_tokens, k).unwrap();
        let _stay = cpu.stay();
        cpu.prepare(&x, k, &[], &mut activations);
        let mut out = Vec::new();
        for is_gated in [true, false] {
            cpu.place(&mut w, is_gated).unwrap();
            let mut y = vec![f32::NAN; n_tokens * n];
            if is_gated {
                y.truncate(n_tokens * n / 2);
                cpu.matmul_gated(&w, &mut activations, Activation::Relu2, &mut y);
            } else {
                let data = &mut y[..];
                cpu.matmul(
                    &w,
                    &mut activations,
                    Output {
                        data,
                        stride: n,
                        first: 0,
                        write: Write::Replace,
                    },
                );
            }
            out.push(y);
        }
        out
    }

    #[test]
    fn products_are_the_same_wherever_weights_lie() {
        let simd = Simd::available()[0];
        let expected = products(&Cpu::new(Some(simd), Some(1)).unwrap());
        let halves = Cpu::on_halves(simd, 3);
        assert_eq!((halves.n_nodes(), halves.n_threads()), (2, 3));
        assert_eq!(products(&halves), expected);
        for numa in [Numa::Distribute, Numa::Isolate] {
            let cpu = Cpu::on(Some(simd), Some(2), numa);
            assert_eq!(cpu.is_ok(), cfg!(target_os = "linux"), "{numa:?}");
            if let Ok(cpu) = cpu {
                assert_eq!(products(&cpu), expected, "{numa:?}");
            }
        }
    }
}
