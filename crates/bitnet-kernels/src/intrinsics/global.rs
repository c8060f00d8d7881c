//! Loads and stores of global memory, as methods of [`Global`]. An index counts elements.

use super::{Element, Word};
use crate::Global;
#[cfg(not(target_arch = "nvptx64"))]
use crate::emulator::lane;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// Defines vector and hinted loads of words: name, words, instruction.
macro_rules! word_loads {
    ($($(#[$doc:meta])* $name:ident -> [$n:tt] $ptx:tt, $access:ident, ($($option:tt),*);)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// The elements from `index` on are readable and the first lies on a multiple of the vector's size.
        #[inline(always)]
        #[must_use]
        #[cfg_attr(feature = "emulator", track_caller)]
        pub unsafe fn $name(self, index: usize) -> [T; $n] {
            #[cfg(target_arch = "nvptx64")]
            let words: [u32; $n] = {
                let mut w = [0u32; $n];
                // SAFETY: the caller's promise.
                unsafe { word_loads!(@asm $n, $ptx, w, self.offset(index).address(), ($($option),*)); }
                w
            };
            #[cfg(not(target_arch = "nvptx64"))]
            let words: [u32; $n] = lane::load_words(self.offset(index).address(), lane::Access::$access);
            words.map(T::from_word)
        }
    )*};
    (@asm 1, $ptx:tt, $w:ident, $address:expr, ($($option:tt),*)) => {
        asm!(concat!($ptx, ".b32 {}, [{}];"), out(reg32) $w[0], in(reg64) $address,
            options($($option),*, nostack, preserves_flags))
    };
    (@asm 2, $ptx:tt, $w:ident, $address:expr, ($($option:tt),*)) => {
        asm!(concat!($ptx, ".v2.b32 {{{}, {}}}, [{}];"), out(reg32) $w[0], out(reg32) $w[1], in(reg64) $address,
            options($($option),*, nostack, preserves_flags))
    };
    (@asm 4, $ptx:tt, $w:ident, $address:expr, ($($option:tt),*)) => {
        asm!(concat!($ptx, ".v4.b32 {{{}, {}, {}, {}}}, [{}];"), out(reg32) $w[0], out(reg32) $w[1],
            out(reg32) $w[2], out(reg32) $w[3], in(reg64) $address, options($($option),*, nostack, preserves_flags))
    };
}

impl<T: Element> Global<T> {
    /// Element `index`. `ld.global`, PTX ISA 9.7.9.8.
    ///
    /// # Safety
    /// The element is readable, and no lane writes it without a barrier in between.
    #[inline(always)]
    #[must_use]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn load(self, index: usize) -> T {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        return unsafe { self.pointer.add(index).read() };
        #[cfg(not(target_arch = "nvptx64"))]
        return T::from_raw(lane::load(
            self.offset(index).address(),
            size_of::<T>(),
            lane::Access::Plain,
        ));
    }

    /// Writes element `index`. `st.global`, PTX ISA 9.7.9.11.
    ///
    /// # Safety
    /// The element is writable, and no other lane accesses it without a barrier in between.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn store(self, index: usize, value: T) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            self.pointer.add(index).write(value);
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::store(
            self.offset(index).address(),
            &value.to_raw().to_le_bytes()[..size_of::<T>()],
            lane::Access::Plain,
        );
    }

    /// Asks for the cache line of element `index` to be brought into L2. `prefetch.global.L2`, PTX ISA 9.7.9.15.
    ///
    /// # Safety
    /// The element is readable.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn prefetch_l2(self, index: usize) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: a hint about readable memory.
        unsafe {
            asm!("prefetch.global.L2 [{}];", in(reg64) self.offset(index).address(),
                options(readonly, nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::check_readable(self.offset(index).address(), size_of::<T>());
    }
}

impl<T: Word> Global<T> {
    word_loads! {
        /// Two elements. `ld.global.v2`, PTX ISA 9.7.9.8.
        load_x2 -> [2] "ld.global", Plain, (pure, readonly);
        /// Four elements. `ld.global.v4`, PTX ISA 9.7.9.8.
        load_x4 -> [4] "ld.global", Plain, (pure, readonly);
        /// One element of data that nobody writes while the kernel runs and that is read once: it passes by L1. Loads of
        /// this kind stay in program order, so that a kernel decides how many are in flight.
        /// `ld.global.nc.L1::no_allocate.b32`, PTX ISA 9.7.9.9.
        load_stream -> [1] "ld.global.nc.L1::no_allocate", Constant, (readonly);
        /// [`Global::load_stream`], two elements.
        load_stream_x2 -> [2] "ld.global.nc.L1::no_allocate", Constant, (readonly);
        /// [`Global::load_stream`], four elements.
        load_stream_x4 -> [4] "ld.global.nc.L1::no_allocate", Constant, (readonly);
        /// One element through the read-only path, kept in L1, of data that nobody writes while the kernel runs.
        /// `ld.global.nc`, PTX ISA 9.7.9.9.
        load_constant -> [1] "ld.global.nc", Constant, (pure, readonly);
        /// [`Global::load_constant`], four elements.
        load_constant_x4 -> [4] "ld.global.nc", Constant, (pure, readonly);
        /// One element from L2, past L1: for data that another kernel or block wrote. `ld.global.cg`, PTX ISA 9.7.9.8.
        load_l2 -> [1] "ld.global.cg", Plain, (readonly);
        /// [`Global::load_l2`], two elements.
        load_l2_x2 -> [2] "ld.global.cg", Plain, (readonly);
        /// [`Global::load_l2`], four elements.
        load_l2_x4 -> [4] "ld.global.cg", Plain, (readonly);
    }

    /// Writes two elements. `st.global.v2`, PTX ISA 9.7.9.11.
    ///
    /// # Safety
    /// As for [`Global::store`], and element `index` lies on a multiple of 8 bytes.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn store_x2(self, index: usize, value: [T; 2]) {
        let w = value.map(T::to_word);
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("st.global.v2.b32 [{}], {{{}, {}}};", in(reg64) self.offset(index).address(), in(reg32) w[0],
                in(reg32) w[1], options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::store(
            self.offset(index).address(),
            &lane::bytes::<8>(&w),
            lane::Access::Plain,
        );
    }

    /// Writes four elements. `st.global.v4`, PTX ISA 9.7.9.11.
    ///
    /// # Safety
    /// As for [`Global::store`], and element `index` lies on a multiple of 16 bytes.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn store_x4(self, index: usize, value: [T; 4]) {
        let w = value.map(T::to_word);
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("st.global.v4.b32 [{}], {{{}, {}, {}, {}}};", in(reg64) self.offset(index).address(),
                in(reg32) w[0], in(reg32) w[1], in(reg32) w[2], in(reg32) w[3], options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::store(
            self.offset(index).address(),
            &lane::bytes::<16>(&w),
            lane::Access::Plain,
        );
    }
}
