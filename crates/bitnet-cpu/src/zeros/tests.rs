//! Products without zeros against the whole products: on every path, bit by bit.

use bitnet_layout::random::Random;

use super::*;
use crate::Simd;

/// Words of an (n, k) matrix of random ternary values.
fn matrix(random: &mut Random, n: usize, k: usize) -> Vec<u32> {
    let t: Vec<i8> = (0..n * k).map(|_| (random.word() % 3) as i8 - 1).collect();
    let mut packed = vec![0; n * k / CODES_PER_WORD];
    for (t, row) in t.chunks_exact(k).zip(packed.chunks_exact_mut(k / CODES_PER_WORD)) {
        words::pack_row(t, row);
    }
    packed
}

/// Rows of activations, of which one column in `one_in` is not zero; none for 0.
fn activations(random: &mut Random, n_tokens: usize, k: usize, one_in: u32) -> Vec<f32> {
    let some: Vec<bool> = (0..k)
        .map(|_| one_in > 0 && random.word().is_multiple_of(one_in))
        .collect();
    let mut value = |&is_some: &bool| match is_some {
        // Not zero in every row.
        true if one_in == 1 || random.word().is_multiple_of(2) => {
            (random.word() >> 8) as f32 / 8_388_608.0 - 1.0
        }
        _ => 0.0,
    };
    (0..n_tokens)
        .flat_map(|_| some.iter().map(&mut value).collect::<Vec<_>>())
        .collect()
}

/// What `f` gives for the rows of `x`, of `k` columns, as activations, by every path, with one thread and several.
fn each(x: &[f32], k: usize, f: impl Fn(&Cpu, &mut Activations, &str)) {
    let n_tokens = x.len() / k;
    for simd in Simd::available() {
        for threads in [1, 3] {
            let cpu = Cpu::new(Some(simd), Some(threads)).unwrap();
            let mut a = Activations::new(Precision::Int8, threads, n_tokens, k).unwrap();
            cpu.prepare(x, k, &[], &mut a);
            let about = format!("{simd}, {threads} threads, {n_tokens} rows of {k} columns");
            f(&cpu, &mut a, &about);
        }
    }
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn columns_of_zeros_change_nothing() {
    let mut random = Random::new(8);
    for (n, k) in [(1, 16), (40, 80), (256, 272), (272, 1040), (700, 96)] {
        let packed = matrix(&mut random, n, k);
        let w = TernaryMatrix::new(n, k, &packed, &[(n, 0.7)]).unwrap();
        for (one_in, n_tokens) in [0, 1, 2, 9, 200]
            .into_iter()
            .flat_map(|i| (1..=8).map(move |t| (i, t)))
        {
            let x = activations(&mut random, n_tokens, k, one_in);
            let start = activations(&mut random, n_tokens, n, 1);
            let read = (0..k)
                .filter(|c| x.iter().skip(*c).step_by(k).any(|&x| x != 0.0))
                .count() as u64;
            each(&x, k, |cpu, a, about| {
                let columns = TernaryColumns::new(cpu, n, k, &packed).unwrap();
                assert_eq!(columns.bytes(), TernaryColumns::bytes_of(n, k));
                for write in [Write::Replace, Write::Add] {
                    fn output(data: &mut [f32], stride: usize, write: Write) -> Output<'_> {
                        Output {
                            data,
                            stride,
                            first: 0,
                            write,
                        }
                    }
                    let (mut whole, mut some) = (start.clone(), start.clone());
                    cpu.matmul(&w, a, output(&mut whole, n, write));
                    cpu.some_columns(&w, &columns, a, output(&mut some, n, write));
                    assert_eq!(bits(&some), bits(&whole), "{about}, {n} rows, one in {one_in}");
                    let mut chosen = start.clone();
                    cpu.matmul_some(&w, &columns, a, output(&mut chosen, n, write));
                    assert_eq!(bits(&chosen), bits(&whole), "{about}, {n} rows, one in {one_in}");
                }
                let counts = a.zeros();
                assert_eq!(counts.of_columns, 4 * k as u64);
                let all = 100 * a.n_nonzero() > cpu.most_columns(n_tokens) * k;
                let most = if all { 2 * read + 2 * k as u64 } else { 4 * read };
                assert!(
                    counts.columns <= most && counts.columns >= read,
                    "{counts:?} {read}, {about}"
                );
            });
        }
    }
}

#[test]
fn rows_with_gates_of_zero_change_nothing() {
    let mut random = Random::new(9);
    for (n, k) in [(16, 16), (64, 80), (80, 256), (208, 528), (48, 2560)] {
        let packed = matrix(&mut random, 2 * n, k);
        let (gates, ups) = packed.split_at(n * k / CODES_PER_WORD);
        let x = activations(&mut random, 1, k, 1);
        // Gates as they come, none and all that are above zero, and products that are no numbers.
        let ones = vec![0xaaaa_aaaa; gates.len()];
        let cases = [
            (gates, (0.5, 0.25)),
            (gates, (-0.5, 0.25)),
            (&ones[..], (1.0, -1.0)),
            (&ones[..], (-1.0, 1.0)),
            (gates, (0.5, f32::MAX)),
            (gates, (f32::NAN, 1.0)),
        ];
        for (gates, (of_gates, of_ups)) in cases {
            let packed = [gates, ups].concat();
            let w = TernaryMatrix::new(2 * n, k, &packed, &[(n, of_gates), (n, of_ups)]).unwrap();
            let up = TernaryRows::new(n, k, ups).unwrap();
            assert_eq!(up.bytes(), TernaryRows::bytes_of(n, k));
            for x in [x.clone(), x.iter().map(|x| 300.0 * x.abs()).collect()] {
                each(&x, k, |cpu, a, about| {
                    let (mut whole, mut some) = (vec![0.0; n], vec![f32::NAN; n]);
                    cpu.matmul_gated(&w, a, Activation::Relu2, &mut whole);
                    cpu.some_rows(&w, &up, a, &mut some);
                    assert_eq!(
                        bits(&some),
                        bits(&whole),
                        "{about}, {n} rows, {of_gates} {of_ups}"
                    );
                    let counts = a.zeros();
                    let mut chosen = vec![f32::NAN; n];
                    cpu.matmul_gated_some(&w, &up, a, &mut chosen);
                    assert_eq!(
                        bits(&chosen),
                        bits(&whole),
                        "{about}, {n} rows, {of_gates} {of_ups}"
                    );
                    let zero = whole.iter().filter(|&&y| y == 0.0).count() as u64;
                    assert!(counts.of_rows == n as u64 && counts.rows <= n as u64);
                    if of_ups.abs() <= 1.0 {
                        assert!(
                            n as u64 - counts.rows <= zero,
                            "{about}: {counts:?}, {zero} zeros"
                        );
                    }
                });
            }
        }
    }
}

