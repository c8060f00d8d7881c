//! Conversations: messages as OpenAI has them, to the text that the model's template makes of them.

use bitnet_grammar::{CALL_BEGIN, CALL_END};
use bitnet_model::{ChatTemplate, Error};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::served::Served;
use crate::tools::{Toolbox, spaced};

/// One message, checked.
#[derive(Clone, Debug, PartialEq)]
struct Message {
    role: &'static str,
    /// `None` for an assistant that called and said nothing.
    content: Option<String>,
    name: Option<String>,
    /// Name and arguments of each call, and its id.
    calls: Vec<Call>,
    /// Which call a tool answers.
    answers: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Call {
    id: Option<String>,
    name: String,
    /// JSON, or the text that the client sent in its place.
    arguments: Value,
}

/// The prompt of the conversation in `fields`, as text. `tools` is what the model is told of.
pub(crate) fn render(served: &Served, fields: &Fields, tools: Option<&Toolbox>) -> Result<String, ApiError> {
    let template = served.chat_template.as_ref().ok_or_else(|| {
        ApiError::invalid(
            "messages",
            "the model has no chat template: send a prompt to /v1/completions",
        )
    })?;
    let messages = read(fields)?;
    let continues = fields.is_set("continue_final_message");
    let generates = fields.flag("add_generation_prompt").unwrap_or(!continues);
    if continues && generates {
        return Err(ApiError::invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt exclude each other",
        ));
    }
    let last = messages.last();
    let unfinished = match last.filter(|_| continues) {
        None => None,
        Some(Message {
            role: "assistant",
            content: Some(text),
            calls,
            ..
        }) if calls.is_empty() => Some(text.clone()),
        Some(_) => {
            return Err(ApiError::invalid(
                "continue_final_message",
                "only a last message of the assistant, with a text, can be continued",
            ));
        }
    };
    let knows_tools = template.knows_tools();
    let tools = tools.filter(|tools| tools.is_shown());
    let mut variables = match fields.get("chat_template_kwargs") {
        Some(Value::Object(given)) => given.clone(),
        _ => Map::new(),
    };
    let messages: Vec<Value> = if knows_tools {
        messages.iter().map(Message::as_is).collect()
    } else {
        in_words(&messages, tools)
    };
    variables.insert("messages".to_owned(), Value::Array(messages));
    variables.insert("add_generation_prompt".to_owned(), json!(generates));
    variables.insert(
        "tools".to_owned(),
        match tools.filter(|_| knows_tools) {
            Some(tools) => tools.tools.iter().map(|tool| tool.described.clone()).collect(),
            None => Value::Null,
        },
    );
    let text = rendered(template, variables)?;
    match unfinished {
        Some(last) => cut_after(text, &last),
        None => Ok(text),
    }
}

fn rendered(template: &ChatTemplate, variables: Map<String, Value>) -> Result<String, ApiError> {
    template.render_with(variables).map_err(|e| match e {
        Error::Request(message) => ApiError::invalid("messages", message),
        other => ApiError::from(&other),
    })
}

/// A rendered conversation up to the end of its last message, which the template may have trimmed.
fn cut_after(mut text: String, last: &str) -> Result<String, ApiError> {
    let trimmed = last.trim();
    let at = text.rfind(trimmed).ok_or_else(|| {
        ApiError::invalid(
            "continue_final_message",
            "the chat template does not show the last message as it is, so it cannot be continued",
        )
    })?;
    let whole = last.trim_start();
    let kept = if text[at..].starts_with(whole) {
        whole
    } else {
        trimmed
    };
    text.truncate(at + kept.len());
    Ok(text)
}

/// The messages of a request.
fn read(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let list = fields.get("messages").and_then(Value::as_array);
    let list = list.map_or(&[][..], Vec::as_slice);
    list.iter()
        .enumerate()
        .map(|(i, message)| one(i, message))
        .collect()
}

fn one(i: usize, message: &Value) -> Result<Message, ApiError> {
    let at = |field: &str| format!("messages[{i}]{field}");
    let wrong = |field: &str, what: &str| {
        Err(ApiError::invalid(
            at(field),
            format!("{}: {what} is expected", at(field)),
        ))
    };
    let Some(message) = message.as_object() else {
        return wrong("", "an object with role and content");
    };
    let given = |name: &str| message.get(name).filter(|value| !value.is_null());
    let role = match given("role").and_then(Value::as_str) {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        _ => return wrong(".role", "system, developer, user, assistant or tool"),
    };
    let text = |name: &str| match given(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => wrong(&format!(".{name}"), "a text").map(|_: Message| None),
    };
    let calls = match given("tool_calls") {
        Some(Value::Array(list)) if role == "assistant" => list
            .iter()
            .enumerate()
            .map(|(j, value)| call(value, &at(&format!(".tool_calls[{j}]"))))
            .collect::<Result<Vec<_>, _>>()?,
        Some(Value::Array(list)) if list.is_empty() => Vec::new(),
        Some(Value::Array(_)) => {
            return wrong(".tool_calls", "no calls in a message that is not the assistant's");
        }
        Some(_) => return wrong(".tool_calls", "a list of calls"),
        None => Vec::new(),
    };
    let content = match given("content") {
        None if !calls.is_empty() => None,
        None => return wrong(".content", "a text, or a list of parts of type text,"),
        Some(content) => Some(content_text(content, &at(".content"))?),
    };
    Ok(Message {
        role,
        content,
        name: text("name")?,
        calls,
        answers: text("tool_call_id")?,
    })
}

