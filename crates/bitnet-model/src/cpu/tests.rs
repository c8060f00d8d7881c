mod source;

use super::*;
use crate::{ActQuant, Activation, Dense, DenseDtype, Pages, Run as PageRun, Seq, Session};
use source::{Random, RandomDense, model};

/// The models that the tests below run: every branch of the back end.
fn models() -> Vec<(&'static str, Random)> {
    let mut f16 = model(|c| c.tied_head = false);
    f16.dtype = DenseDtype::F16;
    let mut f32 = model(|c| (c.d_model, c.vocab) = (80, 3));
    f32.dtype = DenseDtype::F32;
    vec![
        ("plain", model(|_| ())),
        (
            "odd heads",
            model(|c| (c.n_heads, c.n_kv_heads, c.head_dim) = (12, 4, 100)),
        ),
        (
            "many heads a group",
            model(|c| (c.n_heads, c.n_kv_heads, c.head_dim) = (9, 1, 16)),
        ),
        (
            "a head of 96, silu",
            model(|c| {
                (c.n_heads, c.n_kv_heads, c.head_dim) = (2, 2, 96);
                (c.activation, c.sub_norms) = (Activation::Silu, false);
            }),
        ),
        (
            "norms in every projection",
            model(|c| c.linear_norm_eps = Some(1e-6)),
        ),
        ("float activations", model(|c| c.act_quant = ActQuant::None)),
        ("a width of no whole words", model(|c| c.d_ffn = 100)),
        (
            "the same with norms and float activations",
            model(|c| (c.d_ffn, c.linear_norm_eps, c.act_quant) = (92, Some(1e-6), ActQuant::None)),
        ),
        ("norms of heads", model(|c| c.qk_norms = true)),
        (
            "a ternary head",
            model(|c| {
                (c.tied_head, c.ternary_head) = (false, true);
                c.linear_norm_eps = Some(1e-6);
            }),
        ),
        ("f16, untied", f16),
        ("f32, odd width", f32),
    ]
}

fn options(simd: Option<Simd>, threads: usize) -> CpuOptions {
    CpuOptions {
        threads: Some(threads),
        simd,
        context: 40,
        n_seqs: 3,
        max_batch: 32,
        skip_zeros: SkipZeros::On,
        ..CpuOptions::default()
    }
}

/// Tokens that a sequence goes on with.
type Run = (usize, Vec<u32>);

fn prompt(len: usize, vocab: usize, seq: usize) -> Run {
    let id = |pos| ((pos * 7 + seq * 5) % vocab) as u32;
    (seq, (0..len).map(id).collect())
}

/// Sequence, position and bits of the logits of every token, from the beginning of every sequence, steps as given.
fn run(backend: &mut CpuBackend, steps: &[Vec<Run>]) -> Vec<(usize, usize, Vec<u32>)> {
    go_on(&mut Session::new(backend), steps)
}

fn go_on(session: &mut Session<'_>, steps: &[Vec<Run>]) -> Vec<(usize, usize, Vec<u32>)> {
    let mut out = Vec::new();
    for step in steps {
        let runs: Vec<(usize, &[u32])> = step.iter().map(|(seq, ids)| (*seq, &ids[..])).collect();
        let tokens: Vec<(usize, usize)> = runs
            .iter()
            .flat_map(|&(seq, ids)| {
                let start = session.ids(seq).len();
                (start..start + ids.len()).map(move |pos| (seq, pos))
            })
            .collect();
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let logits = session.step(&runs, Want::Logits(&rows)).unwrap();
        let bits = logits
            .chunks(logits.len() / tokens.len())
            .map(|row| row.iter().map(|x| x.to_bits()).collect());
        out.extend(
            tokens
                .into_iter()
                .zip(bits)
                .map(|((seq, pos), bits)| (seq, pos, bits)),
        );
    }
    out.sort();
    out
}

