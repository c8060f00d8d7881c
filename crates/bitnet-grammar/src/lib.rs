//! JSON schemas, regular expressions, grammars and tool calls that answers obey.
//!
//! A [`Compiler`] makes a [`Mask`](bitnet_model::schedule::Mask) of a [`Grammar`]: which tokens may come next, at each place of an
//! answer. The parsing is llguidance's; here stand what its input may be, what it may cost, and the vocabularies of our tokenizers.
//! Whoever wrote the grammar may be a stranger: everything ends in bounded time and memory, with a message.
#![forbid(unsafe_code)]

mod error;
mod guard;
mod vocabulary;

mod cost;

mod json;

mod tools;

mod gbnf;

mod grammar;
mod mask;

mod compiler;

pub use compiler::Compiler;
pub use error::GrammarError;
pub use grammar::Grammar;
pub use tools::{CALL_BEGIN, CALL_END, Calls, Tool, ToolUse};
