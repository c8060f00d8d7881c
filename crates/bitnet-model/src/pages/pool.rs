//! The pages of a cache: who holds each, which can be found by their tokens, and which is given away next.
//!
//! A page is in one place: free, held, or idle, which is findable and held by nobody. Findable pages are the nodes of a
//! tree; a node's place is its parent and the tokens of its page, so a path from a root spells a prefix.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Where a page's tokens follow on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    /// On nothing: the first page of sequences opened with this salt.
    Root(u64),
    /// On the node with this number. Numbers are never given twice, so a child whose parent is gone cannot be reached.
    Node(u64),
}

/// A place in the tree. The map hashes the tokens and compares them on a hit.
type Place = (Parent, Arc<[u32]>);

#[derive(Clone, Debug)]
struct Node {
    number: u64,
    place: Place,
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// Sequences, and copies that are still to be done, that need its content.
    holders: u32,
    node: Option<Node>,
    /// When it became idle.
    idle_since: u64,
}

/// All pages of a back end.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Idle pages, by when they became so. A sequence lets go of its pages from the last to the first, so that no page is
    /// younger here than the one it follows on.
    idle: BTreeMap<u64, u32>,
    tree: HashMap<Place, u32>,
    clock: u64,
    n_nodes: u64,
}

impl Pool {
    pub(super) fn new(n_pages: usize) -> Self {
        let n_pages = u32::try_from(n_pages).unwrap_or(u32::MAX);
        Self {
            pages: vec![Page::default(); n_pages as usize],
            // The lowest first.
            free: (0..n_pages).rev().collect(),
            idle: BTreeMap::new(),
            tree: HashMap::new(),
            clock: 0,
            n_nodes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn n_free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn n_idle(&self) -> usize {
        self.idle.len()
    }

    /// A page that its new holder may write: a free one, or else the one that has been idle for longest.
    pub(super) fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                self.forget(page);
                page
            }
        };
        self.pages[page as usize].holders = 1;
        Some(page)
    }

    pub(super) fn hold(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if state.holders == 0 {
            self.idle.remove(&state.idle_since);
        }
        state.holders += 1;
    }

    /// Returns whether that was its last holder.
    pub(super) fn release(&mut self, page: u32) -> bool {
        let state = &mut self.pages[page as usize];
        assert!(state.holders > 0, "page {page} is let go by nobody who holds it");
        state.holders -= 1;
        if state.holders > 0 {
            return false;
        }
        if state.node.is_some() {
            self.clock += 1;
            state.idle_since = self.clock;
            self.idle.insert(self.clock, page);
        } else {
            self.free.push(page);
        }
        true
    }

    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.pages[page as usize].holders > 1
    }

    /// The page with these tokens there.
    pub(super) fn find(&self, parent: Parent, tokens: &[u32]) -> Option<u32> {
        self.tree.get(&(parent, Arc::from(tokens))).copied()
    }

    /// Makes a page findable, at a place that is empty. It may have been findable after a page that is forgotten by now, and of which
    /// another one had the same content.
    pub(super) fn publish(&mut self, page: u32, parent: Parent, tokens: &[u32]) {
        self.forget(page);
        let place = (parent, Arc::from(tokens));
        let number = self.n_nodes;
        self.n_nodes += 1;
        self.tree.insert(place.clone(), page);
        self.pages[page as usize].node = Some(Node { number, place });
    }

    /// Makes a page one that nobody finds, so that its holder may write it. Pages that follow on it are not found either.
    pub(super) fn forget(&mut self, page: u32) {
        if let Some(node) = self.pages[page as usize].node.take() {
            self.tree.remove(&node.place);
        }
    }

    /// The place after a findable page.
    pub(super) fn after(&self, page: u32) -> Parent {
        let node = self.pages[page as usize].node.as_ref();
        Parent::Node(node.expect("a page that was made findable").number)
    }

    /// Whether every page is in one place and has as many holders as `holders` says.
    pub(super) fn check(&self, holders: &[u32]) -> Result<(), String> {
        let mut is_free = vec![false; self.pages.len()];
        for &page in &self.free {
            if std::mem::replace(&mut is_free[page as usize], true) {
                return Err(format!("page {page} is free twice"));
            }
        }
        for (index, page) in self.pages.iter().enumerate() {
            let is_idle = page.holders == 0 && self.idle.get(&page.idle_since) == Some(&(index as u32));
            if page.holders != holders[index] {
                return Err(format!(
                    "page {index} counts {} holders and has {}",
                    page.holders, holders[index]
                ));
            }
            let places = [page.holders > 0, is_idle, is_free[index]];
            if places.iter().filter(|&&is_there| is_there).count() != 1 {
                return Err(format!("page {index} is held, idle, free: {places:?}"));
            }
            if is_free[index] == page.node.is_some() && page.holders == 0 {
                return Err(format!("page {index} is findable and free, or idle and lost"));
            }
            if let Some(node) = &page.node
                && self.tree.get(&node.place) != Some(&(index as u32))
            {
                return Err(format!("page {index} is not found where it should be"));
            }
        }
        let findable = self.pages.iter().filter(|page| page.node.is_some()).count();
        if findable != self.tree.len() {
            return Err(format!(
                "{} places for {findable} findable pages",
                self.tree.len()
            ));
        }
        let n_idle = self
            .pages
            .iter()
            .filter(|p| p.holders == 0 && p.node.is_some())
            .count();
        if n_idle != self.idle.len() {
            return Err(format!("{} entries for {n_idle} idle pages", self.idle.len()));
        }
        Ok(())
    }
}
