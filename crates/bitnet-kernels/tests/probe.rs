//! The probe kernels in the emulator: every intrinsic gives what its instruction is documented to give.

use bitnet_kernels::bench::probe::{ProbeBulk, ProbeDivergence, ProbeMemory, ProbeWarp};
use bitnet_kernels::emulator::Emulator;

fn words(n: usize) -> Vec<u32> {
    let mut x = 1u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x ^ x >> 15
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn warp_operations() {
    let x = words(32);
    let mut rows = None;
    for seed in 0..8 {
        let mut emulator = Emulator::new(seed);
        let params = ProbeWarp {
            x: emulator.constant(&x),
            y: emulator.uninit(32 * ProbeWarp::ROWS),
        };
        emulator.launch(&ProbeWarp::launch(), &params).unwrap();
        let y = emulator.read(params.y).unwrap();
        assert_eq!(rows.get_or_insert_with(|| y.clone()), &y, "seed {seed}");
    }
    let y = rows.unwrap();
    let row = |r: usize| &y[32 * r..32 * r + 32];
    let at = |lane: usize| x[lane];
    let expect = |r: usize, f: &dyn Fn(usize) -> u32| {
        assert_eq!(row(r), (0..32).map(f).collect::<Vec<_>>(), "row {r}");
    };
    expect(0, &|l| at(l ^ 5));
    expect(1, &|l| at(if l < 29 { l + 3 } else { l }));
    expect(2, &|l| at(if l >= 4 { l - 4 } else { l }));
    expect(3, &|l| at(l * 7 % 32));
    expect(4, &|_| 0);
    expect(5, &|_| 1);
    expect(6, &|_| (0..32).map(|l| (at(l) & 1) << l).sum());
    expect(7, &|_| x.iter().fold(0, |a, &b| a.wrapping_add(b)));
    expect(8, &|_| x.iter().map(|&v| v as i32).max().unwrap() as u32);
    expect(9, &|_| x.iter().map(|&v| v as i32).min().unwrap() as u32);
    expect(10, &|_| *x.iter().max().unwrap());
    expect(11, &|_| *x.iter().min().unwrap());
    let byte = |v: u32, i: usize| v.to_le_bytes()[i];
    let dot =
        |a: &dyn Fn(usize) -> i32, b: u32| (0..4).map(|i| a(i) * i32::from(byte(b, i) as i8)).sum::<i32>();
    expect(12, &|l| {
        (5 + dot(&|i| i32::from(byte(at(l), i) as i8), at(l) >> 3)) as u32
    });
    expect(13, &|l| {
        (dot(&|i| i32::from(byte(at(l), i)), at(l) >> 3) - 5) as u32
    });
    // Selector 0x7250: bytes 0 and 2 of x, 1 and 3 of !x.
    expect(14, &|l| {
        let (x, n) = (at(l), !at(l));
        u32::from_le_bytes([byte(x, 0), byte(n, 1), byte(x, 2), byte(n, 3)])
    });
    expect(15, &|l| {
        let clamp = |v: i32| v.clamp(-128, 127) as i8 as u8;
        let x = at(l) as i32;
        u32::from_le_bytes([clamp(x >> 20), clamp(x >> 25), 0x80, 77])
    });
    let small = |l: usize| f32::from_bits(0x3f80_0000 | at(l) >> 9);
    expect(16, &|l| ((small(l) - 1.5) * 64.0).round_ties_even() as i32 as u32);
    expect(18, &|l| small(l).sqrt().to_bits());
    expect(19, &|l| small(l).mul_add(small(l), -1.0).to_bits());
    expect(21, &|l| small(l ^ 9).to_bits());
    for l in 0..32 {
        let pair = row(17)[l];
        let low = f32::from_bits(pair << 16);
        assert!(
            (low - small(l)).abs() <= 0.5 / 128.0,
            "lane {l}: {low} is not {} rounded",
            small(l)
        );
        assert_eq!(pair >> 16, pair & 0xffff | 0x8000);
        assert!((f32::from_bits(row(20)[l]) - (0..32).map(small).sum::<f32>()).abs() < 1e-4);
    }

    // The matrices that the fragments stand for, multiplied plainly.
    let a = |l: usize| [at(l), at(l) ^ 0x55, at(l) >> 2, !at(l)];
    let b = |l: usize| [at(l) << 1, at(l) >> 5];
    let at_a = |r: usize, c: usize| byte(a(r % 8 * 4 + c % 16 / 4)[r / 8 + c / 16 * 2], c % 4);
    let at_b = |r: usize, c: usize| byte(b(c * 4 + r % 16 / 4)[r / 16], r % 4) as i8;
    let mix = |lane: usize, of_a: &dyn Fn(u8) -> i32| {
        (0..4).fold(0, |mix, i| {
            let (r, c) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let sum: i32 = (0..32).map(|j| of_a(at_a(r, j)) * i32::from(at_b(j, c))).sum();
            mix ^ (sum + i as i32 + 1) << i
        })
    };
    expect(22, &|l| mix(l, &|byte| i32::from(byte as i8)) as u32);
    expect(23, &|l| mix(l, &i32::from) as u32);
    let half = |word: u32, i: usize| (word >> (3 * i) & 7) as f32;
    let at_a = |r: usize, c: usize| half(a(r % 8 * 4 + c % 8 / 2)[r / 8 + c / 8 * 2], c % 2);
    let at_b = |r: usize, c: usize| half(b(c * 4 + r % 8 / 2)[r / 8], r % 2);
    for i in 0..4 {
        expect(24 + i, &|l| {
            let (r, c) = (l / 4 + i / 2 * 8, l % 4 * 2 + i % 2);
            let sum: f32 = (0..16).map(|j| at_a(r, j) * at_b(j, c)).sum();
            (sum + 0.5 + i as f32).to_bits()
        });
    }
}

#[test]
fn memory_operations() {
    for seed in 0..8 {
        let mut emulator = Emulator::new(seed);
        let x = words(3 * 256);
        let params = ProbeMemory {
            x: emulator.constant(&x),
            y: emulator.uninit(3 * 256),
            count: emulator.buffer(&[0, 0]),
            top: emulator.buffer(&[0]),
        };
        emulator.launch(&ProbeMemory::launch(3), &params).unwrap();
        let reversed: Vec<u32> = x.chunks(256).flat_map(|row| row.iter().rev().copied()).collect();
        assert_eq!(emulator.read(params.y).unwrap(), reversed, "seed {seed}");
        assert_eq!(emulator.read(params.count).unwrap(), [3, 3]);
        let top = (0..3)
            .map(|block| u64::from(x[256 * block]) << 32 | block as u64)
            .max();
        assert_eq!(emulator.read(params.top).unwrap()[0], top.unwrap());
    }
}

#[test]
fn bulk_copies() {
    for seed in 0..8 {
        let mut emulator = Emulator::new(seed);
        let x = words(2 * 512);
        let params = ProbeBulk {
            x: emulator.constant(&x),
            y: emulator.uninit(2 * 512),
        };
        emulator.launch(&ProbeBulk::launch(2), &params).unwrap();
        assert_eq!(emulator.read(params.y).unwrap(), x, "seed {seed}");
    }
}

#[test]
fn a_branch_on_either_side_of_a_barrier() {
    for seed in 0..8 {
        let mut emulator = Emulator::new(seed);
        let x = words(64).into_iter().map(|v| v >> 4).collect::<Vec<_>>();
        let params = ProbeDivergence {
            x: emulator.constant(&x),
            y: emulator.uninit(64),
        };
        emulator.launch(&ProbeDivergence::launch(), &params).unwrap();
        let expected: Vec<u32> = (0..64)
            .map(|l| {
                if l % 2 == 1 {
                    3 * x[l ^ 1] + 1
                } else {
                    2 * x[l ^ 1]
                }
            })
            .collect();
        assert_eq!(emulator.read(params.y).unwrap(), expected, "seed {seed}");
    }
}
