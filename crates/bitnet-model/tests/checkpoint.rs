//! Sound checkpoints of every form: what is read equals what was stored.

mod folder;

use std::path::PathBuf;

use bitnet_layout::ternary::{WeightQuant, abs_sum};
use bitnet_layout::words::{self, unpack_row};
use bitnet_model::{ActQuant, Activation, Checkpoint, DenseDtype, WeightSource};
use folder::{Array, Folder, LAYERS, PROJECTIONS, canonical, numbers, ternary};
use safetensors::Dtype;
use serde_json::{Value, json};

fn oracle(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle")
        .join(name)
}

fn open(folder: &Folder) -> (Checkpoint, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    (Checkpoint::open(dir.path()).unwrap(), dir)
}

/// Words and scales of every projection, in the order of [`PROJECTIONS`], layer by layer.
fn projections(checkpoint: &Checkpoint) -> Vec<(Vec<u32>, f32)> {
    let mut all = Vec::new();
    for layer in 0..checkpoint.config().n_layers {
        let layer = checkpoint.layer(layer).unwrap();
        for tensor in [layer.qkv, layer.o, layer.gate_up, layer.down] {
            assert_eq!(tensor.words.len(), tensor.n * tensor.k / 16);
            assert_eq!(
                tensor.n,
                tensor.segments.iter().map(|segment| segment.rows).sum::<usize>()
            );
            let mut words = &tensor.words[..];
            for segment in tensor.segments {
                let (rows, rest) = words.split_at(segment.rows * tensor.k / 16);
                all.push((rows.to_vec(), segment.scale));
                words = rest;
            }
        }
    }
    all
}

fn check_words(checkpoint: &Checkpoint, scale: impl Fn(usize, usize) -> f32) {
    let found = projections(checkpoint);
    assert_eq!(found.len(), LAYERS * PROJECTIONS.len());
    for (at, (words, found_scale)) in found.iter().enumerate() {
        let (layer, which) = (at / 7, at % 7);
        assert!(
            *words == canonical(layer, which),
            "layer {layer}, {}",
            PROJECTIONS[which].0
        );
        let expected = scale(layer, which);
        assert!(
            (found_scale / expected - 1.0).abs() < 1e-6,
            "layer {layer}, {}: scale {found_scale}, expected {expected}",
            PROJECTIONS[which].0
        );
    }
}

#[test]
fn every_storage_gives_the_same_matrices() {
    let mean = |layer, which| ternary(layer, which).0.scale;
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        for folder in [Folder::online(dtype), Folder::one_bit(dtype)] {
            let (checkpoint, _dir) = open(&folder);
            assert_eq!(checkpoint.config().act_quant, ActQuant::Int8);
            assert!(checkpoint.config().sub_norms);
            check_words(&checkpoint, mean);
        }
        let (checkpoint, _dir) = open(&Folder::baked(dtype));
        assert_eq!(checkpoint.config().act_quant, ActQuant::None);
        check_words(&checkpoint, |_, which| 0.375 * (which + 1) as f32);
    }
    for linear_class in ["autobitlinear", "bitlinear"] {
        check_words(&open(&Folder::packed(linear_class, Dtype::F32)).0, mean);
        // The class and the mode have defaults.
        let mut folder = Folder::packed("bitlinear", Dtype::F32);
        folder.config["quantization_config"] = json!({"quant_method": "bitnet"});
        check_words(&open(&folder).0, mean);
    }
}

#[test]
fn scales_of_every_type_and_shape() {
    let rounded = |dtype, scale: f32| match dtype {
        Dtype::BF16 => half::bf16::from_f32(scale).to_f32(),
        Dtype::F16 => half::f16::from_f32(scale).to_f32(),
        _ => scale,
    };
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let mut folder = Folder::packed("autobitlinear", dtype);
        folder.tensor("model.layers.1.mlp.down_proj.weight_scale").shape = vec![];
        check_words(&open(&folder).0, |layer, which| {
            rounded(dtype, ternary(layer, which).0.scale)
        });
        let folder = Folder::packed("bitlinear", dtype);
        check_words(&open(&folder).0, |layer, which| {
            1.0 / rounded(dtype, ternary(layer, which).0.inverse)
        });
    }
}

#[test]
fn zero_matrices_are_ternary_too() {
    for mut folder in [Folder::baked(Dtype::BF16), Folder::online(Dtype::BF16)] {
        folder.tensor("model.layers.0.mlp.up_proj.weight").bytes.fill(0);
        let (checkpoint, _dir) = open(&folder);
        let (words, scale) = &projections(&checkpoint)[5];
        assert!(words.iter().all(|&word| word == 0x5555_5555));
        assert!(*scale > 0.0 && scale.is_finite());
    }
}

