//! Conversions from and to GGUF: the same codes, scales and token ids come back.

mod container;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bitnet_model::{
    Checkpoint, Existing, GgufTernary, LayerWeights, Pooling, Tokenizer, WeightSource, convert,
    convert_to_gguf, verify,
};

fn oracle(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder)
}

fn same_tables(a: &Checkpoint, b: &Checkpoint) {
    let floats = |table: Box<dyn bitnet_model::Dense + '_>| {
        let (rows, cols) = table.shape();
        let mut bytes = vec![0; rows * cols * table.dtype().size()];
        table.read_rows(0, &mut bytes).unwrap();
        let mut floats = vec![0.0; rows * cols];
        table.dtype().to_f32(&bytes, &mut floats);
        floats
    };
    let pairs = [
        (a.embedding().map(Some).unwrap(), b.embedding().map(Some).unwrap()),
        (a.head().unwrap(), b.head().unwrap()),
    ];
    for (a, b) in pairs {
        let (a, b) = (a.map(&floats), b.map(&floats));
        // Half precision rounds the tiniest values.
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 6e-8);
        match (a, b) {
            (None, None) => {}
            (Some(a), Some(b)) => assert!(a.len() == b.len() && near(&a, &b)),
            _ => panic!("one has a head of its own"),
        }
    }
}

/// Codes and norms are the same, scales within `ratio`.
fn same_layer(a: &LayerWeights, b: &LayerWeights, ratio: f32) {
    let plain = |layer: &LayerWeights| {
        let mut layer = layer.clone();
        for matrix in [&mut layer.qkv, &mut layer.o, &mut layer.gate_up, &mut layer.down] {
            matrix.segments.iter_mut().for_each(|segment| segment.scale = 1.0);
        }
        layer
    };
    assert!(plain(a) == plain(b));
    for (a, b) in [
        (&a.qkv, &b.qkv),
        (&a.o, &b.o),
        (&a.gate_up, &b.gate_up),
        (&a.down, &b.down),
    ] {
        for (a, b) in a.segments.iter().zip(&b.segments) {
            assert!(
                (a.scale / b.scale - 1.0).abs() <= ratio,
                "{} {}",
                a.scale,
                b.scale
            );
        }
    }
}

fn same_model(a: &Path, b: &Path, ratio: f32) {
    let (from, to) = (Checkpoint::open(a).unwrap(), Checkpoint::open(b).unwrap());
    let (mut expected, mut found) = (from.config().clone(), to.config().clone());
    // GGUF orders end tokens in its own way.
    expected.eos.sort_unstable();
    found.eos.retain(|id| expected.eos.contains(id));
    found.eos.sort_unstable();
    assert_eq!(expected, found, "{}", a.display());
    for layer in 0..from.config().n_layers {
        same_layer(&from.layer(layer).unwrap(), &to.layer(layer).unwrap(), ratio);
    }
    assert_eq!(from.final_norm().unwrap(), to.final_norm().unwrap());
    same_tables(&from, &to);
    let tokenizer = |path: &Path| Tokenizer::from_folder(path, expected.bos, &expected.eos).unwrap();
    let (from, to) = (tokenizer(a), tokenizer(b));
    for text in [
        "Hello,  world!\n",
        "don't 12345 gr\u{fc}\u{df}e \u{1f600}",
        "a<|eot_id|></s>b",
        "",
    ] {
        assert_eq!(
            from.encode(text).unwrap(),
            to.encode(text).unwrap(),
            "{}: {text}",
            a.display()
        );
        if expected.has_head {
            assert_eq!(from.encode_prompt(text).unwrap(), to.encode_prompt(text).unwrap());
        }
        let ids = from.encode_plain(text).unwrap();
        assert_eq!(from.decode(&ids).unwrap(), to.decode(&ids).unwrap());
    }
}

