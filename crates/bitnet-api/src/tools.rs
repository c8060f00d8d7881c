//! Functions that a model may call: what a request says of them, and the words that tell the model.
//!
//! Templates of BitNet models know no tools, so they are written into the system message, in the form that Hermes models made common:
//!
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"city": "Rome"}}
//! </tool_call>
//! ```
//!
//! A template that looks at `tools` has them as they are, and is trusted to ask for the same form.

use std::io;

use bitnet_grammar::{CALL_BEGIN, CALL_END};
use serde_json::ser::Formatter;
use serde_json::{Map, Value, json};

use crate::error::{ApiError, brief, shown};
use crate::fields::Fields;

/// Most tools of a request, which is OpenAI's number.
const MOST: usize = 128;

/// A function.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// The schema of its arguments.
    pub(crate) parameters: Value,
    /// As the client described it, for the template.
    pub(crate) described: Value,
}

/// Whether the model calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// There is nothing to call.
    Off,
    /// There are tools, and they are not to be called: the model is not told of them, and cannot write the beginning of a call.
    Forbidden,
    /// A text, or calls, as the model chooses.
    Free,
    /// Calls and nothing else.
    Forced,
}

/// The tools of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Toolbox {
    /// What the model is told of.
    pub(crate) tools: Vec<Tool>,
    /// The names that it may call.
    pub(crate) allowed: Vec<String>,
    pub(crate) calls: Calls,
    /// Whether an answer may have several calls.
    pub(crate) has_many: bool,
}

impl Toolbox {
    /// No tools at all.
    pub(crate) fn none() -> Self {
        Self {
            tools: Vec::new(),
            allowed: Vec::new(),
            calls: Calls::Off,
            has_many: false,
        }
    }

    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    pub(crate) fn read(fields: &Fields) -> Result<Self, ApiError> {
        let tools = tools(fields.get("tools"))?;
        let all = || tools.iter().map(|tool| tool.name.clone()).collect();
        let (calls, allowed): (Calls, Vec<String>) = match fields.get("tool_choice") {
            None if tools.is_empty() => (Calls::Off, Vec::new()),
            None => (Calls::Free, all()),
            Some(Value::String(choice)) => match choice.as_str() {
                "none" | "auto" if tools.is_empty() => (Calls::Off, Vec::new()),
                "none" => (Calls::Forbidden, Vec::new()),
                "auto" => (Calls::Free, all()),
                "required" if tools.is_empty() => {
                    return Err(ApiError::invalid(
                        "tool_choice",
                        "tool_choice is required, and there are no tools",
                    ));
                }
                "required" => (Calls::Forced, all()),
                _ => return Err(wrong_choice(choice)),
            },
            Some(choice) => chosen(choice, &tools)?,
        };
        let many = fields.flag("parallel_tool_calls");
        Ok(Self {
            has_many: many.unwrap_or(calls == Calls::Free),
            tools,
            allowed,
            calls,
        })
    }

    /// Whether the model is told of the tools.
    pub(crate) fn is_shown(&self) -> bool {
        matches!(self.calls, Calls::Free | Calls::Forced)
    }

    /// What the system message says of them.
    pub(crate) fn instructions(&self) -> String {
        let mut text =
            "You can call these functions, each described by a line of JSON:\n<tools>\n".to_owned();
        for tool in &self.tools {
            text.push_str(&spaced(&tool.described));
            text.push('\n');
        }
        text.push_str("</tools>\nTo call one, write its name and its arguments as JSON between tags:\n");
        text.push_str(CALL_BEGIN);
        text.push_str("\n{\"name\": \"function name\", \"arguments\": {\"argument\": \"value\"}}\n");
        text.push_str(CALL_END);
        text
    }
}

fn wrong_choice(choice: &str) -> ApiError {
    ApiError::invalid(
        "tool_choice",
        format!(
            "tool_choice is {:?}: \"none\", \"auto\", \"required\" or a function is expected",
            brief(choice)
        ),
    )
}

