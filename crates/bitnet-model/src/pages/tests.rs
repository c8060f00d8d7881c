use super::*;
use proptest::prelude::*;

const PAGE: usize = 4;

fn limits(n_pages: usize) -> Limits {
    Limits {
        page: PAGE,
        n_pages,
        vocab: 200,
        context: 40,
        max_batch: 24,
        max_seqs: 6,
    }
}

/// What must hold of every batch, whatever made it: the rules of [`Batch`].
fn assert_rules(batch: &Batch) {
    let limits = batch.limits();
    assert!(batch.tokens().len() <= limits.max_batch && batch.n_tables() <= limits.max_seqs);
    let mut next = vec![None; batch.n_tables()];
    let mut writer = vec![None; limits.n_pages];
    for (token, &row) in batch.tokens().iter().zip(batch.rows()) {
        let (row, pos) = (row as usize, token.pos as usize);
        assert!((token.id as usize) < limits.vocab && pos < limits.context);
        assert!(next[row].is_none_or(|next| next == pos), "a gap or a duplicate");
        next[row] = Some(pos + 1);
        let page = batch.table(row)[pos / limits.page] as usize;
        assert!(
            writer[page].is_none_or(|other| other == row),
            "two write page {page}"
        );
        writer[page] = Some(row);
    }
    for (row, next) in next.iter().enumerate() {
        let table = batch.table(row);
        assert_eq!(table.len(), next.unwrap().div_ceil(limits.page));
        for (at, &page) in table.iter().enumerate() {
            assert!(!table[..at].contains(&page), "page {page} twice in a table");
            let writer = writer[page as usize];
            assert!(
                writer.is_none_or(|writer| writer == row),
                "a page that {writer:?} writes is shared"
            );
        }
    }
    for (i, copy) in batch.copies().iter().enumerate() {
        let rest = batch.copies()[i + 1..].iter();
        assert!(rest.clone().all(|other| other.to != copy.to));
        assert!(batch.copies().iter().all(|other| other.from != copy.to));
        assert!(writer[copy.from as usize].is_none() || copy.from != copy.to);
    }
}

/// A cache of one layer whose keys are the tokens themselves: it does what batches say, and knows what was lost.
struct Cache(Vec<[Option<u32>; PAGE]>);

impl Cache {
    fn run(&mut self, batch: &Batch) {
        for copy in batch.copies() {
            self.0[copy.to as usize] = self.0[copy.from as usize];
        }
        for (token, &row) in batch.tokens().iter().zip(batch.rows()) {
            let pos = token.pos as usize;
            let page = batch.table(row as usize)[pos / PAGE] as usize;
            self.0[page][pos % PAGE] = Some(token.id);
        }
    }

    fn text(&self, table: &[u32], len: usize) -> Vec<Option<u32>> {
        (0..len)
            .map(|pos| self.0[table[pos / PAGE] as usize][pos % PAGE])
            .collect()
    }
}

fn keys(ids: &[u32]) -> Vec<Option<u32>> {
    ids.iter().copied().map(Some).collect()
}

