use super::*;
use crate::{Rows, Simd};
use bitnet_layout::random::Random;

const KINDS: [KvType; 3] = [KvType::Bf16, KvType::F32, KvType::Int8];

/// A sequence: its pages, and how many of its tokens were computed before the batch.
struct Sequence {
    table: Vec<u32>,
    before: usize,
    n_tokens: usize,
    /// Its text: what its queries, keys and values are made of.
    text: u64,
}

fn shape(page: usize, n_pages: usize, d: usize) -> KvShape {
    KvShape {
        n_layers: 2,
        n_pages,
        page,
        n_kv_heads: 2,
        n_heads: 6,
        head_dim: d,
        context: 160,
    }
}

/// A row of queries, keys and values: of a position of a text.
fn row(shape: &KvShape, text: u64, pos: usize) -> Vec<f32> {
    let mut random = Random::new(text * 1000 + pos as u64);
    let width = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    (0..width).map(|_| random.unit()).collect()
}

/// Stores tokens and computes their attention, in layer 1.
fn step(cpu: &Cpu, kv: &mut KvCache, parts: &[(&[u32], u64, std::ops::Range<usize>)]) -> Vec<Vec<u32>> {
    let shape = kv.shape();
    let mut places = Places::default();
    let mut data = Vec::new();
    for (table, (pages, text, range)) in parts.iter().enumerate() {
        places.add_table(pages);
        for pos in range.clone() {
            places.add(table, pos);
            data.extend(row(&shape, *text, pos));
        }
    }
    let (d, stride) = (shape.head_dim, data.len() / places.len());
    let keys = shape.n_heads * d;
    let rows = KvRows {
        data: &data,
        stride,
        keys,
        values: keys + shape.n_kv_heads * d,
        places: &places,
    };
    cpu.store(kv, 1, rows);
    let mut out = Rows::zeroed("out", places.len(), keys).unwrap();
    let queries = Queries {
        q: &data,
        stride,
        places: &places,
        out: &mut out,
    };
    cpu.attention(kv, 1, queries);
    assert!(out.iter().all(|x| x.is_finite()));
    out.chunks(keys)
        .map(|row| row.iter().map(|x| x.to_bits()).collect())
        .collect()
}

fn poison(kv: &mut KvCache) {
    let shape = kv.shape();
    for page in 0..shape.n_pages as u32 {
        with!(&mut kv.data, store => store.poison(&shape, page));
    }
}

fn cpus() -> Vec<Cpu> {
    let simds = Simd::available().into_iter().enumerate();
    simds
        .map(|(i, simd)| Cpu::new(Some(simd), Some(1 + i % 2)).unwrap())
        .collect()
}

#[test]
fn attention_does_not_depend_on_where_pages_are() {
    let texts: [(u64, usize, usize); 5] = [(1, 0, 3), (2, 95, 40), (3, 130, 1), (4, 17, 1), (5, 0, 70)];
    for (kind, d) in [(KINDS[0], 32), (KINDS[1], 20), (KINDS[2], 48), (KINDS[2], 20)] {
        let mut expected = Vec::new();
        for cpu in cpus() {
            for page in [16, 32, 64, 256] {
                let mut kv = KvCache::new(&cpu, kind, shape(page, 80, d)).unwrap();
                // Pages that nobody wrote hold what would be seen in every sum.
                poison(&mut kv);
                // Every page of a sequence is somewhere else, none next to another one.
                let mut scattered = (0..80u32).map(|i| i * 37 % 80);
                let sequences: Vec<Sequence> = texts
                    .iter()
                    .map(|&(text, before, n_tokens)| Sequence {
                        table: scattered
                            .by_ref()
                            .take((before + n_tokens).div_ceil(page))
                            .collect(),
                        before,
                        n_tokens,
                        text,
                    })
                    .collect();
                for s in sequences.iter().filter(|s| s.before > 0) {
                    step(&cpu, &mut kv, &[(&s.table, s.text, 0..s.before)]);
                }
                let parts: Vec<_> = sequences
                    .iter()
                    .map(|s| (&s.table[..], s.text, s.before..s.before + s.n_tokens))
                    .collect();
                let found = step(&cpu, &mut kv, &parts);
                if expected.is_empty() {
                    expected.clone_from(&found);
                }
                assert_eq!(found, expected, "{kind:?}, {}, pages of {page}", cpu.simd());
                // One token after the other, each alone.
                let mut alone = Vec::new();
                for (table, text, range) in &parts {
                    for pos in range.clone() {
                        alone.extend(step(&cpu, &mut kv, &[(table, *text, pos..pos + 1)]));
                    }
                }
                assert_eq!(
                    alone,
                    expected,
                    "{kind:?}, {}, pages of {page}, alone",
                    cpu.simd()
                );
            }
        }
    }
}

