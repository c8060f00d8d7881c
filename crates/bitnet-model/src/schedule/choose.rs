//! What is chosen after a step: from which logits, under which masks, and of whom side by side.

use std::num::NonZero;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::time::Instant;

use bitnet_cpu::{Ask, Best};

use super::request::{Event, FinishReason};
use super::sequence::{Sequence, guarded};
use crate::error::Result;
use crate::sampler::{Chosen, Logits, Need};
use crate::transformer::Backend;

/// What a step computes of one sequence.
#[derive(Debug)]
pub(super) struct Part {
    /// Its place among those that run.
    pub(super) at: usize,
    /// The next tokens of its text.
    pub(super) n: usize,
    /// What is guessed to follow on them.
    pub(super) draft: Vec<u32>,
    /// Those of the next tokens whose logits say how likely the prompt was.
    pub(super) scored: Range<usize>,
    /// Whether the last of them is the end of the text, so that a token is chosen after it, and after each guess.
    pub(super) chooses: bool,
}

impl Part {
    /// Rows of logits that tokens are chosen from.
    pub(super) fn n_choices(&self) -> usize {
        if self.chooses { 1 + self.draft.len() } else { 0 }
    }
}

/// What a mask allows at each row of a part; none where there is no mask.
pub(super) type Allowed = Option<Result<Vec<Vec<u32>>>>;

/// What the masks allow at every row: before each guess is known to be right, as if it were.
pub(super) fn masks(parts: &[Part], running: &mut [Sequence], vocab: usize) -> Vec<Allowed> {
    let of_part = |part: &Part| {
        let mask = running[part.at].mask.as_mut().filter(|_| part.chooses)?;
        let walk = || -> Result<Vec<Vec<u32>>> {
            let mut all: Vec<Vec<u32>> = Vec::with_capacity(part.n_choices());
            let mut taken = 0;
            for row in 0..part.n_choices() {
                let mut bits = vec![0u32; vocab.div_ceil(32)];
                mask.allowed(&mut bits)?;
                let guess = part.draft.get(row).copied();
                let goes_on = guess.is_some_and(|id| bits[id as usize / 32] >> (id % 32) & 1 == 1);
                all.push(bits);
                let Some(id) = guess.filter(|_| goes_on) else {
                    break;
                };
                taken += 1;
                if mask.accept(id)? {
                    break;
                }
            }
            mask.rollback(taken)?;
            Ok(all)
        };
        Some(guarded(walk))
    };
    parts.iter().map(of_part).collect()
}

/// The logits that the choices of all parts depend on, of the rows that the head multiplies.
pub(super) fn find(
    backend: &mut dyn Backend,
    hidden: &[f32],
    parts: &[Part],
    needs: &[Option<Need>],
    allowed: &[Allowed],
) -> Result<Vec<Best>> {
    let mut asks = Vec::new();
    for (p, (part, need)) in parts.iter().zip(needs).enumerate() {
        let Some(need) = need else { continue };
        let masks = allowed.get(p).and_then(|allowed| allowed.as_ref()?.as_ref().ok());
        asks.extend((0..part.n_choices()).map(|row| Ask {
            k: need.k,
            known: &need.known,
            allowed: masks.and_then(|masks| masks.get(row)).map(Vec::as_slice),
        }));
    }
    match backend.certified() {
        Some(head) => head.best(hidden, &asks),
        None => Ok(Vec::new()),
    }
}

/// A first choice to be made.
struct First<'a> {
    /// Of which part.
    p: usize,
    sequence: &'a mut Sequence,
    logits: Logits<'a>,
    bits: Option<&'a [u32]>,
}

/// The first choice of each part, where several choose from all logits of a large vocabulary: side by side, since one alone may take
/// longer than a device takes for the step. Empty, or `None` for a part, where it is left to [`choose`].
pub(super) fn choose_first(
    parts: &[Part],
    running: &mut [Sequence],
    logits: &[f32],
    allowed: &[Allowed],
    vocab: usize,
) -> Vec<Option<Result<Chosen>>> {
    /// Logits from which starting threads costs less than what they take off. In debug builds fewer, so that the small models of
    /// tests come here too; no token depends on it.
    const WORTHWHILE: usize = if cfg!(debug_assertions) { 1 << 10 } else { 1 << 15 };
    static THREADS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZero::get));
    if logits.len() < WORTHWHILE || *THREADS == 1 {
        return Vec::new();
    }
    let mut sequences: Vec<Option<&mut Sequence>> = running.iter_mut().map(Some).collect();
    let mut tasks = Vec::new();
    let mut row = 0;
    for (p, part) in parts.iter().enumerate() {
        let first = row + part.scored.len();
        row = first + part.n_choices();
        let bits = match allowed.get(p) {
            // The request fails with it.
            Some(Some(Err(_))) => continue,
            Some(Some(Ok(rows))) => rows.first().map(Vec::as_slice),
            _ => None,
        };
        if let Some(sequence) = sequences[part.at].take_if(|_| part.chooses) {
            let logits = Logits::All(&logits[first * vocab..(first + 1) * vocab]);
            tasks.push(First {
                p,
                sequence,
                logits,
                bits,
            });
        }
    }
    if tasks.len() < 2 {
        return Vec::new();
    }
    let run = |tasks: &mut [First<'_>]| -> Vec<(usize, Result<Chosen>)> {
        let choose = |task: &mut First<'_>| (task.p, task.sequence.choose(task.logits, task.bits));
        tasks.iter_mut().map(choose).collect()
    };
    let each = tasks.len().div_ceil(*THREADS);
    let mut firsts: Vec<Option<Result<Chosen>>> = parts.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let (mine, others) = tasks.split_at_mut(each);
        let others: Vec<_> = others
            .chunks_mut(each)
            .map(|tasks| scope.spawn(|| run(tasks)))
            .collect();
        let mut chosen = run(mine);
        for thread in others {
            chosen.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        for (p, chosen) in chosen {
            firsts[p] = Some(chosen);
        }
    });
    firsts
}

/// Chooses after the end of the text, and on while the guesses are what is chosen: how many were, and why it ends. `first` is the first
/// choice, where it was made.
pub(super) fn choose<'l>(
    sequence: &mut Sequence,
    part: &Part,
    rows: impl Iterator<Item = Logits<'l>>,
    allowed: Allowed,
    mut first: Option<Result<Chosen>>,
    now: Instant,
    events: &mut Vec<(super::request::Id, Event)>,
) -> Result<(usize, Option<FinishReason>)> {
    let allowed = allowed.transpose()?;
    let mut accepted = 0;
    for (row, logits) in rows.enumerate() {
        let bits = allowed.as_ref().and_then(|rows| rows.get(row));
        let chosen = match first.take() {
            Some(chosen) => chosen?,
            None => sequence.choose(logits, bits.map(Vec::as_slice))?,
        };
        let end = sequence.take(chosen.id, chosen.logprob, now, events)?;
        let is_right = part.draft.get(row) == Some(&chosen.id);
        if let Some(end) = end {
            // The last token is not needed in the cache, though it may be there.
            return Ok((accepted, Some(end)));
        }
        if !is_right {
            break;
        }
        accepted += 1;
    }
    Ok((accepted, None))
}
