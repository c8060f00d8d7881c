//! A bar for long work: on a terminal only, on stderr, gone when the work ends.

use std::borrow::Cow;
use std::time::Duration;

use bitnet_model::Files;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::{Terminal, say, visible};

/// A bar; dropping it clears it. Where stderr is not a terminal it draws nothing.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar for reading the weights of `files`, where the terminal may be drawn on. It turns after the last byte, too:
    /// a GPU has work left then.
    pub(crate) fn loading(files: &Files, terminal: Terminal) -> Self {
        if !terminal.draws() {
            return Self(ProgressBar::hidden());
        }
        let bar = Self::new(
            format!("loading {}", visible(&files.to_string())),
            "{spinner} {prefix} [{wide_bar}] {bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta}",
        );
        bar.0.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// A bar for `what`, measured in bytes.
    pub(crate) fn bytes(what: &'static str) -> Self {
        Self::new(
            what,
            "{prefix} [{bar:20}] {bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta} {wide_msg}",
        )
    }

    /// A bar for `what`, measured in tokens.
    pub(crate) fn tokens(what: &'static str) -> Self {
        Self::new(
            what,
            "{prefix} [{bar:20}] {pos}/{len} tokens, {per_sec} eta {eta} {wide_msg}",
        )
    }

    /// A bar for `what`, measured in requests.
    pub(crate) fn requests(what: &'static str) -> Self {
        Self::new(
            what,
            "{prefix} [{bar:20}] {pos}/{len}, {per_sec} eta {eta} {wide_msg}",
        )
    }

    fn new(what: impl Into<Cow<'static, str>>, template: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template(template);
        bar.set_style(
            style
                .expect("the template names known fields")
                .progress_chars("=> "),
        );
        bar.set_prefix(what);
        Self(bar)
    }

    /// Shows how much is done.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// Shows how much was done before the bar was there; it does not count for the rate.
    pub(crate) fn resume(&self, done: u64, total: u64) {
        self.set(done, total);
        self.0.reset_eta();
    }

    /// Prints a line above the bar.
    pub(crate) fn note(&self, line: &str) {
        self.0.suspend(|| say!("{line}"));
    }

    /// Shows what was last done.
    pub(crate) fn say(&self, message: impl Into<String>) {
        self.0.set_message(visible(&message.into()).into_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A size for people: `1.19 GB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        ..1e3 => format!("{bytes} B"),
        ..1e6 => format!("{:.1} kB", bytes / 1e3),
        ..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.2} GB", bytes / 1e9),
    }
}
