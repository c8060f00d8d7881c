//! What the process takes of the machine, by the names that Prometheus' clients agreed on.

use std::fmt::Write;

/// Adds the metrics of this process, where the system tells them.
pub(crate) fn describe(text: &mut String) {
    let mut add = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n"
        );
    };
    let Some(facts) = Facts::read() else {
        return;
    };
    add(
        "process_cpu_seconds_total",
        "counter",
        "Processor time, of programs and the system.",
        facts.cpu_seconds,
    );
    add(
        "process_start_time_seconds",
        "gauge",
        "When the process began.",
        facts.start_seconds,
    );
    add(
        "process_resident_memory_bytes",
        "gauge",
        "Memory in use.",
        facts.resident_bytes,
    );
    add(
        "process_virtual_memory_bytes",
        "gauge",
        "Address space in use.",
        facts.virtual_bytes,
    );
    add("process_threads", "gauge", "Threads.", facts.threads);
    add(
        "process_open_fds",
        "gauge",
        "Open files and connections.",
        facts.open_files,
    );
    add(
        "process_max_fds",
        "gauge",
        "Most files and connections that may be open.",
        facts.most_files,
    );
}

struct Facts {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    threads: f64,
    open_files: f64,
    most_files: f64,
}

/// Times in `/proc` are counted in hundredths of a second, on every Linux that programs see.
const TICKS: f64 = 100.0;

impl Facts {
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program, in brackets, may hold spaces.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<f64>().ok()
        };
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let most = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))?;
        Some(Self {
            // `man proc_pid_stat` counts from 1, and the first two fields are cut off here.
            cpu_seconds: (number(11)? + number(12)?) / TICKS,
            start_seconds: boot.trim().parse::<f64>().ok()? + number(19)? / TICKS,
            resident_bytes: kib("VmRSS:")? * 1024.0,
            virtual_bytes: kib("VmSize:")? * 1024.0,
            threads: kib("Threads:")?,
            open_files: std::fs::read_dir("/proc/self/fd").ok()?.count() as f64,
            most_files: most
                .split_ascii_whitespace()
                .next()?
                .parse()
                .unwrap_or(f64::INFINITY),
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_them() {
        let facts = Facts::read().unwrap();
        assert!(facts.resident_bytes > 1e5 && facts.virtual_bytes >= facts.resident_bytes);
        assert!(facts.threads >= 1.0 && facts.open_files >= 3.0 && facts.most_files >= facts.open_files);
        let age = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - facts.start_seconds;
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }
}
