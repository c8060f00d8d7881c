//! Lines from a person or a pipe: editing, history, messages of several lines.

use std::borrow::Cow;
use std::io::{BufRead, ErrorKind, IsTerminal, Read, Write};
use std::path::PathBuf;

use bitnet_model::read_file;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Editor, Helper};

use crate::commands::COMMANDS;
use crate::terminal::{self, Terminal, say};

const PROMPT: &str = "> ";
const FENCE: &str = "\"\"\"";

/// Most bytes of a message; the longest context has room for fewer.
const MAX_MESSAGE: usize = 64 << 20;

/// Most bytes of a history file.
const MAX_HISTORY: u64 = 64 << 20;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A message.
    Message(String),
    /// A command, without its slash.
    Command(String),
    /// Something that is no message, and why.
    Unusable(String),
    /// Ctrl-C.
    Interrupted,
    /// No more is coming.
    End,
}

/// Where messages come from.
pub(crate) enum Input {
    /// A person at a terminal with line editing.
    Editor(Box<Editor<Assistance, DefaultHistory>>, Option<PathBuf>),
    /// Lines as they come; a person is shown a plain prompt.
    Plain {
        /// Whether a person types them.
        person: bool,
    },
}

impl Input {
    /// A line editor on a terminal, unless plain input is wanted.
    pub(crate) fn open(simple_io: bool, terminal: Terminal) -> anyhow::Result<Self> {
        let person = std::io::stdin().is_terminal();
        if simple_io || !person || !std::io::stdout().is_terminal() {
            return Ok(Self::Plain { person });
        }
        terminal::remember();
        let mut editor = Editor::new()?;
        editor.set_helper(Some(Assistance { terminal }));
        let mut history = history_file();
        if let Some(path) = history.take_if(|path| path.symlink_metadata().is_ok()) {
            // It is read by the editor, which would wait for the other end of a pipe.
            match read_file(&path, MAX_HISTORY).map(drop) {
                Ok(()) => {
                    // One that is damaged is no reason not to chat.
                    let _ = editor.load_history(&path);
                    history = Some(path);
                }
                Err(error) => say!("warning: no history is kept: {error}"),
            }
        }
        Ok(Self::Editor(Box::new(editor), history))
    }

    /// Whether a person types.
    pub(crate) fn is_person(&self) -> bool {
        matches!(self, Self::Editor(..) | Self::Plain { person: true })
    }

    /// The next message, all its lines joined.
    pub(crate) fn read(&mut self) -> anyhow::Result<Line> {
        match self {
            Self::Editor(editor, history) => {
                terminal::editing(true);
                let read = editor.readline(PROMPT);
                terminal::editing(false);
                match read {
                    Ok(text) => {
                        if !text.trim().is_empty() {
                            let _ = editor.add_history_entry(text.as_str());
                            keep(editor, history);
                        }
                        Ok(message_of(&text))
                    }
                    Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                    Err(ReadlineError::Eof) => Ok(Line::End),
                    Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::InvalidData => {
                        Ok(Line::Unusable(NOT_UTF8.to_owned()))
                    }
                    Err(e) => Err(e.into()),
                }
            }
            Self::Plain { person } => {
                if *person {
                    // A terminal that is gone shows no prompt, and the next read ends the conversation.
                    let mut stderr = std::io::stderr();
                    let _ = write!(stderr, "{PROMPT}").and_then(|()| stderr.flush());
                }
                read_message(&mut std::io::stdin().lock())
            }
        }
    }
}

const NOT_UTF8: &str = "the message is not UTF-8";

/// Writes what was typed to the history at once: the program may be ended by a signal, and several may run side by side.
fn keep(editor: &mut Editor<Assistance, DefaultHistory>, history: &mut Option<PathBuf>) {
    let Some(path) = history else {
        return;
    };
    let kept = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .map_err(ReadlineError::from)
        .and_then(|()| editor.append_history(path));
    if let Err(e) = kept {
        say!("warning: no history is kept: {}: {e}", path.display());
        *history = None;
    }
}

/// Reads lines until a message is complete.
fn read_message(input: &mut impl BufRead) -> anyhow::Result<Line> {
    let mut bytes = Vec::new();
    let mut unusable = None;
    loop {
        // The newline is not counted, so that what is cut off is never taken for a whole line.
        let room = (MAX_MESSAGE + 1 - bytes.len()) as u64;
        let read = input.take(room).read_until(b'\n', &mut bytes)?;
        if bytes.len() > MAX_MESSAGE {
            unusable = Some(format!("the message has more than {MAX_MESSAGE} bytes"));
            bytes.clear();
            continue;
        }
        let ended = read == 0;
        if ended && bytes.is_empty() && unusable.is_none() {
            return Ok(Line::End);
        }
        if let Some(reason) = &unusable {
            if ended || bytes.ends_with(b"\n") {
                return Ok(Line::Unusable(reason.clone()));
            }
            bytes.clear();
            continue;
        }
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return Ok(Line::Unusable(NOT_UTF8.to_owned()));
        };
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        // The last line needs no newline, and what the end cut off is a message as well.
        if ended {
            return Ok(message_of(text));
        }
        if is_complete(line) {
            return Ok(message_of(line));
        }
    }
}

