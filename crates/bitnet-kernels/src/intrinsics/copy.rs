//! Asynchronous copies from global to shared memory, and the mbarriers that say when they are done.

use super::Shared;
use crate::Global;
#[cfg(not(target_arch = "nvptx64"))]
use crate::emulator::lane;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Starts a copy of 16 bytes, past L1, and returns at once. `cp.async.cg.shared.global`, PTX ISA 9.7.9.25.3.1.
///
/// # Safety
/// Both addresses lie on multiples of 16 bytes, the source is readable, and until [`async_copy_wait`] covers this copy no
/// lane touches the destination.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn async_copy_16<T>(destination: Shared<T>, source: Global<T>) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16;", in(reg32) destination.address(), in(reg64) source.address(),
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::async_copy(destination.address(), source.address(), 16);
}

/// The same, and L2 brings the 256 bytes from memory among which these are: for rows that are copied piece by piece, as memory delivers
/// neighbors faster together. `cp.async` with `.L2::256B`, PTX ISA 9.7.9.25.3.1.
///
/// # Safety
/// As for [`async_copy_16`].
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn async_copy_16_of_256<T>(destination: Shared<T>, source: Global<T>) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.cg.shared.global.L2::256B [{}], [{}], 16;", in(reg32) destination.address(), in(reg64) source.address(),
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::async_copy(destination.address(), source.address(), 16);
}

/// Starts a copy of 8 bytes and returns at once. `cp.async.ca.shared.global`, PTX ISA 9.7.9.25.3.1.
///
/// # Safety
/// As for [`async_copy_16`], with addresses on multiples of 8 bytes; no other lane has read these bytes by L1 before they were written.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn async_copy_8<T>(destination: Shared<T>, source: Global<T>) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.ca.shared.global [{}], [{}], 8;", in(reg32) destination.address(), in(reg64) source.address(),
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::async_copy(destination.address(), source.address(), 8);
}

/// Closes this lane's group of copies started since the last call. `cp.async.commit_group`, PTX ISA 9.7.9.25.3.2.
#[inline(always)]
pub fn async_copy_commit() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: no precondition.
    unsafe {
        asm!("cp.async.commit_group;", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::async_copy_commit();
}

/// Waits until at most the `PENDING` newest of this lane's groups are unfinished; other lanes see the data after a barrier.
/// `cp.async.wait_group`, PTX ISA 9.7.9.25.3.3.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub fn async_copy_wait<const PENDING: usize>() {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: no precondition.
    unsafe {
        asm!("cp.async.wait_group {};", const PENDING, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::async_copy_wait(PENDING);
}

/// An mbarrier object: 8 bytes of shared memory that count arrivals and bytes. PTX ISA 9.7.13.15.
///
/// A phase ends when all expected arrivals and all expected bytes are in; the next begins at once. Phases alternate in
/// parity, starting with 0.
pub type Mbarrier = Shared<u64>;

/// Tries until the phase has ended.
#[cfg(target_arch = "nvptx64")]
macro_rules! wait_for_phase {
    ($scope:literal, $address:expr, $parity:expr) => {
        loop {
            let done: u32;
            asm!(concat!("{{ .reg .pred done; mbarrier.try_wait.parity", $scope, ".shared::cta.b64 done, [{1}], {2};"),
                "selp.u32 {0}, 1, 0, done; }}", out(reg32) done, in(reg32) $address, in(reg32) $parity,
                options(nostack, preserves_flags));
            if done != 0 {
                break;
            }
        }
    };
}

impl Mbarrier {
    /// Sets the number of arrivals of a phase. A barrier must follow before other lanes use the object, and
    /// [`Mbarrier::fence_init`] before a bulk copy does. `mbarrier.init.shared::cta.b64`, PTX ISA 9.7.13.15.9.
    ///
    /// # Safety
    /// The 8 bytes, on a multiple of 8, are in bounds and in no other use.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn init(self, arrivals: u32) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) self.address(), in(reg32) arrivals,
                options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::mbarrier_init(self.address(), arrivals);
    }

    /// Makes this lane's [`Mbarrier::init`] visible to bulk copies, and to the cluster once this lane has arrived at its
    /// barrier ([`cluster_arrive_relaxed`](super::cluster_arrive_relaxed)). `fence.mbarrier_init.release.cluster` and
    /// `fence.proxy.async.shared::cta`, PTX ISA 9.7.13.4; sm_90.
    #[inline(always)]
    pub fn fence_init() {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: fences have no precondition.
        unsafe {
            asm!(
                "fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;",
                options(nostack, preserves_flags)
            );
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::mbarrier_fence_init();
    }

    /// Arrives once. `mbarrier.arrive.shared::cta.b64`, PTX ISA 9.7.13.15.13.
    ///
    /// # Safety
    /// The object was initialized, and the phase still expects an arrival.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn arrive(self) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("{{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [{}]; }}", in(reg32) self.address(),
                options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::mbarrier_arrive(self.address(), 0);
    }

    /// Announces `bytes` of bulk copies for this phase and arrives once. `mbarrier.arrive.expect_tx.shared::cta.b64`, PTX
    /// ISA 9.7.13.15.13; sm_90.
    ///
    /// # Safety
    /// As for [`Mbarrier::arrive`].
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn arrive_expect(self, bytes: u32) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("{{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [{}], {}; }}",
                in(reg32) self.address(), in(reg32) bytes, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::mbarrier_arrive(self.address(), bytes);
    }

    /// Waits until the phase of `parity` (0 or 1) has ended; what its copies brought is then visible to this lane.
    /// `mbarrier.try_wait.parity.shared::cta.b64` in a loop, PTX ISA 9.7.13.15.16; sm_90.
    ///
    /// # Safety
    /// The object was initialized.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn wait(self, parity: u32) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            wait_for_phase!("", self.address(), parity);
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::mbarrier_wait(self.address(), parity);
    }

    /// [`Mbarrier::wait`] for a phase to which other blocks of the cluster store.
    /// `mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64` in a loop, PTX ISA 9.7.13.15.16; sm_90.
    ///
    /// # Safety
    /// The object was initialized.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn wait_cluster(self, parity: u32) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            wait_for_phase!(".acquire.cluster", self.address(), parity);
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::mbarrier_wait(self.address(), parity);
    }
}

/// Starts a copy of `bytes` that reports to `barrier`, and returns at once: one lane fetches what a block reads.
/// `cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes`, PTX ISA 9.7.9.25.4.1; sm_90.
///
/// # Safety
/// `bytes` and both addresses are multiples of 16; the source is readable; the phase of `barrier` expects these bytes; no
/// lane touches the destination before [`Mbarrier::wait`] for that phase.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn bulk_copy<T>(destination: Shared<T>, source: Global<T>, bytes: u32, barrier: Mbarrier) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{}], [{}], {}, [{}];",
            in(reg32) destination.address(), in(reg64) source.address(), in(reg32) bytes,
            in(reg32) barrier.address(), options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "nvptx64"))]
    lane::bulk_copy(destination.address(), source.address(), bytes, barrier.address());
}
