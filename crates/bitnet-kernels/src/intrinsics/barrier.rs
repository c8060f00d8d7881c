//! Barriers of a block, fences, and the hand-over between dependent grids.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

#[cfg(target_arch = "nvptx64")]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn barrier_sync_all(id: i32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn barrier_sync_count(id: i32, lanes: i32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    fn barrier_arrive_count(id: i32, lanes: i32);
}

/// Waits for every lane of the block; orders all memory accesses before it ahead of all after it.
/// `bar.sync 0`, PTX ISA 9.7.13.1.
///
/// # Safety
/// Every lane of the block reaches this call, and none has left the kernel.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn sync_threads() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        barrier_sync_all(0);
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::lane::barrier(0, None, true);
}

/// Waits at barrier `id` (1 to 15) until `lanes` lanes (a multiple of 32) have arrived there; orders memory as
/// [`sync_threads`] does, for those lanes. `bar.sync id, lanes`, PTX ISA 9.7.13.1.
///
/// # Safety
/// Whole warps, `lanes` in total, reach this barrier or [`sync_threads_arrive`] of the same `id` and count.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn sync_threads_named(id: u32, lanes: u32) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        barrier_sync_count(id as i32, lanes as i32);
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::lane::barrier(id, Some(lanes), true);
}

/// Arrives at barrier `id` without waiting: the producer's half of [`sync_threads_named`].
/// `bar.arrive id, lanes`, PTX ISA 9.7.13.1.
///
/// # Safety
/// As for [`sync_threads_named`].
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn sync_threads_arrive(id: u32, lanes: u32) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        barrier_arrive_count(id as i32, lanes as i32);
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::lane::barrier(id, Some(lanes), false);
}

/// Orders this lane's earlier accesses before its later ones for the whole device: with a relaxed atomic after it a
/// release, before it an acquire. `fence.acq_rel.gpu`, PTX ISA 9.7.13.4.
#[inline(always)]
pub fn device_fence() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: a fence has no precondition.
    unsafe {
        asm!("fence.acq_rel.gpu;", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::lane::fence();
}

/// [`device_fence`] for the lanes of this block. `fence.acq_rel.cta`, PTX ISA 9.7.13.4.
#[inline(always)]
pub fn block_fence() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: a fence has no precondition.
    unsafe {
        asm!("fence.acq_rel.cta;", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::lane::fence();
}

/// Waits until the grids this one depends on have finished and their writes are visible; nothing where the launch was not
/// a programmatic dependent one. `griddepcontrol.wait`, PTX ISA 9.7.13.13; sm_90.
///
/// Before it a kernel may touch only what no kernel of the same stream writes, such as weights.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub fn grid_dependency_wait() {
    #[cfg(all(target_arch = "nvptx64", sm_90))]
    // SAFETY: no precondition; the default memory clobber keeps later accesses after it.
    unsafe {
        asm!("griddepcontrol.wait;", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::lane::grid_dependency_wait();
}

/// Lets the grid that depends on this one start once every block has called this or ended; it says nothing about memory,
/// which the other side's [`grid_dependency_wait`] does. `griddepcontrol.launch_dependents`, PTX ISA 9.7.13.13; sm_90.
#[inline(always)]
pub fn grid_dependency_launch() {
    #[cfg(all(target_arch = "nvptx64", sm_90))]
    // SAFETY: a hint, with no precondition.
    unsafe {
        asm!(
            "griddepcontrol.launch_dependents;",
            options(nostack, preserves_flags)
        );
    }
}

/// [`grid_dependency_launch`] once `word`, which was loaded before, has arrived.
#[inline(always)]
pub fn grid_dependency_launch_behind(word: u32) {
    #[cfg(all(target_arch = "nvptx64", sm_90))]
    // SAFETY: a hint, with no precondition. Whatever the word is, it is given once; what it depends on has to be there first.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.eq.u32 p, {}, 0; @p griddepcontrol.launch_dependents; @!p griddepcontrol.launch_dependents; }}",
            in(reg32) word,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(all(target_arch = "nvptx64", sm_90)))]
    let _ = word;
}

/// Suspends the lane for about `nanoseconds`, for polite spinning. `nanosleep.u32`, PTX ISA 9.7.19.
#[inline(always)]
pub fn nanosleep(nanoseconds: u32) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: no precondition.
    unsafe {
        asm!("nanosleep.u32 {};", in(reg32) nanoseconds, options(nostack, preserves_flags));
    }
    // The emulator's polling loads yield by themselves.
    #[cfg(not(target_arch = "nvptx64"))]
    let _ = nanoseconds;
}
