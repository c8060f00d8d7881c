//! What a back end is given to compute: tokens, and the pages where their keys and values are.

use bitnet_layout::Token;

/// What a batch must fit: the limits of the back end that its [`super::Pages`] were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Positions of a page.
    pub page: usize,
    /// Pages of the cache.
    pub n_pages: usize,
    /// Rows of the vocabulary.
    pub vocab: usize,
    /// Most positions of one sequence.
    pub context: usize,
    /// Most tokens of a batch.
    pub max_batch: usize,
    /// Most sequences of a batch.
    pub max_seqs: usize,
}

/// A page whose content is needed in another one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The page to read.
    pub from: u32,
    /// The page to overwrite.
    pub to: u32,
}

/// Tokens to compute, made by [`super::Pages`] alone, which is the proof of what back ends rely on:
///
/// - ids are below the vocabulary size, positions below the context, tokens and sequences no more than the limits;
/// - the tokens of a sequence stand in ascending order, without gaps or duplicates, and follow on positions that earlier
///   batches computed;
/// - a position that the batch writes is in a page that no other sequence's table has;
/// - a table names pages of the cache, as many as its sequence needs;
/// - no page that is copied from is copied to, and none is copied to twice.
///
/// So nobody else can make one with a gap, or with a position that is there twice:
///
/// ```compile_fail,E0451
/// use bitnet_model::{Batch, Limits, Token};
///
/// let limits = Limits { page: 16, n_pages: 1, vocab: 9, context: 16, max_batch: 2, max_seqs: 1 };
/// let twice = vec![Token { id: 1, pos: 5 }; 2];
/// let batch = Batch { limits, tokens: twice, rows: vec![0, 0], pages: vec![0], ends: vec![1], copies: vec![] };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub(super) limits: Limits,
    pub(super) tokens: Vec<Token>,
    pub(super) rows: Vec<u32>,
    /// Pages of all tables, one after the other.
    pub(super) pages: Vec<u32>,
    /// Where each table ends in `pages`.
    pub(super) ends: Vec<usize>,
    pub(super) copies: Vec<PageCopy>,
}

impl Batch {
    /// What it was made for; a back end with other limits must refuse it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The tokens, those of one sequence in ascending order.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// For each token, the index of its sequence's table.
    #[must_use]
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Sequences that it has tokens of.
    #[must_use]
    pub fn n_tables(&self) -> usize {
        self.ends.len()
    }

    /// The pages of a sequence: position `p` is in page `table(row)[p / page]`.
    ///
    /// # Panics
    /// When there is no such table.
    #[must_use]
    pub fn table(&self, row: usize) -> &[u32] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.pages[start..self.ends[row]]
    }

    /// Whole pages to copy, of every layer, before anything is computed. A batch without tokens has only those.
    #[must_use]
    pub fn copies(&self) -> &[PageCopy] {
        &self.copies
    }
}

/// Where a sequence goes on when a device decodes it by itself; made by [`super::Pages::start`] alone.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    pub(super) limits: Limits,
    pub(super) token: Token,
    pub(super) pages: &'a [u32],
}

impl<'a> Start<'a> {
    /// What its pages were made for.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The token to compute next; keys and values of all positions before it are in the pages.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// The sequence's pages; its own alone from the token's position on.
    #[must_use]
    pub fn pages(&self) -> &'a [u32] {
        self.pages
    }
}