#[test]
fn the_same_request_gives_the_same_bits() {
    const LEN: usize = 21;
    for (name, source) in models() {
        let prompts: Vec<Run> = (0..3).map(|seq| prompt(LEN, source.config.vocab, seq)).collect();
        let part = |seq: usize, range: std::ops::Range<usize>| (seq, prompts[seq].1[range].to_vec());
        let all = CpuOptions {
            skip_zeros: SkipZeros::Off,
            ..options(Some(Simd::Scalar), 1)
        };
        let mut plain = CpuBackend::new(&source, all).unwrap();
        let one_by_one: Vec<Vec<Run>> = (0..3 * LEN)
            .map(|i| vec![part(i / LEN, i % LEN..i % LEN + 1)])
            .collect();
        let expected = run(&mut plain, &one_by_one);
        assert!(
            expected
                .iter()
                .flat_map(|(_, _, bits)| bits)
                .all(|&bits| f32::from_bits(bits).is_finite())
        );
        // Prompts whole, in chunks, and the sequences side by side.
        let mut cuts: Vec<Vec<Vec<Run>>> = vec![prompts.iter().map(|prompt| vec![prompt.clone()]).collect()];
        for size in [2, 3, 5, 8, 16] {
            let chunks = |(seq, ids): &Run| -> Vec<Vec<Run>> {
                ids.chunks(size).map(|ids| vec![(*seq, ids.to_vec())]).collect()
            };
            cuts.push(prompts.iter().flat_map(chunks).collect());
        }
        let side_by_side = |pos: usize| (0..3).map(|seq| part(seq, pos..pos + 1)).collect();
        cuts.push((0..LEN).map(side_by_side).collect());
        let ragged = |pos: usize| vec![part(2, 2 * pos..2 * pos + 2), part(0, pos..pos + 1)];
        let mut steps: Vec<Vec<Run>> = (0..LEN / 2).map(ragged).collect();
        steps.push(vec![part(0, LEN / 2..LEN), part(2, LEN - 1..LEN), part(1, 0..5)]);
        steps.push(vec![part(1, 5..LEN)]);
        cuts.push(steps);
        for simd in Simd::available() {
            for (cut, steps) in cuts.iter().enumerate() {
                let mut backend = CpuBackend::new(&source, options(Some(simd), 1 + cut % 3)).unwrap();
                let found = run(&mut backend, steps);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found, expected, "{name}, {simd}, cut {cut}");
                }
            }
        }
    }
}

#[test]
fn an_8_bit_head_is_close_and_as_repeatable() {
    for (name, source) in models() {
        let tokens = prompt(9, source.config.vocab, 0);
        let int8 = |simd, threads| CpuOptions {
            lm_head: LmHead::Int8,
            ..options(simd, threads)
        };
        let mut stored = CpuBackend::new(&source, options(None, 1)).unwrap();
        let mut backend = CpuBackend::new(&source, int8(Some(Simd::Scalar), 1)).unwrap();
        let expected = run(&mut backend, &[vec![tokens.clone()]]);
        for simd in Simd::available() {
            let mut backend = CpuBackend::new(&source, int8(Some(simd), 2)).unwrap();
            let steps: Vec<Vec<Run>> = tokens.1.chunks(4).map(|ids| vec![(0, ids.to_vec())]).collect();
            assert_eq!(run(&mut backend, &steps), expected, "{name}, {simd}");
        }
        let stored = run(&mut stored, &[vec![tokens]]);
        if source.config.ternary_head {
            assert_eq!(stored, expected, "a ternary head is smaller than one of 8 bits");
            continue;
        }
        let pairs = stored
            .iter()
            .zip(&expected)
            .flat_map(|(a, b)| a.2.iter().zip(&b.2));
        let pairs = pairs.map(|(&a, &b)| (f64::from(f32::from_bits(a)), f64::from(f32::from_bits(b))));
        let (mut error, mut size) = (0.0, 0.0);
        for (a, b) in pairs {
            error += (a - b).powi(2);
            size += a * a;
        }
        // Rounding to 255 steps: about 0.5 % rms of weights that are uniform up to the largest.
        assert!(
            error > 0.0 && (error / size).sqrt() < 0.01,
            "{name}: {}",
            (error / size).sqrt()
        );
    }
}

