//! The processor, its threads and its memory.

use bitnet_cpu::Cpu;
use bitnet_model::Simd;

use super::check::Check;
use crate::machine;
use crate::progress::human_bytes;

/// Memory below which the 2B model, its cache and the system have no room: 1.2 GB of weights and as much again.
const LITTLE_BYTES: u64 = 2_500_000_000;

/// A line each; measuring the memory takes a second.
pub(super) fn checks(threads: Option<usize>) -> impl Iterator<Item = Check> {
    let parts: [Box<dyn FnOnce() -> Check>; 3] = [
        Box::new(paths),
        Box::new(move || self::threads(threads)),
        Box::new(move || memory(threads.unwrap_or_else(cores))),
    ];
    parts.into_iter().map(|part| part())
}

/// The instruction sets, of which the first is used.
fn paths() -> Check {
    let name = machine::processor_name();
    let paths: Vec<&str> = Simd::available().into_iter().map(Simd::name).collect();
    let message = match paths[..] {
        [chosen] => format!("{name}: only {chosen}, portable code"),
        [chosen, ref others @ ..] => format!("{name}: uses {chosen}, has {}", others.join(", ")),
        [] => unreachable!("scalar is always available"),
    };
    let check = if paths.len() > 1 {
        Check::ok("processor", message)
    } else {
        let remedy = if cfg!(target_arch = "x86_64") {
            "it works, slowly; a processor with AVX2 is many times faster (in a virtual machine, pass the host's processor \
             through)"
        } else {
            "it works, slowly; fast code exists for x86-64 and AArch64"
        };
        Check::warning("processor", message, remedy)
    };
    check
        .fact("processor", name)
        .fact("chosen", paths[0])
        .fact("paths", paths)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn threads(asked: Option<usize>) -> Check {
    let (threads, cores) = (asked.unwrap_or_else(cores), cores());
    let nodes = Cpu::memory_nodes();
    let message = match nodes {
        1 => format!("{threads} on {cores} cores"),
        _ => format!(
            "{threads} on {cores} cores with {nodes} memory nodes, which --numa distribute makes use of"
        ),
    };
    let check = if threads <= cores {
        Check::ok("threads", message)
    } else {
        Check::warning(
            "threads",
            message,
            format!("more threads than cores gain nothing; use -t {cores} or fewer"),
        )
    };
    check
        .fact("threads", threads)
        .fact("cores", cores)
        .fact("memory_nodes", nodes)
}

fn memory(threads: usize) -> Check {
    let cpu = Cpu::new(None, Some(threads)).map_err(anyhow::Error::from);
    let gb_per_s = match cpu.and_then(|cpu| machine::read_gb_per_s(&cpu, machine::READ_BYTES)) {
        Ok(gb_per_s) => gb_per_s,
        Err(error) => {
            return Check::warning(
                "memory",
                error.to_string(),
                "end other programs, or use fewer threads",
            );
        }
    };
    let speed = format!("{gb_per_s:.1} GB/s read with {threads} threads");
    let Some((total, free)) = machine::memory_bytes() else {
        return Check::ok("memory", speed).fact("read_gb_per_s", gb_per_s);
    };
    let message = format!("{} free of {}, {speed}", human_bytes(free), human_bytes(total));
    let check = if free >= LITTLE_BYTES {
        Check::ok("memory", message)
    } else {
        Check::warning(
            "memory",
            message,
            "a model of 2 billion weights needs about 2.5 GB; end other programs, or run a smaller model",
        )
    };
    check
        .fact("total_bytes", total)
        .fact("free_bytes", free)
        .fact("read_gb_per_s", gb_per_s)
}
