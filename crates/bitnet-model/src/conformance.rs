//! Two back ends in lockstep: the same tokens, verb by verb, every intermediate compared.
//!
//! Integer paths must agree bit for bit; float paths differ by noise, which the report states in numbers. Each back end
//! goes on from its own state: the first verb that differs is the one at fault, later ones inherit.
//!
//! ```
//! use bitnet_model::conformance::compare;
//! use bitnet_model::{Checkpoint, CpuBackend, CpuOptions, Simd};
//!
//! # let folder = "../bitnet-cli/demo-model";
//! let checkpoint = Checkpoint::open(folder)?;
//! let on = |simd| CpuBackend::new(&checkpoint, CpuOptions { simd, ..CpuOptions::default() });
//! // Three tokens of sequence 0, then one more.
//! let batches = [vec![(0, vec![752, 54, 71])], vec![(0, vec![64])]];
//! let report = compare(&mut on(Some(Simd::Scalar))?, &mut on(None)?, &batches)?;
//! assert!(report.is_identical(), "{report}");
//! # Ok::<(), bitnet_model::Error>(())
//! ```

use std::fmt;

use bitnet_layout::Token;

use crate::{Backend, Batch, Error, Result, Session, Tap, Verbs, Want};

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// [`Verbs::begin`].
    Begin,
    /// [`Verbs::qkv`] of a layer.
    Qkv(usize),
    /// [`Verbs::attention`] of a layer.
    Attention(usize),
    /// [`Verbs::out_proj`] of a layer.
    OutProj(usize),
    /// [`Verbs::up_gate`] of a layer.
    UpGate(usize),
    /// [`Verbs::down`] of a layer.
    Down(usize),
    /// [`Verbs::head`].
    Logits,
}

/// What a verb of both back ends gave, over all batches.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The verb.
    pub verb: Verb,
    /// The intermediate that was read; `None`: the logits.
    pub tap: Option<Tap>,
    /// Values compared.
    pub n_values: usize,
    /// Those of them whose bits differ.
    pub n_different: usize,
    /// Largest absolute error; infinite where one of the two is not finite and the other differs.
    pub max_abs: f32,
    /// Largest absolute error divided by the root mean square of its row in the reference.
    pub max_rel: f32,
    /// The first value that differs, in the order of computation.
    pub first: Option<Difference>,
}

/// One value that differs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Index of the batch.
    pub batch: usize,
    /// The sequence.
    pub seq: usize,
    /// Its token.
    pub token: Token,
    /// Column of the intermediate.
    pub col: usize,
    /// The reference's value.
    pub expected: f32,
    /// The candidate's value.
    pub found: f32,
}

/// How often both back ends would choose the same token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TopOne {
    /// Rows of logits.
    pub n_rows: usize,
    /// Rows whose largest logit is that of the same token.
    pub n_agree: usize,
    /// Smallest distance, over all rows, of the reference's two largest logits.
    pub min_margin: f32,
    /// The largest such distance among the rows that disagree: noise explains it as long as it is below twice the
    /// largest error of the logits. 0 where all agree.
    pub max_lost_margin: f32,
}

/// What [`compare`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// [`crate::Spec::name`] of the reference.
    pub reference: String,
    /// [`crate::Spec::name`] of the candidate.
    pub candidate: String,
    /// In the order of computation.
    pub comparisons: Vec<Comparison>,
    /// Of the logits of every token.
    pub top_one: TopOne,
}

