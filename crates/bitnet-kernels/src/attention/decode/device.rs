//! The body of the decode kernels: one step, left in global memory.

use super::AttentionDecode;
use super::step::{Parts, Results, Step};
use crate::Global;
use crate::cache::KvType;
use crate::intrinsics::*;

/// Places of a block's partial results.
struct Partials {
    /// Of the key head's first head.
    values: Global<f32>,
    sums: Global<f32>,
    steps: u32,
    padded: u32,
}

#[inline(always)]
pub(super) unsafe fn run<const CHUNKS: usize, const INT8: bool>(p: AttentionDecode) {
    grid_dependency_launch();
    let (kv_head, step, token) = (block_idx_x(), block_idx_y(), block_idx_z() as usize);
    // SAFETY: the parameters are the launch's; every branch around a warp or block operation is uniform.
    unsafe {
        let attention = Step::<CHUNKS, INT8>::new(p.inputs(), token, kv_head, step);
        if !attention.has_keys() {
            return;
        }
        let padded = Step::<CHUNKS, INT8>::PADDED;
        let row = token * p.n_heads as usize + (kv_head * p.heads_per_kv) as usize;
        let first = row * p.steps as usize + step as usize;
        let partials = Partials {
            values: p.values.offset(first * padded as usize),
            sums: p.sums.offset(2 * first),
            steps: p.steps,
            padded,
        };
        // What does not depend on the kernel before is requested first.
        let mut fragments = attention.request_old();
        attention.attend(&mut fragments, &Parts::new(padded, KvType::of(INT8)), &partials);
    }
}

impl Results for Partials {
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn put_values(&self, head: u32, chunk: u32, values: [f32; 2]) {
        let dim = 8 * chunk + 2 * (lane_id() % 4);
        let at = (head * self.steps * self.padded + dim) as usize;
        // SAFETY: the caller's promise; the place is this lane's alone.
        unsafe { self.values.store_x2(at, values) }
    }

    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    unsafe fn put_sums(&self, head: u32, sums: [f32; 2]) {
        if warp_id() == 0 && lane_id().is_multiple_of(4) {
            // SAFETY: the caller's promise; one lane stores.
            unsafe { self.sums.store_x2((2 * head * self.steps) as usize, sums) }
        }
    }
}
