//! Converting, inspecting and verifying folders.

mod folder;

use std::ops::ControlFlow;
use std::path::Path;

use bitnet_model::{Checkpoint, Dense, Error, Existing, WeightSource, convert, inspect, verify};
use folder::{Array, Folder, LAYERS, PROJECTIONS, numbers, ternary};
use safetensors::{Dtype, SafeTensors};

fn convert_to(source: &Path, out: &Path, existing: Existing) -> bitnet_model::Result<()> {
    convert(&Checkpoint::open(source)?, out, existing, |_| {
        ControlFlow::Continue(())
    })
    .map(drop)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn table(dense: Box<dyn Dense + '_>) -> Vec<u8> {
    let (rows, cols) = dense.shape();
    let mut bytes = vec![0; rows * cols * dense.dtype().size()];
    dense.read_rows(0, &mut bytes).unwrap();
    bytes
}

fn assert_same_model(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.config(), b.config());
    for layer in 0..a.config().n_layers {
        assert!(
            a.layer(layer).unwrap() == b.layer(layer).unwrap(),
            "layer {layer}"
        );
    }
    assert_eq!(a.final_norm().unwrap(), b.final_norm().unwrap());
    assert!(table(a.embedding().unwrap()) == table(b.embedding().unwrap()));
    assert!(a.head().unwrap().map(table) == b.head().unwrap().map(table));
}

