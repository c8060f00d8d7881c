//! The types that loads and stores move.

#[cfg(target_arch = "nvptx64")]
use core::arch::asm;

/// A number that lives in global or shared memory.
pub trait Element: Copy + 'static {
    /// The bits, in the low bytes.
    fn to_raw(self) -> u64;
    /// The inverse of [`Element::to_raw`].
    fn from_raw(raw: u64) -> Self;
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
    ($type:ty, $class:ident, $register:ty, $ptx:literal, $to:expr, $from:expr) => {
        impl Element for $type {
            #[inline(always)]
            fn to_raw(self) -> u64 {
                let to: fn($type) -> u64 = $to;
                to(self)
            }
            #[inline(always)]
            fn from_raw(raw: u64) -> Self {
                let from: fn(u64) -> $type = $from;
                from(raw)
            }
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
    };
}

element!(u8, reg32, u32, "u8", |v| v.into(), |raw| raw as u8);
element!(i8, reg32, u32, "s8", |v| v as u8 as u64, |raw| raw as i8);
element!(u16, reg32, u32, "u16", |v| v.into(), |raw| raw as u16);
element!(u32, reg32, u32, "b32", |v| v.into(), |raw| raw as u32);
element!(i32, reg32, u32, "b32", |v| v as u32 as u64, |raw| raw as i32);
element!(f32, reg32, u32, "b32", |v| v.to_bits().into(), |raw| {
    f32::from_bits(raw as u32)
});
element!(u64, reg64, u64, "b64", |v| v, |raw| raw);
