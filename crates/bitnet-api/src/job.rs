//! Requests of the two endpoints that generate, read to what a scheduler takes and what their answers look like.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_model::SpecialTokens;
use bitnet_model::schedule::Request;
use serde_json::{Map, Value};

use crate::error::{ApiError, shown};
use crate::fields::{Endpoint, Fields, expected};
use crate::messages;
use crate::options;
use crate::prompts::{self, Tokens};
use crate::served::Served;
use crate::structured;
use crate::tools::{Calls, Toolbox};

/// A request that was read.
pub struct Job {
    /// What to ask of the scheduler: one a prompt, each for as many answers as were asked for.
    pub requests: Vec<Request>,
    /// How to stream the answer, where it is to be streamed.
    pub stream: Option<StreamOptions>,
    /// Whether it is one of `/v1/chat/completions`.
    pub is_chat: bool,
    /// Whether the client chose the seed.
    pub is_seeded: bool,
    /// How long its grammar took to compile, where it has one.
    pub grammar_time: Option<Duration>,
    pub(crate) plan: Arc<Plan>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("requests", &self.requests.len())
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// What a stream tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Counts of tokens at its end.
    pub include_usage: bool,
    /// Counts of tokens in every event.
    pub continuous_usage: bool,
}

/// What the answers of a job look like.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) is_chat: bool,
    pub(crate) stream: Option<StreamOptions>,
    /// Answers to each prompt.
    pub(crate) n: usize,
    pub(crate) has_logprobs: bool,
    pub(crate) special: SpecialTokens,
    pub(crate) calls: Calls,
    pub(crate) has_token_ids: bool,
    pub(crate) names_ids: bool,
    pub(crate) prompts: Vec<Asked>,
}

/// A prompt, as far as its answers need it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) n_tokens: usize,
    /// Its tokens, where the answer has them.
    pub(crate) ids: Vec<u32>,
    /// What its answers begin with.
    pub(crate) echo: Option<String>,
    /// Whether it was a text, in which special tokens are spelled out, the one at its beginning included or not.
    pub(crate) is_text: bool,
    pub(crate) spells_first: bool,
}

/// Reads a request for `/v1/chat/completions`. It may take a while: long prompts are tokenized, templates run, schemas compiled.
///
/// # Errors
/// Whatever is wrong with the request, and the field that it is about.
pub fn chat(served: &Served, body: Map<String, Value>) -> Result<Job, ApiError> {
    let fields = Fields::read(body, Endpoint::Chat)?;
    served.check_model(fields.text("model"))?;
    let tools = Toolbox::read(&fields)?;
    let parts = Parts::read(served, &fields, Endpoint::Chat)?;
    let text = messages::render(served, &fields, Some(&tools))?;
    let tokenizer = served.tokenizer("messages")?;
    served.check_length(&text, "messages")?;
    let ids = tokenizer
        .encode_rendered(&text)
        .map_err(|e| ApiError::of(&e, "messages"))?;
    let prompt = Tokens { ids, text: None };
    parts.job(served, &fields, "messages", vec![prompt], &tools)
}

/// Reads a request for `/v1/completions`; as [`chat`].
///
/// # Errors
/// As for [`chat`].
pub fn completion(served: &Served, body: Map<String, Value>) -> Result<Job, ApiError> {
    let fields = Fields::read(body, Endpoint::Completions)?;
    served.check_model(fields.text("model"))?;
    let parts = Parts::read(served, &fields, Endpoint::Completions)?;
    let prompts = prompts::read(served, fields.get("prompt").unwrap_or(&Value::Null))?;
    parts.job(served, &fields, "prompt", prompts, &Toolbox::none())
}

/// What is read before the prompts, which cost more.
struct Parts {
    is_chat: bool,
    options: bitnet_model::GenerateOptions,
    stream: Option<StreamOptions>,
    n: usize,
    logprobs: Option<usize>,
    has_echo: bool,
    priority: i32,
}

impl Parts {
    fn read(served: &Served, fields: &Fields, endpoint: Endpoint) -> Result<Self, ApiError> {
        let is_chat = endpoint == Endpoint::Chat;
        let options = options::read(served, fields, endpoint)?;
        let n = fields.count("n").unwrap_or(1);
        if n > served.max_n {
            let most = format!("a whole number from 1 to {}", served.max_n);
            return Err(expected("n", fields.get("n").unwrap_or(&Value::Null), &most));
        }
        if !is_chat && fields.count("best_of").is_some_and(|best| best != n) {
            return Err(ApiError::invalid(
                "best_of",
                format!("best_of other than n, which is {n}, is not supported"),
            ));
        }
        let logprobs = logprobs(fields, is_chat)?;
        let has_echo = !is_chat && fields.is_set("echo");
        if !is_chat && !has_echo && options.max_tokens == Some(0) {
            let name = match fields.get("max_completion_tokens") {
                Some(_) => "max_completion_tokens",
                None => "max_tokens",
            };
            let message = format!("{name} is 0: 1 or more is expected, or echo, which scores the prompt");
            return Err(ApiError::invalid(name, message));
        }
        let priority = fields
            .whole("priority")
            .and_then(|p| i32::try_from(p).ok())
            .unwrap_or(0);
        if priority != 0 && !served.has_priorities {
            return Err(ApiError::invalid(
                "priority",
                format!(
                    "priority is {priority}: this server takes requests as they come, so only 0 is allowed"
                ),
            ));
        }
        Ok(Self {
            is_chat,
            options,
            stream: stream(fields)?,
            n,
            logprobs,
            has_echo,
            priority,
        })
    }

