//! GGUF files of every kind against what transformers computes on exactly what is in them (`tests/oracle-gguf/README.md`).

mod greedy;
mod prompts;

use std::path::{Path, PathBuf};

use bitnet_layout::words;
use bitnet_model::{ChatTemplate, Checkpoint, Dense, Message, TernaryTensor, Tokenizer, WeightSource};
use serde_json::Value;
use sha2::{Digest, Sha256};

const FOLDERS: [&str; 13] = [
    "b158-i2s",
    "b158-i2s-q6k-split",
    "b158-iq2bn",
    "b158-iq2bn-r4",
    "b25-i2s-output",
    "bitnet-i2s-spm",
    "bitnet-iq2bn-scale",
    "bitnet-tq2-ragged",
    "llama-i2s",
    "llama-iq1bn-iq4nl",
    "llama-q2-0",
    "llama-tq1-q4k-q6k",
    "llama-tq2",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle-gguf")
        .join(name)
}

/// The file of a folder; of a split model the first.
fn file(name: &str) -> PathBuf {
    let single = folder(name).join("model.gguf");
    match single.exists() {
        true => single,
        false => folder(name).join("model-00001-of-00003.gguf"),
    }
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("expected.json")).unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn floats_hash(floats: &[f32]) -> String {
    sha256(&floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

fn table_hash(table: &dyn Dense) -> String {
    let (rows, cols) = table.shape();
    let mut bytes = vec![0; rows * cols * table.dtype().size()];
    table.read_rows(0, &mut bytes).unwrap();
    let mut floats = vec![0.0; rows * cols];
    table.dtype().to_f32(&bytes, &mut floats);
    floats_hash(&floats)
}

/// Of each segment, the hash of its codes as bytes, and its scale; `cols` are the columns that are the matrix's.
fn codes(matrix: &TernaryTensor, cols: usize) -> Vec<(String, f32)> {
    let mut rows = matrix.words.chunks_exact(matrix.k / 16);
    let mut of_segment = |n: usize| {
        let mut bytes = Vec::new();
        for words in rows.by_ref().take(n) {
            let mut row = vec![0; matrix.k];
            words::unpack_row(words, &mut row);
            assert!(row[cols..].iter().all(|&t| t == 0), "padding is zero");
            bytes.extend(row[..cols].iter().map(|&t| t as u8));
        }
        sha256(&bytes)
    };
    let segments = matrix.segments.iter();
    segments
        .map(|segment| (of_segment(segment.rows), segment.scale))
        .collect()
}

#[test]
fn every_tensor_is_what_other_programs_wrote() {
    for name in FOLDERS {
        let expected = &json(name)["tensors"];
        let mut seen = 0;
        let mut dense = |tensor: String, hash: String| {
            assert_eq!(expected[&tensor]["f32_sha256"], hash, "{name}: {tensor}");
            seen += 1;
        };
        let checkpoint = Checkpoint::open(file(name)).unwrap();
        let config = checkpoint.config();
        dense(
            "token_embd.weight".into(),
            table_hash(&*checkpoint.embedding().unwrap()),
        );
        if let Some(head) = checkpoint.head().unwrap() {
            dense("output.weight".into(), table_hash(&*head));
        }
        dense(
            "output_norm.weight".into(),
            floats_hash(&checkpoint.final_norm().unwrap()),
        );
        for index in 0..config.n_layers {
            let layer = checkpoint.layer(index).unwrap();
            let norms = [
                ("attn_norm", Some(&layer.attn_norm)),
                ("ffn_norm", Some(&layer.ffn_norm)),
                ("attn_sub_norm", layer.attn_sub_norm.as_ref()),
                ("ffn_sub_norm", layer.ffn_sub_norm.as_ref()),
            ];
            for (norm, floats) in norms {
                if let Some(floats) = floats {
                    dense(format!("blk.{index}.{norm}.weight"), floats_hash(floats));
                }
            }
        }
        for index in 0..config.n_layers {
            let layer = checkpoint.layer(index).unwrap();
            let stacks: [(&[&str], &TernaryTensor, usize); 4] = [
                (&["attn_q", "attn_k", "attn_v"], &layer.qkv, config.d_model),
                (&["attn_output"], &layer.o, config.d_q()),
                (&["ffn_gate", "ffn_up"], &layer.gate_up, config.d_model),
                (&["ffn_down"], &layer.down, config.d_ffn),
            ];
            for (tensors, matrix, cols) in stacks {
                for (tensor, (hash, scale)) in tensors.iter().zip(codes(matrix, cols)) {
                    let tensor = format!("blk.{index}.{tensor}.weight");
                    assert_eq!(expected[&tensor]["codes_sha256"], hash, "{name}: {tensor}");
                    let expected = expected[&tensor]["scale"].as_f64().unwrap() as f32;
                    assert_eq!(scale, expected, "{name}: {tensor}");
                    seen += 1;
                }
            }
        }
        let scales = expected
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| key.ends_with(".scale"));
        assert_eq!(
            seen,
            expected.as_object().unwrap().len() - scales.count(),
            "{name}"
        );
    }
}

#[test]
fn text_becomes_the_same_ids_from_the_metadata_alone() {
    for name in FOLDERS {
        let path = file(name);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config = checkpoint.config();
        let tokenizer = Tokenizer::from_folder(&path, config.bos, &config.eos).unwrap();
        let template = ChatTemplate::from_folder(&path, &tokenizer).unwrap();
        for prompt in json(name)["prompts"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
            let text = prompt["text"].as_str().unwrap();
            let found = match prompt["add_special_tokens"].as_bool().unwrap() {
                true => tokenizer.encode(text),
                false => tokenizer.encode_plain(text),
            };
            assert_eq!(found.unwrap(), ids, "{name}: {}", prompt["name"]);
            if let Some(messages) = prompt["messages"].as_array() {
                let field = |message: &Value, field: &str| message[field].as_str().unwrap().to_owned();
                let messages: Vec<Message> = messages
                    .iter()
                    .map(|message| Message::new(field(message, "role"), field(message, "content")))
                    .collect();
                let rendered = template.as_ref().unwrap().render(&messages).unwrap();
                assert_eq!(rendered, text, "{name}: {}", prompt["name"]);
            }
        }
    }
}

#[test]
fn logits_and_tokens_are_those_of_transformers() {
    for name in FOLDERS {
        let checkpoint = Checkpoint::open(file(name)).unwrap();
        greedy::check(name, &folder(name), &checkpoint);
    }
}
