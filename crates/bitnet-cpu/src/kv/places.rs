//! Where the tokens of a batch are: their positions, and the tables of pages of their sequences.

/// Tokens of a batch, each a position of a sequence that has a table of pages.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Table and position of each token.
    tokens: Vec<(usize, usize)>,
    /// Pages of all tables, one after the other.
    pages: Vec<u32>,
    /// Where each table ends in `pages`.
    ends: Vec<usize>,
}

impl Places {
    /// Takes everything out.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.pages.clear();
        self.ends.clear();
    }

    /// Adds a table: position `p` of its sequence is in page `pages[p / page]`.
    pub fn add_table(&mut self, pages: &[u32]) {
        self.pages.extend_from_slice(pages);
        self.ends.push(self.pages.len());
    }

    /// Adds a token at position `pos` of the sequence whose table was added as number `table`.
    ///
    /// # Panics
    /// When there is no such table.
    pub fn add(&mut self, table: usize, pos: usize) {
        assert!(table < self.ends.len(), "table {table} of {}", self.ends.len());
        self.tokens.push((table, pos));
    }

    /// Tokens that there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Positions of the tokens, in order.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.tokens.iter().map(|&(_, pos)| pos)
    }

    /// Table and position of a token.
    pub(crate) fn get(&self, token: usize) -> (usize, usize) {
        self.tokens[token]
    }

    /// The pages of a table.
    pub(crate) fn table(&self, table: usize) -> &[u32] {
        let start = table.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.pages[start..self.ends[table]]
    }

    /// Whether every token's position is in a page of its table, and every page below `n_pages`.
    pub(crate) fn fit(&self, n_pages: usize, page: usize) -> bool {
        let pages = self.pages.iter().all(|&page| (page as usize) < n_pages);
        pages
            && self
                .tokens
                .iter()
                .all(|&(table, pos)| pos / page < self.table(table).len())
    }
}
