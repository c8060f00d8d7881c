//! Signals: Ctrl-C ends the answer that is being generated, and any signal that asks the program to end lets work that
//! would leave something behind clean up. With nothing to end first, the terminal is restored and the program leaves.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use crate::terminal;

/// What Ctrl-C sends, on every system.
const SIGINT: i32 = 2;
/// What Ctrl-\ sends, where there is such a signal.
const SIGQUIT: i32 = 3;

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const WORKING: u8 = 2;
const STOPPING: u8 = 3;
const CLEANING: u8 = 4;

static STATE: AtomicU8 = AtomicU8::new(IDLE);
/// The signal that asked the program to end.
static SIGNAL: AtomicI32 = AtomicI32::new(SIGINT);

/// Takes over SIGINT, SIGTERM, SIGHUP and SIGQUIT for the rest of the program, but for those that it was started to ignore,
/// as under `nohup`.
#[cfg(unix)]
pub(crate) fn install() -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGTERM};
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
    let wanted = wanted
        .into_iter()
        .filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                received(signal);
            }
        })?;
    Ok(())
}

/// Takes over Ctrl-C, Ctrl-Break and the closing of the window for the rest of the program.
#[cfg(not(unix))]
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| received(SIGINT))?;
    Ok(())
}

/// Lets a write past the largest size that files may have (`ulimit -f`) fail, so that what was begun is removed and the failure is told;
/// by itself the signal ends the program.
#[cfg(unix)]
pub(crate) fn let_large_writes_fail() {
    let nobody_asks = std::sync::Arc::default();
    // Where the system refuses, such a write ends the program as before.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, nobody_asks);
}

#[cfg(not(unix))]
pub(crate) fn let_large_writes_fail() {}

/// Bit n - 1 for each signal n that is ignored, where the system tells.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn received(signal: i32) {
    let asked = |from, to| {
        STATE
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    };
    // Whoever is impatient must not leave half a file; SIGQUIT ends what hangs.
    if STATE.load(Ordering::Relaxed) == CLEANING && signal != SIGQUIT {
        return;
    }
    SIGNAL.store(signal, Ordering::Relaxed);
    if (signal == SIGINT && asked(ANSWERING, STOPPING)) || asked(WORKING, CLEANING) {
        return;
    }
    terminal::restore();
    std::process::exit(128 + signal);
}

/// The exit status of a program that a signal ended: 128 and its number, as shells report it.
pub(crate) fn status() -> ExitCode {
    u8::try_from(128 + SIGNAL.load(Ordering::Relaxed)).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// While it lives, a signal only asks for an end.
pub(crate) struct Guard(());

impl Guard {
    /// For an answer, which Ctrl-C stops; pressed again, and as every other signal, it ends the program.
    pub(crate) fn answering() -> Self {
        STATE.store(ANSWERING, Ordering::Relaxed);
        Self(())
    }

    /// For work that must remove what it wrote, whatever signal ends it.
    pub(crate) fn working() -> Self {
        STATE.store(WORKING, Ordering::Relaxed);
        Self(())
    }

    /// Whether to go on.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        match STATE.load(Ordering::Relaxed) {
            STOPPING | CLEANING => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::Relaxed);
    }
}