/// A choice that is an object: one function, or some that are allowed.
fn chosen(choice: &Value, tools: &[Tool]) -> Result<(Calls, Vec<String>), ApiError> {
    let name_of = |value: &Value| -> Result<String, ApiError> {
        let name = value
            .get("function")
            .unwrap_or(value)
            .get("name")
            .and_then(Value::as_str);
        let name = name.ok_or_else(|| {
            ApiError::invalid(
                "tool_choice",
                format!(
                    "tool_choice is {}: {{\"type\": \"function\", \"function\": {{\"name\": ...}}}} is expected",
                    shown(choice)
                ),
            )
        })?;
        if !tools.iter().any(|tool| tool.name == name) {
            let message = format!("tool_choice names {:?}, which is not in tools", brief(name));
            return Err(ApiError::invalid("tool_choice", message));
        }
        Ok(name.to_owned())
    };
    match choice.get("type").and_then(Value::as_str) {
        None | Some("function") => Ok((Calls::Forced, vec![name_of(choice)?])),
        Some("allowed_tools") => {
            // OpenAI nests them; some clients do not.
            let inside = choice.get("allowed_tools").unwrap_or(choice);
            let list = inside.get("tools").and_then(Value::as_array);
            let list = list
                .filter(|list| !list.is_empty() && list.len() <= MOST)
                .ok_or_else(|| {
                    ApiError::invalid(
                        "tool_choice",
                        "tool_choice allows no tools: allowed_tools.tools must list some",
                    )
                })?;
            let calls = match inside.get("mode").and_then(Value::as_str) {
                None | Some("auto") => Calls::Free,
                Some("required") => Calls::Forced,
                Some(mode) => return Err(wrong_choice(mode)),
            };
            Ok((calls, list.iter().map(name_of).collect::<Result<_, _>>()?))
        }
        Some(kind) => Err(wrong_choice(kind)),
    }
}

/// Reads the list of tools.
fn tools(list: Option<&Value>) -> Result<Vec<Tool>, ApiError> {
    let list = list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if list.len() > MOST {
        let message = format!("tools has {} functions: at most {MOST} are allowed", list.len());
        return Err(ApiError::invalid("tools", message));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let tool = tool(i, value)?;
        if tools.iter().any(|other| other.name == tool.name) {
            let message = format!("tools has two functions of the name {:?}", tool.name);
            return Err(ApiError::invalid(format!("tools[{i}].function.name"), message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn tool(i: usize, value: &Value) -> Result<Tool, ApiError> {
    let at = |rest: &str| format!("tools[{i}]{rest}");
    let wrong = |rest: &str, what: &str| Err(ApiError::invalid(at(rest), format!("{} is expected", what)));
    if value.get("type").and_then(Value::as_str) != Some("function") {
        return wrong(".type", "\"function\", the only type of tool that is known,");
    }
    let Some(function) = value.get("function").and_then(Value::as_object) else {
        return wrong(".function", "an object");
    };
    let given = |name: &str| function.get(name).filter(|value| !value.is_null());
    let is_name = |name: &&str| {
        (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    let Some(name) = given("name").and_then(Value::as_str).filter(is_name) else {
        return wrong(".function.name", "a name of 1 to 64 letters, digits, _, - and .");
    };
    if given("description").is_some_and(|value| !value.is_string()) {
        return wrong(".function.description", "a text");
    }
    if given("strict").is_some_and(|value| !value.is_boolean()) {
        return wrong(".function.strict", "true or false");
    }
    let parameters = match given("parameters") {
        None => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
        Some(Value::Object(schema)) => Value::Object(schema.clone()),
        Some(_) => return wrong(".function.parameters", "a JSON schema, an object,"),
    };
    let mut described = Map::new();
    described.insert("name".to_owned(), json!(name));
    if let Some(description) = given("description") {
        described.insert("description".to_owned(), description.clone());
    }
    described.insert("parameters".to_owned(), parameters.clone());
    Ok(Tool {
        name: name.to_owned(),
        parameters,
        described: json!({ "type": "function", "function": described }),
    })
}

/// JSON with a space behind each colon and comma, as Python writes it and models read it.
pub(crate) fn spaced(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    // A value in memory can always be written to memory; and what is written is UTF-8.
    serde::Serialize::serialize(value, &mut serializer).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
