//! Ternary weights times float activations, for models that do not quantize them.

use bitnet_layout::row_tiles::Group;

/// One accumulator a plane and row, each adding in the order of columns.
#[inline(always)]
pub(super) fn ternary(tile: &[Group], x: &[f32]) -> [f32; 16] {
    let mut sums = [[0.0; 16]; 4];
    for (group, x) in tile.iter().zip(&x.as_chunks::<16>().0[..tile.len()]) {
        for (p, (sums, x)) in sums.iter_mut().zip(x.as_chunks::<4>().0).enumerate() {
            for (j, x) in x.iter().enumerate() {
                for (sum, word) in sums.iter_mut().zip(group) {
                    let code = word >> (8 * j + 2 * p) & 3;
                    *sum += (code as i32 - 1) as f32 * x;
                }
            }
        }
    }
    std::array::from_fn(|r| (sums[0][r] + sums[1][r]) + (sums[2][r] + sums[3][r]))
}
