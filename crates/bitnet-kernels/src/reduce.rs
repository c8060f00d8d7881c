//! Sums over a warp and over a block, in a fixed order: the same bits whatever the batch.

use crate::intrinsics::*;

/// Sum over the warp on every lane: a butterfly, so all lanes add the same pairs in the same order.
///
/// # Safety
/// All 32 lanes of the warp call this together.
#[inline(always)]
#[must_use]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn warp_sum(mut value: f32) -> f32 {
    let mut step = WARP_SIZE / 2;
    while step > 0 {
        // SAFETY: the caller's promise.
        value += unsafe { warp_shuffle_xor(FULL_MASK, value, step) };
        step /= 2;
    }
    value
}

/// Sum over a block of `WARPS` warps along x on every lane: first over each warp, then over the warps in order.
///
/// `scratch` is `WARPS` floats; a barrier must lie between its last use and this call.
///
/// # Safety
/// All lanes of the block call this together.
#[inline(always)]
#[must_use]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn block_sum<const WARPS: u32>(value: f32, scratch: Shared<f32>) -> f32 {
    // SAFETY: the caller's promise; the barrier orders the warps' stores before the loads.
    unsafe {
        let value = warp_sum(value);
        if lane_id() == 0 {
            scratch.store(warp_id(), value);
        }
        sync_threads();
        let mut total = scratch.load(0);
        let mut warp = 1;
        while warp < WARPS {
            total += scratch.load(warp);
            warp += 1;
        }
        total
    }
}
