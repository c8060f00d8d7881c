//! How a command ends that could not do its work: `error:` and, where one helps, `hint:` on stderr, exit status 1; for what
//! the command line asks for and is not possible, 2; for a signal, 128 and its number.

use std::fmt;
use std::io::{ErrorKind, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use bitnet_model::Error;

use crate::interrupt;
use crate::terminal::say;

/// An error that comes with advice.
#[derive(Debug)]
struct Hinted {
    /// Nothing where the advice is on another error.
    message: String,
    hint: String,
    /// That error.
    source: Option<anyhow::Error>,
    /// Whether the advice stands in the place of what most commands advise.
    replaces: bool,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(AsRef::as_ref)
    }
}

/// An error with a `hint:` line of its own.
pub(crate) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hinted {
        message: message.into(),
        hint: hint.into(),
        source: None,
        replaces: false,
    })
}

/// The error with one more `hint:` line.
pub(crate) fn also_hinted(error: anyhow::Error, hint: String) -> anyhow::Error {
    anyhow::Error::new(Hinted {
        message: String::new(),
        hint,
        source: Some(error),
        replaces: false,
    })
}

/// The error with advice for a command that lacks the flags which others have against it.
pub(crate) fn advised_by_command(
    error: anyhow::Error,
    hint: fn(&Error) -> Option<&'static str>,
) -> anyhow::Error {
    let found = error.chain().filter_map(|e| e.downcast_ref()).find_map(hint);
    match found {
        None => error,
        Some(hint) => anyhow::Error::new(Hinted {
            message: String::new(),
            hint: hint.to_owned(),
            source: Some(error),
            replaces: true,
        }),
    }
}

/// A mistake in what was asked for, on the command line or by a variable.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error of what was asked for, with a `hint:` line of its own; the exit status is 2.
pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    also_hinted(anyhow::Error::new(Usage(message.into())), hint.into())
}

/// Runs a command, prints its failure and gives its exit status. A reader that closed the pipe (`| head`) is no failure.
pub(crate) fn report(command: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    let result = catch(|| {
        let code = command()?;
        // What is still buffered may not fit the disk either.
        std::io::stdout().flush()?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// The advice that comes with an error of a chain.
pub(crate) fn hint_of<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e str> {
    error.downcast_ref::<Hinted>().map(|hinted| hinted.hint.as_str())
}

/// Prints a failure and gives its exit status.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    // Only stdout gives such an error without the name of a file around it.
    let stdout = error.downcast_ref::<std::io::Error>();
    if error.chain().count() == 1 && stdout.is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let full = |e: &std::io::Error| {
        let kinds = [
            ErrorKind::StorageFull,
            ErrorKind::QuotaExceeded,
            ErrorKind::FileTooLarge,
        ];
        e.raw_os_error().is_some() && kinds.contains(&e.kind())
    };
    say!("error: {}", message(error));
    if error.chain().count() == 1 && stdout.is_some_and(full) {
        say!("hint: that is where its output (stdout) goes");
    }
    for hint in error.chain().filter_map(hint_of) {
        say!("hint: {hint}");
    }
    let replaced = error
        .chain()
        .filter_map(|e| e.downcast_ref::<Hinted>())
        .any(|hinted| hinted.replaces);
    if !replaced {
        for hint in error.chain().filter_map(|e| e.downcast_ref()).filter_map(flag) {
            say!("hint: {hint}");
        }
    }
    if error.chain().any(|e| e.is::<Usage>()) {
        return ExitCode::from(2);
    }
    let cancelled =
        |e: &(dyn std::error::Error + 'static)| matches!(e.downcast_ref(), Some(Error::Cancelled));
    if error.chain().any(cancelled) {
        return interrupt::status();
    }
    ExitCode::FAILURE
}

/// The flag that changes what the library refuses, which knows none.
fn flag(error: &Error) -> Option<&'static str> {
    match error {
        Error::ContextFull { .. } => Some("raise it with --ctx-size"),
        Error::OutOfMemory { .. } => {
            Some("-c sets the context; --kv-type bf16 takes half the memory of f32, and int8 half of that")
        }
        Error::Occupied { .. } => Some("--force replaces it"),
        Error::NotTernary { .. } => Some("`bitnet convert --ternarize` does, for master weights"),
        Error::NoDevice(_) => Some("--device cpu runs on the processor; `bitnet doctor` shows what there is"),
        _ => None,
    }
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
        // A message is one line, whatever the file or library has put into it.
        let text = cause.to_string().replace(['\n', '\r'], " ");
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
