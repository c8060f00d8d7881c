//! Who sits where: the sequences that the device decodes, and what the host knows of them. No device here.
//!
//! A *seat* is the caller's name for a sequence; a *row* is its place in the batch of a step. Rows have no holes: when a
//! sequence leaves, the last row moves into its place. Steps are recorded for a few numbers of rows only, so that rows past
//! the last sequence may be computed too: *idle* rows, whose tables are [`Cache::idle_entry`](super::cache::Cache).

use super::architecture::MAX_SEATS;
use super::batch::Bounds;
use super::choice::{Kernels, Row};
use crate::error::{Error, Result};
use bitnet_kernels::cache::PAGE;
use bitnet_kernels::sample::Settings;
use bitnet_layout::Token;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Numbers of rows that steps are recorded for.
const BUCKETS: [usize; 13] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];

/// Positions that idle rows may be at: those of one page.
const IDLE_STEPS: usize = PAGE as usize;

/// Rows that a step of `rows` sequences computes, where there are `seats` seats.
pub(super) fn bucket(rows: usize, seats: usize) -> usize {
    let fits = BUCKETS.into_iter().find(|&bucket| bucket >= rows);
    fits.unwrap_or(MAX_SEATS).min(seats)
}

/// A sequence in its row.
#[derive(Clone, Debug)]
pub(super) struct Sitting {
    pub(super) seat: usize,
    /// Tells it from those that had the seat before.
    visit: u64,
    /// Position that the next step computes.
    pub(super) position: usize,
    /// How its tokens are chosen.
    pub(super) row: Row,
    /// Pages of its table.
    pages: usize,
}

/// A step that was given to the device and not read.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    /// Seat and visit of every row.
    sitting: Vec<(usize, u64)>,
    /// Rows that were computed, idle ones included.
    pub(super) rows: usize,
    /// Its number: its place in the ring.
    pub(super) number: u32,
}

/// The rows of the next step, and the steps under way.
#[derive(Debug)]
pub(super) struct Seats {
    bounds: Bounds,
    /// What a table holds where it has no page.
    idle_entry: u32,
    pub(super) sitting: Vec<Sitting>,
    /// (seats, table_len): the tables as the device shall have them.
    pub(super) tables: Vec<u32>,
    /// Rows whose tables the device has not.
    pub(super) stale_tables: Range<usize>,
    /// Whether the device has other positions, steps or settings than these rows.
    pub(super) is_stale: bool,
    /// Steps since idle rows were at position 0.
    idle_steps: usize,
    /// Steps given to the device, of all time.
    pub(super) number: u32,
    /// Steps promised and not given to the device yet.
    pub(super) owed: usize,
    pub(super) issued: VecDeque<Issued>,
    /// The seat that may write to a page.
    writers: BTreeMap<u32, usize>,
    visits: u64,
}

impl Seats {
    pub(super) fn new(bounds: Bounds, idle_entry: u32) -> Self {
        let (seats, table_len) = (bounds.limits.seats(), bounds.limits.table_len());
        Self {
            bounds,
            idle_entry,
            sitting: Vec::new(),
            tables: vec![idle_entry; seats * table_len],
            stale_tables: 0..seats,
            is_stale: true,
            idle_steps: 0,
            number: 0,
            owed: 0,
            issued: VecDeque::new(),
            writers: BTreeMap::new(),
            visits: 0,
        }
    }

    /// Rows that the next step computes.
    pub(super) fn rows(&self) -> usize {
        bucket(self.sitting.len(), self.bounds.limits.seats())
    }

    /// Steps that the caller has not read.
    pub(super) fn unread(&self) -> usize {
        self.issued.len() + self.owed
    }

    /// The row of a seat.
    pub(super) fn row_of(&self, seat: usize) -> Option<usize> {
        self.sitting.iter().position(|s| s.seat == seat)
    }

    /// Checks what would sit down.
    pub(super) fn check(&self, seat: usize, token: Token, pages: &[u32]) -> Result<()> {
        let seats = self.bounds.limits.seats();
        if seat >= seats {
            return Err(Error::Request(format!("seat {seat} of {seats}")));
        }
        if self.row_of(seat).is_some() {
            return Err(Error::Request(format!("seat {seat} is taken")));
        }
        self.bounds.check_token(token)?;
        self.bounds.check_table(pages, token.pos as usize + 1)?;
        self.check_writers(seat, token.pos as usize, pages)
    }

