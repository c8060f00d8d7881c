//! A batch of the host: what is checked of it, and the words that its kernels read.

use super::{Architecture, Limits};
use crate::error::{Error, Result};
use bitnet_kernels::attention::{Heads, Tile};
use bitnet_kernels::cache::PAGE;
use bitnet_layout::Token;

/// Tokens to compute.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The tokens.
    pub tokens: &'a [Token],
    /// Row in `tables` of each token's sequence.
    pub rows: &'a [u32],
    /// Pages of each sequence: positions `64 i ..` lie in its page i.
    pub tables: &'a [&'a [u32]],
    /// Pages to copy first, (source, target).
    pub copies: &'a [(u32, u32)],
}

/// How the attention of a batch is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attention {
    /// One token of each of its sequences: the decode kernels, with room for this many steps of 64 keys.
    Decode { steps: usize },
    /// Runs of tokens: the prompt kernels, over this many tiles.
    Prefill { tiles: usize },
}

/// A checked batch: what its kernels are, and the words that they read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) attention: Attention,
    /// Pages that a row of the tables has room for.
    pub(super) table_len: usize,
    /// Pairs of pages to copy.
    pub(super) copies: usize,
    /// What goes to the device in one piece.
    pub(super) words: Vec<u32>,
    /// Where in it the positions begin, behind the tokens.
    pub(super) positions: usize,
    /// Places of the tokens in the cache; of the prompt kernels.
    pub(super) places: usize,
    /// Tiles; of the prompt kernels.
    pub(super) tiles: usize,
    /// Tables: of the decode kernels a row for each token, otherwise for each sequence.
    pub(super) tables: usize,
    /// Pages to copy.
    pub(super) pairs: usize,
}

/// What a batch must fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) limits: Limits,
    pub(super) vocab: usize,
    pub(super) n_heads: u32,
    pub(super) n_kv_heads: u32,
    pub(super) padded: u32,
}

impl Bounds {
    pub(super) fn new(model: &Architecture, limits: Limits, heads: Heads) -> Self {
        Self {
            limits,
            vocab: model.dims.vocab,
            n_heads: model.dims.n_heads as u32,
            n_kv_heads: model.dims.n_kv_heads as u32,
            padded: heads.padded(),
        }
    }

    /// Most words of a [`Plan`].
    pub(super) fn most_words(&self) -> usize {
        let Limits {
            max_batch, n_seqs, ..
        } = self.limits;
        // Tokens, positions, places, tiles and what aligns them; a table a sequence; a copied page a sequence.
        7 * max_batch + 4 + n_seqs * self.limits.table_len() + 2 * n_seqs
    }

    /// Refuses a token that is not of the model or its context.
    pub(super) fn check_token(&self, token: Token) -> Result<()> {
        if (token.id as usize) < self.vocab && (token.pos as usize) < self.limits.context {
            return Ok(());
        }
        Err(Error::Request(format!(
            "{token:?} is not of this model: its vocabulary has {} tokens, the context {} positions",
            self.vocab, self.limits.context
        )))
    }

    /// Refuses a table with a page that is not there, or with fewer than `positions` need.
    pub(super) fn check_table(&self, table: &[u32], positions: usize) -> Result<()> {
        let needed = positions.div_ceil(PAGE as usize);
        if table.len() > self.limits.table_len() || table.len() < needed {
            return Err(Error::Request(format!(
                "{} pages for {positions} positions: {needed} to {} are taken",
                table.len(),
                self.limits.table_len()
            )));
        }
        match table.iter().find(|&&page| page as usize >= self.limits.n_pages) {
            Some(page) => Err(Error::Request(format!(
                "page {page} of the {} pages of keys and values",
                self.limits.n_pages
            ))),
            None => Ok(()),
        }
    }

