//! Every field of a request, described once: the table below checks what clients send and makes openapi.json.

use serde_json::{Map, Value};

use crate::error::{ApiError, shown};

/// What a request is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// `/apply-template`
    ApplyTemplate,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Chat,
        Self::Completions,
        Self::Tokenize,
        Self::Detokenize,
        Self::ApplyTemplate,
    ];

    /// Its path.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::ApplyTemplate => "/apply-template",
        }
    }
}

/// What a field may be; null is always as if it were absent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `true` or `false`
    Flag,
    /// A number of a range, whose low end may be left out.
    Number {
        low: f64,
        high: f64,
        is_open: bool,
    },
    /// A whole number of a range; `8.0` is one.
    Whole {
        low: i128,
        high: i128,
    },
    Text,
    /// A text, or a list of up to 16.
    Stops,
    /// A list of token ids.
    Ids,
    /// An object of token ids and numbers from -100 to 100.
    Bias,
    Messages,
    /// A text, token ids, or a list of either.
    Prompt,
    Tools,
    ToolChoice,
    ResponseFormat,
    Structured,
    StreamOptions,
    /// A JSON schema, also as a text.
    Schema,
    /// A list of texts.
    Texts,
    Object,
    /// Anything: it changes nothing.
    Ignored,
    /// Refused, with the reason, unless it asks for nothing.
    Refused(&'static str),
}

/// One field.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) on: &'static [Endpoint],
    pub(crate) kind: Kind,
    pub(crate) is_required: bool,
    /// For openapi.json.
    pub(crate) text: &'static str,
}

const CHAT: &[Endpoint] = &[Endpoint::Chat];
const TEXT: &[Endpoint] = &[Endpoint::Completions];
const BOTH: &[Endpoint] = &[Endpoint::Chat, Endpoint::Completions];
const TOKENIZE: &[Endpoint] = &[Endpoint::Tokenize];
const DETOKENIZE: &[Endpoint] = &[Endpoint::Detokenize];
const TEMPLATE: &[Endpoint] = &[Endpoint::Chat, Endpoint::Tokenize, Endpoint::ApplyTemplate];

/// Most of what is counted in tokens: more than any context, and a `usize` everywhere.
const MANY: i128 = u32::MAX as i128;
/// Any number of tokens at all; what is beyond the context is cut.
const ANY: i128 = i64::MAX as i128;

const fn optional(name: &'static str, on: &'static [Endpoint], kind: Kind, text: &'static str) -> Field {
    Field {
        name,
        on,
        kind,
        is_required: false,
        text,
    }
}

const fn required(name: &'static str, on: &'static [Endpoint], kind: Kind, text: &'static str) -> Field {
    Field {
        is_required: true,
        ..optional(name, on, kind, text)
    }
}

const fn number(low: f64, high: f64) -> Kind {
    Kind::Number {
        low,
        high,
        is_open: false,
    }
}

const fn above(low: f64, high: f64) -> Kind {
    Kind::Number {
        low,
        high,
        is_open: true,
    }
}

const fn whole(low: i128, high: i128) -> Kind {
    Kind::Whole { low, high }
}

