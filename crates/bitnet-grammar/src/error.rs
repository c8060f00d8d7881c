//! Why an answer cannot be constrained as it was asked.

use std::fmt;

/// Most bytes of a message: libraries quote what they were given.
const MOST: usize = 600;

/// A grammar, or a schema, that cannot be used; for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrammarError {
    message: String,
}

impl GrammarError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }

    /// What the library says, without what it says to its own authors.
    pub(crate) fn from_library(said: &str) -> Self {
        let end = ["\n<state>", "\n<backtrace>", "<non-verbose/>"]
            .iter()
            .filter_map(|mark| said.find(mark))
            .min()
            .unwrap_or(said.len());
        let mut text = said[..end].trim().to_owned();
        if let Some(panic) = text.strip_prefix("panic: ") {
            text = format!("the library for grammars failed on it: {panic}");
        }
        if text.len() > MOST {
            let cut = (0..=MOST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(cut);
            text.push_str(" ...");
        }
        Self::new(text)
    }
}

impl fmt::Display for GrammarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for GrammarError {}
