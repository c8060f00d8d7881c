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
