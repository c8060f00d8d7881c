//! Guesses of the next tokens without a second model: where the end of the text occurred before, what followed it follows again.
//!
//! A guess costs about a microsecond, a computed guess that is wrong costs a row of a step. So guesses are always made, and what
//! comes is held against them; they are computed only where that has shown them to be worth their rows.

use std::collections::HashMap;

/// Tokens at the end of the text that must have occurred before.
const NGRAM: usize = 3;
/// Earlier places that are compared.
const PLACES: usize = 8;
/// Tokens up to which a longer match is a better one.
const LONGEST: usize = 32;

/// Finds earlier places in a growing text that end as it ends.
#[derive(Debug, Default)]
struct Lookup {
    /// By the `NGRAM` tokens before it, the last position.
    last: HashMap<[u32; NGRAM], u32>,
    /// By position, the one before it with the same tokens before it; 0 where there is none.
    earlier: Vec<u32>,
}

impl Lookup {
    /// Takes note of what `text` has gained.
    fn extend(&mut self, text: &[u32]) {
        for end in self.earlier.len()..=text.len() {
            let ngram = end
                .checked_sub(NGRAM)
                .and_then(|start| text[start..end].try_into().ok());
            let before = ngram.and_then(|ngram: [u32; NGRAM]| self.last.insert(ngram, end as u32));
            self.earlier.push(before.unwrap_or(0));
        }
    }

    /// Where the longest of them goes on, the latest of equals.
    fn find(&self, text: &[u32]) -> Option<usize> {
        let mut place = self.earlier[text.len()] as usize;
        let (mut best, mut longest) = (None, 0);
        for _ in 0..PLACES {
            if place == 0 {
                break;
            }
            let same = text[..place].iter().rev().zip(text.iter().rev()).take(LONGEST);
            let length = same.take_while(|(a, b)| a == b).count();
            if length > longest {
                (best, longest) = (Some(place), length);
            }
            place = self.earlier[place] as usize;
        }
        best
    }
}

/// The guesses of one text, and how good they have been.
#[derive(Debug)]
pub(super) struct Speculator {
    lookup: Lookup,
    /// Where in the text stands what is guessed to come next.
    next: Option<usize>,
    /// How often a guess was right, of late.
    hits: f64,
}

impl Speculator {
    pub(super) fn new() -> Self {
        Self {
            lookup: Lookup::default(),
            next: None,
            hits: 0.4,
        }
    }

    /// Takes note of the last token of `text`, which is one longer than it was, or of a prompt.
    pub(super) fn observe(&mut self, text: &[u32]) {
        self.lookup.extend(text);
        let (Some(last), Some(next)) = (text.last(), self.next) else {
            self.next = self.lookup.find(text);
            return;
        };
        let hit = text[next] == *last;
        self.hits += (f64::from(u8::from(hit)) - self.hits) / 4.0;
        self.next = if hit {
            Some(next + 1)
        } else {
            self.lookup.find(text)
        };
    }

    /// How likely the next guess is right; `None` where there is none.
    pub(super) fn confidence(&self) -> Option<f64> {
        self.next.map(|_| self.hits)
    }

    /// Up to `n` tokens that are guessed to follow `text`, the text that was observed last.
    pub(super) fn propose(&self, text: &[u32], n: usize) -> Vec<u32> {
        let Some(next) = self.next else {
            return Vec::new();
        };
        // Past its end a text that repeats itself goes on with what was guessed.
        let mut guess: Vec<u32> = Vec::with_capacity(n);
        for at in next..next + n {
            guess.push(match text.get(at) {
                Some(&id) => id,
                None => guess[at - text.len()],
            });
        }
        guess
    }
}

/// How long steps of so many rows take, as measured.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// By the number of bits of the number of rows: (mean rows, mean seconds).
    buckets: [Option<(f64, f64)>; 16],
}

impl Pace {
    /// A step of `rows` rows took `seconds`.
    pub(super) fn measured(&mut self, rows: usize, seconds: f64) {
        let bucket = (usize::BITS - rows.leading_zeros()) as usize;
        let Some(bucket) = self.buckets.get_mut(bucket) else {
            return;
        };
        *bucket = Some(match *bucket {
            None => (rows as f64, seconds),
            Some((mean_rows, mean)) => (
                mean_rows + (rows as f64 - mean_rows) / 8.0,
                // A step that something else delayed says little.
                mean + (seconds.min(2.0 * mean) - mean) / 8.0,
            ),
        });
    }