/// The text of a message, whose parts are joined.
fn content_text(content: &Value, at: &str) -> Result<String, ApiError> {
    let wrong = |what: &str| Err(ApiError::invalid(at, format!("{at}: {what}")));
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let mut joined = String::new();
            for part in parts {
                match (part.get("type").and_then(Value::as_str), part.get("text")) {
                    (Some("text"), Some(Value::String(text))) => joined.push_str(text),
                    (Some("text"), _) => return wrong("a part of type text without a text"),
                    (Some(_), _) => return wrong("this model reads text only; parts must have type text"),
                    (None, _) => return wrong("parts must be objects with type and text"),
                }
            }
            Ok(joined)
        }
        _ => wrong("a text, or a list of parts of type text, is expected"),
    }
}

fn call(value: &Value, at: &str) -> Result<Call, ApiError> {
    let wrong = |field: &str, what: &str| {
        Err(ApiError::invalid(
            format!("{at}{field}"),
            format!("{at}{field}: {what} is expected"),
        ))
    };
    let Some(function) = value.get("function").and_then(Value::as_object) else {
        return wrong(".function", "an object with name and arguments");
    };
    let Some(name) = function.get("name").and_then(Value::as_str) else {
        return wrong(".function.name", "a text");
    };
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => json!({}),
        // A model that was cut off leaves half an object; it goes back as it came.
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Some(Value::Object(arguments)) => json!(arguments),
        Some(_) => return wrong(".function.arguments", "a text that is JSON"),
    };
    Ok(Call {
        id: value.get("id").and_then(Value::as_str).map(str::to_owned),
        name: name.to_owned(),
        arguments,
    })
}

impl Message {
    /// For a template that knows tools: as transformers has it, arguments as an object.
    fn as_is(&self) -> Value {
        let mut out = Map::new();
        out.insert("role".to_owned(), json!(self.role));
        out.insert("content".to_owned(), json!(self.content));
        for (name, value) in [("name", &self.name), ("tool_call_id", &self.answers)] {
            if let Some(value) = value {
                out.insert(name.to_owned(), json!(value));
            }
        }
        if !self.calls.is_empty() {
            let calls: Vec<Value> = self
                .calls
                .iter()
                .map(|call| {
                    let function = json!({ "name": call.name, "arguments": call.arguments });
                    json!({ "id": call.id, "type": "function", "function": function })
                })
                .collect();
            out.insert("tool_calls".to_owned(), Value::Array(calls));
        }
        Value::Object(out)
    }

    /// For other templates: calls are part of the text.
    fn text(&self) -> String {
        let mut text = self.content.clone().unwrap_or_default();
        for call in &self.calls {
            if !text.is_empty() {
                text.push('\n');
            }
            let json = spaced(&json!({ "name": call.name, "arguments": call.arguments }));
            text.push_str(&format!("{CALL_BEGIN}\n{json}\n{CALL_END}"));
        }
        text
    }
}

/// A conversation for a template that knows no tools: they are in the system message, calls in the assistant's, and results in the
/// user's, those that follow each other in one.
fn in_words(messages: &[Message], tools: Option<&Toolbox>) -> Vec<Value> {
    let mut out: Vec<(&str, String)> = Vec::new();
    let mut after_result = false;
    for message in messages {
        let is_result = message.role == "tool";
        if !is_result {
            out.push((message.role, message.text()));
        } else {
            let result = format!("<tool_response>\n{}\n</tool_response>", message.text());
            match out.last_mut().filter(|_| after_result) {
                Some((_, text)) => {
                    text.push('\n');
                    text.push_str(&result);
                }
                None => out.push(("user", result)),
            }
        }
        after_result = is_result;
    }
    if let Some(tools) = tools {
        let instructions = tools.instructions();
        match out.first_mut() {
            Some(("system", text)) if text.is_empty() => *text = instructions,
            Some(("system", text)) => *text = format!("{text}\n\n{instructions}"),
            _ => out.insert(0, ("system", instructions)),
        }
    }
    out.into_iter()
        .map(|(role, content)| json!({ "role": role, "content": content }))
        .collect()
}
