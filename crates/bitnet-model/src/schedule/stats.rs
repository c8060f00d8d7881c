//! What a scheduler counts, for those who watch it.

use std::time::Duration;

/// Counts of a scheduler, those of time since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Answers that wait.
    pub waiting: usize,
    /// Answers that are computed.
    pub running: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Pages that running answers hold.
    pub pages_held: usize,
    /// Findable pages that nobody holds.
    pub pages_idle: usize,
    /// Steps.
    pub steps: u64,
    /// Prompt tokens computed, those that were computed again included.
    pub prompt_tokens: u64,
    /// Prompt tokens that were looked for in the cache.
    pub queried_tokens: u64,
    /// Those of them that were found.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub tokens: u64,
    /// Guessed tokens that were computed.
    pub drafted: u64,
    /// Those of them that were right.
    pub accepted: u64,
    /// Rows whose best logits were found without the others, see [`crate::CertifiedHead`].
    pub certified: u64,
    /// The logits that were computed for them.
    pub candidates: u64,
    /// Rows that all logits were computed for, though the best of them would have been enough: too many could have been among them.
    pub uncertified: u64,
    /// Times that a running answer was set back for want of pages.
    pub set_back: u64,
    /// Requests that failed since what the model computed for them was no number.
    pub damaged: u64,
    /// Steps that failed, in a row: the back end is lost when there are several.
    pub failures: u64,
}

/// What a step computed, and how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// Tokens computed: of prompts and answers, and guesses.
    pub batch: usize,
    /// Tokens of prompts computed, those that were computed again included.
    pub prompt_tokens: usize,
    /// Tokens of answers chosen.
    pub tokens: usize,
    /// Time from its beginning to its end. A device that decodes by itself began before: this is what was waited for it.
    pub time: Duration,
}

impl StepReport {
    /// What it was for.
    #[must_use]
    pub fn kind(&self) -> StepKind {
        match (self.prompt_tokens, self.batch > self.prompt_tokens) {
            (0, _) => StepKind::Decode,
            (_, false) => StepKind::Prefill,
            (_, true) => StepKind::Mixed,
        }
    }
}

/// What a step was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Prompts alone.
    Prefill,
    /// Answers alone.
    Decode,
    /// Prompts and answers.
    Mixed,
}

impl StepKind {
    /// Its name in reports: `prefill`, `decode`, `mixed`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Mixed => "mixed",
        }
    }
}
