//! Some sequences on a back end, for those who drive its steps themselves.

use std::ops::ControlFlow;

use bitnet_cpu::{Ask, Best};

use crate::error::{Error, Result};
use crate::pages::{Batch, Pages, Run, Seq};
use crate::sampler::{Sampler, best};
use crate::transformer::{Backend, Spec, Want};

/// Sequences of a back end, each by its number, from 0; all of them are empty at first.
///
/// ```
/// use bitnet_model::{Checkpoint, Device, Session, Want, open_backend};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let checkpoint = Checkpoint::open(folder)?;
/// let mut backend = open_backend(&checkpoint, Device::Cpu)?;
/// let mut session = Session::new(backend.as_mut());
/// // Three tokens of a prompt, then one more; the logits of the last one.
/// session.step(&[(0, &[752, 54, 71])], Want::Nothing)?;
/// let logits = session.step(&[(0, &[64])], Want::Logits(&[0]))?;
/// assert_eq!(logits.len(), 768);
/// // Another token in its place.
/// session.rewind(0, 3);
/// session.step(&[(0, &[65])], Want::Nothing)?;
/// # Ok::<(), bitnet_model::Error>(())
/// ```
pub struct Session<'b> {
    backend: &'b mut dyn Backend,
    pages: Pages,
    seqs: Vec<Seq>,
}

impl<'b> Session<'b> {
    /// A session of as many sequences as one step of the back end takes; it has the whole cache for itself.
    pub fn new(backend: &'b mut dyn Backend) -> Self {
        let mut pages = Pages::new(backend.spec());
        let seqs = (0..backend.spec().max_seqs).map(|_| pages.open(&[], 0).0);
        Self {
            seqs: seqs.collect(),
            backend,
            pages,
        }
    }

    /// What the back end holds and can take.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        self.backend.spec()
    }

    /// The back end, for what is not a step of this session.
    pub fn backend(&mut self) -> &mut dyn Backend {
        self.backend
    }

    /// Appends tokens to some sequences, (sequence, ids), and computes them; `want` counts them as they stand here.
    ///
    /// # Errors
    /// As for [`Pages::batch`] and [`Backend::step`]; after a failure of the device the sequences are empty.
    pub fn step(&mut self, runs: &[(usize, &[u32])], want: Want<'_>) -> Result<&[f32]> {
        let batch = self.batch(runs)?;
        let (pages, seqs) = (&mut self.pages, &self.seqs);
        // After a failure nobody knows what is in the cache.
        self.backend
            .step(&batch, want)
            .inspect_err(|_| seqs.iter().for_each(|seq| pages.rewind(seq, 0)))
    }

    /// Appends and computes tokens as [`Session::step`] does, and gives the most likely token after each of `rows`, the lowest id of
    /// equals: without the other logits where the back end has a certified head.
    ///
    /// # Errors
    /// As for [`Session::step`].
    pub fn most_likely(&mut self, runs: &[(usize, &[u32])], rows: &[usize]) -> Result<Vec<u32>> {
        let first = |logits: &[f32]| best(logits).unwrap_or(0);
        if self.backend.certified().is_none() {
            let vocab = self.spec().config.vocab;
            let logits = self.step(runs, Want::Logits(rows))?;
            return Ok(logits.chunks_exact(vocab).map(first).collect());
        }
        let hidden = self.step(runs, Want::Hidden(rows))?.to_vec();
        let ask = Ask {
            k: 1,
            known: &[],
            allowed: None,
        };
        let found = match self.backend.certified() {
            Some(head) => head.best(&hidden, &vec![ask; rows.len()])?,
            None => Vec::new(),
        };
        let id = |found: &Best| {
            let place = first(&found.products);
            found.ids.get(place as usize).copied().unwrap_or(place)
        };
        Ok(found.iter().map(id).collect())
    }

    /// The batch of such a step, which must be run next.
    ///
    /// # Errors
    /// As for [`Pages::batch`], and when there is no such sequence.
    pub fn batch(&mut self, runs: &[(usize, &[u32])]) -> Result<Batch> {
        let run = |&(seq, ids)| {
            let seq = find(&self.seqs, seq)?;
            Ok(Run { seq, ids })
        };
        let runs: Vec<Run<'_>> = runs.iter().map(run).collect::<Result<_>>()?;
        self.pages.batch(&runs)
    }

    /// Tokens that sequence `seq` has; none where there is no such sequence.
    #[must_use]
    pub fn ids(&self, seq: usize) -> &[u32] {
        self.seqs.get(seq).map_or(&[], |seq| self.pages.ids(seq))
    }

    /// Forgets the tokens of sequence `seq` from position `len` on.
    pub fn rewind(&mut self, seq: usize, len: usize) {
        if let Some(seq) = self.seqs.get(seq) {
            self.pages.rewind(seq, len);
        }
    }

    /// Decodes on the device, where it can: computes `first`, one token of each of some sequences, (sequence, id), hands the
    /// tokens that `samplers` would choose, in the same order, to `on_tokens`, which says whether to go on, and computes
    /// them in turn, for at most `n` steps. Returns false, having done nothing, where the device cannot.
    ///
    /// # Errors
    /// As for [`crate::Decoder`], and when the context or the pages end before `n` steps.
    pub fn decode(
        &mut self,
        first: &[(usize, u32)],
        samplers: &[Sampler],
        n: usize,
        mut on_tokens: impl FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<bool> {
        let Self { backend, pages, seqs } = self;
        let Some(decoder) = backend.decoder() else {
            return Ok(false);
        };
        if first.len() > decoder.seats() || first.len() != samplers.len() {
            return Ok(false);
        }
        let mut last: Vec<u32> = first.iter().map(|&(_, id)| id).collect();
        let mut sit = || {
            for (seat, (&(seq, id), sampler)) in first.iter().zip(samplers).enumerate() {
                let seq = find(seqs, seq)?;
                pages.reserve(seq, n)?;
                if !decoder.seat(seat, pages.start(seq, id)?, sampler)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let seated = sit();
        if !matches!(seated, Ok(true)) {
            (0..first.len()).for_each(|seat| decoder.leave(seat));
            return seated;
        }
        let mut decode = || {
            let mut found = Vec::new();
            let (mut given, mut read) = (0, 0);
            while read < n {
                // Half of what is possible at a time, so that the device never waits for more.
                let room = decoder.lookahead() - (given - read);
                if given < n && room >= decoder.lookahead().div_ceil(2) {
                    let steps = room.min(n - given);
                    decoder.ahead(steps)?;
                    given += steps;
                }
                decoder.next(&mut found)?;
                read += 1;
                for (&(seq, _), id) in first.iter().zip(&last) {
                    pages.advance(&seqs[seq], &[*id])?;
                }
                for (seat, id) in found.drain(..) {
                    last[seat] = id?;
                }
                if on_tokens(&last).is_break() {
                    break;
                }
            }
            Ok(true)
        };
        let result = decode();
        (0..first.len()).for_each(|seat| decoder.leave(seat));
        // After a failure nobody knows what is in the cache.
        result.inspect_err(|_| seqs.iter().for_each(|seq| pages.rewind(seq, 0)))
    }
}

fn find(seqs: &[Seq], index: usize) -> Result<&Seq> {
    seqs.get(index)
        .ok_or_else(|| Error::Request(format!("sequence {index} is not below {}", seqs.len())))
}
