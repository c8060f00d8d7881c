//! The body of the dense products, whatever their weights.

use super::{GROUP_BYTES, MAX_COLS, ROWS};
use crate::Global;
use crate::intrinsics::*;

/// A lane's 16 bytes of two rows of a band, 4 apart.
pub(crate) type Pieces = [[u32; 4]; 2];

/// Shared memory of a block, as `super::shared_bytes` counts it.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// (column, words of a column).
    pub(crate) columns: Shared<u32>,
    pub(crate) stride: u32,
    /// Twice (warp, column, row).
    pub(crate) parts: Shared<u32>,
    /// (warp, column).
    pub(crate) squares: Shared<f32>,
    /// (column).
    pub(crate) worth: Shared<f32>,
}

impl Room {
    #[inline(always)]
    pub(crate) fn new(cols: u32, warps: u32, stride: u32) -> Self {
        let parts = cols * stride;
        let squares = parts + 2 * warps * cols * ROWS;
        Self {
            columns: Shared::at(0),
            stride,
            parts: Shared::at(parts * 4),
            squares: Shared::at(squares * 4),
            worth: Shared::at((squares + warps * MAX_COLS) * 4),
        }
    }
}

/// What the products of both kinds of weights have in common.
#[derive(Clone, Copy)]
pub(crate) struct Common {
    pub(crate) w: Global<u32>,
    pub(crate) y: Global<f32>,
    pub(crate) n: u32,
    /// Words of a row.
    pub(crate) words: u32,
    pub(crate) cols: u32,
}

/// A kind of weights.
pub(crate) trait Format: Copy {
    /// Words of the activations that a group is multiplied with.
    const WORDS: u32;
    /// Sums of a lane.
    type Sums: Copy;
    /// A warp's part of one result.
    type Part: Word;

    fn common(self) -> Common;
    fn zero() -> Self::Sums;
    /// Stores the block's columns of activations, zeros behind them, and what their sums are worth but for the rows' own
    /// scales; the last of it a barrier must order before its loads.
    unsafe fn prepare(self, room: &Room, groups: u32);
    /// Adds the products of two pieces with the activations of their group, at `x`.
    unsafe fn multiply(sums: &mut Self::Sums, w: Pieces, x: Shared<u32>, stride: u32, cols: u32);
    /// Stores the warp's part of every row and column of a band, (column, row).
    unsafe fn store(sums: Self::Sums, parts: Shared<Self::Part>, cols: u32);
    fn add(a: Self::Part, b: Self::Part) -> Self::Part;
    /// A result, but for what its column's sums are worth.
    unsafe fn result(self, total: Self::Part, row: u32, worth: f32) -> f32;
}

/// The weights of one lane, piece after piece: along its warp's groups of a band, then on to the block's next band.
#[derive(Clone, Copy)]
struct Feed {
    w: Global<u32>,
    n: u32,
    words: u32,
    /// Groups of a row, with those that only make turns whole.
    groups: u32,
    warps: u32,
    /// The next band and group.
    band: u32,
    group: u32,
    /// This lane's two rows of the band.
    upper: Global<u32>,
    lower: Global<u32>,
}

impl Feed {
    /// Stands at a band. Rows past the end repeat the last one; their results are not stored.
    #[inline(always)]
    fn rows(&mut self) {
        let row = self.band * ROWS + lane_id() / 8;
        let at = |row: u32| row.min(self.n - 1) as usize * self.words as usize;
        self.upper = self.w.offset(at(row));
        self.lower = self.w.offset(at(row + 4));
    }

    /// The next piece; past the last band, the last one's again.
    #[inline(always)]
    unsafe fn next(&mut self) -> Pieces {
        const WORDS: u32 = GROUP_BYTES / 4;
        // Past the end of a row its last piece again, times zero.
        let at = (self.group * WORDS + lane_id() % 8 * 4).min(self.words - 4) as usize;
        // SAFETY: the piece is in the row, rows are clamped.
        let pieces = unsafe { [self.upper.load_stream_x4(at), self.lower.load_stream_x4(at)] };
        self.group += self.warps;
        if self.group >= self.groups {
            self.group = warp_id();
            self.band += grid_dim_x();
            self.rows();
        }
        pieces
    }
}

/// `DEPTH` pieces of a lane are on their way at any time.
#[inline(always)]
pub(super) unsafe fn run<F: Format, const DEPTH: usize>(p: F) {
    let c = p.common();
    let (lane, warp, warps) = (lane_id(), warp_id(), block_dim_x() / WARP_SIZE);
    // Whole turns of all warps, the last of which may find no columns.
    let groups = c.words.div_ceil(GROUP_BYTES / 4).next_multiple_of(warps.max(1));
    let bands = c.n.div_ceil(ROWS);
    let room = Room::new(c.cols, warps, groups * F::WORDS);
    let mut feed = Feed {
        w: c.w,
        n: c.n,
        words: c.words,
        groups,
        warps,
        band: block_idx_x(),
        group: warp,
        upper: c.w,
        lower: c.w,
    };
    // SAFETY: groups and rows are below their numbers, shared indices below the launch's size; every branch around a
    // warp or block operation is uniform.
    unsafe {
        feed.rows();
        let mut w: [Pieces; DEPTH] = [[[0; 4]; 2]; DEPTH];
        let mut i = 0;
        while i < DEPTH {
            w[i] = feed.next();
            i += 1;
        }
        grid_dependency_launch();
        grid_dependency_wait();
        p.prepare(&room, groups);
        // All warps take as many turns at a band, so that they meet at the same barrier.
        let (mut band, mut group) = (block_idx_x(), warp);
        let mut sums = F::zero();
        // Parts of one band are stored while the last one's are added, by one warp after the other.
        let (mut half, mut turn) = (0, 0);
        loop {
            let mut i = 0;
            while i < DEPTH {
                F::multiply(
                    &mut sums,
                    w[i],
                    room.columns.offset(group * F::WORDS),
                    room.stride,
                    c.cols,
                );
                if feed.band < bands {
                    w[i] = feed.next();
                }
                group += warps;
                if group >= groups {
                    let share = c.cols * ROWS;
                    let parts: Shared<F::Part> = room.parts.offset(half * warps * share).cast();
                    F::store(sums, parts.offset(warp * share), c.cols);
                    // Orders every warp's parts before the additions.
                    sync_threads();
                    if warp == turn && lane < share {
                        let row = band * ROWS + lane % ROWS;
                        let mut total = F::Part::from_word(0);
                        let mut from = 0;
                        while from < warps {
                            total = F::add(total, parts.load(from * share + lane));
                            from += 1;
                        }
                        if row < c.n {
                            let y = p.result(total, row, room.worth.load(lane / ROWS));
                            c.y.store(lane as usize / ROWS as usize * c.n as usize + row as usize, y);
                        }
                    }
                    sums = F::zero();
                    half ^= 1;
                    turn = if turn + 1 == warps { 0 } else { turn + 1 };
                    group = warp;
                    band += grid_dim_x();
                    if band >= bands {
                        return;
                    }
                }
                i += 1;
            }
        }
    }
}
