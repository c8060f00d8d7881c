//! Ternary values, their 2-bit codes, and how real weights become ternary.

/// The 2-bit code of a ternary value: `t + 1`, so -1, 0 and +1 are 0, 1 and 2. Code 3 is never valid.
#[inline]
#[must_use]
pub const fn code(t: i8) -> u32 {
    (t + 1) as u32
}

/// The ternary value of a code: `code - 1`.
#[inline]
#[must_use]
pub const fn value(code: u32) -> i8 {
    code as i8 - 1
}

/// Rounds to the nearest integer, halves to even, for `|x| < 2^22`; larger values come back unrounded or rounded to a
/// nearby float, which every caller clamps.
///
/// `core` has no `round_ties_even`; adding and subtracting 1.5 * 2^23 makes the hardware's own rounding do it.
#[inline]
#[must_use]
pub fn round_ties_even(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    if x.abs() < 4_194_304.0 {
        (x + MAGIC) - MAGIC
    } else {
        x
    }
}
