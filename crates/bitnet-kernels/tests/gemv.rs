//! The measured-against kernels: reference-layout and bfloat16 products, and the streaming read.

mod common;

use bitnet_kernels::bench::ref_gemv::RefGemv;
use bitnet_kernels::bench::stream_read::StreamRead;
use bitnet_kernels::bf16_gemm::{self, Bf16Gemm, SplitColumns};
use bitnet_kernels::dense_gemv::{self, Bf16Gemv, MAX_COLS, Machine};
use bitnet_kernels::emulator::Emulator;
use bitnet_layout::reference_tile::ReferenceTile;
use bitnet_layout::{f32_to_bf16, reference, words};
use common::{Random, same_for_all_seeds};

#[test]
fn ref_gemv_equals_the_reference() {
    // The fused q, k, v shape scaled down, one tile, one off the 128 columns of a step, a wide row.
    for (n, k, row_b, row_c) in [
        (96, 160, 64, 80),
        (16, 32, 16, 16),
        (32, 96, 16, 32),
        (48, 2560, 20, 33),
    ] {
        let mut random = Random::new((n * k) as u64);
        let tile = ReferenceTile::new(n, k).unwrap();
        let mut canonical = vec![0; tile.shape().words()];
        for row in canonical.chunks_exact_mut(k / 16) {
            let t: Vec<i8> = (0..k).map(|_| random.ternary()).collect();
            words::pack_row(&t, row);
        }
        // All rows of one sign, against the most negative activation.
        words::pack_row(&vec![1; k], &mut canonical[..k / 16]);
        words::pack_row(&vec![-1; k], &mut canonical[k / 16..k / 8]);
        let mut tiles = vec![0; canonical.len()];
        tile.pack(&canonical, &mut tiles);
        let x: Vec<i8> = (0..k)
            .map(|i| if i % 3 == 0 { -128 } else { random.word() as i8 })
            .collect();
        let packed: Vec<u32> = x
            .chunks_exact(4)
            .map(|c| u32::from_le_bytes([c[0] as u8, c[1] as u8, c[2] as u8, c[3] as u8]))
            .collect();
        let mut sums = vec![0; n];
        reference::linear(tile.shape(), &canonical, &x, &mut sums);
        let y = same_for_all_seeds(&format!("{n} x {k}"), |emulator| {
            let params = RefGemv {
                w: emulator.constant(&tiles),
                x: emulator.constant(&packed),
                s: emulator.constant(&[13.5]),
                y: emulator.uninit(n),
                n: n as u32,
                k: k as u32,
                row_b,
                row_c,
                scale_a: 0.75,
                scale_b: 1.5,
                scale_c: 2.5,
            };
            emulator.launch(&RefGemv::launch(n), &params)?;
            emulator.read(params.y)
        });
        for (row, (&y, &sum)) in y.iter().zip(&sums).enumerate() {
            let scale = [0.75, 1.5, 2.5][usize::from(row as u32 >= row_b) + usize::from(row as u32 >= row_c)];
            assert_eq!(y, f32_to_bf16(sum as f32 / 13.5 * scale), "{n} x {k}, row {row}");
        }
    }
}

/// Two blocks at a time, so that they take several bands.
const MACHINE: Machine = Machine {
    multiprocessors: 1,
    shared_limit: 227 << 10,
};

#[test]
fn bf16_gemv_equals_the_plain_product() {
    // One row, one off the 8 rows of a band, several bands a block; part of a line, fewer lines than pieces in flight and more,
    // model width.
    for (n, k, cols, eps) in [
        (1, 32, 1, -1.0),
        (17, 160, 4, 1e-5),
        (15, 1568, 3, 1e-5),
        (33, 2560, 1, 1e-5),
        (16, 6912, 2, -1.0),
        (203, 320, 2, 1e-5),
    ] {
        let mut random = Random::new((n * k + cols) as u64);
        let w: Vec<u16> = (0..n * k).map(|_| f32_to_bf16(random.float())).collect();
        let x: Vec<f32> = (0..cols * k).map(|_| random.float()).collect();
        let norm: Vec<f32> = (0..k).map(|_| random.float()).collect();
        let pairs: Vec<u32> = w
            .chunks_exact(2)
            .map(|p| u32::from(p[0]) | u32::from(p[1]) << 16)
            .collect();
        let run = |x: &[f32]| {
            let cols = x.len() / k;
            same_for_all_seeds(&format!("{n} x {k}, {cols} columns"), |emulator| {
                let params = Bf16Gemv {
                    w: emulator.constant(&pairs),
                    x: emulator.constant(x),
                    norm: emulator.constant(&norm),
                    y: emulator.uninit(cols * n),
                    n: n as u32,
                    k: k as u32,
                    cols: cols as u32,
                    eps,
                };
                emulator.launch(&params.launch(MACHINE), &params)?;
                emulator.read(params.y)
            })
        };
        let y = run(&x);
        for (c, x) in x.chunks_exact(k).enumerate() {
            let square: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            let r = if eps < 0.0 {
                1.0
            } else {
                1.0 / (square / k as f64 + f64::from(eps)).sqrt()
            };
            for row in 0..n {
                let products = (0..k).map(|i| {
                    let w = f32::from_bits(u32::from(w[row * k + i]) << 16);
                    f64::from(w) * f64::from(x[i] * norm[i])
                });
                let (mut sum, mut size) = (0.0, 0.0);
                for p in products {
                    sum += p;
                    size += p.abs();
                }
                let error = (f64::from(y[c * n + row]) - r * sum).abs();
                // k additions of one rounding each, in the worst case; in practice far fewer accumulate.
                assert!(
                    error <= r * size * 1e-6,
                    "{n} x {k}, column {c}, row {row}: off by {error}"
                );
            }
            // A column has the same bits whatever stands beside it.
            assert!(run(x) == y[c * n..][..n], "{n} x {k}: column {c} alone");
        }
    }
}