    /// How long one of `rows` takes: between two that were measured, on the line through them; past the last, as long as that.
    pub(super) fn seconds(&self, rows: usize) -> Option<f64> {
        let rows = rows as f64;
        let mut below = None;
        for &(at, seconds) in self.buckets.iter().flatten() {
            if at >= rows {
                return Some(match below {
                    None => seconds,
                    Some((low, less)) if at > low => less + (seconds - less) * (rows - low) / (at - low),
                    Some((_, less)) => less,
                });
            }
            below = Some((at, seconds));
        }
        below.map(|(_, seconds)| seconds)
    }

    /// How many guesses, up to `most`, each right with probability `hits` if those before it are, make a step of `rows` rows that is
    /// expected to give `tokens` without them give the most tokens a second. `plain` is the time of the step that would be taken
    /// without any; that of `rows` rows where it is not given.
    pub(super) fn best(&self, plain: Option<f64>, tokens: f64, rows: usize, hits: f64, most: usize) -> usize {
        /// What the gain must exceed, since it is estimated.
        const MARGIN: f64 = 1.05;
        let Some(plain) = plain.or_else(|| self.seconds(rows)) else {
            return 0;
        };
        let (mut best, mut rate) = (0, MARGIN * tokens / plain);
        let (mut tokens, mut likely) = (tokens, 1.0);
        for n in 1..=most {
            likely *= hits;
            tokens += likely;
            let seconds = self.seconds(rows + n).unwrap_or(plain);
            if tokens / seconds > rate {
                (best, rate) = (n, tokens / seconds);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observes `text` token by token after its first `prompt`; the share of tokens that were guessed.
    fn guessed(text: &[u32], prompt: usize) -> (usize, Speculator) {
        let mut speculator = Speculator::new();
        speculator.observe(&text[..prompt]);
        let mut right = 0;
        for end in prompt + 1..=text.len() {
            let guess = speculator.propose(&text[..end - 1], 1);
            right += usize::from(guess.first() == Some(&text[end - 1]));
            speculator.observe(&text[..end]);
        }
        (right, speculator)
    }

    #[test]
    fn a_repeated_text_is_guessed_after_its_first_tokens() {
        let given: Vec<u32> = (0..50).map(|i| i * i % 1009).collect();
        let text = [&given[..], &[2000, 2001], &given].concat();
        let (right, speculator) = guessed(&text, 52);
        assert_eq!(right, 50 - NGRAM);
        assert!(speculator.confidence().is_some_and(|hits| hits > 0.99));
    }

    #[test]
    fn nothing_is_guessed_where_nothing_repeats() {
        let text: Vec<u32> = (0..200).collect();
        let (right, speculator) = guessed(&text, 10);
        assert_eq!((right, speculator.confidence()), (0, None));
        assert!(speculator.propose(&text, 4).is_empty());
    }

    #[test]
    fn the_longest_match_counts_and_the_latest_of_equals() {
        let mut speculator = Speculator::new();
        speculator.observe(&[9, 1, 2, 3, 70, 1, 2, 3, 80, 9, 1, 2, 3]);
        assert_eq!(
            speculator.propose(&[9, 1, 2, 3, 70, 1, 2, 3, 80, 9, 1, 2, 3], 1),
            [70]
        );
        let text = [1, 2, 3, 70, 1, 2, 3, 80, 1, 2, 3];
        let mut speculator = Speculator::new();
        speculator.observe(&text);
        assert_eq!(speculator.propose(&text, 2), [80, 1]);
    }

    #[test]
    fn a_loop_is_guessed_past_the_end_of_the_text() {
        let text = [5, 6, 7, 5, 6, 7];
        let mut speculator = Speculator::new();
        speculator.observe(&text);
        assert_eq!(speculator.propose(&text, 8), [5, 6, 7, 5, 6, 7, 5, 6]);
        let text = [4; 4];
        let mut speculator = Speculator::new();
        speculator.observe(&text);
        assert_eq!(speculator.propose(&text, 3), [4, 4, 4]);
    }

    #[test]
    fn drafts_are_as_long_as_their_rows_pay() {
        let mut pace = Pace::default();
        assert_eq!(pace.best(None, 1.0, 1, 0.9, 8), 0);
        pace.measured(1, 1.0);
        // Nothing is known of more rows: as if they were free.
        assert_eq!(pace.best(None, 1.0, 1, 0.9, 8), 8);
        pace.measured(9, 5.0);
        // Half a second a row, from the second on: the first guess is worth it only if it is nearly sure.
        assert_eq!(pace.best(None, 1.0, 1, 0.4, 8), 0);
        assert!(pace.best(None, 1.0, 1, 0.95, 8) > 0);
        // A device that decodes by itself, three times as fast.
        assert_eq!(pace.best(Some(0.3), 1.0, 1, 0.7, 8), 0);
        assert!((pace.seconds(5).unwrap() - 3.0).abs() < 1e-9);
    }
}
