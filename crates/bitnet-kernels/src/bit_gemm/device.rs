//! What both shapes of block share: unpacking and the epilogue.

use super::BitGemm;
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

/// What the output has of two rows 8 apart of one column before the product is added; zeros unless `EPILOGUE` adds, and
/// anything outside the output.
///
/// # Safety
/// The output was written, by no lane of this kernel but perhaps this one.
#[inline(always)]
pub(super) unsafe fn before<const EPILOGUE: u32>(p: &BitGemm, tile_row: u32, col: u32) -> [f32; 2] {
    if EPILOGUE != ADD {
        return [0.0; 2];
    }
    [tile_row, tile_row + 8].map(|row| {
        // A load in a branch would be waited for there, before the next is under way.
        let y = if row < p.n && col < p.cols {
            p.y.offset((col * p.n + row) as usize)
        } else {
            p.unit
        };
        // SAFETY: inside the output, or the first of the units.
        unsafe { y.load_l2(0)[0] }
    })
}

/// Scales the sums of two rows 8 apart (gated: of a pair of rows) with one column, which has that unit and sum, and writes the
/// output, to which [`before`] contributes.
///
/// # Safety
/// Rows and columns outside the output write nothing; no other lane writes those inside.
#[inline(always)]
pub(super) unsafe fn finish<const EPILOGUE: u32>(
    p: &BitGemm,
    tile_row: u32,
    col: u32,
    (unit, sum): (f32, i32),
    before: [f32; 2],
    sums: [i32; 2],
) {
    if col >= p.cols {
        return;
    }
    let products = sums.map(|d| (d >> CODE_BITS) - sum);
    // SAFETY: rows and columns are compared with their counts.
    unsafe {
        if EPILOGUE == GATED {
            let out = tile_row / 16 * 8 + tile_row % 8;
            if out < p.n / 2 {
                let gate = products[0] as f32 * (p.scale_a * unit);
                let up = products[1] as f32 * (p.scale_b * unit);
                p.y.store((col * (p.n / 2) + out) as usize, gated(gate, up, p.activation));
            }
            return;
        }
        let mut i = 0;
        while i < 2 {
            let row = tile_row + 8 * i as u32;
            if row < p.n {
                let scale = row_scale(row, [p.row_b, p.row_c], [p.scale_a, p.scale_b, p.scale_c]);
                let z = products[i] as f32 * (scale * unit);
                p.y.store((col * p.n + row) as usize, before[i] + z);
            }
            i += 1;
        }
    }
}
