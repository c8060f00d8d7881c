//! What depends on whether a person is looking: colors, spinner, and control characters made harmless.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How to write to the two outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    /// stdout is a terminal.
    out: bool,
    /// stderr may be drawn on: spinner.
    draw: bool,
    /// stderr may be colored.
    color: bool,
    /// stdout may be colored.
    color_out: bool,
}

impl Terminal {
    /// Looks at the outputs; `simple` asks for plain text whatever they are. `NO_COLOR` and `TERM=dumb` are honored.
    pub(crate) fn detect(simple: bool) -> Self {
        let plain = simple || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self {
            out,
            draw: err && !plain,
            color: err && !plain && !no_color,
            color_out: out && !plain && !no_color,
        }
    }

    /// Secondary text for stderr.
    pub(crate) fn dim<'a>(&self, text: &'a str) -> Cow<'a, str> {
        paint(self.color, "2", text)
    }

    /// What waits for the person.
    pub(crate) fn accent<'a>(&self, text: &'a str) -> Cow<'a, str> {
        paint(self.color, "1;32", text)
    }

    /// Good news for stdout.
    pub(crate) fn good<'a>(&self, text: &'a str) -> Cow<'a, str> {
        paint(self.color_out, "32", text)
    }

    /// A doubt for stdout.
    pub(crate) fn doubtful<'a>(&self, text: &'a str) -> Cow<'a, str> {
        paint(self.color_out, "33", text)
    }

    /// Bad news for stdout.
    pub(crate) fn bad<'a>(&self, text: &'a str) -> Cow<'a, str> {
        paint(self.color_out, "1;31", text)
    }

    /// Whether bars and spinners may be drawn on stderr.
    pub(crate) fn draws(&self) -> bool {
        self.draw
    }

    /// A spinner with a message, on a terminal alone. Drop it with [`ProgressBar::finish_and_clear`].
    pub(crate) fn spinner(&self, message: String) -> ProgressBar {
        if !self.draw {
            return ProgressBar::hidden();
        }
        let spinner = ProgressBar::new_spinner().with_message(message);
        // The template is a constant that parses; without it the spinner would only look different.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:>}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    /// Generated text for stdout. A model may emit escape sequences; a terminal would obey them, so there they become
    /// visible symbols. Files and pipes get the text as it is.
    pub(crate) fn printable<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
        if !self.out || !text.contains(harmful) {
            return text.into();
        }
        let symbol = |c: char| match u32::from(c) {
            // A carriage return before a line feed is only a line ending; alone it would overwrite the line.
            0x0d => None,
            c0 @ 0..0x20 => char::from_u32(0x2400 + c0),
            _ => Some(char::REPLACEMENT_CHARACTER),
        };
        text.chars()
            .filter_map(|c| if harmful(c) { symbol(c) } else { Some(c) })
            .collect()
    }
}

fn paint<'a>(color: bool, code: &str, text: &'a str) -> Cow<'a, str> {
    if color {
        format!("\x1b[{code}m{text}\x1b[0m").into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        let mut terminal = Terminal {
            out: true,
            draw: false,
            color: false,
            color_out: false,
        };
        assert_eq!(
            terminal.printable("a\x1b[2Jb\r\n\tc\u{9b}"),
            "a␛[2Jb\n\tc\u{fffd}"
        );
        terminal.out = false;
        assert_eq!(terminal.printable("a\x1b[2J"), "a\x1b[2J");
        assert_eq!(terminal.dim("x"), "x");
        terminal.color = true;
        assert_eq!(terminal.dim("x"), "\x1b[2mx\x1b[0m");
        assert_eq!(terminal.bad("x"), "x");
    }
}
