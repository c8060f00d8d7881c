//! How a command ends that could not do its work: `error:` and, where one helps, `hint:` on stderr, exit status 1.

use std::fmt;
use std::io::{ErrorKind, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// Exit status of a program that Ctrl-C ended: 128 + SIGINT, as shells report it.
pub(crate) const INTERRUPTED: u8 = 130;

/// An error that comes with advice.
#[derive(Debug)]
struct Hinted {
    message: String,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// An error with a `hint:` line of its own.
pub(crate) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hinted {
        message: message.into(),
        hint: hint.into(),
    })
}

/// Runs a command, prints its failure and gives its exit status. A reader that closed the pipe (`| head`) is no failure.
pub(crate) fn report(command: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    let error = match catch(command) {
        Ok(code) => return code,
        Err(error) => error,
    };
    let closed_pipe = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed_pipe) {
        return ExitCode::SUCCESS;
    }
    // stderr may be closed as well; there is nobody left to tell.
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "error: {}", message(&error));
    if let Some(hinted) = error.chain().find_map(|e| e.downcast_ref::<Hinted>()) {
        let _ = writeln!(stderr, "hint: {}", hinted.hint);
    }
    ExitCode::FAILURE
}

/// Runs a command; a panic on the main thread is an error that says so. Nothing is printed where a panic begins: libraries
/// that panic on malformed files are caught where they are called, and the user gets the error that is made of it.
fn catch(command: impl FnOnce() -> anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    static PANIC: Mutex<String> = Mutex::new(String::new());
    let (main, print) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == main {
            *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
        } else {
            print(panic);
        }
    }));
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|_| {
        let panic = PANIC
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace('\n', " ");
        let hint = "this is a bug in bitnet; please report it with the command that shows it";
        Err(hinted(format!("internal error: {panic}"), hint))
    })
}

/// The chain of causes in one line, without the causes that the message above them already quotes.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if message.is_empty() {
            message = text;
        } else if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_is_quoted_once() {
        let io = std::io::Error::new(ErrorKind::NotFound, "no such file");
        let error = bitnet_model::Error::io("a/config.json", io);
        let error = Err::<(), _>(error).context("cannot load the model").unwrap_err();
        assert_eq!(
            message(&error),
            "cannot load the model: a/config.json: no such file"
        );
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = catch(|| panic!("index out of {}", "range")).unwrap_err();
        let text = message(&error);
        assert!(
            text.starts_with("internal error: panicked at") && text.ends_with("index out of range"),
            "{text}"
        );
    }
}
