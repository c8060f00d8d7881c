//! Decoding on a device that chooses tokens by itself: sequences take seats, and steps are given to it ahead of time.

use std::time::Instant;

use super::sequence::Seated;
use super::{Id, Scheduler};
use crate::error::Result;
use crate::transformer::{Decoder, Want};

/// Steps given to a device ahead of what was read.
const AHEAD: usize = 8;
/// The same while prompts are computed too, whose turn comes after what was given.
const AHEAD_OF_PROMPTS: usize = 2;

/// What a scheduler knows of the device's loop.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Which seats are taken; none where there is no such device.
    taken: Vec<bool>,
    lookahead: usize,
    /// Steps given so far, and those that were read.
    given: u64,
    read: u64,
    out: Vec<(usize, Result<u32>)>,
    /// How long a step takes, of late.
    seconds: Option<f64>,
}

impl State {
    pub(super) fn new(decoder: Option<&mut dyn Decoder>) -> Self {
        decoder.map_or_else(Self::default, |decoder| Self {
            taken: vec![false; decoder.seats()],
            lookahead: decoder.lookahead(),
            ..Self::default()
        })
    }

    pub(super) fn exists(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Its state is unknown: it is not used any more.
    pub(super) fn lose(&mut self) {
        *self = Self::default();
    }

    fn unread(&self) -> usize {
        (self.given - self.read) as usize
    }
}

impl Scheduler<'_> {
    /// How long a step of the device takes, if it decodes by itself.
    pub(super) fn device_seconds(&self) -> Option<f64> {
        self.device.seconds
    }

    /// Whether guessing would be faster than letting the device go on: for a sequence that is alone.
    fn would_draft(&self, i: usize) -> bool {
        let sequence = &self.running[i];
        let Some(hits) = sequence.speculator.as_ref().and_then(|s| s.confidence()) else {
            return false;
        };
        self.running.len() == 1
            && (self.options.drafts == super::Drafts::All
                || self
                    .pace
                    .best(self.device.seconds, 1.0, 1, hits, sequence.draft_max)
                    > 0)
    }

    /// Puts those whose prompts are computed on seats of the device.
    pub(super) fn take_seats(&mut self) {
        if !self.device.exists() {
            return;
        }
        for i in 0..self.running.len() {
            let sequence = &self.running[i];
            let wants = sequence.decodes() && sequence.seated.is_none() && !sequence.is_paused;
            if !wants || !sequence.suits_device() || self.would_draft(i) {
                continue;
            }
            let Some(seat) = self.device.taken.iter().position(|taken| !taken) else {
                return;
            };
            match self.take_seat(i, seat) {
                Ok(true) => {}
                Ok(false) => self.running[i].is_refused = self.running[i].pages.is_some(),
                Err(error) => {
                    let mut ids = self.seated();
                    ids.push(self.running[i].id);
                    self.device.lose();
                    return self.fail_step(ids, &error);
                }
            }
        }
    }

    fn take_seat(&mut self, i: usize, seat: usize) -> Result<bool> {
        if !self.hold(i, 1)? {
            return Ok(false);
        }
        if self.pages.has_copies() {
            let copies = self.pages.batch(&[])?;
            self.backend.step(&copies, Want::Nothing)?;
        }
        let sequence = &mut self.running[i];
        let Some((pages, decoder)) = sequence.pages.as_ref().zip(self.backend.decoder()) else {
            return Ok(false);
        };
        let start = self.pages.start(pages, sequence.text[sequence.computed])?;
        if !decoder.seat(seat, start, &sequence.sampler)? {
            return Ok(false);
        }
        let first = self.device.given;
        sequence.seated = Some(Seated { seat, first });
        self.device.taken[seat] = true;
        Ok(true)
    }

    /// Takes `running[i]` off its seat, if it has one. What the device still computes for it is dropped.
    pub(super) fn leave_seat(&mut self, i: usize) {
        let Some(Seated { seat, .. }) = self.running[i].seated.take() else {
            return;
        };
        if let Some(decoder) = self.backend.decoder() {
            decoder.leave(seat);
        }
        if let Some(taken) = self.device.taken.get_mut(seat) {
            *taken = false;
        }
    }

    /// The requests that have a seat.
    fn seated(&self) -> Vec<Id> {
        let seated = self.running.iter().filter(|s| s.seated.is_some());
        seated.map(|s| s.id).collect()
    }

    /// Reads the steps that were given and are of no use any more; false where the device fails.
    pub(super) fn read_rest(&mut self) -> bool {
        while self.device.unread() > 0 {
            self.device.read += 1;
            self.device.out.clear();
            let read = self
                .backend
                .decoder()
                .map(|decoder| decoder.next(&mut self.device.out));
            if !matches!(read, Some(Ok(()))) {
                return false;
            }
        }
        true
    }

