//! The processor's side of `bench kernels`. It has no reference-layout kernel: that layout is for GPUs.

use std::time::Instant;

use anyhow::ensure;
use bitnet_cpu::{Activations, Cpu, DenseDtype, DenseMatrix, Output, Precision, Simd, TernaryMatrix, Write};
use bitnet_layout::random::Random;
use bitnet_layout::reference;
use bitnet_layout::words::{CODES_PER_WORD, Shape, unpack_word};
use bitnet_model::LoadOptions;

use super::Limits;
use super::report::{BF16, OURS, Report, Row, Timing};
use super::shapes::{HEAD, SHAPES};
use crate::machine;

/// Weights that a cold pass goes through before it sees the same again: several times any last-level cache.
const COLD_BYTES: u64 = 400_000_000;

/// Fewest products in a pass.
const MIN_PRODUCTS: usize = 16;

/// Passes, of which the median counts.
const RUNS: usize = 7;

/// Measures this processor.
pub(super) fn measure(simd: Option<Simd>, threads: Option<usize>) -> anyhow::Result<Report> {
    let cpu = Cpu::new(simd, threads)?;
    let limits = Limits::of(&cpu, machine::READ_BYTES)?;
    let facts = vec![
        (
            "device",
            format!(
                "{} ({}, {} threads)",
                machine::processor_name(),
                cpu.simd(),
                cpu.n_threads()
            ),
        ),
        (
            "method",
            format!("median of {RUNS} passes; cold: over copies of the weights, 400 MB or more in all"),
        ),
        (
            "plain multiplies",
            format!("{:.0} G/s", limits.g_products_per_s.unwrap_or_default()),
        ),
    ];
    let mut rows = Vec::new();
    for (n, k) in SHAPES {
        let case = Case::new(n, k)?;
        rows.push(Row {
            n,
            k,
            timings: vec![ternary(&cpu, &case)?, dense(&cpu, &case)?],
        });
    }
    let (n, k) = HEAD;
    rows.push(Row {
        n,
        k,
        timings: vec![dense(&cpu, &Case::new(n, k)?)?],
    });
    Ok(Report {
        facts,
        peak_gb_per_s: limits.gb_per_s,
        rows,
    })
}

/// A ternary matrix, integer activations that quantize to themselves, and the exact product.
struct Case {
    shape: Shape,
    words: Vec<u32>,
    x: Vec<f32>,
    expected: Vec<f32>,
}

impl Case {
    fn new(n: usize, k: usize) -> anyhow::Result<Self> {
        let shape = Shape::new(n, k)?;
        let mut random = Random::new(1);
        let words: Vec<u32> = (0..shape.words()).map(|_| random.ternary_word()).collect();
        let mut x: Vec<i8> = (0..k).map(|_| (random.word() as i8).max(-127)).collect();
        // The largest magnitude is 127, so the scale is 1.
        x[0] = 127;
        let mut product = vec![0; n];
        reference::linear(shape, &words, &x, &mut product);
        Ok(Self {
            shape,
            words,
            x: x.iter().map(|&x| x.into()).collect(),
            // Below 2^24, so exact.
            expected: product.iter().map(|&y| y as f32).collect(),
        })
    }
}

fn ternary(cpu: &Cpu, case: &Case) -> anyhow::Result<Timing> {
    let (n, k) = (case.shape.n(), case.shape.k());
    let new = || TernaryMatrix::new(n, k, &case.words, &[(n, 1.0)]);
    let mut x = Activations::new(Precision::Int8, cpu.n_threads(), 1, k)?;
    cpu.prepare(&case.x, k, &[], &mut x);
    let first = new()?;
    let bytes = first.bytes();
    let mut weights = vec![first];
    while weights.len() < n_copies(bytes) {
        weights.push(new()?);
    }
    let timing = time(OURS, case, bytes, &weights, |w, y| {
        cpu.matmul(
            w,
            &mut x,
            Output {
                data: y,
                stride: n,
                first: 0,
                write: Write::Replace,
            },
        );
        Ok(())
    })?;
    Ok(timing)
}

fn dense(cpu: &Cpu, case: &Case) -> anyhow::Result<Timing> {
    let (n, k) = (case.shape.n(), case.shape.k());
    let bytes = (n * k * 2) as u64;
    let new = || {
        DenseMatrix::read(DenseDtype::Bf16, (n, k), |row, out: &mut [u8]| {
            let words = &case.words[row * case.shape.words_per_row()..];
            for (out, &word) in out.chunks_exact_mut(2 * CODES_PER_WORD).zip(words) {
                for (out, t) in out.chunks_exact_mut(2).zip(unpack_word(word)) {
                    // -1, 0 and 1: the upper half of the float is all of it.
                    out.copy_from_slice(&f32::from(t).to_le_bytes()[2..]);
                }
            }
            Ok::<(), bitnet_cpu::Error>(())
        })
    };
    let weights = (0..n_copies(bytes))
        .map(|_| new())
        .collect::<Result<Vec<_>, _>>()?;
    time(BF16, case, bytes, &weights, |w, y| Ok(cpu.dense(w, &case.x, y)?))
}

/// Copies of weights of this size that a cold pass needs.
fn n_copies(bytes: u64) -> usize {
    COLD_BYTES.div_ceil(bytes).max(2) as usize
}

/// Times `product`, after comparing its result with the exact one.
fn time<W>(
    kernel: &'static str,
    case: &Case,
    weight_bytes: u64,
    weights: &[W],
    mut product: impl FnMut(&W, &mut [f32]) -> anyhow::Result<()>,
) -> anyhow::Result<Timing> {
    let mut y = vec![f32::NAN; case.expected.len()];
    product(&weights[weights.len() - 1], &mut y)?;
    let wrong = y
        .iter()
        .zip(&case.expected)
        .position(|(y, expected)| y != expected);
    ensure!(
        wrong.is_none(),
        "{kernel} is wrong on {} x {}: row {wrong:?} of the result",
        case.shape.n(),
        case.shape.k()
    );
    let products = MIN_PRODUCTS.next_multiple_of(weights.len());
    let mut pass = |weights: &[W]| -> anyhow::Result<f64> {
        let mut times = Vec::with_capacity(RUNS);
        for run in 0..=RUNS {
            let start = Instant::now();
            for w in weights.iter().cycle().take(products) {
                product(w, &mut y)?;
            }
            // The first pass warms up.
            if run > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e6 / products as f64);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[RUNS / 2])
    };
    let cold_us = pass(weights)?;
    let hot_us = pass(&weights[..1])?;
    let bytes = weight_bytes + (case.shape.k() + case.shape.n() * size_of::<f32>()) as u64;
    Ok(Timing {
        kernel,
        cold_us,
        hot_us,
        bytes,
    })
}

/// What the processor can do with the instruction set and the threads that a model would use, reads of at most `bytes` bytes.
pub(super) fn limits(options: &LoadOptions, bytes: u64) -> anyhow::Result<Limits> {
    Limits::of(&Cpu::on(options.simd, options.threads, options.numa)?, bytes)
}

impl Limits {
    fn of(cpu: &Cpu, bytes: u64) -> anyhow::Result<Self> {
        Ok(Self {
            gb_per_s: machine::read_gb_per_s(cpu, bytes)?,
            g_products_per_s: Some(cpu.multiply_rate() / 1e9),
        })
    }
}
