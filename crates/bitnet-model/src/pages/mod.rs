//! What every sequence holds of a back end's cache: the one owner of pages, and the only maker of batches.
//!
//! Keys and values are kept in pages of some positions; a sequence has a table of pages. Sequences that begin with the
//! same tokens share the pages of what they have in common, whole pages only, and a shared page is never written: who
//! goes on inside one gets a copy. Pages of closed sequences stay findable until their memory is needed.
//!
//! A prefix is found by its tokens; hashes only say where to look.

mod batch;
mod pool;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use bitnet_layout::Token;

pub use batch::{Batch, Limits, PageCopy, Start};

use crate::error::{Error, Result};
use pool::{Parent, Pool};

/// A sequence of some [`Pages`]. It is closed by giving it back to [`Pages::close`]; dropping it leaves its pages held.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a sequence holds its pages until it is closed"]
pub struct Seq {
    index: usize,
    owner: u64,
}

/// Tokens that a sequence goes on with.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The sequence.
    pub seq: &'a Seq,
    /// What follows on its tokens; may be empty.
    pub ids: &'a [u32],
}

#[derive(Clone, Debug)]
struct Sequence {
    /// Tokens that are in the cache, or in the batch that was made last.
    ids: Vec<u32>,
    /// Pages of these, then reserved ones.
    table: Vec<u32>,
    /// Pages at the start of the table that are findable.
    n_published: usize,
    /// Whether others may not find its pages, since nobody knows what is in one of them.
    is_suspect: bool,
    salt: u64,
}

/// The pages of a back end's cache.
///
/// ```
/// use bitnet_model::{Backend, Checkpoint, Device, Pages, Run, Want, open_backend};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let checkpoint = Checkpoint::open(folder)?;
/// let mut backend = open_backend(&checkpoint, Device::Cpu)?;
/// let mut pages = Pages::new(backend.spec());
/// let (seq, found) = pages.open(&[752, 54, 71], 0);
/// assert_eq!(found, 0);
/// let batch = pages.batch(&[Run { seq: &seq, ids: &[752, 54, 71] }])?;
/// // The logits of the last one.
/// let logits = backend.step(&batch, Want::Logits(&[2]))?;
/// assert_eq!(logits.len(), 768);
/// pages.close(seq, true);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Pages {
    limits: Limits,
    pool: Pool,
    /// By index; closed ones leave a gap that is used again.
    seqs: Vec<Option<Sequence>>,
    vacant: Vec<usize>,
    /// Copies that the next batch does. They hold the page that they read.
    copies: Vec<PageCopy>,
    owner: u64,
}