#[test]
fn every_thread_has_a_chunk() {
    // A 2B model has 5 heads of keys and values, for 4 queries each: tokens, threads.
    for (n_tokens, n_threads, expected) in [
        (1, 1, (1, 4)),
        (1, 2, (1, 4)),
        (1, 8, (1, 2)),
        (1, 64, (1, 1)),
        (2, 16, (1, 2)),
        (8, 2, (5, 4)),
        (8, 16, (1, 4)),
        (512, 1, (16, 4)),
        (512, 16, (16, 4)),
        (512, 64, (10, 4)),
    ] {
        assert_eq!(cut(n_tokens, 5, 4, n_threads), expected, "{n_tokens} {n_threads}");
    }
    // A group of three, and one that is larger than a block of queries.
    assert_eq!(cut(1, 1, 3, 2), (1, 1));
    assert_eq!(cut(100, 1, 100, 1), (1, 100));
}

#[test]
fn pages_are_shared_copied_and_used_again() {
    for kind in KINDS {
        for cpu in cpus() {
            let shape = shape(16, 8, 20);
            let mut kv = KvCache::new(&cpu, kind, shape).unwrap();
            poison(&mut kv);
            // What a sequence of its own gives.
            let alone = step(&cpu, &mut kv, &[(&[7, 1, 4], 9, 0..40)]);
            // Another one that begins with its first page, and goes on with the same text in others.
            let shared = step(&cpu, &mut kv, &[(&[7, 3, 0], 9, 16..40), (&[7, 1, 4], 9, 39..40)]);
            assert_eq!(shared[..24], alone[16..], "{kind:?}, {}", cpu.simd());
            assert_eq!(shared[24], alone[39]);
            // A copy of a page that is not full, and of one that is.
            kv.copy_page(4, 5);
            kv.copy_page(1, 2);
            let copied = step(&cpu, &mut kv, &[(&[7, 2, 5], 9, 39..40)]);
            assert_eq!(copied[0], alone[39]);
            // Both go on in pages of their own, the first with another text.
            step(&cpu, &mut kv, &[(&[7, 1, 4], 5, 38..48)]);
            let copied = step(&cpu, &mut kv, &[(&[7, 2, 5], 9, 39..40)]);
            assert_eq!(copied[0], alone[39]);
            // Pages that others had: nothing of them is seen.
            let again = step(&cpu, &mut kv, &[(&[4, 7, 1], 9, 0..40)]);
            assert_eq!(again, alone);
        }
    }
}

#[test]
fn eight_bits_are_near_and_carry_what_is_no_number() {
    let cpu = Cpu::new(None, Some(1)).unwrap();
    let shape = shape(16, 1, 20);
    let mut kv = KvCache::new(&cpu, KvType::Int8, shape).unwrap();
    let mut places = Places::default();
    places.add_table(&[0]);
    (0..3).for_each(|pos| places.add(0, pos));
    let d = shape.n_kv_heads * shape.head_dim;
    let mut data: Vec<f32> = (0..3)
        .flat_map(|pos| row(&shape, 1, pos)[..2 * d].to_vec())
        .collect();
    // All zero, and an infinity.
    data[2 * d..3 * d].fill(0.0);
    data[4 * d + 3] = f32::INFINITY;
    data[5 * d + 1] = f32::NAN;
    let rows = KvRows {
        data: &data,
        stride: 2 * d,
        keys: 0,
        values: d,
        places: &places,
    };
    cpu.store(&mut kv, 0, rows);
    let (keys, values) = kv.load(0, &places, 0);
    for (found, expected) in [(&keys, &data[..d]), (&values, &data[d..2 * d])] {
        for (found, expected) in found.chunks(20).zip(expected.chunks(20)) {
            let max = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= max / 254.0 * 1.001;
            assert!(found.iter().zip(expected).all(near));
        }
    }
    assert_eq!(kv.load(0, &places, 1).0, vec![0.0; d]);
    let (keys, values) = kv.load(0, &places, 2);
    assert!(keys[..20].iter().all(|x| !x.is_finite()) && keys[20..].iter().all(|x| x.is_finite()));
    assert!(values[..20].iter().all(|x| x.is_nan()) && values[20..].iter().all(|x| x.is_finite()));
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let cpu = Cpu::new(None, Some(1)).unwrap();
    let wrong = |change: &dyn Fn(&mut KvShape)| {
        let mut shape = shape(16, 2, 20);
        change(&mut shape);
        KvCache::new(&cpu, KvType::Bf16, shape).unwrap_err().to_string()
    };
    for page in [0, 8, 17, 48, usize::MAX] {
        let error = wrong(&|shape| shape.page = page);
        assert!(error.contains("positions of a page"), "{error}");
    }
    assert!(wrong(&|shape| shape.n_heads = 7).contains("multiple of the key-value heads"));
    assert!(wrong(&|shape| shape.n_pages = usize::MAX / 8).contains("KV cache"));
    assert!(wrong(&|shape| shape.n_pages = 1 << 50).contains("KV cache"));
}