/// The fields of all endpoints. Others are ignored: clients add some every month.
#[rustfmt::skip]
pub(crate) const FIELDS: &[Field] = &[
    optional("model", &Endpoint::ALL, Kind::Text, "A served model; absent: the served one."),
    required("messages", CHAT, Kind::Messages, "The conversation, at least one message. Texts alone: this model reads nothing else."),
    optional("messages", TOKENIZE, Kind::Messages, "A conversation, whose prompt is taken."),
    required("messages", &[Endpoint::ApplyTemplate], Kind::Messages, "The conversation."),
    required("prompt", TEXT, Kind::Prompt, "A text, a list of texts, token ids, or a list of lists of token ids; a choice each, in order."),
    optional("prompt", TOKENIZE, Kind::Text, "A text, which gets the tokens that a prompt gets."),
    optional("content", TOKENIZE, Kind::Text, "A text alone (llama.cpp's form)."),
    optional("add_special_tokens", TOKENIZE, Kind::Flag, "Whether `prompt` gets the tokens that begin a prompt; true where it is absent."),
    optional("add_special", TOKENIZE, Kind::Flag, "Whether `content` gets them; false where it is absent."),
    optional("with_pieces", TOKENIZE, Kind::Flag, "Gives {id, piece} for each token."),
    optional("return_token_strs", TOKENIZE, Kind::Flag, "Gives the text of each token too."),
    required("tokens", DETOKENIZE, Kind::Ids, "Token ids."),
    optional("max_tokens", CHAT, whole(1, ANY), "Most tokens of an answer; what is beyond the context is cut. Absent: until the model stops or the context is full."),
    optional("max_tokens", TEXT, whole(0, ANY), "Most tokens of an answer, 16 where it is absent; what is beyond the context is cut. 0, with echo, scores a text."),
    optional("max_completion_tokens", CHAT, whole(1, ANY), "As max_tokens, over which it wins."),
    optional("max_completion_tokens", TEXT, whole(0, ANY), "As max_tokens, over which it wins."),
    optional("temperature", BOTH, number(0.0, 100.0), "Divides the logits before a token is drawn; below 0.00001 the most likely token is taken. Absent: the model's own, else 1."),
    optional("top_p", BOTH, above(0.0, 1.0), "Keeps the most likely tokens that together have this probability. Absent: the model's own, else 1 (off)."),
    optional("top_k", BOTH, whole(-1, MANY), "Keeps the k most likely tokens; 0 and -1 keep all. Absent: the model's own, else all."),
    optional("min_p", BOTH, number(0.0, 1.0), "Keeps tokens at least this fraction as likely as the most likely one. Absent: the model's own, else 0 (off)."),
    optional("frequency_penalty", BOTH, number(-2.0, 2.0), "Taken from a token's logit for each time that the answer has it."),
    optional("presence_penalty", BOTH, number(-2.0, 2.0), "Taken from the logits of tokens that the answer has."),
    optional("repetition_penalty", BOTH, above(0.0, 1e6), "Divides positive and multiplies negative logits of tokens of prompt and answer; 1 is off."),
    optional("seed", BOTH, whole(i64::MIN as i128, u64::MAX as i128), "The same request with the same seed has the same answer. Absent: a random one."),
    optional("n", BOTH, whole(1, MANY), "Answers to each prompt, up to the server's --max-n."),
    optional("best_of", TEXT, whole(1, MANY), "Must equal n."),
    optional("suffix", TEXT, Kind::Refused("this model cannot fill in a middle"), "Not supported."),
    optional("stop", BOTH, Kind::Stops, "Up to 16 strings of 1 to 256 bytes that end an answer and are no part of it."),
    optional("stop_token_ids", BOTH, Kind::Ids, "Tokens that end an answer."),
    optional("ignore_eos", BOTH, Kind::Flag, "Treats the model's end tokens as ordinary ones."),
    optional("min_tokens", BOTH, whole(0, MANY), "Tokens before which none is chosen that would end the answer."),
    optional("skip_special_tokens", BOTH, Kind::Flag, "Leaves special tokens out of the text; true where it is absent."),
    optional("include_stop_str_in_output", BOTH, Kind::Flag, "Leaves the stop string that ends the answer in the text."),
    optional("logit_bias", BOTH, Kind::Bias, "Added to the logits of tokens before everything else; -100 forbids a token."),
    optional("logprobs", CHAT, Kind::Flag, "Gives the log-probability of each token."),
    optional("top_logprobs", CHAT, whole(0, 20), "Gives those of so many most likely tokens too; needs logprobs."),
    optional("logprobs", TEXT, whole(0, 20), "Gives the log-probability of each token, and those of so many most likely tokens."),
    optional("echo", TEXT, Kind::Flag, "The text begins with the prompt; with logprobs, they too."),
    optional("echo", CHAT, Kind::Refused("only /v1/completions can begin the text with the prompt"), "Not supported."),
    optional("stream", BOTH, Kind::Flag, "Sends the answer while it is made, as server-sent events."),
    optional("stream_options", BOTH, Kind::StreamOptions, "What a stream tells; needs stream."),
    optional("response_format", BOTH, Kind::ResponseFormat, "What the answer must be: text, json_object, or json_schema."),
    optional("structured_outputs", BOTH, Kind::Structured, "What the answer must be: one of json, regex, choice, grammar (vLLM's form)."),
    optional("guided_json", BOTH, Kind::Schema, "As structured_outputs.json."),
    optional("guided_regex", BOTH, Kind::Text, "As structured_outputs.regex."),
    optional("guided_choice", BOTH, Kind::Texts, "As structured_outputs.choice."),
    optional("guided_grammar", BOTH, Kind::Text, "As structured_outputs.grammar."),
    optional("json_schema", BOTH, Kind::Schema, "As structured_outputs.json (llama.cpp's name)."),
    optional("grammar", BOTH, Kind::Text, "As structured_outputs.grammar (llama.cpp's name)."),
    optional("tools", TEMPLATE, Kind::Tools, "Functions that the model may call."),
    optional("tool_choice", TEMPLATE, Kind::ToolChoice, "none, auto, required, or the function to call."),
    optional("parallel_tool_calls", CHAT, Kind::Flag, "Whether an answer may have several calls. Absent: one for required and named tools, several for auto."),
    optional("chat_template_kwargs", TEMPLATE, Kind::Object, "Variables for the chat template."),
    optional("add_generation_prompt", TEMPLATE, Kind::Flag, "Whether the prompt ends where the assistant's answer begins; true where it is absent."),
    optional("continue_final_message", TEMPLATE, Kind::Flag, "Goes on with the text of the last message, one of the assistant."),
    optional("chat_template", TEMPLATE, Kind::Refused("templates of requests are not run; the server's is set at its start"), "Not supported."),
    optional("add_special_tokens", &[Endpoint::Chat], Kind::Ignored, "Changes nothing: a conversation's prompt begins with one token of its own."),
    optional("return_token_ids", BOTH, Kind::Flag, "Gives the token ids of prompt and answers."),
    optional("return_tokens_as_token_ids", BOTH, Kind::Flag, "Names tokens of logprobs token_id:N."),
    optional("priority", BOTH, whole(i32::MIN as i128, i32::MAX as i128), "Lower goes first, where the server has --scheduling-policy priority; else 0."),
    optional("cache_salt", BOTH, Kind::Text, "Only requests of the same text share computed prompts."),
    optional("user", BOTH, Kind::Ignored, "Changes nothing."),
    optional("metadata", BOTH, Kind::Ignored, "Changes nothing."),
    optional("store", BOTH, Kind::Ignored, "Changes nothing: nothing is stored."),
    optional("service_tier", BOTH, Kind::Ignored, "Changes nothing."),
    optional("safety_identifier", BOTH, Kind::Ignored, "Changes nothing."),
    optional("prompt_cache_key", BOTH, Kind::Ignored, "Changes nothing: prompts are found by their tokens."),
    optional("tools", TEXT, Kind::Refused("tools need a conversation: use /v1/chat/completions"), "Not supported."),
];

