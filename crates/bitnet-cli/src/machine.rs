//! What this machine is: the names of its parts, its memory and how fast that is read.

use std::time::Instant;

/// Passes of a measurement, of which the median counts.
const RUNS: usize = 7;

/// Size of the plain read that gives the bandwidth: larger than any last-level cache. Where that is more than a quarter of
/// the free memory, it is a quarter.
const READ_BYTES: u64 = 512 << 20;

/// The processor's name, where the system tells it.
pub(crate) fn processor_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

/// Bytes of main memory, all of it and what programs can still have, where the system tells.
pub(crate) fn memory_bytes() -> Option<(u64, u64)> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

/// Bandwidth of `threads` threads that read memory and add it up, in GB/s: median of [`RUNS`].
pub(crate) fn read_gb_per_s(threads: usize) -> f64 {
    let free = memory_bytes().map_or(u64::MAX, |(_, free)| free);
    let bytes = READ_BYTES.min(free / 4) as usize;
    let data = vec![1_u64; (bytes / size_of::<u64>()).max(1)];
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for share in data.chunks(data.len().div_ceil(threads.max(1))) {
                    scope.spawn(|| {
                        std::hint::black_box(share.iter().fold(0_u64, |sum, x| sum.wrapping_add(*x)))
                    });
                }
            });
            size_of_val(&data[..]) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

/// The NVIDIA driver's own version number, where the system tells it.
#[cfg(feature = "cuda")]
pub(crate) fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_number = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(is_number).map(str::to_owned)
}
