//! The CPU back end against what transformers computes, on every code path of this processor.

mod prompts;

use bitnet_model::{Backend, Checkpoint, CpuBackend, CpuOptions, KvType, LmHead, Session, Simd, Want};
use prompts::{FOLDERS, bounds, errors, expected, folder};

fn arg_max(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

/// Runs every prompt of a folder and checks last logits and greedy tokens.
fn check(name: &str, simd: Simd, kv_type: KvType) {
    let folder = folder(name);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let options = CpuOptions {
        simd: Some(simd),
        kv_type,
        context: 512,
        ..CpuOptions::default()
    };
    let mut model = CpuBackend::new(&checkpoint, options).unwrap();
    // The portable path is slow; that it gives the bits of the others is shown by `conformance` and `batches`.
    let max_len = if simd == Simd::Scalar { 32 } else { usize::MAX };
    for prompt in expected(&folder).into_iter().filter(|p| p.ids.len() <= max_len) {
        let n = prompt.ids.len();
        let mut session = Session::new(&mut model);
        let mut logits = session
            .step(&[(0, &prompt.ids)], Want::Logits(&[n - 1]))
            .unwrap()
            .to_vec();
        let (max, rms) = errors(&logits, &prompt.last);
        let (max_bound, rms_bound) = match kv_type {
            KvType::F32 => bounds(&prompt),
            KvType::Bf16 => (0.4 * prompt.logit_std, 0.1 * prompt.logit_std),
            KvType::Int8 => (0.6 * prompt.logit_std, 0.15 * prompt.logit_std),
        };
        println!(
            "{name} {simd} {kv_type:?} {}: max {max:.2e} rms {rms:.2e}",
            prompt.name
        );
        assert!(
            max <= max_bound && rms <= rms_bound,
            "{name}, {simd}, {kv_type:?}, prompt {}: logits off by {max} (rms {rms})",
            prompt.name
        );
        let mut greedy = Vec::new();
        for _ in &prompt.greedy {
            let id = arg_max(&logits);
            greedy.push(id);
            logits = session.step(&[(0, &[id])], Want::Logits(&[0])).unwrap().to_vec();
        }
        assert_eq!(
            greedy, prompt.greedy,
            "{name}, {simd}, {kv_type:?}, {}",
            prompt.name
        );
    }
}

/// The tokens of every prompt of a folder, from a certified head that every step tries.
fn check_certified(name: &str, simd: Simd) {
    let folder = folder(name);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let options = CpuOptions {
        simd: Some(simd),
        context: 512,
        lm_head: LmHead::Certified,
        ..CpuOptions::default()
    };
    let mut model = CpuBackend::new(&checkpoint, options).unwrap();
    assert!(model.certified().is_some());
    for prompt in expected(&folder).into_iter().filter(|p| p.ids.len() <= 32) {
        let mut session = Session::new(&mut model);
        let mut ids = prompt.ids.clone();
        let mut greedy: Vec<u32> = Vec::new();
        for _ in &prompt.greedy {
            ids = session.most_likely(&[(0, &ids)], &[ids.len() - 1]).unwrap();
            greedy.extend(&ids);
        }
        assert_eq!(greedy, prompt.greedy, "{name}, {simd}, {}", prompt.name);
    }
}

#[test]
fn tokens_of_a_certified_head_are_those_of_transformers() {
    for name in FOLDERS {
        for simd in Simd::available() {
            check_certified(name, simd);
        }
    }
}

#[test]
fn logits_and_tokens_are_those_of_transformers() {
    for name in FOLDERS {
        for kv_type in [KvType::F32, KvType::Bf16, KvType::Int8] {
            for simd in Simd::available() {
                check(name, simd, kv_type);
            }
        }
    }
}