    /// Checks a batch and lays out its words.
    ///
    /// # Errors
    /// When it has no tokens and copies nothing, is too large, or something in it is out of range; when two tokens have the same place in a page, or a
    /// page that one sequence writes to is another's too, since kernels would then read what others write.
    pub(super) fn plan(&self, batch: &Batch<'_>) -> Result<Plan> {
        let Batch {
            tokens, rows, tables, ..
        } = *batch;
        let limits = self.limits;
        let is_empty = tokens.is_empty() && batch.copies.is_empty();
        if is_empty || tokens.len() > limits.max_batch || tables.len() > limits.n_seqs {
            return Err(Error::Request(format!(
                "a batch of {} tokens of {} sequences; 1 to {} tokens of up to {} sequences fit",
                tokens.len(),
                tables.len(),
                limits.max_batch,
                limits.n_seqs
            )));
        }
        if rows.len() != tokens.len() || rows.iter().any(|&row| row as usize >= tables.len()) {
            return Err(Error::Request(format!(
                "a batch of {} tokens with sequences {rows:?}, of {}",
                tokens.len(),
                tables.len()
            )));
        }
        // Positions of each sequence, those before its tokens too.
        let mut ends = vec![0; tables.len()];
        for (token, &row) in tokens.iter().zip(rows) {
            self.check_token(*token)?;
            let end = &mut ends[row as usize];
            *end = (*end).max(token.pos as usize + 1);
        }
        for (table, &end) in tables.iter().zip(&ends) {
            self.check_table(table, end)?;
        }
        let places: Vec<u32> = tokens
            .iter()
            .zip(rows)
            .map(|(t, &row)| tables[row as usize][(t.pos / PAGE) as usize] * PAGE + t.pos % PAGE)
            .collect();
        self.check_places(batch, &places, &ends)?;
        let table_len = ends.iter().max().map_or(0, |end| end.div_ceil(PAGE as usize));
        let row_of = |table: &[u32]| -> Vec<u32> {
            let mut row = table[..table.len().min(table_len)].to_vec();
            row.resize(table_len, 0);
            row
        };
        let mut words: Vec<u32> = tokens.iter().map(|t| t.id).collect();
        let positions = words.len();
        words.extend(tokens.iter().map(|t| t.pos));
        let places_at = words.len();
        let (attention, tiles_at, tables_at);
        if self.is_decoding(rows) {
            attention = Attention::Decode { steps: table_len };
            (tiles_at, tables_at) = (words.len(), words.len());
            words.extend(rows.iter().flat_map(|&row| row_of(tables[row as usize])));
        } else {
            words.extend(&places);
            // The prompt kernels load a tile at once.
            words.resize(words.len().next_multiple_of(4), 0);
            tiles_at = words.len();
            let tiles = self.tiles(tokens, rows);
            words.extend(tiles.iter().flat_map(|tile| tile.words()));
            tables_at = words.len();
            words.extend(tables.iter().flat_map(|table| row_of(table)));
            attention = Attention::Prefill { tiles: tiles.len() };
        }
        // The copying kernel loads a pair at once.
        words.resize(words.len().next_multiple_of(2), 0);
        let pairs = words.len();
        words.extend(batch.copies.iter().flat_map(|&(from, to)| [from, to]));
        Ok(Plan {
            attention,
            table_len,
            copies: batch.copies.len(),
            words,
            positions,
            places: places_at,
            tiles: tiles_at,
            tables: tables_at,
            pairs,
        })
    }

    /// Whether every token is of a sequence of its own, and the decode kernels take it.
    fn is_decoding(&self, rows: &[u32]) -> bool {
        let mut sorted = rows.to_vec();
        sorted.sort_unstable();
        sorted.is_sorted_by(|a, b| a < b) && rows.len() <= self.limits.seats()
    }

    /// Runs of consecutive tokens of a sequence, cut into tiles.
    fn tiles(&self, tokens: &[Token], rows: &[u32]) -> Vec<Tile> {
        let mut tiles = Vec::new();
        let mut first = 0;
        for i in 1..=tokens.len() {
            let continues =
                i < tokens.len() && rows[i] == rows[i - 1] && tokens[i].pos == tokens[i - 1].pos + 1;
            if !continues {
                let run = Tile {
                    row: first as u32,
                    count: (i - first) as u32,
                    table: rows[first],
                    position: tokens[first].pos,
                };
                tiles.extend(run.cut(self.n_heads, self.n_kv_heads, self.padded));
                first = i;
            }
        }
        tiles
    }

