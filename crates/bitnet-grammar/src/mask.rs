//! A compiled grammar while an answer obeys it.

use bitnet_model::schedule::Mask;
use bitnet_model::{Error, Result};
use llguidance::Matcher;
use llguidance::api::StopReason;
use llguidance::toktrie::TokEnv;

use crate::error::GrammarError;

/// Follows the tokens of one answer.
pub(crate) struct Follower {
    matcher: Matcher,
    is_lark: bool,
    tokens: TokEnv,
    scout: Scout,
}

/// A second matcher that goes ahead along what is forced. That costs the library memory of which each matcher has so much, and a
/// guess must cost no answer anything.
enum Scout {
    NotSent,
    Sent(Box<Matcher>),
    Lost,
}

impl Scout {
    /// Does what the first matcher does.
    fn follow(&mut self, step: impl FnOnce(&mut Matcher) -> bool) {
        if let Self::Sent(matcher) = self
            && !step(matcher)
        {
            *self = Self::Lost;
        }
    }
}

/// Bytes that are looked at for forced tokens.
const AHEAD: usize = 512;

impl Follower {
    /// At the beginning of an answer. What allows no first token is refused.
    pub(crate) fn new(mut matcher: Matcher, tokens: TokEnv, is_lark: bool) -> Result<Self, GrammarError> {
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::from_library(&error, is_lark));
        }
        match matcher.compute_mask() {
            Ok(_) => Ok(Self {
                matcher,
                is_lark,
                tokens,
                scout: Scout::NotSent,
            }),
            Err(error) => Err(explained(&matcher, &error.to_string(), is_lark)),
        }
    }

    fn failed(&self, error: &impl ToString) -> Error {
        let why = explained(&self.matcher, &error.to_string(), self.is_lark);
        Error::Request(format!("the answer cannot be kept to its grammar: {why}"))
    }
}

/// Why a mask could not be computed.
fn explained(matcher: &Matcher, said: &str, is_lark: bool) -> GrammarError {
    // The matcher forgets its reason with the first error; the library's messages tell them apart.
    let is_stuck = said.starts_with("NoExtension") || matcher.stop_reason() == StopReason::NoExtensionBias;
    if is_stuck {
        return GrammarError::new("no token of the model's vocabulary may come next");
    }
    GrammarError::from_library(said, is_lark)
}

impl Mask for Follower {
    fn allowed(&mut self, bits: &mut [u32]) -> Result<()> {
        let set = self
            .matcher
            .compute_mask_or_eos()
            .map_err(|error| self.failed(&error))?;
        for (bits, word) in bits.iter_mut().zip(set.as_slice()) {
            *bits = *word;
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<bool> {
        self.matcher
            .consume_token(id)
            .map_err(|error| self.failed(&error))?;
        self.scout.follow(|matcher| matcher.consume_token(id).is_ok());
        Ok(self.matcher.is_stopped())
    }

    fn rollback(&mut self, n: usize) -> Result<()> {
        self.matcher.rollback(n).map_err(|error| self.failed(&error))?;
        self.scout.follow(|matcher| matcher.rollback(n).is_ok());
        Ok(())
    }

    fn fork(&self) -> Box<dyn Mask> {
        Box::new(Self {
            matcher: self.matcher.deep_clone(),
            is_lark: self.is_lark,
            tokens: self.tokens.clone(),
            scout: Scout::NotSent,
        })
    }

    fn forced(&mut self) -> Vec<u32> {
        if matches!(self.scout, Scout::NotSent) {
            self.scout = Scout::Sent(Box::new(self.matcher.deep_clone()));
        }
        let Scout::Sent(scout) = &mut self.scout else {
            return Vec::new();
        };
        let mut bytes = scout.compute_ff_bytes();
        if scout.is_error() {
            self.scout = Scout::Lost;
            return Vec::new();
        }
        bytes.truncate(AHEAD);
        self.tokens.tokenize_bytes(&bytes)
    }
}
