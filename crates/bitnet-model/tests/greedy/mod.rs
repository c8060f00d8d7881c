//! Runs the prompts of a reference folder: logits within their bounds, all tokens.

use std::path::Path;

use bitnet_model::{CpuBackend, CpuOptions, KvType, Session, Want, WeightSource};

use crate::prompts::{bounds, errors, expected};

fn arg_max(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

/// Compares `source` with what `folder` expects.
pub(crate) fn check(name: &str, folder: &Path, source: &dyn WeightSource) {
    let options = CpuOptions {
        kv_type: KvType::F32,
        context: 512,
        ..CpuOptions::default()
    };
    let mut model = CpuBackend::new(source, options).unwrap();
    for prompt in expected(folder) {
        let n = prompt.ids.len();
        let mut session = Session::new(&mut model);
        let mut logits = session
            .step(&[(0, &prompt.ids)], Want::Logits(&[n - 1]))
            .unwrap()
            .to_vec();
        let (max, rms) = errors(&logits, &prompt.last);
        println!("{name}, {}: logits off by {max:.2e} (rms {rms:.2e})", prompt.name);
        // With an activation that near a rounding boundary one code may differ.
        let near = prompt.rounding_gap.is_some_and(|gap| gap < 2e-5);
        let (max_bound, rms_bound) = match near {
            true => (0.2 * prompt.logit_std, 0.05 * prompt.logit_std),
            false => bounds(&prompt),
        };
        assert!(
            max <= max_bound && rms <= rms_bound,
            "{name}, {}: logits off by {max} (rms {rms})",
            prompt.name
        );
        let mut greedy = Vec::new();
        for _ in &prompt.greedy {
            let id = arg_max(&logits);
            greedy.push(id);
            logits = session.step(&[(0, &[id])], Want::Logits(&[0])).unwrap().to_vec();
        }
        assert_eq!(greedy, prompt.greedy, "{name}, {}", prompt.name);
    }
}