    /// Refuses two tokens with the same place, pages that are written by one sequence and seen by another, and copies that
    /// get in each other's way.
    fn check_places(&self, batch: &Batch<'_>, places: &[u32], ends: &[usize]) -> Result<()> {
        let mut sorted = places.to_vec();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Request(format!(
                "two tokens of a batch write position {} of page {}",
                pair[0] % PAGE,
                pair[0] / PAGE
            )));
        }
        // (page, sequence), once each.
        let mut written: Vec<(u32, u32)> = places
            .iter()
            .zip(batch.rows)
            .map(|(place, &row)| (place / PAGE, row))
            .collect();
        written.sort_unstable();
        written.dedup();
        for (row, (table, &end)) in (0..).zip(batch.tables.iter().zip(ends)) {
            for &page in &table[..end.div_ceil(PAGE as usize)] {
                let first = written.partition_point(|&(other, _)| other < page);
                let writers = written[first..].iter().take_while(|&&(other, _)| other == page);
                if let Some((_, writer)) = writers.into_iter().find(|&&(_, writer)| writer != row) {
                    return Err(Error::Request(format!(
                        "sequence {writer} of a batch writes to page {page}, which is sequence {row}'s too"
                    )));
                }
            }
        }
        let copies = batch.copies;
        let targets = || copies.iter().map(|&(_, to)| to);
        for (i, &(from, to)) in copies.iter().enumerate() {
            let is_clear = !targets()
                .enumerate()
                .any(|(j, other)| other == from || (i != j && other == to));
            if !is_clear || from.max(to) as usize >= self.limits.n_pages || copies.len() > self.limits.n_seqs
            {
                return Err(Error::Request(format!(
                    "{} copies of pages, one of page {from} to page {to} of {}",
                    copies.len(),
                    self.limits.n_pages
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        limits: Limits {
            context: 256,
            n_seqs: 3,
            max_batch: 8,
            n_pages: 10,
        },
        vocab: 100,
        n_heads: 4,
        n_kv_heads: 2,
        padded: 64,
    };

    fn token(id: u32, pos: u32) -> Token {
        Token { id, pos }
    }

    fn plan(tokens: &[Token], rows: &[u32], tables: &[&[u32]], copies: &[(u32, u32)]) -> Result<Plan> {
        BOUNDS.plan(&Batch {
            tokens,
            rows,
            tables,
            copies,
        })
    }

    #[test]
    fn decoded_tokens_bring_a_table_each() {
        let tokens = [token(7, 64), token(8, 3)];
        let plan = plan(&tokens, &[1, 0], &[&[4], &[9, 2, 5]], &[(3, 6)]).unwrap();
        assert_eq!(plan.attention, Attention::Decode { steps: 2 });
        assert_eq!(plan.words, [7, 8, 64, 3, 9, 2, 4, 0, 3, 6]);
        assert_eq!((plan.positions, plan.tables, plan.pairs), (2, 4, 8));
        assert!(plan.words.len() <= BOUNDS.most_words());
    }

    #[test]
    fn runs_of_tokens_are_cut_into_tiles() {
        let tokens = [token(1, 63), token(2, 64), token(3, 0)];
        let plan = plan(&tokens, &[0, 0, 1], &[&[4, 1], &[9]], &[]).unwrap();
        assert_eq!(plan.attention, Attention::Prefill { tiles: 2 });
        let expected = [
            &[1, 2, 3, 63, 64, 0][..],
            &[4 * 64 + 63, 64, 9 * 64, 0, 0, 0],
            &[0, 2, 0, 63, 2, 1, 1, 0],
            &[4, 1, 9, 0],
        ];
        assert_eq!(plan.words, expected.concat());
        assert_eq!((plan.places, plan.tiles, plan.tables), (6, 12, 20));
    }

    #[test]
    fn what_kernels_must_not_see_is_refused() {
        let refused =
            |tokens: &[Token], rows: &[u32], tables: &[&[u32]], copies: &[(u32, u32)], what: &str| {
                let error = plan(tokens, rows, tables, copies).unwrap_err().to_string();
                assert!(error.contains(what), "{error}");
            };
        let one = [token(1, 0)];
        refused(&[], &[], &[], &[], "a batch of 0 tokens");
        refused(&[token(1, 0); 9], &[0; 9], &[&[1]], &[], "a batch of 9 tokens");
        refused(&one, &[0], &[&[1], &[2], &[3], &[4]], &[], "of 4 sequences");
        refused(&one, &[1], &[&[1]], &[], "sequences [1]");
        refused(&one, &[], &[&[1]], &[], "sequences []");
        refused(&[token(100, 0)], &[0], &[&[1]], &[], "vocabulary has 100 tokens");
        refused(&[token(1, 256)], &[0], &[&[1, 2, 3, 4]], &[], "256 positions");
        refused(&[token(1, 64)], &[0], &[&[1]], &[], "1 pages for 65 positions");
        refused(&one, &[0], &[&[1, 2, 3, 4, 5]], &[], "5 pages for 1 positions");
        refused(&one, &[0], &[&[10]], &[], "page 10 of the 10 pages");
        // The same position twice, of one sequence and of two.
        let twice = [token(1, 5), token(2, 5)];
        refused(
            &twice,
            &[0, 0],
            &[&[1]],
            &[],
            "two tokens of a batch write position 5 of page 1",
        );
        refused(
            &twice,
            &[0, 1],
            &[&[1], &[1]],
            &[],
            "two tokens of a batch write position 5 of page 1",
        );
        // A page that another sequence reads, or writes elsewhere.
        let apart = [token(1, 5), token(2, 6)];
        refused(&apart, &[0, 1], &[&[1], &[1]], &[], "writes to page 1, which is");
        refused(
            &[token(1, 5), token(2, 70)],
            &[0, 1],
            &[&[1][..], &[1, 2]],
            &[],
            "sequence 0 of a batch writes to page 1",
        );
        // Shared pages that nobody writes are what they are for.
        assert!(plan(&[token(1, 64), token(2, 70)], &[0, 1], &[&[1, 2], &[1, 3]], &[]).is_ok());
        // So are copies alone.
        assert_eq!(plan(&[], &[], &[], &[(1, 2)]).unwrap().words, [1, 2]);
        for copies in [
            &[(1, 1)][..],
            &[(1, 10)],
            &[(1, 2), (3, 2)],
            &[(1, 2), (2, 3)],
            &[(1, 2); 4],
        ] {
            refused(&one, &[0], &[&[1]], copies, "copies of pages");
        }
    }
}
