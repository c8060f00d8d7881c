//! A plain read: what no product can exceed.

use super::Lanes;
use super::isa::Isa;

/// Streams that are read side by side, as products do.
const STREAMS: usize = 4;

/// The sum of all elements, up to a few at the end of each of [`STREAMS`] parts; lines are asked for `ahead` bytes before their use
/// where that is not 0.
#[inline(always)]
pub(super) fn read<I: Isa>(isa: I, data: &[Lanes], ahead: usize) -> f32 {
    let mut sums = [[isa.splat(0.0); 2]; STREAMS];
    let len = data.len() / STREAMS / 2 * 2;
    let mut parts: [&[Lanes]; STREAMS] = [&[]; STREAMS];
    for (i, part) in parts.iter_mut().enumerate() {
        *part = &data[i * len..][..len];
    }
    for i in (0..len).step_by(2) {
        for (sums, part) in sums.iter_mut().zip(parts) {
            if ahead > 0 {
                isa.prefetch(&part[i], ahead);
                isa.prefetch(&part[i + 1], ahead);
            }
            sums[0] = isa.add(sums[0], isa.load(&part[i]));
            sums[1] = isa.add(sums[1], isa.load(&part[i + 1]));
        }
    }
    let mut total = isa.splat(0.0);
    for sum in sums.into_iter().flatten() {
        total = isa.add(total, sum);
    }
    isa.sum(total)
}