/// A ternary head is one more linear layer: norm, 8-bit inputs, exact sums, scale.
#[test]
fn a_ternary_head_multiplies_quantized_inputs() {
    use bitnet_layout::{act, reference};

    let source = model(|c| {
        (c.tied_head, c.ternary_head) = (false, true);
        c.linear_norm_eps = Some(1e-6);
    });
    let c = &source.config;
    let (_, ids) = prompt(4, c.vocab, 0);
    let mut backend = CpuBackend::new(&source, options(None, 2)).unwrap();
    let hidden = Session::new(&mut backend)
        .step(&[(0, &ids)], Want::Hidden(&[3]))
        .unwrap()
        .to_vec();
    let logits = Session::new(&mut backend)
        .step(&[(0, &ids)], Want::Logits(&[3]))
        .unwrap()
        .to_vec();
    let head = source.ternary_head().unwrap().unwrap();
    let segment = &head.segments[0];
    let mean = hidden.iter().map(|x| x * x).sum::<f32>() / hidden.len() as f32;
    let inverse = 1.0 / (mean + 1e-6).sqrt();
    let norm = segment.input_norm.as_ref().unwrap();
    let normed: Vec<f32> = hidden.iter().zip(norm).map(|(x, w)| w * (x * inverse)).collect();
    let mut q = vec![0; normed.len()];
    let scale = act::quantize_row(&normed, &mut q);
    let rows = head.words.chunks_exact(c.d_model / 16);
    for (row, logit) in rows.zip(&logits) {
        let expected = reference::dot(row, &q) as f32 * segment.scale / scale;
        // A last bit of the norm may move one input to the next code.
        assert!(
            (logit - expected).abs() <= 0.02 * expected.abs().max(1.0),
            "{logit} {expected}"
        );
    }
}

#[test]
fn an_embedding_model_has_hidden_states_and_no_logits() {
    let source = model(|c| (c.has_head, c.qk_norms) = (false, true));
    let mut backend = CpuBackend::new(&source, options(None, 1)).unwrap();
    let (_, ids) = prompt(4, source.config.vocab, 0);
    let mut session = Session::new(&mut backend);
    assert_eq!(
        session.step(&[(0, &ids)], Want::Hidden(&[1, 3])).unwrap().len(),
        2 * 64
    );
    let error = session.step(&[(0, &[1])], Want::Logits(&[0])).unwrap_err();
    assert!(error.to_string().contains("embedding model"));
}