    /// Refuses pages that would be written to and are another's to write.
    fn check_writers(&self, seat: usize, position: usize, pages: &[u32]) -> Result<()> {
        let own = &pages[(position / PAGE as usize).min(pages.len())..];
        let other = own.iter().find_map(|page| {
            let writer = self.writers.get(page).filter(|&&writer| writer != seat);
            writer.map(|writer| (page, writer))
        });
        match other {
            Some((page, writer)) => Err(Error::Request(format!(
                "seat {seat} would write to page {page}, which seat {writer} writes to"
            ))),
            None => Ok(()),
        }
    }

    /// Puts a checked sequence into the next row, which is returned.
    pub(super) fn sit(&mut self, seat: usize, token: Token, pages: &[u32], row: Row) -> usize {
        self.visits += 1;
        self.sitting.push(Sitting {
            seat,
            visit: self.visits,
            position: token.pos as usize,
            row,
            pages: 0,
        });
        let at = self.sitting.len() - 1;
        self.set_table(at, pages);
        self.is_stale = true;
        at
    }

    /// Gives a taken seat another table.
    pub(super) fn set_pages(&mut self, seat: usize, pages: &[u32]) -> Result<()> {
        let Some(at) = self.row_of(seat) else {
            return Err(Error::Request(format!("seat {seat} is not taken")));
        };
        let position = self.sitting[at].position;
        self.bounds.check_table(pages, position)?;
        self.check_writers(seat, position, pages)?;
        self.set_table(at, pages);
        Ok(())
    }

    fn set_table(&mut self, at: usize, pages: &[u32]) {
        let table_len = self.bounds.limits.table_len();
        let Sitting { seat, position, .. } = self.sitting[at];
        self.forget_writer(at);
        self.sitting[at].pages = pages.len();
        let own = &pages[(position / PAGE as usize).min(pages.len())..];
        self.writers.extend(own.iter().map(|&page| (page, seat)));
        let table = &mut self.tables[at * table_len..][..table_len];
        table.fill(self.idle_entry);
        table[..pages.len()].copy_from_slice(pages);
        self.touch(at);
    }

    /// Lets others write to the pages of a row.
    fn forget_writer(&mut self, at: usize) {
        let Sitting { seat, pages, .. } = self.sitting[at];
        let table = &self.tables[at * self.bounds.limits.table_len()..][..pages];
        for page in table {
            if self.writers.get(page) == Some(&seat) {
                self.writers.remove(page);
            }
        }
    }

    fn touch(&mut self, row: usize) {
        let Range { start, end } = self.stale_tables;
        self.stale_tables = if start == end {
            row..row + 1
        } else {
            start.min(row)..end.max(row + 1)
        };
    }

    /// Frees a seat. Returns where the last row is and where it goes, when it has to move.
    pub(super) fn leave(&mut self, seat: usize) -> Option<(usize, usize)> {
        let at = self.row_of(seat)?;
        let last = self.sitting.len() - 1;
        self.forget_writer(at);
        self.sitting.swap_remove(at);
        let table_len = self.bounds.limits.table_len();
        self.tables
            .copy_within(last * table_len..(last + 1) * table_len, at * table_len);
        self.tables[last * table_len..][..table_len].fill(self.idle_entry);
        self.touch(at);
        self.touch(last);
        self.is_stale = true;
        if self.sitting.is_empty() {
            // Nobody is left to compute them for; who asked for them still reads them.
            let number = self.number;
            let none = || Issued {
                sitting: Vec::new(),
                rows: 0,
                number,
            };
            self.issued.extend(std::iter::repeat_with(none).take(self.owed));
            self.owed = 0;
        }
        (at != last).then_some((last, at))
    }