/// Runs `batches` on both back ends, one verb of each at a time, and compares everything that can be read; the logits
/// alone, where one of them has no verbs. A batch is the tokens that some sequences, counted from 0, go on with.
///
/// The logits of every token of a batch are held twice, (tokens, vocab) f32: cut long prompts into batches.
///
/// # Errors
/// When the back ends hold models of different shape, a batch does not fit one of them, or one of them fails.
pub fn compare(
    reference: &mut dyn Backend,
    candidate: &mut dyn Backend,
    batches: &[Vec<(usize, Vec<u32>)>],
) -> Result<Report> {
    let (a, b) = (reference.spec(), candidate.spec());
    if a.config != b.config {
        return Err(Error::Request(format!(
            "{} and {} hold models of different shapes; load the same folder into both",
            a.name, b.name
        )));
    }
    let (n_layers, vocab) = (a.config.n_layers, a.config.vocab);
    let mut report = Report {
        reference: a.name.clone(),
        candidate: b.name.clone(),
        comparisons: comparisons(n_layers),
        top_one: TopOne {
            min_margin: f32::INFINITY,
            ..TopOne::default()
        },
    };
    let (mut reference, mut candidate) = (Session::new(reference), Session::new(candidate));
    for (index, runs) in batches.iter().enumerate() {
        let runs: Vec<(usize, &[u32])> = runs.iter().map(|(seq, ids)| (*seq, &ids[..])).collect();
        let (a, b) = (reference.batch(&runs)?, candidate.batch(&runs)?);
        let rows: Vec<usize> = (0..a.tokens().len()).collect();
        let seqs: Vec<usize> = runs
            .iter()
            .flat_map(|(seq, ids)| ids.iter().map(|_| *seq))
            .collect();
        let at = At {
            batch: index,
            tokens: a.tokens(),
            seqs: &seqs,
        };
        let want = Want::Logits(&rows);
        let (expected, found) = match (reference.backend().verbs(), candidate.backend().verbs()) {
            (Some(reference), Some(candidate)) => {
                report.compare_verbs(reference, &a, candidate, &b, at)?;
                (reference.head(want)?, candidate.head(want)?)
            }
            _ => (
                reference.backend().step(&a, want)?,
                candidate.backend().step(&b, want)?,
            ),
        };
        if let Some(logits) = report.comparisons.last_mut() {
            logits.add(at, expected, found)?;
        }
        let rows = expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
        rows.for_each(|(expected, found)| report.top_one.add(expected, found));
    }
    Ok(report)
}

/// Where values that are compared belong.
#[derive(Clone, Copy)]
struct At<'a> {
    batch: usize,
    tokens: &'a [Token],
    /// By token.
    seqs: &'a [usize],
}

impl Report {
    /// Runs a batch verb by verb, up to the head.
    fn compare_verbs(
        &mut self,
        reference: &mut dyn Verbs,
        a: &Batch,
        candidate: &mut dyn Verbs,
        b: &Batch,
        at: At<'_>,
    ) -> Result<()> {
        let mut ran = None;
        for comparison in &mut self.comparisons {
            let Some(tap) = comparison.tap else { continue };
            // Several intermediates of one verb stand in a row.
            if ran.replace(comparison.verb) != Some(comparison.verb) {
                comparison.verb.run(reference, a)?;
                comparison.verb.run(candidate, b)?;
            }
            // A back end that fuses verbs does not keep all of them.
            if let (Some(expected), Some(found)) = (reference.read(tap)?, candidate.read(tap)?) {
                comparison.add(at, &expected, &found)?;
            }
        }
        Ok(())
    }
}

/// Everything to compare, in the order of [`crate::transformer`].
fn comparisons(n_layers: usize) -> Vec<Comparison> {
    let layer = |l| {
        [
            (Verb::Qkv(l), Tap::Query),
            (Verb::Qkv(l), Tap::Key),
            (Verb::Qkv(l), Tap::Value),
            (Verb::Attention(l), Tap::Attention),
            (Verb::OutProj(l), Tap::Residual),
            (Verb::UpGate(l), Tap::Gated),
            (Verb::Down(l), Tap::Residual),
        ]
    };
    let taps = [(Verb::Begin, Tap::Residual)]
        .into_iter()
        .chain((0..n_layers).flat_map(layer))
        .map(|(verb, tap)| (verb, Some(tap)));
    taps.chain([(Verb::Logits, None)])
        .map(|(verb, tap)| Comparison {
            verb,
            tap,
            n_values: 0,
            n_different: 0,
            max_abs: 0.0,
            max_rel: 0.0,
            first: None,
        })
        .collect()
}

impl Verb {
    /// Runs it; the logits apart, which are read as they are computed.
    fn run(self, verbs: &mut dyn Verbs, batch: &Batch) -> Result<()> {
        match self {
            Self::Begin => verbs.begin(batch),
            Self::Qkv(layer) => verbs.qkv(layer),
            Self::Attention(layer) => verbs.attention(layer),
            Self::OutProj(layer) => verbs.out_proj(layer),
            Self::UpGate(layer) => verbs.up_gate(layer),
            Self::Down(layer) => verbs.down(layer),
            Self::Logits => Ok(()),
        }
    }
}

