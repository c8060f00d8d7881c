//! What an answer must be: `response_format`, `structured_outputs` and its other names, and calls of tools, as a grammar.

use bitnet_grammar::{Calls as CallGrammar, Grammar, Tool as Callable, ToolUse};
use bitnet_model::schedule::Mask;
use serde_json::{Map, Value, json};

use crate::error::{ApiError, shown};
use crate::fields::Fields;
use crate::served::Served;
use crate::tools::{Calls, Toolbox};

/// A grammar, and the field that asks for it.
type Asked = (Grammar, &'static str);

/// The constraint of a request, compiled; `None` where it has none.
pub(crate) fn mask(
    served: &Served,
    fields: &Fields,
    tools: &Toolbox,
) -> Result<Option<Box<dyn Mask>>, ApiError> {
    let Some((grammar, param)) = grammar(fields, tools)? else {
        return Ok(None);
    };
    let compiler = served.compiler.as_ref().ok_or_else(|| {
        ApiError::invalid(
            param,
            "the model has no tokenizer.json, without which answers cannot be constrained",
        )
    })?;
    let mask = compiler
        .compile(&grammar)
        .map_err(|e| ApiError::schema(param, e.to_string()))?;
    Ok(Some(mask))
}

/// Whether a request has a field that says what its answer must be, whose grammar must be compiled: that can take a good part of a
/// second, where other requests are read within milliseconds.
#[must_use]
pub fn is_constrained(body: &Map<String, Value>) -> bool {
    let names = [
        "response_format",
        "structured_outputs",
        "guided_json",
        "json_schema",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "grammar",
        "tools",
    ];
    names
        .iter()
        .any(|name| body.get(*name).is_some_and(|value| !value.is_null()))
}

fn grammar(fields: &Fields, tools: &Toolbox) -> Result<Option<Asked>, ApiError> {
    let mut asked: Vec<Asked> = Vec::new();
    if let Some(Value::Object(format)) = fields.get("response_format") {
        asked.extend(response_format(format)?.map(|grammar| (grammar, "response_format")));
    }
    if let Some(Value::Object(outputs)) = fields.get("structured_outputs") {
        asked.push((structured_outputs(outputs)?, "structured_outputs"));
    }
    for name in ["guided_json", "json_schema"] {
        if let Some(schema) = fields.get(name) {
            asked.push((Grammar::JsonSchema(schema_of(schema, name)?), name));
        }
    }
    if let Some(regex) = fields.text("guided_regex") {
        asked.push((Grammar::Regex(regex.to_owned()), "guided_regex"));
    }
    if let Some(choices) = fields.get("guided_choice") {
        asked.push((Grammar::Choice(texts(choices)), "guided_choice"));
    }
    for name in ["guided_grammar", "grammar"] {
        // An empty one is none in llama.cpp's clients, which always send the field.
        if let Some(text) = fields.text(name).filter(|text| !text.is_empty()) {
            asked.push((Grammar::from_text(text), name));
        }
    }
    if let [(_, first), (_, second), ..] = asked[..] {
        let message = format!("{first} and {second} both say what the answer must be: send one of them");
        return Err(ApiError::invalid(second, message));
    }
    let own = asked.pop();
    match (tools.calls, own) {
        // The answer is a call, and what a text must be does not matter.
        (Calls::Forced, _) => Ok(Some((Grammar::Calls(calls(tools, ToolUse::Required)), "tools"))),
        // An answer that is no call must be what was asked for.
        (Calls::Free, Some((Grammar::JsonObject, param))) => {
            let object = json!({ "type": "object" });
            Ok(Some((
                Grammar::CallsOrJson(calls(tools, ToolUse::Auto), object),
                param,
            )))
        }
        (Calls::Free, Some((Grammar::JsonSchema(schema), param))) => Ok(Some((
            Grammar::CallsOrJson(calls(tools, ToolUse::Auto), schema),
            param,
        ))),
        (Calls::Free, Some((_, param))) => Err(ApiError::invalid(
            param,
            format!("{param} and tools that may be called exclude each other; a JSON schema goes with them"),
        )),
        (Calls::Free, None) => Ok(Some((Grammar::Calls(calls(tools, ToolUse::Auto)), "tools"))),
        (Calls::Forbidden, None) => Ok(Some((Grammar::Calls(calls(tools, ToolUse::Forbidden)), "tools"))),
        (Calls::Forbidden | Calls::Off, own) => Ok(own),
    }
}

fn calls(tools: &Toolbox, choice: ToolUse) -> CallGrammar {
    let allowed = tools
        .tools
        .iter()
        .filter(|tool| tools.allowed.contains(&tool.name));
    CallGrammar {
        tools: allowed
            .map(|tool| Callable {
                name: tool.name.clone(),
                parameters: Some(tool.parameters.clone()),
            })
            .collect(),
        choice,
        parallel: tools.has_many,
    }
}

fn response_format(format: &Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    let name = "response_format";
    let given = |object: &Map<String, Value>, key: &str| object.get(key).filter(|v| !v.is_null()).cloned();
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        // Some servers take a schema here too.
        Some("json_object") => Ok(Some(match given(format, "schema") {
            Some(schema) => Grammar::JsonSchema(schema_of(&schema, name)?),
            None => Grammar::JsonObject,
        })),
        Some("json_schema") => {
            let inside = format.get("json_schema").and_then(Value::as_object);
            let schema = inside.and_then(|inside| given(inside, "schema"));
            let schema = schema.ok_or_else(|| {
                ApiError::invalid(
                    name,
                    "response_format.json_schema.schema is missing: a JSON schema is expected",
                )
            })?;
            Ok(Some(Grammar::JsonSchema(schema_of(&schema, name)?)))
        }
        _ => {
            let message = format!(
                "response_format.type is {}: text, json_object or json_schema is expected",
                format.get("type").map_or("missing".to_owned(), shown)
            );
            Err(ApiError::invalid(name, message))
        }
    }
}

