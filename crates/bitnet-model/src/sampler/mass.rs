//! Draws from a whole vocabulary, or from more of it than is worth sorting.
//!
//! Tokens weigh integers here ([`bitnet_layout::draw::mass`]), whose sums are exact. So the token that is drawn does not depend on the
//! order in which weights are added, and a device that adds them up with many threads draws the same one.

use bitnet_layout::draw::{Cut, MAX_TOKENS, mass, nucleus, ordered, place, share, unordered};

use crate::{Error, Result};

/// What is drawn from, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    pub(super) temperature: f32,
    /// Fewer than the logits; `None` keeps all.
    pub(super) top_k: Option<usize>,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
    /// 53 bits.
    pub(super) random: u64,
}

impl Draw {
    /// The index of the drawn logit; `None` where all are negative infinity. `masses` is scratch.
    ///
    /// # Errors
    /// When there are more logits than masses can be added up of.
    pub(super) fn from(&self, logits: &[f32], masses: &mut Vec<u64>) -> Result<Option<u32>> {
        if logits.len() > MAX_TOKENS as usize {
            return Err(Error::Request(format!(
                "a vocabulary of {} tokens; {MAX_TOKENS} can be drawn from, set top-k to 256 or less for more",
                logits.len()
            )));
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return Ok(None);
        }
        let mut cut = Cut::default();
        if let Some(k) = self.top_k {
            cut = find(logits, |_| 1, |_| 1, k as u64);
        }
        if self.top_p < 1.0 {
            weigh(logits, max, 1.0, masses);
            let of_tie = mass(share(unordered(cut.above), max, 1.0));
            let above = logits
                .iter()
                .zip(&*masses)
                .filter(|(l, _)| ordered(**l) > cut.above);
            let total = above.map(|(_, mass)| mass).sum::<u64>() + u64::from(cut.ties) * of_tie;
            // What top-k keeps is the head of the same order, so the smallest head that reaches a part of it is within.
            let of = |ordered| mass(share(unordered(ordered), max, 1.0));
            cut = find(logits, |i| masses[i], of, nucleus(total, self.top_p));
        }
        weigh(logits, max, 1.0 / f64::from(self.temperature), masses);
        if cut != Cut::default() {
            let mut ties = cut.ties;
            for (logit, mass) in logits.iter().zip(&mut *masses) {
                let ordered = ordered(*logit);
                let is_tie = ordered == cut.above && ties > 0;
                ties -= u32::from(is_tie);
                if ordered <= cut.above && !is_tie {
                    *mass = 0;
                }
            }
        }
        if self.min_p > 0.0 {
            let min = f64::from(self.min_p);
            for (logit, mass) in logits.iter().zip(&mut *masses) {
                if share(*logit, max, 1.0) < min {
                    *mass = 0;
                }
            }
        }
        Ok(at(masses, place(self.random, masses.iter().sum())))
    }
}

fn weigh(logits: &[f32], max: f32, heat: f64, masses: &mut Vec<u64>) {
    masses.clear();
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        masses.extend(chunk.map(|logit| mass(share(logit, max, heat))));
    }
    masses.extend(rest.iter().map(|&logit| mass(share(logit, max, heat))));
}

/// The smallest cut that keeps a `goal`, where the logit at an index counts for so much, and each that is the same as the last one kept
/// for `of_tie`. All of them together reach it.
fn find(logits: &[f32], amount: impl Fn(usize) -> u64, of_tie: impl Fn(u32) -> u64, mut goal: u64) -> Cut {
    let mut cut = Cut::default();
    for pass in 0..Cut::PASSES {
        let mut bins = [0u64; Cut::BINS as usize];
        for (i, logit) in logits.iter().enumerate() {
            let ordered = ordered(*logit);
            if cut.matches(pass, ordered) {
                bins[Cut::digit(pass, ordered) as usize] += amount(i);
            }
        }
        let mut digit = Cut::BINS as usize - 1;
        while digit > 0 && bins[digit] < goal {
            goal -= bins[digit];
            digit -= 1;
        }
        cut = cut.with(pass, digit as u32);
    }
    // At least one: the tokens of the last bin weigh something.
    cut.ties = goal.div_ceil(of_tie(cut.above).max(1)) as u32;
    cut
}

/// The first index up to which masses are more than `place`; `None` where all are not.
fn at(masses: &[u64], mut place: u64) -> Option<u32> {
    /// Masses added up at a time.
    const CHUNK: usize = 1024;
    let mut first = 0;
    for chunk in masses.chunks(CHUNK) {
        let sum = chunk.iter().sum::<u64>();
        if place < sum {
            break;
        }
        place -= sum;
        first += chunk.len();
    }
    for (i, &mass) in masses.iter().enumerate().skip(first) {
        if place < mass {
            return Some(i as u32);
        }
        place -= mass;
    }
    None
}