/// The fields of one request, checked against the table.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Checks the type and range of each field of `body`.
    pub(crate) fn read(mut body: Map<String, Value>, endpoint: Endpoint) -> Result<Self, ApiError> {
        body.retain(|_, value| !value.is_null());
        for field in FIELDS.iter().filter(|field| field.on.contains(&endpoint)) {
            match body.get(field.name) {
                Some(value) => field.kind.check(field.name, value)?,
                None if field.is_required => {
                    let message = format!("{} is missing: {} is expected", field.name, field.kind.expected());
                    return Err(ApiError::invalid(field.name, message));
                }
                None => {}
            }
        }
        Ok(Self(body))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        debug_assert!(
            FIELDS.iter().any(|field| field.name == name),
            "{name} is not in the table"
        );
        self.0.get(name)
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.flag(name) == Some(true)
    }

    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.get(name)?.as_f64()
    }

    pub(crate) fn whole(&self, name: &str) -> Option<i128> {
        as_whole(self.get(name)?)
    }

    /// A whole number that is not negative, by the table.
    pub(crate) fn count(&self, name: &str) -> Option<usize> {
        self.whole(name).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }
}

/// A whole number, which may be written as `8.0`.
pub(crate) fn as_whole(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    let float = || {
        let x = number.as_f64()?;
        // Up to 2^64, the largest that any field takes.
        (x.fract() == 0.0 && x.abs() <= 18_446_744_073_709_551_616.0).then_some(x as i128)
    };
    number
        .as_i64()
        .map(i128::from)
        .or(number.as_u64().map(i128::from))
        .or_else(float)
}

/// An error for a field that is not what it should be.
pub(crate) fn expected(name: &str, found: &Value, what: &str) -> ApiError {
    ApiError::invalid(name, format!("{name} is {}: {what} is expected", shown(found)))
}

