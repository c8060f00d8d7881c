//! One request as JSON: OpenAI's chat completions and completions, with the fields that vLLM adds.

use bitnet_model::schedule::Request;
use bitnet_model::{ChatTemplate, Error, GenerateOptions, Message, Prompt, Tokenizer};
use serde_json::{Map, Value, json};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl Refusal {
    fn new(param: Option<&str>, message: impl Into<String>) -> Self {
        Self {
            status: 400,
            message: message.into(),
            kind: "invalid_request_error",
            param: param.map(str::to_owned),
            code: None,
        }
    }

    pub(super) fn not_json(error: &serde_json::Error) -> Self {
        Self {
            code: Some("invalid_json"),
            ..Self::new(None, format!("the line is not JSON: {error}"))
        }
    }

    /// For what the scheduler says.
    pub(super) fn of(error: &Error) -> Self {
        let refusal = Self::new(None, error.to_string());
        match error {
            Error::ContextFull { .. } => Self {
                code: Some("context_length_exceeded"),
                ..refusal
            },
            Error::Device(_) | Error::OutOfPages { .. } => Self {
                status: 500,
                kind: "server_error",
                code: Some("internal"),
                ..refusal
            },
            _ => refusal,
        }
    }

    /// OpenAI's error object.
    pub(super) fn body(&self) -> Value {
        json!({
            "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code }
        })
    }
}

/// A request that was read.
pub(super) struct Ask {
    pub(super) request: Request,
    pub(super) is_chat: bool,
}

/// Fields that ask for what is not done here, unless they have the value that asks for nothing.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("stream", &["false"]),
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("echo", &["false"]),
    ("suffix", &["\"\""]),
];

impl Ask {
    /// Reads a line of OpenAI's batch format, or its body alone.
    pub(super) fn read(
        line: &Value,
        defaults: &GenerateOptions,
        tokenizer: Option<&Tokenizer>,
        chat: Option<&ChatTemplate>,
    ) -> Result<Self, Refusal> {
        let object = |value: &Value, name| match value {
            Value::Object(object) => Ok(object.clone()),
            _ => Err(Refusal::new(name, "an object is expected")),
        };
        let line = object(line, None)?;
        let (body, url) = match line.get("body") {
            Some(body) => (
                object(body, Some("body"))?,
                line.get("url").and_then(Value::as_str),
            ),
            None => (line, None),
        };
        let has_messages = body.contains_key("messages");
        let is_chat = match url {
            None => has_messages,
            Some("/v1/chat/completions") => true,
            Some("/v1/completions") => false,
            Some(url) => {
                return Err(Refusal::new(
                    Some("url"),
                    format!("{url} is not answered here; /v1/chat/completions and /v1/completions are"),
                ));
            }
        };
        for (name, nothing) in UNSUPPORTED {
            let value = body.get(*name).filter(|value| !value.is_null());
            if let Some(value) = value.filter(|value| !nothing.contains(&value.to_string().as_str())) {
                return Err(Refusal::new(
                    Some(name),
                    format!("{name} {value} is not supported"),
                ));
            }
        }
        let prompt = prompt(&body, is_chat, tokenizer, chat)?;
        // OpenAI's default for completions in its own format; who gives a prompt alone has the flags.
        let default_max = if url.is_some() && !is_chat {
            Some(16)
        } else {
            defaults.max_tokens
        };
        let mut options = options(&body, defaults)?;
        options.max_tokens = whole(&body, "max_completion_tokens", 0, usize::MAX)?
            .or(whole(&body, "max_tokens", 0, usize::MAX)?)
            .or(default_max);
        let mut request = Request::new(prompt, options);
        request.n = whole(&body, "n", 1, 128)?.unwrap_or(1);
        request.logprobs = logprobs(&body, is_chat)?;
        Ok(Self { request, is_chat })
    }
}

fn prompt(
    body: &Map<String, Value>,
    is_chat: bool,
    tokenizer: Option<&Tokenizer>,
    chat: Option<&ChatTemplate>,
) -> Result<Vec<u32>, Refusal> {
    let refused = |e: Error| Refusal::new(Some(if is_chat { "messages" } else { "prompt" }), e.to_string());
    if is_chat {
        let messages = messages(body.get("messages"))?;
        return Prompt::Chat(&messages).ids(tokenizer, chat).map_err(refused);
    }
    match body.get("prompt") {
        Some(Value::String(text)) => Prompt::Text(text).ids(tokenizer, chat).map_err(refused),
        Some(Value::Array(ids)) if !ids.is_empty() => {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
            ids.ok_or_else(|| Refusal::new(Some("prompt"), "a text or a list of token ids is expected"))
        }
        Some(_) => Err(Refusal::new(
            Some("prompt"),
            "a text or a list of token ids is expected",
        )),
        None => Err(Refusal::new(
            Some("prompt"),
            "there is neither a prompt nor messages",
        )),
    }
}

