//! The end of a decode step and the repacking of weights, in the emulator.

use bitnet_kernels::emulator::Emulator;
use bitnet_kernels::repack::Repack;
use bitnet_kernels::token::{ArgMax, NO_TOKEN};
use bitnet_layout::mma_tile::{self, RowOrder};
use bitnet_layout::words::Shape;

#[test]
fn repacks_as_the_layout_says() {
    for (n, k, order) in [
        (1, 16, RowOrder::Plain),
        (17, 144, RowOrder::Plain),
        (40, 256, RowOrder::Plain),
        (16, 128, RowOrder::Paired),
        (20, 272, RowOrder::Paired),
    ] {
        let shape = Shape::new(n, k).unwrap();
        let words: Vec<u32> = (1..=shape.words() as u32).collect();
        let mut expected = vec![u32::MAX; mma_tile::words(n, k)];
        mma_tile::pack(shape, order, &words, 0, &mut expected);
        let mut emulator = Emulator::new(1);
        let params = Repack {
            words: emulator.constant(&words),
            tiles: emulator.uninit(expected.len()),
            n: n as u32,
            k: k as u32,
            paired: (order == RowOrder::Paired).into(),
        };
        emulator.launch(&params.launch(), &params).unwrap();
        assert_eq!(
            emulator.read(params.tiles).unwrap(),
            expected,
            "({n}, {k}) {order:?}"
        );
    }
}

fn row(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32)
        .map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

/// What two steps leave: the ring (steps, rows), and token, position and steps of every row.
type Chosen = (Vec<u32>, [Vec<u32>; 3]);

/// Runs two steps over rows of logits.
fn choose_rows(rows: &[&[f32]], seed: u64) -> Chosen {
    let n = rows.len();
    let mut emulator = Emulator::new(seed);
    let params = ArgMax {
        logits: emulator.constant(&rows.concat()),
        best: emulator.buffer(&vec![0u64; n]),
        done: emulator.buffer(&vec![0u32; n]),
        tokens: emulator.buffer(&vec![77u32; n]),
        positions: emulator.buffer(&vec![10u32; n]),
        steps: emulator.buffer(&vec![3u32; n]),
        // A row of the ring is longer than these.
        ring: emulator.buffer(&vec![0u32; 4 * (n + 1)]),
        vocab: rows[0].len() as u32,
        ring_len: 4,
        ring_rows: n as u32 + 1,
    };
    for _ in 0..2 {
        emulator.launch(&ArgMax::launch(n as u32), &params).unwrap();
    }
    let ring = emulator.read(params.ring).unwrap();
    assert!(ring.chunks(n + 1).all(|step| step[n] == 0));
    let ring = ring.chunks(n + 1).flat_map(|step| step[..n].to_vec()).collect();
    let state = [params.tokens, params.positions, params.steps];
    (ring, state.map(|buffer| emulator.read(buffer).unwrap()))
}

/// The same for one row.
fn choose(logits: &[f32], seed: u64) -> (Vec<u32>, [u32; 3]) {
    let (ring, state) = choose_rows(&[logits], seed);
    (ring, state.map(|column| column[0]))
}

#[test]
fn the_first_of_the_largest_logits_wins() {
    let mut logits = row(70_000, 5);
    logits[333] = 4.0;
    logits[334] = 4.0;
    logits[69_999] = 4.0;
    for seed in 0..3 {
        assert_eq!(choose(&logits, seed), (vec![334, 0, 0, 334], [333, 12, 5]));
    }
    assert_eq!(
        choose(&[-3.0, -1.0, -2.0, f32::NEG_INFINITY], 1),
        (vec![2, 0, 0, 2], [1, 12, 5])
    );
    assert_eq!(choose(&[f32::NEG_INFINITY; 8], 1), (vec![1, 0, 0, 1], [0, 12, 5]));
    assert_eq!(
        choose(&[1.0, 0.0, 3.0, 3.0, 5.0, 6.0, 6.0], 1),
        (vec![6, 0, 0, 6], [5, 12, 5])
    );
    assert_eq!(choose(&[1.0, 0.0], 1), (vec![1, 0, 0, 1], [0, 12, 5]));
    // A NaN is reported, and the token to embed stays.
    assert_eq!(
        choose(&[1.0, f32::NAN, 2.0, 0.0], 1),
        (vec![NO_TOKEN, 0, 0, NO_TOKEN], [77, 12, 5])
    );
}

#[test]
fn every_row_chooses_for_itself() {
    // Rows on multiples of 16 bytes, and not.
    for vocab in [20_000, 133] {
        let mut rows = [row(vocab, 1), row(vocab, 2), row(vocab, 3)];
        rows[0][5] = 2.0;
        rows[1][vocab - 1] = 2.0;
        rows[2][7] = f32::NAN;
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let last = vocab as u32;
        let step = [6, last, NO_TOKEN];
        let ring = [step, [0; 3], [0; 3], step].concat();
        let state = [vec![5, last - 1, 77], vec![12; 3], vec![5; 3]];
        assert_eq!(choose_rows(&rows, 1), (ring, state), "{vocab}");
    }
}
