//! Files that must be refused: damaged tensors, hostile headers, paths that are something else. Each with one error that names
//! the thing at fault, never a panic.

mod folder;
mod refusal;

use bitnet_model::Error;
use folder::{Array, Folder, numbers};
use refusal::{check, refusal, refuse_folder};
use safetensors::Dtype;
use serde_json::{Value, json};

#[test]
fn damaged_tensors() {
    const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
    const SCALE: &str = "model.layers.1.mlp.down_proj.weight_scale";
    type Damage = fn(&mut Folder);
    let online: [(&str, Damage, &str); 11] = [
        (
            "nan weight",
            |f| f.tensor(DOWN).set(80 * 40 + 7, f32::NAN),
            "holds NaN at row 40, column 7",
        ),
        (
            "inf weight",
            |f| f.tensor(DOWN).set(3, f32::INFINITY),
            "holds inf at row 0, column 3",
        ),
        (
            "nan norm",
            |f| f.tensor("model.norm.weight").set(9, f32::NAN),
            "`model.norm.weight` holds NaN at index 9",
        ),
        (
            "inf embedding",
            |f| f.tensor("model.embed_tokens.weight").set(100, f32::INFINITY),
            "row 2, column 4",
        ),
        (
            "norm shape",
            |f| f.tensor("model.norm.weight").shape = vec![6, 8],
            "has shape [6, 8]",
        ),
        (
            "weight shape",
            |f| f.tensor(DOWN).shape = vec![80, 48],
            "has shape [80, 48], and the model's configuration calls for [48, 80]",
        ),
        (
            "missing weight",
            |f| drop(f.tensors.remove(DOWN)),
            "tensor `model.layers.1.mlp.down_proj.weight` is missing",
        ),
        (
            "missing norm",
            |f| drop(f.tensors.remove("model.layers.0.mlp.ffn_sub_norm.weight")),
            "ffn_sub_norm.weight` is missing",
        ),
        (
            "bias",
            |f| {
                drop(f.tensors.insert(
                    "model.layers.0.mlp.up_proj.bias".into(),
                    Array::bf16(&[80], &numbers(1, 80)),
                ))
            },
            "`model.layers.0.mlp.up_proj.bias` is not part of a BitNetForCausalLM",
        ),
        (
            "type of a norm",
            |f| {
                f.tensor("model.norm.weight").dtype = Dtype::I16;
            },
            "has type I16; expected BF16, F16 or F32",
        ),
        (
            "packed weights in an online model",
            |f| {
                let packed = Folder::packed("autobitlinear", Dtype::F32);
                f.tensors.insert(DOWN.into(), packed.tensors[DOWN].clone());
            },
            "has type U8",
        ),
    ];
    for (what, damage, expected) in online {
        let mut folder = Folder::online(Dtype::BF16);
        damage(&mut folder);
        refuse_folder(what, &folder, expected);
    }
    let packed: [(&str, Damage, &str); 9] = [
        (
            "code 3",
            |f| f.tensor(DOWN).bytes[80 * 5 + 9] |= 0x30,
            "the invalid code 3 for row 29, column 9",
        ),
        (
            "nan scale",
            |f| f.tensor(SCALE).set(0, f32::NAN),
            "weight_scale` is NaN; expected a positive number",
        ),
        (
            "infinite scale",
            |f| f.tensor(SCALE).set(0, f32::INFINITY),
            "weight_scale` is inf",
        ),
        (
            "zero scale",
            |f| f.tensor(SCALE).set(0, 0.0),
            "weight_scale` is 0",
        ),
        (
            "negative scale",
            |f| f.tensor(SCALE).set(0, -0.5),
            "weight_scale` is -0.5",
        ),
        (
            "missing scale",
            |f| drop(f.tensors.remove(SCALE)),
            "weight_scale` is missing",
        ),
        (
            "scales of rows",
            |f| *f.tensor(SCALE) = Array::bf16(&[48], &numbers(1, 48)),
            "has shape [48]; expected one value",
        ),
        (
            "empty scale",
            |f| *f.tensor(SCALE) = Array::bf16(&[0], &[]),
            "has shape [0]; expected one value",
        ),
        (
            "type of a scale",
            |f| f.tensor(SCALE).dtype = Dtype::I32,
            "has type I32",
        ),
    ];
    for (what, damage, expected) in packed {
        let mut folder = Folder::packed("bitlinear", Dtype::F32);
        damage(&mut folder);
        refuse_folder(what, &folder, expected);
    }
    let mut folder = Folder::packed("bitlinear", Dtype::F32);
    folder.linear_norms();
    folder
        .tensors
        .remove("model.layers.1.self_attn.k_proj.rms_norm.weight");
    refuse_folder(
        "missing linear norm",
        &folder,
        "k_proj.rms_norm.weight` is missing",
    );

    let mut folder = Folder::baked(Dtype::F32);
    folder.tensor(DOWN).set(80 * 3 + 2, 0.25);
    let error = refuse_folder(
        "a float model",
        &folder,
        "holds weights of 2 magnitudes, so it is not ternary",
    );
    assert!(matches!(error, Error::NotTernary { .. }));
    folder.tensor(DOWN).set(80 * 3 + 2, f32::INFINITY);
    refuse_folder("an infinite float model", &folder, "holds inf at row 3, column 2");
}

#[test]
fn every_truncation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Folder::packed("bitlinear", Dtype::F32).write(dir.path());
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for len in (0..64)
        .chain((64..whole.len()).step_by(997))
        .chain([whole.len() - 1])
    {
        std::fs::write(&path, &whole[..len]).unwrap();
        check(
            &format!("{len} bytes"),
            refusal(dir.path()),
            "model.safetensors: ",
        );
    }
    let mut longer = whole.clone();
    longer.push(0);
    std::fs::write(&path, longer).unwrap();
    check("a byte too many", refusal(dir.path()), "truncated or damaged");
}

