use bitnet_layout::random::Random;
use bitnet_layout::words;

use super::*;
use crate::Simd;

/// One token at a time by the portable path, and by every path, with one thread and several, all together.
#[test]
fn company_changes_nothing() {
    let mut random = Random::new(5);
    for (n, k) in [(16, 16), (144, 80), (80, 528), (352, 64)] {
        let t: Vec<i8> = (0..n * k).map(|_| (random.word() % 3) as i8 - 1).collect();
        let mut packed = vec![0; n * k / words::CODES_PER_WORD];
        words::pack_row(&t, &mut packed);
        let w = TernaryMatrix::new(n, k, &packed, &[(n / 2, 0.5), (n / 2, 0.3)]).unwrap();
        let x: Vec<f32> = (0..40 * k)
            .map(|_| (random.word() >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect();
        let alone: Vec<Products> = {
            let cpu = Cpu::new(Some(Simd::Scalar), Some(1)).unwrap();
            x.chunks_exact(k).map(|x| products(&cpu, &w, x)).collect()
        };
        for simd in Simd::available() {
            for threads in [1, 3] {
                let cpu = Cpu::new(Some(simd), Some(threads)).unwrap();
                for n_tokens in 1..=40 {
                    let together = products(&cpu, &w, &x[..n_tokens * k]);
                    for (token, alone) in alone[..n_tokens].iter().enumerate() {
                        let about = format!("{simd}, {n} x {k}, token {token} of {n_tokens}");
                        assert_eq!(together[0][token], alone[0][0], "{about}");
                        assert_eq!(together[1][token], alone[1][0], "{about}, gated");
                    }
                }
            }
        }
    }
}

#[test]
fn a_prompt_gives_what_its_tokens_alone_give() {
    let mut random = Random::new(6);
    let (n, k, n_tokens) = (368, 144, 200);
    let t: Vec<i8> = (0..n * k).map(|_| (random.word() % 3) as i8 - 1).collect();
    let mut packed = vec![0; n * k / words::CODES_PER_WORD];
    words::pack_row(&t, &mut packed);
    let w = TernaryMatrix::new(n, k, &packed, &[(n, 0.25)]).unwrap();
    let x: Vec<f32> = (0..n_tokens * k).map(|_| random.unit()).collect();
    let alone: Vec<Products> = {
        let cpu = Cpu::new(Some(Simd::Scalar), Some(1)).unwrap();
        x.chunks_exact(k).map(|x| products(&cpu, &w, x)).collect()
    };
    for simd in Simd::available() {
        for threads in [1, 5] {
            let cpu = Cpu::new(Some(simd), Some(threads)).unwrap();
            let together = products(&cpu, &w, &x);
            for (token, alone) in alone.iter().enumerate() {
                assert_eq!(
                    together[0][token], alone[0][0],
                    "{simd}, {threads} threads, token {token}"
                );
            }
        }
    }
}

/// By token, the bits of its products, plain and gated.
type Products = [Vec<Vec<u32>>; 2];

fn products(cpu: &Cpu, w: &TernaryMatrix, x: &[f32]) -> Products {
    let (n, n_tokens) = (w.n(), x.len() / w.k());
    let mut a = Activations::new(Precision::Int8, cpu.n_threads(), n_tokens, w.k()).unwrap();
    cpu.prepare(x, w.k(), &[], &mut a);
    let mut plain = vec![f32::NAN; n_tokens * n];
    let output = Output {
        data: &mut plain,
        stride: n,
        first: 0,
        write: Write::Replace,
    };
    cpu.matmul(w, &mut a, output);
    let half = n / 2;
    let mut gated = vec![f32::NAN; n_tokens * half];
    if half.is_multiple_of(ROWS) {
        cpu.matmul_gated(w, &mut a, Activation::Relu2, &mut gated);
    }
    let rows = |y: Vec<f32>, n| {
        y.chunks_exact(n)
            .map(|y| y.iter().map(|y| y.to_bits()).collect())
            .collect()
    };
    [rows(plain, n), rows(gated, half)]
}
