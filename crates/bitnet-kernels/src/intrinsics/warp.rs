//! What the lanes of a warp do together. `mask` names the lanes that take part, [`FULL_MASK`] for all 32.

use super::Word;

/// Every lane of a warp.
pub const FULL_MASK: u32 = u32::MAX;

#[cfg(target_arch = "nvptx64")]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: i32);
    #[link_name = "llvm.nvvm.shfl.sync.down.i32"]
    fn shfl_down(mask: i32, value: i32, delta: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    fn shfl_up(mask: i32, value: i32, delta: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shfl_bfly(mask: i32, value: i32, lane_mask: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_idx(mask: i32, value: i32, lane: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.vote.all.sync"]
    fn vote_all(mask: i32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.any.sync"]
    fn vote_any(mask: i32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot(mask: i32, predicate: bool) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.add"]
    fn redux_add(value: i32, mask: i32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.max"]
    fn redux_max(value: i32, mask: i32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.min"]
    fn redux_min(value: i32, mask: i32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    fn redux_umax(value: i32, mask: i32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    fn redux_umin(value: i32, mask: i32) -> i32;
}

/// Waits for the lanes of `mask` and orders their memory accesses. `bar.warp.sync`, PTX ISA 9.7.13.2.
///
/// # Safety
/// Every lane of `mask` calls this with the same `mask`, and the calling lane is one of them.
#[inline(always)]
#[cfg_attr(feature = "emulator", track_caller)]
pub unsafe fn sync_warp(mask: u32) {
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller's promise.
    unsafe {
        bar_warp_sync(mask as i32);
    }
    #[cfg(not(target_arch = "nvptx64"))]
    crate::emulator::lane::sync_warp(mask);
}

/// Defines the shuffles: name, LLVM function, clamp operand, and where lane `lane` reads from (beyond 31: its own value).
macro_rules! shuffle {
    ($($(#[$doc:meta])* $name:ident($operand:ident), $llvm:ident, $clamp:literal, |$lane:ident| $source:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// Every lane of `mask` calls this with the same `mask`; the calling lane and the lane it reads are of `mask`.
        #[inline(always)]
        #[must_use]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub unsafe fn $name<T: Word>(mask: u32, value: T, $operand: u32) -> T {
            #[cfg(target_arch = "nvptx64")]
            // SAFETY: the caller's promise.
            let word = unsafe { $llvm(mask as i32, value.to_word() as i32, $operand as i32, $clamp) } as u32;
            #[cfg(not(target_arch = "nvptx64"))]
            let word = crate::emulator::lane::shuffle(stringify!($name), mask, value.to_word(), |$lane: u32| $source);
            T::from_word(word)
        }
    )*};
}

shuffle! {
    /// The value of the lane `delta` above; lanes without one get their own. `shfl.sync.down.b32`, PTX ISA 9.7.9.6.
    warp_shuffle_down(delta), shfl_down, 31, |lane| lane.saturating_add(delta);
    /// The value of the lane `delta` below; lanes without one get their own. `shfl.sync.up.b32`, PTX ISA 9.7.9.6.
    warp_shuffle_up(delta), shfl_up, 0, |lane| lane.wrapping_sub(delta);
    /// The value of the lane whose number differs in the bits `lane_mask`. `shfl.sync.bfly.b32`, PTX ISA 9.7.9.6.
    warp_shuffle_xor(lane_mask), shfl_bfly, 31, |lane| lane ^ lane_mask;
    /// The value of lane `source` (modulo 32). `shfl.sync.idx.b32`, PTX ISA 9.7.9.6.
    warp_shuffle_idx(source), shfl_idx, 31, |_lane| source % 32;
}

/// Defines votes and integer reductions: every lane of the mask gets the same result.
macro_rules! warp_reduction {
    ($($(#[$doc:meta])* $name:ident($operand:ident: $type:ty) -> $out:ty, |$mask:ident| $device:expr,
        $to:expr, $fold:expr, $from:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// Every lane of `mask` calls this with the same `mask`, and the calling lane is one of them.
        #[inline(always)]
        #[must_use]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub unsafe fn $name(mask: u32, $operand: $type) -> $out {
            #[cfg(target_arch = "nvptx64")]
            {
                let $mask = mask as i32;
                // SAFETY: the caller's promise.
                unsafe { $device }
            }
            #[cfg(not(target_arch = "nvptx64"))]
            {
                let to: fn($type) -> u32 = $to;
                let from: fn(u32) -> $out = $from;
                // `fold` gets the accumulated word, the next lane and its word.
                from(crate::emulator::lane::reduce(stringify!($name), mask, to($operand), $fold))
            }
        }
    )*};
}

warp_reduction! {
    /// Whether `predicate` holds on all lanes of `mask`. `vote.sync.all.pred`, PTX ISA 9.7.13.9.
    warp_vote_all(predicate: bool) -> bool, |m| vote_all(m, predicate),
        u32::from, |all, _, one| all.unwrap_or(1) & one, |w| w != 0;
    /// Whether `predicate` holds on any lane of `mask`. `vote.sync.any.pred`, PTX ISA 9.7.13.9.
    warp_vote_any(predicate: bool) -> bool, |m| vote_any(m, predicate),
        u32::from, |all, _, one| all.unwrap_or(0) | one, |w| w != 0;
    /// Bit `i` says whether `predicate` holds on lane `i`. `vote.sync.ballot.b32`, PTX ISA 9.7.13.9.
    warp_vote_ballot(predicate: bool) -> u32, |m| vote_ballot(m, predicate) as u32,
        u32::from, |all, lane, one| all.unwrap_or(0) | one << lane, |w| w;
    /// Sum over the lanes of `mask`, wrapping. `redux.sync.add.s32`, PTX ISA 9.7.13.11.
    warp_reduce_add(value: i32) -> i32, |m| redux_add(value, m),
        |v| v as u32, |all, _, one| all.unwrap_or(0).wrapping_add(one), |w| w as i32;
    /// Largest over the lanes of `mask`. `redux.sync.max.s32`, PTX ISA 9.7.13.11.
    warp_reduce_max(value: i32) -> i32, |m| redux_max(value, m),
        |v| v as u32, |all, _, one| all.map_or(one, |a| (a as i32).max(one as i32) as u32), |w| w as i32;
    /// Smallest over the lanes of `mask`. `redux.sync.min.s32`, PTX ISA 9.7.13.11.
    warp_reduce_min(value: i32) -> i32, |m| redux_min(value, m),
        |v| v as u32, |all, _, one| all.map_or(one, |a| (a as i32).min(one as i32) as u32), |w| w as i32;
    /// Largest over the lanes of `mask`, unsigned. `redux.sync.max.u32`, PTX ISA 9.7.13.11.
    warp_reduce_max_u32(value: u32) -> u32, |m| redux_umax(value as i32, m) as u32,
        |v| v, |all, _, one| all.map_or(one, |a| a.max(one)), |w| w;
    /// Smallest over the lanes of `mask`, unsigned. `redux.sync.min.u32`, PTX ISA 9.7.13.11.
    warp_reduce_min_u32(value: u32) -> u32, |m| redux_umin(value as i32, m) as u32,
        |v| v, |all, _, one| all.map_or(one, |a| a.min(one)), |w| w;
}
