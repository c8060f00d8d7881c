//! The embedding kernels in the emulator: exact for every element type.

mod common;

use bitnet_kernels::embed::{EmbedBf16, EmbedF16, EmbedF32};
use common::{Random, same_for_all_seeds};

const VOCAB: u32 = 5;
const TOKENS: [u32; 3] = [4, 0, 2];

/// Runs one of the kernels on rows of `d` elements, the bits of which `element` finds in the table.
macro_rules! check {
    ($Params:ident, $element:path, $d:expr, $table:expr, $value:expr) => {{
        let (d, table): (u32, Vec<u32>) = ($d, $table);
        let out = same_for_all_seeds(stringify!($Params), |emulator| {
            let params = $Params {
                tokens: emulator.constant(&TOKENS),
                table: emulator.constant(&table),
                x: emulator.uninit((TOKENS.len() as u32 * d) as usize),
                batch: TOKENS.len() as u32,
                d,
            };
            emulator.launch(&params.launch(), &params)?;
            // As bits: a NaN equals nothing.
            emulator.read(params.x.cast::<u32>())
        });
        let value: fn(u32) -> f32 = $value;
        let expected: Vec<u32> = TOKENS
            .iter()
            .flat_map(|token| (0..d).map(move |i| token * d + i))
            .map(|i| value($element(&table, i)).to_bits())
            .collect();
        assert_eq!(out, expected);
    }};
}

/// Element `i` of a table of 16-bit elements.
fn half(table: &[u32], i: u32) -> u32 {
    table[i as usize / 2] >> (16 * (i % 2)) & 0xffff
}

/// Element `i` of a table of 32-bit elements.
fn word(table: &[u32], i: u32) -> u32 {
    table[i as usize]
}

fn words(n: u32) -> Vec<u32> {
    let mut random = Random::new(1);
    (0..n).map(|_| random.word()).collect()
}

#[test]
fn bf16() {
    for d in [2, 64, 514] {
        check!(EmbedBf16, half, d, words(VOCAB * d / 2), |bits| f32::from_bits(
            bits << 16
        ));
    }
}

#[test]
fn f32() {
    for d in [2, 64, 514] {
        check!(EmbedF32, word, d, words(VOCAB * d), f32::from_bits);
    }
}

#[test]
fn f16() {
    let value = |bits: u32| {
        let (exponent, fraction) = (bits >> 10 & 31, bits & 0x3ff);
        let magnitude = match exponent {
            0 => fraction as f32 * 2f32.powi(-24),
            31 => f32::from_bits(0x7f80_0000 | fraction << 13),
            _ => (1024 + fraction) as f32 * 2f32.powi(exponent as i32 - 25),
        };
        if bits & 0x8000 == 0 { magnitude } else { -magnitude }
    };
    check!(EmbedF16, half, 514, words(VOCAB * 257), value);
    // Zeros, the smallest and largest of subnormal and normal numbers, infinity, NaN.
    let edges = [0x0000_8000, 0x0001_83ff, 0x0400_fbff, 0x7c00_fc00, 0x7e00_3c00];
    check!(EmbedF16, half, 2, edges.to_vec(), value);
}
