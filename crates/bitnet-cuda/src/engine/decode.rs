//! Decoding on the device: recorded steps that feed their own choice back, for the sequences that have a seat; the host
//! reads their tokens behind it.

use super::batch::Attention;
use super::choice::{Choice, Kernels, RING};
use super::seats::Seats;
use super::{Engine, Rows};
use crate::error::{Error, Result};
use crate::graph::Graph;
use bitnet_kernels::sample::FORBIDDEN;
use bitnet_kernels::token::NO_TOKEN;
use bitnet_layout::Token;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a step may take before the host asks the driver what is wrong.
const PATIENCE: Duration = Duration::from_secs(2);

/// Decode steps of a long recording of one sequence. The GPU idles between two graph launches, but kernels inside one graph
/// overlap. A step of several sequences takes so long that this does not show.
const GROUP: usize = 8;

/// Steps of several sequences that the device is given at a time.
const IN_FLIGHT: usize = 8;

/// Recordings kept; the one that was not used for longest goes first.
const MAX_RECORDINGS: usize = 64;

/// A recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Rows.
    rows: usize,
    /// Steps of 64 keys that its attention has room for.
    blocks: usize,
    /// Decode steps: 1 or [`GROUP`].
    steps: usize,
    /// The kernels that choose.
    kernels: Kernels,
    /// Whether a certified head is screened.
    screens: bool,
}

/// A part of a decode step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedding, and what begins a step.
    Embed,
    /// Norm, quantization, projections to queries, keys and values.
    Qkv,
    /// Rotation, append to the cache, and the steps of the attention; of short contexts on some GPUs their fold too.
    Attention,
    /// Their fold, where it is a kernel of its own.
    Combine,
    /// Norm, quantization, projection back to the residual stream.
    OutProj,
    /// Norm, quantization, gate and up projections, and the gate.
    UpGate,
    /// Norm, quantization, down projection.
    Down,
    /// Final norm and output head.
    Head,
    /// Choice of the next tokens.
    Choose,
}

impl Part {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 9] = [
        Self::Embed,
        Self::Qkv,
        Self::Attention,
        Self::Combine,
        Self::OutProj,
        Self::UpGate,
        Self::Down,
        Self::Head,
        Self::Choose,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Qkv => "qkv",
            Self::Attention => "attention",
            Self::Combine => "attention combine",
            Self::OutProj => "out_proj",
            Self::UpGate => "up_gate",
            Self::Down => "down",
            Self::Head => "head",
            Self::Choose => "choose",
        }
    }
}

/// Recorded decode steps, and when each was used last.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    graphs: BTreeMap<Key, (Graph, u64)>,
    uses: u64,
}

impl Recordings {
    /// A recording, where there is one.
    fn get(&mut self, key: Key) -> Option<&Graph> {
        self.uses += 1;
        let (graph, used) = self.graphs.get_mut(&key)?;
        *used = self.uses;
        Some(graph)
    }

    /// Takes out the one that was not used for longest, when there are too many. The driver lets it end where it still runs.
    fn make_room(&mut self) {
        if self.graphs.len() < MAX_RECORDINGS {
            return;
        }
        let oldest = self.graphs.iter().min_by_key(|(_, (_, used))| *used);
        if let Some(key) = oldest.map(|(&key, _)| key) {
            self.graphs.remove(&key);
        }
    }
}

impl Engine {
    /// Steps that may be given to the device and not be read yet.
    pub const LOOKAHEAD: usize = 2 * GROUP;

    /// Sequences that can be decoded at once.
    #[must_use]
    pub fn seats(&self) -> usize {
        self.limits.seats()
    }

    /// Puts a sequence on a free seat: `token` is computed in the next step, and its successor, which is chosen by `choice` or
    /// is the most likely one without, in the one after that. Keys and values before its position are in `pages`.
    ///
    /// # Errors
    /// When the seat is taken or there is none, the token or a page is out of range, another seat writes to one of the pages that
    /// this one would write to, the device cannot choose like this, or fails.
    pub fn seat(
        &mut self,
        seat: usize,
        token: Token,
        pages: &[u32],
        choice: Option<&Choice<'_>>,
    ) -> Result<()> {
        self.seats.check(seat, token, pages)?;
        let row = self.check_choice(choice)?;
        // What was promised before is not for this one.
        self.issue_owed()?;
        let at = self.seats.sit(seat, token, pages, row);
        let outcome = self.begin_row(at, token, choice);
        if outcome.is_err() {
            self.seats.leave(seat);
        }
        outcome
    }

