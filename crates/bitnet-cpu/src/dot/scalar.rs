//! The path without intrinsics, and the plainest statement of what a tile means.

use bitnet_layout::row_tiles::Group;

use super::Rows;

/// See [`super::DotFn`].
pub(super) fn dot(tile: &[Group], x: Rows<'_>, out: &mut [[i32; 16]]) {
    for (t, out) in out.iter_mut().enumerate() {
        let mut sums = [0; 16];
        for (group, x) in tile.iter().zip(x.words(t, tile)) {
            for (p, x) in x.as_chunks::<4>().0.iter().enumerate() {
                for (sum, &word) in sums.iter_mut().zip(group) {
                    let codes = (word >> (2 * p)) & 0x0303_0303;
                    for (j, &x) in x.iter().enumerate() {
                        *sum += ((codes >> (8 * j)) & 3) as i32 * i32::from(x);
                    }
                }
            }
        }
        *out = sums;
    }
}
