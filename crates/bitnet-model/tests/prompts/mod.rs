//! The reference folders of `tests/oracle`, and what transformers computed on them.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

pub(crate) const FOLDERS: [&str; 4] = ["bitnet-bf16", "bitnet-packed", "llama-bitnet", "odd-shape"];

/// Prompts that have no activation near a rounding boundary of its quantization: compared tightly.
pub(crate) const CLEAN: [&str; 2] = ["bos", "short"];

pub(crate) fn folder(name: &str) -> PathBuf {
    // The tests of the program use this file too.
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bitnet-model");
    // Tests that were built on another machine run from the workspace's root.
    let here = if built.is_dir() {
        built
    } else {
        PathBuf::from("crates/bitnet-model")
    };
    here.join("tests/oracle").join(name)
}

/// A prompt and what float32 gives for it.
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) ids: Vec<u32>,
    /// The 32 tokens that follow, whatever they are.
    pub(crate) greedy: Vec<u32>,
    pub(crate) logit_std: f32,
    /// How near an activation is to a rounding boundary of its quantization, where the reference tells it.
    pub(crate) rounding_gap: Option<f64>,
    /// Logits of the last position, (vocab).
    pub(crate) last: Vec<f32>,
    /// Logits of every position, (tokens, vocab); of the prompt `short` alone.
    pub(crate) all: Option<Vec<f32>>,
    /// Minus the log probability of each token after the first.
    pub(crate) token_nll: Vec<f64>,
}

pub(crate) fn expected(folder: &Path) -> Vec<Expected> {
    let json = std::fs::read(folder.join("expected.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let arrays = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |ids: &serde_json::Value| serde_json::from_value(ids.clone()).unwrap();
    let prompts = json["prompts"].as_array().unwrap().iter();
    prompts
        .map(|prompt| {
            let name = prompt["name"].as_str().unwrap().to_owned();
            let array = |part: &str| {
                arrays
                    .tensor(&format!("{name}.f32.{part}"))
                    .ok()
                    .map(|a| floats(a.data()))
            };
            Expected {
                ids: ids(&prompt["ids"]),
                greedy: ids(&prompt["f32"]["greedy_ids"]),
                logit_std: prompt["f32"]["logit_std"].as_f64().unwrap() as f32,
                rounding_gap: prompt["f32"]["rounding_gap"].as_f64(),
                last: array("last").unwrap(),
                all: array("all"),
                token_nll: serde_json::from_value(prompt["f32"]["token_nll"].clone()).unwrap_or_default(),
                name,
            }
        })
        .collect()
}

/// Little-endian f32.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    values.iter().copied().map(f32::from_le_bytes).collect()
}

/// How far logits of an f32 run may be from the reference's: the largest error and the root mean square.
pub(crate) fn bounds(prompt: &Expected) -> (f32, f32) {
    if CLEAN.contains(&prompt.name.as_str()) {
        (1e-4, 1e-4)
    } else {
        (0.2 * prompt.logit_std, 0.05 * prompt.logit_std)
    }
}

/// The largest error and the root mean square of all.
pub(crate) fn errors(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len());
    let errors = || found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let squares: f32 = errors().map(|error| error * error).sum();
    (
        errors().fold(0.0, f32::max),
        (squares / found.len() as f32).sqrt(),
    )
}

/// The ids of the prompt of that name.
pub(crate) fn ids(folder: &Path, name: &str) -> Vec<u32> {
    let mut prompts = expected(folder).into_iter();
    prompts.find(|prompt| prompt.name == name).unwrap().ids
}
