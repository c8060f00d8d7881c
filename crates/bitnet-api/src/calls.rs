//! Calls of tools, found in an answer's text while it comes.

use bitnet_grammar::{CALL_BEGIN, CALL_END};

/// What a text is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text that is no call.
    Text(String),
    /// The beginning of a call of this name; calls count from 0.
    Call { index: usize, name: String },
    /// More of its arguments, which are JSON as the model wrote it.
    Arguments { index: usize, text: String },
}

/// Finds `<tool_call>{"name": "...", "arguments": ...}</tool_call>` in a text that comes in pieces. A grammar has seen to it that what
/// follows the tag is a call; where it is not, it is text like any other.
#[derive(Clone, Debug)]
pub(crate) struct CallParser {
    state: State,
    /// What is not decided yet.
    held: String,
    n_calls: usize,
    /// Whether nothing but calls may be in the text.
    is_forced: bool,
}

#[derive(Clone, Debug)]
enum State {
    Text,
    /// Behind the tag, up to the arguments.
    Head,
    Arguments(Value),
    /// Behind the arguments, up to the tag that ends the call.
    Tail,
}

/// A JSON value while it comes.
#[derive(Clone, Copy, Debug, Default)]
struct Value {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    is_begun: bool,
}

impl Value {
    /// Takes a character; whether the value ends before it, or with it.
    fn take(&mut self, c: char) -> End {
        if self.in_string {
            match c {
                _ if self.is_escaped => self.is_escaped = false,
                '\\' => self.is_escaped = true,
                '"' => {
                    self.in_string = false;
                    return self.after();
                }
                _ => {}
            }
            return End::No;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth == 0 => return End::Before,
            '}' | ']' => {
                self.depth -= 1;
                return self.after();
            }
            ',' if self.depth == 0 => return End::Before,
            c if c.is_whitespace() && self.depth == 0 && self.is_begun => return End::Before,
            _ => {}
        }
        self.is_begun |= !c.is_whitespace();
        End::No
    }

    fn after(&mut self) -> End {
        self.is_begun = true;
        if self.depth == 0 { End::With } else { End::No }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    No,
    Before,
    With,
}

impl CallParser {
    pub(crate) fn new(is_forced: bool) -> Self {
        Self {
            state: State::Text,
            held: String::new(),
            n_calls: 0,
            is_forced,
        }
    }

    /// Takes more text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// What is left when no more comes.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        loop {
            let was_head = matches!(self.state, State::Head);
            let goes_on = self.step(&mut pieces);
            let is_begun = was_head && matches!(self.state, State::Arguments(_));
            if !goes_on && !is_begun {
                break;
            }
        }
        let held = std::mem::take(&mut self.held);
        let text = match self.state {
            State::Text => held,
            // A call of which not even the name is known.
            State::Head => format!("{CALL_BEGIN}{held}"),
            State::Arguments(_) | State::Tail => return pieces,
        };
        if !self.is_forced && !text.is_empty() && (self.n_calls == 0 || !text.trim().is_empty()) {
            pieces.push(Piece::Text(text));
        }
        pieces
    }

    /// Whether it found calls, and the last of them is whole.
    pub(crate) fn has_whole_calls(&self) -> bool {
        self.n_calls > 0 && matches!(self.state, State::Text | State::Tail)
    }

    /// Goes one state on; whether there may be more to do.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.state {
            State::Text => {
                let (ready, found) = match self.held.find(CALL_BEGIN) {
                    Some(at) => (at, true),
                    None => (self.held.len() - overlap(&self.held, CALL_BEGIN), false),
                };
                // Between calls stands white space that is nobody's text.
                let is_text = self.n_calls == 0 || !self.held[..ready].trim().is_empty();
                if !is_text && !found {
                    return false;
                }
                let text: String = self.held.drain(..ready).collect();
                if is_text && !text.is_empty() {
                    pieces.push(Piece::Text(text));
                }
                if found {
                    self.held.drain(..CALL_BEGIN.len());
                    self.state = State::Head;
                }
                found
            }
            State::Head => match head(&self.held) {
                Head::Incomplete => false,
                Head::None => {
                    // It is text after all, and the rest may hold a call.
                    pieces.push(Piece::Text(CALL_BEGIN.to_owned()));
                    self.state = State::Text;
                    true
                }
                Head::Call(name, len) => {
                    self.held.drain(..len);
                    let index = self.n_calls;
                    self.n_calls += 1;
                    pieces.push(Piece::Call { index, name });
                    self.state = State::Arguments(Value::default());
                    // The arguments wait for the next text, so that one token makes no two events of a stream.
                    false
                }
            },
            State::Arguments(value) => {
                let mut end = None;
                for (at, c) in self.held.char_indices() {
                    match value.take(c) {
                        End::No => {}
                        End::Before => end = Some(at),
                        End::With => end = Some(at + c.len_utf8()),
                    }
                    if end.is_some() {
                        break;
                    }
                }
                let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
                if !text.is_empty() {
                    let index = self.n_calls - 1;
                    pieces.push(Piece::Arguments { index, text });
                }
                if end.is_some() {
                    self.state = State::Tail;
                }
                end.is_some()
            }
            State::Tail => match self.held.find(CALL_END) {
                Some(at) => {
                    self.held.drain(..at + CALL_END.len());
                    self.state = State::Text;
                    true
                }
                None => {
                    let kept = overlap(&self.held, CALL_END);
                    self.held.drain(..self.held.len() - kept);
                    false
                }
            },
        }
    }
}

