//! The CPU back end against what transformers computes, on every code path of this processor.

use std::path::{Path, PathBuf};

use bitnet_model::{Backend, Checkpoint, CpuBackend, CpuOptions, KvType, Simd, Token};
use safetensors::SafeTensors;

const FOLDERS: [&str; 4] = ["bitnet-bf16", "bitnet-packed", "llama-bitnet", "odd-shape"];

/// Prompts that have no activation near a rounding boundary of its quantization: compared tightly.
const CLEAN: [&str; 2] = ["bos", "short"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle")
        .join(name)
}

struct Expected {
    name: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    logit_std: f32,
    last: Vec<f32>,
}

fn expected(folder: &Path) -> Vec<Expected> {
    let json = std::fs::read(folder.join("expected.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let arrays = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |ids: &serde_json::Value| serde_json::from_value(ids.clone()).unwrap();
    let prompts = json["prompts"].as_array().unwrap().iter();
    prompts
        .map(|prompt| {
            let name = prompt["name"].as_str().unwrap().to_owned();
            let last = arrays.tensor(&format!("{name}.f32.last")).unwrap();
            let last = last.data().as_chunks::<4>().0.iter().copied();
            Expected {
                ids: ids(&prompt["ids"]),
                greedy: ids(&prompt["f32"]["greedy_ids"]),
                logit_std: prompt["f32"]["logit_std"].as_f64().unwrap() as f32,
                last: last.map(f32::from_le_bytes).collect(),
                name,
            }
        })
        .collect()
}

fn batch(ids: &[u32], first: usize) -> Vec<Token> {
    let token = |(i, &id): (usize, &u32)| Token {
        id,
        pos: (first + i) as u32,
        seq: 0,
    };
    ids.iter().enumerate().map(token).collect()
}

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
    for prompt in expected(&folder) {
        let n = prompt.ids.len();
        let mut logits = model.step(&batch(&prompt.ids, 0), &[n - 1]).unwrap().to_vec();
        let difference = || logits.iter().zip(&prompt.last).map(|(a, b)| (a - b).abs());
        let max = difference().fold(0.0, f32::max);
        let rms = (difference().map(|d| d * d).sum::<f32>() / logits.len() as f32).sqrt();
        let (max_bound, rms_bound) = match kv_type {
            KvType::F32 if CLEAN.contains(&prompt.name.as_str()) => (1e-4, 1e-4),
            KvType::F32 => (0.2 * prompt.logit_std, 0.05 * prompt.logit_std),
            KvType::Bf16 => (0.4 * prompt.logit_std, 0.1 * prompt.logit_std),
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
        for pos in n..n + prompt.greedy.len() {
            let id = arg_max(&logits);
            greedy.push(id);
            logits = model.step(&batch(&[id], pos), &[0]).unwrap().to_vec();
        }
        assert_eq!(
            greedy, prompt.greedy,
            "{name}, {simd}, {kv_type:?}, {}",
            prompt.name
        );
    }
}

#[test]
fn logits_and_tokens_are_those_of_transformers() {
    for name in FOLDERS {
        for kv_type in [KvType::F32, KvType::Bf16] {
            for simd in Simd::available() {
                check(name, simd, kv_type);
            }
        }
    }
}
