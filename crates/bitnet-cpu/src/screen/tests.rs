//! What is found against the whole head: on every path, with numbers that are meant to break it.

use bitnet_layout::random::Random;

use super::*;
use crate::{DenseDtype, Error, Simd};

/// A matrix of numbers rounded to `kind`.
fn matrix(kind: DenseDtype, n: usize, k: usize, w: &[f32]) -> DenseMatrix {
    let size = if kind == DenseDtype::F32 { 4 } else { 2 };
    let read = |first: usize, out: &mut [u8]| {
        for (out, &w) in out.chunks_exact_mut(size).zip(&w[first * k..]) {
            match kind {
                DenseDtype::Bf16 => out.copy_from_slice(&half::bf16::from_f32(w).to_le_bytes()),
                DenseDtype::F16 => out.copy_from_slice(&half::f16::from_f32(w).to_le_bytes()),
                DenseDtype::F32 => out.copy_from_slice(&w.to_le_bytes()),
            }
        }
        Ok::<(), Error>(())
    };
    DenseMatrix::read(kind, (n, k), read).unwrap()
}

/// About normal numbers.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut uniform = move || (random.word() >> 8) as f32 / 8_388_608.0 - 1.0;
    (0..len).map(|_| uniform() + uniform() + uniform()).collect()
}

fn greedy<'a>() -> Ask<'a> {
    Ask {
        k: 1,
        known: &[],
        allowed: None,
    }
}

/// What every path finds against the whole head; the counts of the best path.
fn check(w: &DenseMatrix, x: &[f32], asks: &[Ask<'_>]) -> ScreenCounts {
    let (n, k) = (w.rows(), w.cols());
    let mut counts = None;
    for simd in Simd::available() {
        let cpu = Cpu::new(Some(simd), Some(2)).unwrap();
        let copy = ScreenMatrix::new(&cpu, w).unwrap();
        assert_eq!(copy.bytes(), ScreenMatrix::bytes_of(n, k));
        let mut whole = vec![0.0; asks.len() * n];
        cpu.dense(w, x, &mut whole).unwrap();
        let mut room = ScreenRoom::default();
        let found = cpu.best(w, &copy, x, asks, &mut room).unwrap();
        assert_eq!(found.len(), asks.len());
        for (t, ((best, ask), y)) in found.iter().zip(asks).zip(whole.chunks_exact(n)).enumerate() {
            let about = format!("{simd}, token {t} of {}", asks.len());
            if best.is_whole {
                let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&best.products), bits(y), "{about}");
                continue;
            }
            assert!(best.ids.is_sorted_by(|a, b| a < b), "{about}");
            assert_eq!(best.ids.len(), best.products.len(), "{about}");
            for (&id, product) in best.ids.iter().zip(&best.products) {
                assert_eq!(product.to_bits(), y[id as usize].to_bits(), "{about}, row {id}");
            }
            let has = |id: u32| best.ids.binary_search(&id).is_ok();
            let mut wanted: Vec<u32> = (0..n as u32)
                .filter(|&id| !ask.known.contains(&id))
                .filter(|&id| {
                    ask.allowed
                        .is_none_or(|bits| bits[id as usize / 32] >> (id % 32) & 1 == 1)
                })
                .collect();
            wanted.sort_by(|&a, &b| y[b as usize].total_cmp(&y[a as usize]).then(a.cmp(&b)));
            wanted.truncate(ask.k);
            wanted.extend(ask.known.iter().filter(|&&id| (id as usize) < n));
            wanted.extend((0..n as u32).filter(|&id| !y[id as usize].is_finite()));
            let missing = wanted.iter().find(|&&id| !has(id));
            assert_eq!(missing, None, "{about}: {:?}", best.ids);
        }
        intervals_hold(&cpu, &copy, x, &whole, &mut room);
        counts.get_or_insert(room.counts());
    }
    counts.unwrap()
}

/// Every product lies in its interval.
fn intervals_hold(cpu: &Cpu, copy: &ScreenMatrix, x: &[f32], whole: &[f32], room: &mut ScreenRoom) {
    let (n, k) = (copy.n(), copy.k());
    let tokens: Vec<usize> = (0..x.len() / k)
        .filter(|&t| is_bounded(&x[t * k..][..k]))
        .collect();
    cpu.screen(copy, tokens.iter().map(|&t| &x[t * k..][..k]), room);
    for (s, &t) in tokens.iter().enumerate() {
        let (lower, upper) = (
            &room.lower[s * copy.n_tiles()..],
            &room.upper[s * copy.n_tiles()..],
        );
        for (id, &y) in whole[t * n..][..n].iter().enumerate() {
            let (lower, upper) = (lower.as_flattened()[id], upper.as_flattened()[id]);
            let holds = lower <= y && y <= upper || !y.is_finite() && upper == f32::INFINITY;
            assert!(holds, "{}, token {t}, row {id}: {lower} {y} {upper}", cpu.simd());
        }
    }
}

