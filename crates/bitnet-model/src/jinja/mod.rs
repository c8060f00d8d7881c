//! Jinja2 as transformers runs it: `ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, loop controls, `tojson`,
//! `raise_exception`, `strftime_now` and `{% generation %}`.
//!
//! Chat templates are written for Python and come from anybody, so this interpreter differs from general ones in two ways. Values
//! behave as Python's do, down to how they print; what is not implemented is an error. And each text, list and level is
//! charged to a [`budget::Budget`] before it is made, so that no template can fill memory, overflow a stack or go on for ever.

mod ast;
mod budget;
mod names;
mod unicode;

mod clock;
mod lexer;
mod parser;

mod value;

mod args;
mod state;
mod text;

mod ops;

mod attributes;

mod format;

mod operators;
mod strings;

mod checks;
mod json;

mod plain;

mod filters;

mod calls;
mod interpreter;

use std::collections::BTreeMap;

pub(crate) use budget::Failure;
use budget::{Budget, Res, failure};
use state::Interpreter;
use value::{Dict, Value};

/// Stack of the thread that a template is compiled or rendered on: enough for all the levels that the parser and the budget allow.
const STACK: usize = 64 << 20;
/// Bytes of a template; published ones have up to 20,000.
const MAX_SOURCE: usize = 1 << 20;

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Template {
    tree: ast::Tree,
    source_len: usize,
    knows_tools: bool,
}

impl Template {
    /// Compiles a template.
    pub(crate) fn new(source: &str) -> Res<Self> {
        if source.len() > MAX_SOURCE {
            return Err(failure(format!(
                "a template of {} bytes; at most {MAX_SOURCE} are allowed",
                source.len()
            )));
        }
        let (tree, knows_tools) = on_own_stack(|| {
            let tokens = lexer::tokens(source)?;
            let is_tools =
                |token: &lexer::Token| matches!(&token.tok, lexer::Tok::Name(name) if name == "tools");
            let knows_tools = tokens.iter().any(is_tools);
            Ok((parser::parse(tokens)?, knows_tools))
        })?;
        Ok(Self {
            tree,
            source_len: source.len(),
            knows_tools,
        })
    }

    /// Whether it names the variable `tools`.
    pub(crate) fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// The text that the template makes of `variables`.
    pub(crate) fn render(&self, variables: &BTreeMap<&str, serde_json::Value>) -> Res<String> {
        on_own_stack(|| {
            let given = variables
                .iter()
                .map(|(name, value)| name.len() + size(value))
                .sum::<usize>();
            let budget = Budget::new(given + self.source_len);
            let mut dict = Dict::default();
            for (name, value) in variables {
                dict.insert(Value::str(name), Value::from_json(value, &budget)?, &budget)?;
            }
            Interpreter::new(&self.tree, &budget, dict).run()
        })
    }
}

/// About how many bytes a value has as JSON.
fn size(value: &serde_json::Value) -> usize {
    use serde_json::Value as Json;
    match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => 8,
        Json::String(text) => text.len() + 8,
        Json::Array(items) => items.iter().map(size).sum::<usize>() + 8,
        Json::Object(map) => {
            map.iter()
                .map(|(key, value)| key.len() + size(value) + 8)
                .sum::<usize>()
                + 8
        }
    }
}

/// Runs `f` on a thread of its own, whose stack is as large as the limits need.
fn on_own_stack<T: Send>(f: impl FnOnce() -> Res<T> + Send) -> Res<T> {
    std::thread::scope(|threads| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(threads, f);
        let thread = thread.map_err(|e| failure(format!("no thread to run it on: {e}")))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(failure("the interpreter failed on it")))
    })
}
