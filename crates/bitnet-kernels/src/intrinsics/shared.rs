//! The block's shared memory: dynamic, `Launch::shared_bytes` of it, on a multiple of 1,024 bytes; kernels divide it by byte offsets.

use super::{Element, Word};
#[cfg(not(target_arch = "nvptx64"))]
use crate::emulator::lane;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;
use core::marker::PhantomData;

#[cfg(target_arch = "nvptx64")]
core::arch::global_asm!(".extern .shared .align 1024 .b8 dynamic_shared[];");

/// Address of `T`s in the shared memory of this block. An index counts elements.
#[derive(Debug)]
pub struct Shared<T> {
    /// In the shared window: 32 bits, half the registers of a generic address.
    address: u32,
    element: PhantomData<*mut T>,
}

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// Byte `offset` of the block's shared memory.
    #[inline(always)]
    #[must_use]
    pub fn at(offset: u32) -> Self {
        #[cfg(target_arch = "nvptx64")]
        let base = {
            let base: u32;
            // SAFETY: reads the address of a symbol.
            unsafe {
                asm!("mov.u32 {}, dynamic_shared;", out(reg32) base, options(pure, nomem, nostack, preserves_flags));
            }
            base
        };
        #[cfg(not(target_arch = "nvptx64"))]
        let base = 0;
        Self {
            address: base + offset,
            element: PhantomData,
        }
    }

    /// The address in bytes in the shared window.
    #[inline(always)]
    #[must_use]
    pub fn address(self) -> u32 {
        self.address
    }

    /// The address of element `index`.
    #[inline(always)]
    #[must_use]
    pub fn offset(self, index: u32) -> Self {
        Self {
            address: self
                .address
                .wrapping_add(index.wrapping_mul(size_of::<T>() as u32)),
            element: PhantomData,
        }
    }

    /// The same address, seen as `U`s.
    #[inline(always)]
    #[must_use]
    pub fn cast<U>(self) -> Shared<U> {
        Shared {
            address: self.address,
            element: PhantomData,
        }
    }

    /// The generic address, for the one instruction that LLVM offers only with it. `cvta.shared.u64`, PTX ISA 9.7.9.20.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    pub(super) fn generic_pointer(self) -> *const T {
        let pointer: u64;
        // SAFETY: address arithmetic.
        unsafe {
            asm!("cvta.shared.u64 {}, {};", out(reg64) pointer, in(reg64) u64::from(self.address),
                options(pure, nomem, nostack, preserves_flags));
        }
        pointer as *const T
    }
}

impl<T: Element> Shared<T> {
    /// Element `index`. `ld.shared`, PTX ISA 9.7.9.8.
    ///
    /// # Safety
    /// The element was written, and a barrier lies between that write and this load.
    #[inline(always)]
    #[must_use]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn load(self, index: u32) -> T {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        return unsafe { T::load_shared(self.offset(index).address) };
        #[cfg(not(target_arch = "nvptx64"))]
        return T::from_raw(lane::load_shared(self.offset(index).address, size_of::<T>()));
    }

    /// Writes element `index`. `st.shared`, PTX ISA 9.7.9.11.
    ///
    /// # Safety
    /// The element is in bounds, and a barrier lies between this store and any other lane's access.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn store(self, index: u32, value: T) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            T::store_shared(self.offset(index).address, value);
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::store_shared(
            self.offset(index).address,
            &value.to_raw().to_le_bytes()[..size_of::<T>()],
        );
    }
}

impl Shared<u32> {
    /// Adds to element `index`, wrapping, without ordering. `red.relaxed.cta.shared.add.u32`, PTX ISA 9.7.13.7.
    ///
    /// # Safety
    /// The element was written, and a barrier lies between this and any other access of it that is no such addition.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn add(self, index: u32, by: u32) {
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("red.relaxed.cta.shared.add.u32 [{}], {};", in(reg32) self.offset(index).address, in(reg32) by,
                options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::add_shared(self.offset(index).address, by);
    }
}

impl<T: Word> Shared<T> {
    /// Two elements. `ld.shared.v2`, PTX ISA 9.7.9.8.
    ///
    /// # Safety
    /// As for [`Shared::load`], and the first lies on a multiple of 8 bytes.
    #[inline(always)]
    #[must_use]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn load_x2(self, index: u32) -> [T; 2] {
        #[cfg(target_arch = "nvptx64")]
        let words = {
            let (w0, w1): (u32, u32);
            // SAFETY: the caller's promise.
            unsafe {
                asm!("ld.shared.v2.b32 {{{}, {}}}, [{}];", out(reg32) w0, out(reg32) w1,
                    in(reg32) self.offset(index).address, options(readonly, nostack, preserves_flags));
            }
            [w0, w1]
        };
        #[cfg(not(target_arch = "nvptx64"))]
        let words: [u32; 2] = lane::load_shared_words(self.offset(index).address);
        words.map(T::from_word)
    }

    /// Four elements. `ld.shared.v4`, PTX ISA 9.7.9.8.
    ///
    /// # Safety
    /// As for [`Shared::load`], and the first lies on a multiple of 16 bytes.
    #[inline(always)]
    #[must_use]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn load_x4(self, index: u32) -> [T; 4] {
        #[cfg(target_arch = "nvptx64")]
        let words = {
            let (w0, w1, w2, w3): (u32, u32, u32, u32);
            // SAFETY: the caller's promise.
            unsafe {
                asm!("ld.shared.v4.b32 {{{}, {}, {}, {}}}, [{}];", out(reg32) w0, out(reg32) w1, out(reg32) w2,
                    out(reg32) w3, in(reg32) self.offset(index).address,
                    options(readonly, nostack, preserves_flags));
            }
            [w0, w1, w2, w3]
        };
        #[cfg(not(target_arch = "nvptx64"))]
        let words: [u32; 4] = lane::load_shared_words(self.offset(index).address);
        words.map(T::from_word)
    }

    /// Writes two elements. `st.shared.v2`, PTX ISA 9.7.9.11.
    ///
    /// # Safety
    /// As for [`Shared::store`], and the first lies on a multiple of 8 bytes.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn store_x2(self, index: u32, value: [T; 2]) {
        let w = value.map(T::to_word);
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("st.shared.v2.b32 [{}], {{{}, {}}};", in(reg32) self.offset(index).address, in(reg32) w[0],
                in(reg32) w[1], options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::store_shared(self.offset(index).address, &lane::bytes::<8>(&w));
    }

    /// Writes four elements. `st.shared.v4`, PTX ISA 9.7.9.11.
    ///
    /// # Safety
    /// As for [`Shared::store`], and the first lies on a multiple of 16 bytes.
    #[inline(always)]
    #[cfg_attr(feature = "emulator", track_caller)]
    pub unsafe fn store_x4(self, index: u32, value: [T; 4]) {
        let w = value.map(T::to_word);
        #[cfg(target_arch = "nvptx64")]
        // SAFETY: the caller's promise.
        unsafe {
            asm!("st.shared.v4.b32 [{}], {{{}, {}, {}, {}}};", in(reg32) self.offset(index).address, in(reg32) w[0],
                in(reg32) w[1], in(reg32) w[2], in(reg32) w[3], options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "nvptx64"))]
        lane::store_shared(self.offset(index).address, &lane::bytes::<16>(&w));
    }
}
