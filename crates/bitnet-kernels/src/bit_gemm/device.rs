//! What both shapes of block share: unpacking and the epilogue.

use super::BitGemm;
use crate::Global;
use crate::decode_linear::device::{ADD, GATED, gated};
use crate::tiles::row_scale;

/// A shape of block.
pub(super) trait Block {
    /// Computes this block's part of the product.
    ///
    /// # Safety
    /// As for [`BitGemm`].
    unsafe fn run<const EPILOGUE: u32>(p: BitGemm);
}

#[inline(always)]
pub(super) unsafe fn run<B: Block, const EPILOGUE: u32>(p: BitGemm) {
    // SAFETY: the caller's promise.
    unsafe { B::run::<EPILOGUE>(p) }
}

/// Plane `p` of a lane's four words: an A fragment of codes 0, 1 and 2 times `2^`[`CODE_BITS`].
#[inline(always)]
pub(super) fn unpack(w: [u32; 4], p: u32) -> [u32; 4] {
    w.map(|w| (w << (6 - 2 * p)) & 0xc0c0_c0c0)
}

/// Planes are shifted to the top of their bytes: multipliers can shift left, which leaves the masks alone to the units for
/// logic. Sums stay below 2^31 for up to [`super::MAX_K`] columns.
pub(super) const CODE_BITS: u32 = 6;

/// Where 16-byte chunk `chunk` (0..8) of column `col` lies in a tile of codes of a flat or mid block, in bytes from the column's: the chunks that lanes of
/// neighboring columns read together lie in different banks.
#[inline(always)]
pub(super) fn swizzled(col: u32, chunk: u32) -> u32 {
    (chunk ^ (col & 1)) * 16
}

// What the kernel before this one wrote is read past L1: with programmatic dependent launch a block can start, and
// its L1 be filled, before that kernel has finished.

/// What a code of column `col` is worth, and the sum of its codes.
///
/// # Safety
/// `col` is below `cols`, and the activations were written.
#[inline(always)]
pub(super) unsafe fn column(p: &BitGemm, col: u32) -> (f32, i32) {
    // SAFETY: the caller's promise.
    unsafe { (p.unit.load_l2(col as usize)[0], p.sum.load_l2(col as usize)[0]) }
}

/// Two rows 8 apart of one column of the output (gated: the row that a pair of rows makes), which is known before their sums are.
#[derive(Clone, Copy)]
pub(super) struct Output {
    /// Where the first is.
    y: Global<f32>,
    /// Whether they exist.
    exist: [bool; 2],
    /// What a ternary unit of each is worth.
    scales: [f32; 2],
}

impl Output {
    /// Those of row `tile_row` of the tiles; either may lie outside the output.
    #[inline(always)]
    pub(super) fn new<const EPILOGUE: u32>(p: &BitGemm, tile_row: u32, col: u32) -> Self {
        if EPILOGUE == GATED {
            let (out, rows) = (tile_row / 16 * 8 + tile_row % 8, p.n / 2);
            return Self {
                y: p.y.offset((col * rows + out) as usize),
                exist: [out < rows && col < p.cols; 2],
                scales: [p.scale_a, p.scale_b],
            };
        }
        Self {
            y: p.y.offset((col * p.n + tile_row) as usize),
            exist: [tile_row, tile_row + 8].map(|row| row < p.n && col < p.cols),
            scales: [tile_row, tile_row + 8]
                .map(|row| row_scale(row, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c])),
        }
    }

    /// What they are before the product is added; zeros unless `EPILOGUE` adds, and anything outside the output.
    ///
    /// # Safety
    /// The output was written, by no lane of this kernel but perhaps this one.
    #[inline(always)]
    pub(super) unsafe fn before<const EPILOGUE: u32>(self, p: &BitGemm) -> [f32; 2] {
        if EPILOGUE != ADD {
            return [0.0; 2];
        }
        core::array::from_fn(|i| {
            // A load in a branch would be waited for there, before the next is under way.
            let y = if self.exist[i] {
                self.y.offset(8 * i)
            } else {
                p.unit
            };
            // SAFETY: inside the output, or the first of the units.
            unsafe { y.load_l2(0)[0] }
        })
    }

    /// Scales their products of codes with the column, which has that unit and sum, and writes those that exist, to which `before`
    /// contributes.
    ///
    /// # Safety
    /// No other lane writes them.
    #[inline(always)]
    pub(super) unsafe fn finish<const EPILOGUE: u32>(
        self,
        p: &BitGemm,
        (unit, sum): (f32, i32),
        before: [f32; 2],
        products: [i32; 2],
    ) {
        let products: [f32; 2] =
            core::array::from_fn(|i| (products[i] - sum) as f32 * (self.scales[i] * unit));
        // SAFETY: they exist.
        unsafe {
            if EPILOGUE == GATED {
                if self.exist[0] {
                    self.y.store(0, gated(products[0], products[1], p.activation));
                }
                return;
            }
            let mut i = 0;
            while i < 2 {
                if self.exist[i] {
                    self.y.store(8 * i, before[i] + products[i]);
                }
                i += 1;
            }
        }
    }
}

/// [`Output::before`] of a row and a column.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn before<const EPILOGUE: u32>(p: &BitGemm, tile_row: u32, col: u32) -> [f32; 2] {
    // SAFETY: the caller's promise.
    unsafe { Output::new::<EPILOGUE>(p, tile_row, col).before::<EPILOGUE>(p) }
}

/// [`Output::finish`] of a row and a column.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn finish<const EPILOGUE: u32>(
    p: &BitGemm,
    tile_row: u32,
    col: u32,
    of_column: (f32, i32),
    before: [f32; 2],
    products: [i32; 2],
) {
    // SAFETY: the caller's promise.
    unsafe { Output::new::<EPILOGUE>(p, tile_row, col).finish::<EPILOGUE>(p, of_column, before, products) }
}
