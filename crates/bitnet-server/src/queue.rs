//! How much may be under way: answers and prompt tokens, and when to come again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts what is under way, up to its limits.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    counts: Mutex<Counts>,
}

/// What a [`Queue`] takes at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Answers that are computed at a time.
    pub(crate) slots: usize,
    /// Answers that wait for a slot.
    pub(crate) waiting: usize,
    /// Prompt tokens that wait.
    pub(crate) tokens: Option<usize>,
    /// Answers of one key.
    pub(crate) per_key: Option<usize>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Answers that are not over.
    answers: usize,
    /// Prompt tokens of requests whose turn has not come.
    tokens: usize,
    /// Answers by the number of the key.
    per_key: Vec<usize>,
    /// When the last turn came.
    last: Option<Instant>,
    /// Seconds between turns, the newer ones weighing more.
    gap: f64,
}

/// What makes a request come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// Whether it is this key's share alone that is used up.
    pub(crate) is_of_key: bool,
    /// When there may be room.
    pub(crate) retry_after: Duration,
}

/// A place in a [`Queue`], left when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    answers: usize,
    key: Option<usize>,
    /// Prompt tokens, while they wait.
    tokens: usize,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            counts: Mutex::default(),
        })
    }

    /// Takes a place for `answers` answers to prompts of `tokens` tokens, of the key with this number where there are several.
    pub(crate) fn enter(
        self: &Arc<Self>,
        answers: usize,
        tokens: usize,
        key: Option<usize>,
    ) -> Result<Place, Full> {
        let limits = &self.limits;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = key.and_then(|key| counts.per_key.get(key).copied()).unwrap_or(0);
        // One request always fits, however much it asks for: it can be computed.
        let is_of_key = of_key > 0 && limits.per_key.is_some_and(|most| of_key + answers > most);
        let is_full = counts.answers >= limits.slots.saturating_add(limits.waiting);
        let has_many_tokens = counts.tokens > 0
            && limits
                .tokens
                .is_some_and(|most| counts.tokens.saturating_add(tokens) > most);
        if is_of_key || is_full || has_many_tokens {
            let ahead = counts.answers.saturating_sub(limits.slots).max(1);
            let seconds = (ahead as f64 * counts.gap).ceil().clamp(1.0, 30.0);
            return Err(Full {
                is_of_key,
                retry_after: Duration::from_secs(seconds as u64),
            });
        }
        counts.answers += answers;
        counts.tokens = counts.tokens.saturating_add(tokens);
        if let Some(key) = key {
            if counts.per_key.len() <= key {
                counts.per_key.resize(key + 1, 0);
            }
            counts.per_key[key] += answers;
        }
        Ok(Place {
            queue: Arc::clone(self),
            answers,
            key,
            tokens,
        })
    }

    /// When one who waited too long may try again.
    pub(crate) fn retry_after(&self) -> Duration {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = counts.answers.saturating_sub(self.limits.slots).max(1);
        Duration::from_secs((ahead as f64 * counts.gap).ceil().clamp(1.0, 30.0) as u64)
    }
}

impl Place {
    /// Its turn has come.
    pub(crate) fn served(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        let mut counts = self.queue.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.tokens = counts.tokens.saturating_sub(tokens);
        let now = Instant::now();
        if let Some(last) = counts.last.replace(now) {
            let gap = now.duration_since(last).as_secs_f64();
            counts.gap += (gap - counts.gap) / 8.0;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.queue.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.answers = counts.answers.saturating_sub(self.answers);
        counts.tokens = counts.tokens.saturating_sub(self.tokens);
        if let Some(key) = self.key
            && let Some(count) = counts.per_key.get_mut(key)
        {
            *count = count.saturating_sub(self.answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_what_its_limits_say_and_forgets_what_has_left() {
        let queue = Queue::new(Limits {
            slots: 2,
            waiting: 1,
            tokens: Some(10),
            per_key: Some(2),
        });
        let mut first = queue.enter(1, 100, None).unwrap();
        assert!(!queue.enter(1, 1, None).unwrap_err().is_of_key, "100 tokens wait");
        first.served();
        let second = queue.enter(1, 5, Some(1)).unwrap();
        let third = queue.enter(1, 5, Some(1)).unwrap();
        let full = queue.enter(1, 0, None).unwrap_err();
        assert!(
            !full.is_of_key && (1..=30).contains(&full.retry_after.as_secs()),
            "{full:?}"
        );
        drop(first);
        assert!(queue.enter(1, 0, Some(1)).unwrap_err().is_of_key);
        drop((second, third));
        assert!(queue.enter(16, 1000, Some(1)).is_ok(), "one request always fits");
        let counts = queue.counts.lock().unwrap();
        assert_eq!(
            (counts.answers, counts.tokens, &counts.per_key[..]),
            (0, 0, &[0, 0][..])
        );
    }
}
