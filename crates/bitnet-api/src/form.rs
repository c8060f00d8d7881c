//! The JSON of answers and of the events of a stream.

use bitnet_model::schedule::{EndedBy, FinishReason};
use serde::Serialize;

use crate::logprobs::{Columns, Content};

/// An answer or an event.
#[derive(Debug, Serialize)]
pub(crate) struct Body<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: &'a str,
    pub(crate) choices: Vec<ChoiceForm<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
}

/// One choice of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChoiceForm<'a> {
    pub(crate) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delta: Option<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<&'a str>,
    pub(crate) logprobs: Option<Logprobs<'a>>,
    pub(crate) finish_reason: Option<&'static str>,
    /// There where the choice has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<&'a StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
}

/// Log-probabilities in the form of the endpoint.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Logprobs<'a> {
    Chat(Content<'a>),
    Text(Columns<'a>),
}

/// What the assistant said.
#[derive(Debug, Serialize)]
pub(crate) struct Message<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "<[Called]>::is_empty")]
    tool_calls: &'a [Called],
}

impl<'a> Message<'a> {
    pub(crate) fn new(content: Option<&'a str>, tool_calls: &'a [Called]) -> Self {
        Self {
            role: "assistant",
            content,
            refusal: None,
            tool_calls,
        }
    }
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Called {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) function: Function,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) arguments: String,
}

/// What an event adds to a message.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    /// `Some(None)` is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "<[CallDelta]>::is_empty")]
    pub(crate) tool_calls: &'a [CallDelta],
}

/// What an event adds to a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct CallDelta {
    pub(crate) index: usize,
    #[serde(flatten)]
    pub(crate) part: CallPart,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum CallPart {
    /// Its beginning, without arguments.
    Begin(Called),
    More {
        function: Function,
    },
}

/// Counts of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: Details,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Details {
    cached_tokens: usize,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: Details { cached_tokens },
        }
    }
}

/// vLLM's `stop_reason`: the string or the id that was asked for and ended the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    None,
    Text(String),
    Id(u32),
}

impl StopReason {
    pub(crate) fn of(ended_by: Option<EndedBy>) -> Self {
        match ended_by {
            Some(EndedBy::StopString(text)) => Self::Text(text),
            Some(EndedBy::StopId(id)) => Self::Id(id),
            _ => Self::None,
        }
    }
}

/// OpenAI's `finish_reason`; a cancelled answer has none. `calls` says whether the answer is calls, and they are whole.
pub(crate) fn finish_reason(reason: FinishReason, calls: bool) -> Option<&'static str> {
    match reason {
        FinishReason::Stop | FinishReason::StopString if calls => Some("tool_calls"),
        FinishReason::Stop | FinishReason::StopString => Some("stop"),
        FinishReason::Length | FinishReason::Context => Some("length"),
        FinishReason::Cancelled => None,
    }
}
