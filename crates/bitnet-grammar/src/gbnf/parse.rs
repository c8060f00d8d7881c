//! Reads the notation of llama.cpp: `name ::= "text" [a-z0-9]* (other | "more"){2,3} # remark`.

use std::collections::HashMap;

use crate::error::GrammarError;

/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 200;
/// Most repetitions that are counted.
const MAX_COUNT: u32 = 100_000;

/// A part of a rule.
#[derive(Clone, Debug)]
pub(super) enum Atom {
    /// As it is.
    Text(String),
    /// A regular expression for one character.
    Class(String),
    /// The place of a rule.
    Rule(usize),
}

/// An atom, at least `min` and at most `max` times.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) atom: Atom,
    pub(super) min: u32,
    pub(super) max: Option<u32>,
}

/// A rule, or a group in parentheses.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) alternatives: Vec<Vec<Item>>,
    is_defined: bool,
}

/// The rules of a grammar; those without a name are groups.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, GrammarError> {
    let mut parser = Parser {
        text,
        at: 0,
        rules: Vec::new(),
        places: HashMap::new(),
    };
    parser.space(true);
    while parser.peek().is_some() {
        parser.rule()?;
        parser.space(true);
    }
    match parser.rules.iter().find(|rule| !rule.is_defined) {
        Some(rule) => Err(GrammarError::new(format!(
            "the grammar's rule `{}` is not defined",
            rule.name
        ))),
        None => Ok(parser.rules),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    rules: Vec<Rule>,
    places: HashMap<&'t str, usize>,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let is_here = self.text[self.at..].starts_with(text);
        if is_here {
            self.at += text.len();
        }
        is_here
    }

    fn wrong<T>(&self, message: &str) -> Result<T, GrammarError> {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Err(GrammarError::new(format!("the grammar, line {line}: {message}")))
    }

    /// Passes spaces and remarks, and ends of lines where they mean nothing.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            if c == '#' {
                let rest = &self.text[self.at..];
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r')) {
                self.at += 1;
            } else {
                break;
            }
        }
    }

    /// A name, or nothing.
    fn name(&mut self) -> &'t str {
        let rest = &self.text[self.at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn place(&mut self, name: &'t str) -> usize {
        *self.places.entry(name).or_insert_with(|| {
            self.rules.push(Rule {
                name: name.to_owned(),
                alternatives: Vec::new(),
                is_defined: false,
            });
            self.rules.len() - 1
        })
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let name = self.name();
        self.space(false);
        if name.is_empty() || !self.take("::=") {
            return self.wrong("a rule, `name ::= ...`, is expected");
        }
        let place = self.place(name);
        if self.rules[place].is_defined {
            return self.wrong(&format!("the rule `{name}` is there twice"));
        }
        self.space(true);
        let alternatives = self.alternatives(0)?;
        match self.peek() {
            None | Some('\n' | '\r') => {}
            Some(')') => return self.wrong("there is a `)` without a `(`"),
            Some(_) => return self.wrong("a text, a set of characters, a name or a group is expected"),
        }
        let rule = &mut self.rules[place];
        (rule.alternatives, rule.is_defined) = (alternatives, true);
        Ok(())
    }

    fn alternatives(&mut self, depth: usize) -> Result<Vec<Vec<Item>>, GrammarError> {
        if depth > MAX_DEPTH {
            return self.wrong(&format!("groups are nested more than {MAX_DEPTH} levels deep"));
        }
        let mut all = Vec::new();
        loop {
            all.push(self.sequence(depth)?);
            // The next line may go on with an alternative.
            let end = self.at;
            self.space(true);
            if !self.take("|") {
                if depth == 0 {
                    self.at = end;
                }
                return Ok(all);
            }
            self.space(true);
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Item>, GrammarError> {
        let mut items = Vec::new();
        loop {
            self.space(depth > 0);
            let Some(atom) = self.atom(depth)? else {
                return Ok(items);
            };
            let (min, max) = self.count()?;
            let is_nothing = max == Some(0) || matches!(&atom, Atom::Text(text) if text.is_empty());
            if !is_nothing {
                items.push(Item { atom, min, max });
            }
        }
    }

    fn atom(&mut self, depth: usize) -> Result<Option<Atom>, GrammarError> {
        let begin = self.at;
        Ok(Some(match self.peek() {
            Some('"') => {
                self.at += 1;
                let mut text = String::new();
                loop {
                    match self.next() {
                        Some('"') => break Atom::Text(text),
                        None | Some('\n') => {
                            self.at = begin;
                            return self.wrong("the text is not closed");
                        }
                        Some('\\') => text.push(self.escape()?),
                        Some(c) => text.push(c),
                    }
                }
            }
            Some('[') => {
                self.at += 1;
                Atom::Class(self.class(begin)?)
            }
            Some('.') => {
                self.at += 1;
                Atom::Class("(?s:.)".to_owned())
            }
            Some('(') => {
                self.at += 1;
                self.space(true);
                let alternatives = self.alternatives(depth + 1)?;
                if !self.take(")") {
                    return self.wrong("the group is not closed by `)`");
                }
                self.rules.push(Rule {
                    name: String::new(),
                    alternatives,
                    is_defined: true,
                });
                Atom::Rule(self.rules.len() - 1)
            }
            Some('<' | '!') => return self.wrong("tokens cannot stand in a grammar; write the text of them"),
            Some(c) if c.is_ascii_alphanumeric() => {
                let name = self.name();
                Atom::Rule(self.place(name))
            }
            _ => return Ok(None),
        }))
    }

    /// How often what was read may stand.
    fn count(&mut self) -> Result<(u32, Option<u32>), GrammarError> {
        let begin = self.at;
        self.space(false);
        Ok(match self.peek() {
            Some('*') => {
                self.at += 1;
                (0, None)
            }
            Some('+') => {
                self.at += 1;
                (1, None)
            }
            Some('?') => {
                self.at += 1;
                (0, Some(1))
            }
            Some('{') => {
                let rest = &self.text[self.at + 1..];
                let Some(end) = rest.find('}') else {
                    return self.wrong("the count is not closed by `}`");
                };
                self.at += end + 2;
                let number = |text: &str| text.trim().parse().ok().filter(|&n: &u32| n <= MAX_COUNT);
                let (min, max) = match rest[..end].split_once(',') {
                    None => (number(&rest[..end]), number(&rest[..end]).map(Some)),
                    Some((min, max)) if max.trim().is_empty() => (number(min), Some(None)),
                    Some((min, max)) if min.trim().is_empty() => (Some(0), number(max).map(Some)),
                    Some((min, max)) => (number(min), number(max).map(Some)),
                };
                match (min, max) {
                    (Some(min), Some(max)) if max.is_none_or(|max| min <= max) => (min, max),
                    (Some(min), Some(Some(max))) => {
                        return self.wrong(&format!("{{{min},{max}}} is at least more than at most"));
                    }
                    _ => {
                        return self
                            .wrong(&format!("a count is {{n}}, {{m,}} or {{m,n}}, up to {MAX_COUNT}"));
                    }
                }
            }
            _ => {
                self.at = begin;
                (1, Some(1))
            }
        })
    }

    /// The character that an escape stands for, behind its backslash.
    fn escape(&mut self) -> Result<char, GrammarError> {
        let digits =
            match self.next() {
                Some('n') => return Ok('\n'),
                Some('r') => return Ok('\r'),
                Some('t') => return Ok('\t'),
                Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/')) => return Ok(c),
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                _ => return self.wrong(
                    "there is no such escape; \\n \\r \\t \\\\ \\\" \\[ \\] \\xHH \\uHHHH \\UHHHHHHHH are",
                ),
            };
        let hex = self
            .text
            .get(self.at..self.at + digits)
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let character = hex.and_then(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?));
        match character {
            Some(c) => {
                self.at += digits;
                Ok(c)
            }
            None => self.wrong(&format!(
                "an escape of {digits} hexadecimal digits that name a character is expected"
            )),
        }
    }

    /// A set of characters, behind its bracket, as a regular expression.
    fn class(&mut self, begin: usize) -> Result<String, GrammarError> {
        let not = self.take("^");
        let mut ranges = String::new();
        loop {
            let first = match self.next() {
                Some(']') => break,
                None | Some('\n') => {
                    self.at = begin;
                    return self.wrong("the set of characters is not closed by `]`");
                }
                Some('\\') => self.escape()?,
                Some(c) => c,
            };
            let rest = &self.text[self.at..];
            if rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                let last = match self.next() {
                    Some('\\') => self.escape()?,
                    Some(c) if c != '\n' => c,
                    _ => return self.wrong("the set of characters is not closed by `]`"),
                };
                if first > last {
                    return self.wrong(&format!("the range {first}-{last} is not in order"));
                }
                ranges.push_str(&format!("{}-{}", escaped(first), escaped(last)));
            } else {
                ranges.push_str(&escaped(first));
            }
        }
        match (not, ranges.is_empty()) {
            (false, true) => self.wrong("the set of characters is empty"),
            (true, true) => Ok("(?s:.)".to_owned()),
            (false, false) => Ok(format!("[{ranges}]")),
            (true, false) => Ok(format!("[^{ranges}]")),
        }
    }
}

/// A character in a set of a regular expression.
fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() {
        c.to_string()
    } else {
        format!("\\x{{{:X}}}", u32::from(c))
    }
}
