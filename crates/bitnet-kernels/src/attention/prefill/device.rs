//! The body of the prefill kernels: whose it is.

use super::{AttentionPrefill, warp, warpgroup};

#[inline(always)]
pub(super) unsafe fn run<const CHUNKS: usize, const INT8: bool, const BY_WARPGROUPS: bool>(
    p: AttentionPrefill,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if BY_WARPGROUPS {
            warpgroup::run(p);
        } else {
            warp::run::<CHUNKS, INT8>(p);
        }
    }
}
