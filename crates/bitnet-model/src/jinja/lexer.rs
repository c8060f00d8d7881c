//! Source to tokens, by the rules of Jinja2's lexer with `trim_blocks` and `lstrip_blocks`.

use super::budget::{Failure, Res};
use super::unicode::is_space;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tok {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) tok: Tok,
    pub(super) line: u32,
}

const OPERATORS: [&str; 27] = [
    "==", "!=", ">=", "<=", "//", "**", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";", "!",
];

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    tokens: Vec<Token>,
}

/// The tokens of a template; the last is [`Tok::End`].
pub(super) fn tokens(source: &str) -> Res<Vec<Token>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer {
        source: &source,
        at: 0,
        line: 1,
        tokens: Vec::new(),
    };
    lexer.root()?;
    lexer.add(Tok::End);
    Ok(lexer.tokens)
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn add(&mut self, tok: Tok) {
        let line = self.line;
        self.tokens.push(Token { tok, line });
    }

    fn advance(&mut self, len: usize) -> &'s str {
        let taken = &self.rest()[..len];
        self.line += taken.bytes().filter(|&b| b == b'\n').count() as u32;
        self.at += len;
        taken
    }

    fn fail<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(Failure {
            message: message.into(),
            line: self.line,
        })
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_space).len());
    }

    fn root(&mut self) -> Res<()> {
        let mut line_starting = true;
        loop {
            let rest = self.rest();
            let tag = rest
                .match_indices('{')
                .map(|(at, _)| at)
                .find(|&at| matches!(rest.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')));
            let Some(at) = tag else {
                let len = rest.len();
                let data = self.advance(len);
                if !data.is_empty() {
                    self.tokens.push(Token {
                        tok: Tok::Data(data.to_owned()),
                        line: self.line,
                    });
                }
                return Ok(());
            };
            let kind = rest.as_bytes()[at + 1];
            let sign = rest
                .as_bytes()
                .get(at + 2)
                .copied()
                .filter(|b| matches!(b, b'-' | b'+'));
            let text = &rest[..at];
            self.data(text, sign, kind != b'{', line_starting);
            self.advance(at + 2 + usize::from(sign.is_some()));
            let begin = self.at;
            match kind {
                b'{' => {
                    self.add(Tok::VariableBegin);
                    self.tag(true)?;
                }
                b'#' => self.comment()?,
                _ => {
                    if !self.raw()? {
                        self.add(Tok::BlockBegin);
                        self.tag(false)?;
                    }
                }
            }
            line_starting = self.source[begin..self.at].ends_with('\n');
        }
    }

    /// Text before a tag, with the space taken off that its sign or `lstrip_blocks` says.
    fn data(&mut self, text: &str, sign: Option<u8>, strips: bool, line_starting: bool) {
        let kept = match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            None if strips => {
                let start = text.rfind('\n').map_or(0, |at| at + 1);
                let last = &text[start..];
                let is_blank = !last.is_empty() && last.chars().all(is_space);
                if (start > 0 || line_starting) && is_blank {
                    &text[..start]
                } else {
                    text
                }
            }
            _ => text,
        };
        if !kept.is_empty() {
            self.add(Tok::Data(kept.to_owned()));
        }
    }

    /// Takes the end of a tag at the front, with the space that belongs to it.
    fn end_of_tag(&mut self, end: &str, plus: bool, trims: bool) -> bool {
        let rest = self.rest();
        if let Some(after) = rest.strip_prefix('-')
            && after.starts_with(end)
        {
            self.advance(1 + end.len());
            self.skip_space();
            return true;
        }
        if plus && rest.strip_prefix('+').is_some_and(|after| after.starts_with(end)) {
            self.advance(1 + end.len());
            return true;
        }
        if let Some(after) = rest.strip_prefix(end) {
            let newline = trims && after.starts_with('\n');
            self.advance(end.len() + usize::from(newline));
            return true;
        }
        false
    }

    fn comment(&mut self) -> Res<()> {
        let rest = self.rest();
        let Some(at) = rest.find("#}") else {
            return self.fail("Missing end of comment tag");
        };
        let sign = usize::from(rest[..at].ends_with(['-', '+']));
        self.advance(at - sign);
        self.end_of_tag("#}", true, true);
        Ok(())
    }

    /// `{% raw %}`: its text as it stands; false where the tag is another.
    fn raw(&mut self) -> Res<bool> {
        let rest = self.rest();
        let Some(after) = rest.trim_start_matches(is_space).strip_prefix("raw") else {
            return Ok(false);
        };
        let after = after.trim_start_matches(is_space);
        if !after.starts_with("%}") && !after.starts_with("-%}") {
            return Ok(false);
        }
        self.advance(rest.len() - after.len());
        self.end_of_tag("%}", false, false);
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let inner = &rest[at + 2..];
            let sign = inner
                .as_bytes()
                .first()
                .copied()
                .filter(|b| matches!(b, b'-' | b'+'));
            let word = inner[usize::from(sign.is_some())..].trim_start_matches(is_space);
            let Some(end) = word
                .strip_prefix("endraw")
                .map(|end| end.trim_start_matches(is_space))
            else {
                continue;
            };
            if ["%}", "-%}", "+%}"].iter().any(|tag| end.starts_with(tag)) {
                self.data(&rest[..at], sign, true, false);
                self.advance(rest.len() - end.len());
                self.end_of_tag("%}", true, true);
                return Ok(true);
            }
        }
        self.fail("Missing end of raw directive")
    }

    /// The tokens up to the end of a tag.
    fn tag(&mut self, is_variable: bool) -> Res<()> {
        let mut brackets = Vec::new();
        loop {
            if brackets.is_empty() {
                let done = if is_variable {
                    self.end_of_tag("}}", false, false)
                } else {
                    self.end_of_tag("%}", true, true)
                };
                if done {
                    self.add(if is_variable {
                        Tok::VariableEnd
                    } else {
                        Tok::BlockEnd
                    });
                    return Ok(());
                }
            }
            let rest = self.rest();
            let Some(c) = rest.chars().next() else {
                // The parser says what is missing.
                return Ok(());
            };
            if is_space(c) {
                self.skip_space();
            } else if c.is_ascii_digit() {
                self.number()?;
            } else if c == '_' || c.is_alphanumeric() {
                let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric());
                let name = self.advance(end.unwrap_or(rest.len()));
                if !(c == '_' || c.is_alphabetic()) {
                    return self.fail("Invalid character in identifier");
                }
                self.add(Tok::Name(name.to_owned()));
            } else if c == '\'' || c == '"' {
                self.string(c)?;
            } else {
                let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op) && **op != "!") else {
                    return self.fail(format!("unexpected char {c:?}"));
                };
                match *op {
                    "(" => brackets.push(")"),
                    "[" => brackets.push("]"),
                    "{" => brackets.push("}"),
                    ")" | "]" | "}" => match brackets.pop() {
                        Some(expected) if expected == *op => {}
                        Some(expected) => {
                            return self.fail(format!("unexpected '{op}', expected '{expected}'"));
                        }
                        None => return self.fail(format!("unexpected '{op}'")),
                    },
                    _ => {}
                }
                self.add(Tok::Op(op));
                self.advance(op.len());
            }
        }
    }

    fn number(&mut self) -> Res<()> {
        let rest = self.rest();
        let lower = rest.as_bytes();
        // Digits, each after at most one underscore.
        let digits = |mut at: usize, radix: u32| {
            let start = at;
            loop {
                let gap = usize::from(lower.get(at) == Some(&b'_') && at > start);
                match lower.get(at + gap) {
                    Some(&b) if char::from(b).is_digit(radix) => at += gap + 1,
                    _ => return at,
                }
            }
        };
        let before_is_dot = self.source[..self.at].ends_with('.');
        let whole = digits(0, 10);
        let mut end = whole;
        if !before_is_dot {
            if lower.get(end) == Some(&b'.') {
                end = digits(end + 1, 10).max(end);
                if end == whole + 1 {
                    end = whole;
                }
            }
            if matches!(lower.get(end), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(lower.get(end + 1), Some(b'+' | b'-')));
                let exponent = digits(end + 1 + sign, 10);
                if exponent > end + 1 + sign {
                    end = exponent;
                }
            }
        }
        if end > whole {
            let text = rest[..end].replace('_', "");
            self.advance(end);
            match text.parse() {
                Ok(float) => self.add(Tok::Float(float)),
                Err(_) => return self.fail(format!("{text} is not a number")),
            }
            return Ok(());
        }
        let prefix = rest.get(..2).unwrap_or_default().to_ascii_lowercase();
        let radix = match &prefix[..] {
            "0b" => 2,
            "0o" => 8,
            "0x" => 16,
            _ => 10,
        };
        if radix != 10 {
            let gap = usize::from(lower.get(2) == Some(&b'_'));
            let end = digits(2 + gap, radix);
            if end > 2 + gap {
                let value = i128::from_str_radix(&rest[2..end].replace('_', ""), radix);
                self.advance(end);
                return match value {
                    Ok(value) => {
                        self.add(Tok::Int(value));
                        Ok(())
                    }
                    Err(_) => self.fail("the number is too large"),
                };
            }
        }
        let end = if lower[0] == b'0' {
            let zeros = rest[..whole].bytes().position(|b| b != b'0' && b != b'_');
            rest[..zeros.unwrap_or(whole)].trim_end_matches('_').len()
        } else {
            whole
        };
        let text = self.advance(end).replace('_', "");
        match text.parse() {
            Ok(value) => self.add(Tok::Int(value)),
            Err(_) => return self.fail("the number is too large"),
        }
        Ok(())
    }

    fn string(&mut self, quote: char) -> Res<()> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|&(_, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else {
            return self.fail(format!("unexpected char {quote:?}: the string has no end"));
        };
        let text = unescape(&rest[1..end]);
        let token = match text {
            Ok(text) => Tok::Str(text),
            Err(message) => return self.fail(message),
        };
        self.add(token);
        self.advance(end + 1);
        Ok(())
    }
}

/// Python's `unicode-escape`, as Jinja2 applies it to string literals.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(c) = chars.next() else {
            return Err("\\ at end of string".to_owned());
        };
        let mut code = |digits: usize| {
            let hex: String = (0..digits)
                .map_while(|_| chars.next_if(char::is_ascii_hexdigit))
                .collect();
            if hex.len() < digits {
                return Err(format!("truncated \\{c} escape"));
            }
            let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
            code.ok_or_else(|| format!("\\{c}{hex} is not a character"))
        };
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            'x' => out.push(code(2)?),
            'u' => out.push(code(4)?),
            'U' => out.push(code(8)?),
            'N' => return Err("names of characters (\\N) are not implemented".to_owned()),
            '0'..='7' => {
                let mut value = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    if let Some(digit) = chars.next_if(|c| c.is_digit(8)) {
                        value = 8 * value + digit.to_digit(8).unwrap_or(0);
                    }
                }
                out.extend(char::from_u32(value));
            }
            c if c.is_ascii() => out.extend(['\\', c]),
            // Jinja2 has spelled it as an escape before it looks for escapes.
            c => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    Ok(out)
}