impl Pages {
    /// An empty cache of the limits that a back end has, see [`crate::Spec::limits`].
    #[must_use]
    pub fn new(limits: impl Into<Limits>) -> Self {
        static OWNERS: AtomicU64 = AtomicU64::new(0);
        let limits = limits.into();
        Self {
            pool: Pool::new(limits.n_pages),
            limits,
            seqs: Vec::new(),
            vacant: Vec::new(),
            copies: Vec::new(),
            owner: OWNERS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A new sequence that will begin with `prompt`, and how many of its tokens are in the cache already: whole pages that
    /// sequences with the same `salt` computed. The last token is never counted, since somebody wants its logits.
    pub fn open(&mut self, prompt: &[u32], salt: u64) -> (Seq, usize) {
        let page = self.limits.page;
        let findable = prompt.len().saturating_sub(1) / page;
        let mut table = Vec::new();
        let mut parent = Parent::Root(salt);
        for ids in prompt.chunks_exact(page).take(findable) {
            let Some(found) = self.pool.find(parent, ids) else {
                break;
            };
            self.pool.hold(found);
            parent = self.pool.after(found);
            table.push(found);
        }
        let found = table.len() * page;
        let sequence = Sequence {
            ids: prompt[..found].to_vec(),
            n_published: table.len(),
            is_suspect: false,
            table,
            salt,
        };
        (self.add(sequence), found)
    }

    /// A second sequence with the tokens of `seq`, sharing its pages.
    pub fn fork(&mut self, seq: &Seq) -> Seq {
        let original = self.get(seq);
        let n_pages = original.ids.len().div_ceil(self.limits.page);
        let sequence = Sequence {
            ids: original.ids.clone(),
            table: original.table[..n_pages].to_vec(),
            n_published: original.n_published,
            is_suspect: original.is_suspect,
            salt: original.salt,
        };
        for &page in &sequence.table {
            self.pool.hold(page);
        }
        self.add(sequence)
    }

    /// Takes a sequence back. With `keep`, the whole pages of what it computed can be found until their memory is needed;
    /// without, those that could be found before remain.
    pub fn close(&mut self, seq: Seq, keep: bool) {
        if keep {
            self.publish(&seq, true);
        }
        self.get(&seq);
        if let Some(sequence) = self.seqs[seq.index].take() {
            self.let_go(&sequence.table);
            self.vacant.push(seq.index);
        }
    }

    /// Takes a sequence back whose pages hold something that is wrong, nobody knows where: none of them can be found any more, nor
    /// what follows on them, and those who share one go on without telling others of it.
    pub fn discard(&mut self, seq: Seq) {
        let table = self.get(&seq).table.clone();
        for &page in &table {
            self.pool.forget(page);
        }
        for other in self.seqs.iter_mut().flatten() {
            if let Some(first) = other.table.iter().position(|page| table.contains(page)) {
                other.n_published = other.n_published.min(first);
                other.is_suspect = true;
            }
        }
        self.close(seq, false);
    }

    /// Forgets the tokens of a sequence from position `len` on, and what was reserved for it.
    pub fn rewind(&mut self, seq: &Seq, len: usize) {
        let page = self.limits.page;
        let sequence = self.get_mut(seq);
        if len >= sequence.ids.len() {
            return;
        }
        sequence.ids.truncate(len);
        let rest = sequence.table.split_off(len.div_ceil(page));
        sequence.n_published = sequence.n_published.min(len / page);
        self.let_go(&rest);
    }

    /// Holds pages for `n` more tokens of a sequence, in which nobody else writes. Returns whether its table changed.
    ///
    /// The next batch may have to copy a page first: where [`Pages::has_copies`] says so, one must run before a device
    /// decodes by itself; `batch(&[])` makes one that does nothing else.
    ///
    /// # Errors
    /// [`Error::ContextFull`], or [`Error::OutOfPages`]; nothing has changed then.
    pub fn reserve(&mut self, seq: &Seq, n: usize) -> Result<bool> {
        self.check_room(seq, n)?;
        self.check_pages(self.n_missing(seq, n))?;
        Ok(self.prepare(seq, n))
    }

    /// Takes note of tokens that a device computed by itself, in reserved pages.
    ///
    /// # Errors
    /// When nothing was reserved for them, or one is not in the vocabulary.
    pub fn advance(&mut self, seq: &Seq, ids: &[u32]) -> Result<()> {
        self.check_ids(ids)?;
        let page = self.limits.page;
        let sequence = self.get_mut(seq);
        let (len, room) = (sequence.ids.len() + ids.len(), sequence.table.len() * page);
        if len > room {
            return Err(Error::Request(format!(
                "{len} tokens of a sequence that has pages for {room}: reserve more before a device computes them"
            )));
        }
        sequence.ids.extend_from_slice(ids);
        self.publish(seq, false);
        Ok(())
    }

    /// Where a device goes on by itself: token `id` follows on those of the sequence.
    ///
    /// # Errors
    /// When the id is not in the vocabulary, nothing was reserved for it, or pages must be copied first.
    pub fn start(&self, seq: &Seq, id: u32) -> Result<Start<'_>> {
        self.check_ids(&[id])?;
        let sequence = self.get(seq);
        let pos = sequence.ids.len();
        let is_own = sequence
            .table
            .get(pos / self.limits.page)
            .is_some_and(|&page| !self.pool.is_shared(page));
        if !is_own || self.has_copies() {
            return Err(Error::Request(format!(
                "position {pos} has no page that a device could write: reserve it, and run the copies of that"
            )));
        }
        Ok(Start {
            limits: self.limits,
            token: Token { id, pos: pos as u32 },
            pages: &sequence.table,
        })
    }

    /// The batch in which some sequences go on, each token at the next position of its sequence; and the copies that this
    /// takes. It must be run by the back end next; where that fails, what its sequences hold is unknown: close them without
    /// `keep`.
    ///
    /// # Errors
    /// [`Error::OutOfPages`]; [`Error::ContextFull`]; [`Error::Request`] when there is nothing to do, there are more tokens or
    /// sequences than fit a batch, or an id is not in the vocabulary. Nothing has changed then.
    pub fn batch(&mut self, runs: &[Run<'_>]) -> Result<Batch> {
        let Limits {
            max_batch, max_seqs, ..
        } = self.limits;
        let n_tokens: usize = runs.iter().map(|run| run.ids.len()).sum();
        if n_tokens > max_batch || (n_tokens == 0 && self.copies.is_empty()) {
            return Err(Error::Request(format!(
                "a batch of {n_tokens} tokens: this back end takes 1 to {max_batch}"
            )));
        }
        // A sequence can have several runs; its tokens count together.
        let mut seqs: Vec<(&Seq, usize)> = Vec::new();
        let mut row_of = vec![u32::MAX; self.seqs.len()];
        for run in runs.iter().filter(|run| !run.ids.is_empty()) {
            self.get(run.seq);
            self.check_ids(run.ids)?;
            let row = &mut row_of[run.seq.index];
            if *row == u32::MAX {
                *row = seqs.len() as u32;
                seqs.push((run.seq, 0));
            }
            seqs[*row as usize].1 += run.ids.len();
        }
        if seqs.len() > max_seqs {
            return Err(Error::Request(format!(
                "a batch of {} sequences: this back end takes {max_seqs}",
                seqs.len()
            )));
        }
        for &(seq, n) in &seqs {
            self.check_room(seq, n)?;
        }
        for &(seq, _) in &seqs {
            self.publish(seq, true);
        }
        self.check_pages(seqs.iter().map(|&(seq, n)| self.n_missing(seq, n)).sum())?;

        let (mut pages, mut ends) = (Vec::new(), Vec::new());
        for &(seq, n) in &seqs {
            self.prepare(seq, n);
            let sequence = self.get(seq);
            let n_pages = (sequence.ids.len() + n).div_ceil(self.limits.page);
            pages.extend_from_slice(&sequence.table[..n_pages]);
            ends.push(pages.len());
        }
        let (mut tokens, mut rows) = (Vec::with_capacity(n_tokens), Vec::with_capacity(n_tokens));
        for run in runs.iter().filter(|run| !run.ids.is_empty()) {
            let row = row_of[run.seq.index];
            let sequence = self.get_mut(run.seq);
            for (pos, &id) in (sequence.ids.len() as u32..).zip(run.ids) {
                tokens.push(Token { id, pos });
                rows.push(row);
            }
            sequence.ids.extend_from_slice(run.ids);
        }
        let copies = std::mem::take(&mut self.copies);
        for copy in &copies {
            self.pool.release(copy.from);
        }
        Ok(Batch {
            limits: self.limits,
            tokens,
            rows,
            pages,
            ends,
            copies,
        })
    }

    /// Tokens of a sequence: those in the cache, and those of the batch that was made last.
    #[must_use]
    pub fn ids(&self, seq: &Seq) -> &[u32] {
        &self.get(seq).ids
    }

    /// The pages of a sequence, reserved ones included.
    #[must_use]
    pub fn table(&self, seq: &Seq) -> &[u32] {
        &self.get(seq).table
    }

    /// Whether pages are to be copied, which the next batch does.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Positions of a page.
    #[must_use]
    pub fn page(&self) -> usize {
        self.limits.page
    }

    /// Pages that there are.
    #[must_use]
    pub fn n_pages(&self) -> usize {
        self.pool.len()
    }

    /// Pages that sequences can still get: free ones, and findable ones that nobody holds.
    #[must_use]
    pub fn n_available(&self) -> usize {
        self.pool.n_free() + self.pool.n_idle()
    }

    /// Findable pages that nobody holds.
    #[must_use]
    pub fn n_idle(&self) -> usize {
        self.pool.n_idle()
    }

    /// Pages that open sequences hold.
    #[must_use]
    pub fn n_held(&self) -> usize {
        self.n_pages() - self.n_available()
    }

    /// Whether every page is in one place, free, held or idle, and held by as many as it counts.
    ///
    /// # Errors
    /// Names the first page that is lost or held by nobody, for people who look for a mistake in this file.
    pub fn check(&self) -> Result<(), String> {
        let mut holders = vec![0; self.pool.len()];
        let page = self.limits.page;
        for sequence in self.seqs.iter().flatten() {
            if sequence.table.len() * page < sequence.ids.len() {
                return Err(format!(
                    "{} pages for {} tokens",
                    sequence.table.len(),
                    sequence.ids.len()
                ));
            }
            let mut parent = Parent::Root(sequence.salt);
            let published = sequence.table.iter().zip(sequence.ids.chunks_exact(page));
            for (&page, ids) in published.take(sequence.n_published) {
                if self.pool.find(parent, ids) != Some(page) {
                    return Err(format!("page {page} of a sequence is not found by its tokens"));
                }
                parent = self.pool.after(page);
            }
            for &page in &sequence.table {
                holders[page as usize] += 1;
            }
        }
        for copy in &self.copies {
            holders[copy.from as usize] += 1;
        }
        self.pool.check(&holders)
    }

    fn add(&mut self, sequence: Sequence) -> Seq {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.seqs.push(None);
            self.seqs.len() - 1
        });
        self.seqs[index] = Some(sequence);
        Seq {
            index,
            owner: self.owner,
        }
    }

