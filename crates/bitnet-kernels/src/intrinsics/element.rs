//! The types that loads and stores move.

use crate::raw::Raw;
#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// A number that loads and stores move.
pub trait Element: Raw {
    /// `ld.shared` (PTX ISA 9.7.9.8).
    ///
    /// # Safety
    /// `address` is a readable, aligned shared address.
    #[cfg(target_arch = "nvptx64")]
    unsafe fn load_shared(address: u32) -> Self;
    /// `st.shared` (PTX ISA 9.7.9.11).
    ///
    /// # Safety
    /// `address` is a writable, aligned shared address.
    #[cfg(target_arch = "nvptx64")]
    unsafe fn store_shared(address: u32, value: Self);
}

/// A number of 32 bits: what registers, shuffles and vector loads hold.
pub trait Word: Element {
    /// The bits.
    #[inline(always)]
    fn to_word(self) -> u32 {
        self.to_raw() as u32
    }
    /// The inverse of [`Word::to_word`].
    #[inline(always)]
    fn from_word(word: u32) -> Self {
        Self::from_raw(word.into())
    }
}

impl Word for u32 {}
impl Word for i32 {}
impl Word for f32 {}

macro_rules! element {
    ($($type:ty, $class:ident, $register:ty, $ptx:literal;)*) => {$(
        impl Element for $type {
            #[cfg(target_arch = "nvptx64")]
            #[inline(always)]
            unsafe fn load_shared(address: u32) -> Self {
                let value: $register;
                // SAFETY: the caller's promise is the instruction's.
                unsafe {
                    asm!(concat!("ld.shared.", $ptx, " {}, [{}];"), out($class) value, in(reg32) address,
                        options(readonly, nostack, preserves_flags));
                }
                Self::from_raw(value as u64)
            }
            #[cfg(target_arch = "nvptx64")]
            #[inline(always)]
            unsafe fn store_shared(address: u32, value: Self) {
                // SAFETY: the caller's promise is the instruction's.
                unsafe {
                    asm!(concat!("st.shared.", $ptx, " [{}], {};"), in(reg32) address,
                        in($class) value.to_raw() as $register, options(nostack, preserves_flags));
                }
            }
        }
    )*};
}

element! {
    u8, reg32, u32, "u8";
    i8, reg32, u32, "s8";
    u16, reg32, u32, "u16";
    u32, reg32, u32, "b32";
    i32, reg32, u32, "b32";
    f32, reg32, u32, "b32";
    u64, reg64, u64, "b64";
}