    /// Gives a seat a longer table.
    ///
    /// # Errors
    /// When nobody has the seat, or as for [`Engine::seat`].
    pub fn pages(&mut self, seat: usize, pages: &[u32]) -> Result<()> {
        self.seats.set_pages(seat, pages)
    }

    /// Frees a seat, if it is taken. Steps given to the device before compute it still; what they write is past its end.
    ///
    /// # Errors
    /// When the device fails.
    pub fn leave(&mut self, seat: usize) -> Result<()> {
        match self.seats.leave(seat) {
            Some((from, to)) => self.move_row(from, to),
            None => Ok(()),
        }
    }

    /// Gives the device `steps` more steps, of every sequence that has a seat.
    ///
    /// # Errors
    /// When nobody has one, more than [`Engine::LOOKAHEAD`] steps would be unread, a sequence's pages end before, or the device
    /// fails.
    pub fn ahead(&mut self, steps: usize) -> Result<()> {
        let unread = self.seats.unread().saturating_add(steps);
        if unread > Self::LOOKAHEAD {
            return Err(Error::Request(format!(
                "{unread} decode steps ahead; {} can be",
                Self::LOOKAHEAD
            )));
        }
        self.seats.owe(steps)?;
        self.issue_some()
    }

    /// Gives the device what keeps it busy of the steps that were promised: of several sequences a step for each that is read,
    /// of one whole groups, and less only when it has nothing to do.
    fn issue_some(&mut self) -> Result<()> {
        if self.seats.rows() > 1 {
            while self.seats.owed > 0 && self.seats.issued.len() < IN_FLIGHT {
                self.issue(1)?;
            }
            return Ok(());
        }
        while self.seats.owed >= GROUP {
            self.issue(GROUP)?;
        }
        if self.seats.issued.is_empty() {
            self.issue_owed()?;
        }
        Ok(())
    }

    /// Waits for the oldest step that was not read, and appends the token chosen for every seat that was taken then and is
    /// still by the same sequence: (seat, token), in the order of seats. In place of a token stands why there is none: the model
    /// computed something that is not a number, or penalties leave none. The others do not depend on it; its sequence must leave.
    ///
    /// # Errors
    /// When there is no step to read, or the device fails.
    pub fn next(&mut self, out: &mut Vec<(usize, Result<u32>)>) -> Result<()> {
        self.issue_some()?;
        let Some(step) = self.seats.issued.pop_front() else {
            return Err(Error::Request(
                "no decode step was given to the GPU that was not read".to_owned(),
            ));
        };
        let first = step.number as usize % RING * self.seats();
        // Of idle rows too: a word that is left would be taken for a later step's.
        let mut words = Vec::with_capacity(step.rows);
        for word in &self.ring[first..first + step.rows] {
            let mut since = Instant::now();
            words.push(loop {
                match word.swap(0, Ordering::Acquire) {
                    0 => {}
                    word => break word,
                }
                if since.elapsed() > PATIENCE {
                    // Either this reports what is wrong, or all steps given so far are done and their tokens in the ring.
                    self.stream.synchronize()?;
                    since = Instant::now();
                }
                std::hint::spin_loop();
            });
        }
        let tokens = words.into_iter().map(|word| match word {
            NO_TOKEN => Err(Error::NotFinite),
            FORBIDDEN => Err(Error::Request(
                "the penalties leave no token to choose; lower them".to_owned(),
            )),
            word => Ok(word - 1),
        });
        self.seats.give(&step, tokens, out);
        self.watch_screening(step.rows);
        Ok(())
    }

    /// Gives the device all steps that were promised.
    fn issue_owed(&mut self) -> Result<()> {
        while self.seats.owed > 0 {
            self.issue(1)?;
        }
        Ok(())
    }

