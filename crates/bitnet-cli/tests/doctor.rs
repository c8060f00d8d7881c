//! `bitnet doctor` as programs and people read it.

mod program;

use program::{bitnet, stdout};
use serde_json::Value;

#[test]
fn a_healthy_machine_passes() {
    let output = bitnet().args(["doctor", "--json", "-t", "1"]).output().unwrap();
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["ok"], true, "{report}");
    let checks = report["checks"].as_array().unwrap();
    let facts = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap()["facts"].clone()
    };
    assert_eq!(facts("threads")["threads"], 1);
    assert!(facts("memory")["read_gb_per_s"].as_f64().unwrap() > 0.0);
    let tested = checks.iter().filter(|check| check["name"] == "self-test");
    let tested: Vec<&Value> = tested.map(|check| &check["facts"]["path"]).collect();
    assert_eq!(tested[0], "answer");
    for path in facts("processor")["paths"].as_array().unwrap() {
        assert!(tested.contains(&path), "{path} was not tested: {tested:?}");
    }
}

#[test]
fn a_missing_gpu_is_a_failure_with_its_remedy() {
    let output = bitnet().args(["doctor", "--device", "cuda:99"]).output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(
        report.starts_with("failure  gpu ") && report.contains("remedy: ") && !report.contains('\x1b'),
        "{report}"
    );
    assert!(output.stderr.is_empty());
}
