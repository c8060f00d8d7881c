//! How likely a model finds a text: logits of every position, and perplexity.

use std::ops::Range;

use crate::{Backend, Error, Result, Session, Want};

/// Runs `ids` from their beginning through `backend`, whose cache it takes over, and hands `on_logits` the logits (vocab) of each position
/// of `positions`, in order. Memory for them stays below 32 MiB, or one position where that takes more.
///
/// # Errors
/// When `ids` is empty or does not fit the back end's context, `positions` is not within it, the back end fails, or
/// `on_logits` says so.
pub fn each_logits<E: From<Error>>(
    backend: &mut dyn Backend,
    ids: &[u32],
    positions: Range<usize>,
    mut on_logits: impl FnMut(usize, &[f32]) -> Result<(), E>,
) -> Result<(), E> {
    if ids.is_empty() {
        let message = "the text is empty; give at least one token";
        return Err(Error::Request(message.to_owned()).into());
    }
    let spec = backend.spec();
    if ids.len() > spec.context || positions.end > ids.len() {
        return Err(Error::Request(format!(
            "logits of positions {positions:?} of {} tokens: the context holds {}",
            ids.len(),
            spec.context
        ))
        .into());
    }
    let (vocab, max_batch) = (spec.config.vocab, spec.max_batch);
    let max_rows = spec.max_logit_rows();
    let mut session = Session::new(backend);
    let mut done = 0;
    while done < positions.end {
        let end = if done < positions.start {
            positions.start.min(done + max_batch)
        } else {
            positions.end.min(done + max_rows)
        };
        let rows: Vec<usize> = (done..end)
            .filter(|position| positions.contains(position))
            .map(|position| position - done)
            .collect();
        let logits = session.step(&[(0, &ids[done..end])], Want::Logits(&rows))?;
        for (row, logits) in rows.iter().zip(logits.chunks_exact(vocab)) {
            on_logits(done + row, logits)?;
        }
        done = end;
    }
    Ok(())
}

/// Minus the natural logarithm of the probability of token `id`, in f64.
///
/// ```
/// use bitnet_model::negative_log_likelihood;
///
/// // One of two equal choices has probability 1/2.
/// let nats = negative_log_likelihood(&[3.0, 3.0], 1);
/// assert!((nats - 2.0_f64.ln()).abs() < 1e-12);
/// ```
///
/// # Panics
/// When `id` is not below the number of logits.
#[must_use]
pub fn negative_log_likelihood(logits: &[f32], id: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    sum.ln() + max - f64::from(logits[id as usize])
}

/// Which tokens of a text count.
///
/// A text of at most `chunk` tokens is taken whole: each token after the first is predicted from all before it. A longer
/// one is cut into chunks of that many tokens, the rest at its end left out; each is computed on its own, and the tokens
/// of its second half count, so that each has at least half a chunk before it (the rule of llama.cpp's tool). Where the
/// text begins with `bos`, so does each chunk: it takes the place of the chunk's first token.
///
/// ```
/// use bitnet_model::{Checkpoint, Chunking, Device, open_backend};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let checkpoint = Checkpoint::open(folder)?;
/// let mut backend = open_backend(&checkpoint, Device::Cpu)?;
/// let chunking = Chunking::new(512, None)?;
/// let perplexity = chunking.perplexity(backend.as_mut(), &[752, 54, 71, 64], |_, _| ())?;
/// assert_eq!(perplexity.n_scored, 3);
/// assert!(perplexity.value() > 1.0);
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunking {
    /// Tokens of a chunk, at least 3.
    chunk: usize,
    /// The model's beginning-of-sequence token.
    bos: Option<u32>,
}

/// A text's perplexity, `exp` of the mean negative log likelihood of its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Tokens that count.
    pub n_scored: usize,
    /// Chunks they stand in.
    pub n_chunks: usize,
    /// Mean negative log likelihood, in nats a token.
    pub mean: f64,
    /// Sum of the squared distances to it.
    squares: f64,
}

impl Perplexity {
    /// The perplexity.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.mean.exp()
    }

    /// Standard error of [`Perplexity::mean`], tokens taken as independent; `None` for a single token.
    #[must_use]
    pub fn mean_error(&self) -> Option<f64> {
        let n = self.n_scored as f64;
        (self.n_scored > 1).then(|| (self.squares / (n * (n - 1.0))).sqrt())
    }

    /// Standard error of [`Perplexity::value`], to first order.
    #[must_use]
    pub fn value_error(&self) -> Option<f64> {
        Some(self.mean_error()? * self.value())
    }

    /// Adds a token, by Welford's update: the sums stay exact where the mean is large and the spread small.
    fn add(&mut self, x: f64) {
        self.n_scored += 1;
        let before = x - self.mean;
        self.mean += before / self.n_scored as f64;
        self.squares += before * (x - self.mean);
    }
}

