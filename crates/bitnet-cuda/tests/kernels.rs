//! Every product kernel on a real GPU against the exact integer product. Returns early where there is none.

mod gpu;

use bitnet_cuda::bench::{Bench, GEMVS, Problem, check};
use bitnet_layout::random::Random;

/// The matrices of the reference project's benchmark.
const SHAPES: [(usize, usize); 8] = [
    (2560, 2560),
    (3840, 2560),
    (13824, 2560),
    (2560, 6912),
    (3200, 3200),
    (4800, 3200),
    (3200, 10240),
    (20480, 3200),
];

/// Random draws for each kernel; few under a checker, which is a hundred times slower.
fn n_draws() -> u64 {
    if std::env::var_os("BITNET_GPU_CHECKED").is_some() {
        20
    } else {
        1000
    }
}

/// Shapes of all kinds: one row, off by one at the edges of tiles, one tile, several.
#[test]
fn products_are_exact_on_random_shapes() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    for kernel in GEMVS {
        let mut random = Random::new(7);
        let mut done = 0;
        for draw in 0.. {
            let n = random.word() as usize % 300 + 1;
            let k = (random.word() as usize % 80 + 1) * 16;
            // Some kernels take whole tiles only.
            let (n, k) = if draw % 2 == 0 {
                (n, k)
            } else {
                (n.next_multiple_of(16), k.next_multiple_of(32))
            };
            let mut problem = Problem::random(n, k, 1, draw).unwrap();
            let max_cols = kernel.max_cols(problem.shape);
            if max_cols == 0 {
                continue;
            }
            if max_cols > 1 {
                problem = Problem::random(n, k, random.word() as usize % max_cols + 1, draw).unwrap();
            }
            check(&stream, kernel, &problem).unwrap_or_else(|e| panic!("draw {draw}: {e}"));
            done += 1;
            if done == n_draws() {
                break;
            }
        }
    }
}

/// 1000 columns of activations for each of the benchmark's matrices, as many at once as the kernel takes.
#[test]
fn products_are_exact_on_model_shapes() {
    let Some(gpu) = gpu::open() else { return };
    if std::env::var_os("BITNET_GPU_CHECKED").is_some() {
        println!("skipped: model shapes are too large for the checker; random shapes run");
        return;
    }
    let stream = gpu.stream().unwrap();
    for kernel in GEMVS {
        for (i, (n, k)) in SHAPES.into_iter().enumerate() {
            let cols = kernel.max_cols(Problem::random(n, k, 1, 0).unwrap().shape);
            for draw in 0..(n_draws() as usize / SHAPES.len()).div_ceil(cols) {
                let problem = Problem::random(n, k, cols, (draw * SHAPES.len() + i) as u64).unwrap();
                check(&stream, kernel, &problem).unwrap_or_else(|e| panic!("draw {draw}: {e}"));
            }
        }
    }
}

/// The benchmark's own path: graphs, copies, hot and cold, with the check in between.
#[test]
fn the_benchmark_measures_what_it_checked() {
    let Some(gpu) = gpu::open() else { return };
    if std::env::var_os("BITNET_GPU_CHECKED").is_some() {
        println!("skipped: too large for the checker");
        return;
    }
    let bench = Bench::new(gpu).unwrap();
    let peak = bench.peak_gb_per_s().unwrap();
    assert!(peak > 50.0 && peak < 20_000.0, "{peak} GB/s");
    for kernel in GEMVS {
        let m = bench.measure(kernel, 2560, 2560).unwrap().unwrap();
        assert!(
            m.cold_us > 0.1 && m.hot_us > 0.1 && m.cold_us < 1e4,
            "{}: {m:?}",
            kernel.name()
        );
        assert!(
            m.n_copies as u64 * m.bytes >= 400_000_000 && m.n_nodes >= m.n_copies,
            "{m:?}"
        );
    }
}

/// The compiler that counts is the driver's.
#[test]
fn no_kernel_uses_local_memory() {
    let Some(gpu) = gpu::open() else { return };
    let kernels = gpu.kernels();
    assert!(!kernels.is_empty());
    let local: Vec<_> = kernels.iter().filter(|kernel| kernel.local_bytes > 0).collect();
    assert!(local.is_empty(), "{local:?}");
}
