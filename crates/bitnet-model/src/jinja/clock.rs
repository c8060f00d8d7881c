//! The time, for `strftime_now`.

use std::fmt::Write;

use super::budget::{Res, fail};

/// The local time in a `strftime` format.
pub(super) fn now(format: &str) -> Res<String> {
    if format.len() > 1000 {
        return fail("strftime_now: the format is too long");
    }
    let mut text = String::new();
    // `to_string` would panic on a format that chrono does not know.
    match write!(text, "{}", chrono::Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => fail(format!("strftime_now: unknown format {format:?}")),
    }
}