#[derive(Clone, Debug)]
enum Act {
    Open {
        text: usize,
        salt: u64,
    },
    Fork(usize),
    Close(usize, bool),
    Discard(usize),
    Rewind(usize, usize),
    /// By sequence, how many tokens of its text.
    Batch(Vec<(usize, usize)>),
    /// As a device: reserve, start, compute some without the host.
    Decode(usize, usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let seq = 0..8usize;
    let act = prop_oneof![
        3 => (0..6usize, 0..2u64).prop_map(|(text, salt)| Act::Open { text, salt }),
        1 => seq.clone().prop_map(Act::Fork),
        2 => (seq.clone(), any::<bool>()).prop_map(|(seq, keep)| Act::Close(seq, keep)),
        1 => seq.clone().prop_map(Act::Discard),
        1 => (seq.clone(), 0..40usize).prop_map(|(seq, len)| Act::Rewind(seq, len)),
        6 => proptest::collection::vec((seq.clone(), 0..12usize), 1..5).prop_map(Act::Batch),
        2 => (seq, 1..6usize).prop_map(|(seq, n)| Act::Decode(seq, n)),
    ];
    proptest::collection::vec(act, 1..80)
}

/// Texts with common beginnings: the first four or eight tokens, or none.
fn text(index: usize) -> impl Iterator<Item = u32> {
    let same = [40, 8, 8, 4, 4, 0][index];
    (0..40).map(move |i| {
        if i < same {
            i as u32 % 7
        } else {
            (i * 3 + index) as u32
        }
    })
}

/// An open sequence, and what it should have: the model that the pages are held against.
struct Open {
    seq: Seq,
    text: usize,
    ids: Vec<u32>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_schedule_gives_every_sequence_its_own_text(n_pages in 1..40usize, acts in acts()) {
        let mut pages = Pages::new(limits(n_pages));
        let mut cache = Cache(vec![[None; PAGE]; n_pages]);
        let mut open: Vec<Open> = Vec::new();
        for act in acts {
            match act {
                Act::Open { text: index, salt } => {
                    let ids: Vec<u32> = text(index).collect();
                    let (seq, found) = pages.open(&ids, salt);
                    prop_assert!(found < ids.len() && found % PAGE == 0);
                    prop_assert_eq!(cache.text(pages.table(&seq), found), keys(&ids[..found]));
                    open.push(Open { seq, text: index, ids: ids[..found].to_vec() });
                }
                Act::Fork(i) if i < open.len() => {
                    let seq = pages.fork(&open[i].seq);
                    open.push(Open { seq, text: open[i].text, ids: open[i].ids.clone() });
                }
                Act::Discard(i) if i < open.len() => {
                    let Open { seq, text: index, .. } = open.swap_remove(i);
                    let table = pages.table(&seq).to_vec();
                    pages.discard(seq);
                    // Nobody finds what it had, under any salt.
                    for salt in 0..2 {
                        let (other, _) = pages.open(&text(index).collect::<Vec<_>>(), salt);
                        prop_assert!(pages.table(&other).iter().all(|page| !table.contains(page)));
                        pages.close(other, false);
                    }
                }
                Act::Close(i, keep) if i < open.len() => pages.close(open.swap_remove(i).seq, keep),
                Act::Rewind(i, len) if i < open.len() => {
                    pages.rewind(&open[i].seq, len);
                    open[i].ids.truncate(len);
                }
                Act::Batch(parts) => {
                    let parts: Vec<(usize, Vec<u32>)> = parts
                        .into_iter()
                        .filter(|&(i, _)| i < open.len())
                        .map(|(i, n)| (i, text(open[i].text).skip(open[i].ids.len()).take(n).collect()))
                        .collect();
                    let mut seen = vec![false; open.len()];
                    let parts: Vec<_> = parts.into_iter().filter(|(i, _)| !std::mem::replace(&mut seen[*i], true)).collect();
                    let runs: Vec<Run<'_>> = parts.iter().map(|(i, ids)| Run { seq: &open[*i].seq, ids }).collect();
                    match pages.batch(&runs) {
                        Ok(batch) => {
                            assert_rules(&batch);
                            cache.run(&batch);
                            parts.iter().for_each(|(i, ids)| open[*i].ids.extend(ids));
                        }
                        Err(Error::OutOfPages { needed, available }) => prop_assert!(needed > available),
                        Err(_) => {
                            let n: usize = parts.iter().map(|(_, ids)| ids.len()).sum();
                            let n_seqs = parts.iter().filter(|(_, ids)| !ids.is_empty()).count();
                            prop_assert!(n == 0 || n > 24 || n_seqs > 6);
                        }
                    }
                }
                Act::Decode(i, n) if i < open.len() => {
                    let Open { seq, text: index, ids } = &mut open[i];
                    let next: Vec<u32> = text(*index).skip(ids.len()).take(n).collect();
                    if next.is_empty() || pages.reserve(seq, next.len()).is_err() {
                        continue;
                    }
                    if pages.has_copies() {
                        prop_assert!(pages.start(seq, next[0]).is_err());
                        let batch = pages.batch(&[]).unwrap();
                        assert_rules(&batch);
                        cache.run(&batch);
                    }
                    let start = pages.start(seq, next[0]).unwrap();
                    let table = start.pages().to_vec();
                    for (pos, &id) in (start.token().pos as usize..).zip(&next) {
                        cache.0[table[pos / PAGE] as usize][pos % PAGE] = Some(id);
                    }
                    for id in next {
                        pages.advance(seq, &[id]).unwrap();
                        ids.push(id);
                    }
                }
                _ => {}
            }
            pages.check().map_err(TestCaseError::fail)?;
            if !pages.has_copies() {
                for Open { seq, ids, .. } in &open {
                    prop_assert_eq!(pages.ids(seq), &ids[..]);
                    prop_assert_eq!(cache.text(pages.table(seq), ids.len()), keys(ids));
                }
            }
        }
        open.drain(..).for_each(|open| pages.close(open.seq, false));
        pages.check().map_err(TestCaseError::fail)?;
        prop_assert_eq!(pages.n_available(), n_pages, "pages are lost");
    }
}

#[test]
fn a_page_that_followed_on_a_discarded_one_is_found_after_its_own() {
    let mut pages = Pages::new(limits(20));
    let go_on = |pages: &mut Pages, seq: &Seq, ids: &[u32]| {
        assert_rules(&pages.batch(&[Run { seq, ids }]).unwrap());
        pages.check().unwrap();
    };
    let (wrong, _) = pages.open(&[], 0);
    let (switches, _) = pages.open(&[], 0);
    go_on(&mut pages, &wrong, &[0, 1, 2, 3]);
    go_on(&mut pages, &switches, &[0, 1, 2, 3, 20, 21, 22, 23]);
    let fork = pages.fork(&switches);
    // The first page of `wrong` is found, and `switches` goes on with it; their second page is found after that one.
    go_on(&mut pages, &wrong, &[9]);
    go_on(&mut pages, &switches, &[8]);
    pages.discard(wrong);
    pages.check().unwrap();
    // The fork never had that page.
    go_on(&mut pages, &fork, &[7]);
    let (other, found) = pages.open(&[0, 1, 2, 3, 20, 21, 22, 23, 5], 0);
    assert_eq!(found, 8);
    for seq in [switches, fork, other] {
        pages.close(seq, true);
        pages.check().unwrap();
    }
    assert_eq!(pages.n_available(), 20);
}

/// Computes `ids` in a sequence of their own; how many were found.
fn compute(pages: &mut Pages, ids: &[u32], salt: u64) -> usize {
    let (seq, found) = pages.open(ids, salt);
    let run = Run {
        seq: &seq,
        ids: &ids[found..],
    };
    assert_rules(&pages.batch(&[run]).unwrap());
    pages.close(seq, true);
    found
}

#[test]
fn a_prefix_is_found_whole_page_by_whole_page() {
    let mut pages = Pages::new(limits(10));
    let ids: Vec<u32> = (0..11).collect();
    assert_eq!(compute(&mut pages, &ids, 0), 0);
    assert_eq!((pages.n_idle(), pages.n_available()), (2, 10));
    assert_eq!(compute(&mut pages, &ids, 0), 8);
    // The last token is computed even if it is there.
    assert_eq!(compute(&mut pages, &ids[..8], 0), 4);
    assert_eq!(compute(&mut pages, &ids, 1), 0, "another salt finds nothing");
    let mut other = ids.clone();
    other[5] = 50;
    assert_eq!(compute(&mut pages, &other, 0), 4);
    // The same page after another one is another page.
    let shifted: Vec<u32> = (4..11).collect();
    assert_eq!(compute(&mut pages, &shifted, 0), 0);
}

#[test]
fn the_longest_idle_page_goes_first_and_its_prefix_last() {
    let mut pages = Pages::new(limits(5));
    let a: Vec<u32> = (0..9).collect();
    let b: Vec<u32> = (20..29).collect();
    compute(&mut pages, &a, 0);
    compute(&mut pages, &b, 0);
    assert_eq!((pages.n_idle(), pages.n_available()), (4, 5));
    // Two pages are needed, one is free: the second page of `a` goes.
    compute(&mut pages, &[50; 8], 0);
    assert_eq!(pages.open(&a, 0).1, 4);
    let (seq, found) = pages.open(&b, 0);
    assert_eq!(found, 8);
    pages.close(seq, false);
}

#[test]
fn equal_texts_computed_side_by_side_end_in_the_same_pages() {
    let mut pages = Pages::new(limits(10));
    let (a, _) = pages.open(&[], 0);
    let (b, _) = pages.open(&[], 0);
    let ids: Vec<u32> = (0..9).collect();
    let both = [Run { seq: &a, ids: &ids }, Run { seq: &b, ids: &ids }];
    assert_rules(&pages.batch(&both).unwrap());
    assert_eq!(pages.n_held(), 6);
    let next = [Run { seq: &a, ids: &[9] }, Run { seq: &b, ids: &[8] }];
    assert_rules(&pages.batch(&next).unwrap());
    assert_eq!(pages.table(&a)[..2], pages.table(&b)[..2]);
    assert_eq!(pages.n_held(), 4);
    pages.check().unwrap();
    pages.close(a, true);
    pages.close(b, true);
    assert_eq!(pages.n_idle(), 2);
}

#[test]
fn what_is_shared_is_copied_before_it_is_written() {
    let mut pages = Pages::new(limits(4));
    let (a, _) = pages.open(&[], 0);
    pages
        .batch(&[Run {
            seq: &a,
            ids: &[1, 2, 3, 4, 5],
        }])
        .unwrap();
    let b = pages.fork(&a);
    assert_eq!(pages.n_held(), 2);
    let error = pages.start(&b, 6).unwrap_err();
    assert!(error.to_string().contains("reserve"), "{error}");
    let batch = pages.batch(&[Run { seq: &b, ids: &[6] }]).unwrap();
    assert_rules(&batch);
    let copy = PageCopy {
        from: pages.table(&a)[1],
        to: pages.table(&b)[1],
    };
    assert_eq!(batch.copies(), [copy]);
    // The other one now has its page for itself.
    assert!(
        pages
            .batch(&[Run { seq: &a, ids: &[7] }])
            .unwrap()
            .copies()
            .is_empty()
    );
    // A copy that nobody needs any more is not done.
    let c = pages.fork(&a);
    pages.reserve(&c, 1).unwrap();
    assert!(pages.has_copies());
    pages.close(c, false);
    assert!(!pages.has_copies());
    pages.check().unwrap();
    pages.close(a, false);
    pages.close(b, false);
}

#[test]
fn a_refused_batch_changes_nothing() {
    let mut pages = Pages::new(limits(3));
    let (a, _) = pages.open(&[], 0);
    let (b, _) = pages.open(&[], 0);
    pages
        .batch(&[Run {
            seq: &a,
            ids: &[1; 6],
        }])
        .unwrap();
    let error = pages.batch(&[
        Run {
            seq: &a,
            ids: &[2; 2],
        },
        Run {
            seq: &b,
            ids: &[2; 5],
        },
    ]);
    assert!(matches!(
        error,
        Err(Error::OutOfPages {
            needed: 2,
            available: 1
        })
    ));
    let error = pages.batch(&[Run {
        seq: &a,
        ids: &[1, 200],
    }]);
    assert!(error.unwrap_err().to_string().contains("token id 200"));
    assert_eq!(
        (pages.ids(&a).len(), pages.ids(&b).len(), pages.n_held()),
        (6, 0, 2)
    );
    assert!(pages.advance(&b, &[1]).is_err(), "nothing was reserved");
    assert!(matches!(
        pages.reserve(&a, 35),
        Err(Error::ContextFull { needed: 41, have: 40 })
    ));
    pages.check().unwrap();
    pages.close(a, false);
    pages.close(b, false);
}

#[test]
fn runs_of_one_sequence_follow_each_other() {
    let mut pages = Pages::new(limits(3));
    let (a, _) = pages.open(&[], 0);
    let batch = pages
        .batch(&[
            Run {
                seq: &a,
                ids: &[1, 2, 3],
            },
            Run {
                seq: &a,
                ids: &[4, 5],
            },
        ])
        .unwrap();
    assert_rules(&batch);
    assert_eq!((batch.n_tables(), pages.ids(&a)), (1, &[1, 2, 3, 4, 5][..]));
    pages.close(a, false);
}
