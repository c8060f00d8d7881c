//! Whether what a model keeps of its context fits the memory of this machine: the system promises memory that it does not
//! have, and ends programs that use it.

use crate::{Config, CpuOptions, Error, KvType, LmHead, Result};

/// Refuses a context whose keys and values do not fit the free memory beside the weights, and says how many tokens do.
pub(crate) fn check_context(config: &Config, options: &CpuOptions) -> Result<()> {
    match available() {
        Some(available) => fits(config, options, options.context, available),
        None => Ok(()),
    }
}

fn fits(config: &Config, options: &CpuOptions, context: usize, available: u64) -> Result<()> {
    let element = match options.kv_type {
        KvType::Bf16 => 2,
        KvType::F32 => 4,
    };
    let n_seqs = options.n_seqs.max(1) as u128;
    let position = (config.n_layers * 2 * config.d_kv() * element) as u128 * n_seqs;
    let room = u128::from(available).saturating_sub(weight_bytes(config, options.lm_head));
    let needed = position * context as u128;
    if needed <= room {
        return Ok(());
    }
    let gb = |bytes: u128| bytes as f64 / 1e9;
    let sequences = if n_seqs == 1 {
        String::new()
    } else {
        format!(" of each of {n_seqs} sequences")
    };
    Err(Error::Device(format!(
        "a context of {context} tokens needs {:.2} GB for the keys and values{sequences}, and {:.2} GB of memory are free \
         beside the weights: at most {} tokens fit",
        gb(needed),
        gb(room),
        room / position.max(1)
    )))
}

/// About what the weights take in memory.
fn weight_bytes(c: &Config, head: LmHead) -> u128 {
    let linear = c.n_layers * (c.d_model * (2 * c.d_q() + 2 * c.d_kv()) + 3 * c.d_model * c.d_ffn);
    let table = c.vocab * c.d_model;
    let copies = match (head, c.tied_head) {
        (LmHead::Stored, true) => 2,
        (LmHead::Stored, false) => 4,
        // The embedding stays as it is.
        (_, _) => 3,
    };
    (linear / 4 + copies * table) as u128
}

/// Bytes of memory that this process can still have: the least of what the machine has free and what limits of the
/// process or its container leave. `None` where the system does not tell.
fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let field = |text: &str, name: &str, unit: u64| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * unit)
    };
    let machine = field(&read("/proc/meminfo")?, "MemAvailable:", 1024)?;
    // `ulimit -v`, and what of it is taken.
    let address_space = read("/proc/self/limits")
        .and_then(|limits| field(&limits, "Max address space", 1))
        .zip(read("/proc/self/status").and_then(|status| field(&status, "VmSize:", 1024)))
        .map(|(limit, taken)| limit.saturating_sub(taken));
    // Pages of files can be given up at any time.
    let container = read("/sys/fs/cgroup/memory.max")
        .and_then(|limit| limit.trim().parse::<u64>().ok())
        .zip(read("/sys/fs/cgroup/memory.current").and_then(|taken| taken.trim().parse::<u64>().ok()))
        .map(|(limit, taken)| {
            let files = read("/sys/fs/cgroup/memory.stat").and_then(|stat| field(&stat, "file ", 1));
            limit.saturating_sub(taken.saturating_sub(files.unwrap_or(0)))
        });
    [Some(machine), address_space, container]
        .into_iter()
        .flatten()
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;

    #[test]
    fn the_number_that_fits_fits() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/bitnet-packed");
        let checkpoint = Checkpoint::open(folder).unwrap();
        let config = crate::WeightSource::config(&checkpoint);
        let options = CpuOptions::default();
        let error = fits(config, &options, 10_000_000, 1_000_000_000)
            .unwrap_err()
            .to_string();
        let (_, number) = error.split_once("at most ").unwrap();
        let number: usize = number.split(' ').next().unwrap().parse().unwrap();
        assert!(
            error.contains("a context of 10000000 tokens needs") && number > 1000,
            "{error}"
        );
        fits(config, &options, number, 1_000_000_000).unwrap();
        fits(config, &options, number + 1, 1_000_000_000).unwrap_err();
        // Nothing overflows.
        fits(config, &options, usize::MAX, u64::MAX).unwrap_err();
        if cfg!(target_os = "linux") {
            assert!(available().unwrap() > 1 << 20);
        }
    }
}
