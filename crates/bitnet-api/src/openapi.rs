//! openapi.json, made of the table that checks requests.

use serde_json::{Map, Value, json};

use crate::fields::{Endpoint, FIELDS, Field, Kind};

/// The description of the API, in OpenAPI 3.1.
#[must_use]
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for endpoint in Endpoint::ALL {
        let (summary, answer) = match endpoint {
            Endpoint::Chat => ("Answers a conversation", "ChatCompletion"),
            Endpoint::Completions => ("Continues prompts", "Completion"),
            Endpoint::Tokenize => ("The tokens of a text or a conversation", "Tokens"),
            Endpoint::Detokenize => ("The text of tokens", "Text"),
            Endpoint::ApplyTemplate => ("The prompt of a conversation", "Text"),
        };
        let mut content = Map::new();
        content.insert(
            "application/json".to_owned(),
            json!({ "schema": reference(answer) }),
        );
        if matches!(endpoint, Endpoint::Chat | Endpoint::Completions) {
            let text = "With stream: events of one JSON object each, then [DONE].";
            let schema = json!({ "schema": { "type": "string", "description": text } });
            content.insert("text/event-stream".to_owned(), schema);
        }
        let body = json!({ "application/json": { "schema": request(endpoint) } });
        let operation = json!({
            "summary": summary,
            "operationId": endpoint.path().trim_start_matches("/v1").trim_matches('/').replace(['/', '-'], "_"),
            "security": [{ "key": [] }],
            "requestBody": { "required": true, "content": body },
            "responses": responses(&Value::Object(content)),
        });
        paths.insert(endpoint.path().to_owned(), json!({ "post": operation }));
    }
    let json = "application/json";
    for (path, summary, kind, needs_key) in [
        ("/v1/models", "The served models", json, true),
        ("/v1/models/{id}", "One of them", json, true),
        ("/props", "Model, template, context and device", json, true),
        ("/slots", "What runs now", json, true),
        ("/health", "Whether requests are taken", json, false),
        ("/readyz", "As /health", json, false),
        ("/livez", "Whether the process should live", json, false),
        ("/version", "The program's version", json, false),
        ("/openapi.json", "This description", json, false),
        ("/metrics", "Counters for Prometheus", "text/plain", false),
    ] {
        let content = json!({ kind: {} });
        let mut operation = json!({ "summary": summary, "responses": responses(&content) });
        if needs_key {
            operation["security"] = json!([{ "key": [] }]);
        }
        if path.ends_with("{id}") {
            let schema = json!({ "type": "string" });
            operation["parameters"] =
                json!([{ "name": "id", "in": "path", "required": true, "schema": schema }]);
        }
        paths.insert(path.to_owned(), json!({ "get": operation }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "bitnet",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API for BitNet b1.58 models. Fields that are not listed are ignored; null is as if a field were absent.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn responses(content: &Value) -> Value {
    let error = json!({ "application/json": { "schema": reference("Error") } });
    json!({
        "200": { "description": "The answer", "content": content },
        "default": { "description": "What is wrong", "content": error },
    })
}

/// The body of a request.
fn request(endpoint: Endpoint) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in FIELDS.iter().filter(|field| field.on.contains(&endpoint)) {
        properties.insert(field.name.to_owned(), property(field));
        if field.is_required {
            required.push(field.name);
        }
    }
    let mut schema = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn property(field: &Field) -> Value {
    let mut schema = schema(field.kind);
    if !field.is_required && !matches!(field.kind, Kind::Ignored) {
        // null is as if it were absent.
        schema = json!({ "anyOf": [schema, { "type": "null" }] });
    }
    schema["description"] = json!(field.text);
    schema
}

fn schema(kind: Kind) -> Value {
    let text = || json!({ "type": "string" });
    let id = || json!({ "type": "integer", "minimum": 0 });
    let list = |items: Value| json!({ "type": "array", "items": items });
    match kind {
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Number { low, high, is_open } => {
            let bound = if is_open { "exclusiveMinimum" } else { "minimum" };
            json!({ "type": "number", bound: low, "maximum": high })
        }
        Kind::Whole { low, high } => {
            let mut schema = json!({ "type": "integer" });
            // Ranges of 64 bits are what every number has.
            if let Ok(low) = i32::try_from(low) {
                schema["minimum"] = json!(low);
            }
            if let Ok(high) = i32::try_from(high) {
                schema["maximum"] = json!(high);
            }
            schema
        }
        Kind::Text => text(),
        Kind::Stops => {
            let stop = json!({ "type": "string", "minLength": 1, "maxLength": 256 });
            json!({ "anyOf": [stop, { "type": "array", "items": stop, "maxItems": 16 }] })
        }
        Kind::Ids => list(id()),
        Kind::Bias => {
            let value = json!({ "type": "number", "minimum": -100, "maximum": 100 });
            json!({ "type": "object", "additionalProperties": value })
        }
        Kind::Messages => json!({ "type": "array", "minItems": 1, "items": reference("Message") }),
        Kind::Prompt => json!({ "anyOf": [text(), list(text()), list(id()), list(list(id()))] }),
        Kind::Tools => list(reference("Tool")),
        Kind::ToolChoice => {
            let names = json!({ "enum": ["none", "auto", "required"] });
            json!({ "anyOf": [names, { "type": "object" }] })
        }
        Kind::ResponseFormat => reference("ResponseFormat"),
        Kind::Structured => reference("StructuredOutputs"),
        Kind::StreamOptions => {
            let flag = json!({ "type": "boolean" });
            let fields = json!({ "include_usage": flag, "continuous_usage_stats": flag });
            json!({ "type": "object", "properties": fields })
        }
        Kind::Schema => json!({ "anyOf": [{ "type": "object" }, text()] }),
        Kind::Texts => list(text()),
        Kind::Object => json!({ "type": "object" }),
        Kind::Ignored => json!({}),
        Kind::Refused(why) => json!({ "not": {}, "$comment": why }),
    }
}

/// What the paths share.
fn schemas() -> Value {
    let text = json!({ "type": "string" });
    let nullable = json!({ "type": ["string", "null"] });
    let whole = json!({ "type": "integer" });
    let list = |items: Value| json!({ "type": "array", "items": items });
    let object = |properties: Value| json!({ "type": "object", "properties": properties });
    let function = object(json!({ "name": text, "arguments": text }));
    let call = object(json!({ "id": text, "type": { "const": "function" }, "function": function }));
    let part = object(json!({ "type": { "const": "text" }, "text": text }));
    let reason = json!({ "enum": ["stop", "length", "tool_calls", null] });
    let said = object(json!({
        "role": { "const": "assistant" }, "content": nullable, "refusal": { "type": "null" }, "tool_calls": list(call.clone()),
    }));
    let answer = |choice: Value| {
        object(json!({
            "id": text, "object": text, "created": whole, "model": text, "system_fingerprint": text,
            "choices": list(choice), "usage": reference("Usage"),
        }))
    };
    let choice = |name: &str, content: Value| {
        let logprobs = json!({ "type": ["object", "null"] });
        object(json!({ "index": whole, name: content, "logprobs": logprobs, "finish_reason": reason }))
    };
    json!({
        "Error": object(json!({ "error": object(json!({
            "message": text, "type": text, "param": nullable, "code": nullable, "n_prompt_tokens": whole, "n_ctx": whole,
        })) })),
        "Message": {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": { "enum": ["system", "developer", "user", "assistant", "tool"] },
                "content": { "anyOf": [nullable, list(part)] },
                "name": nullable,
                "tool_calls": list(call),
                "tool_call_id": nullable,
            },
        },
        "Tool": {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": { "const": "function" },
                "function": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": { "type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$" },
                        "description": text, "parameters": { "type": "object" }, "strict": { "type": "boolean" },
                    },
                },
            },
        },
        "ResponseFormat": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": { "enum": ["text", "json_object", "json_schema"] },
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": { "name": text, "schema": { "type": "object" }, "strict": { "type": "boolean" } },
                },
            },
        },
        "StructuredOutputs": object(json!({
            "json": { "anyOf": [{ "type": "object" }, text] }, "regex": text, "choice": list(text.clone()), "grammar": text,
        })),
        "Usage": object(json!({
            "prompt_tokens": whole, "completion_tokens": whole, "total_tokens": whole,
            "prompt_tokens_details": object(json!({ "cached_tokens": whole })),
        })),
        "ChatCompletion": answer(choice("message", said)),
        "Completion": answer(choice("text", text.clone())),
        "Tokens": object(json!({ "tokens": list(json!({})), "count": whole, "max_model_len": whole })),
        "Text": object(json!({ "prompt": text, "content": text })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each `$ref` inside of `value` must lead somewhere.
    fn check(value: &Value, root: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| check(item, root)),
            Value::Object(fields) => {
                if let Some(Value::String(path)) = fields.get("$ref") {
                    assert!(root.pointer(path.trim_start_matches('#')).is_some(), "{path}");
                }
                fields.values().for_each(|value| check(value, root));
            }
            _ => {}
        }
    }

    #[test]
    fn every_field_is_described_and_every_reference_leads_somewhere() {
        let document = openapi();
        check(&document, &document);
        for field in FIELDS {
            for endpoint in field.on {
                let schema = &document["paths"][endpoint.path()]["post"]["requestBody"]["content"]["application/json"]
                    ["schema"];
                assert_eq!(
                    schema["properties"][field.name]["description"], field.text,
                    "{}",
                    field.name
                );
            }
        }
    }
}