#[test]
fn every_gguf_file_converts_to_a_folder() {
    for name in [
        "b158-i2s",
        "llama-tq1-q4k-q6k",
        "bitnet-i2s-spm",
        "bitnet-tq2-ragged",
    ] {
        let source = oracle("oracle-gguf").join(name).join("model.gguf");
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        convert(&Checkpoint::open(&source).unwrap(), &out, Existing::Keep, |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        verify(&Checkpoint::open(&out).unwrap(), |_, _| ()).unwrap();
        same_model(&source, &out, 0.0);
    }
}

#[test]
fn folders_and_files_convert_to_gguf() {
    let sources = [
        (oracle("oracle/bitnet-packed"), None),
        (oracle("oracle/llama-bitnet"), Some(GgufTernary::I2S)),
        (oracle("oracle-gguf/llama-i2s/model.gguf"), None),
        (
            oracle("oracle-gguf/llama-i2s/model.gguf"),
            Some(GgufTernary::Tq1_0),
        ),
        (
            oracle("oracle-gguf/b158-i2s/model.gguf"),
            Some(GgufTernary::Tq2_0),
        ),
        (oracle("oracle-models/onebit-xl"), Some(GgufTernary::I2S)),
        (oracle("oracle-models/onebit-3b"), None),
        (oracle("oracle-models/embed-qwen3"), None),
    ];
    for (source, kind) in sources {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model.gguf");
        let checkpoint = Checkpoint::open(&source).unwrap();
        let write =
            |existing| convert_to_gguf(&checkpoint, &out, kind, existing, |_| ControlFlow::Continue(()));
        let (converted, _) = write(Existing::Keep).unwrap();
        assert_eq!(std::fs::metadata(&out).unwrap().len(), converted.written_bytes);
        assert!(matches!(
            write(Existing::Keep),
            Err(bitnet_model::Error::Occupied { .. })
        ));
        write(Existing::Replace).unwrap();
        // I2_S has the scale as it is, the others round it to 11 bits.
        let exact =
            kind == Some(GgufTernary::I2S) || (kind.is_none() && !source.ends_with("llama-i2s/model.gguf"));
        same_model(&source, &out, if exact { 0.0 } else { 1.0 / 2048.0 });
    }
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.gguf");
    let source = Checkpoint::open(oracle("oracle/bitnet-packed")).unwrap();
    let mut left = 5;
    let result = convert_to_gguf(&source, &out, None, Existing::Keep, |_| {
        left -= 1;
        if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(result, Err(bitnet_model::Error::Cancelled)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_a_type_cannot_hold_is_refused() {
    let refused = |folder: &str, kind| {
        let dir = tempfile::tempdir().unwrap();
        let source = Checkpoint::open(oracle(folder)).unwrap();
        let out = dir.path().join("model.gguf");
        let result = convert_to_gguf(&source, &out, Some(kind), Existing::Keep, |_| {
            ControlFlow::Continue(())
        });
        result.unwrap_err().to_string()
    };
    assert!(refused("oracle-models/onebit-xl", GgufTernary::Tq2_0).contains("rows of 276; take i2_s"));
}

#[test]
fn pooling_survives() {
    let dir = tempfile::tempdir().unwrap();
    let source = Checkpoint::open(oracle("oracle-models/embed-qwen3")).unwrap();
    let (words, file) = (dir.path().join("words"), dir.path().join("model.gguf"));
    convert(&source, &words, Existing::Keep, |_| ControlFlow::Continue(())).unwrap();
    convert_to_gguf(
        &source,
        &file,
        None,
        Existing::Keep,
        |_| ControlFlow::Continue(()),
    )
    .unwrap();
    for path in [words, file] {
        assert_eq!(Pooling::from_files(&path).unwrap(), Some(Pooling::Last));
    }
}

/// Masters without a word of BitNet: refused, unless somebody knows better.
#[test]
fn ternarizing_must_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let source = oracle("oracle/bitnet-bf16");
    for entry in std::fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config
        .as_object_mut()
        .unwrap()
        .remove("quantization_config")
        .unwrap();
    std::fs::write(&path, config.to_string()).unwrap();
    let error = Checkpoint::open(dir.path())
        .unwrap()
        .layer(0)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("magnitudes") && error.contains("ternarize them"),
        "{error}"
    );
    let mut options = bitnet_model::OpenOptions::default();
    options.ternarize = true;
    let ternarized = Checkpoint::open_with(dir.path(), options).unwrap();
    let expected = Checkpoint::open(&source).unwrap();
    assert_eq!(ternarized.config(), expected.config());
    assert!(ternarized.layer(0).unwrap() == expected.layer(0).unwrap());
}
