//! GGUF files that must be refused, each with one line that names the thing and the remedy; and what may differ without harm.

mod container;
mod folder;
mod refusal;

use std::path::{Path, PathBuf};

use bitnet_model::{ActQuant, Checkpoint, OpenOptions, Tokenizer, WeightSource};
use container::{Gguf, Tensor};
use refusal::{check, refusal};

const Q: &str = "blk.0.attn_q.weight";

fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle-gguf")
        .join(name)
        .join("model.gguf")
}

/// Writes bytes as a file and hands its path on.
fn with_file<T>(bytes: &[u8], work: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    work(&path)
}

#[test]
fn files_of_another_kind() {
    type Change = fn(&mut Gguf);
    let i2s = oracle("b158-i2s");
    let tq2 = oracle("llama-tq2");
    let cases: [(&Path, Change, &str); 27] = [
        (&i2s, |f| f.version = 1, "version 1 of GGUF, of 2023"),
        (&i2s, |f| f.version = 0x0300_0000, "gguf_convert_endian.py"),
        (&i2s, |f| f.version = 9, "version 9 of GGUF"),
        (&i2s, |f| f.pairs.push(f.pairs[3].clone()), "twice"),
        (&i2s, |f| f.tensors.push(f.tensors[3].clone()), "has tensor"),
        (
            &i2s,
            |f| f.set("general.alignment", 4, &48u32.to_le_bytes()),
            "a power of two",
        ),
        (
            &i2s,
            |f| f.set("general.alignment", 4, &0u32.to_le_bytes()),
            "a power of two",
        ),
        (
            &i2s,
            |f| f.set_text("general.architecture", "gemma3"),
            "supported are bitnet",
        ),
        (
            &i2s,
            |f| f.remove("bitnet-b1.58.block_count"),
            "has no key `bitnet-b1.58.block_count`",
        ),
        (
            &i2s,
            |f| f.set("prism.hadamard.size", 4, &64u32.to_le_bytes()),
            "Bonsai",
        ),
        (
            &i2s,
            |f| f.set_text("bitnet-b1.58.rope.scaling.type", "yarn"),
            "without scaling",
        ),
        (
            &i2s,
            |f| f.set("bitnet-b1.58.rope.scaling.factor", 6, &2f32.to_le_bytes()),
            "without scaling",
        ),
        (
            &i2s,
            |f| f.set("bitnet-b1.58.expert_count", 4, &8u32.to_le_bytes()),
            "expert_count",
        ),
        (
            &i2s,
            |f| f.set("bitnet-b1.58.attention.sliding_window", 4, &512u32.to_le_bytes()),
            "sliding_window",
        ),
        (
            &i2s,
            |f| f.set("bitnet-b1.58.rope.dimension_count", 4, &32u32.to_le_bytes()),
            "the length of a head",
        ),
        (
            &i2s,
            |f| f.set("bitnet-b1.58.vocab_size", 4, &400u32.to_le_bytes()),
            "has 384 rows",
        ),
        (
            &i2s,
            |f| f.tensor(Q).kind = 38,
            "TL1 (38), whose layout depends on the build of bitnet.cpp",
        ),
        (
            &i2s,
            |f| f.tensor(Q).kind = 39,
            "convert the original with -q i2_s",
        ),
        (
            &tq2,
            |f| quantized(f.tensor(Q), 2, 32, 18),
            "Q4_0, which cannot hold +s and -s",
        ),
        (&tq2, |f| quantized(f.tensor(Q), 142, 128, 34), "Bonsai"),
        (&tq2, |f| quantized(f.tensor(Q), 42, 128, 34), "groups of 128"),
        (
            &i2s,
            |f| f.tensor("output_norm.weight").name = "blk.0.attn_q.bias".into(),
            "output_norm.weight` is missing",
        ),
        (
            &i2s,
            |f| {
                let mut bias = f.tensor("output_norm.weight").clone();
                bias.name = "blk.0.attn_q.bias".into();
                f.tensors.push(bias);
            },
            "ignoring it would change the numbers",
        ),
        (
            &i2s,
            |f| {
                let mut factors = f.tensor("output_norm.weight").clone();
                factors.name = "rope_freqs.weight".into();
                f.tensors.push(factors);
            },
            "scales the rotary embedding",
        ),
        (
            &i2s,
            |f| drop(f.tensor("token_embd.weight").bytes.split_off(1000)),
            "the next one begins after",
        ),
        (
            &i2s,
            |f| f.tensor(Q).bytes.extend([0; 64]),
            "another program means another type",
        ),
        (
            &i2s,
            |f| f.tensor("blk.1.ffn_up.weight").dims = vec![512, 256],
            "has shape [256, 512]",
        ),
    ];
    for (path, change, expected) in cases {
        let mut file = Gguf::read(path);
        change(&mut file);
        with_file(&file.bytes(), |path| check(expected, refusal(path), expected));
    }
}

