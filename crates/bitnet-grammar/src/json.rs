//! JSON schemas: how large they may be, and how what obeys them is written.

use serde_json::{Map, Value, json};

use crate::error::GrammarError;

/// Most bytes of a schema, as JSON without spaces.
pub(crate) const MAX_SCHEMA: usize = 256 << 10;
/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 96;
/// Spaces between the parts of JSON: none, one, or a new line with an indentation. Models that may write any number write nothing else.
const SPACE: &str = r"\x20|\r?\n[\x20\x09]{0,20}";

/// The schema with what the library must be told beside it.
pub(crate) fn prepared(schema: &Value) -> Result<Value, GrammarError> {
    check_size(schema)?;
    let mut map = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err(GrammarError::new("the schema is false, which nothing obeys")),
        other => {
            let kind = match other {
                Value::Null => "null",
                Value::Number(_) => "a number",
                Value::String(_) => "a string",
                _ => "an array",
            };
            return Err(GrammarError::new(format!("a JSON schema is an object, and this is {kind}")));
        }
    };
    // Of the alternatives of `oneOf` the first that fits is written, which is as good as one that excludes the others.
    let options = json!({"whitespace_pattern": SPACE, "coerce_one_of": true});
    map.insert("x-guidance".to_owned(), options);
    Ok(Value::Object(map))
}

/// Refuses what is too large or nested too deeply. It keeps a list of its own, so that no depth can overflow the stack.
fn check_size(schema: &Value) -> Result<(), GrammarError> {
    let mut bytes = 0;
    let mut rest = vec![(schema, 1)];
    while let Some((value, depth)) = rest.pop() {
        if depth > MAX_DEPTH {
            return Err(GrammarError::new(format!("the schema is nested more than {MAX_DEPTH} levels deep")));
        }
        bytes += 2;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(values) => rest.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => {
                bytes += map.keys().map(|key| key.len() + 4).sum::<usize>();
                rest.extend(map.values().map(|value| (value, depth + 1)));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => bytes += 4,
        }
        if bytes > MAX_SCHEMA {
            return Err(GrammarError::new(format!("the schema has more than {MAX_SCHEMA} bytes")));
        }
    }
    Ok(())
}
