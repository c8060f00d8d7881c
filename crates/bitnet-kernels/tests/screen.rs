//! The certified output head, in the emulator: whatever is among the largest logits is exact, and no logit is farther from its score than
//! its bound.

mod common;

use bitnet_kernels::dense_gemv::{Bf16Gemv, Int8Gemv, Machine};
use bitnet_kernels::emulator::{Emulator, Fault};
use bitnet_kernels::int8_gemm::Int8Gemm;
use bitnet_kernels::int8_head::{Int8Columns, Int8Rows, RowBounds};
use bitnet_kernels::sample::Settings;
use bitnet_kernels::screen::{self, CertifiedGemv, ScreenGroups};
use bitnet_kernels::token::{NO_TOKEN, TakeBest};
use common::Random;

/// Two blocks, so that they take several bands.
const MACHINE: Machine = Machine {
    multiprocessors: 1,
    shared_limit: 99 << 10,
};

/// How a column's token is chosen: so many candidates, 1 for the largest logit, and tokens that penalties look at.
#[derive(Clone, Debug)]
struct Choice {
    k: u32,
    recent: Vec<usize>,
}

/// A head, and columns that it is multiplied with.
struct Case {
    n: usize,
    k: usize,
    w: Vec<u16>,
    x: Vec<f32>,
    norm: Vec<f32>,
    eps: f32,
    choices: Vec<Choice>,
}

/// What the kernels found, column by column.
#[derive(Debug, PartialEq)]
struct Found {
    /// Bits of the logits of the whole head, of the scores, and of the scores after some were computed.
    exact: Vec<u32>,
    scores: Vec<u32>,
    mixed: Vec<u32>,
    row_bounds: Vec<u32>,
    column_bounds: Vec<u32>,
    ends: [Vec<u32>; 2],
    products: u32,
    published: u32,
    /// What goes to the host's ring, (cols).
    taken: Vec<u32>,
}

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

impl Case {
    fn new(n: usize, k: usize, ks: &[u32], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut numbers = |len: usize| -> Vec<f32> { (0..len).map(|_| random.float()).collect() };
        Self {
            n,
            k,
            w: numbers(n * k).into_iter().map(bf16).collect(),
            x: numbers(ks.len() * k),
            norm: numbers(k),
            eps: 1e-5,
            choices: ks
                .iter()
                .map(|&k| Choice {
                    k,
                    recent: Vec::new(),
                })
                .collect(),
        }
    }

