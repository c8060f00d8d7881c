//! How many cores this process may run on.

/// Cores that the system lets this process run on, whatever share of their time a quota leaves it; 1 where it does not tell.
pub(crate) fn cores() -> usize {
    allowed().unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Those of this thread's affinity; `None` where there are more than a set of a fixed size holds.
#[cfg(target_os = "linux")]
fn allowed() -> Option<usize> {
    let set = affinity().ok()?;
    // SAFETY: the call reads the set that is lent to it.
    let count = unsafe { libc::CPU_COUNT(&set) };
    usize::try_from(count).ok().filter(|&count| count > 0)
}

/// The cores that this thread may run on; an error where there are more than a set of a fixed size holds.
#[cfg(target_os = "linux")]
pub(crate) fn affinity() -> std::io::Result<libc::cpu_set_t> {
    // SAFETY: a set of processors is bits, of which all may be zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes at most as many bytes to `set` as it is told that there are.
    match unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } {
        0 => Ok(set),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Option<usize> {
    None
}
