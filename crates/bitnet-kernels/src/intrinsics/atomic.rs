//! Atomics on global memory, at the scope of the device: PTX ISA 8 (memory model), 9.7.9.8, 9.7.9.11, 9.7.13.5 and
//! 9.7.13.7.
//!
//! `acquire` loads see all that was written before the `release` they read from. Loads here are what a spinning lane
//! calls: the emulator lets other lanes run at each.

use crate::Global;
#[cfg(not(target_arch = "nvptx64"))]
use crate::emulator::lane::{self, Order};
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

macro_rules! atomic_loads {
    ($type:ty, $class:ident, $($(#[$doc:meta])* $name:ident $ptx:literal $order:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The element is readable and naturally aligned.
        #[inline(always)]
        #[must_use]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub unsafe fn $name(self, index: usize) -> $type {
            #[cfg(target_arch = "nvptx64")]
            {
                let value: $type;
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(concat!($ptx, " {}, [{}];"), out($class) value, in(reg64) self.offset(index).address(),
                        options(nostack, preserves_flags));
                }
                value
            }
            #[cfg(not(target_arch = "nvptx64"))]
            return lane::atomic_load(self.offset(index).address(), size_of::<$type>(), Order::$order) as $type;
        }
    )*};
}

macro_rules! atomic_stores {
    ($type:ty, $class:ident, $($(#[$doc:meta])* $name:ident $ptx:literal $order:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The element is writable and naturally aligned.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub unsafe fn $name(self, index: usize, value: $type) {
            #[cfg(target_arch = "nvptx64")]
            // SAFETY: the caller's promise.
            unsafe {
                asm!(concat!($ptx, " [{}], {};"), in(reg64) self.offset(index).address(), in($class) value,
                    options(nostack, preserves_flags));
            }
            #[cfg(not(target_arch = "nvptx64"))]
            lane::atomic_store(self.offset(index).address(), size_of::<$type>(), Order::$order, value as u64);
        }
    )*};
}

macro_rules! atomic_updates {
    ($type:ty, $class:ident, $($(#[$doc:meta])* $name:ident $ptx:literal $order:ident $update:expr;)*) => {$(
        $(#[$doc])*
        /// Returns the value before.
        ///
        /// # Safety
        /// The element is readable, writable and naturally aligned.
        #[inline(always)]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub unsafe fn $name(self, index: usize, operand: $type) -> $type {
            #[cfg(target_arch = "nvptx64")]
            {
                let old: $type;
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(concat!($ptx, " {}, [{}], {};"), out($class) old, in(reg64) self.offset(index).address(),
                        in($class) operand, options(nostack, preserves_flags));
                }
                old
            }
            #[cfg(not(target_arch = "nvptx64"))]
            {
                let update: fn($type, $type) -> $type = $update;
                lane::atomic_update(self.offset(index).address(), size_of::<$type>(), Order::$order,
                    |old| update(old as $type, operand) as u64) as $type
            }
        }
    )*};
}

impl Global<u32> {
    atomic_loads! { u32, reg32,
        /// Atomic load without ordering. `ld.relaxed.gpu.global.u32`.
        load_relaxed "ld.relaxed.gpu.global.u32" Relaxed;
        /// Atomic load that later accesses cannot pass. `ld.acquire.gpu.global.u32`.
        load_acquire "ld.acquire.gpu.global.u32" Acquire;
    }
    atomic_stores! { u32, reg32,
        /// Atomic store without ordering. `st.relaxed.gpu.global.u32`.
        store_relaxed "st.relaxed.gpu.global.u32" Relaxed;
        /// Atomic store that earlier accesses cannot pass. `st.release.gpu.global.u32`.
        store_release "st.release.gpu.global.u32" Release;
    }
    atomic_updates! { u32, reg32,
        /// Adds, without ordering. `atom.relaxed.gpu.global.add.u32`.
        fetch_add "atom.relaxed.gpu.global.add.u32" Relaxed |old, by| old.wrapping_add(by);
        /// Adds, ordering accesses before and after. `atom.acq_rel.gpu.global.add.u32`.
        fetch_add_acq_rel "atom.acq_rel.gpu.global.add.u32" AcqRel |old, by| old.wrapping_add(by);
        /// Keeps the larger, without ordering. `atom.relaxed.gpu.global.max.u32`.
        fetch_max "atom.relaxed.gpu.global.max.u32" Relaxed |old, new| old.max(new);
    }

    /// Adds without reading the old value; earlier accesses cannot pass it. `red.release.gpu.global.add.u32`, PTX ISA
    /// 9.7.13.7.
    ///
    /// # Safety
    /// The element is writable and naturally aligned.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn add_release(self, index: usize, by: u32) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("red.release.gpu.global.add.u32 [{}], {};", in(reg64) self.offset(index).address(), in(reg32) by,
                options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::atomic_update(self.offset(index).address(), 4, Order::Release, |old| {
            (old as u32).wrapping_add(by).into()
        });
    }
}

impl Global<u64> {
    atomic_loads! { u64, reg64,
        /// Atomic load without ordering. `ld.relaxed.gpu.global.u64`.
        load_relaxed "ld.relaxed.gpu.global.u64" Relaxed;
        /// Atomic load that later accesses cannot pass. `ld.acquire.gpu.global.u64`.
        load_acquire "ld.acquire.gpu.global.u64" Acquire;
    }
    atomic_stores! { u64, reg64,
        /// Atomic store without ordering: a value and its step number published in one word need no more.
        /// `st.relaxed.gpu.global.u64`.
        store_relaxed "st.relaxed.gpu.global.u64" Relaxed;
        /// Atomic store that earlier accesses cannot pass. `st.release.gpu.global.u64`.
        store_release "st.release.gpu.global.u64" Release;
    }
    atomic_updates! { u64, reg64,
        /// Adds, without ordering. `atom.relaxed.gpu.global.add.u64`.
        fetch_add "atom.relaxed.gpu.global.add.u64" Relaxed |old, by| old.wrapping_add(by);
        /// Keeps the larger, without ordering; the result does not depend on the order of the calls.
        /// `atom.relaxed.gpu.global.max.u64`.
        fetch_max "atom.relaxed.gpu.global.max.u64" Relaxed |old, new| old.max(new);
    }
}
