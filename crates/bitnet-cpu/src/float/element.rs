//! What dense matrices and caches may hold, and how the lanes of an instruction set load it.

use super::isa::Isa;
use super::number::{Bf16, F16};
use crate::memory::Plain;

/// A number as it is stored.
pub(crate) trait Element: Plain + Default {
    /// Its value, exactly.
    fn widen(self) -> f32;
    /// The values of 16 of them, exactly.
    fn load<I: Isa>(isa: I, x: &[Self; 16]) -> I::Lanes;
}

/// An element type that f32 can be rounded to.
pub(crate) trait Narrow: Element {
    /// Whether a row is kept as multiples of a scale of its own.
    const SCALED: bool;
    /// The nearest element, ties to even.
    fn narrow(x: f32) -> Self;
}

impl Element for Bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        Bf16::widen(self)
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, x: &[Self; 16]) -> I::Lanes {
        isa.load_bf16(x)
    }
}

impl Narrow for Bf16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Bf16::narrow(x)
    }
}

impl Element for F16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        F16::widen(self)
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, x: &[Self; 16]) -> I::Lanes {
        isa.load_f16(x)
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, x: &[Self; 16]) -> I::Lanes {
        isa.load(x)
    }
}

impl Narrow for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Element for i8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    #[inline(always)]
    fn load<I: Isa>(isa: I, x: &[Self; 16]) -> I::Lanes {
        isa.load_i8(x)
    }
}

impl Narrow for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x.round_ties_even() as i8
    }
}