#[test]
fn every_form_converts_to_the_same_model() {
    let mut linear_norms = Folder::packed("bitlinear", Dtype::BF16);
    linear_norms.llama();
    linear_norms.linear_norms();
    for folder in [
        Folder::online(Dtype::BF16),
        Folder::online(Dtype::F32),
        Folder::packed("autobitlinear", Dtype::BF16),
        Folder::packed("bitlinear", Dtype::F16),
        Folder::baked(Dtype::BF16),
        Folder::one_bit(Dtype::F16),
        linear_norms,
    ] {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("hf")).unwrap();
        folder.write_sharded(&at("hf"));
        std::fs::write(at("hf/tokenizer.json"), "{}").unwrap();
        std::fs::write(at("hf/chat_template.jinja"), "x").unwrap();
        std::fs::write(at("hf/training_args.bin"), "x").unwrap();
        let source = Checkpoint::open(at("hf")).unwrap();
        let mut seen = Vec::new();
        let converted = convert(&source, &at("out"), Existing::Keep, |progress| {
            assert_eq!(
                progress.total_bytes,
                seen.last().map_or(progress.total_bytes, |&(_, total)| total)
            );
            seen.push((progress.done_bytes, progress.total_bytes));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(seen.is_sorted() && seen.last().is_some_and(|(done, total)| done == total));

        let result = Checkpoint::open(at("out")).unwrap();
        assert_same_model(&source, &result);
        assert_eq!(result.architecture(), source.architecture());
        let expected = [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
        ];
        assert_eq!(names(&at("out")), expected);
        let file = std::fs::read(at("out/model.safetensors")).unwrap();
        assert_eq!(file.len() as u64, converted.written_bytes);
        // The library that others read it with agrees that it is sound.
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let down = tensors.tensor("model.layers.1.mlp.down_proj.weight").unwrap();
        assert_eq!((down.dtype(), down.shape()), (Dtype::U32, &[48, 5][..]));
        let checked = verify(&result, |_, _| ()).unwrap();
        assert_eq!(
            (checked.tensors, checked.checksums),
            (tensors.len(), tensors.len())
        );
        assert_eq!(verify(&source, |_, _| ()).unwrap().checksums, 0);

        // The same bytes every time, also from the converted folder itself.
        for (from, to) in [("hf", "again"), ("out", "twice")] {
            convert_to(&at(from), &at(to), Existing::Keep).unwrap();
            assert!(std::fs::read(at(to).join("model.safetensors")).unwrap() == file);
            assert_eq!(
                std::fs::read(at(to).join("config.json")).unwrap(),
                std::fs::read(at("out/config.json")).unwrap()
            );
        }
    }
}

#[test]
fn a_changed_byte_is_found_in_every_tensor() {
    let root = tempfile::tempdir().unwrap();
    let (hf, out) = (root.path().join("hf"), root.path().join("out"));
    std::fs::create_dir(&hf).unwrap();
    Folder::baked(Dtype::BF16).write(&hf);
    convert_to(&hf, &out, Existing::Keep).unwrap();
    let path = out.join("model.safetensors");
    let sound = std::fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&sound).unwrap();
    for name in metadata.offset_keys() {
        let (start, end) = metadata.info(&name).unwrap().data_offsets;
        let mut damaged = sound.clone();
        // The low bit of a mantissa, a scale or a code that stays valid.
        damaged[8 + header + (start + end) / 2] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        let error = verify(&checkpoint, |_, _| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor `{name}`")), "{name}: {error}");
        // Loading finds it too, except in the tables.
        let loaded = (0..LAYERS).try_for_each(|layer| checkpoint.layer(layer).map(drop));
        let loaded = loaded.and_then(|()| checkpoint.final_norm().map(drop));
        let is_table = name.contains("embed_tokens") || name.contains("lm_head");
        assert_eq!(loaded.is_ok(), is_table, "{name}");
    }
}

/// A key that names no tensor would turn its check off.
#[test]
fn a_changed_byte_in_a_checksum_key_is_found() {
    let root = tempfile::tempdir().unwrap();
    let (hf, out) = (root.path().join("hf"), root.path().join("out"));
    std::fs::create_dir(&hf).unwrap();
    Folder::baked(Dtype::BF16).write(&hf);
    convert_to(&hf, &out, Existing::Keep).unwrap();
    let path = out.join("model.safetensors");
    let sound = std::fs::read(&path).unwrap();
    let keys: Vec<usize> = (0..sound.len())
        .filter(|&at| sound[at..].starts_with(b"\"xxh3."))
        .collect();
    assert!(keys.len() > 10);
    for (at, expected) in [
        (1, "no checksum of tensor"),
        (4, "no checksum of tensor"),
        (8, "has a checksum of tensor"),
    ] {
        for key in &keys {
            let mut damaged = sound.clone();
            damaged[key + at] = b'Z';
            std::fs::write(&path, &damaged).unwrap();
            let error = Checkpoint::open(&out).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

/// transformers and vLLM take the head that the file has.
#[test]
fn a_head_beside_a_tied_embedding_is_used_where_it_differs() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let mut folder = Folder::online(Dtype::BF16);
    let embedding = folder.tensor("model.embed_tokens.weight").clone();
    folder.tensors.insert("lm_head.weight".into(), embedding);
    std::fs::create_dir(at("same")).unwrap();
    folder.write(&at("same"));
    assert!(Checkpoint::open(at("same")).unwrap().head().unwrap().is_none());

    folder.tensor("lm_head.weight").set(7, 3.0);
    std::fs::create_dir(at("other")).unwrap();
    folder.write(&at("other"));
    let other = Checkpoint::open(at("other")).unwrap();
    assert!(!other.config().tied_head);
    let mut row = [0; 2 * 48];
    other.head().unwrap().unwrap().read_rows(0, &mut row).unwrap();
    assert_eq!(row[14..16], [0x40, 0x40]);
    convert_to(&at("other"), &at("out"), Existing::Keep).unwrap();
    assert_same_model(&other, &Checkpoint::open(at("out")).unwrap());
}

#[test]
fn nothing_is_left_of_a_failure() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    std::fs::create_dir(at("hf")).unwrap();
    let mut folder = Folder::online(Dtype::BF16);
    folder
        .tensor("model.layers.1.mlp.down_proj.weight")
        .set(5, f32::NAN);
    folder.write(&at("hf"));
    let refusal = |out: &str, existing| convert_to(&at("hf"), &at(out), existing).unwrap_err().to_string();
    let error = refusal("a/b/out", Existing::Keep);
    assert!(error.contains("holds NaN at row 0, column 5"), "{error}");
    assert!(!at("a").exists());

    // A model that is there stays as it is.
    std::fs::create_dir(at("sound")).unwrap();
    Folder::baked(Dtype::BF16).write(&at("sound"));
    convert_to(&at("sound"), &at("out"), Existing::Keep).unwrap();
    let before = std::fs::read(at("out/model.safetensors")).unwrap();
    let error = refusal("out", Existing::Replace);
    assert!(error.contains("holds NaN"), "{error}");
    assert!(std::fs::read(at("out/model.safetensors")).unwrap() == before);
    assert_eq!(
        names(&at("out")),
        ["config.json", "generation_config.json", "model.safetensors"]
    );

    let mut folder = Folder::online(Dtype::BF16);
    folder.tensor("model.embed_tokens.weight").set(50, f32::INFINITY);
    folder.write(&at("hf"));
    let error = refusal("b", Existing::Keep);
    assert!(
        error.contains("`model.embed_tokens.weight` holds NaN or infinity at row 1, column 2"),
        "{error}"
    );
    assert!(!at("b").exists());
}

#[test]
fn output_folders() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    std::fs::create_dir(at("hf")).unwrap();
    Folder::online(Dtype::BF16).write(&at("hf"));
    let refusal = |out: &str, existing| match convert_to(&at("hf"), &at(out), existing).unwrap_err() {
        error @ (Error::Request(_) | Error::Occupied { .. }) => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(refusal("hf", Existing::Replace).contains("is the folder to convert"));
    assert!(refusal("hf/../hf", Existing::Replace).contains("is the folder to convert"));
    assert!(refusal("hf/config.json", Existing::Replace).contains("is a file"));

    // Empty, or left by a run that was killed.
    std::fs::create_dir(at("out")).unwrap();
    std::fs::write(at("out/.model.safetensors.partial"), vec![7; 1 << 20]).unwrap();
    convert_to(&at("hf"), &at("out"), Existing::Keep).unwrap();
    assert_eq!(
        names(&at("out")),
        ["config.json", "generation_config.json", "model.safetensors"]
    );

    // Replacing leaves nothing of the other model that could be taken for a part of this one.
    std::fs::write(at("out/chat_template.jinja"), "old").unwrap();
    std::fs::write(at("out/model.safetensors.index.json"), "{}").unwrap();
    std::fs::write(at("out/notes.txt"), "mine").unwrap();
    assert!(refusal("out", Existing::Keep).contains("is not empty"));
    convert_to(&at("hf"), &at("out"), Existing::Replace).unwrap();
    assert_eq!(
        names(&at("out")),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "notes.txt"
        ]
    );
    Checkpoint::open(at("out")).unwrap();
}

#[test]
fn inspection_counts_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let mut folder = Folder::packed("bitlinear", Dtype::F32);
    folder.llama();
    folder.tensors.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        Array::bf16(&[4], &numbers(1, 4)),
    );
    folder.write(root.path());
    let checkpoint = Checkpoint::open(root.path()).unwrap();
    let mut last = (0, 0);
    let found = inspect(&checkpoint, |done, total| last = (done, total)).unwrap();
    assert!(last.0 == last.1 && last.0 > 0);

    let values: Vec<i8> = (0..LAYERS)
        .flat_map(|layer| (0..7).flat_map(move |which| ternary(layer, which).1))
        .collect();
    let count = |t| values.iter().filter(|&&value| value == t).count() as u64;
    let total = |counts: bitnet_model::TernaryCounts| [counts.minus, counts.zero, counts.plus];
    assert_eq!(total(found.values), [count(-1), count(0), count(1)]);
    assert_eq!(found.ternary_parameters, values.len() as u64);
    // Embedding, head, final norm, two norms a layer, the stray table.
    assert_eq!(found.dense_parameters, 2 * 20 * 48 + 48 + 4 * 48 + 4);
    assert_eq!(
        found.total_bytes,
        values.len() as u64 / 4 + 14 * 4 + 2 * found.dense_parameters
    );
    assert!(
        (found.ternary_bits_per_weight - 2.0).abs() < 0.05,
        "{}",
        found.ternary_bits_per_weight
    );
    assert_eq!(found.architecture, "LlamaForCausalLM");
    assert_eq!((found.shape.activation, found.shape.n_layers), ("silu", LAYERS));

    let scales: Vec<f32> = (0..14)
        .map(|at| 1.0 / ternary(at / 7, at % 7).0.inverse)
        .collect();
    let (min, max) = (
        scales.iter().copied().fold(9e9, f32::min),
        scales.iter().copied().fold(0.0, f32::max),
    );
    assert_eq!((found.scales.min, found.scales.max), (min, max));
    assert!(found.scales.mean > f64::from(min) && found.scales.mean < f64::from(max));
    let down = found
        .tensors
        .iter()
        .find(|tensor| tensor.name == "model.layers.1.mlp.down_proj.weight")
        .unwrap();
    assert_eq!(
        (&down.dtype[..], &down.shape[..], down.bytes),
        ("U8", &[12, 80][..], 960)
    );
    assert_eq!(down.scale, Some(scales[13]));
    assert_eq!(
        total(down.values.unwrap()).iter().sum::<u64>(),
        (PROJECTIONS[6].1 * PROJECTIONS[6].2) as u64
    );
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["values"]["zero"], count(0));
    assert_eq!(json["tensors"].as_array().unwrap().len(), folder.tensors.len());
}

#[test]
fn one_that_is_broken_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("hf")).unwrap();
    Folder::online(Dtype::BF16).write(&at("hf"));
    let source = Checkpoint::open(at("hf")).unwrap();
    let mut calls = 0;
    let result = convert(&source, &at("out"), Existing::Keep, |_| {
        calls += 1;
        if calls < 5 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!((calls, at("out").exists()), (5, false));
}
