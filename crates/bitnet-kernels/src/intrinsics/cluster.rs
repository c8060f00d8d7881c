//! Blocks of a cluster: that all have started, and stores into each other's shared memory. sm_90.
//!
//! Data goes by stores that report to an mbarrier beside their destination. The other way, plain stores and a cluster barrier
//! that releases them, compiles to `MEMBAR.ALL.GPU`, which also waits for all that the block has written to global memory.

use super::{Mbarrier, Shared, Word};
#[cfg(not(target_arch = "nvptx64"))]
use crate::emulator::lane;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

#[cfg(target_arch = "nvptx64")]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.relaxed.aligned"]
    fn barrier_cluster_arrive_relaxed();
    #[link_name = "llvm.nvvm.barrier.cluster.wait.aligned"]
    fn barrier_cluster_wait();
}

/// Arrives at the cluster's barrier without waiting, and releases nothing but what [`Mbarrier::fence_init`] did before: says
/// that this lane's block has started. `barrier.cluster.arrive.relaxed.aligned`, PTX ISA 9.7.13.3; sm_90.
///
/// # Safety
/// All lanes of the warp call this together; each calls [`cluster_wait`] before it arrives again.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn cluster_arrive_relaxed() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        barrier_cluster_arrive_relaxed();
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::cluster_arrive();
}

/// Waits until every lane of every block of the cluster has arrived. `barrier.cluster.wait.acquire.aligned`, PTX ISA
/// 9.7.13.3; sm_90.
///
/// # Safety
/// All lanes of the warp call this together, after [`cluster_arrive_relaxed`].
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn cluster_wait() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        barrier_cluster_wait();
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::cluster_wait();
}

impl<T: Word> Shared<T> {
    /// Starts to write two elements at this address of the shared memory of block `rank` of the cluster, and returns at once;
    /// the 8 bytes count for the phase under way of that block's `barrier`. `mapa.shared::cluster`, PTX ISA 9.7.9.23, and
    /// `st.async.shared::cluster.mbarrier::complete_tx::bytes.v2`, PTX ISA 9.7.9.12; sm_90.
    ///
    /// # Safety
    /// The address is a multiple of 8; the cluster has such a block, [`cluster_wait`] has said that it has started, and it
    /// does not end before its `barrier`'s phase, which expects these bytes; nobody touches them before
    /// [`Mbarrier::wait_cluster`] for that phase.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn store_async_x2(self, value: [T; 2], rank: u32, barrier: Mbarrier) {
        let w = value.map(T::to_word);
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("{{ .reg .b32 to, bar; mapa.shared::cluster.u32 to, {0}, {4}; mapa.shared::cluster.u32 bar, {1}, {4};",
                "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [to], {{{2}, {3}}}, [bar]; }}",
                in(reg32) self.address(), in(reg32) barrier.address(), in(reg32) w[0], in(reg32) w[1], in(reg32) rank,
                options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::store_async(self.address(), w, rank, barrier.address());
    }
}