#[test]
fn any_number_of_columns_and_any_type() {
    let (n, k) = (333, 300);
    for (kind, seed) in [(DenseDtype::Bf16, 1), (DenseDtype::F16, 2), (DenseDtype::F32, 3)] {
        let w = matrix(kind, n, k, &numbers(seed, n * k));
        for n_tokens in (1..=40).filter(|n| kind == DenseDtype::Bf16 || n % 13 == 1) {
            let x = numbers(10 + n_tokens, n_tokens as usize * k);
            let known: Vec<u32> = (0..n_tokens as u32).map(|i| i * 37 % 400).collect();
            let asks: Vec<Ask<'_>> = (0..n_tokens as usize)
                .map(|t| Ask {
                    k: [1, 5, 2][t % 3],
                    known: &known[..t % 4],
                    allowed: None,
                })
                .collect();
            let counts = check(&w, &x, &asks);
            assert_eq!(counts.screened + counts.whole, n_tokens);
            assert!(counts.screened > counts.whole, "{counts:?}");
        }
    }
}

#[test]
fn shapes_off_the_tiles_and_the_groups() {
    for (n, k) in [(1, 1), (15, 7), (16, 128), (65, 129), (640, 64), (130, 2560)] {
        let w = matrix(DenseDtype::Bf16, n, k, &numbers(1, n * k));
        check(&w, &numbers(2, 3 * k), &[greedy(); 3]);
    }
}

#[test]
fn more_rows_than_are_screened_together() {
    let (n, k) = (256, 48);
    let w = matrix(DenseDtype::Bf16, n, k, &numbers(1, n * k));
    let n_tokens = TOKENS + 3;
    let counts = check(&w, &numbers(2, n_tokens * k), &vec![greedy(); n_tokens]);
    assert_eq!(counts.screened + counts.whole, n_tokens as u64);
}

#[test]
fn equals_are_all_found() {
    let (n, k) = (400, 200);
    let mut w = numbers(1, n * k);
    let x = numbers(2, k);
    // Three rows of the largest product, and some that differ from it in the last bit of a weight.
    for id in [7, 130, 399, 20, 21, 22] {
        for c in 0..k {
            w[id * k + c] = x[c];
        }
    }
    for (id, c) in [(20, 0), (21, 77), (22, 199)] {
        let w = &mut w[id * k + c];
        *w = half::bf16::from_bits(half::bf16::from_f32(*w).to_bits() ^ 1).to_f32();
    }
    let w = matrix(DenseDtype::Bf16, n, k, &w);
    for k in [1, 2, 4, 6] {
        let ask = Ask { k, ..greedy() };
        let counts = check(&w, &x, &[ask]);
        assert_eq!(counts.whole, 0);
        assert!(counts.products < 50, "{counts:?}");
    }
    // Known rows do not count among the best, and are told.
    let ask = Ask {
        known: &[399, 7, 7, 5, 1 << 30],
        ..greedy()
    };
    check(&w, &x, &[ask]);
}

#[test]
fn a_bound_that_is_reached_holds() {
    // Every weight lies in the middle between two that 8 bits have, and every activation pulls to the same side.
    let (n, k) = (128, 256);
    let mut w = vec![0.0; n * k];
    for (id, row) in w.chunks_exact_mut(k).enumerate() {
        let side = if id % 2 == 0 { 1.0 } else { -1.0 };
        for (c, w) in row.iter_mut().enumerate() {
            *w = match c % 128 {
                // The scale is 1.
                0 => 127.0,
                c => ((c * 7 + id) % 60) as f32 * 2.0 + 0.5 * side,
            };
        }
    }
    let w = matrix(DenseDtype::Bf16, n, k, &w);
    let mut x = vec![1.0; k];
    (x[0], x[128]) = (0.0, 0.0);
    check(&w, &x, &[greedy()]);
    let cpu = Cpu::new(None, Some(1)).unwrap();
    let copy = ScreenMatrix::new(&cpu, &w).unwrap();
    let (mut whole, mut room) = (vec![0.0; n], ScreenRoom::default());
    cpu.dense(&w, &x, &mut whole).unwrap();
    cpu.screen(&copy, std::iter::once(&x[..]), &mut room);
    let (lower, upper) = (room.lower.as_flattened(), room.upper.as_flattened());
    let reached = whole
        .iter()
        .zip(lower.iter().zip(upper))
        .map(|(y, (lower, upper))| {
            let middle = (lower + upper) / 2.0;
            (y - middle).abs() / (upper - middle)
        });
    let most = reached.fold(0.0, f32::max);
    assert!(most > 0.99 && most <= 1.0, "{most}");
}

