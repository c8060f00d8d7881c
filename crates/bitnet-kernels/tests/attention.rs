//! Attention in the emulator: against a plain reference, and bit for bit between decode, prefill and every way to cut a
//! prompt, over pages that lie anywhere, are shared or were somebody else's, and hold NaN wherever nothing was put.

mod common;
mod kv;

use bitnet_kernels::attention::{AttentionCluster, Heads};
use bitnet_kernels::cache::{KvType, READ_ONLY};
use bitnet_kernels::emulator::Emulator;
use common::same_for_all_seeds;
use kv::{Cache, Fill, Rows, Shape, bf16, decode, decode_in_clusters, decode_serially, prefill};

const BOTH: [KvType; 2] = [KvType::Bf16, KvType::Int8];

/// The attention of one token in f64, over keys and values as the cache keeps them; and the same of the values' magnitudes.
fn reference(shape: &Shape, rows: &Rows, sequence: u32, position: u32) -> Vec<[f64; 2]> {
    let row = |position: u32| rows.row(shape, sequence, position);
    let group = shape.n_heads / shape.n_kv_heads;
    let (scale, d) = (
        bitnet_kernels::rope::q_scale(shape.head_dim),
        shape.head_dim as usize,
    );
    (0..shape.n_heads)
        .flat_map(|head| {
            let kv_head = head / group;
            let own = shape.rotated(&row(position), head, position);
            let q: Vec<f64> = own.iter().map(|x| bf16(x * scale).into()).collect();
            let scores: Vec<f64> = (0..=position)
                .map(|p| {
                    let k = shape.rotated(&row(p), shape.n_heads + kv_head, p);
                    q.iter().zip(shape.kept(&k)).map(|(q, k)| q * f64::from(k)).sum()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp2()).collect();
            let sum: f64 = weights.iter().sum();
            let mut out = vec![[0.0; 2]; d];
            for (p, weight) in (0..).zip(&weights) {
                let row = row(p);
                let v = &row[(shape.n_heads + shape.n_kv_heads + kv_head) as usize * d..][..d];
                for (out, value) in out.iter_mut().zip(shape.kept(v)) {
                    let value = f64::from(value);
                    out[0] += weight / sum * value;
                    out[1] += weight / sum * value.abs();
                }
            }
            out
        })
        .collect()
}

/// One prompt, checked from every side. `cuts` are the lengths of its pieces, `positions` those that are also decoded.
fn check(kv_type: KvType, n_heads: u32, n_kv_heads: u32, head_dim: u32, cuts: &[u32], positions: &[u32]) {
    let what = format!("{kv_type:?}, {n_heads} heads, {n_kv_heads} of keys, {head_dim} wide");
    let len = cuts.iter().sum::<u32>();
    let shape = Shape::new(kv_type, n_heads, n_kv_heads, head_dim, len.next_multiple_of(64));
    let rows = Rows::new(&shape, 2, len);
    // The prompt is the second sequence; the first stays poisoned.
    let empty = Cache::new(&shape, 2, Fill::Poison);
    let (whole, cache) = prefill(&mut Emulator::new(0), &shape, &rows, &empty, &[(1, 0, len)])
        .unwrap_or_else(|fault| panic!("{what}: {fault}"));

    let d_q = (n_heads * head_dim) as usize;
    for &position in positions {
        let expected = reference(&shape, &rows, 1, position);
        let got = &whole[position as usize * d_q..][..d_q];
        for (i, (got, [expected, magnitude])) in got.iter().zip(&expected).enumerate() {
            // A weight and the weights' sum are each off by a bfloat16 rounding, 2^-9; f32 adds little to that.
            let bound = magnitude * (2f64.powi(-8) + 2f64.powi(-14));
            assert!(
                (f64::from(*got) - expected).abs() <= bound,
                "{what}: position {position}, element {i}: {got} for {expected}"
            );
        }
    }

    for head in 0..n_kv_heads {
        let row = rows.row(&shape, 1, len - 1);
        let key = shape.rotated(&row, n_heads + head, len - 1);
        let value = &row[((n_heads + n_kv_heads + head) * head_dim) as usize..][..head_dim as usize];
        let got = cache.entry(&shape, 1, head, len - 1);
        for (got, x) in got.iter().zip([&key[..], value]) {
            let mut expected = shape.kept(x);
            expected.resize(shape.padded as usize, 0.0);
            assert_eq!(got, &expected, "{what}: head {head}");
        }
    }

    let (mut pieces, mut cut_cache, mut start) = (Vec::new(), empty.clone(), 0);
    for &count in cuts {
        let run = [(1, start, count)];
        let (out, next) = prefill(&mut Emulator::new(3), &shape, &rows, &cut_cache, &run)
            .unwrap_or_else(|fault| panic!("{what}, {count} from {start}: {fault}"));
        pieces.extend(out);
        cut_cache = next;
        start += count;
    }
    assert!(bits(&pieces) == bits(&whole), "{what}: cut into {cuts:?}");
    assert!(cut_cache == cache, "{what}: cache of {cuts:?}");

    for &position in positions {
        let before = cache.poisoned_from(&shape, 1, position, Fill::Poison);
        let (out, after) = decode(&mut Emulator::new(5), &shape, &rows, &before, &[(1, position)])
            .unwrap_or_else(|fault| panic!("{what}, position {position}: {fault}"));
        let expected = &whole[position as usize * d_q..][..d_q];
        assert!(bits(&out) == bits(expected), "{what}: decode of {position}");
        let expected = cache.poisoned_from(&shape, 1, position + 1, Fill::Poison);
        assert!(after == expected, "{what}: cache after decode of {position}");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn steps_and_their_edges() {
    for kv_type in BOTH {
        check(
            kv_type,
            4,
            2,
            32,
            &[1, 62, 1, 1, 70, 66],
            &[0, 1, 62, 63, 64, 65, 127, 128, 200],
        );
    }
}

#[test]
fn shapes() {
    for kv_type in BOTH {
        check(kv_type, 8, 2, 128, &[64, 6], &[0, 69]);
        check(kv_type, 8, 1, 64, &[33, 37], &[0, 63, 64, 69]);
        check(kv_type, 4, 4, 128, &[70], &[64]);
        if Heads::new(256, kv_type).is_some() {
            check(kv_type, 2, 1, 256, &[40, 30], &[3, 66]);
        }
        // Groups that fill no tile of rows, and more heads than one has.
        check(kv_type, 3, 1, 64, &[9, 59], &[2, 67]);
        check(kv_type, 12, 1, 32, &[5, 62], &[66]);
        check(kv_type, 20, 1, 32, &[5, 62], &[4, 66]);
    }
}

#[test]
fn padded_heads() {
    for kv_type in BOTH {
        check(kv_type, 4, 1, 100, &[30, 36], &[0, 65]);
        check(kv_type, 2, 2, 96, &[66], &[65]);
        check(kv_type, 2, 1, 8, &[3, 4], &[0, 6]);
    }
}

/// Heads of zeros are zeros of 8 bits, and what is no number stays none, for whoever sees it.
#[test]
fn rows_of_8_bits_that_have_no_scale() {
    let shape = Shape::new(KvType::Int8, 2, 1, 32, 64);
    let rows = Rows::new(&shape, 1, 4);
    // Of token 1 the key is zero and the value, of token 3 the key has a NaN and the value an infinity.
    let rows = rows.with(&shape, 1, 2 * 32..4 * 32, 0.0);
    let rows = rows.with(&shape, 3, 2 * 32 + 5..2 * 32 + 6, f32::NAN);
    let rows = rows.with(&shape, 3, 3 * 32 + 7..3 * 32 + 8, f32::INFINITY);
    let empty = Cache::new(&shape, 1, Fill::Poison);
    let (out, cache) = prefill(&mut Emulator::new(0), &shape, &rows, &empty, &[(0, 0, 4)]).unwrap();
    assert!(cache.entry(&shape, 0, 0, 1).concat().iter().all(|&x| x == 0.0));
    let [key, value] = cache.entry(&shape, 0, 0, 3);
    assert!(key.iter().chain(&value).all(|x| x.is_nan()));
    let d_q = 2 * 32;
    let mut before = empty;
    for position in 0..4 {
        let token = [(0, position)];
        let expected = &out[position as usize * d_q..][..d_q];
        let clusters = decode_in_clusters(&mut Emulator::new(2), &shape, &rows, &before, &token, 2).unwrap();
        let (decoded, after) = decode(&mut Emulator::new(1), &shape, &rows, &before, &token).unwrap();
        assert!(clusters.1 == after);
        if position < 3 {
            assert!(expected.iter().all(|x| x.is_finite()), "{position}");
            assert!(bits(&decoded) == bits(expected), "{position}");
            assert!(bits(&clusters.0) == bits(expected), "{position}");
        } else {
            assert!(
                [expected, &decoded, &clusters.0]
                    .concat()
                    .iter()
                    .all(|x| x.is_nan())
            );
        }
        before = after;
    }
    assert!(before == cache);
}

/// Batches of several sequences give what each gives alone, and the maxima that a quantization needs.
#[test]
fn batches() {
    BOTH.into_iter().for_each(check_batches);
}

fn check_batches(kv_type: KvType) {
    let shape = Shape::new(kv_type, 8, 2, 64, 128);
    let rows = Rows::new(&shape, 3, 100);
    let lens = [100, 3, 66];
    let alone: Vec<(Vec<f32>, Cache)> = (0..3)
        .map(|sequence| {
            let empty = Cache::new(&shape, 3, Fill::Poison);
            let run = [(sequence, 0, lens[sequence as usize])];
            prefill(&mut Emulator::new(0), &shape, &rows, &empty, &run).unwrap()
        })
        .collect();

    let (out, cache) = same_for_all_seeds("prefill", |emulator| {
        let runs = [(2, 0, lens[2]), (0, 0, lens[0]), (1, 0, lens[1])];
        prefill(
            emulator,
            &shape,
            &rows,
            &Cache::new(&shape, 3, Fill::Poison),
            &runs,
        )
    });
    let expected = [&alone[2].0[..], &alone[0].0, &alone[1].0].concat();
    assert!(bits(&out) == bits(&expected));

    let d_q = (shape.n_heads * shape.head_dim) as usize;
    let tokens = [(1, lens[1] - 1), (0, lens[0] - 1), (2, lens[2] - 1)];
    let before = tokens.iter().fold(cache, |cache, &(sequence, position)| {
        cache.poisoned_from(&shape, sequence, position, Fill::Poison)
    });
    let (decoded, _) = same_for_all_seeds("decode", |emulator| {
        decode(emulator, &shape, &rows, &before, &tokens)
    });
    for (i, &(sequence, position)) in tokens.iter().enumerate() {
        let expected = &alone[sequence as usize].0[position as usize * d_q..][..d_q];
        let got = &decoded[i * d_q..][..d_q];
        assert!(bits(got) == bits(expected), "sequence {sequence}");
    }
}

/// The fold in a cluster against the fold in a kernel of its own: tokens of several sequences, with room for `steps` steps.
fn check_clusters(
    kv_type: KvType,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    positions: &[u32],
    steps: u32,
) {
    let what = format!(
        "{kv_type:?}, {n_heads} heads, {n_kv_heads} of keys, {head_dim} wide, positions {positions:?}, {steps} steps"
    );
    let shape = Shape::new(kv_type, n_heads, n_kv_heads, head_dim, 64 * steps);
    let sequences = positions.len() as u32;
    let rows = Rows::new(&shape, sequences, 64 * steps);
    let tokens: Vec<(u32, u32)> = (0..sequences).zip(positions.iter().copied()).collect();
    let random = Cache::random(&shape, sequences);
    let before = tokens.iter().fold(random, |cache, &(sequence, position)| {
        cache.poisoned_from(&shape, sequence, position, Fill::Poison)
    });
    let (expected, after) = decode(&mut Emulator::new(0), &shape, &rows, &before, &tokens)
        .unwrap_or_else(|fault| panic!("{what}: {fault}"));
    let (out, cache) = same_for_all_seeds(&what, |emulator| {
        decode_in_clusters(emulator, &shape, &rows, &before, &tokens, steps)
    });
    assert!(bits(&out) == bits(&expected), "{what}");
    assert!(cache == after, "{what}: cache");
}

#[test]
fn clusters_fold_as_the_kernel_of_its_own() {
    for kv_type in BOTH {
        let check = |n_heads, n_kv_heads, head_dim, positions: &[u32], steps| {
            check_clusters(kv_type, n_heads, n_kv_heads, head_dim, positions, steps);
        };
        for (steps, positions) in [
            (2, &[0][..]),
            (2, &[63]),
            (2, &[64, 2]),
            (4, &[130, 255, 63]),
            (8, &[511]),
            (8, &[64, 300, 0]),
        ] {
            check(4, 2, 64, positions, steps);
        }
        check(4, 1, 128, &[511, 0, 130], 8);
        check(2, 1, 128, &[64], 2);
        // Fewer chunks of dimensions than blocks.
        check(3, 1, 32, &[449, 63], 8);
        // Groups of more heads than a tile has rows.
        check(12, 1, 32, &[66, 200], 4);
        check(20, 1, 64, &[65], 2);
        let widest = if Heads::new(256, kv_type).is_some() {
            256
        } else {
            128
        };
        check(2, 2, widest, &[130], 4);
        check(2, 1, widest, &[400], 8);
        // As many as there may be.
        check(32, 1, widest, &[3], 2);
        check(32, 1, widest, &[65], 8);
    }
}

#[test]
fn clusters_have_room_for_every_step() {
    for steps in 1..=8 {
        let blocks = AttentionCluster::blocks(steps, 32).unwrap();
        assert!(blocks.is_power_of_two() && (steps.max(2)..(2 * steps).max(3)).contains(&blocks));
    }
    assert_eq!(AttentionCluster::blocks(9, 1), None);
    assert_eq!(AttentionCluster::blocks(1, 33), None);
}

#[test]
fn clusters_fold_padded_heads() {
    for kv_type in BOTH {
        check_clusters(kv_type, 4, 2, 100, &[130], 4);
        check_clusters(kv_type, 2, 1, 8, &[3, 320], 8);
    }
}

/// The fold in a block that takes all steps against the fold in a kernel of its own.
#[test]
fn steps_one_after_the_other_fold_as_the_kernel_of_its_own() {
    for kv_type in BOTH {
        for (n_heads, n_kv_heads, head_dim, positions) in [
            (4, 1, 128, &[0, 63, 64, 127][..]),
            (8, 2, 128, &[300, 2, 130]),
            (16, 2, 128, &[65]),
            (3, 1, 128, &[199]),
            (4, 2, 100, &[66, 191]),
        ] {
            let what = format!(
                "{kv_type:?}, {n_heads} heads, {n_kv_heads} of keys, {head_dim} wide, positions {positions:?}"
            );
            let shape = Shape::new(kv_type, n_heads, n_kv_heads, head_dim, 320);
            let sequences = positions.len() as u32;
            let rows = Rows::new(&shape, sequences, 320);
            let tokens: Vec<(u32, u32)> = (0..sequences).zip(positions.iter().copied()).collect();
            let random = Cache::random(&shape, sequences);
            let before = tokens.iter().fold(random, |cache, &(sequence, position)| {
                cache.poisoned_from(&shape, sequence, position, Fill::Poison)
            });
            let (expected, after) = decode(&mut Emulator::new(0), &shape, &rows, &before, &tokens)
                .unwrap_or_else(|fault| panic!("{what}: {fault}"));
            let (out, cache) = same_for_all_seeds(&what, |emulator| {
                decode_serially(emulator, &shape, &rows, &before, &tokens).expect("heads of 128")
            });
            assert!(bits(&out) == bits(&expected), "{what}");
            assert!(cache == after, "{what}: cache");
        }
    }
    let shape = Shape::new(KvType::Bf16, 2, 1, 32, 64);
    let (rows, cache) = (Rows::new(&shape, 1, 64), Cache::random(&shape, 1));
    assert!(decode_serially(&mut Emulator::new(0), &shape, &rows, &cache, &[(0, 0)]).is_none());
}

/// Two sequences that begin alike: the second has the pages of the first for what they share, then its own.
#[test]
fn shared_pages_are_read_by_all_and_written_by_none() {
    BOTH.into_iter().for_each(check_shared_pages);
}

fn check_shared_pages(kv_type: KvType) {
    let shape = Shape::new(kv_type, 4, 2, 64, 192);
    let rows = Rows::new(&shape, 2, 150).alike(&shape, 128);
    let d_q = (shape.n_heads * shape.head_dim) as usize;
    let empty = Cache::new(&shape, 2, Fill::Poison);
    let alone: Vec<Vec<f32>> = (0..2)
        .map(|sequence| {
            let run = [(sequence, 0, 150)];
            prefill(&mut Emulator::new(0), &shape, &rows, &empty, &run)
                .unwrap()
                .0
        })
        .collect();
    assert!(bits(&alone[0][..128 * d_q]) == bits(&alone[1][..128 * d_q]));
    assert!(bits(&alone[0][128 * d_q..]) != bits(&alone[1][128 * d_q..]));

    let shared = empty.shared(0, 1, 2);
    let (out, cache) = same_for_all_seeds("prefill of shared pages", |emulator| {
        let first = prefill(emulator, &shape, &rows, &shared, &[(0, 0, 128)])?.1;
        prefill(emulator, &shape, &rows, &first, &[(1, 128, 22), (0, 128, 22)])
    });
    assert!(bits(&out[..22 * d_q]) == bits(&alone[1][128 * d_q..]));
    assert!(bits(&out[22 * d_q..]) == bits(&alone[0][128 * d_q..]));

    // Both are decoded side by side; what the other's last token left behind does not matter.
    let tokens = [(1, 149), (0, 149)];
    let before = tokens.iter().fold(cache.clone(), |cache, &(sequence, position)| {
        cache.poisoned_from(&shape, sequence, position, Fill::Poison)
    });
    let expected = [&alone[1][149 * d_q..], &alone[0][149 * d_q..]].concat();
    let (decoded, after) = same_for_all_seeds("decode of shared pages", |emulator| {
        decode(emulator, &shape, &rows, &before, &tokens)
    });
    assert!(bits(&decoded) == bits(&expected));
    assert!(after == cache);
    let (folded, after) = same_for_all_seeds("clusters over shared pages", |emulator| {
        decode_in_clusters(emulator, &shape, &rows, &before, &tokens, 4)
    });
    assert!(bits(&folded) == bits(&expected));
    assert!(after == cache);
}

/// What a page held before it was given to a sequence does not show.
#[test]
fn recycled_pages_give_what_new_ones_give() {
    BOTH.into_iter().for_each(check_recycled_pages);
}

fn check_recycled_pages(kv_type: KvType) {
    let shape = Shape::new(kv_type, 4, 1, 32, 128);
    let rows = Rows::new(&shape, 2, 100);
    let d_q = (shape.n_heads * shape.head_dim) as usize;
    let run = [(1, 0, 100)];
    let empty = Cache::new(&shape, 2, Fill::Poison);
    let (expected, _) = prefill(&mut Emulator::new(0), &shape, &rows, &empty, &run).unwrap();
    // The other sequence filled them, and the order is another.
    let used = prefill(&mut Emulator::new(0), &shape, &rows, &empty, &[(0, 0, 100)]).unwrap();
    let mut used = used.1;
    used.tables[1] = used.tables[0].iter().rev().copied().collect();
    let (out, cache) = prefill(&mut Emulator::new(1), &shape, &rows, &used, &run).unwrap();
    assert!(bits(&out) == bits(&expected));

    // Another's leftovers lie behind the position and in the pages after it.
    for position in [40, 63, 64, 99] {
        let tokens = [(1, position)];
        let expected = &expected[position as usize * d_q..][..d_q];
        let (out, _) = decode(&mut Emulator::new(2), &shape, &rows, &cache, &tokens).unwrap();
        assert!(bits(&out) == bits(expected), "{position}");
        let out = decode_in_clusters(&mut Emulator::new(3), &shape, &rows, &cache, &tokens, 2).unwrap();
        assert!(bits(&out.0) == bits(expected), "{position}, in clusters");
    }
}

/// Rows that stand in for sequences which are not there read a page that nobody writes, and change nothing.
#[test]
fn idle_rows_store_nothing_and_change_nobody() {
    BOTH.into_iter().for_each(check_idle_rows);
}

fn check_idle_rows(kv_type: KvType) {
    let shape = Shape::new(kv_type, 8, 2, 64, 128);
    let rows = Rows::new(&shape, 4, 100);
    let d_q = (shape.n_heads * shape.head_dim) as usize;
    let mut before = Cache::new(&shape, 4, Fill::Zero);
    for sequence in [0, 2] {
        let run = [(sequence, 0, 70)];
        before = prefill(&mut Emulator::new(0), &shape, &rows, &before, &run)
            .unwrap()
            .1;
    }
    let active = [(0, 70), (2, 70)];
    let (expected, after) = decode(&mut Emulator::new(0), &shape, &rows, &before, &active).unwrap();
    // Sequences 1 and 3 share one page of zeros, at positions that an active one would write to.
    let mut idle = before.clone();
    let spare = before.tables[3][0];
    for sequence in [1, 3] {
        idle.tables[sequence].fill(spare | READ_ONLY);
    }
    let tokens = [(1, 3), (0, 70), (3, 3), (2, 70)];
    let check = |(out, cache): (Vec<f32>, Cache)| {
        assert!(bits(&out[d_q..2 * d_q]) == bits(&expected[..d_q]));
        assert!(bits(&out[3 * d_q..]) == bits(&expected[d_q..]));
        assert!(out.iter().all(|x| x.is_finite()));
        let stored = Cache {
            tables: after.tables.clone(),
            ..cache
        };
        assert!(stored == after);
    };
    check(same_for_all_seeds("idle rows", |emulator| {
        decode(emulator, &shape, &rows, &idle, &tokens)
    }));
    check(same_for_all_seeds("idle rows of clusters", |emulator| {
        decode_in_clusters(emulator, &shape, &rows, &idle, &tokens, 2)
    }));
}
