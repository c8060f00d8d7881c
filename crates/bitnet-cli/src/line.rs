//! Lines from a person or a pipe: editing, history, messages of several lines.

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Editor, Helper};

use crate::repl::COMMANDS;
use crate::terminal::Terminal;

const PROMPT: &str = "> ";
const FENCE: &str = "\"\"\"";

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A message or command.
    Text(String),
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
        let mut editor = Editor::new()?;
        editor.set_helper(Some(Assistance { terminal }));
        let history = history_file();
        if let Some(path) = &history {
            // There is none before the first conversation; an unreadable one is no reason not to chat.
            let _ = editor.load_history(path);
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
            Self::Editor(editor, _) => match editor.readline(PROMPT) {
                Ok(text) => {
                    if !text.trim().is_empty() {
                        let _ = editor.add_history_entry(text.as_str());
                    }
                    Ok(Line::Text(unwrap(&text)))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(e) => Err(e.into()),
            },
            Self::Plain { person } => {
                if *person {
                    eprint!("{PROMPT}");
                    std::io::stderr().flush()?;
                }
                read_message(&mut std::io::stdin().lock())
            }
        }
    }

    /// Keeps the history for the next time.
    pub(crate) fn save_history(&mut self) {
        if let Self::Editor(editor, Some(path)) = self {
            let saved = path
                .parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .map_err(ReadlineError::from)
                .and_then(|()| editor.save_history(path));
            if let Err(e) = saved {
                eprintln!("warning: the history was not kept: {}: {e}", path.display());
            }
        }
    }
}

/// Reads lines until a message is complete.
fn read_message(input: &mut impl BufRead) -> anyhow::Result<Line> {
    let mut text = String::new();
    while input.read_line(&mut text)? > 0 {
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if is_complete(line) {
            return Ok(Line::Text(unwrap(line)));
        }
    }
    // The last line needs no newline, and what the end cut off is a message as well.
    Ok(if text.is_empty() {
        Line::End
    } else {
        Line::Text(unwrap(&text))
    })
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
        while let Line::Text(text) = read_message(&mut input).unwrap() {
            messages.push(text);
        }
        assert_eq!(
            messages,
            ["one", "\ntwo \nthree", "four\n\nfive \\", "six", "seven"]
        );
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