    fn job(
        self,
        served: &Served,
        fields: &Fields,
        param: &str,
        prompts: Vec<Tokens>,
        tools: &Toolbox,
    ) -> Result<Job, ApiError> {
        let long = prompts.iter().find(|prompt| prompt.ids.len() > served.context);
        if let Some(prompt) = long {
            return Err(ApiError::context(Some(param), prompt.ids.len(), served.context));
        }
        let begun = Instant::now();
        let mask = structured::mask(served, fields, tools)?;
        let grammar_time = mask.is_some().then(|| begun.elapsed());
        let has_token_ids = fields.is_set("return_token_ids");
        let keeps_ids = has_token_ids || (self.has_echo && self.logprobs.is_some());
        let special = self.options.special;
        let asked = |prompt: &Tokens| {
            Ok(Asked {
                n_tokens: prompt.ids.len(),
                ids: if keeps_ids { prompt.ids.clone() } else { Vec::new() },
                echo: match self.has_echo {
                    true => Some(prompt.shown(served, special)?),
                    false => None,
                },
                is_text: prompt.text.is_some(),
                spells_first: prompt.spells_first(served, special),
            })
        };
        let plan = Plan {
            is_chat: self.is_chat,
            stream: self.stream,
            n: self.n,
            has_logprobs: self.logprobs.is_some(),
            special,
            calls: tools.calls,
            has_token_ids,
            names_ids: fields.is_set("return_tokens_as_token_ids"),
            prompts: prompts.iter().map(asked).collect::<Result<_, ApiError>>()?,
        };
        let salt = fields.text("cache_salt").map_or(0, salt);
        let mut options = self.options;
        if mask.is_some() {
            options.draft_max = options.draft_max.max(FORCED);
        }
        let request = |prompt: Tokens| {
            let mut within = options.clone();
            // The last token needs no place in the cache and is counted all the same; after a prompt that fills the context one comes.
            let room = served.context.saturating_sub(prompt.ids.len()).max(1);
            within.max_tokens = Some(options.max_tokens.unwrap_or(room).min(room));
            Request {
                mask: mask.as_ref().map(|mask| mask.fork()),
                n: self.n,
                logprobs: self.logprobs,
                prompt_logprobs: self.logprobs.filter(|_| self.has_echo),
                priority: self.priority,
                salt,
                ..Request::new(prompt.ids, within)
            }
        };
        Ok(Job {
            requests: prompts.into_iter().map(request).collect(),
            stream: self.stream,
            is_chat: self.is_chat,
            is_seeded: fields.get("seed").is_some(),
            grammar_time,
            plan: Arc::new(plan),
        })
    }
}

/// Tokens that are guessed of an answer with a constraint, at most: what can only be written so, such as the rest of a name, costs one
/// step then. No token is another one for it.
const FORCED: usize = 16;

/// How many alternatives a request wants beside each token's log-probability; `None` where it wants neither.
fn logprobs(fields: &Fields, is_chat: bool) -> Result<Option<usize>, ApiError> {
    if !is_chat {
        return Ok(fields.count("logprobs"));
    }
    let top = fields.count("top_logprobs");
    match (fields.is_set("logprobs"), top) {
        (false, Some(_)) => Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs needs logprobs to be true",
        )),
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

fn stream(fields: &Fields) -> Result<Option<StreamOptions>, ApiError> {
    let streams = fields.is_set("stream");
    let options = fields.get("stream_options").and_then(Value::as_object);
    let Some(options) = options else {
        return Ok(streams.then(StreamOptions::default));
    };
    if !streams {
        return Err(ApiError::invalid(
            "stream_options",
            "stream_options is only allowed where stream is true",
        ));
    }
    let flag = |name: &str| match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(is_set)) => Ok(*is_set),
        Some(other) => {
            let name = format!("stream_options.{name}");
            let message = format!("{name} is {}: true or false is expected", shown(other));
            Err(ApiError::invalid(name, message))
        }
    };
    let include_usage = flag("include_usage")?;
    Ok(Some(StreamOptions {
        include_usage,
        continuous_usage: flag("continuous_usage_stats")? && include_usage,
    }))
}

/// 64 bits of a text (FNV-1a): who does not know the text finds no prompt by it.
fn salt(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