#[test]
fn taps_are_what_the_verbs_leave() {
    let source = model(|_| ());
    let c = &source.config;
    let mut backend = CpuBackend::new(&source, options(None, 2)).unwrap();
    let (_, ids) = prompt(5, c.vocab, 1);
    let batch = Session::new(&mut backend).batch(&[(1, &ids)]).unwrap();
    backend.begin(&batch).unwrap();
    let embedding = RandomDense(&source, 1);
    let expected: Vec<f32> = ids.iter().flat_map(|&id| embedding.row(id as usize)).collect();
    assert_eq!(backend.read(Tap::Residual).unwrap().unwrap(), expected);
    backend.qkv(0).unwrap();
    let [query, key, value] =
        [Tap::Query, Tap::Key, Tap::Value].map(|tap| backend.read(tap).unwrap().unwrap());
    assert_eq!(
        (query.len(), key.len(), value.len()),
        (5 * c.d_q(), 5 * c.d_kv(), 5 * c.d_kv())
    );
    assert!(
        key.iter().chain(&value).all(|x| x.to_bits() & 0xffff == 0),
        "the cache is bf16"
    );
    backend.attention(0).unwrap();
    // The first token sees itself alone: its attention is its value, for every head of a group.
    let attention = backend.read(Tap::Attention).unwrap().unwrap();
    let group = c.n_heads / c.n_kv_heads;
    for head in 0..c.n_heads {
        let found = &attention[head * c.head_dim..][..c.head_dim];
        assert_eq!(found, &value[head / group * c.head_dim..][..c.head_dim]);
    }
    backend.out_proj(0).unwrap();
    backend.up_gate(0).unwrap();
    assert_eq!(backend.read(Tap::Gated).unwrap().unwrap().len(), 5 * c.d_ffn);
    backend.down(0).unwrap();
    let residual = backend.read(Tap::Residual).unwrap().unwrap();
    assert_ne!(residual, expected);
    // What the head multiplies has a mean square of the norm's weights.
    let hidden = backend.head(Want::Hidden(&[1, 4])).unwrap();
    assert_eq!(hidden.len(), 2 * c.d_model);
    let last = &residual[4 * c.d_model..];
    let mean = last.iter().map(|x| x * x).sum::<f32>() / c.d_model as f32;
    let weight = source.final_norm().unwrap();
    for ((&found, x), weight) in hidden[c.d_model..].iter().zip(last).zip(weight) {
        let expected = x / (mean + c.rms_eps).sqrt() * weight;
        assert!(
            (found - expected).abs() <= 1e-5 * expected.abs(),
            "{found} {expected}"
        );
    }
}

#[test]
fn a_sequence_can_be_taken_back() {
    let source = model(|_| ());
    let mut backend = CpuBackend::new(&source, options(None, 1)).unwrap();
    let mut session = Session::new(&mut backend);
    let (_, ids) = prompt(12, source.config.vocab, 0);
    let first = go_on(&mut session, &[vec![(0, ids.clone())]]);
    session.rewind(0, 4);
    go_on(&mut session, &[vec![(0, vec![3; 8])]]);
    session.rewind(0, 4);
    assert_eq!(session.ids(0), &ids[..4]);
    let again = go_on(&mut session, &[vec![(0, ids[4..].to_vec())]]);
    assert_eq!(first[4..], again);
}