#[test]
fn dense_parts_are_what_was_stored() {
    let mut folder = Folder::baked(Dtype::BF16);
    folder.tensors.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        folder::Array::bf16(&[4], &numbers(1, 4)),
    );
    let (checkpoint, _dir) = open(&folder);
    let config = checkpoint.config();
    assert_eq!(
        (config.activation, config.sub_norms, config.tied_head),
        (Activation::Silu, false, false)
    );
    assert_eq!((config.d_q(), config.d_kv(), config.head_dim), (32, 16, 8));
    assert_eq!(checkpoint.final_norm().unwrap(), numbers(1, 48));
    let layer = checkpoint.layer(1).unwrap();
    assert_eq!(layer.attn_norm, numbers(13, 48));
    assert_eq!(layer.ffn_norm, numbers(14, 48));
    assert_eq!((layer.attn_sub_norm, layer.ffn_sub_norm), (None, None));
    for (dense, seed) in [
        (checkpoint.embedding().unwrap(), 2),
        (checkpoint.head().unwrap().unwrap(), 9),
    ] {
        assert_eq!((dense.dtype(), dense.shape()), (DenseDtype::Bf16, (20, 48)));
        let mut bytes = vec![0; 3 * 96];
        dense.read_rows(17, &mut bytes).unwrap();
        let mut values = vec![0.0; 3 * 48];
        DenseDtype::Bf16.to_f32(&bytes, &mut values);
        assert_eq!(values, numbers(seed, 20 * 48)[17 * 48..]);
        assert!(dense.read_rows(18, &mut bytes).is_err());
        assert!(dense.read_rows(usize::MAX, &mut bytes).is_err());
        assert!(dense.read_rows(0, &mut bytes[..95]).is_err());
    }
    assert!(checkpoint.layer(2).is_err());

    let (checkpoint, _dir) = open(&Folder::one_bit(Dtype::F16));
    assert!(checkpoint.head().unwrap().is_none());
    let layer = checkpoint.layer(0).unwrap();
    assert_eq!(layer.attn_sub_norm.unwrap(), numbers(5, 32));
    assert_eq!(layer.ffn_sub_norm.unwrap(), numbers(6, 80));
}

#[test]
fn projections_with_norms_of_their_own() {
    let mut folder = Folder::packed("bitlinear", Dtype::F32);
    folder.llama();
    folder.linear_norms();
    let (checkpoint, _dir) = open(&folder);
    assert_eq!(checkpoint.config().linear_norm_eps, Some(2e-6));
    let layer = checkpoint.layer(1).unwrap();
    let segments = [&layer.qkv, &layer.o, &layer.gate_up, &layer.down].map(|tensor| &tensor.segments);
    for (which, segment) in segments.into_iter().flatten().enumerate() {
        let expected = numbers((1010 + which) as u64, PROJECTIONS[which].2);
        assert_eq!(segment.input_norm.as_ref(), Some(&expected));
    }
}

#[test]
fn shards_equal_one_file() {
    let folder = Folder::packed("autobitlinear", Dtype::BF16);
    let (single, _dir) = open(&folder);
    let dir = tempfile::tempdir().unwrap();
    folder.write_sharded(dir.path());
    let sharded = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(sharded.config(), single.config());
    for layer in 0..LAYERS {
        assert_eq!(sharded.layer(layer).unwrap(), single.layer(layer).unwrap());
    }
    assert_eq!(sharded.final_norm().unwrap(), single.final_norm().unwrap());
}

