//! Copies of pages, in the emulator.

mod common;

use bitnet_kernels::cache::{CopyPages, KvType};
use common::{Random, same_for_all_seeds};

const LAYERS: usize = 3;
const PAGES: usize = 6;

#[test]
fn pages_are_copied_in_every_layer_and_others_stay() {
    for (kv_type, n_kv_heads, padded) in [
        (KvType::Bf16, 1, 32),
        (KvType::Bf16, 2, 64),
        (KvType::Int8, 3, 64),
    ] {
        let page_words = kv_type.words(1, n_kv_heads, padded);
        let mut random = Random::new(3);
        let mut pool = || -> Vec<u32> { (0..LAYERS * PAGES * page_words).map(|_| random.word()).collect() };
        let before = [pool(), pool()];
        let pairs = [[4u32, 0], [4, 5], [1, 2]];
        let after = same_for_all_seeds("copies", |emulator| {
            let [k, v] = [0, 1].map(|i| emulator.buffer(&before[i]));
            let copy = CopyPages {
                pairs: emulator.constant(&pairs.concat()),
                k,
                v,
                n_pairs: pairs.len() as u32,
                n_pages: PAGES as u32,
                page_words: page_words as u32,
                n_layers: LAYERS as u32,
            };
            emulator.launch(&copy.launch(), &copy)?;
            Ok([emulator.read(k)?, emulator.read(v)?])
        });
        let mut expected = before.clone();
        for pool in &mut expected {
            for layer in pool.chunks_exact_mut(PAGES * page_words) {
                for [from, to] in pairs.map(|pair| pair.map(|page| page as usize * page_words)) {
                    layer.copy_within(from..from + page_words, to);
                }
            }
        }
        assert!(after == expected, "{n_kv_heads} heads, {padded} wide");
    }
}