impl Chunking {
    /// Chunks of `chunk` tokens, which begin with `bos`, the model's beginning-of-sequence token, where the text does.
    ///
    /// # Errors
    /// When a chunk has fewer than 3 tokens: none of its second half would have one before it.
    pub fn new(chunk: usize, bos: Option<u32>) -> Result<Self> {
        if chunk < 3 {
            return Err(Error::Request(format!(
                "chunks of {chunk} tokens: a chunk needs at least 3"
            )));
        }
        Ok(Self { chunk, bos })
    }

    /// How many chunks, and of how many tokens, a text of `n_tokens` has.
    #[must_use]
    pub fn plan(&self, n_tokens: usize) -> (usize, usize) {
        if n_tokens <= self.chunk {
            (1, n_tokens)
        } else {
            (n_tokens / self.chunk, self.chunk)
        }
    }

    /// Computes the perplexity of `ids` on `backend`, whose cache it takes over; after each token that counts, `on_token` is told the
    /// tokens computed so far and the perplexity of those that counted.
    ///
    /// # Errors
    /// When there is no token to score, a chunk does not fit the context, the model gives something that is no number,
    /// or the back end fails.
    pub fn perplexity(
        &self,
        backend: &mut dyn Backend,
        ids: &[u32],
        mut on_token: impl FnMut(usize, &Perplexity),
    ) -> Result<Perplexity> {
        if ids.len() < 2 {
            return Err(Error::Request(format!(
                "the perplexity of {} tokens: a text needs at least 2",
                ids.len()
            )));
        }
        let vocab = backend.spec().config.vocab;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Request(format!(
                "token {id} is not below the model's vocabulary size {vocab}; does the tokenizer belong to this model?"
            )));
        }
        let (n_chunks, len) = self.plan(ids.len());
        let first = if ids.len() > self.chunk { len / 2 } else { 0 };
        let mut total = Perplexity::default();
        for (index, chunk) in ids.chunks_exact(len).enumerate() {
            let mut chunk = chunk.to_vec();
            if self.bos == Some(ids[0]) {
                chunk[0] = ids[0];
            }
            total.n_chunks = index + 1;
            each_logits(backend, &chunk, first..len - 1, |position, logits| {
                let nll = negative_log_likelihood(logits, chunk[position + 1]);
                if nll.is_nan() {
                    return Err(Error::Damaged(format!(
                        "the logits of position {position} of chunk {index} are not numbers: the model or its file is damaged"
                    )));
                }
                total.add(nll);
                on_token(index * len + position + 2, &total);
                Ok(())
            })?;
        }
        debug_assert_eq!(total.n_chunks, n_chunks);
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_errors_are_those_of_the_formulas() {
        let mut found = Perplexity::default();
        let values = [2.0, 3.0, 7.0];
        values.iter().for_each(|&x| found.add(x));
        assert_eq!(found.mean, 4.0);
        // Sample variance (4 + 1 + 9) / 2 = 7; over three values.
        assert!((found.mean_error().unwrap() - (7.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((found.value_error().unwrap() - (7.0_f64 / 3.0).sqrt() * 4.0_f64.exp()).abs() < 1e-9);
        let mut one = Perplexity::default();
        one.add(0.5);
        assert_eq!((one.value(), one.mean_error()), (0.5_f64.exp(), None));
    }

    #[test]
    fn likelihoods_of_extreme_logits() {
        assert!((negative_log_likelihood(&[0.0; 8], 3) - 8.0_f64.ln()).abs() < 1e-12);
        let logits = [3e38, -3e38, f32::NEG_INFINITY];
        assert_eq!(negative_log_likelihood(&logits, 0), 0.0);
        assert!(negative_log_likelihood(&logits, 1) > 5e38);
        assert_eq!(negative_log_likelihood(&logits, 2), f64::INFINITY);
        assert!(negative_log_likelihood(&[1.0, f32::NAN], 0).is_nan());
    }

    #[test]
    fn long_texts_are_cut() {
        let chunking = Chunking::new(8, None).unwrap();
        assert_eq!(chunking.plan(2), (1, 2));
        assert_eq!(chunking.plan(8), (1, 8));
        assert_eq!(chunking.plan(15), (1, 8));
        assert_eq!(chunking.plan(16), (2, 8));
        for chunk in 0..3 {
            let error = Chunking::new(chunk, None).unwrap_err().to_string();
            assert!(error.contains("at least 3"), "{error}");
        }
    }
}
