//! Every instruction set of this processor gives the bits of the scalar path, verb by verb.

mod prompts;

use bitnet_model::conformance::{Report, Verb, compare};
use bitnet_model::{Backend, Checkpoint, CpuBackend, CpuOptions, KvType, Simd, Tap};
use prompts::{FOLDERS, folder, ids};

fn load(checkpoint: &Checkpoint, simd: Simd, kv_type: KvType, threads: usize, page: usize) -> CpuBackend {
    let options = CpuOptions {
        simd: Some(simd),
        threads: Some(threads),
        kv_type,
        page,
        context: 128,
        n_seqs: 2,
        max_batch: 64,
        ..CpuOptions::default()
    };
    CpuBackend::new(checkpoint, options).unwrap()
}

/// A prompt in one batch, another beside it, then tokens of both.
fn batches(name: &str) -> Vec<Vec<(usize, Vec<u32>)>> {
    let (short, long) = (ids(&folder(name), "short"), ids(&folder(name), "long"));
    vec![
        vec![(0, long[..40].to_vec())],
        vec![(1, short), (0, long[40..47].to_vec())],
        vec![(0, long[47..48].to_vec())],
    ]
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_scalar_path() {
    for name in FOLDERS {
        let checkpoint = Checkpoint::open(folder(name)).unwrap();
        let mut scalar = load(&checkpoint, Simd::Scalar, KvType::F32, 1, 64);
        for simd in Simd::available() {
            let mut candidate = load(&checkpoint, simd, KvType::F32, 2, 16);
            let report = compare(&mut scalar, &mut candidate, &batches(name)).unwrap();
            assert!(report.is_identical(), "{name}: {report}");
            let n_tokens = batches(name).concat().iter().map(|(_, ids)| ids.len()).sum();
            assert_eq!(
                (report.top_one.n_rows, report.top_one.n_agree),
                (n_tokens, n_tokens)
            );
            let n_layers = scalar.spec().config.n_layers;
            assert_eq!(report.comparisons.len(), 2 + 7 * n_layers);
            assert!(report.comparisons.iter().all(|c| c.n_values >= n_tokens * 64));
            assert!(report.to_string().contains("intermediates are bit-identical"));
        }
    }
}

fn cache_types() -> Report {
    let checkpoint = Checkpoint::open(folder("odd-shape")).unwrap();
    let [mut f32, mut bf16] =
        [KvType::F32, KvType::Bf16].map(|kv| load(&checkpoint, Simd::Scalar, kv, 1, 32));
    compare(&mut f32, &mut bf16, &batches("odd-shape")).unwrap()
}

#[test]
fn a_difference_is_found_where_it_arises() {
    let report = cache_types();
    let (comparison, first) = report.first_difference().unwrap();
    assert_eq!((comparison.verb, comparison.tap), (Verb::Qkv(0), Some(Tap::Key)));
    assert_eq!((first.batch, first.token.pos, first.seq), (0, 0, 0));
    assert_ne!(first.expected, first.found);
    let by = |verb, tap| {
        let mut all = report.comparisons.iter();
        all.find(|c| (c.verb, c.tap) == (verb, Some(tap))).unwrap()
    };
    assert_eq!(by(Verb::Begin, Tap::Residual).n_different, 0);
    assert_eq!(by(Verb::Qkv(0), Tap::Query).n_different, 0);
    // bf16 keeps 8 bits: half a unit in the last place is 2^-9 of a value.
    let key = by(Verb::Qkv(0), Tap::Key);
    assert!(key.max_abs > 0.0 && key.max_rel < 0.05, "{key:?}");
    let logits = report.logits().unwrap();
    assert!(logits.max_abs > 0.0 && logits.max_abs < 2.0, "{logits:?}");
    let top = report.top_one;
    assert!(
        top.max_lost_margin <= 2.0 * logits.max_abs && top.min_margin > 0.0,
        "{top:?}"
    );
    let text = report.to_string();
    for part in [
        "against cpu (scalar, 1 thread)",
        "first difference: layer 0 qkv, key, batch 0, sequence 0, position 0",
        "layer 2 down",
        "logits",
        "top-1: ",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn models_of_other_shapes_are_not_compared() {
    let [mut a, mut b] = ["odd-shape", "bitnet-packed"].map(|name| {
        let checkpoint = Checkpoint::open(folder(name)).unwrap();
        load(&checkpoint, Simd::Scalar, KvType::F32, 1, 64)
    });
    let error = compare(&mut a, &mut b, &[]).unwrap_err().to_string();
    assert!(error.contains("different shapes"), "{error}");
}
