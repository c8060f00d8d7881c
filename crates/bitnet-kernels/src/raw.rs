//! Numbers as the bits that memory holds.

/// A number that lives in global or shared memory.
pub trait Raw: Copy + 'static {
    /// The bits, in the low bytes.
    fn to_raw(self) -> u64;
    /// The inverse of [`Raw::to_raw`].
    fn from_raw(raw: u64) -> Self;
}

macro_rules! raw {
    ($($type:ty, $to:expr, $from:expr;)*) => {$(
        impl Raw for $type {
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
        }
    )*};
}

raw! {
    u8, |v| v.into(), |raw| raw as u8;
    i8, |v| v as u8 as u64, |raw| raw as i8;
    u16, |v| v.into(), |raw| raw as u16;
    u32, |v| v.into(), |raw| raw as u32;
    i32, |v| v as u32 as u64, |raw| raw as i32;
    f32, |v| v.to_bits().into(), |raw| f32::from_bits(raw as u32);
    u64, |v| v, |raw| raw;
}