fn structured_outputs(outputs: &Map<String, Value>) -> Result<Grammar, ApiError> {
    let name = "structured_outputs";
    let given: Vec<(&str, &Value)> = ["json", "regex", "choice", "grammar", "json_object"]
        .into_iter()
        .filter_map(|key| Some((key, outputs.get(key)?)))
        .filter(|(_, value)| !value.is_null() && **value != Value::Bool(false))
        .collect();
    match given[..] {
        [("json", schema)] => Ok(Grammar::JsonSchema(schema_of(schema, name)?)),
        [("regex", Value::String(text))] => Ok(Grammar::Regex(text.clone())),
        [("grammar", Value::String(text))] => Ok(Grammar::from_text(text)),
        [("json_object", Value::Bool(true))] => Ok(Grammar::JsonObject),
        [("choice", choices)] if is_texts(choices) => Ok(Grammar::Choice(texts(choices))),
        [(key, value)] => {
            let what = if key == "choice" {
                "a list of texts"
            } else {
                "a text"
            };
            let message = format!("structured_outputs.{key} is {}: {what} is expected", shown(value));
            Err(ApiError::invalid(name, message))
        }
        _ => Err(ApiError::invalid(
            name,
            format!(
                "structured_outputs has {} of json, regex, choice and grammar: one is expected",
                given.len()
            ),
        )),
    }
}

fn is_texts(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_string))
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A JSON schema, which some clients send as a text.
fn schema_of(value: &Value, param: &str) -> Result<Value, ApiError> {
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(value.clone()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(schema),
            Ok(_) => Err(ApiError::schema(
                param,
                format!("{param}: the schema is no object"),
            )),
            Err(e) => Err(ApiError::schema(
                param,
                format!("{param}: the schema is not JSON: {e}"),
            )),
        },
        other => {
            let message = format!("{param}: the schema is {}: an object is expected", shown(other));
            Err(ApiError::schema(param, message))
        }
    }
}
