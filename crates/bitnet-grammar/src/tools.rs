//! Calls of tools: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`, the form of Hermes.

use serde_json::{Value, json};

use crate::cost::Budget;
use crate::error::GrammarError;
use crate::json;

/// What stands before a call.
pub const CALL_BEGIN: &str = "<tool_call>";
/// What stands after a call.
pub const CALL_END: &str = "</tool_call>";

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments; without one it takes none.
    pub parameters: Option<Value>,
}

/// Whether tools are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolUse {
    /// The answer is text, or calls, or text and then calls, as the model chooses.
    Auto,
    /// The answer is a call and nothing else.
    Required,
    /// The answer is text, and no call begins in it.
    Forbidden,
}

/// The calls that an answer may have.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// The tools that may be called; a named one stands here alone.
    pub tools: Vec<Tool>,
    /// Whether they are.
    pub choice: ToolUse,
    /// Whether one answer may have several calls.
    pub parallel: bool,
}

/// Text without a call.
const PLAIN: &str = r"/(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/";

/// The calls as a grammar in Lark's notation; with a schema, an answer that is no call obeys that.
pub(crate) fn lark(calls: &Calls, schema: Option<&Value>) -> Result<String, GrammarError> {
    if calls.choice == ToolUse::Forbidden && schema.is_none() {
        return Ok(format!("start: TEXT\nTEXT: {PLAIN}\n"));
    }
    if calls.tools.is_empty() {
        return Err(GrammarError::new("there are no tools to call"));
    }
    let mut budget = Budget::default();
    let start = match (schema, calls.choice) {
        (Some(_), _) => "json | BEGIN",
        (None, ToolUse::Required) => "BEGIN",
        (None, _) => "TEXT | lead",
    };
    let more = if calls.parallel { " (NEXT call)*" } else { "" };
    let mut text = format!("start: {start} call{more}\n");
    match (schema, calls.choice) {
        (Some(schema), _) => {
            let schema = json::prepared(schema, &mut budget)?;
            text.push_str(&format!("BEGIN: \"<tool_call>\"\njson: %json {schema}\n"));
        }
        (None, ToolUse::Required) => text.push_str("BEGIN: \"<tool_call>\"\n"),
        // The shortest text that ends with it: what follows the first one is a call.
        (None, _) => text.push_str(&format!("lead[lazy]: /(?s:.*)<tool_call>/\nTEXT: {PLAIN}\n")),
    }
    text.push_str("NEXT: /\\n?<tool_call>/\nSPACE: /[ \\n]?/\nTAIL: SPACE \"}\" SPACE \"</tool_call>\"\n");
    let all: Vec<String> = (0..calls.tools.len()).map(|i| format!("call_{i}")).collect();
    text.push_str(&format!("call: {}\n", all.join(" | ")));
    for (i, tool) in calls.tools.iter().enumerate() {
        let name = quoted(&quoted(&tool.name));
        let none = json!({"type": "object", "properties": {}, "additionalProperties": false});
        let parameters = json::prepared(tool.parameters.as_ref().unwrap_or(&none), &mut budget)
            .map_err(|error| GrammarError::new(format!("the parameters of {:?}: {error}", tool.name)))?;
        text.push_str(&format!(
            "call_{i}: HEAD_{i} arguments_{i} TAIL\n\
             HEAD_{i}: SPACE \"{{\" SPACE \"\\\"name\\\"\" SPACE \":\" SPACE {name} SPACE \",\" SPACE \"\\\"arguments\\\"\" SPACE \":\" SPACE\n\
             arguments_{i}: %json {parameters}\n"
        ));
    }
    Ok(text)
}

/// A text as a string of JSON, which is a string of Lark too.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
