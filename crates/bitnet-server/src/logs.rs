//! The log: a line an event on stderr, written by a thread of its own. Whoever logs never waits for a disk or a terminal that is slow,
//! and a full disk costs lines, which are counted.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written, at most.
const WAITING: usize = 4096;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines that could not be written so far.
pub(crate) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Writes what waits when it is dropped.
#[derive(Debug)]
pub struct LogGuard {
    lines: SyncSender<Line>,
    done: Receiver<()>,
}

enum Line {
    Text(Vec<u8>),
    End,
}

/// Sends this program's log to stderr from now on. `verbose` adds what is for whoever looks for a fault; the variable `RUST_LOG`, as
/// `tracing` reads it, outranks it.
///
/// # Errors
/// When the program has a log already, or the system gives no thread.
pub fn start_log(
    format: LogFormat,
    verbose: bool,
) -> Result<LogGuard, Box<dyn std::error::Error + Send + Sync>> {
    let (lines, received) = mpsc::sync_channel(WAITING);
    let (tell, done) = mpsc::channel();
    std::thread::Builder::new()
        .name("bitnet-log".to_owned())
        .spawn(move || {
            write_all(&received, &mut io::stderr());
            let _ = tell.send(());
        })?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        let level = if verbose { "debug" } else { "info" };
        EnvFilter::new(format!("warn,bitnet_server={level}"))
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .log_internal_errors(false)
        .with_writer(Lines(Arc::new(lines.clone())));
    match format {
        LogFormat::Text => builder.with_target(false).try_init()?,
        LogFormat::Json => builder.json().flatten_event(true).with_target(false).try_init()?,
    }
    Ok(LogGuard { lines, done })
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // A stderr that takes nothing must not keep the program alive.
        if self.lines.try_send(Line::End).is_ok() {
            let _: Result<(), RecvTimeoutError> = self.done.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write_all(lines: &Receiver<Line>, out: &mut impl Write) {
    while let Ok(Line::Text(line)) = lines.recv() {
        if out.write_all(&line).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Lines(Arc<SyncSender<Line>>);

impl<'w> MakeWriter<'w> for Lines {
    type Writer = OneLine;

    fn make_writer(&'w self) -> OneLine {
        OneLine {
            lines: Arc::clone(&self.0),
            text: Vec::new(),
        }
    }
}

/// Gathers a line, and hands it on when it is dropped.
struct OneLine {
    lines: Arc<SyncSender<Line>>,
    text: Vec<u8>,
}

impl Write for OneLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OneLine {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        if self.lines.try_send(Line::Text(text)).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_and_a_full_queue_cost_lines_and_nothing_else() {
        let before = lost();
        let (lines, received) = mpsc::sync_channel(2);
        let make = Lines(Arc::new(lines.clone()));
        for _ in 0..5 {
            make.make_writer().write_all(b"a line\n").unwrap();
        }
        assert_eq!(lost() - before, 3, "two wait");
        drop((lines, make));
        write_all(&received, &mut Full);
        assert_eq!(lost() - before, 5);
    }
}