    fn run(&self, seed: u64, gemm: bool) -> Result<Found, Fault> {
        let (n, k, cols) = (self.n, self.k, self.choices.len());
        let words: Vec<u32> = self
            .w
            .chunks_exact(2)
            .map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16)
            .collect();
        let mut emulator = Emulator::new(seed);
        let w = emulator.constant(&words);
        let rows = Int8Rows {
            w,
            q: emulator.uninit(n * k / 4),
            scales: emulator.uninit(n),
            k: k as u32,
        };
        emulator.launch(&Int8Rows::launch(n as u32), &rows)?;
        let bounds = RowBounds {
            w,
            q: rows.q,
            scales: rows.scales,
            bounds: emulator.uninit(2 * n),
            k: k as u32,
        };
        emulator.launch(&RowBounds::launch(n as u32), &bounds)?;
        let columns = Int8Columns {
            x: emulator.constant(&self.x),
            norm: emulator.constant(&self.norm),
            terms: emulator.uninit(cols * k / 2),
            unit: emulator.uninit(cols),
            bounds: emulator.uninit(2 * cols),
            cols: cols as u32,
            width: 0,
            k: k as u32,
            largest: Int8Columns::largest(k),
            eps: self.eps,
        };
        emulator.launch(&columns.launch(), &columns)?;
        // Weights were written long before: the product may read them before its wait.
        let q: Vec<u32> = emulator.read(rows.q)?;
        let gemv = Int8Gemv {
            w: emulator.constant(&q),
            scales: rows.scales,
            terms: columns.terms,
            unit: columns.unit,
            y: emulator.uninit(cols * n),
            n: n as u32,
            k: k as u32,
            cols: cols as u32,
        };
        if gemm {
            let product = Int8Gemm {
                w: gemv.w,
                scales: gemv.scales,
                terms: gemv.terms,
                unit: gemv.unit,
                y: gemv.y,
                n: gemv.n,
                k: gemv.k,
                cols: gemv.cols,
                room: MACHINE.shared_limit,
            };
            emulator.launch(&product.launch(MACHINE), &product)?;
        } else {
            emulator.launch(&gemv.launch(MACHINE), &gemv)?;
        }
        let scores = emulator.read(gemv.y)?;
        let mut settings = Vec::new();
        let mut counts = vec![0u32; cols * n];
        for (col, choice) in self.choices.iter().enumerate() {
            let each = Settings {
                temperature: if choice.k == 1 { 0.0 } else { 1.0 },
                top_k: choice.k,
                top_p: 1.0,
                min_p: 0.0,
                repeat_penalty: if choice.recent.is_empty() { 1.0 } else { 1.5 },
                presence_penalty: 0.0,
                frequency_penalty: 0.0,
                last_n: choice.recent.len() as u32,
                seed: 0,
            };
            settings.extend(each.to_words());
            for &id in &choice.recent {
                counts[col * n + id] += 1;
            }
        }
        let groups = ScreenGroups {
            scores: gemv.y,
            row_bounds: bounds.bounds,
            column_bounds: columns.bounds,
            settings: emulator.constant(&settings),
            counts: emulator.constant(&counts),
            lowers: emulator.uninit(cols * screen::groups(n)),
            uppers: emulator.uninit(cols * screen::groups(n)),
            products: emulator.buffer(&[7u32]),
            published: emulator.buffer(&[0u32]),
            vocab: n as u32,
            cols: cols as u32,
        };
        emulator.launch(&groups.launch(MACHINE), &groups)?;
        let some = CertifiedGemv {
            w,
            x: columns.x,
            norm: columns.norm,
            y: gemv.y,
            row_bounds: bounds.bounds,
            column_bounds: columns.bounds,
            lowers: groups.lowers,
            uppers: groups.uppers,
            settings: groups.settings,
            counts: groups.counts,
            products: groups.products,
            best: emulator.buffer(&vec![0u64; cols]),
            n: n as u32,
            k: k as u32,
            keeps_best: 1,
            eps: self.eps,
        };
        emulator.launch(&some.launch(cols as u32, MACHINE), &some)?;
        let take = TakeBest {
            best: some.best,
            tokens: emulator.buffer(&vec![u32::MAX; cols]),
            positions: emulator.buffer(&vec![0u32; cols]),
            steps: emulator.buffer(&vec![0u32; cols]),
            ring: emulator.buffer(&vec![0u32; cols]),
            rows: cols as u32,
            ring_len: 1,
            ring_rows: cols as u32,
        };
        emulator.launch(&take.launch(), &take)?;
        assert_eq!(emulator.read(take.best)?, vec![0; cols]);
        let mut exact = Vec::new();
        for col in 0..cols {
            let product = Bf16Gemv {
                w,
                x: columns.x.offset(col * k),
                norm: columns.norm,
                y: emulator.uninit(n),
                n: n as u32,
                k: k as u32,
                cols: 1,
                eps: self.eps,
            };
            emulator.launch(&product.launch(MACHINE), &product)?;
            exact.extend(emulator.read(product.y)?);
        }
        Ok(Found {
            exact: bits(exact),
            scores: bits(scores),
            mixed: bits(emulator.read(some.y)?),
            row_bounds: bits(emulator.read(bounds.bounds)?),
            column_bounds: bits(emulator.read(columns.bounds)?),
            ends: [
                bits(emulator.read(groups.lowers)?),
                bits(emulator.read(groups.uppers)?),
            ],
            products: emulator.read(some.products)?[0],
            published: emulator.read(groups.published)?[0],
            taken: emulator.read(take.ring)?,
        })
    }

    /// Runs it and checks everything that is promised; gives back the number of products of each column.
    fn check(&self, what: &str) -> Vec<usize> {
        let found = self
            .run(0, false)
            .unwrap_or_else(|fault| panic!("{what}: {fault}"));
        for (seed, gemm) in [(1, false), (2, true)] {
            let other = self
                .run(seed, gemm)
                .unwrap_or_else(|fault| panic!("{what}: {fault}"));
            assert!(other == found, "{what}: seed {seed} gives other bits");
        }
        let n = self.n;
        let mut products = Vec::new();
        for (col, choice) in self.choices.iter().enumerate() {
            let of = |all: &[u32]| -> Vec<f32> {
                all[col * n..][..n].iter().copied().map(f32::from_bits).collect()
            };
            let (exact, scores, mixed) = (of(&found.exact), of(&found.scores), of(&found.mixed));
            let [reach, slack] = [0, 1].map(|i| f64::from(f32::from_bits(found.column_bounds[2 * col + i])));
            for row in 0..n {
                let [left_out, length] =
                    [0, 1].map(|i| f64::from(f32::from_bits(found.row_bounds[2 * row + i])));
                let bound = left_out * reach + length * slack;
                let is_off = (f64::from(exact[row]) - f64::from(scores[row])).abs() > bound;
                assert!(
                    !is_off,
                    "{what}: row {row}: {} {} {bound}",
                    exact[row], scores[row]
                );
            }
            // What is the largest logits that no penalty can change, and what else must be exact.
            let is_recent = |row: &usize| choice.recent.contains(row);
            let is_number = |row: &usize| !exact[*row].is_nan();
            let mut others: Vec<usize> = (0..n).filter(|row| !is_recent(row) && is_number(row)).collect();
            others.sort_by(|&a, &b| exact[b].total_cmp(&exact[a]));
            let kth = others
                .get(choice.k as usize - 1)
                .map_or(f32::NEG_INFINITY, |&row| exact[row]);
            let is_damaged = exact.iter().any(|logit| logit.is_nan());
            let first = (0..n).rev().max_by(|&a, &b| exact[a].total_cmp(&exact[b]));
            let token = if is_damaged {
                NO_TOKEN
            } else {
                first.unwrap() as u32 + 1
            };
            assert_eq!(found.taken[col], token, "{what}: column {col}");
            let is_exact = |row: usize| mixed[row].to_bits() == exact[row].to_bits();
            for row in 0..n {
                let is_wanted = is_recent(&row) || exact[row] >= kth || exact[row].is_nan();
                assert!(!is_wanted || is_exact(row), "{what}: column {col} row {row}");
                assert!(
                    is_wanted || is_exact(row) || mixed[row] < kth,
                    "{what}: column {col} row {row}"
                );
            }
            let computed = |row: &usize| found.mixed[col * n + row] != found.scores[col * n + row];
            products.push((0..n).filter(computed).count());
        }
        assert_eq!(found.published, 7, "{what}");
        assert!(found.products as usize - 7 >= products.iter().sum(), "{what}");
        products
    }
}

