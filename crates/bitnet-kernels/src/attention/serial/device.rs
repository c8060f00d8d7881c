//! The body of the decode kernels of many tokens.

use super::super::decode::step::{Parts, Step};
use super::AttentionSerial;
use crate::cache::KvType;
use crate::intrinsics::*;

#[inline(always)]
pub(super) unsafe fn run<const CHUNKS: usize, const INT8: bool>(p: AttentionSerial) {
    grid_dependency_launch();
    let (kv_head, token) = (block_idx_x(), block_idx_y() as usize);
    let padded = Step::<CHUNKS, INT8>::PADDED;
    let row = token * p.n_heads as usize + (kv_head * p.heads_per_kv) as usize;
    // SAFETY: the parameters are the launch's; every branch around a warp or block operation is uniform.
    unsafe {
        let first = Step::<CHUNKS, INT8>::new(p.inputs(), token, kv_head, 0);
        let parts = Parts::new(padded, KvType::of(INT8));
        first.attend_all(&parts, p.out.offset(row * p.head_dim as usize));
    }
}