/// Makes a tensor one of another type, of zeros.
fn quantized(tensor: &mut Tensor, kind: u32, block: u64, bytes: u64) {
    tensor.kind = kind;
    let values: u64 = tensor.dims.iter().product();
    tensor.bytes = vec![0; (values / block * bytes) as usize];
}

#[test]
fn damaged_codes_and_scales() {
    type Change = fn(&mut Vec<u8>);
    let i2s: [(Change, &str); 6] = [
        (|bytes| bytes[70] = 0xff, "invalid code 3 for row 1, column 6"),
        (|bytes| scale(bytes, -1.0), "has the scale -1"),
        (|bytes| scale(bytes, f32::NAN), "has the scale NaN"),
        (|bytes| scale(bytes, f32::INFINITY), "has the scale inf"),
        (|bytes| scale(bytes, 0.0), "has the scale 0"),
        (|bytes| drop(bytes.split_off(100)), "takes 8224 bytes"),
    ];
    let tq2: [(Change, &str); 3] = [
        (
            |bytes| bytes[66 + 64..66 + 66].copy_from_slice(&[0, 0x40]),
            "carries 2 different scales",
        ),
        (
            |bytes| bytes[64..66].copy_from_slice(&[0, 0xbc]),
            "has the scale -1",
        ),
        (|bytes| bytes[3] = 0xc0, "invalid code 3 for row 0"),
    ];
    let q2: [(Change, &str); 1] = [(|bytes| bytes[2] = 0xc0, "a value of two units at row 0, column 3")];
    let cases = [
        ("b158-i2s", &i2s[..]),
        ("llama-tq2", &tq2[..]),
        ("llama-q2-0", &q2[..]),
    ];
    for (name, changes) in cases {
        for (change, expected) in changes {
            let mut file = Gguf::read(&oracle(name));
            // v has its rows in order in every architecture.
            change(&mut file.tensor("blk.0.attn_v.weight").bytes);
            with_file(&file.bytes(), |path| check(expected, refusal(path), expected));
        }
    }
}

/// Replaces the scale behind the codes of a matrix of 256 x 128.
fn scale(bytes: &mut [u8], scale: f32) {
    bytes[256 * 128 / 4..][..4].copy_from_slice(&scale.to_le_bytes());
}

#[test]
fn zeros_may_have_the_scale_0() {
    let mut file = Gguf::read(&oracle("b158-i2s"));
    let bytes = &mut file.tensor("blk.0.attn_v.weight").bytes;
    bytes[..256 * 128 / 4].fill(0x55);
    scale(bytes, 0.0);
    with_file(&file.bytes(), |path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.layer(0).unwrap().qkv.segments[2].scale, 1.0);
        let inspection = bitnet_model::inspect(&checkpoint, |_, _| ()).unwrap();
        assert_eq!(
            inspection.warnings,
            ["blk.0.attn_v.weight is all zero: damaged or pruned?"]
        );
    });
}

#[test]
fn scales_far_apart_are_told() {
    let mut file = Gguf::read(&oracle("b158-i2s"));
    scale(&mut file.tensor("blk.1.attn_v.weight").bytes, 900.0);
    with_file(&file.bytes(), |path| {
        let inspection = bitnet_model::inspect(&Checkpoint::open(path).unwrap(), |_, _| ()).unwrap();
        let [warning] = &inspection.warnings[..] else {
            panic!("one warning, not {:?}", inspection.warnings);
        };
        assert!(
            warning.contains("blk.1.attn_v.weight") && warning.contains("900"),
            "{warning}"
        );
    });
}

