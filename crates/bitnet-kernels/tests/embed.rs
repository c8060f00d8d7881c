//! The embedding kernel in the emulator: exact.

mod common;

use bitnet_kernels::embed::EmbedBf16;
use common::{Random, same_for_all_seeds};

const VOCAB: u32 = 5;
const TOKENS: [u32; 3] = [4, 0, 2];

#[test]
fn rows_are_those_of_the_tokens() {
    for d in [2, 64, 514] {
        let mut random = Random::new(1);
        let table: Vec<u32> = (0..VOCAB * d / 2).map(|_| random.word()).collect();
        let out = same_for_all_seeds("embed", |emulator| {
            let params = EmbedBf16 {
                tokens: emulator.constant(&TOKENS),
                table: emulator.constant(&table),
                x: emulator.uninit((TOKENS.len() as u32 * d) as usize),
                batch: TOKENS.len() as u32,
                d,
                terms: 1,
                stride: d / 2,
            };
            emulator.launch(&params.launch(), &params)?;
            // As bits: a NaN equals nothing.
            emulator.read(params.x.cast::<u32>())
        });
        let elements = TOKENS.iter().flat_map(|token| (0..d).map(move |i| token * d + i));
        let bits = |i: u32| (table[i as usize / 2] >> (16 * (i % 2))) << 16;
        assert_eq!(out, elements.map(bits).collect::<Vec<u32>>());
    }
}

/// Numbers of 24 bits are three terms of eight; rows are longer than their terms.
#[test]
fn terms_are_added() {
    let (d, terms) = (6, 3);
    let stride = terms * d / 2 + 4;
    let mut random = Random::new(2);
    let numbers: Vec<f32> = (0..VOCAB * d).map(|_| random.float()).collect();
    let mut table = vec![u32::MAX; (VOCAB * stride) as usize];
    for (row, numbers) in table
        .chunks_exact_mut(stride as usize)
        .zip(numbers.chunks_exact(d as usize))
    {
        for (i, &number) in numbers.iter().enumerate() {
            let mut rest = number;
            for term in 0..terms as usize {
                let bits = rest.to_bits() >> 16;
                rest -= f32::from_bits(bits << 16);
                let (word, shift) = ((term * d as usize + i) / 2, 16 * (i % 2));
                row[word] = row[word] & !(0xffff << shift) | bits << shift;
            }
            assert_eq!(rest, 0.0);
        }
    }
    let found = same_for_all_seeds("terms", |emulator| {
        let params = EmbedBf16 {
            tokens: emulator.constant(&TOKENS),
            table: emulator.constant(&table),
            x: emulator.uninit((TOKENS.len() as u32 * d) as usize),
            batch: TOKENS.len() as u32,
            d,
            terms,
            stride,
        };
        emulator.launch(&params.launch(), &params)?;
        emulator.read(params.x)
    });
    let expected = TOKENS
        .iter()
        .flat_map(|token| &numbers[(token * d) as usize..][..d as usize]);
    assert_eq!(found, expected.copied().collect::<Vec<f32>>());
}