#[test]
fn bad_requests_are_errors_that_name_the_fault() {
    let source = model(|_| ());
    let mut backend = CpuBackend::new(&source, options(None, 1)).unwrap();
    let mut session = Session::new(&mut backend);
    for (batch, message) in [
        (vec![], "batch of 0"),
        (vec![(0, vec![0; 33])], "batch of 33"),
        (vec![(0, vec![50])], "token id 50"),
        (vec![(3, vec![0])], "sequence 3"),
    ] {
        let runs: Vec<(usize, &[u32])> = batch.iter().map(|(seq, ids)| (*seq, &ids[..])).collect();
        let error = session.step(&runs, Want::Nothing).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    session.step(&[(0, &[1; 32])], Want::Nothing).unwrap();
    let error = session.step(&[(0, &[1; 9])], Want::Nothing).unwrap_err();
    assert!(
        matches!(error, Error::ContextFull { needed: 41, have: 40 }),
        "{error}"
    );
    for rows in [&[1][..], &[0, 0]] {
        let error = session.step(&[(1, &[1])], Want::Logits(rows)).unwrap_err();
        assert!(error.to_string().contains("ascending order"), "{error}");
    }
    let error = backend.qkv(2).unwrap_err();
    assert!(error.to_string().contains("layer 2 of 2"), "{error}");
}

#[test]
fn pages_are_found_shared_and_copied() {
    let source = model(|_| ());
    let options = CpuOptions {
        page: 16,
        ..options(None, 2)
    };
    let mut backend = CpuBackend::new(&source, options).unwrap();
    let mut pages = Pages::new(backend.spec());
    let (_, ids) = prompt(36, source.config.vocab, 0);
    let mut last = |pages: &mut Pages, seq: &Seq, ids: &[u32]| {
        let mut logits = Vec::new();
        for ids in ids.chunks(32) {
            let batch = pages.batch(&[PageRun { seq, ids }]).unwrap();
            logits = backend
                .step(&batch, Want::Logits(&[ids.len() - 1]))
                .unwrap()
                .to_vec();
        }
        logits
    };
    let (a, found) = pages.open(&ids, 0);
    assert_eq!(found, 0);
    let alone = last(&mut pages, &a, &ids);
    pages.close(a, true);
    let (b, found) = pages.open(&ids, 0);
    assert_eq!(found, 32);
    assert_eq!(last(&mut pages, &b, &ids[32..]), alone);
    // Two go on from the same place, in copies of the page that they shared.
    let c = pages.fork(&b);
    let next = last(&mut pages, &b, &[7]);
    assert_eq!(last(&mut pages, &c, &[7]), next);
    pages.rewind(&c, 35);
    assert_eq!(last(&mut pages, &c, &ids[35..]), alone);
    pages.rewind(&b, 35);
    assert_eq!(last(&mut pages, &b, &ids[35..]), alone);
    pages.close(b, true);
    pages.close(c, true);
    pages.check().unwrap();
}

#[test]
fn a_batch_of_another_back_end_is_refused() {
    let source = model(|_| ());
    let mut backend = CpuBackend::new(&source, options(None, 1)).unwrap();
    let larger = CpuOptions {
        context: 41,
        ..options(None, 1)
    };
    let mut larger = CpuBackend::new(&source, larger).unwrap();
    let batch = Session::new(&mut larger).batch(&[(2, &[1, 2])]).unwrap();
    for error in [
        backend.step(&batch, Want::Nothing).map(drop).unwrap_err(),
        backend.begin(&batch).unwrap_err(),
    ] {
        assert!(error.to_string().contains("pages of this back end"), "{error}");
    }
}

#[test]
fn what_cannot_be_built_is_an_error() {
    let check = |source: &Random, options: CpuOptions, message: &str| {
        let error = CpuBackend::new(source, options).err().expect("an error");
        assert!(error.to_string().contains(message), "{error}");
    };
    let source = model(|_| ());
    let memory = "not enough memory for keys and values";
    let huge = |context, n_seqs| CpuOptions {
        context,
        n_seqs,
        ..options(None, 1)
    };
    check(&source, huge(usize::MAX, 1), memory);
    check(&source, huge(1 << 50, 1), memory);
    check(
        &source,
        CpuOptions {
            page: 48,
            ..options(None, 1)
        },
        "positions of a page",
    );
    check(&source, huge(0, 1), "context");
    check(
        &source,
        CpuOptions {
            max_batch: usize::MAX,
            ..options(None, 1)
        },
        "batch",
    );
    for simd in Simd::ALL {
        if !simd.is_available() {
            check(&source, options(Some(simd), 1), simd.name());
        }
    }
}

#[test]
fn bad_numbers_reach_the_logits() {
    struct Poisoned(Random);
    impl WeightSource for Poisoned {
        fn config(&self) -> &Config {
            self.0.config()
        }
        fn embedding(&self) -> Result<Box<dyn Dense + '_>> {
            self.0.embedding()
        }
        fn layer(&self, index: usize) -> Result<LayerWeights> {
            let mut layer = self.0.layer(index)?;
            layer.ffn_norm[3] = f32::NAN;
            Ok(layer)
        }
        fn final_norm(&self) -> Result<Vec<f32>> {
            self.0.final_norm()
        }
        fn head(&self) -> Result<Option<Box<dyn Dense + '_>>> {
            self.0.head()
        }
    }
    for (name, source) in models() {
        let vocab = source.config.vocab;
        let mut backend = CpuBackend::new(&Poisoned(source), options(None, 1)).unwrap();
        let mut session = Session::new(&mut backend);
        let logits = session
            .step(&[(0, &prompt(4, vocab, 0).1)], Want::Logits(&[3]))
            .unwrap();
        assert!(logits.iter().all(|x| x.is_nan()), "{name}");
    }
}
