//! Many rows of activations times unpacked codes, in registers: the inner loops of [`crate::gemm`].
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops over arrays are what becomes registers"
)]

use bitnet_layout::row_tiles::Group;

use super::isa::{Isa, Quad};

/// Columns that a kernel takes in one step.
pub(crate) const COLUMN_STEP: usize = 64;

/// Rows of activations that a kernel takes in one step, whether there are so many or not.
pub(crate) const TOKEN_STEP: usize = 16;

/// Activations of one step of rows and columns, row by row: 1 KiB, contiguous.
pub(crate) type Piece = [[i8; COLUMN_STEP]; TOKEN_STEP];

/// Quads of a step of columns.
const QUADS: usize = COLUMN_STEP / 4;

/// Two tiles' codes times rows of activations.
pub(crate) struct Block<'a> {
    /// Codes of each tile, a quad for every four columns.
    pub(crate) codes: [&'a [Quad]; 2],
    /// Activations: for each step of rows, the pieces of all columns in order; the first is that of the first of `codes`.
    pub(crate) x: &'a [Piece],
    /// Pieces from one step of rows to the next.
    pub(crate) stride: usize,
    /// Rows of activations.
    pub(crate) n_tokens: usize,
    /// For each tile, sums by row of activations, whole steps of them.
    pub(crate) sums: [&'a mut [[i32; 16]]; 2],
    /// Whether the sums are of earlier columns, to be added to.
    pub(crate) more: bool,
}

impl Block<'_> {
    /// Checks every length that a kernel relies on: columns of a whole number of steps, and rows and sums for the tokens
    /// rounded up to a whole step.
    ///
    /// # Panics
    /// When one does not hold.
    pub(super) fn check(&self) {
        let n_quads = self.codes[0].len();
        let n_steps = self.n_tokens.div_ceil(TOKEN_STEP);
        assert_eq!(self.codes[1].len(), n_quads, "quads of two tiles");
        assert!(n_quads > 0 && n_quads.is_multiple_of(QUADS), "{n_quads} quads");
        assert!(n_steps > 0 && n_quads / QUADS <= self.stride, "columns of a row");
        let n_pieces = (n_steps - 1) * self.stride + n_quads / QUADS;
        assert!(n_pieces <= self.x.len(), "pieces of activations");
        let n_sums = n_steps * TOKEN_STEP;
        assert!(self.sums.iter().all(|sums| n_sums <= sums.len()), "room for sums");
    }
}

/// Unpacks groups into four quads each; zeros for quads left over.
#[inline(always)]
pub(super) fn unpack<I: Isa>(isa: I, groups: &[Group], quads: &mut [Quad]) {
    let (planes, _) = quads.as_chunks_mut::<4>();
    assert!(groups.len() <= planes.len(), "room for quads");
    let (filled, rest) = planes.split_at_mut(groups.len());
    for (group, planes) in groups.iter().zip(filled) {
        // The next columns of the tile are needed when these have been multiplied.
        isa.prefetch(std::ptr::from_ref(group).wrapping_add(groups.len()));
        let mut words = isa.load(group);
        for plane in planes {
            isa.store(isa.plane(words), plane);
            words = isa.next(words);
        }
    }
    rest.as_flattened_mut().fill([0; 16]);
}

/// `sums[i][t] += codes[i] x[t]`, or `=` at the first columns.
#[inline(always)]
pub(super) fn multiply<I: Isa>(isa: I, block: &mut Block<'_>) {
    block.check();
    let n_steps = block.n_tokens.div_ceil(TOKEN_STEP);
    let [low, high] = &mut block.sums;
    for step in 0..n_steps {
        let pieces = &block.x[step * block.stride..][..block.codes[0].len() / QUADS];
        let rows = step * TOKEN_STEP..(step + 1) * TOKEN_STEP;
        let sums = [&mut low[rows.clone()], &mut high[rows]];
        // Rows past the last are left out, as far as they fill a block.
        let n_rows = TOKEN_STEP.min(block.n_tokens - step * TOKEN_STEP);
        match I::BLOCK {
            (8, 2) => in_rows::<I, 8, 2>(isa, block.codes, pieces, sums, n_rows, block.more),
            (4, 1) => each_tile::<I, 4>(isa, block.codes, pieces, sums, n_rows, block.more),
            (2, 1) => each_tile::<I, 2>(isa, block.codes, pieces, sums, n_rows, block.more),
            _ => each_tile::<I, 1>(isa, block.codes, pieces, sums, n_rows, block.more),
        }
    }
}

/// One step of rows, `T` at a time, with each tile by itself.
#[inline(always)]
fn each_tile<I: Isa, const T: usize>(
    isa: I,
    codes: [&[Quad]; 2],
    pieces: &[Piece],
    sums: [&mut [[i32; 16]]; 2],
    n_rows: usize,
    more: bool,
) {
    for (codes, sums) in codes.into_iter().zip(sums) {
        in_rows::<I, T, 1>(isa, [codes], pieces, [sums], n_rows, more);
    }
}

/// One step of rows, `T` at a time, with `W` tiles.
#[inline(always)]
fn in_rows<I: Isa, const T: usize, const W: usize>(
    isa: I,
    codes: [&[Quad]; W],
    pieces: &[Piece],
    sums: [&mut [[i32; 16]]; W],
    n_rows: usize,
    more: bool,
) {
    const { assert!(TOKEN_STEP.is_multiple_of(T) && I::RUN >= QUADS) };
    let run = I::RUN / QUADS;
    for first in (0..n_rows).step_by(T) {
        let mut step = 0;
        while step < pieces.len() {
            let end = pieces.len().min(step.saturating_add(run));
            let products = products::<I, T, W>(isa, codes, &pieces[step..end], (step, first));
            for w in 0..W {
                let sums: &mut [[i32; 16]; T] = sums[w][first..].first_chunk_mut().expect("T divides a step");
                for t in 0..T {
                    if !more && step == 0 {
                        sums[t] = [0; 16];
                    }
                    isa.flush(products[w][t], &mut sums[t]);
                }
            }
            step = end;
        }
    }
}

/// Products of the columns of `pieces`, of which the first is the `step`th of `codes`, with the rows from `first` on.
#[inline(always)]
fn products<I: Isa, const T: usize, const W: usize>(
    isa: I,
    codes: [&[Quad]; W],
    pieces: &[Piece],
    (step, first): (usize, usize),
) -> [[I::Sums; T]; W] {
    let mut steps = [&[][..]; W];
    for (steps, codes) in steps.iter_mut().zip(codes) {
        *steps = &codes.as_chunks::<QUADS>().0[step..][..pieces.len()];
    }
    let mut sums = [[isa.zero(); T]; W];
    for (s, piece) in pieces.iter().enumerate() {
        let rows: &[[i8; COLUMN_STEP]; T] = piece[first..].first_chunk().expect("T divides a step");
        for i in 0..QUADS {
            let mut quads = [isa.load(&steps[0][s][i]); W];
            for w in 1..W {
                quads[w] = isa.load(&steps[w][s][i]);
            }
            for t in 0..T {
                let x = isa.four(rows[t].as_chunks::<4>().0[i]);
                for w in 0..W {
                    sums[w][t] = isa.add(sums[w][t], quads[w], x);
                }
            }
        }
    }
    sums
}
