//! Steps of many rows in shares, which the device computes side by side: while the kernels of one wait for each other, those of another run.

use super::Engine;
use super::weights::Form;
use crate::error::Result;
use crate::stream::Stream;
use bitnet_kernels::Global;

/// Most shares of a step.
pub(super) const MOST: usize = 3;

/// Rows of a batch that follow each other, and the stream that their work is given to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share<'a> {
    /// The first row.
    pub(super) first: usize,
    /// How many.
    pub(super) rows: usize,
    /// Where their kernels run in order.
    pub(super) stream: &'a Stream,
}

impl Share<'_> {
    /// Its rows of a buffer whose rows have `width` elements.
    pub(super) fn of<T>(&self, buffer: Global<T>, width: usize) -> Global<T> {
        buffer.offset(self.first * width)
    }
}

/// Rows of each share of a step of `rows` rows but the last: what was fastest in whole steps (docs/kernels.md). No kernel pads so many.
const fn rows_of_share(rows: usize) -> usize {
    match rows {
        22..=24 | 41..=48 => 16,
        33..=40 | 49..=80 => 32,
        81..=128 => 64,
        129..=192 => 128,
        _ => rows,
    }
}

impl Engine {
    /// All rows of the batch.
    pub(super) const fn whole(&self) -> Share<'_> {
        Share {
            first: 0,
            rows: self.batch,
            stream: &self.stream,
        }
    }

    /// The shares of a decode step of this batch with room for `steps` steps of 64 keys.
    pub(super) fn shares(&self, steps: usize) -> Vec<Share<'_>> {
        let whole = self.whole();
        let rows = rows_of_share(self.batch);
        let streams = [&self.stream].into_iter().chain(&self.sides);
        let shares: Vec<_> = (0..self.batch)
            .step_by(rows.max(1))
            .zip(streams)
            .map(|(first, stream)| Share {
                first,
                rows: rows.min(self.batch - first),
                stream,
            })
            .collect();
        // Whatever has a place of its own for each row may run beside the same of other rows.
        let has_places = self.gpu().multiplies_by_warpgroups()
            && self.model.linear_norm_eps.is_none()
            && Form::of(&self.model) == Form::Tiles
            && shares.iter().all(|share| self.attends_at_once(share.rows, steps));
        if has_places { shares } else { vec![whole] }
    }

    /// Gives the device what `work` gives the streams of `shares`, after all that the engine's stream was given, and what that stream is
    /// given later after that.
    ///
    /// # Errors
    /// Those of `work`, and when the device fails.
    pub(super) fn beside(&self, shares: &[Share<'_>], work: impl FnOnce() -> Result<()>) -> Result<()> {
        let others = || shares.iter().map(|share| share.stream).skip(1);
        others().try_for_each(|side| side.follow(&self.stream, &self.mark))?;
        let outcome = work();
        // A recording that failed cannot be joined either, and that error would say nothing of the cause.
        let joined = others().try_for_each(|side| self.stream.follow(side, &self.mark));
        outcome.and(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, rows_of_share};
    use crate::engine::MAX_BATCH;
    use bitnet_layout::mma_tile::{CodeOrder, padded_rows};

    /// Every row is in a share, there is a stream for each, and codes of rows that pad one end before the next.
    #[test]
    fn shares_are_few_and_none_is_padded_but_the_last() {
        for rows in 1..=MAX_BATCH {
            let of_share = rows_of_share(rows);
            assert!(rows.div_ceil(of_share) <= MOST, "{rows} in shares of {of_share}");
            if of_share < rows {
                let order = match of_share {
                    0..=64 => CodeOrder::WarpgroupFew,
                    _ => CodeOrder::Warpgroup,
                };
                assert_eq!(padded_rows(order, of_share), of_share, "{rows}");
            }
        }
    }
}