    /// Promises `steps` more steps.
    pub(super) fn owe(&mut self, steps: usize) -> Result<()> {
        if self.sitting.is_empty() {
            return Err(Error::Request("nobody has a seat to decode from".to_owned()));
        }
        for s in &self.sitting {
            let end = s.position + self.owed + steps;
            if end > s.pages * PAGE as usize || end > self.bounds.limits.context {
                return Err(Error::Request(format!(
                    "decoding seat {} up to position {end}: its {} pages of {PAGE} positions end before, or the context of {}",
                    s.seat, s.pages, self.bounds.limits.context
                )));
            }
        }
        self.owed += steps;
        Ok(())
    }

    /// Steps of 64 keys that `steps` steps from now on need room for, exactly.
    pub(super) fn blocks(&self, steps: usize) -> usize {
        let last = self.sitting.iter().map(|s| s.position).max().unwrap_or(0) + steps - 1;
        last / PAGE as usize + 1
    }

    /// The kernels that choose for all of these rows.
    pub(super) fn kernels(&self) -> Kernels {
        let all = self.sitting.iter().map(|s| s.row.kernels);
        all.reduce(Kernels::and).unwrap_or_default()
    }

    /// Whether the device needs [`Seats::state`] before `steps` more steps.
    pub(super) fn needs_state(&self, steps: usize) -> bool {
        let has_idle = self.rows() > self.sitting.len();
        self.is_stale || (has_idle && self.idle_steps + steps > IDLE_STEPS)
    }

    /// Position, number of the next step, and settings of all rows, one after the other: what the device shall have.
    pub(super) fn state(&mut self) -> Vec<u32> {
        let seats = self.bounds.limits.seats();
        let idle = Row::default();
        let row = |i: usize| self.sitting.get(i);
        let mut words: Vec<u32> = (0..seats)
            .map(|i| row(i).map_or(0, |s| s.position as u32))
            .collect();
        words.resize(2 * seats, self.number);
        words.extend((0..seats).flat_map(|i| row(i).map_or(&idle, |s| &s.row).settings));
        debug_assert_eq!(words.len(), seats * (2 + Settings::WORDS));
        self.is_stale = false;
        self.idle_steps = 0;
        words
    }

    /// Notes that `steps` of the promised steps were given to the device.
    pub(super) fn issue(&mut self, steps: usize) {
        for _ in 0..steps {
            self.issued.push_back(Issued {
                sitting: self.sitting.iter().map(|s| (s.seat, s.visit)).collect(),
                rows: self.rows(),
                number: self.number,
            });
            self.number = self.number.wrapping_add(1);
        }
        for s in &mut self.sitting {
            s.position += steps;
        }
        self.idle_steps += steps;
        self.owed -= steps;
    }

    /// Appends the tokens of a step for those who still sit where they sat, in the order of the seats.
    pub(super) fn give<T>(
        &self,
        step: &Issued,
        tokens: impl IntoIterator<Item = T>,
        out: &mut Vec<(usize, T)>,
    ) {
        let first = out.len();
        for (row, (&(seat, _), token)) in step.sitting.iter().zip(tokens).enumerate() {
            if self.is_wanted(step, row) {
                out.push((seat, token));
            }
        }
        out[first..].sort_unstable_by_key(|(seat, _)| *seat);
    }

