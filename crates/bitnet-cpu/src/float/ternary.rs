//! Ternary weights times float activations, for models that do not quantize them.

use bitnet_layout::row_tiles::Group;

use super::isa::Isa;

/// One accumulator a plane, each adding in the order of columns.
#[inline(always)]
pub(super) fn ternary<I: Isa>(isa: I, tile: &[Group], x: &[f32]) -> [f32; 16] {
    let mut sums = [isa.splat(0.0); 4];
    for (group, x) in tile.iter().zip(&x.as_chunks::<16>().0[..tile.len()]) {
        for (p, x) in x.as_chunks::<4>().0.iter().enumerate() {
            for (j, &x) in x.iter().enumerate() {
                let values = isa.load_codes(group, (8 * j + 2 * p) as u32);
                sums[p] = isa.mul_add(values, isa.splat(x), sums[p]);
            }
        }
    }
    let mut out = [0.0; 16];
    isa.store(
        isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])),
        &mut out,
    );
    out
}
