mod source;

use super::*;
use crate::{ActQuant, Activation, Dense, DenseDtype};
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
        ..CpuOptions::default()
    }
}

fn prompt(len: usize, vocab: usize, seq: u32) -> Vec<Token> {
    let token = |pos| Token {
        id: ((pos * 7 + seq as usize * 5) % vocab) as u32,
        pos: pos as u32,
        seq,
    };
    (0..len).map(token).collect()
}

/// Bits of the logits of every token, steps as given.
fn run(backend: &mut CpuBackend, steps: &[Vec<Token>]) -> Vec<(Token, Vec<u32>)> {
    let mut out = Vec::new();
    for step in steps {
        let rows: Vec<usize> = (0..step.len()).collect();
        let logits = backend.step(step, &rows).unwrap();
        let bits = logits
            .chunks(logits.len() / step.len())
            .map(|row| row.iter().map(|x| x.to_bits()).collect());
        out.extend(step.iter().copied().zip(bits));
    }
    out.sort_by_key(|(token, _)| (token.seq, token.pos));
    out
}

#[test]
fn the_same_request_gives_the_same_bits() {
    const LEN: usize = 21;
    for (name, source) in models() {
        let prompts: Vec<Vec<Token>> = (0..3).map(|seq| prompt(LEN, source.config.vocab, seq)).collect();
        let mut plain = CpuBackend::new(&source, options(Some(Simd::Scalar), 1)).unwrap();
        let one_by_one: Vec<Vec<Token>> = prompts.concat().into_iter().map(|token| vec![token]).collect();
        let expected = run(&mut plain, &one_by_one);
        assert!(
            expected
                .iter()
                .flat_map(|(_, bits)| bits)
                .all(|&bits| f32::from_bits(bits).is_finite())
        );
        // Prompts whole, in chunks, and the sequences side by side.
        let mut cuts: Vec<Vec<Vec<Token>>> = vec![prompts.clone()];
        for size in [2, 3, 5, 8, 16] {
            cuts.push(
                prompts
                    .iter()
                    .flat_map(|prompt| prompt.chunks(size).map(<[_]>::to_vec))
                    .collect(),
            );
        }
        let side_by_side = |pos: usize| prompts.iter().map(|prompt| prompt[pos]).collect();
        cuts.push((0..LEN).map(side_by_side).collect());
        let ragged = |pos: usize| [&prompts[2][2 * pos..2 * pos + 2], &prompts[0][pos..=pos]].concat();
        let mut steps: Vec<Vec<Token>> = (0..LEN / 2).map(ragged).collect();
        steps.push([&prompts[0][LEN / 2..], &prompts[2][LEN - 1..], &prompts[1][..5]].concat());
        steps.push(prompts[1][5..].to_vec());
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
        let expected = run(&mut backend, std::slice::from_ref(&tokens));
        for simd in Simd::available() {
            let mut backend = CpuBackend::new(&source, int8(Some(simd), 2)).unwrap();
            let steps: Vec<Vec<Token>> = tokens.chunks(4).map(<[_]>::to_vec).collect();
            assert_eq!(run(&mut backend, &steps), expected, "{name}, {simd}");
        }
        let stored = run(&mut stored, std::slice::from_ref(&tokens));
        let pairs = stored
            .iter()
            .zip(&expected)
            .flat_map(|(a, b)| a.1.iter().zip(&b.1));
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

#[test]
fn taps_are_what_the_verbs_leave() {
    let source = model(|_| ());
    let c = &source.config;
    let mut backend = CpuBackend::new(&source, options(None, 2)).unwrap();
    let batch = prompt(5, c.vocab, 1);
    backend.embed(&batch).unwrap();
    let embedding = RandomDense(&source, 1);
    let expected: Vec<f32> = batch
        .iter()
        .flat_map(|token| embedding.row(token.id as usize))
        .collect();
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
    assert_ne!(backend.read(Tap::Residual).unwrap().unwrap(), expected);
}

#[test]
fn a_sequence_can_be_taken_back() {
    let source = model(|_| ());
    let mut backend = CpuBackend::new(&source, options(None, 1)).unwrap();
    let tokens = prompt(12, source.config.vocab, 0);
    let other: Vec<Token> = tokens[4..]
        .iter()
        .map(|token| Token { id: 3, ..*token })
        .collect();
    let first = run(&mut backend, std::slice::from_ref(&tokens));
    run(&mut backend, &[other]);
    let again = run(&mut backend, &[tokens[4..].to_vec()]);
    assert_eq!(first[4..], again);
    run(&mut backend, &[tokens[..2].to_vec()]);
    let error = backend.step(&tokens[3..4], &[0]).unwrap_err();
    assert!(
        error.to_string().contains("the next one to compute is 2"),
        "{error}"
    );
}

#[test]
fn bad_requests_are_errors_that_name_the_fault() {
    let source = model(|_| ());
    let mut backend = CpuBackend::new(&source, options(None, 1)).unwrap();
    let token = |id, pos, seq| Token { id, pos, seq };
    for (batch, message) in [
        (vec![], "batch of 0"),
        (vec![token(0, 0, 0); 33], "batch of 33"),
        (vec![token(50, 0, 0)], "token id 50"),
        (vec![token(0, 40, 0)], "position 40"),
        (vec![token(0, 0, 3)], "sequence 3"),
        (vec![token(0, 1, 0)], "the next one to compute is 0"),
        (
            vec![token(0, 0, 0), token(0, 2, 0)],
            "the next one to compute is 1",
        ),
        (
            vec![token(0, 0, 0), token(0, 0, 0)],
            "the next one to compute is 1",
        ),
    ] {
        let error = backend.step(&batch, &[]).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    assert!(backend.step(&[token(1, 0, 0)], &[1]).is_err());
    assert!(backend.qkv(2).is_err());
}

#[test]
fn what_cannot_be_built_is_an_error() {
    let check = |source: &Random, options: CpuOptions, message: &str| {
        let error = CpuBackend::new(source, options).err().expect("an error");
        assert!(error.to_string().contains(message), "{error}");
    };
    let source = model(|_| ());
    let huge = |context, n_seqs| CpuOptions {
        context,
        n_seqs,
        ..options(None, 1)
    };
    check(&source, huge(usize::MAX, 1), "KV cache");
    check(&source, huge(1 << 50, 1), "lower --ctx-size");
    check(&source, huge(1 << 20, usize::MAX / 2), "KV cache");
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
        let logits = backend.step(&prompt(4, vocab, 0), &[3]).unwrap();
        assert!(logits.iter().all(|x| x.is_nan()), "{name}");
    }
}
