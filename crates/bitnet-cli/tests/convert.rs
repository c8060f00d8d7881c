//! `bitnet convert` and `bitnet inspect`, as they are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../bitnet-model/tests/oracle")
        .join(name)
}

fn bitnet(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet"))
        .args(args)
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn convert_then_inspect() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let source = oracle("bitnet-bf16");
    let run = bitnet(&["convert", text(&source), "-o", text(&out)]);
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success(), "{stderr}");
    assert!(run.stdout.is_empty());
    assert!(
        stderr.starts_with("wrote ") && stderr.lines().count() == 1,
        "no bar where nobody watches: {stderr}"
    );
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
    ] {
        assert_eq!(
            std::fs::read(out.join(name)).unwrap(),
            std::fs::read(source.join(name)).unwrap()
        );
    }

    let json = |folder: &Path| -> serde_json::Value {
        let run = bitnet(&["inspect", text(folder), "--json", "--verify"]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let (before, after) = (json(&source), json(&out));
    for key in [
        "architecture",
        "shape",
        "ternary_parameters",
        "dense_parameters",
        "scales",
        "values",
    ] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert_eq!(
        after["verification"]["checksums"],
        after["tensors"].as_array().unwrap().len()
    );
    assert!(after["ternary_bits_per_weight"].as_f64().unwrap() < 2.01);

    let run = bitnet(&["inspect", "-m", text(&out)]);
    let report = String::from_utf8(run.stdout).unwrap();
    for expected in [
        "BitNetForCausalLM",
        "4 layers, width 256",
        "model.layers.*.mlp.down_proj.weight ",
        "-1 ",
        "scale ",
    ] {
        assert!(report.contains(expected), "{expected}: {report}");
    }

    // A damaged byte ends in one line and a status.
    let weights = out.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let run = bitnet(&["inspect", text(&out), "--verify"]);
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert!(
        !run.status.success() && stderr.contains("does not match its checksum"),
        "{stderr}"
    );
}

#[test]
fn refusals() {
    let dir = tempfile::tempdir().unwrap();
    let source = oracle("odd-shape");
    let nowhere = dir.path().join("nowhere");
    for (args, expected) in [
        (
            vec!["convert", text(&source), "-o", text(&source)],
            "is the folder to convert",
        ),
        (
            vec!["convert", text(&nowhere), "-o", text(dir.path())],
            "nowhere: ",
        ),
        (vec!["inspect", text(&nowhere)], "nowhere: "),
    ] {
        let run = bitnet(&args);
        let stderr = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(1), "{args:?}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains(expected),
            "{args:?}: {stderr}"
        );
    }
}

/// A limit on the size of files stands in for a disk that fills up: writing fails in the middle of the weights.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 200; exec \"$0\" convert \"$1\" -o \"$2\"",
        ])
        .args([
            Path::new(env!("CARGO_BIN_EXE_bitnet")),
            &oracle("bitnet-bf16"),
            &out,
        ])
        .output()
        .unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.contains("model.safetensors: "),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(!out.exists());
}