#[test]
fn bf16_gemm_has_the_bits_of_bf16_gemv() {
    // One row, one off the 128 rows of a block; one part, an odd number of them, parts of unequal length.
    for (n, k, cols, eps) in [
        (1, 32, 9, -1.0),
        (129, 352, 32, 1e-5),
        (140, 544, 13, 1e-5),
        (17, 1312, 31, -1.0),
    ] {
        let mut random = Random::new((n * k + cols) as u64);
        let w: Vec<u32> = (0..n * k / 2)
            .map(|_| u32::from(f32_to_bf16(random.float())) | u32::from(f32_to_bf16(random.float())) << 16)
            .collect();
        let x: Vec<f32> = (0..cols * k).map(|_| random.float()).collect();
        let norm: Vec<f32> = (0..k).map(|_| random.float()).collect();
        let found = same_for_all_seeds(&format!("{n} x {k}, {cols} columns"), |emulator| {
            let split = SplitColumns {
                x: emulator.constant(&x),
                norm: emulator.constant(&norm),
                terms: emulator.uninit(bf16_gemm::term_words(k)),
                inverse: emulator.uninit(cols),
                k: k as u32,
                cols: cols as u32,
                eps,
            };
            emulator.launch(&split.launch(), &split)?;
            let params = Bf16Gemm {
                w: emulator.constant(&w),
                terms: split.terms,
                inverse: split.inverse,
                y: emulator.uninit(cols * n),
                n: n as u32,
                k: k as u32,
                cols: cols as u32,
                parts: dense_gemv::bf16_parts(k),
            };
            emulator.launch(&Bf16Gemm::launch(n), &params)?;
            emulator.read(params.y)
        });
        for (first, x) in x.chunks(MAX_COLS as usize * k).enumerate() {
            let mut emulator = Emulator::new(0);
            let cols = x.len() / k;
            let params = Bf16Gemv {
                w: emulator.constant(&w),
                x: emulator.constant(x),
                norm: emulator.constant(&norm),
                y: emulator.uninit(cols * n),
                n: n as u32,
                k: k as u32,
                cols: cols as u32,
                eps,
            };
            emulator.launch(&params.launch(MACHINE), &params).unwrap();
            let expected = emulator.read(params.y).unwrap();
            let found = &found[first * MAX_COLS as usize * n..][..expected.len()];
            assert!(
                found == expected,
                "{n} x {k}, {cols} columns from {}",
                first * MAX_COLS as usize
            );
        }
    }
}

#[test]
fn dense_launches_fit_the_shared_memory_they_are_given() {
    for (k, limit) in [
        (2560, 227 << 10),
        (2560, 99 << 10),
        (6912, 99 << 10),
        (10240, 99 << 10),
        (64, 48 << 10),
    ] {
        let cols = Bf16Gemv::max_cols(k, limit);
        assert!((1..=MAX_COLS).contains(&cols), "{k} {limit}");
        let launch = head(1000, k, cols).launch(Machine {
            multiprocessors: 4,
            shared_limit: limit,
        });
        assert!(launch.shared_bytes <= limit, "{k} {limit}");
    }
    assert_eq!(Bf16Gemv::max_cols(1 << 20, 227 << 10), 0);
    // Every block has a turn, and none more than one more than another.
    let launch = head(128_256, 2560, 1).launch(Machine {
        multiprocessors: 132,
        shared_limit: 227 << 10,
    });
    assert_eq!((launch.grid[0], launch.block[0]), (263, 320));
}

/// A product without data.
fn head(n: usize, k: usize, cols: u32) -> Bf16Gemv {
    let mut emulator = Emulator::new(0);
    Bf16Gemv {
        w: emulator.uninit(0),
        x: emulator.uninit(0),
        norm: emulator.uninit(0),
        y: emulator.uninit(0),
        n: n as u32,
        k: k as u32,
        cols,
        eps: -1.0,
    }
}

#[test]
fn stream_read_reads_every_word() {
    // Less than one round, exactly one, and a tail.
    for n in [4, 1000, 512 * 4 * 4 * 2 * 2, 512 * 4 * 4 * 2 * 2 + 2052] {
        let mut random = Random::new(n as u64);
        let x: Vec<u32> = (0..n).map(|_| random.word()).collect();
        let launch = bitnet_kernels::Launch {
            grid: [2, 1, 1],
            ..StreamRead::launch(1)
        };
        let y = same_for_all_seeds(&format!("{n} words"), |emulator| {
            let params = StreamRead {
                x: emulator.constant(&x),
                y: emulator.uninit(2),
                words: n as u64,
            };
            emulator.launch(&launch, &params)?;
            emulator.read(params.y)
        });
        assert_eq!(y[0] ^ y[1], x.iter().fold(0, |a, b| a ^ b), "{n} words");
    }
}
