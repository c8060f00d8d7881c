//! What depends on whether a person is looking: colors, spinner, width, and control characters made harmless.
//!
//! All that goes to stderr passes through [`tell`] or [`Terminal::note`], which no closed or full stderr fails, and which let
//! no control character through: messages quote files.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Writes a line to stderr, made as `format!` makes it.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::terminal::tell(&format!($($argument)*))
    };
}
pub(crate) use say;

/// Writes a line, or several, to stderr: lines that are wider than the terminal wrap between words. When stderr is closed
/// or full there is nobody left to tell.
pub(crate) fn tell(text: &str) {
    let text = visible(text);
    let _ = writeln!(std::io::stderr(), "{}", wrapped(&text, width()));
}

/// The columns of the terminal that stderr is, if it is one.
pub(crate) fn width() -> Option<usize> {
    let (columns, _) = terminal_size::terminal_size_of(std::io::stderr())?;
    Some(columns.0.into())
}

/// The text with line breaks in place of the spaces before words that would pass the last column.
fn wrapped(text: &str, width: Option<usize>) -> Cow<'_, str> {
    let Some(width) = width.filter(|&width| text.lines().any(|line| line.chars().count() > width)) else {
        return text.into();
    };
    let mut out = String::with_capacity(text.len() + 8);
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let mut column = 0;
        for (index, word) in line.split(' ').enumerate() {
            let length = word.chars().count();
            if index > 0 && column > 0 && column + 1 + length > width {
                out.push('\n');
                column = 0;
            } else if index > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += length;
        }
    }
    out.into()
}

/// The text with symbols in place of control characters, which a terminal would obey.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(harmful) {
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

/// JSON in which the control characters that JSON allows, those from DEL on, are escaped as well.
pub(crate) fn harmless_json(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| matches!(c, '\x7f'..='\u{9f}');
    if !text.contains(harmful) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if harmful(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.into()
}

#[cfg(unix)]
mod state {
    use std::io::Write;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
    use nix::unistd::{getpgrp, tcgetpgrp};

    /// How the terminal was before a line editor changed it.
    static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
    static EDITING: AtomicBool = AtomicBool::new(false);

    /// Notes how the terminal is.
    pub(crate) fn remember() {
        if let Ok(mut before) = BEFORE.lock() {
            *before = tcgetattr(std::io::stdin()).ok();
        }
    }

    /// Says whether a line editor has the terminal.
    pub(crate) fn editing(now: bool) {
        EDITING.store(now, Ordering::Relaxed);
    }

    /// Makes the terminal what it was, if a line editor has it. A program in the background leaves it to the one in front:
    /// the system would stop it for touching it.
    pub(crate) fn restore() {
        let behind = tcgetpgrp(std::io::stdin()).is_ok_and(|front| front != getpgrp());
        if !EDITING.load(Ordering::Relaxed) || behind {
            return;
        }
        if let Ok(before) = BEFORE.try_lock()
            && let Some(before) = before.as_ref()
        {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
        // The editor had bracketed paste turned on, and the cursor on its line.
        let mut out = std::io::stdout();
        let _ = out.write_all(b"\x1b[?2004l\n").and_then(|()| out.flush());
    }
}

#[cfg(not(unix))]
mod state {
    pub(crate) fn remember() {}
    pub(crate) fn editing(_: bool) {}
    /// The system's console keeps no mode of a program that ended.
    pub(crate) fn restore() {}
}

pub(crate) use state::{editing, remember, restore};

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

    /// Writes a line of secondary text to stderr.
    pub(crate) fn note(self, text: &str) {
        let text = wrapped(&visible(text), width()).into_owned();
        let _ = writeln!(std::io::stderr(), "{}", paint(self.color, "2", &text));
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
        if self.out { visible(text) } else { text.into() }
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
        assert_eq!(terminal.accent("x"), "x");
        terminal.color = true;
        assert_eq!(terminal.accent("x"), "\x1b[1;32mx\x1b[0m");
        assert_eq!(terminal.bad("x"), "x");
        assert_eq!(harmless_json("\"a\u{9b}é\x7f\""), "\"a\\u009bé\\u007f\"");
    }

    #[test]
    fn lines_wrap_between_words() {
        assert_eq!(wrapped("one two three", None), "one two three");
        assert_eq!(wrapped("one two three", Some(13)), "one two three");
        assert_eq!(wrapped("one two three", Some(12)), "one two\nthree");
        assert_eq!(
            wrapped("a/long/path and\n  more words", Some(8)),
            "a/long/path\nand\n  more\nwords"
        );
    }
}
