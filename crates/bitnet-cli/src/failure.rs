//! How a command ends that could not do its work: `error:` and, where one helps, `hint:` on stderr, exit status 1.

use std::fmt;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

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

/// Prints the failure of a command and gives its exit status. A reader that closed the pipe (`| head`) is no failure.
pub(crate) fn report(result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
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
}