/// A message or a command. What begins with a slash is a command, but for a message of several lines and one that begins
/// with two slashes, of which the first is dropped.
fn message_of(text: &str) -> Line {
    let message = unwrap(text);
    let fenced = text.trim_start().starts_with(FENCE);
    match message.trim_start().strip_prefix('/') {
        Some(rest) if !fenced && rest.starts_with('/') => Line::Message(rest.to_owned()),
        Some(command) if !fenced => Line::Command(command.to_owned()),
        _ => Line::Message(message),
    }
}

/// Whether a message has its last line: no backslash at the end, no open fence.
fn is_complete(text: &str) -> bool {
    if text.trim_start().starts_with(FENCE) {
        text.matches(FENCE).count().is_multiple_of(2)
    } else {
        !text.ends_with('\\')
    }
}

/// The message without what joined its lines.
fn unwrap(text: &str) -> String {
    match text.trim().strip_prefix(FENCE) {
        Some(fenced) => fenced
            .strip_suffix(FENCE)
            .unwrap_or(fenced)
            .trim_matches('\n')
            .to_owned(),
        None => text.replace("\\\n", "\n").replace("\\\r\n", "\n"),
    }
}

/// `BITNET_HISTORY`, else the folder that the system has for such files.
fn history_file() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("BITNET_HISTORY") {
        return (!path.is_empty()).then(|| path.into());
    }
    let folder = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let state = if cfg!(windows) {
        folder("LOCALAPPDATA")?
    } else {
        folder("XDG_STATE_HOME").or_else(|| Some(std::env::home_dir()?.join(".local/state")))?
    };
    Some(state.join("bitnet").join("history"))
}

/// What the editor needs to know: the color of the prompt, when a message is complete, the names of the commands.
pub(crate) struct Assistance {
    terminal: Terminal,
}

impl Helper for Assistance {}

impl Hinter for Assistance {
    type Hint = String;
}

impl Highlighter for Assistance {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        self.terminal.accent(prompt)
    }
}

impl Validator for Assistance {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_complete(context.input()) {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl Completer for Assistance {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..position];
        let names = COMMANDS.iter().map(|(name, ..)| *name);
        Ok((
            0,
            names
                .filter(|name| typed.starts_with('/') && name.starts_with(typed))
                .map(str::to_owned)
                .collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_may_have_several_lines() {
        let mut input =
            "one\r\n\\\ntwo \\\nthree\n\"\"\"\nfour\n\nfive \\\n\"\"\"\n\"\"\"six\"\"\"\nseven".as_bytes();
        let mut messages = Vec::new();
        while let Line::Message(text) = read_message(&mut input).unwrap() {
            messages.push(text);
        }
        assert_eq!(
            messages,
            ["one", "\ntwo \nthree", "four\n\nfive \\", "six", "seven"]
        );
    }

    #[test]
    fn a_slash_begins_a_command_but_for_two_and_in_a_fence() {
        let mut input = "/help\n //etc is a folder\n\"\"\"\n/clear\n\"\"\"\na/b".as_bytes();
        let mut next = || read_message(&mut input).unwrap();
        assert_eq!(next(), Line::Command("help".into()));
        assert_eq!(next(), Line::Message("/etc is a folder".into()));
        assert_eq!(next(), Line::Message("/clear".into()));
        assert_eq!(next(), Line::Message("a/b".into()));
        assert_eq!(next(), Line::End);
    }

    #[test]
    fn what_is_no_text_is_passed_by() {
        let mut input = &b"one\n\xff\xfe\ntwo\n"[..];
        let mut next = || read_message(&mut input).unwrap();
        assert_eq!(next(), Line::Message("one".into()));
        assert_eq!(next(), Line::Unusable(NOT_UTF8.into()));
        assert_eq!((next(), next()), (Line::Message("two".into()), Line::End));
        // Longer than any message, without a newline before its end.
        let long = std::io::repeat(b'a').take(MAX_MESSAGE as u64 * 2 + 5);
        let mut input = std::io::BufReader::new(long.chain(&b"\nnext"[..]));
        assert!(
            matches!(read_message(&mut input).unwrap(), Line::Unusable(reason) if reason.contains("more than"))
        );
        assert_eq!(read_message(&mut input).unwrap(), Line::Message("next".into()));
    }

    #[test]
    fn commands_complete() {
        let terminal = Terminal::detect(true);
        let history = DefaultHistory::new();
        let complete = |line: &str| {
            Assistance { terminal }
                .complete(line, line.len(), &Context::new(&history))
                .unwrap()
                .1
        };
        assert_eq!(complete("/te"), ["/temp"]);
        assert_eq!(complete("te"), Vec::<String>::new());
    }
}