impl Kind {
    /// In words, for errors.
    fn expected(&self) -> String {
        match *self {
            Self::Flag => "true or false".to_owned(),
            Self::Number { low, high, is_open } => {
                let from = if is_open { "above" } else { "from" };
                format!("a number {from} {low} to {high}")
            }
            Self::Whole { low, high } if high >= MANY && high != u64::MAX.into() => {
                format!("a whole number, {low} or more,")
            }
            Self::Whole { low, high } => format!("a whole number from {low} to {high}"),
            Self::Text => "a text".to_owned(),
            Self::Stops => "a text, or up to 16, each of 1 to 256 bytes,".to_owned(),
            Self::Ids => "a list of token ids".to_owned(),
            Self::Bias => "an object of token ids and numbers from -100 to 100".to_owned(),
            Self::Messages => "a list of at least one message".to_owned(),
            Self::Prompt => {
                "a text, a list of texts, a list of token ids, or a list of such lists".to_owned()
            }
            Self::Tools => "a list of functions".to_owned(),
            Self::ToolChoice => "\"none\", \"auto\", \"required\" or a function".to_owned(),
            Self::ResponseFormat | Self::Structured | Self::StreamOptions | Self::Object => {
                "an object".to_owned()
            }
            Self::Schema => "a JSON schema".to_owned(),
            Self::Texts => "a list of texts".to_owned(),
            Self::Ignored | Self::Refused(_) => "nothing".to_owned(),
        }
    }

    /// Whether `value` is of this type and in this range; what is inside of lists and objects is for those who read them.
    fn has(&self, value: &Value) -> bool {
        match *self {
            Self::Flag => value.is_boolean(),
            Self::Number { low, high, is_open } => value
                .as_f64()
                .is_some_and(|x| (low..=high).contains(&x) && !(is_open && x == low)),
            Self::Whole { low, high } => as_whole(value).is_some_and(|n| (low..=high).contains(&n)),
            Self::Text => value.is_string(),
            Self::Stops => match value {
                Value::Array(list) => list.len() <= 16 && list.iter().all(is_stop),
                one => is_stop(one),
            },
            Self::Ids => value.is_array(),
            Self::Messages => value.as_array().is_some_and(|list| !list.is_empty()),
            Self::Prompt => value.is_string() || value.is_array(),
            Self::Tools => value.is_array(),
            Self::Texts => value
                .as_array()
                .is_some_and(|list| list.iter().all(Value::is_string)),
            Self::ToolChoice => value.is_string() || value.is_object(),
            Self::Schema => value.is_string() || value.is_object() || value.is_boolean(),
            Self::Bias | Self::ResponseFormat | Self::Structured | Self::StreamOptions | Self::Object => {
                value.is_object()
            }
            Self::Ignored => true,
            Self::Refused(_) => match value {
                Value::Bool(is_set) => !is_set,
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                _ => false,
            },
        }
    }

    fn check(&self, name: &str, value: &Value) -> Result<(), ApiError> {
        if self.has(value) {
            return Ok(());
        }
        Err(match self {
            Self::Refused(why) => ApiError::invalid(name, format!("{name} is not supported: {why}")),
            _ => expected(name, value, &self.expected()),
        })
    }
}

fn is_stop(value: &Value) -> bool {
    value.as_str().is_some_and(|text| (1..=256).contains(&text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_has_each_field_once_an_endpoint() {
        for endpoint in Endpoint::ALL {
            let mut names: Vec<&str> = FIELDS
                .iter()
                .filter(|field| field.on.contains(&endpoint))
                .map(|field| field.name)
                .collect();
            names.sort_unstable();
            let n = names.len();
            names.dedup();
            assert_eq!(names.len(), n, "{endpoint:?}");
        }
    }

    #[test]
    fn whole_numbers_may_have_a_point() {
        for (value, whole) in [
            (json!(8), Some(8)),
            (json!(8.0), Some(8)),
            (json!(-1), Some(-1)),
            (json!(u64::MAX), Some(i128::from(u64::MAX))),
            (json!(8.5), None),
            (json!(1e300), None),
            (json!("8"), None),
            (json!(true), None),
        ] {
            assert_eq!(as_whole(&value), whole, "{value}");
        }
    }
}