#[test]
fn published_config_quirks() {
    let read = |edit: &dyn Fn(&mut Value)| {
        let mut folder = Folder::online(Dtype::BF16);
        edit(&mut folder.config);
        open(&folder).0.config().clone()
    };
    let plain = read(&|_| ());
    assert_eq!(
        (plain.bos, &plain.eos[..], plain.rope_theta),
        (Some(16), &[17, 19][..], 1e4)
    );
    // Saved by transformers 5.
    let saved = read(&|config| {
        let config = config.as_object_mut().unwrap();
        config.remove("rope_theta");
        config.insert(
            "rope_parameters".into(),
            json!({"rope_theta": 5e5, "rope_type": "default"}),
        );
        config.insert("dtype".into(), json!("bfloat16"));
        config.insert("layer_types".into(), json!(["full_attention", "full_attention"]));
        config.insert("sliding_window".into(), json!(null));
    });
    assert_eq!(saved.rope_theta, 5e5);
    for (value, expected) in [
        (json!([17, 18]), vec![17, 18, 19]),
        (json!(null), vec![17, 19]),
        (json!(-1), vec![17, 19]),
        (json!(19), vec![19, 17]),
    ] {
        assert_eq!(
            read(&|config| config["eos_token_id"] = value.clone()).eos,
            expected
        );
    }
    assert_eq!(read(&|config| config["bos_token_id"] = json!(null)).bos, None);
    // Missing keys take the defaults of the class.
    let defaults = read(&|config| {
        let config = config.as_object_mut().unwrap();
        for key in [
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
            "hidden_act",
            "architectures",
            "bos_token_id",
        ] {
            config.remove(key);
        }
    });
    assert_eq!(
        (defaults.max_context, defaults.rms_eps, defaults.rope_theta),
        (2048, 1e-5, 5e5)
    );
    assert_eq!((defaults.activation, defaults.bos), (Activation::Relu2, Some(16)));

    // Two keys of one name, as some published files have; the last one counts.
    let folder = Folder::packed("bitlinear", Dtype::F32);
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    let text = folder.config.to_string();
    let text = text.replacen(
        '{',
        r#"{"quantization_config": {"modules_to_not_convert": null, "x": 1},"#,
        1,
    );
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    check_words(&Checkpoint::open(dir.path()).unwrap(), |layer, which| {
        ternary(layer, which).0.scale
    });
}

#[test]
fn oracle_folders() {
    let [online, packed] =
        ["bitnet-bf16", "bitnet-packed"].map(|name| Checkpoint::open(oracle(name)).unwrap());
    assert_eq!(online.config(), packed.config());
    assert_eq!(online.config().eos, [1009, 1017]);
    // Transformers packed the same masters: the same codes, and scales that differ by their rounding to bf16.
    for ((words, scale), (packed_words, packed_scale)) in
        projections(&online).iter().zip(projections(&packed))
    {
        assert!(*words == packed_words);
        assert!(
            (scale / packed_scale - 1.0).abs() <= 1.0 / 256.0,
            "{scale} {packed_scale}"
        );
    }
    let llama = Checkpoint::open(oracle("llama-bitnet")).unwrap();
    let config = llama.config();
    assert_eq!(
        (config.activation, config.sub_norms, config.tied_head),
        (Activation::Silu, false, false)
    );
    assert_eq!((config.d_model, config.d_ffn, config.rms_eps), (512, 1152, 1e-5));
    let mut row = vec![0; 512];
    let layer = llama.layer(2).unwrap();
    unpack_row(&layer.qkv.words[..32], &mut row);
    let zeros = row.iter().filter(|&&t| t == 0).count();
    assert!(
        (100..250).contains(&zeros),
        "about a third of a Gaussian row is zero, found {zeros} of 512"
    );
    let odd = Checkpoint::open(oracle("odd-shape")).unwrap();
    assert_eq!(
        (odd.config().d_ffn, odd.config().vocab, odd.config().rms_eps),
        (480, 777, 1e-6)
    );
    assert_eq!(odd.layer(0).unwrap().down.words.len(), 192 * 480 / 16);
}

/// A head with a norm of its own is ternarized as the projections are.
#[test]
fn a_ternary_head_is_read_as_one_more_projection() {
    let mut folder = Folder::online(Dtype::BF16);
    folder.linear_norms();
    folder.config["tie_word_embeddings"] = json!(false);
    let master = numbers(77, 20 * 48);
    let weight = Array::bf16(&[20, 48], &master);
    folder.tensors.insert("lm_head.weight".into(), weight);
    let norm = numbers(78, 48);
    let array = Array::bf16(&[48], &norm);
    folder.tensors.insert("lm_head.rms_norm.weight".into(), array);
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(checkpoint.config().ternary_head && checkpoint.head().unwrap().is_none());
    let head = checkpoint.ternary_head().unwrap().unwrap();
    let quant = WeightQuant::from_abs_sum(master.chunks(48).map(abs_sum).sum(), master.len());
    let mut words = vec![0; 20 * 3];
    let t: Vec<i8> = master.iter().map(|&w| quant.quantize(w)).collect();
    words::pack_row(&t, &mut words);
    assert!(head.words == words);
    let [segment] = &head.segments[..] else {
        panic!("one segment");
    };
    assert_eq!((segment.rows, segment.scale), (20, quant.scale));
    assert_eq!(segment.input_norm.as_deref(), Some(&norm[..]));
    // Without a norm, and as floats, it is a dense one.
    folder.tensors.remove("lm_head.rms_norm.weight");
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(!checkpoint.config().ternary_head && checkpoint.head().unwrap().is_some());
}
