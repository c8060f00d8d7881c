use bitnet_layout::random::Random;
use bitnet_layout::row_tiles::{self, Group};
use bitnet_layout::{reference, words};

use super::super::{COLUMN_STEP, Few, SWEEP_ROWS, SWEEP_TURNS, Sweep, TILES, Turn};
use super::*;
use crate::Simd;

/// Tiles of a random matrix of `n_tiles` and k columns, pieces of random activations, and by row of them what the products of
/// codes are.
struct Case {
    tiles: Vec<Vec<Group>>,
    pieces: Vec<Piece>,
    sums: Vec<Vec<i32>>,
}

impl Case {
    fn new(n_tiles: usize, k: usize, n_tokens: usize) -> Self {
        let mut random = Random::new((n_tiles * k + n_tokens) as u64);
        let n = 16 * n_tiles;
        let t: Vec<i8> = (0..n * k).map(|_| (random.word() % 3) as i8 - 1).collect();
        let x: Vec<i8> = (0..n_tokens * k).map(|_| random.word() as i8).collect();
        let shape = words::Shape::new(n, k).unwrap();
        let mut packed = vec![0; shape.words()];
        words::pack_row(&t, &mut packed);
        let mut products = vec![0; n * n_tokens];
        reference::linear(shape, &packed, &x, &mut products);
        let mut tiles = vec![vec![[0; 16]; k / 16]; n_tiles];
        for (i, tile) in tiles.iter_mut().enumerate() {
            row_tiles::fill(&packed, k / 16, i, tile);
        }
        let stride = k.div_ceil(COLUMN_STEP);
        let mut pieces = vec![[[99; COLUMN_STEP]; TOKEN_STEP]; n_tokens.div_ceil(TOKEN_STEP) * stride];
        let mut sums = Vec::new();
        for (i, (x, products)) in x.chunks_exact(k).zip(products.chunks_exact(n)).enumerate() {
            for (s, columns) in x.chunks(COLUMN_STEP).enumerate() {
                let row = &mut pieces[i / TOKEN_STEP * stride + s][i % TOKEN_STEP];
                *row = [0; COLUMN_STEP];
                row[..columns.len()].copy_from_slice(columns);
            }
            let sum: i32 = x.iter().map(|&x| i32::from(x)).sum();
            sums.push(products.iter().map(|product| product + sum).collect());
        }
        Self { tiles, pieces, sums }
    }
}

/// Whether this processor runs AMX, as it is or emulated: what surrounds it is AVX-512.
fn has_amx() -> bool {
    if !Simd::Amx.is_available() {
        super::emulator::install();
    }
    Simd::Avx512Vnni.is_available()
}

#[test]
fn sweeps_equal_the_reference_and_every_share_has_its_turn() {
    for (n_tiles, k, n_tokens) in [
        (2, 64, 1),
        (1, 16, 17),
        (3, 80, 33),
        (4, 640, 48),
        (5, 1168, 70),
        (2, 2560, 16),
    ] {
        if !has_amx() {
            return;
        }
        let Case { tiles, pieces, sums } = Case::new(n_tiles, k, n_tokens);
        // In place of a tile that is not there, an empty one.
        let pairs: Vec<[&[Group]; 2]> = tiles
            .chunks(2)
            .map(|pair| [&pair[0][..], pair.get(1).map_or(&[][..], |tile| &tile[..])])
            .collect();
        let stride = k.div_ceil(COLUMN_STEP);
        let job = Sweep {
            pairs: &pairs,
            x: &pieces,
            stride,
            n_tokens,
        };
        let (mut now, mut before) = (Vec::new(), Vec::new());
        let mut turn = |turn: Turn<'_>| {
            now.extend(turn.now.map(|block| (block, turn.index)));
            let Some(((token, pair), found)) = turn.before else {
                return;
            };
            before.push(((token, pair), turn.index));
            for (i, row) in found.iter().enumerate() {
                let (token, tile) = (token + i % SWEEP_ROWS, 2 * pair + i / SWEEP_ROWS);
                if token < n_tokens && tile < n_tiles {
                    let expected = &sums[token][16 * tile..][..16];
                    assert_eq!(row, expected, "k = {k}, tile {tile}, token {token} of {n_tokens}");
                }
            }
        };
        // SAFETY: AMX is there, or emulated, and so is AVX-512.
        unsafe { sweep(&job, &mut turn) };
        let blocks = (0..n_tokens)
            .step_by(SWEEP_ROWS)
            .flat_map(|token| (0..pairs.len()).map(move |pair| (token, pair)));
        let all: Vec<_> = blocks
            .flat_map(|block| (0..SWEEP_TURNS).map(move |index| (block, index)))
            .collect();
        assert_eq!((now, before), (all.clone(), all), "turns");
    }
}

#[test]
fn few_rows_equal_the_reference() {
    for k in [16, 64, 144, 640, 2560] {
        for n_tokens in [1, 5, 16] {
            if !has_amx() {
                return;
            }
            let Case { tiles, pieces, sums } = Case::new(TILES, k, n_tokens);
            let tiles = std::array::from_fn(|i| &tiles[i][..]);
            let job = Few {
                tiles,
                next: tiles,
                x: &pieces,
                n_tokens,
            };
            let mut out = vec![[i32::MIN; 16]; TILES * n_tokens];
            // SAFETY: AMX is there, or emulated, and so is AVX-512.
            unsafe { few(&job, &mut out) };
            for (i, found) in out.iter().enumerate() {
                let (tile, token) = (i / n_tokens, i % n_tokens);
                let expected = &sums[token][16 * tile..][..16];
                assert_eq!(
                    found, expected,
                    "k = {k}, tile {tile}, token {token} of {n_tokens}"
                );
            }
        }
    }
}