#[test]
fn numbers_that_are_not_finite_or_huge_or_tiny() {
    let (n, k) = (300, 130);
    let x = numbers(2, k);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, 1e20, -1e13] {
        let mut w = numbers(1, n * k);
        w[17 * k + 5] = bad;
        w[299 * k + 129] = bad;
        check(&matrix(DenseDtype::Bf16, n, k, &w), &x, &[greedy()]);
        // Where few are allowed, what is not finite is found too.
        let ask = Ask {
            allowed: Some(&[0, 6]),
            ..greedy()
        };
        let w = matrix(DenseDtype::Bf16, n, k, &w);
        let cpu = Cpu::new(None, Some(1)).unwrap();
        let copy = ScreenMatrix::new(&cpu, &w).unwrap();
        let found = cpu
            .best(&w, &copy, &x, &[ask], &mut ScreenRoom::default())
            .unwrap();
        assert_eq!(found[0].ids, [17, 33, 34, 299]);
        // In the activations they leave nothing to screen.
        let mut x = x.clone();
        x[100] = bad;
        let counts = check(&w, &[x, numbers(3, k)].concat(), &[greedy(), greedy()]);
        assert!(counts.whole >= 1);
    }
    let w = numbers(1, n * k);
    for scale in [1e-38, 1e-30, 1e-12, 1e9, 1e12] {
        let w: Vec<f32> = w.iter().map(|w| w * scale).collect();
        let w = matrix(DenseDtype::F32, n, k, &w);
        check(&w, &x, &[greedy()]);
        let y: Vec<f32> = x.iter().map(|x| x * scale).collect();
        check(&w, &y, &[greedy()]);
    }
    // Zeros.
    check(
        &matrix(DenseDtype::Bf16, n, k, &vec![0.0; n * k]),
        &x,
        &[greedy()],
    );
    check(&matrix(DenseDtype::Bf16, n, k, &w), &vec![0.0; k], &[greedy()]);
    // One huge column beside small ones.
    let mut x = x;
    x[40] = 3e4;
    check(&matrix(DenseDtype::Bf16, n, k, &w), &x, &[greedy()]);
}

#[test]
fn masks() {
    let (n, k) = (500, 160);
    let w = matrix(DenseDtype::Bf16, n, k, &numbers(1, n * k));
    let x = numbers(2, 6 * k);
    let bits = |allows: &dyn Fn(usize) -> bool| -> Vec<u32> {
        let word = |i: usize| (0..32).fold(0, |word, bit| word | u32::from(allows(32 * i + bit)) << bit);
        (0..n.div_ceil(32)).map(word).collect()
    };
    let masks = [
        bits(&|_| true),
        bits(&|id| id % 3 == 0),
        bits(&|id| id == 499),
        bits(&|_| false),
        bits(&|id| (100..200).contains(&id)),
        bits(&|id| id % 2 == 1 && id > 16),
    ];
    let asks = masks.each_ref().map(|bits| Ask {
        k: 3,
        known: &[0, 250],
        allowed: Some(bits),
    });
    let counts = check(&w, &x, &asks);
    assert!(counts.screened >= 5, "{counts:?}");
    assert_eq!((count(&masks[1], n), set(&masks[1], n).count()), (167, 167));
    assert_eq!((count(&masks[0], 499), set(&masks[0], 499).count()), (499, 499));
    // Fewer allowed than are wanted.
    let few = bits(&|id| id < 70);
    let ask = Ask {
        k: 62,
        known: &(0..20).collect::<Vec<u32>>(),
        allowed: Some(&few),
    };
    check(&w, &x[..k], &[ask]);
}

#[test]
fn too_many_take_the_whole_head_which_then_goes_first() {
    let (n, k) = (256, 64);
    let w = matrix(DenseDtype::Bf16, n, k, &vec![0.25; n * k]);
    let cpu = Cpu::new(None, Some(2)).unwrap();
    let copy = ScreenMatrix::new(&cpu, &w).unwrap();
    let mut room = ScreenRoom::default();
    let x = numbers(1, k);
    let mut screenings = 0;
    for pass in 1..=20 {
        screenings += u32::from(room.rest == 0);
        let best = cpu.best(&w, &copy, &x, &[greedy()], &mut room).unwrap();
        assert!(best[0].is_whole && best[0].products.len() == n);
        assert_eq!(room.counts().whole, pass);
    }
    // After the first, then after 1, 2, 4 and 8 passes without.
    assert_eq!(screenings, 5);
    let varied = matrix(DenseDtype::Bf16, n, k, &numbers(2, n * k));
    let copy = ScreenMatrix::new(&cpu, &varied).unwrap();
    for _ in 0..MAX_REST {
        cpu.best(&varied, &copy, &x, &[greedy()], &mut room).unwrap();
    }
    assert!(room.counts().screened > 0 && room.next_rest == 0);
}
