//! Errors as OpenAI's API gives them: one object, always JSON.

use bitnet_model::Error;
use serde_json::{Map, Value, json};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP's status.
    pub status: u16,
    /// What is wrong, what was expected and what to do.
    pub message: String,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// The field at fault, such as `messages[2].content`.
    pub param: Option<String>,
    /// A name for programs.
    pub code: Option<&'static str>,
    /// Tokens of a prompt that does not fit, and tokens that would.
    pub size: Option<(usize, usize)>,
}

const INVALID: &str = "invalid_request_error";

impl ApiError {
    /// An error of any kind.
    #[must_use]
    pub fn new(
        status: u16,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code,
            size: None,
        }
    }

    /// 400: the field `param` is missing, of a wrong type, out of range, or contradicts another.
    #[must_use]
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(400, INVALID, None, message)
        }
    }

    /// 400: the body is no JSON object.
    #[must_use]
    pub fn not_json(message: impl Into<String>) -> Self {
        Self::new(400, INVALID, Some("invalid_json"), message)
    }

    /// 400: a prompt of `needed` tokens, where `have` fit.
    #[must_use]
    pub fn context(param: Option<&str>, needed: usize, have: usize) -> Self {
        let message = format!(
            "the prompt has {needed} tokens and the context holds {have}; shorten the prompt, \
             or serve the model with a longer context"
        );
        Self {
            param: param.map(str::to_owned),
            size: Some((needed, have)),
            ..Self::new(400, INVALID, Some("context_length_exceeded"), message)
        }
    }

    /// 400: a schema, regular expression or grammar that does not compile.
    #[must_use]
    pub fn schema(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: Some("invalid_schema"),
            ..Self::invalid(param, message)
        }
    }

    /// 401: no key, or a wrong one. The answer needs `WWW-Authenticate: Bearer`.
    #[must_use]
    pub fn key() -> Self {
        let message = "the API key is missing or wrong; send it as Authorization: Bearer KEY";
        Self::new(401, INVALID, Some("invalid_api_key"), message)
    }

    /// 404: a model that is not served.
    #[must_use]
    pub fn model(asked: &str, served: &[String]) -> Self {
        let message = format!(
            "the model {:?} does not exist; this server has {}",
            brief(asked),
            served.join(", ")
        );
        Self {
            param: Some("model".to_owned()),
            ..Self::new(404, INVALID, Some("model_not_found"), message)
        }
    }

    /// 404: a path that does not exist.
    #[must_use]
    pub fn path(path: &str) -> Self {
        let message = format!(
            "{} does not exist here; /openapi.json lists what does",
            brief(path)
        );
        Self::new(404, INVALID, Some("not_found"), message)
    }

    /// 405: the answer needs `Allow` with `allowed`.
    #[must_use]
    pub fn method(method: &str, allowed: &str) -> Self {
        let message = format!("{} is not allowed here; use {allowed}", brief(method));
        Self::new(405, INVALID, Some("method_not_allowed"), message)
    }

    /// 413: a body of more than `limit` bytes.
    #[must_use]
    pub fn body_size(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::new(413, INVALID, Some("body_too_large"), message)
    }

    /// 415: a body that is not declared as JSON.
    #[must_use]
    pub fn body_type() -> Self {
        let message = "the body must have the header Content-Type: application/json";
        Self::new(415, INVALID, Some("unsupported_media_type"), message)
    }

    /// 415: a body that is compressed.
    #[must_use]
    pub fn body_encoding(encoding: &str) -> Self {
        let message = format!(
            "the body has the header Content-Encoding: {encoding}; send it as it is, without that header"
        );
        Self::new(415, INVALID, Some("unsupported_media_type"), message)
    }

    /// 431: headers that are too large.
    #[must_use]
    pub fn header_size(limit: usize) -> Self {
        let message = format!("the headers are larger than {limit} bytes");
        Self::new(431, INVALID, Some("headers_too_large"), message)
    }

    /// 429: as many wait as may. The answer needs `Retry-After`.
    #[must_use]
    pub fn queue_full() -> Self {
        let message = "too many requests wait; try again after the seconds of Retry-After";
        Self::new(429, "rate_limit_error", Some("queue_full"), message)
    }

    /// 429: its turn did not come in time. The answer needs `Retry-After`.
    #[must_use]
    pub fn queue_timeout(seconds: u64) -> Self {
        let message = format!("the request has waited for its turn for {seconds} s; try again later");
        Self::new(429, "rate_limit_error", Some("queue_timeout"), message)
    }

    /// 503: the model is being loaded. The answer needs `Retry-After`.
    #[must_use]
    pub fn loading() -> Self {
        Self::new(
            503,
            "unavailable_error",
            Some("loading"),
            "the model is being loaded; try again soon",
        )
    }

    /// 503: the server is ending. The answer needs `Retry-After`.
    #[must_use]
    pub fn shutting_down() -> Self {
        Self::new(
            503,
            "unavailable_error",
            Some("shutting_down"),
            "the server is shutting down; try another one",
        )
    }

    /// 504: no answer in time.
    #[must_use]
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("the answer was not begun within {seconds} s");
        Self::new(504, "timeout_error", Some("timeout"), message)
    }

    /// 501: something that is known and not built.
    #[must_use]
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self::new(501, "not_supported_error", Some("not_supported"), message)
    }

    /// 500: a bug or a device's failure, of which a client learns the request's name alone.
    #[must_use]
    pub fn internal(request_id: &str) -> Self {
        let message = format!("request {request_id} failed inside the server; its log has more");
        Self::new(500, "server_error", Some("internal"), message)
    }

    /// What `error` of a prompt or a request means, with the field that it is about.
    #[must_use]
    pub fn of(error: &Error, param: &str) -> Self {
        match error {
            Error::ContextFull { needed, have } => Self::context(Some(param), *needed, *have),
            Error::Request(message) => Self::invalid(param, message.clone()),
            // What the tokenizer says of a text names its file, which is nobody else's business.
            Error::Invalid { message, .. } | Error::Unsupported { message, .. } => {
                Self::invalid(param, message.clone())
            }
            _ => Self::from(error),
        }
    }

    /// The error object.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut error = Map::new();
        error.insert("message".to_owned(), json!(self.message));
        error.insert("type".to_owned(), json!(self.kind));
        error.insert("param".to_owned(), json!(self.param));
        error.insert("code".to_owned(), json!(self.code));
        if let Some((needed, have)) = self.size {
            error.insert("n_prompt_tokens".to_owned(), json!(needed));
            error.insert("n_ctx".to_owned(), json!(have));
        }
        json!({ "error": error })
    }
}

impl From<&Error> for ApiError {
    fn from(error: &Error) -> Self {
        match error {
            Error::ContextFull { needed, have } => Self::context(None, *needed, *have),
            Error::Request(message) => Self::new(400, INVALID, None, message.clone()),
            // Paths and what devices say stay in the log.
            _ => Self::new(
                500,
                "server_error",
                Some("internal"),
                "the model failed on this request; the server's log has more",
            ),
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

/// The beginning of what a client sent: an error repeats no megabytes, and no control characters.
pub(crate) fn brief(text: &str) -> String {
    const MOST: usize = 60;
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == MOST {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A value as errors show it.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", brief(text)),
        Value::Array(items) if items.len() > 8 => format!("a list of {} items", items.len()),
        Value::Object(fields) if fields.len() > 8 => format!("an object of {} fields", fields.len()),
        // At most 8 of each level, and no more than its first characters are shown; long texts inside are cut before.
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(inner).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{:?}: {}", brief(name), inner(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// A value inside of one that is shown.
fn inner(value: &Value) -> String {
    match value {
        Value::Array(items) if items.is_empty() => "[]".to_owned(),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Array(_) => "[…]".to_owned(),
        Value::Object(_) => "{…}".to_owned(),
        other => shown(other),
    }
}
