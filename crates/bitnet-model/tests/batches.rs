//! However prompts are cut into chunks and whatever shares a step with them, the logits have the same bits.

mod prompts;

use bitnet_model::{Backend, Checkpoint, CpuBackend, CpuOptions, KvType, Session, Simd, Spec, Want};
use prompts::{folder, ids};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// `bitnet-packed` is the same model as `bitnet-bf16`.
const MODELS: [&str; 3] = ["bitnet-bf16", "llama-bitnet", "odd-shape"];
const PROMPTS: [&str; 3] = ["short", "long", "unicode"];
const MAX_PROMPT: usize = 20;
const MAX_BATCH: usize = 32;

/// A model with a cache type: its prompts, the logits of every position of each, and every path that must give them.
struct Subject {
    name: String,
    prompts: Vec<Vec<u32>>,
    /// By prompt, (positions, vocab).
    logits: Vec<Vec<f32>>,
    paths: Vec<(Simd, CpuBackend)>,
}

impl Subject {
    fn new(model: &str, kv_type: KvType) -> Self {
        let folder = folder(model);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let on = |simd, threads| {
            let options = CpuOptions {
                simd: Some(simd),
                threads: Some(threads),
                kv_type,
                page: 16,
                context: MAX_PROMPT,
                n_seqs: PROMPTS.len(),
                max_batch: MAX_BATCH,
                ..CpuOptions::default()
            };
            CpuBackend::new(&checkpoint, options).unwrap()
        };
        let prompt = |name: &&str| {
            let mut ids = ids(&folder, name);
            ids.truncate(MAX_PROMPT);
            ids
        };
        let prompts: Vec<Vec<u32>> = PROMPTS.iter().map(prompt).collect();
        let mut alone = on(Simd::Scalar, 1);
        let one_at_a_time = |ids: &Vec<u32>| {
            let mut session = Session::new(&mut alone);
            let logits = |&id| session.step(&[(0, &[id])], Want::Logits(&[0])).unwrap().to_vec();
            ids.iter().flat_map(logits).collect()
        };
        Self {
            name: format!("{model}, {kv_type:?}"),
            logits: prompts.iter().map(one_at_a_time).collect(),
            prompts,
            paths: Simd::available()
                .into_iter()
                .map(|simd| (simd, on(simd, 2)))
                .collect(),
        }
    }

    /// Computes all the prompts, each in its slot: a step takes the next tokens of some of them, as `plan` says.
    fn check(&mut self, path: usize, plan: &[Cut]) -> Result<(), TestCaseError> {
        let (_, backend) = &mut self.paths[path];
        let Spec { name, config, .. } = backend.spec().clone();
        let vocab = config.vocab;
        let mut session = Session::new(backend);
        let mut done = [0; PROMPTS.len()];
        let mut plan = plan.iter().cycle();
        while done
            .iter()
            .zip(&self.prompts)
            .any(|(&done, prompt)| done < prompt.len())
        {
            let mut runs: Vec<(usize, &[u32])> = Vec::new();
            // Sequence and position of each token of the step.
            let mut batch = Vec::new();
            let mut rows = Vec::new();
            for cut in plan.by_ref().take(PROMPTS.len()) {
                let prompt = &self.prompts[cut.slot];
                let first = done[cut.slot];
                let len = cut.len.min(prompt.len() - first).min(MAX_BATCH - batch.len());
                done[cut.slot] += len;
                rows.extend((batch.len()..batch.len() + len).filter(|row| cut.rows >> (row % 8) & 1 == 1));
                runs.push((cut.slot, &prompt[first..first + len]));
                batch.extend((first..first + len).map(|pos| (cut.slot, pos)));
            }
            if batch.is_empty() {
                continue;
            }
            let logits = session.step(&runs, Want::Logits(&rows)).unwrap();
            for (&row, found) in rows.iter().zip(logits.chunks_exact(vocab)) {
                let (seq, pos) = batch[row];
                let expected = &self.logits[seq][pos * vocab..][..vocab];
                let equal = expected
                    .iter()
                    .zip(found)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                prop_assert!(equal, "{}, {name}: row {row} of {batch:?}", self.name);
            }
        }
        Ok(())
    }
}

/// Tokens of one slot that join a step.
#[derive(Clone, Copy, Debug)]
struct Cut {
    slot: usize,
    len: usize,
    /// Bit `row % 8`: whether the logits of that row of the batch are asked for.
    rows: u8,
}

/// Cuts that name every slot, so that repeating them ends.
fn plans() -> impl Strategy<Value = Vec<Cut>> {
    let cut = |slot: BoxedStrategy<usize>, len: std::ops::RangeInclusive<usize>| {
        (slot, len, any::<u8>()).prop_map(|(slot, len, rows)| Cut { slot, len, rows })
    };
    let any_slot = vec(cut((0..PROMPTS.len()).boxed(), 0..=MAX_PROMPT), 0..12);
    let every_slot: Vec<_> = (0..PROMPTS.len())
        .map(|slot| cut(Just(slot).boxed(), 1..=MAX_PROMPT))
        .collect();
    (any_slot, every_slot)
        .prop_map(|(cuts, every)| [cuts, every].concat())
        .prop_shuffle()
}

#[test]
fn neither_chunks_nor_company_change_a_bit() {
    for model in MODELS {
        for kv_type in [KvType::F32, KvType::Bf16, KvType::Int8] {
            let mut subject = Subject::new(model, kv_type);
            for path in 0..subject.paths.len() {
                let mut runner = TestRunner::new(Config {
                    // The portable path is ten times slower.
                    cases: if subject.paths[path].0 == Simd::Scalar {
                        3
                    } else {
                        12
                    },
                    failure_persistence: None,
                    ..Config::default()
                });
                let subject = std::cell::RefCell::new(&mut subject);
                runner
                    .run(&plans(), |plan| subject.borrow_mut().check(path, &plan))
                    .unwrap();
            }
        }
    }
}