    fn get(&self, seq: &Seq) -> &Sequence {
        assert_eq!(seq.owner, self.owner, "a sequence of other pages");
        // A `Seq` cannot be copied, and closing takes it.
        self.seqs[seq.index].as_ref().expect("a sequence that is open")
    }

    fn get_mut(&mut self, seq: &Seq) -> &mut Sequence {
        assert_eq!(seq.owner, self.owner, "a sequence of other pages");
        self.seqs[seq.index].as_mut().expect("a sequence that is open")
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.limits.vocab;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => Err(Error::Request(format!(
                "token id {id} is not below the vocabulary size {vocab}"
            ))),
        }
    }

    fn check_room(&self, seq: &Seq, n: usize) -> Result<()> {
        let (needed, have) = (self.get(seq).ids.len() + n, self.limits.context);
        if needed > have {
            return Err(Error::ContextFull { needed, have });
        }
        Ok(())
    }

    fn check_pages(&self, needed: usize) -> Result<()> {
        let available = self.n_available();
        if needed > available {
            return Err(Error::OutOfPages { needed, available });
        }
        Ok(())
    }

    /// The page, if any, that a sequence shares and would write into next.
    fn shared(&self, seq: &Seq) -> Option<usize> {
        let sequence = self.get(seq);
        let at = sequence.ids.len() / self.limits.page;
        let page = *sequence.table.get(at)?;
        self.pool.is_shared(page).then_some(at)
    }

    /// Pages to take before `n` more tokens can be written.
    fn n_missing(&self, seq: &Seq, n: usize) -> usize {
        if n == 0 {
            return 0;
        }
        let sequence = self.get(seq);
        let needed = (sequence.ids.len() + n).div_ceil(self.limits.page);
        needed.saturating_sub(sequence.table.len()) + usize::from(self.shared(seq).is_some())
    }

    /// Gives a sequence pages of its own for `n` more tokens; there are as many as [`Pages::n_missing`] counts. Returns
    /// whether the table changed.
    fn prepare(&mut self, seq: &Seq, n: usize) -> bool {
        const COUNTED: &str = "pages were counted";
        if n == 0 {
            return false;
        }
        let page = self.limits.page;
        let mut changed = false;
        if let Some(at) = self.shared(seq) {
            let from = self.get(seq).table[at];
            let to = self.pool.take().expect(COUNTED);
            self.get_mut(seq).table[at] = to;
            // A page that is itself still to be copied holds nothing yet.
            let origin = self.copies.iter().find(|copy| copy.to == from);
            let from = match origin.copied() {
                Some(origin) => {
                    self.pool.hold(origin.from);
                    self.pool.release(from);
                    origin.from
                }
                // What held it for the sequence now holds it for the copy.
                None => from,
            };
            self.copies.push(PageCopy { from, to });
            changed = true;
        }
        let sequence = self.get(seq);
        let len = sequence.ids.len();
        if let Some(&next) = sequence.table.get(len / page) {
            // After a rewind into a whole page: its end will be another one.
            self.pool.forget(next);
        }
        while self.get(seq).table.len() * page < len + n {
            let new = self.pool.take().expect(COUNTED);
            self.get_mut(seq).table.push(new);
            changed = true;
        }
        changed
    }

    /// Makes the whole pages of a sequence findable. Where another sequence has done so with the same tokens, this one
    /// goes on with that page, of the same content, if it `may_switch`, and else stops there until later.
    fn publish(&mut self, seq: &Seq, may_switch: bool) {
        let page = self.limits.page;
        if self.get(seq).is_suspect {
            return;
        }
        loop {
            let sequence = self.get(seq);
            let at = sequence.n_published;
            let Some(ids) = sequence.ids.get(at * page..(at + 1) * page) else {
                return;
            };
            let own = sequence.table[at];
            let parent = match at.checked_sub(1) {
                None => Parent::Root(sequence.salt),
                Some(before) => self.pool.after(sequence.table[before]),
            };
            match self.pool.find(parent, ids) {
                None => {
                    let ids = ids.to_vec();
                    self.pool.publish(own, parent, &ids);
                }
                Some(found) if found == own => {}
                Some(_) if !may_switch => return,
                Some(found) => {
                    self.pool.hold(found);
                    self.get_mut(seq).table[at] = found;
                    self.let_go(&[own]);
                }
            }
            self.get_mut(seq).n_published += 1;
        }
    }

    /// Lets go of pages of a table, the last first. Copies into a page that nobody needs any more are not done.
    fn let_go(&mut self, pages: &[u32]) {
        for &page in pages.iter().rev() {
            if !self.pool.release(page) {
                continue;
            }
            while let Some(i) = self.copies.iter().position(|copy| copy.to == page) {
                let copy = self.copies.swap_remove(i);
                self.pool.release(copy.from);
            }
        }
    }
}