    /// One token of each sequence that has a seat.
    pub(super) fn decode_on_device(&mut self) {
        if self.device.exists()
            && let Err(error) = self.try_decode_on_device()
        {
            let ids = self.seated();
            self.device.lose();
            self.fail_step(ids, &error);
        }
    }

    fn try_decode_on_device(&mut self) -> Result<()> {
        let begun = Instant::now();
        if self.running.iter().any(|s| s.seated.is_some()) {
            self.give_steps()?;
        }
        // Steps of which everybody has left are read for nothing.
        while self.device.unread() > 0 {
            let Some(decoder) = self.backend.decoder() else {
                return Ok(());
            };
            self.device.out.clear();
            decoder.next(&mut self.device.out)?;
            self.device.read += 1;
            if !self.device.out.is_empty() {
                break;
            }
        }
        if self.take_tokens() {
            let seconds = begun.elapsed().as_secs_f64();
            let mean = self.device.seconds.get_or_insert(seconds);
            *mean += (seconds.min(2.0 * *mean) - *mean) / 8.0;
        }
        Ok(())
    }

    /// Gives the device as many steps as it may go ahead.
    fn give_steps(&mut self) -> Result<()> {
        let has_others = self.running.iter().any(|s| s.seated.is_none() && !s.is_paused);
        let ahead = if has_others { AHEAD_OF_PROMPTS } else { AHEAD }.min(self.device.lookahead);
        let unread = self.device.unread();
        // Half of them at a time, so that the device never waits for more.
        if unread > ahead / 2 {
            return Ok(());
        }
        // One that had better guess leaves when all that was computed for it was read.
        if let Some(i) =
            (0..self.running.len()).find(|&i| self.running[i].seated.is_some() && self.would_draft(i))
        {
            if unread == 0 {
                self.leave_seat(i);
            }
            return Ok(());
        }
        let context = self.backend.spec().context;
        let flight = |state: &State, first: u64| (state.given - first.max(state.read)) as usize;
        let mut steps = ahead - unread;
        for sequence in &self.running {
            if let Some(Seated { first, .. }) = sequence.seated {
                let end = sequence.computed + flight(&self.device, first);
                steps = steps.min(context.saturating_sub(end));
            }
        }
        if steps == 0 {
            return Ok(());
        }
        for i in 0..self.running.len() {
            let Some(Seated { seat, first }) = self.running[i].seated else {
                continue;
            };
            let before = self.running[i]
                .pages
                .as_ref()
                .map(|pages| self.pages.table(pages).len());
            if !self.hold(i, flight(&self.device, first) + steps)? {
                continue;
            }
            let sequence = &self.running[i];
            if let Some((pages, decoder)) = sequence.pages.as_ref().zip(self.backend.decoder())
                && before != Some(self.pages.table(pages).len())
            {
                decoder.pages(seat, self.pages.table(pages))?;
            }
        }
        // Some may have been set back.
        if self.running.iter().any(|s| s.seated.is_some())
            && let Some(decoder) = self.backend.decoder()
        {
            decoder.ahead(steps)?;
            self.device.given += steps as u64;
        }
        Ok(())
    }

    /// Hands out the tokens that were read last; false where there were none.
    fn take_tokens(&mut self) -> bool {
        let mut out = std::mem::take(&mut self.device.out);
        let (now, step) = (Instant::now(), self.device.read.wrapping_sub(1));
        let any = !out.is_empty();
        if any {
            self.stats.failures = 0;
        }
        for (seat, id) in out.drain(..) {
            let sits = |s: &super::Sequence| s.seated.is_some_and(|s| s.seat == seat && s.first <= step);
            let Some(i) = self.running.iter().position(sits) else {
                continue;
            };
            let id = match id {
                Ok(id) => id,
                Err(error) => {
                    self.taken(i, Err(error));
                    continue;
                }
            };
            let sequence = &mut self.running[i];
            let last = sequence.text[sequence.computed];
            self.report.batch += 1;
            if sequence.answered() == 0 {
                self.stats.prompt_tokens += 1;
                self.report.prompt_tokens += 1;
            }
            self.report.tokens += 1;
            let advanced = match &sequence.pages {
                Some(pages) => self.pages.advance(pages, &[last]),
                None => Ok(()),
            };
            sequence.advance(1, now, &mut self.events);
            sequence.sampler.chosen(id);
            self.stats.tokens += 1;
            let taken = advanced.and_then(|()| sequence.take(id, None, now, &mut self.events));
            self.taken(i, taken);
        }
        self.device.out = out;
        any
    }
}
