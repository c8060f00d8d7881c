//! The host side on a real GPU: memory, launches, graphs, and errors that name what failed. Returns early where there is
//! none.

mod gpu;

use bitnet_cuda::{Error, Gpu, LaunchConfig, Reporting, Stream};
use bitnet_kernels::Launch;
use bitnet_kernels::bench::probe::{ProbeBulk, ProbeDivergence, ProbeMemory};
use bitnet_layout::random::Random;
use std::sync::atomic::Ordering::Relaxed;

fn words(seed: u64, len: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.word()).collect()
}

/// What `probe_divergence` computes.
fn divergence(x: &[u32]) -> Vec<u32> {
    (0..64)
        .map(|l| {
            if l % 2 == 1 {
                x[l ^ 1].wrapping_mul(3) + 1
            } else {
                x[l ^ 1].wrapping_mul(2)
            }
        })
        .collect()
}

#[test]
fn memory_keeps_what_is_copied_and_ranges_are_checked() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    let source = words(1, 1000);
    let buffer = stream.upload_new("words", &source).unwrap();
    assert_eq!(stream.download_all(&buffer).unwrap(), source);
    let copy = gpu.alloc::<u32>("words", 10).unwrap();
    stream.fill_bytes(&copy, 0xff).unwrap();
    stream.copy(&copy, 2, &buffer, 990, 8).unwrap();
    let mut expected = vec![u32::MAX; 2];
    expected.extend(&source[990..998]);
    assert_eq!(stream.download_all(&copy).unwrap(), expected);
    for error in [
        stream.upload(&copy, 3, &source[..8]).unwrap_err(),
        stream.download(&copy, 11, &mut []).unwrap_err(),
        stream.copy(&copy, 0, &buffer, 995, 6).unwrap_err(),
        copy.global_at(11).map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Range { .. }), "{error}");
    }
    assert!(gpu.alloc::<u32>("nothing", 0).unwrap().is_empty());
}

#[test]
fn a_full_device_is_said_with_what_was_needed() {
    let Some(gpu) = gpu::open() else { return };
    let (free, total) = gpu.memory().unwrap();
    assert!(free <= total && total == gpu.properties().memory_bytes);
    for len in [total as usize + 1, usize::MAX] {
        let error = gpu.alloc::<u8>("the test", len).unwrap_err();
        assert!(
            matches!(&error, Error::OutOfMemory { what, .. } if what == "the test"),
            "{error}"
        );
    }
    // The device still works.
    drop(gpu.alloc::<u8>("a little", 1 << 20).unwrap());
}

#[test]
fn kernels_compute_on_the_device() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    let rows = 300;
    let source = words(2, rows * 256);
    let x = stream.upload_new("x", &source).unwrap();
    let y = gpu.alloc::<u32>("y", source.len()).unwrap();
    let count = stream.upload_new("count", &[0_u32; 2]).unwrap();
    let top = stream.upload_new("top", &[0_u64]).unwrap();
    let kernel = ProbeMemory {
        x: x.global(),
        y: y.global(),
        count: count.global(),
        top: top.global(),
    };
    // SAFETY: (300, 256) words each, two counters and a maximum that start at 0.
    unsafe { stream.launch(&kernel, ProbeMemory::launch(rows as u32)) }.unwrap();
    let reversed: Vec<u32> = source
        .chunks(256)
        .flat_map(|row| row.iter().rev().copied())
        .collect();
    assert_eq!(stream.download_all(&y).unwrap(), reversed);
    assert_eq!(stream.download_all(&count).unwrap(), [rows as u32; 2]);
    let largest = source
        .chunks(256)
        .enumerate()
        .map(|(i, row)| u64::from(row[0]) << 32 | i as u64)
        .max();
    assert_eq!(stream.download_all(&top).unwrap(), [largest.unwrap()]);
}

/// Hangs where the compiler has duplicated the barrier into both sides of the branch.
#[test]
fn barriers_are_not_duplicated_into_branches() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    let source = words(3, 64);
    let x = stream.upload_new("x", &source).unwrap();
    let y = gpu.alloc::<u32>("y", 64).unwrap();
    // SAFETY: 64 words each.
    unsafe {
        stream
            .launch(
                &ProbeDivergence {
                    x: x.global(),
                    y: y.global(),
                },
                ProbeDivergence::launch(),
            )
            .unwrap();
    }
    assert_eq!(stream.download_all(&y).unwrap(), divergence(&source));
}