impl Comparison {
    fn add(&mut self, at: At<'_>, expected: &[f32], found: &[f32]) -> Result<()> {
        let At { batch, tokens, seqs } = at;
        if expected.len() != found.len()
            || expected.is_empty()
            || !expected.len().is_multiple_of(tokens.len())
        {
            return Err(Error::Device(format!(
                "{}: {} values and {} for {} tokens",
                self.label(),
                expected.len(),
                found.len(),
                tokens.len()
            )));
        }
        let width = expected.len() / tokens.len();
        let rows = expected.chunks_exact(width).zip(found.chunks_exact(width));
        for ((&token, &seq), (expected, found)) in tokens.iter().zip(seqs).zip(rows) {
            let squares: f64 = expected.iter().map(|&x| f64::from(x).powi(2)).sum();
            let rms = (squares / width as f64).sqrt() as f32;
            for (col, (&expected, &found)) in expected.iter().zip(found).enumerate() {
                self.n_values += 1;
                if expected.to_bits() == found.to_bits() {
                    continue;
                }
                self.n_different += 1;
                self.first.get_or_insert(Difference {
                    batch,
                    seq,
                    token,
                    col,
                    expected,
                    found,
                });
                let error = (expected - found).abs();
                let error = if error.is_nan() { f32::INFINITY } else { error };
                self.max_abs = self.max_abs.max(error);
                // Of zeros that differ in their sign alone: no error, in a row that may be all zero.
                if error > 0.0 {
                    self.max_rel = self.max_rel.max(error / rms);
                }
            }
        }
        Ok(())
    }

    /// `layer 3 qkv, key`.
    fn label(&self) -> String {
        let (verb, layer) = match self.verb {
            Verb::Begin => ("embed", None),
            Verb::Qkv(layer) => ("qkv", Some(layer)),
            Verb::Attention(layer) => ("attention", Some(layer)),
            Verb::OutProj(layer) => ("out_proj", Some(layer)),
            Verb::UpGate(layer) => ("up_gate", Some(layer)),
            Verb::Down(layer) => ("down", Some(layer)),
            Verb::Logits => ("logits", None),
        };
        let layer = layer.map_or(String::new(), |layer| format!("layer {layer} "));
        match self.tap {
            Some(tap @ (Tap::Query | Tap::Key | Tap::Value)) => {
                format!("{layer}{verb}, {}", format!("{tap:?}").to_lowercase())
            }
            _ => format!("{layer}{verb}"),
        }
    }
}

impl TopOne {
    fn add(&mut self, expected: &[f32], found: &[f32]) {
        let (best, margin) = top(expected);
        self.n_rows += 1;
        self.min_margin = self.min_margin.min(margin);
        if top(found).0 == best {
            self.n_agree += 1;
        } else {
            self.max_lost_margin = self.max_lost_margin.max(margin);
        }
    }
}

/// The index of the largest value, the first of equals, and its distance to the next largest.
fn top(logits: &[f32]) -> (usize, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (index, &x) in logits.iter().enumerate() {
        if x > first {
            (best, second, first) = (index, first, x);
        } else if x > second {
            second = x;
        }
    }
    (best, first - second)
}

impl Report {
    /// Whether every value has the same bits.
    #[must_use]
    pub fn is_identical(&self) -> bool {
        self.comparisons
            .iter()
            .all(|comparison| comparison.n_different == 0)
    }

    /// The first verb, in the order of computation, that differs, and where it does.
    #[must_use]
    pub fn first_difference(&self) -> Option<(&Comparison, Difference)> {
        // The earliest batch first; within it, verbs stand in their order.
        let found = self.comparisons.iter().filter_map(|comparison| {
            let first = comparison.first?;
            Some((comparison, first))
        });
        found.min_by_key(|(_, first)| first.batch)
    }

    /// The logits' comparison.
    #[must_use]
    pub fn logits(&self) -> Option<&Comparison> {
        self.comparisons.last()
    }
}

/// A line for each verb that differs, and what it means for the choice of tokens.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} against {}", self.candidate, self.reference)?;
        match self.first_difference() {
            None => writeln!(
                f,
                "all {} intermediates are bit-identical",
                self.comparisons.len()
            )?,
            Some((comparison, first)) => {
                let Difference {
                    seq,
                    token,
                    expected,
                    found,
                    ..
                } = first;
                writeln!(
                    f,
                    "first difference: {}, batch {}, sequence {}, position {}, column {}: {found:e}, expected {expected:e}",
                    comparison.label(),
                    first.batch,
                    seq,
                    token.pos,
                    first.col
                )?;
                writeln!(
                    f,
                    "{:<24} {:>10} {:>10} {:>10}",
                    "verb", "different", "max abs", "max/rms"
                )?;
            }
        }
        for comparison in self.comparisons.iter().filter(|c| c.n_different > 0) {
            writeln!(
                f,
                "{:<24} {:>9.3}% {:>10.2e} {:>10.2e}",
                comparison.label(),
                100.0 * comparison.n_different as f64 / comparison.n_values as f64,
                comparison.max_abs,
                comparison.max_rel
            )?;
        }
        let top = self.top_one;
        write!(
            f,
            "top-1: {} of {} rows agree, smallest margin {:.2e}, largest margin lost {:.2e}",
            top.n_agree, top.n_rows, top.min_margin, top.max_lost_margin
        )
    }
}