    /// Whether row `row` of a step is of a sequence that still sits there.
    pub(super) fn is_wanted(&self, step: &Issued, row: usize) -> bool {
        let Some(&then) = step.sitting.get(row) else {
            return false;
        };
        let is_same = |s: &Sitting| (s.seat, s.visit) == then;
        // Most are where they were.
        self.sitting.get(row).is_some_and(is_same) || self.sitting.iter().any(is_same)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;

    const IDLE: u32 = u32::MAX;

    fn seats() -> Seats {
        let bounds = Bounds {
            limits: Limits {
                context: 256,
                n_seqs: 6,
                max_batch: 8,
                n_pages: 20,
            },
            vocab: 100,
            n_heads: 4,
            n_kv_heads: 2,
            padded: 64,
        };
        Seats::new(bounds, IDLE)
    }

    fn sit(seats: &mut Seats, seat: usize, pos: u32, pages: &[u32]) -> Result<usize> {
        let token = Token { id: 1, pos };
        seats.check(seat, token, pages)?;
        Ok(seats.sit(seat, token, pages, Row::default()))
    }

    #[test]
    fn rows_have_no_holes() {
        let mut seats = seats();
        for (seat, page) in [(5, 1), (0, 2), (3, 3)] {
            sit(&mut seats, seat, 10, &[page]).unwrap();
        }
        assert_eq!((seats.rows(), seats.row_of(3)), (4, Some(2)));
        assert_eq!(seats.leave(5), Some((2, 0)));
        assert_eq!(
            (seats.row_of(3), seats.row_of(0), seats.row_of(5)),
            (Some(0), Some(1), None)
        );
        assert_eq!(
            seats.tables[..12],
            [3, IDLE, IDLE, IDLE, 2, IDLE, IDLE, IDLE, IDLE, IDLE, IDLE, IDLE]
        );
        assert_eq!(seats.leave(0), None);
        assert_eq!(seats.leave(0), None);
        assert_eq!(seats.rows(), 1);
        let state = seats.state();
        assert_eq!(state[..12], [10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn tokens_go_to_those_who_asked_for_them() {
        let mut seats = seats();
        sit(&mut seats, 4, 0, &[1]).unwrap();
        sit(&mut seats, 1, 0, &[2]).unwrap();
        seats.owe(2).unwrap();
        seats.issue(2);
        assert_eq!(
            (seats.unread(), seats.sitting[0].position, seats.number),
            (2, 2, 2)
        );
        let step = seats.issued.pop_front().unwrap();
        let mut out = Vec::new();
        seats.give(&step, [70, 80], &mut out);
        assert_eq!(out, [(1, 80), (4, 70)]);
        // Another one on the same seat does not get what was computed for the first.
        seats.leave(4);
        sit(&mut seats, 4, 0, &[1]).unwrap();
        let step = seats.issued.pop_front().unwrap();
        out.clear();
        seats.give(&step, [71, 81], &mut out);
        assert_eq!(out, [(1, 81)]);
        assert!(!seats.is_wanted(&step, 0) && seats.is_wanted(&step, 1));
        // Steps that were promised to somebody who left are steps of nobody.
        seats.leave(1);
        seats.owe(3).unwrap();
        seats.leave(4);
        assert_eq!((seats.unread(), seats.owed), (3, 0));
        assert!(seats.owe(1).is_err());
    }

    #[test]
    fn idle_rows_stay_in_one_page() {
        let mut seats = seats();
        for (seat, page) in [(0, 1), (1, 2), (2, 3)] {
            sit(&mut seats, seat, 0, &[page, page + 3]).unwrap();
        }
        assert!(seats.needs_state(1));
        seats.state();
        seats.owe(64).unwrap();
        assert!(!seats.needs_state(64));
        seats.issue(64);
        assert!(seats.needs_state(1));
        let state = seats.state();
        assert_eq!(state[..12], [64, 64, 64, 0, 0, 0, 64, 64, 64, 64, 64, 64]);
    }

    #[test]
    fn what_the_device_must_not_do_is_refused() {
        let mut seats = seats();
        sit(&mut seats, 0, 70, &[1, 2]).unwrap();
        let refused = |result: Result<usize>, what: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refused(sit(&mut seats, 0, 0, &[3]), "seat 0 is taken");
        refused(sit(&mut seats, 6, 0, &[3]), "seat 6 of 6");
        refused(sit(&mut seats, 1, 64, &[3]), "1 pages for 65 positions");
        refused(sit(&mut seats, 1, 0, &[20]), "page 20 of the 20 pages");
        // Page 2 is written to by the first; page 1 is only read.
        refused(sit(&mut seats, 1, 65, &[1, 2]), "page 2, which seat 0 writes to");
        sit(&mut seats, 1, 65, &[1, 3]).unwrap();
        refused(
            seats.set_pages(1, &[1, 3, 2]).map(|()| 0),
            "page 2, which seat 0 writes to",
        );
        refused(seats.set_pages(2, &[4]).map(|()| 0), "seat 2 is not taken");
        seats.set_pages(1, &[1, 3, 4]).unwrap();
        refused(seats.owe(59).map(|()| 0), "seat 0 up to position 129");
        seats.owe(58).unwrap();
    }
}
