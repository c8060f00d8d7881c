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

    /// What the library says, without what it says to its own authors, and in one line. Where `is_lark`, the places that it names are
    /// places of the text that was given.
    pub(crate) fn from_library(said: &str, is_lark: bool) -> Self {
        let is_quoted = |line: &&str| {
            let number = line
                .trim_start()
                .split_once(" |")
                .map_or("", |(number, _)| number);
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        };
        let is_pointer = |line: &&str| line.trim_matches([' ', '^']).is_empty();
        let is_inner = |line: &&str| {
            ["<state>", "<backtrace>", "<non-verbose/>"]
                .iter()
                .any(|mark| line.starts_with(mark))
        };
        let lines: Vec<&str> = said
            .lines()
            .take_while(|line| !is_inner(line))
            .filter(|line| !is_quoted(line) && !is_pointer(line))
            .map(str::trim)
            .collect();
        let mut text = lines.join(" ");
        if let Some(panic) = text.strip_prefix("panic: ") {
            text = format!("the library for grammars failed on it: {panic}");
        }
        if let Some((place, rest)) = text.strip_prefix("at ").and_then(|text| text.split_once("): ")) {
            let place = place
                .split_once('(')
                .filter(|(line, column)| [line, column].iter().all(|n| n.parse::<usize>().is_ok()));
            text = match place {
                Some((line, column)) if is_lark => format!("line {line}, column {column}: {rest}"),
                Some(_) => rest.to_owned(),
                None => text,
            };
        }
        if text.len() > MOST {
            let cut = (0..=MOST)
                .rev()
                .find(|&at| text.is_char_boundary(at))
                .unwrap_or(0);
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

#[cfg(test)]
mod tests {
    use super::GrammarError;

    #[test]
    fn what_the_library_tells_its_authors_is_left_out() {
        let said = "at 1(8): invalid regex \"((\": regex parse error:\n    ((\n     ^\nerror: unclosed group\n   1 | start: /((/\n              ^";
        let plain = "invalid regex \"((\": regex parse error: (( error: unclosed group";
        assert_eq!(GrammarError::from_library(said, false).to_string(), plain);
        assert_eq!(
            GrammarError::from_library(said, true).to_string(),
            format!("line 1, column 8: {plain}")
        );
        let panic = "panic: index out of bounds\n<backtrace>\n  0: secret.rs\n</backtrace>";
        let told = GrammarError::from_library(panic, false).to_string();
        assert_eq!(told, "the library for grammars failed on it: index out of bounds");
        assert_eq!(
            GrammarError::from_library("too much\n<non-verbose/>", false).to_string(),
            "too much"
        );
        let long = GrammarError::from_library(&"é".repeat(1_000), false).to_string();
        assert!(long.len() < 610 && long.ends_with("é ..."));
    }
}
