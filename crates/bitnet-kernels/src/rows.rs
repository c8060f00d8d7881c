//! What models beyond the plain ones do to rows in between: norms that no quantization follows at once, and projections that stand
//! apart.

use crate::{Global, Launch};

/// Warps of a block.
const WARPS: u32 = 8;
/// Threads of a block.
const THREADS: u32 = WARPS * 32;

kernels! {
    /// `y[r][g][i] = x[r][g][i] / rms(x[r][g]) norm[i]` (Zhang and Sennrich, "Root mean square layer normalization").
    ///
    /// - Shapes: `x` rows `x_stride` apart, `y` rows `y_stride` apart, in each `groups` groups of `width`; `norm` (width). `y` may be `x`.
    /// - Launch: [`NormRows::launch`]; a block owns a group. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above; where `y` overlaps `x`, every element is its own place.
    norm_rows, block = [THREADS, 1, 1], body = device::norm;
    pub struct NormRows {
        /// Rows.
        pub x: Global<f32>,
        /// Weight of the norm.
        pub norm: Global<f32>,
        /// Normed rows.
        pub y: Global<f32>,
        /// Rows of `x`.
        pub rows: u32,
        /// Groups of a row, each with a norm of its own: heads, or 1.
        pub groups: u32,
        /// Elements of a group.
        pub width: u32,
        /// Elements from one row of `x` to the next.
        pub x_stride: u32,
        /// Elements from one row of `y` to the next.
        pub y_stride: u32,
        /// Epsilon of the norm.
        pub eps: f32,
    }

    /// `y[r][i] = scale x[r][i]`: columns of a projection that was computed apart take their place, or their scale.
    ///
    /// - Shapes: `x` rows `x_stride` apart, `y` rows `y_stride` apart, of each `width` elements. `y` may be `x`.
    /// - Launch: [`ScaleRows::launch`]; a thread owns an element. Bound: latency.
    ///
    /// # Safety
    /// Lengths as above; where `y` overlaps `x`, every element is its own place.
    scale_rows, block = [THREADS, 1, 1], body = device::scale;
    pub struct ScaleRows {
        /// Rows.
        pub x: Global<f32>,
        /// Scaled rows.
        pub y: Global<f32>,
        /// Rows of `x`.
        pub rows: u32,
        /// Elements that are scaled of each.
        pub width: u32,
        /// Elements from one row of `x` to the next.
        pub x_stride: u32,
        /// Elements from one row of `y` to the next.
        pub y_stride: u32,
        /// What they are multiplied by.
        pub scale: f32,
    }
}

impl NormRows {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [self.groups, self.rows, 1],
            block: [THREADS, 1, 1],
            shared_bytes: WARPS * 4,
        }
    }
}

impl ScaleRows {
    /// The launch for these parameters.
    #[must_use]
    pub const fn launch(&self) -> Launch {
        Launch {
            grid: [self.width.div_ceil(THREADS), self.rows, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
        }
    }
}

#[cfg(any(target_arch = "nvptx64", feature = "emulator"))]
mod device {
    use super::{NormRows, ScaleRows, THREADS, WARPS};
    use crate::decode_linear::device::unit;
    use crate::intrinsics::*;
    use crate::reduce::block_sum;

    #[inline(always)]
    pub(super) unsafe fn norm(p: NormRows) {
        let (group, row) = (block_idx_x() * p.width, block_idx_y() as usize);
        let x = p.x.offset(row * p.x_stride as usize + group as usize);
        let y = p.y.offset(row * p.y_stride as usize + group as usize);
        grid_dependency_launch();
        grid_dependency_wait();
        // SAFETY: elements are below the width of a group; a thread stores those alone that it has read.
        unsafe {
            let mut squares = 0.0;
            let mut i = thread_idx_x();
            while i < p.width {
                let [x] = x.load_l2(i as usize);
                squares = fma(x, x, squares);
                i += THREADS;
            }
            let scale = unit(1.0, block_sum::<WARPS>(squares, Shared::at(0)), p.width, p.eps);
            let mut i = thread_idx_x();
            while i < p.width {
                let at = i as usize;
                y.store(at, x.load_l2(at)[0] * scale * p.norm.load(at));
                i += THREADS;
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn scale(p: ScaleRows) {
        let (i, row) = (block_idx_x() * THREADS + thread_idx_x(), block_idx_y() as usize);
        grid_dependency_launch();
        grid_dependency_wait();
        if i < p.width {
            // SAFETY: the element was compared with the width, and is this thread's alone.
            unsafe {
                let [x] = p.x.load_l2(row * p.x_stride as usize + i as usize);
                p.y.store(row * p.y_stride as usize + i as usize, x * p.scale);
            }
        }
    }
}