fn messages(value: Option<&Value>) -> Result<Vec<Message>, Refusal> {
    let list = value.and_then(Value::as_array).filter(|list| !list.is_empty());
    let list =
        list.ok_or_else(|| Refusal::new(Some("messages"), "a list of at least one message is expected"))?;
    let message = |(i, message): (usize, &Value)| {
        let role = message.get("role").and_then(Value::as_str);
        let role = match role {
            Some(role @ ("system" | "user" | "assistant")) => role,
            Some("developer") => "system",
            _ => {
                return Err(Refusal::new(
                    Some(&format!("messages[{i}].role")),
                    "system, developer, user or assistant is expected",
                ));
            }
        };
        let content = content(message.get("content")).ok_or_else(|| {
            Refusal::new(
                Some(&format!("messages[{i}].content")),
                "a text, or a list of parts of type text, is expected: this model reads text only",
            )
        })?;
        Ok(match role {
            "system" => Message::system(content),
            "user" => Message::user(content),
            _ => Message::assistant(content),
        })
    };
    list.iter().enumerate().map(message).collect()
}

/// The text of a message, whose parts are joined.
fn content(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part.get("type")?.as_str()? {
                "text" => part.get("text")?.as_str(),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn options(body: &Map<String, Value>, defaults: &GenerateOptions) -> Result<GenerateOptions, Refusal> {
    let mut options = defaults.clone();
    let sampling = &mut options.sampling;
    let set = |name: &str, field: &mut f32, low: f64, high: f64| {
        number(body, name, low, high).map(|given| given.into_iter().for_each(|x| *field = x as f32))
    };
    set("temperature", &mut sampling.temperature, 0.0, 100.0)?;
    set("top_p", &mut sampling.top_p, 0.0, 1.0)?;
    set("min_p", &mut sampling.min_p, 0.0, 1.0)?;
    set("repetition_penalty", &mut sampling.repeat_penalty, 1e-6, 1e6)?;
    let counts = ["presence_penalty", "frequency_penalty"].map(|name| body.contains_key(name));
    set("presence_penalty", &mut sampling.presence_penalty, -2.0, 2.0)?;
    set("frequency_penalty", &mut sampling.frequency_penalty, -2.0, 2.0)?;
    if counts.contains(&true) || body.contains_key("repetition_penalty") {
        sampling.repeat_last_n = usize::MAX;
        sampling.penalize_prompt = false;
    }
    if let Some(k) = body.get("top_k").filter(|k| !k.is_null()) {
        sampling.top_k = match k.as_i64() {
            Some(-1) => 0,
            Some(k) if k >= 0 => usize::try_from(k).unwrap_or(usize::MAX),
            _ => return Err(expected("top_k", k, "-1 or 0 (off) or more")),
        };
    }
    if let Some(seed) = body.get("seed").filter(|seed| !seed.is_null()) {
        let signed = seed.as_i64().map(i64::cast_unsigned);
        sampling.seed = seed
            .as_u64()
            .or(signed)
            .ok_or_else(|| expected("seed", seed, "a whole number"))?;
    }
    if let Some(bias) = body.get("logit_bias").filter(|bias| !bias.is_null()) {
        let wrong = || expected("logit_bias", bias, "token ids with numbers from -100 to 100");
        for (id, value) in bias.as_object().ok_or_else(wrong)? {
            let value = value
                .as_f64()
                .filter(|value| (-100.0..=100.0).contains(value))
                .ok_or_else(wrong)?;
            // OpenAI's -100 is a ban.
            let value = if value == -100.0 {
                f32::NEG_INFINITY
            } else {
                value as f32
            };
            sampling
                .logit_bias
                .push((id.parse().map_err(|_| wrong())?, value));
        }
    }
    if let Some(stop) = body.get("stop").filter(|stop| !stop.is_null()) {
        let wrong = || expected("stop", stop, "a text, or up to 16, none empty");
        let one = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        options.stop = match stop {
            Value::Array(list) if list.len() <= 16 => list.iter().map(one).collect(),
            _ => one(stop).map(|text| vec![text]),
        }
        .ok_or_else(wrong)?;
    }
    if let Some(ids) = body.get("stop_token_ids").filter(|ids| !ids.is_null()) {
        let wrong = || expected("stop_token_ids", ids, "a list of token ids");
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        let list = ids.as_array().ok_or_else(wrong)?;
        options.stop_ids = list.iter().map(id).collect::<Option<_>>().ok_or_else(wrong)?;
    }
    options.min_tokens = whole(body, "min_tokens", 0, usize::MAX)?.unwrap_or(options.min_tokens);
    if let Some(ignore) = body.get("ignore_eos").filter(|ignore| !ignore.is_null()) {
        let ignore = ignore.as_bool();
        options.ignore_eos =
            ignore.ok_or_else(|| Refusal::new(Some("ignore_eos"), "true or false is expected"))?;
    }
    Ok(options)
}

/// How many alternatives a request wants beside each token's log-probability; `None` where it wants neither.
fn logprobs(body: &Map<String, Value>, is_chat: bool) -> Result<Option<usize>, Refusal> {
    if !is_chat {
        return whole(body, "logprobs", 0, 20);
    }
    let top = whole(body, "top_logprobs", 0, 20)?;
    match body.get("logprobs").filter(|value| !value.is_null()) {
        None | Some(Value::Bool(false)) if top.is_some() => Err(Refusal::new(
            Some("top_logprobs"),
            "top_logprobs needs logprobs to be true",
        )),
        None | Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(top.unwrap_or(0))),
        Some(_) => Err(Refusal::new(Some("logprobs"), "true or false is expected")),
    }
}

fn expected(name: &str, found: &Value, what: &str) -> Refusal {
    Refusal::new(Some(name), format!("{name} is {found}: {what} is expected"))
}

fn number(body: &Map<String, Value>, name: &str, low: f64, high: f64) -> Result<Option<f64>, Refusal> {
    let Some(value) = body.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    match value.as_f64().filter(|x| (low..=high).contains(x)) {
        Some(x) => Ok(Some(x)),
        None => Err(expected(name, value, &format!("a number from {low} to {high}"))),
    }
}

/// A whole number, which may be written as 8.0.
fn whole(body: &Map<String, Value>, name: &str, low: usize, high: usize) -> Result<Option<usize>, Refusal> {
    let Some(value) = body.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let float = || {
        value
            .as_f64()
            .filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x))
    };
    let n = value.as_u64().or_else(|| float().map(|x| x as u64));
    match n
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| (low..=high).contains(n))
    {
        Some(n) => Ok(Some(n)),
        None => {
            let range = match high {
                usize::MAX => format!("a whole number, {low} or more,"),
                _ => format!("a whole number from {low} to {high}"),
            };
            Err(expected(name, value, &range))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &Value) -> Result<Ask, Refusal> {
        Ask::read(line, &GenerateOptions::default(), None, None)
    }

    #[test]
    fn fields_are_taken_over() {
        let ask = read(&json!({
            "custom_id": "a", "method": "POST", "url": "/v1/completions",
            "body": {
                "prompt": [1, 2], "temperature": 0, "top_k": -1, "seed": -1, "stop_token_ids": [7], "n": 2.0, "logprobs": 3,
                "logit_bias": {"5": -100, "6": 2.5}, "frequency_penalty": 0.5, "min_tokens": 4
            }
        }));
        let request = ask.unwrap_or_else(|refusal| panic!("{refusal:?}")).request;
        let sampling = &request.options.sampling;
        assert_eq!(
            (request.prompt, request.n, request.logprobs),
            (vec![1, 2], 2, Some(3))
        );
        assert_eq!(
            (sampling.temperature, sampling.top_k, sampling.seed),
            (0.0, 0, u64::MAX)
        );
        assert_eq!(sampling.logit_bias, [(5, f32::NEG_INFINITY), (6, 2.5)]);
        assert_eq!(
            (sampling.frequency_penalty, sampling.penalize_prompt),
            (0.5, false)
        );
        assert_eq!(
            (request.options.max_tokens, request.options.min_tokens),
            (Some(16), 4)
        );
        assert_eq!(request.options.stop_ids, [7]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param, message) in [
            (
                json!({"prompt": [1], "temperature": -1}),
                "temperature",
                "a number from 0 to 100",
            ),
            (
                json!({"prompt": [1], "max_tokens": 8.5}),
                "max_tokens",
                "8.5: a whole number",
            ),
            (json!({"prompt": []}), "prompt", "a text or a list of token ids"),
            (json!({}), "prompt", "neither a prompt nor messages"),
            (json!({"messages": []}), "messages", "at least one message"),
            (
                json!({"messages": [{"role": "user", "content": 3}]}),
                "messages[0].content",
                "a text",
            ),
            (
                json!({"messages": [{"role": "tool", "content": ""}]}),
                "messages[0].role",
                "is expected",
            ),
            (json!({"prompt": [1], "stream": true}), "stream", "not supported"),
            (json!({"prompt": [1], "stop": [""]}), "stop", "none empty"),
            (
                json!({"prompt": [1], "logit_bias": {"x": 1}}),
                "logit_bias",
                "token ids",
            ),
        ] {
            let refusal = read(&body).err().unwrap_or_else(|| panic!("{body} was read"));
            assert_eq!(refusal.param.as_deref(), Some(param), "{body}");
            assert!(refusal.message.contains(message), "{}", refusal.message);
        }
        let other = read(&json!({"url": "/v1/images", "body": {}})).err();
        assert!(other.is_some_and(|refusal| refusal.param.as_deref() == Some("url")));
    }
}
