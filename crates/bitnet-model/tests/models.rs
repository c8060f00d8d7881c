//! Folders in the form of further published checkpoints against what transformers computes (`tests/oracle-models/README.md`).

mod greedy;
mod prompts;

use std::path::{Path, PathBuf};

use bitnet_model::{Checkpoint, Device, KvType, LoadOptions, Model, Pooling, Tokenizer, WeightSource};
use safetensors::SafeTensors;
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle-models")
        .join(name)
}

/// Heads of 100 with tokenizer.model alone, and a feed-forward width that is no multiple of 16.
const LANGUAGE_MODELS: [&str; 2] = ["onebit-3b", "onebit-xl"];

#[test]
fn logits_and_tokens_are_those_of_transformers() {
    for name in LANGUAGE_MODELS {
        let checkpoint = Checkpoint::open(folder(name)).unwrap();
        greedy::check(name, &folder(name), &checkpoint);
    }
}

#[test]
fn text_becomes_the_same_ids_with_tokenizer_json_and_with_tokenizer_model() {
    for name in LANGUAGE_MODELS {
        let only_model = tempfile::tempdir().unwrap();
        for file in [
            "tokenizer.model",
            "added_tokens.json",
            "tokenizer_config.json",
            "config.json",
        ] {
            std::fs::copy(folder(name).join(file), only_model.path().join(file)).unwrap();
        }
        let expected = std::fs::read(folder(name).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        for folder in [&folder(name), only_model.path()] {
            let config = Checkpoint::open(self::folder(name)).unwrap().config().clone();
            let tokenizer = Tokenizer::from_folder(folder, config.bos, &config.eos).unwrap();
            for prompt in expected["prompts"].as_array().unwrap() {
                let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
                let text = prompt["text"].as_str().unwrap();
                let found = tokenizer.encode(text).unwrap();
                assert_eq!(found, ids, "{name}: {}", prompt["name"]);
            }
        }
    }
}

/// The vectors of a folder and of the GGUF file of the same model.
#[test]
fn embeddings_are_those_of_transformers() {
    let folder = folder("embed-qwen3");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let arrays = SafeTensors::deserialize(&bytes).unwrap();
    // Half precision in the file rounds nothing that matters.
    for (path, bound) in [(folder.clone(), 1e-4), (folder.join("model.gguf"), 1e-3)] {
        let options = LoadOptions {
            kv_type: KvType::F32,
            ..Device::Cpu.into()
        };
        let mut model = Model::load(&path, options).unwrap();
        assert_eq!(model.pooling(), Some(Pooling::Last));
        for (i, text) in expected["texts"].as_array().unwrap().iter().enumerate() {
            let ids: Vec<u32> = serde_json::from_value(text["ids"].clone()).unwrap();
            let gap = text["rounding_gap"].as_f64().unwrap();
            let text = text["text"].as_str().unwrap();
            assert_eq!(model.tokenizer().unwrap().encode(text).unwrap(), ids);
            for (pooling, array) in [(None, "embedding"), (Some(Pooling::Mean), "embedding_mean")] {
                let expected = prompts::floats(arrays.tensor(&format!("{i}.{array}")).unwrap().data());
                let found = model.embed(text, pooling).unwrap();
                let error = found
                    .iter()
                    .zip(&expected)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                println!(
                    "{}, text {i}, {array}: off by {error:.2e}, gap {gap:.1e}",
                    path.display()
                );
                // An activation on a rounding boundary may take the next code.
                let bound = if gap < 2e-5 { 2e-2 } else { bound };
                assert!(
                    error <= bound,
                    "{}, text {i}, {array}: off by {error}",
                    path.display()
                );
            }
        }
        let error = model.generator().generate(
            bitnet_model::Prompt::Text("The"),
            &bitnet_model::GenerateOptions::default(),
            |_| std::ops::ControlFlow::Continue(()),
        );
        assert!(error.unwrap_err().to_string().contains("bitnet embed"));
    }
}