/// Length of the longest end of `text` that is the beginning of `tag` and not all of it.
fn overlap(text: &str, tag: &str) -> usize {
    (1..tag.len())
        .rev()
        .find(|&n| text.ends_with(&tag[..n]))
        .unwrap_or(0)
}

/// What stands behind the tag.
enum Head {
    /// The beginning of `{"name": "...", "arguments": `.
    Incomplete,
    /// All of it, of so many bytes.
    Call(String, usize),
    /// Something else.
    None,
}

/// Longest head of a call; names have at most 64 bytes.
const MOST_HEAD: usize = 1024;

fn head(text: &str) -> Head {
    let mut rest = text;
    let mut name = None;
    for (i, part) in ["{", "\"name\"", ":", "", ",", "\"arguments\"", ":"]
        .iter()
        .enumerate()
    {
        rest = rest.trim_start();
        if i == 3 {
            match string(rest) {
                Some(Ok((value, len))) => {
                    name = Some(value);
                    rest = &rest[len..];
                }
                Some(Err(())) => return Head::None,
                None => return incomplete(text),
            }
        } else if let Some(after) = rest.strip_prefix(part) {
            rest = after;
        } else if part.starts_with(rest) {
            return incomplete(text);
        } else {
            return Head::None;
        }
    }
    // Space before the arguments is no part of them.
    let rest = rest.trim_start();
    match name {
        Some(_) if rest.is_empty() => incomplete(text),
        Some(name) => Head::Call(name, text.len() - rest.len()),
        None => Head::None,
    }
}

fn incomplete(text: &str) -> Head {
    if text.len() > MOST_HEAD {
        Head::None
    } else {
        Head::Incomplete
    }
}

/// A JSON string at the beginning of `text` and its length; `None` while it is incomplete.
fn string(text: &str) -> Option<Result<(String, usize), ()>> {
    let mut bytes = text.bytes().enumerate();
    match bytes.next() {
        None => return None,
        Some((_, b'"')) => {}
        Some(_) => return Some(Err(())),
    }
    let mut is_escaped = false;
    for (at, byte) in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => {
                let value = serde_json::from_str(&text[..=at]).map_err(|_| ());
                return Some(value.map(|value| (value, at + 1)));
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, and name and arguments of each call, of `text` in pieces of `cut` characters.
    fn parsed(text: &str, cut: usize, is_forced: bool) -> (String, Vec<(String, String)>, bool) {
        let mut parser = CallParser::new(is_forced);
        let chars: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> = chars
            .chunks(cut)
            .flat_map(|piece| parser.push(&piece.iter().collect::<String>()))
            .collect();
        pieces.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(more) => text.push_str(&more),
                Piece::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Piece::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        (text, calls, parser.has_whole_calls())
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        for cut in 1..60 {
            let text = "Let me see. <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}</tool_call>\\\"\", \"b\": [1, {}]}}\n</tool_call>\n\
                        <tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>";
            let (said, calls, is_whole) = parsed(text, cut, false);
            assert_eq!(said, "Let me see. ");
            let first = "{\"a\": \"}</tool_call>\\\"\", \"b\": [1, {}]}";
            assert_eq!(calls, [call("f", first), call("g", "{}")]);
            assert!(is_whole);
            // Arguments that are no object.
            let (_, calls, _) = parsed(
                "<tool_call>{\"name\": \"f\", \"arguments\": 12 }</tool_call>",
                cut,
                false,
            );
            assert_eq!(calls, [call("f", "12")]);
            let (_, calls, _) = parsed(
                "<tool_call>{\"name\": \"f\", \"arguments\": \"a,}\"}</tool_call>",
                cut,
                false,
            );
            assert_eq!(calls, [call("f", "\"a,}\"")]);
        }
    }

    #[test]
    fn what_only_looks_like_a_call_is_text() {
        for text in [
            "a <tool_cal and <tool_call",
            "<tool_call> is a tag",
            "<tool_call>{\"nom\": 1}</tool_call> x",
            "<tool_call>{\"name\": 5}",
            "<<tool_call>",
            "1 < 2",
        ] {
            for cut in 1..20 {
                assert_eq!(
                    parsed(text, cut, false),
                    (text.to_owned(), vec![], false),
                    "{cut}"
                );
            }
        }
    }

    #[test]
    fn a_call_that_is_cut_off_is_not_whole() {
        let (text, calls, is_whole) = parsed(
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1, ",
            3,
            true,
        );
        assert_eq!((text.as_str(), is_whole), ("", false));
        assert_eq!(calls, [("f".to_owned(), "{\"a\": [1, ".to_owned())]);
        assert_eq!(
            parsed("<tool_call>{\"na", 2, true),
            (String::new(), vec![], false)
        );
    }
}
