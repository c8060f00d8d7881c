//! The products that are timed.

/// The (rows, columns) that the reference project's benchmark has: the linear layers of the 2B model, fused as that
/// project fuses them, and of the 3B model.
pub(super) const SHAPES: [(usize, usize); 8] = [
    (2560, 2560),
    (3840, 2560),
    (13824, 2560),
    (2560, 6912),
    (3200, 3200),
    (4800, 3200),
    (3200, 10240),
    (20480, 3200),
];

/// The output head of the 2B model, in bfloat16 only.
pub(super) const HEAD: (usize, usize) = (128_256, 2560);