#[test]
fn the_largest_logits_are_those_of_the_whole_head() {
    // One group, rows off a group and off a block of groups, several turns of a warp, many columns.
    for (n, k, ks) in [
        (1, 32, &[1][..]),
        (13, 64, &[1, 2]),
        (2100, 32, &[1, 256, 3]),
        (4500, 32, &[1, 2, 1, 1, 3, 1, 8, 1, 1]),
        (17, 2560, &[1, 5, 40, 1, 2]),
        (20, 1056, &[1]),
    ] {
        let products = Case::new(n, k, ks, (n + k) as u64).check(&format!("({n}, {k}) {ks:?}"));
        for (made, &k) in products.iter().zip(ks) {
            // Screening leaves most out where there are more groups of 64 rows than candidates.
            let leaves_out = n >= 128 * k as usize;
            assert!(!leaves_out || *made < n / 2, "({n}, {k}): {made}");
        }
    }
}

#[test]
fn equal_logits_and_equal_rows() {
    let mut case = Case::new(140, 64, &[1, 8], 5);
    let row: Vec<u16> = case.w[..64].to_vec();
    for other in [7, 8, 100, 139] {
        case.w[other * 64..][..64].copy_from_slice(&row);
    }
    // The largest of all for both columns: the rows are their inputs.
    for col in 0..2 {
        let x: Vec<f32> = row.iter().map(|&w| f32::from_bits(u32::from(w) << 16)).collect();
        case.x[col * 64..][..64].copy_from_slice(&x);
    }
    case.norm.fill(1.0);
    case.check("equal rows");
    case.x.fill(0.0);
    case.check("all logits are zero");
    case.w.fill(bf16(0.5));
    case.x.fill(3.0);
    case.check("all rows are alike");
}

#[test]
fn recent_tokens_are_computed_where_penalties_look_at_them() {
    let mut case = Case::new(300, 64, &[1, 4, 1], 9);
    case.choices[0].recent = vec![0, 3, 250, 299];
    case.choices[1].recent = (0..300).collect();
    let products = case.check("recent tokens");
    assert!(products[2] < 100, "{products:?}");
    // Of many columns, whose groups are looked at first.
    let mut case = Case::new(2100, 64, &[1, 4, 1, 1, 1], 10);
    case.choices[0].recent = vec![0, 3, 250, 2099];
    case.choices[4].recent = vec![2047, 2048];
    case.check("recent tokens of many columns");
}

#[test]
fn numbers_without_a_bound_are_computed() {
    let huge = f32::MAX / 4.0;
    for (what, weight, activation) in [
        ("not a number", Some(f32::NAN), None),
        ("infinite", Some(f32::INFINITY), None),
        ("a huge weight", Some(huge), None),
        ("a tiny weight", Some(1e-38), None),
        ("an activation that is not a number", None, Some(f32::NAN)),
        ("an infinite activation", None, Some(f32::NEG_INFINITY)),
        ("a huge activation", None, Some(huge)),
        ("both huge", Some(huge), Some(huge)),
    ] {
        for ks in [&[1, 3][..], &[1, 3, 1, 2, 1]] {
            let mut case = Case::new(70, 64, ks, 3);
            if let Some(weight) = weight {
                case.w[17 * 64 + 5] = bf16(weight);
                // A row of nothing else.
                case.w[60 * 64..][..64].fill(bf16(weight));
            }
            if let Some(activation) = activation {
                case.x[20] = activation;
            }
            case.check(what);
        }
    }
    for scale in [1e-30, 1e-20, 1e20, 1e30] {
        let mut case = Case::new(70, 64, &[1, 3], 4);
        case.x.iter_mut().for_each(|x| *x *= scale);
        case.check(&format!("activations of about {scale}"));
        case.eps = -1.0;
        case.check(&format!("activations of about {scale}, without a norm"));
    }
    for scale in [1e-35, 1e-18, 1e18] {
        let mut case = Case::new(70, 64, &[1, 3], 4);
        let scaled = |w: u16| bf16(f32::from_bits(u32::from(w) << 16) * scale);
        case.w.iter_mut().for_each(|w| *w = scaled(*w));
        case.check(&format!("weights of about {scale}"));
    }
}
