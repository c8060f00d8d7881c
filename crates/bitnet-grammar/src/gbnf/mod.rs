//! Grammars in the notation of llama.cpp, as grammars in Lark's.
//!
//! llama.cpp reads a text character by character; llguidance cuts it into terminals first, each as long as it can be. So that both
//! take the same texts, whatever has no recursion becomes a single terminal, a regular expression in effect: rules, and neighbors
//! inside of rules.

mod parse;

use parse::{Atom, Item, Rule};

use crate::error::GrammarError;
use crate::tools::quoted;

/// The same grammar in Lark's notation.
pub(crate) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let rules = parse::parse(text)?;
    let Some(root) = rules.iter().position(|rule| rule.name == "root") else {
        return Err(GrammarError::new(
            "the grammar has no rule `root`, where llama.cpp's grammars begin",
        ));
    };
    let mut writer = Writer {
        is_regular: regular(&rules),
        text: String::new(),
        merged: 0,
    };
    let start = writer.name(root);
    writer.text.push_str(&format!("start: {start}\n"));
    for (i, rule) in rules.iter().enumerate() {
        writer.rule(i, rule);
    }
    Ok(writer.text)
}

/// Which rules say nothing of themselves, neither directly nor by others.
fn regular(rules: &[Rule]) -> Vec<bool> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); rules.len()];
    let mut open = vec![0usize; rules.len()];
    for (i, rule) in rules.iter().enumerate() {
        for item in rule.alternatives.iter().flatten() {
            if let Atom::Rule(used) = item.atom {
                users[used].push(i);
                open[i] += 1;
            }
        }
    }
    let mut is_regular = vec![false; rules.len()];
    let mut ready: Vec<usize> = (0..rules.len()).filter(|&i| open[i] == 0).collect();
    while let Some(i) = ready.pop() {
        is_regular[i] = true;
        for &user in &users[i] {
            open[user] -= 1;
            if open[user] == 0 {
                ready.push(user);
            }
        }
    }
    is_regular
}

struct Writer {
    is_regular: Vec<bool>,
    text: String,
    merged: usize,
}

impl Writer {
    /// Lark tells terminals from rules by their case.
    fn name(&self, rule: usize) -> String {
        let case = if self.is_regular[rule] { 'T' } else { 'r' };
        format!("{case}{rule}")
    }

    fn rule(&mut self, i: usize, rule: &Rule) {
        let name = self.name(i);
        let alternatives: Vec<String> = rule
            .alternatives
            .iter()
            .map(|items| match self.is_regular[i] {
                true => self.joined(items),
                false => self.sequence(items),
            })
            .collect();
        self.text
            .push_str(&format!("{name}: {}\n", alternatives.join(" | ")));
    }

    /// Items of a rule that is no terminal: those that may be terminals are, together with their neighbors.
    fn sequence(&mut self, items: &[Item]) -> String {
        let mut parts = Vec::new();
        let is_regular = |item: &Item| !matches!(item.atom, Atom::Rule(rule) if !self.is_regular[rule]);
        let groups: Vec<(bool, &[Item])> = items
            .chunk_by(|a, b| is_regular(a) && is_regular(b))
            .map(|group| (is_regular(&group[0]), group))
            .collect();
        for (is_terminal, group) in groups {
            if !is_terminal {
                parts.push(self.joined(group));
                continue;
            }
            let name = format!("M{}", self.merged);
            self.merged += 1;
            let line = format!("{name}: {}\n", self.joined(group));
            self.text.push_str(&line);
            parts.push(name);
        }
        if parts.is_empty() {
            parts.push("\"\"".to_owned());
        }
        parts.join(" ")
    }

    fn joined(&self, items: &[Item]) -> String {
        let items: Vec<String> = items.iter().map(|item| self.item(item)).collect();
        if items.is_empty() {
            return "\"\"".to_owned();
        }
        items.join(" ")
    }

    fn item(&self, item: &Item) -> String {
        let atom = match &item.atom {
            Atom::Text(text) => quoted(text),
            Atom::Class(regex) => format!("/{regex}/"),
            Atom::Rule(rule) => self.name(*rule),
        };
        match (item.min, item.max) {
            (1, Some(1)) => atom,
            (0, Some(1)) => format!("{atom}?"),
            (0, None) => format!("{atom}*"),
            (1, None) => format!("{atom}+"),
            (min, None) => format!("{atom}{{{min},}}"),
            (min, Some(max)) => format!("{atom}{{{min},{max}}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::to_lark;

    fn error(text: &str) -> String {
        to_lark(text).unwrap_err().to_string()
    }

    #[test]
    fn what_has_no_recursion_is_one_terminal() {
        let lark = to_lark("root ::= a (\",\" a)* # a list\na ::= [0-9]+ |\n  \"x\\n\"\n").unwrap();
        assert!(lark.starts_with("start: T0\n"), "{lark}");
        assert!(
            !lark.contains('r'.to_string().as_str()) || !lark.contains("\nr"),
            "{lark}"
        );
    }

    #[test]
    fn neighbors_of_a_recursive_rule_are_merged() {
        let lark = to_lark("root ::= \"(\" ws root? \")\" ws\nws ::= [ \\t]*\n").unwrap();
        assert!(
            lark.contains("start: r0\n") && lark.contains("r0: M0 r0? M1\n"),
            "{lark}"
        );
        assert!(lark.contains("M0: \"(\" T1\n"), "{lark}");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, part) in [
            ("", "no rule `root`"),
            ("a ::= \"x\"", "no rule `root`"),
            ("root ::= b", "`b` is not defined"),
            ("root ::= \"x", "line 1"),
            ("root ::= \"a\"\nroot ::= \"b\"", "twice"),
            ("root ::= \"a\"\nb ::= (\"x\"", "line 2"),
            ("root ::= [a", "not closed"),
            ("root ::= [z-a]", "order"),
            ("root ::= \"a\"{3,1}", "{3,1}"),
            ("root ::= \"a\"{99999999999}", "count"),
            ("root ::= <|eot_id|>", "tokens"),
            ("root ::= \"\\q\"", "escape"),
            ("root ::= \"\\uD800\"", "character"),
            ("root = x", "::="),
            ("root ::= *", "line 1"),
        ] {
            assert!(error(text).contains(part), "{text:?}: {}", error(text));
        }
        let deep = format!("root ::= {}", "(".repeat(10_000));
        assert!(error(&deep).contains("nested"));
    }
}
