//! What this machine is: the names of its parts, its memory and how fast that is read.

use bitnet_cpu::Cpu;

/// Size of the plain read that gives the bandwidth: larger than most last-level caches. Where that is more than a quarter of
/// the free memory, it is a quarter.
pub(crate) const READ_BYTES: u64 = 512 << 20;

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

/// Bandwidth of the best plain read of at most `bytes` bytes by the threads of `cpu`, in GB/s.
pub(crate) fn read_gb_per_s(cpu: &Cpu, bytes: u64) -> anyhow::Result<f64> {
    let free = memory_bytes().map_or(u64::MAX, |(_, free)| free);
    Ok(cpu.read_rate(bytes.min(READ_BYTES).min(free / 4) as usize)? / 1e9)
}

/// The NVIDIA driver's own version number, where the system tells it.
#[cfg(feature = "cuda")]
pub(crate) fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_number = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(is_number).map(str::to_owned)
}