/// A file that ends anywhere is refused; none of its lengths is believed.
#[test]
fn files_that_are_cut_off() {
    let bytes = std::fs::read(oracle("llama-iq1bn-iq4nl")).unwrap();
    let mut rng = 7u64;
    let mut ends = vec![0, 3, 4, 8, 20, 23, 24, 25];
    ends.extend((0..60).map(|_| {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (rng >> 33) as usize % 30_000
    }));
    for end in ends {
        with_file(&bytes[..end], |path| {
            let error = refusal(path).to_string();
            assert!(!error.contains('\n'), "cut at {end}: {error}");
        });
    }
    // Lengths that the file does not have: of the first key, and of the list of tensors.
    for (at, value) in [(24, u64::MAX), (24, 1 << 29), (8, u64::MAX), (16, 1 << 40)] {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        with_file(&bytes, |path| drop(refusal(path)));
    }
}

#[test]
fn parts_of_a_split_model() {
    let folder = oracle("b158-i2s-q6k-split").parent().unwrap().to_owned();
    let name = |part: usize| format!("model-{part:05}-of-00003.gguf");
    let second = refusal(&folder.join(name(2)));
    check("the second part", second, "name the first, ");
    let dir = tempfile::tempdir().unwrap();
    for part in [1, 2] {
        std::fs::copy(folder.join(name(part)), dir.path().join(name(part))).unwrap();
    }
    check("a part is missing", refusal(&dir.path().join(name(1))), &name(3));
    std::fs::copy(folder.join(name(2)), dir.path().join(name(3))).unwrap();
    check(
        "a part in place of another",
        refusal(&dir.path().join(name(1))),
        "again, already in",
    );
    std::fs::rename(dir.path().join(name(1)), dir.path().join("model.gguf")).unwrap();
    check(
        "another name",
        refusal(&dir.path().join("model.gguf")),
        "must keep their names",
    );
}

#[test]
fn a_folder_with_one_gguf_file_is_that_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(oracle("b158-i2s"), dir.path().join("ggml-model-i2_s.gguf")).unwrap();
    assert_eq!(
        Checkpoint::open(dir.path()).unwrap().architecture(),
        "BitNetForCausalLM"
    );
    std::fs::copy(oracle("llama-tq2"), dir.path().join("other.gguf")).unwrap();
    check(
        "two files",
        refusal(dir.path()),
        "name one of them: ggml-model-i2_s.gguf, other.gguf",
    );
}

#[test]
fn an_unknown_tokenizer_is_refused_by_name_and_leaves_ids_usable() {
    let mut file = Gguf::read(&oracle("llama-i2s"));
    file.set_text("tokenizer.ggml.pre", "smaug-bpe");
    with_file(&file.bytes(), |path| {
        Checkpoint::open(path).expect("token ids need no tokenizer");
        let error = Tokenizer::from_folder(path, None, &[]).map(drop).unwrap_err();
        check("pre", error, "`tokenizer.ggml.pre` is `smaug-bpe`");
    });
}

#[test]
fn what_was_decided_is_said() {
    let notes = |name: &str| Checkpoint::open(oracle(name)).unwrap().notes().to_vec();
    let official = notes("b158-i2s").join("\n");
    for expected in ["<|eot_id|> end a turn too", "placeholder", "relu2 is used"] {
        assert!(official.contains(expected), "{official}");
    }
    assert!(notes("bitnet-i2s-spm").join("\n").contains("silu is used"));
    assert!(!notes("llama-i2s").join("\n").contains("float activations"));
    assert!(notes("llama-tq2").join("\n").contains("float activations"));
    let mut options = OpenOptions::default();
    options.activations = Some(ActQuant::None);
    let float = Checkpoint::open_with(oracle("llama-tq2"), options).unwrap();
    assert_eq!(float.config().act_quant, ActQuant::None);
    assert!(!float.notes().join("\n").contains("float activations"));
    // The rule of spelling: the file names 369 alone.
    let eos = Checkpoint::open(oracle("b158-i2s")).unwrap().config().eos.clone();
    assert_eq!(eos, [369, 377]);
}
