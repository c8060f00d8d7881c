//! What surrounds the products of bfloat16 weights, in the emulator.

mod common;

use bitnet_kernels::decode_linear::RELU2;
use bitnet_kernels::dense::{AddRows, Dequantize, GateRows};
use bitnet_kernels::emulator::Emulator;
use bitnet_layout::words;
use common::{Random, same_for_all_seeds};

#[test]
fn weights_are_their_ternary_values_times_their_scale() {
    for (n, k, row_b, row_c) in [(1, 16, 1, 1), (35, 48, 20, 33), (40, 160, 7, u32::MAX)] {
        let mut random = Random::new((n * k) as u64);
        let ternary: Vec<i8> = (0..n * k).map(|_| random.ternary()).collect();
        let mut canonical = vec![0; n * k / 16];
        words::pack_row(&ternary, &mut canonical);
        let found = same_for_all_seeds(&format!("({n}, {k})"), |emulator| {
            let params = Dequantize {
                words: emulator.constant(&canonical),
                w: emulator.uninit(n * k / 2),
                n: n as u32,
                k: k as u32,
                row_b,
                row_c,
                scale_a: 0.75,
                scale_b: -1.5,
                scale_c: 3.0,
            };
            emulator.launch(&params.launch(), &params)?;
            emulator.read(params.w)
        });
        for (i, (&word, pair)) in found.iter().zip(ternary.as_chunks::<2>().0).enumerate() {
            let row = (2 * i / k) as u32;
            let scale = [0.75, -1.5, 3.0][usize::from(row >= row_b) + usize::from(row >= row_c)];
            let halves = [word << 16, word & 0xffff_0000].map(f32::from_bits);
            assert_eq!(halves, pair.map(|t| f32::from(t) * scale), "({n}, {k}) pair {i}");
        }
    }
}

#[test]
fn epilogues() {
    for (rows, width) in [(1, 4), (3, 100), (2, 644)] {
        let mut random = Random::new(width as u64);
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| random.float()).collect() };
        let (z, before) = (numbers(rows * 2 * width), numbers(rows * width));
        let mut emulator = Emulator::new(width as u64);
        let both = emulator.constant(&z);
        let gate = GateRows {
            gate: both,
            up: both.offset(width),
            stride: 2 * width as u32,
            y: emulator.uninit(rows * width),
            rows: rows as u32,
            width: width as u32,
            activation: RELU2,
        };
        emulator.launch(&gate.launch(), &gate).unwrap();
        let add = AddRows {
            z: gate.y,
            y: emulator.buffer(&before),
            len: (rows * width) as u32,
        };
        emulator.launch(&add.launch(), &add).unwrap();
        let found = emulator.read(add.y).unwrap();
        for (i, found) in found.into_iter().enumerate() {
            let (row, column) = (i / width, i % width);
            let gate = z[row * 2 * width + column].max(0.0);
            let expected = before[i] + gate * gate * z[row * 2 * width + width + column];
            assert_eq!(found, expected, "{rows} x {width}, element {i}");
        }
    }
}
