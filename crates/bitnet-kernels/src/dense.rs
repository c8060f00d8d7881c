//! The same model with bfloat16 weights: what ternary weights are compared with. Its products are [`crate::dense_gemv`]'s and
//! [`crate::bf16_gemm`]'s; here is what surrounds them: weights from the canonical layout, and the epilogues.

use crate::{Global, Launch};

/// Threads of a block.
const THREADS: u32 = 256;

kernels! {
    /// `w[r][c] = t[r][c] * scale(r)` in bfloat16.
    ///
    /// - Shapes: `words` canonical (n, k); `w` (n, k) bfloat16, row-major.
    /// - Launch: [`Dequantize::launch`]; a thread owns a word, 16 columns of a row.
    /// - Moves: `n k / 4` bytes in, `2 n k` out. Bound: DRAM; it runs once a matrix.
    ///
    /// # Safety
    /// Lengths as above; `k` a multiple of 16; `w` 16-byte aligned.
    dequantize, block = [THREADS, 1, 1], body = device::dequantize;
    pub struct Dequantize {
        /// The matrix in the canonical layout.
        pub words: Global<u32>,
        /// Weights, pairs of bfloat16, (n, k / 2).
        pub w: Global<u32>,
        /// Rows.
        pub n: u32,
        /// Columns.
        pub k: u32,
        /// First row that has `scale_b`.
        pub row_b: u32,
        /// First row that has `scale_c`.
        pub row_c: u32,
        /// What a ternary unit of the first rows is worth.
        pub scale_a: f32,
        /// What a ternary unit of rows `row_b ..` is worth.
        pub scale_b: f32,
        /// What a ternary unit of rows `row_c ..` is worth.
        pub scale_c: f32,
    }

    /// `y += z`: the end of a projection back to the residual stream.
    ///
    /// - Shapes: `z`, `y` (len).
    /// - Launch: [`AddRows::launch`]; a thread owns four elements. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above; both 16-byte aligned; `len` a multiple of 4.
    add_rows, block = [THREADS, 1, 1], body = device::add;
    pub struct AddRows {
        /// What is added.
        pub z: Global<f32>,
        /// The sum.
        pub y: Global<f32>,
        /// Elements.
        pub len: u32,
    }

    /// `y[r][i] = activation(gate[r][i]) up[r][i]`: gate and up become one.
    ///
    /// - Shapes: `gate` and `up` rows `stride` apart; `y` (rows, width).
    /// - Launch: [`GateRows::launch`]; a thread owns an element. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above.
    gate_rows, block = [THREADS, 1, 1], body = device::gate;
    pub struct GateRows {
        /// Gates.
        pub gate: Global<f32>,
        /// Ups.
        pub up: Global<f32>,
        /// Output.
        pub y: Global<f32>,
        /// Rows.
        pub rows: u32,
        /// Elements of a row.
        pub width: u32,
        /// Elements from one row of gates, and of ups, to the next.
        pub stride: u32,
        /// [`crate::decode_linear::RELU2`] or [`crate::decode_linear::SILU`].
        pub activation: u32,
    }
}

impl Dequantize {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        blocks(self.n * (self.k / 16))
    }
}

impl AddRows {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        blocks(self.len / 4)
    }
}

impl GateRows {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        blocks(self.rows * self.width)
    }
}

const fn blocks(threads: u32) -> Launch {
    Launch {
        grid: [threads.div_ceil(THREADS), 1, 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{AddRows, Dequantize, GateRows, THREADS};
    use crate::decode_linear::device::gated;
    use crate::intrinsics::*;
    use crate::tiles::row_scale;
    use bitnet_layout::words::shift;

    #[inline(always)]
    pub(super) unsafe fn dequantize(p: Dequantize) {
        // Never zero; this spares the division its trap.
        let per_row = (p.k / 16).max(1);
        let at = block_idx_x() * THREADS + thread_idx_x();
        let row = at / per_row;
        if row >= p.n {
            return;
        }
        let scale = row_scale(row, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c]);
        // SAFETY: the row was compared with n.
        unsafe {
            let word = p.words.load_constant(at as usize)[0];
            let weight = |e: usize| (((word >> shift(e)) & 3) as i32 - 1) as f32 * scale;
            let pair = |i: usize| f32_to_bf16x2(weight(2 * i), weight(2 * i + 1));
            let to = p.w.offset(at as usize * 8);
            to.store_x4(0, [pair(0), pair(1), pair(2), pair(3)]);
            to.store_x4(4, [pair(4), pair(5), pair(6), pair(7)]);
        }
    }

    #[inline(always)]
    pub(super) unsafe fn add(p: AddRows) {
        let at = (block_idx_x() * THREADS + thread_idx_x()) as usize * 4;
        grid_dependency_launch();
        grid_dependency_wait();
        if at < p.len as usize {
            // SAFETY: four elements from a multiple of four below the length, itself one.
            unsafe {
                let (y, z) = (p.y.load_l2_x4(at), p.z.load_l2_x4(at));
                p.y.store_x4(at, core::array::from_fn(|j| y[j] + z[j]));
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn gate(p: GateRows) {
        let at = block_idx_x() * THREADS + thread_idx_x();
        // Never zero; this spares the division its trap.
        let width = p.width.max(1);
        let (row, i) = (at / width, at % width);
        grid_dependency_launch();
        grid_dependency_wait();
        if row < p.rows {
            let from = row as usize * p.stride as usize + i as usize;
            // SAFETY: the row was compared with the rows, the element is inside it.
            unsafe {
                let (gate, up) = (p.gate.load_l2(from)[0], p.up.load_l2(from)[0]);
                p.y.store(at as usize, gated(gate, up, p.activation));
            }
        }
    }
}