#[test]
fn rows_are_left_out_while_few_gates_are_positive() {
    let (n, k) = (160, 64);
    let x = vec![1.0; k];
    // One gate in ten is positive, or all are.
    let row = |value: i8| {
        let mut words = [0; 4];
        words::pack_row(&[value; 64], &mut words);
        words
    };
    let n_steps = 40;
    for one_in in [10, 1] {
        let gates = (0..n).flat_map(|i| row(if i % one_in == 0 { 1 } else { -1 }));
        let ups: Vec<u32> = (0..n).flat_map(|_| row(1)).collect();
        let packed: Vec<u32> = gates.chain(ups.iter().copied()).collect();
        let w = TernaryMatrix::new(2 * n, k, &packed, &[(2 * n, 1.0)]).unwrap();
        each(&x, k, |cpu, a, about| {
            let up = TernaryRows::new(n, k, &ups).unwrap();
            let mut out = vec![0.0; n];
            for _ in 0..n_steps {
                cpu.matmul_gated_some(&w, &up, a, &mut out);
            }
            let counts = a.zeros();
            assert_eq!(counts.of_rows, (n_steps * n) as u64, "{about}");
            assert_eq!(counts.rows, (n_steps * n / one_in) as u64, "{about}");
            assert_eq!(up.rest.load(Ordering::Relaxed) > 0, one_in == 1, "{about}");
        });
    }
}

#[test]
fn rows_are_tried_less_often_while_that_does_not_pay() {
    let (n, k) = (16, 64);
    let mut words = [0; 4];
    words::pack_row(&[1; 64], &mut words);
    let packed = words.repeat(2 * n);
    let w = TernaryMatrix::new(2 * n, k, &packed, &[(2 * n, 1.0)]).unwrap();
    let up = TernaryRows::new(n, k, &packed[..n * k / CODES_PER_WORD]).unwrap();
    let cpu = Cpu::new(None, Some(1)).unwrap();
    let mut a = Activations::new(Precision::Int8, 1, 1, k).unwrap();
    let mut out = vec![0.0; n];
    let mut rests = |x: f32, n_products: usize| {
        cpu.prepare(&vec![x; k], k, &[], &mut a);
        let mut rests = Vec::new();
        for _ in 0..n_products {
            let is_trial = up.rest.load(Ordering::Relaxed) == 0;
            cpu.matmul_gated_some(&w, &up, &mut a, &mut out);
            if is_trial {
                rests.push(up.rest.load(Ordering::Relaxed));
            }
        }
        rests
    };
    // All gates are positive, then none, then all again.
    assert_eq!(rests(1.0, 32 + 64 + 128 + 256 + 256), [31, 63, 127, 255, 255]);
    assert_eq!(rests(-1.0, 3), [0; 3]);
    assert_eq!(rests(1.0, 33), [31, 63]);
}

#[test]
fn columns_are_counted() {
    let mut random = Random::new(10);
    // More steps than a byte counts.
    for (n_tokens, k) in [1, 3, 8]
        .into_iter()
        .flat_map(|t| [64, 80, 6912, 40 * 1024].map(|k| (t, k)))
    {
        for one_in in [0, 1, 3] {
            let x = activations(&mut random, n_tokens, k, one_in);
            let cpu = Cpu::new(None, Some(1)).unwrap();
            let mut a = Activations::new(Precision::Int8, 1, n_tokens, k).unwrap();
            cpu.prepare(&x, k, &[], &mut a);
            // A row alone lies as it is, several lie together step by step.
            let stride = if n_tokens == 1 { 1 } else { TOKEN_STEP };
            let code = |token: usize, c: usize| a.q[c / COLUMN_STEP * stride + token][c % COLUMN_STEP];
            let n = (0..k)
                .filter(|&c| (0..n_tokens).any(|token| code(token, c) != 0))
                .count();
            assert_eq!(
                a.n_nonzero(),
                n,
                "{n_tokens} rows of {k} columns, one in {one_in}"
            );
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let cpu = Cpu::new(None, Some(1)).unwrap();
    for (n, k, len) in [(2, 24, 3), (2, 32, 3), (2, 32, 5), (usize::MAX / 2, 32, 4)] {
        let words = vec![0; len];
        assert!(TernaryRows::new(n, k, &words).is_err(), "{n} x {k}");
        assert!(TernaryColumns::new(&cpu, n, k, &words).is_err(), "{n} x {k}");
    }
}
