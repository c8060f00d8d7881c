//! The GPU's 8-bit output head, run in the emulator, gives the bits of the CPU's.

use bitnet_cpu::{Cpu, DenseDtype, DenseMatrix, Error, Int8Input, Int8Matrix};
use bitnet_kernels::dense_gemv::{Int8Gemv, Machine};
use bitnet_kernels::emulator::Emulator;
use bitnet_kernels::int8_gemm::Int8Gemm;
use bitnet_kernels::int8_head::{Int8Columns, Int8Rows};
use bitnet_kernels::int8_hopper::{Int8Hopper, Width, term_words};
use bitnet_kernels::{Kernel, Launch, Use};
use bitnet_layout::draw::uniform;

/// Runs a kernel in the emulator.
struct InEmulator<'a>(&'a mut Emulator);

impl Use for InEmulator<'_> {
    type Output = ();

    fn of<K: Kernel + 'static>(self, kernel: K, launch: Launch) {
        self.0.launch(&launch, &kernel).unwrap();
    }
}

/// Numbers between -1 and 1, some of them 20 times as large.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let number = |i: u64| {
        let x = (uniform(seed, 2 * i) * 2.0 - 1.0) as f32;
        if uniform(seed, 2 * i + 1) < 0.02 {
            20.0 * x
        } else {
            x
        }
    };
    (0..len as u64).map(number).collect()
}

fn bf16(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}

fn host(w: &[u16], n: usize, x: &[f32], k: usize) -> Vec<f32> {
    let cpu = Cpu::new(None, Some(1)).unwrap();
    let read = |first: usize, out: &mut [u8]| {
        for (out, w) in out.as_chunks_mut::<2>().0.iter_mut().zip(&w[first * k..]) {
            *out = w.to_le_bytes();
        }
        Ok::<(), Error>(())
    };
    let matrix = DenseMatrix::read(DenseDtype::Bf16, (n, k), read).unwrap();
    let head = Int8Matrix::new(&cpu, &matrix).unwrap();
    let mut input = Int8Input::new(x.len() / k, k).unwrap();
    let mut y = vec![f32::NAN; x.len() / k * n];
    cpu.dense_int8(&head, x, &mut input, &mut y).unwrap();
    y
}

/// The head without a norm, or with one of these weights.
fn device(seed: u64, w: &[u16], n: usize, x: &[f32], norm: &[f32], eps: f32) -> Vec<f32> {
    let k = norm.len();
    let cols = x.len() / k;
    let words: Vec<u32> = w
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16)
        .collect();
    let mut emulator = Emulator::new(seed);
    let rows = Int8Rows {
        w: emulator.constant(&words),
        q: emulator.uninit(n * k / 4),
        scales: emulator.uninit(n),
        k: k as u32,
    };
    emulator.launch(&Int8Rows::launch(n as u32), &rows).unwrap();
    let columns = Int8Columns {
        x: emulator.constant(x),
        norm: emulator.constant(norm),
        terms: emulator.uninit(cols * k / 2),
        unit: emulator.uninit(cols),
        bounds: emulator.uninit(2 * cols),
        cols: cols as u32,
        width: 0,
        k: k as u32,
        largest: Int8Columns::largest(k),
        eps,
    };
    emulator.launch(&columns.launch(), &columns).unwrap();
    // Weights were written long before: the product may read them before its wait.
    let q: Vec<u32> = emulator.read(rows.q).unwrap();
    let scales: Vec<f32> = emulator.read(rows.scales).unwrap();
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
    // Two blocks, so that they take several bands.
    let machine = Machine {
        multiprocessors: 1,
        shared_limit: 99 << 10,
    };
    emulator.launch(&gemv.launch(machine), &gemv).unwrap();
    let of_few = emulator.read(gemv.y).unwrap();
    // By warpgroups, with terms in their order, in one block and in several.
    for (width, blocks) in [(Width::Some, 1), (Width::Many, 3)] {
        let cols = cols.min(width.columns() as usize);
        let terms = Int8Columns {
            terms: emulator.uninit(term_words(width.columns(), k)),
            cols: cols as u32,
            width: width.columns(),
            ..columns
        };
        emulator.launch(&terms.launch(), &terms).unwrap();
        let product = Int8Hopper {
            w: gemv.w,
            scales: emulator.constant(&scales),
            terms: terms.terms,
            unit: gemv.unit,
            y: emulator.uninit(cols * n),
            n: gemv.n,
            k: gemv.k,
            cols: cols as u32,
            blocks,
        };
        product.with_kernel(width, InEmulator(&mut emulator));
        let of_many = emulator.read(product.y).unwrap();
        assert_eq!(
            bits(&of_many),
            bits(&of_few[..cols * n]),
            "the product by warpgroups"
        );
    }
    // Rings of two stages and more, and blocks that take several bands or one.
    for (room, multiprocessors) in [(99 << 10, 1), (227 << 10, 3)] {
        let gemm = Int8Gemm {
            w: gemv.w,
            scales: emulator.constant(&scales),
            terms: gemv.terms,
            unit: gemv.unit,
            y: emulator.uninit(cols * n),
            n: gemv.n,
            k: gemv.k,
            cols: gemv.cols,
            room,
        };
        let machine = Machine {
            multiprocessors,
            shared_limit: room,
        };
        emulator.launch(&gemm.launch(machine), &gemm).unwrap();
        let of_many = emulator.read(gemm.y).unwrap();
        assert_eq!(bits(&of_many), bits(&of_few), "the product for many columns");
    }
    of_few
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn equals_the_host() {
    // One tile, one off the rows and tokens of a block, off the 64 columns of a group, several groups a warp.
    for (n, k, cols) in [
        (1, 16, 1),
        (17, 96, 5),
        (130, 208, 64),
        (33, 1040, 2),
        (562, 720, 9),
        (16, 2560, 1),
    ] {
        let mut w: Vec<u16> = numbers(1, n * k).into_iter().map(bf16).collect();
        let mut x = numbers(2, cols * k);
        if n > 1 {
            // A row of zeros, and a row and a column of the largest products.
            w[..k].fill(0);
            w[k..2 * k].fill(bf16(-3.0));
            x[..k].fill(5.0);
        }
        let expected = host(&w, n, &x, k);
        for seed in 0..2 {
            let found = device(seed, &w, n, &x, &vec![1.0; k], -1.0);
            assert_eq!(bits(&found), bits(&expected), "({n}, {k}) by {cols}");
        }
    }
}

#[test]
fn norms_and_bad_numbers() {
    let (n, k) = (5, 64);
    let w: Vec<u16> = numbers(3, n * k).into_iter().map(bf16).collect();
    let (x, norm) = (numbers(4, k), numbers(5, k));
    let rms = (x.iter().map(|x| x * x).sum::<f32>() / k as f32 + 1e-5).sqrt();
    let normed: Vec<f32> = x.iter().zip(&norm).map(|(x, norm)| x / rms * norm).collect();
    let found = device(1, &w, n, &x, &norm, 1e-5);
    for (found, expected) in found.iter().zip(host(&w, n, &normed, k)) {
        // An activation may be rounded the other way: a 16,000th of the largest product each.
        assert!((found - expected).abs() < 0.05, "{found} {expected}");
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = x.clone();
        x[7] = bad;
        assert!(
            device(1, &w, n, &x, &norm, 1e-5).iter().all(|y| y.is_nan()),
            "{bad}"
        );
        let mut w = w.clone();
        w[3] = bf16(bad);
        assert!(!device(1, &w, n, &normed, &norm, -1.0)[0].is_finite(), "{bad}");
    }
}
