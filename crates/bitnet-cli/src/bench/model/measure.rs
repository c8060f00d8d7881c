//! Runs one test of a model, again and again.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bitnet_layout::random::Random;
use bitnet_model::{Backend, Sampler, Sampling, Session, Want};

/// One test: tokens of context, then a prompt or decoded tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Test {
    pub(in super::super) n_prompt: usize,
    pub(in super::super) n_gen: usize,
    pub(in super::super) depth: usize,
    pub(in super::super) sequences: usize,
}

impl Test {
    /// As llama-bench names it.
    pub(in super::super) fn name(self) -> String {
        let Self {
            n_prompt,
            n_gen,
            depth,
            sequences,
        } = self;
        let mut name = if n_prompt > 0 {
            format!("pp{n_prompt}")
        } else {
            format!("tg{n_gen}")
        };
        if sequences > 1 {
            name += &format!(" x{sequences}");
        }
        if depth > 0 {
            name += &format!(" @ d{depth}");
        }
        name
    }
}

/// What a test took.
#[derive(Clone, Debug)]
pub(in super::super) struct Outcome {
    pub(in super::super) test: Test,
    /// Tokens a second, by repetition.
    pub(in super::super) rates: Vec<f64>,
    /// Time from the start of the test to its first token, by repetition.
    pub(in super::super) first: Vec<Duration>,
    /// Time between tokens of one sequence, all repetitions together.
    pub(in super::super) between: Vec<Duration>,
    /// Bytes a decode step must move, in the middle of the test; 0 for a prompt, which is not bound by that.
    pub(in super::super) step_bytes: u64,
    /// What was left out because it was zero; `None` where nothing could be.
    pub(in super::super) zeros: Option<Zeros>,
}

/// What decoding left out because it was zero.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Zeros {
    /// Share of the rows that are gated.
    pub(in super::super) rows: f64,
    /// Share of the columns after them.
    pub(in super::super) columns: f64,
    /// Share of the weights of the linear layers that was read.
    pub(in super::super) read: f64,
}

impl Outcome {
    pub(in super::super) fn mean(&self) -> f64 {
        self.rates.iter().sum::<f64>() / self.rates.len().max(1) as f64
    }

    /// Standard deviation of the rates.
    pub(in super::super) fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.rates.iter().map(|r| (r - mean).powi(2)).sum();
        (squares / (self.rates.len().max(2) - 1) as f64).sqrt()
    }

    /// Bandwidth of decoding.
    pub(in super::super) fn gb_per_s(&self) -> Option<f64> {
        (self.step_bytes > 0).then(|| self.mean() / self.test.sequences as f64 * self.step_bytes as f64 / 1e9)
    }

    pub(in super::super) fn first_ms(&self) -> f64 {
        percentile(&self.first, 0.5)
    }

    /// A quantile of the time between tokens, in milliseconds.
    pub(in super::super) fn token_ms(&self, quantile: f64) -> f64 {
        percentile(&self.between, quantile)
    }
}

/// A quantile in milliseconds; 0 where there is nothing.
fn percentile(times: &[Duration], quantile: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len().saturating_sub(1)) as f64 * quantile;
    times
        .get(at.round() as usize)
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// Token ids that look like text to a cache: spread over the vocabulary, the same every time, others for each sequence.
fn ids(n: usize, vocab: usize, seq: usize) -> Vec<u32> {
    let mut random = Random::new(1 + seq as u64);
    (0..n).map(|_| (random.word() as usize % vocab) as u32).collect()
}

/// Appends tokens to a sequence; the likeliest one after them.
fn prefill(session: &mut Session<'_>, ids: &[u32], seq: usize) -> anyhow::Result<u32> {
    let mut best = 0;
    let batch = session.spec().max_batch;
    for (i, part) in ids.chunks(batch).enumerate() {
        if (i + 1) * batch < ids.len() {
            session.step(&[(seq, part)], Want::Nothing)?;
        } else {
            best = session.most_likely(&[(seq, part)], &[part.len() - 1])?[0];
        }
    }
    Ok(best)
}

/// Runs `test`; `step_bytes` is for the outcome.
pub(in super::super) fn measure(
    backend: &mut dyn Backend,
    test: Test,
    repetitions: usize,
    step_bytes: u64,
) -> anyhow::Result<Outcome> {
    let Test {
        n_prompt,
        n_gen,
        depth,
        sequences,
    } = test;
    let vocab = backend.spec().config.vocab;
    // A sequence begins with one token at least, so that there is something to decode from.
    let contexts: Vec<_> = (0..sequences).map(|seq| ids(depth.max(1), vocab, seq)).collect();
    let prompt = ids(n_prompt, vocab, 0);
    let mut session = Session::new(backend);
    let mut outcome = Outcome {
        test,
        rates: Vec::new(),
        first: Vec::new(),
        between: Vec::new(),
        step_bytes,
        zeros: None,
    };
    if n_prompt == 0 {
        for (seq, context) in contexts.iter().enumerate() {
            prefill(&mut session, context, seq)?;
        }
    } else if depth > 0 {
        prefill(&mut session, &contexts[0], 0)?;
    }
    let before = session.backend().zeros();
    let held = session.ids(0).len();
    // One more than is counted: the first finds caches cold and recordings not made.
    for repetition in 0..=repetitions {
        (0..sequences).for_each(|seq| session.rewind(seq, held));
        let start = Instant::now();
        let mut times = Vec::new();
        if n_prompt > 0 {
            prefill(&mut session, &prompt, 0)?;
            times.push(start.elapsed());
        } else {
            let first: Vec<(usize, u32)> = (0..sequences).map(|seq| (seq, contexts[seq][0])).collect();
            decode(&mut session, &first, n_gen, || times.push(start.elapsed()))?;
        }
        let elapsed = start.elapsed().as_secs_f64();
        if repetition > 0 {
            outcome
                .rates
                .push((n_prompt + n_gen * sequences) as f64 / elapsed);
            outcome.first.extend(times.first());
            outcome
                .between
                .extend(times.windows(2).map(|pair| pair[1] - pair[0]));
        }
    }
    if n_gen > 0 {
        let counts = session.backend().zeros().since(before);
        let read = session.spec().config.share_read(counts);
        outcome.zeros =
            counts
                .shares()
                .zip(read)
                .map(|((rows, columns), read)| Zeros { rows, columns, read });
    }
    Ok(outcome)
}

/// Decodes `n` tokens of each sequence greedily, on the device where it can.
fn decode(
    session: &mut Session<'_>,
    first: &[(usize, u32)],
    n: usize,
    mut done: impl FnMut(),
) -> anyhow::Result<()> {
    let samplers = vec![Sampler::new(Sampling::greedy())?; first.len()];
    let on_tokens = |_: &[u32]| {
        done();
        ControlFlow::Continue(())
    };
    if session.decode(first, &samplers, n, on_tokens)? {
        return Ok(());
    }
    let rows: Vec<usize> = (0..first.len()).collect();
    let mut last: Vec<(usize, [u32; 1])> = first.iter().map(|&(seq, id)| (seq, [id])).collect();
    for _ in 0..n {
        let runs: Vec<(usize, &[u32])> = last.iter().map(|(seq, id)| (*seq, &id[..])).collect();
        let chosen = session.most_likely(&runs, &rows)?;
        for ((_, id), chosen) in last.iter_mut().zip(chosen) {
            id[0] = chosen;
        }
        done();
    }
    Ok(())
}