#[test]
fn a_graph_replays_what_was_recorded() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    if !gpu.has::<ProbeBulk>() {
        println!("skipped: {} has no bulk copies", gpu.properties().name);
        return;
    }
    let rows = 8;
    let source = words(4, rows * 512);
    let x = stream.upload_new("x", &source).unwrap();
    let buffers: Vec<_> = (0..4)
        .map(|_| gpu.alloc::<u32>("y", source.len()).unwrap())
        .collect();
    let record = |stream: &Stream| {
        let mut from = &x;
        for y in &buffers {
            let config = LaunchConfig::from(ProbeBulk::launch(rows as u32)).programmatic_dependent();
            // SAFETY: (8, 2, 256) words each, alive until the graph is dropped below.
            unsafe {
                stream.launch(
                    &ProbeBulk {
                        x: from.global(),
                        y: y.global(),
                    },
                    config,
                )
            }?;
            from = y;
        }
        Ok(())
    };
    let graph = stream.capture(record).unwrap();
    assert_eq!(graph.n_nodes(), 4);
    for seed in 5..8 {
        let source = words(seed, rows * 512);
        stream.upload(&x, 0, &source).unwrap();
        buffers.iter().for_each(|y| stream.fill_bytes(y, 0xff).unwrap());
        stream.replay(&graph).unwrap();
        assert_eq!(stream.download_all(&buffers[3]).unwrap(), source);
    }
    let refused = stream
        .capture(|stream| stream.upload(&x, 0, &source))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("while a graph is being recorded"), "{refused}");
    // The stream is usable after a recording that failed.
    stream.replay(&graph).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn time_passes_between_events() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    let (start, end) = (gpu.event().unwrap(), gpu.event().unwrap());
    let buffer = gpu.alloc::<u8>("64 MB", 64 << 20).unwrap();
    stream.record(&start).unwrap();
    stream.fill_bytes(&buffer, 1).unwrap();
    stream.record(&end).unwrap();
    let us = end.elapsed_us(&start).unwrap();
    assert!(us > 1.0 && us < 1e6, "64 MB filled in {us} us");
}

#[test]
fn the_device_writes_words_that_the_host_reads() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    let (x, y) = (gpu.alloc_shared(64).unwrap(), gpu.alloc_shared(64).unwrap());
    let source = words(6, 64);
    x.iter()
        .zip(&source)
        .for_each(|(word, &value)| word.store(value, Relaxed));
    // SAFETY: 64 words each.
    unsafe {
        stream
            .launch(
                &ProbeDivergence {
                    x: x.global(),
                    y: y.global(),
                },
                ProbeDivergence::launch(),
            )
            .unwrap();
    }
    stream.synchronize().unwrap();
    assert_eq!(
        y.iter().map(|word| word.load(Relaxed)).collect::<Vec<_>>(),
        divergence(&source)
    );
}

#[test]
fn impossible_launches_are_refused_with_the_kernel_and_the_limit() {
    let Some(gpu) = gpu::open() else { return };
    let stream = gpu.stream().unwrap();
    let x = gpu.alloc::<u32>("x", 64).unwrap();
    let kernel = ProbeDivergence {
        x: x.global(),
        y: x.global(),
    };
    let good = ProbeDivergence::launch();
    let too_much = gpu.properties().shared_bytes_per_block + 1;
    for (launch, word) in [
        (
            Launch {
                grid: [0, 1, 1],
                ..good
            },
            "grid",
        ),
        (
            Launch {
                grid: [1, 65536, 1],
                ..good
            },
            "grid",
        ),
        (
            Launch {
                block: [96, 1, 1],
                ..good
            },
            "threads",
        ),
        (
            Launch {
                shared_bytes: too_much,
                ..good
            },
            "shared memory",
        ),
    ] {
        // SAFETY: nothing runs: each is refused before it reaches the driver.
        let error = unsafe { stream.launch(&kernel, launch) }.unwrap_err().to_string();
        assert!(
            error.contains("`probe_divergence`") && error.contains(word),
            "{error}"
        );
    }
}

/// Threads of one process share the primary context, so this runs in a process of its own: an invalid access ends it.
#[test]
fn a_failing_kernel_is_named() {
    if gpu::open().is_none() {
        return;
    }
    const CHILD: &str = "BITNET_TEST_FAILING_KERNEL";
    if std::env::var_os(CHILD).is_some() {
        let gpu = Gpu::with_bench(0, Reporting::EachLaunch).unwrap();
        let stream = gpu.stream().unwrap();
        let nowhere = bitnet_kernels::Global::new(256);
        // SAFETY: not upheld on purpose; the device stops the access and this process's context is lost.
        let error = unsafe {
            stream.launch(
                &ProbeDivergence {
                    x: nowhere,
                    y: nowhere,
                },
                ProbeDivergence::launch(),
            )
        };
        println!("message: {}", error.unwrap_err());
        return;
    }
    if std::env::var_os("BITNET_GPU_CHECKED").is_some() {
        println!("skipped: the checker would report this invalid access");
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_failing_kernel_is_named", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("message: kernel `probe_divergence`: "), "{text}");
    assert!(text.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{text}");
}