    /// Gives the device `steps` of the promised steps: 1 or [`GROUP`].
    fn issue(&mut self, steps: usize) -> Result<()> {
        self.flush(steps)?;
        let kernels = self.seats.kernels();
        let key = Key {
            rows: self.seats.rows(),
            blocks: self.room(self.seats.blocks(steps)),
            steps,
            kernels,
            // Where a row is drawn from all tokens, nothing can be left out.
            screens: self.model.is_certified && !kernels.whole && self.screening.screens(steps),
        };
        self.replay(key)?;
        self.seats.issue(steps);
        Ok(())
    }

    /// Room, in steps of 64 keys, of recordings that need `blocks`: a power of two, so that recordings are few, and blocks that
    /// find nothing to do at most half.
    pub(super) fn room(&self, blocks: usize) -> usize {
        blocks.next_power_of_two().min(self.limits.table_len())
    }

    /// Runs decode steps, which are recorded at their first use.
    fn replay(&mut self, key: Key) -> Result<()> {
        if self.recordings.get(key).is_none() {
            self.recordings.make_room();
            self.plan_decode(key.rows, key.blocks);
            let graph = self.stream.capture(|_| {
                for _ in 0..key.steps {
                    self.step(key.kernels, key.screens, &|_| true)?;
                }
                Ok(())
            })?;
            let uses = self.recordings.uses;
            self.recordings.graphs.insert(key, (graph, uses));
        }
        match self.recordings.get(key) {
            Some(graph) => self.stream.replay(graph),
            None => Ok(()),
        }
    }

    /// Prepares the launches of steps of `rows` rows with room for `blocks` steps of 64 keys.
    pub(super) fn plan_decode(&mut self, rows: usize, blocks: usize) {
        self.batch = rows;
        self.attention = Attention::Decode { steps: blocks };
        self.rows = Rows {
            table_len: self.limits.table_len(),
            ..self.buffers.chooser.rows()
        };
    }

    /// The `wanted` parts of a decode step.
    pub(super) fn step(&self, kernels: Kernels, screens: bool, wanted: &dyn Fn(Part) -> bool) -> Result<()> {
        let Attention::Decode { steps } = self.attention else {
            return Ok(());
        };
        let run = |part: Part, launches: &dyn Fn() -> Result<()>| {
            if wanted(part) { launches() } else { Ok(()) }
        };
        run(Part::Embed, &|| self.embed())?;
        let shares = self.shares(steps);
        let attention = [wanted(Part::Attention), wanted(Part::Combine)];
        self.beside(&shares, || {
            for layer in 0..self.buffers.layers.len() {
                for &share in &shares {
                    run(Part::Qkv, &|| self.qkv_of(share, layer))?;
                    self.attention_decode(share, layer, steps, attention)?;
                    run(Part::OutProj, &|| self.out_proj_of(share, layer))?;
                    run(Part::UpGate, &|| self.up_gate_of(share, layer))?;
                    run(Part::Down, &|| self.down_of(share, layer))?;
                }
            }
            Ok(())
        })?;
        run(Part::Head, &|| self.head_of_step(kernels, screens))?;
        run(Part::Choose, &|| self.choose(kernels, screens))
    }

    /// Brings the device what has changed of the rows, before `steps` more steps.
    pub(super) fn flush(&mut self, steps: usize) -> Result<()> {
        let Self {
            seats,
            uploads,
            stream,
            buffers,
            limits,
            ..
        } = self;
        let (chooser, table_len) = (&buffers.chooser, limits.table_len());
        if seats.needs_state(steps) {
            let state = seats.state();
            uploads.send(stream, chooser.state(), chooser.positions_at(), &[&state])?;
        }
        let stale = std::mem::replace(&mut seats.stale_tables, 0..0);
        if !stale.is_empty() {
            let words = &seats.tables[stale.start * table_len..stale.end * table_len];
            let at = chooser.tables_at() + stale.start * table_len;
            uploads.send(stream, chooser.state(), at, &[words])?;
        }
        Ok(())
    }

    /// The sequences that have a seat.
    pub(super) fn seats_mut(&mut self) -> &mut Seats {
        &mut self.seats
    }
}