#[test]
fn hostile_headers() {
    let dir = tempfile::tempdir().unwrap();
    Folder::online(Dtype::BF16).write(dir.path());
    let path = dir.path().join("model.safetensors");
    let file = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    for (what, bytes, expected) in [
        (
            "a huge header",
            u64::MAX.to_le_bytes().to_vec(),
            "claims a header of 18446744073709551615 bytes",
        ),
        (
            "a large header",
            [&99_999_999u64.to_le_bytes()[..], b"{}"].concat(),
            "claims a header of 99999999 bytes",
        ),
        ("no json", file("hello"), "the safetensors header is broken"),
        (
            "a web page",
            b"<!DOCTYPE html><html>not found</html>".to_vec(),
            "claims a header",
        ),
        (
            "a pointer to large files",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "claims a header",
        ),
        (
            "an overflowing shape",
            file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#),
            "broken",
        ),
        (
            "a huge claim",
            file(r#"{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#),
            "describes 1099511627776",
        ),
        (
            "a hole",
            file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}"#),
            "broken",
        ),
        (
            "backwards",
            file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[5,4]}}"#),
            "broken",
        ),
        ("no tensors", file("{}"), "`model.embed_tokens.weight` is missing"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        check(what, refusal(dir.path()), expected);
    }
}

#[test]
fn paths_that_are_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    check("nothing there", refusal(&at("nowhere")), "nowhere: ");
    check("an empty folder", refusal(dir.path()), "holds no config.json");
    Folder::online(Dtype::BF16).write(dir.path());
    check(
        "a file for a folder",
        refusal(&at("model.safetensors")),
        "is a file, and not a GGUF file; name the folder",
    );

    std::fs::rename(at("model.safetensors"), at("weights")).unwrap();
    check(
        "no weights",
        refusal(dir.path()),
        "holds neither model.safetensors nor",
    );
    std::fs::write(at("ggml-model-i2_s.gguf"), "GGUF").unwrap();
    check(
        "gguf",
        refusal(dir.path()),
        "ggml-model-i2_s.gguf: is not a GGUF file",
    );
    std::fs::remove_file(at("ggml-model-i2_s.gguf")).unwrap();
    std::fs::write(at("pytorch_model.bin"), "").unwrap();
    check(
        "pytorch",
        refusal(dir.path()),
        "pytorch_model.bin is a PyTorch file",
    );
    std::fs::create_dir(at("model.safetensors")).unwrap();
    check(
        "a folder for a file",
        refusal(dir.path()),
        "model.safetensors: is a folder, where a file is expected",
    );

    std::fs::remove_file(at("config.json")).unwrap();
    std::fs::create_dir(at("config.json")).unwrap();
    check(
        "a folder for the configuration",
        refusal(dir.path()),
        "config.json: ",
    );
    std::fs::remove_dir(at("config.json")).unwrap();
    for (text, expected) in [
        ("", "not valid JSON"),
        ("[]", "is not a JSON object"),
        ("{\"a\":", "not valid JSON"),
    ] {
        std::fs::write(at("config.json"), text).unwrap();
        check(text, refusal(dir.path()), expected);
    }
    std::fs::write(at("config.json"), "[".repeat(100_000)).unwrap();
    check("deep nesting", refusal(dir.path()), "not valid JSON");
}

#[test]
fn broken_shards() {
    let write = |edit: &dyn Fn(&mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        Folder::online(Dtype::BF16).write_sharded(dir.path());
        let path = dir.path().join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut index);
        std::fs::write(&path, index.to_string()).unwrap();
        dir
    };
    let norm =
        |shard: Value| move |index: &mut Value| index["weight_map"]["model.norm.weight"] = shard.clone();
    for (what, shard, expected) in [
        (
            "escaping",
            json!("../weights.safetensors"),
            "not a file inside the folder",
        ),
        ("absolute", json!("/etc/passwd"), "not a file inside the folder"),
        ("empty", json!(""), "not a file inside the folder"),
        ("dots", json!("a/../../b"), "not a file inside the folder"),
        ("not a name", json!(7), "expected a file name"),
        (
            "missing",
            json!("model-00009-of-00003.safetensors"),
            "model-00009-of-00003.safetensors: ",
        ),
    ] {
        check(what, refusal(write(&norm(shard)).path()), expected);
    }
    for (what, edit, expected) in [
        (
            "no map",
            (|index| *index = json!({})) as fn(&mut Value),
            "has no `weight_map`",
        ),
        (
            "an empty map",
            |index| index["weight_map"] = json!({}),
            "names no tensors",
        ),
        (
            "a tensor in no shard",
            |index| index["weight_map"]["ghost"] = json!("model-00001-of-00003.safetensors"),
            "places tensor `ghost`",
        ),
    ] {
        check(what, refusal(write(&edit).path()), expected);
    }
    let dir = write(&|_| ());
    let at = |shard: u32| dir.path().join(format!("model-0000{shard}-of-00003.safetensors"));
    std::fs::copy(at(1), at(2)).unwrap();
    check("a shard twice", refusal(dir.path()), "again, already in");
    std::fs::remove_file(at(3)).unwrap();
    std::fs::remove_file(at(2)).unwrap();
    check(
        "a missing shard",
        refusal(dir.path()),
        "model-00002-of-00003.safetensors: ",
    );
}
