//! Products of many rows of activations whose sums stay in registers for all columns: what such a kernel takes and gives.

use bitnet_layout::row_tiles::Group;

use super::block::{Piece, TOKEN_STEP};

/// Rows of activations whose sums are in registers at a time, whether there are so many or not.
pub(crate) const SWEEP_ROWS: usize = 2 * TOKEN_STEP;

/// Turns that a block has.
pub(crate) const SWEEP_TURNS: usize = 8;

/// Pairs of tiles times rows of activations: a block for each [`SWEEP_ROWS`] rows and, inside, each pair.
pub(crate) struct Sweep<'a> {
    /// Tiles of one length; in place of one that is not there, an empty one.
    pub(crate) pairs: &'a [[&'a [Group]; 2]],
    /// Activations: for each step of rows, the pieces of all columns in order.
    pub(crate) x: &'a [Piece],
    /// Pieces of a step of rows.
    pub(crate) stride: usize,
    /// Rows of activations.
    pub(crate) n_tokens: usize,
}

/// A block: its first row of activations, and its pair.
pub(crate) type BlockAt = (usize, usize);

/// By tile of a pair, then row of activations, the sums of codes times activations.
pub(crate) type BlockSums = [[i32; 16]; 2 * SWEEP_ROWS];

/// Something for the caller to do while a block is multiplied: a share, of [`SWEEP_TURNS`] alike, of what is to be done for the block, and of
/// what is to be done for the one before with its sums.
pub(crate) struct Turn<'a> {
    /// Which share.
    pub(crate) index: usize,
    /// The block that is being multiplied.
    pub(crate) now: Option<BlockAt>,
    /// The block before, and its sums.
    pub(crate) before: Option<(BlockAt, &'a BlockSums)>,
}

impl Sweep<'_> {
    /// Checks every length that a kernel relies on.
    ///
    /// # Panics
    /// When one does not hold.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "only AMX has room for such sums")
    )]
    pub(super) fn check(&self) {
        assert!(self.stride > 0 && self.n_tokens > 0 && !self.pairs.is_empty());
        let n_pieces = self.n_tokens.div_ceil(TOKEN_STEP) * self.stride;
        assert!(n_pieces <= self.x.len(), "pieces of activations");
        let most = self.stride * (size_of::<Piece>() / TOKEN_STEP / 16);
        assert!(
            self.pairs.as_flattened().iter().all(|tile| tile.len() <= most),
            "columns of a row"
        );
    }
}
