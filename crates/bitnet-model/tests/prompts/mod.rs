//! The reference folders of `tests/oracle`, and what transformers computed on them.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

pub(crate) const FOLDERS: [&str; 4] = ["bitnet-bf16", "bitnet-packed", "llama-bitnet", "odd-shape"];

/// Prompts that have no activation near a rounding boundary of its quantization: compared tightly.
pub(crate) const CLEAN: [&str; 2] = ["bos", "short"];

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle")
        .join(name)
}

/// A prompt and what float32 gives for it.
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) ids: Vec<u32>,
    /// The 32 tokens that follow, whatever they are.
    pub(crate) greedy: Vec<u32>,
    pub(crate) logit_std: f32,
    /// Logits of the last position, (vocab).
    pub(crate) last: Vec<f32>,
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
            let last = arrays.tensor(&format!("{name}.f32.last")).unwrap();
            let last = last.data().as_chunks::<4>().0.iter().copied();
            Expected {
                ids: ids(&prompt["ids"]),
                greedy: ids(&prompt["f32"]["greedy_ids"]),
                logit_std: prompt["f32"]["logit_std"].as_f64().unwrap() as f32,
                last: last.map(f32::from_le_bytes).collect(),
                token_nll: serde_json::from_value(prompt["f32"]["token_nll"].clone()).unwrap_or_default(),
                name,
            }
        })
        .collect()
}

/// The ids of the prompt of that name.
pub(crate) fn ids(folder: &Path, name: &str) -> Vec<u32> {
    let mut prompts = expected(folder).into_iter();
    prompts.find(|prompt| prompt.name == name).unwrap().ids
}
