//! The self-test: the model inside the program, computed in every way this machine has.

use std::ops::ControlFlow;

use bitnet_model::{Device, LoadOptions, Message, Model, Prompt, Result, Session, Simd, Want};

use super::check::Check;
use crate::demo;

/// Tokens at the end of the text that are computed one at a time, as an answer is.
const N_SINGLE: usize = 4;

/// Positions that question and answer fit into.
const CONTEXT: usize = 256;

/// What a GPU's logits may differ by: root mean square of the differences, as a share of the logits' standard deviation.
/// Rounding moves single activations to the next 8-bit code, which moves logits by up to a twentieth of that; keys and values
/// in bf16 double it.
const GPU_BAND: f64 = 0.1;

/// Portable code's results, which all others are held against.
pub(super) struct Reference {
    threads: Option<usize>,
    /// Question and answer.
    ids: Vec<u32>,
    answer: String,
    /// (tokens, vocabulary).
    logits: Vec<f32>,
}

impl Reference {
    pub(super) fn new(threads: Option<usize>) -> Result<Self> {
        let mut model = load(Device::Cpu, Some(Simd::Scalar), threads)?;
        let mut options = model.generate_options();
        options.sampling.temperature = 0.0;
        options.max_tokens = Some(CONTEXT / 2);
        let question = [Message::user(demo::QUESTION)];
        let generation = model
            .generator()
            .generate(Prompt::Chat(&question), &options, |_| ControlFlow::Continue(()))?;
        let mut ids = generation.prompt_ids;
        ids.extend(generation.ids);
        let logits = logits(&mut model, &ids)?;
        Ok(Self {
            threads,
            ids,
            answer: generation.text,
            logits,
        })
    }

    /// Whether the model says what it learned.
    pub(super) fn answer(&self) -> Check {
        let (question, answer) = (demo::QUESTION, self.answer.trim());
        if answer == demo::ANSWER {
            return Check::ok("self-test", format!("{question:?} is answered with {answer:?}"))
                .fact("path", "answer");
        }
        Check::failure(
            "self-test",
            format!(
                "{question:?} is answered with {answer:?}, expected {:?}",
                demo::ANSWER
            ),
            "the program file or the processor is damaged: install the program again, or try another machine",
        )
        .fact("path", "answer")
    }

    /// Compares an instruction set: it must give the same bits.
    pub(super) fn path(&mut self, simd: Simd) -> Check {
        let remedy = if simd == Simd::Scalar {
            "computing the same twice gave two results: check the machine's memory and cooling".to_owned()
        } else {
            format!(
                "do not use --simd {simd}; --simd scalar avoids it. Please report this with the output of doctor --json"
            )
        };
        let check = match self.compute(Device::Cpu, Some(simd)) {
            Err(error) => Check::failure("self-test", format!("{simd}: {error}"), remedy),
            Ok(found) => {
                let pairs = found.iter().zip(&self.logits);
                let different = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                let (n, all) = (self.ids.len(), self.logits.len());
                if different == 0 && found.len() == all {
                    Check::ok(
                        "self-test",
                        format!("{simd}: {all} logits of {n} tokens, bit for bit those of portable code"),
                    )
                } else {
                    let message =
                        format!("{simd}: {different} of {all} logits differ from those of portable code");
                    Check::failure("self-test", message, remedy)
                }
            }
        };
        check.fact("path", simd.name())
    }

    /// Compares a GPU: it must give the same logits but for rounding.
    pub(super) fn gpu(&mut self, index: usize) -> Check {
        let remedy = "use --device cpu, and please report this with the output of doctor --json";
        let name = format!("cuda:{index}");
        let found = match self.compute(Device::Cuda(index), None) {
            Ok(found) => found,
            Err(error) => {
                return Check::failure("self-test", format!("{name}: {error}"), remedy).fact("path", name);
            }
        };
        let share = rms_share(&found, &self.logits);
        let message = format!(
            "{name}: {} logits of {} tokens, {:.1} % (rms) from the processor's, at most {:.0} % expected",
            found.len(),
            self.ids.len(),
            share * 100.0,
            GPU_BAND * 100.0
        );
        // Written so that NaN fails.
        let check = if share <= GPU_BAND {
            Check::ok("self-test", message)
        } else {
            Check::failure("self-test", message, remedy)
        };
        check.fact("path", name).fact("rms_share", share)
    }

    fn compute(&self, device: Device, simd: Option<Simd>) -> Result<Vec<f32>> {
        logits(&mut load(device, simd, self.threads)?, &self.ids)
    }
}

/// The self-test cannot begin.
pub(super) fn broken(error: &bitnet_model::Error) -> Check {
    let remedy = "the program file may be damaged: install the program again";
    Check::failure("self-test", error.to_string(), remedy)
}

fn load(device: Device, simd: Option<Simd>, threads: Option<usize>) -> Result<Model> {
    let options = LoadOptions {
        simd,
        threads,
        context: Some(CONTEXT),
        ..LoadOptions::from(device)
    };
    Model::load(demo::files(), options)
}

/// Logits of every token: the first ones computed at once, as a prompt is, the last ones one by one.
fn logits(model: &mut Model, ids: &[u32]) -> Result<Vec<f32>> {
    let mut session = Session::new(model.backend_mut());
    let n_prompt = ids.len().saturating_sub(N_SINGLE).max(1);
    let rows: Vec<usize> = (0..n_prompt).collect();
    let (prompt, rest) = ids.split_at(n_prompt);
    let mut all = session.step(&[(0, prompt)], Want::Logits(&rows))?.to_vec();
    for id in rest {
        all.extend_from_slice(session.step(&[(0, &[*id])], Want::Logits(&[0]))?);
    }
    Ok(all)
}

/// Root mean square of the differences, as a share of the standard deviation of `expected`; NaN where a length differs.
fn rms_share(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let n = expected.len() as f64;
    let mean = expected.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = expected
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / n;
    let pairs = found.iter().zip(expected);
    let error = pairs
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
        .sum::<f64>()
        / n;
    (error / variance).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_logit_or_answer_is_a_failure() {
        use super::super::check::Verdict;

        let mut reference = Reference::new(Some(1)).unwrap();
        assert_eq!(reference.answer().verdict, Verdict::Ok);
        assert_eq!(reference.path(Simd::Scalar).verdict, Verdict::Ok);
        let last = reference.logits.len() - 1;
        reference.logits[last] += 1e-3;
        assert_eq!(reference.path(Simd::Scalar).verdict, Verdict::Failure);
        reference.answer.push('x');
        assert_eq!(reference.answer().verdict, Verdict::Failure);
    }

    #[test]
    fn differences_are_measured_against_the_spread() {
        let expected = [0.0, 2.0, 0.0, 2.0];
        assert_eq!(rms_share(&expected, &expected), 0.0);
        assert_eq!(rms_share(&[0.5, 2.5, 0.5, 2.5], &expected), 0.5);
        assert!(rms_share(&[0.0], &expected).is_nan());
        assert!(rms_share(&[f32::NAN, 2.0, 0.0, 2.0], &expected).is_nan());
    }
}
