//! One answer as a line of the output, in OpenAI's form.

use std::time::{SystemTime, UNIX_EPOCH};

use bitnet_model::schedule::Event;
use bitnet_model::{FinishReason, Logprob, Tokenizer};
use serde_json::{Value, json};

use super::ask::{Ask, Refusal};

/// What JSON has for a log-probability of minus infinity.
const LOWEST: f32 = -9999.0;

/// An answer that is being given, or was.
pub(super) struct Answer {
    number: usize,
    custom_id: String,
    model: String,
    is_chat: bool,
    wants_logprobs: bool,
    prompt_tokens: usize,
    cached_tokens: usize,
    choices: Vec<Choice>,
    failure: Option<Refusal>,
}

#[derive(Clone, Default)]
struct Choice {
    text: String,
    n_tokens: usize,
    logprobs: Vec<Value>,
    reason: Option<FinishReason>,
}

impl Answer {
    pub(super) fn new(number: usize, custom_id: &str, model: &str, ask: &Ask) -> Self {
        Self {
            number,
            custom_id: custom_id.to_owned(),
            model: model.to_owned(),
            is_chat: ask.is_chat,
            wants_logprobs: ask.request.logprobs.is_some(),
            prompt_tokens: ask.request.prompt.len(),
            cached_tokens: 0,
            choices: vec![Choice::default(); ask.request.n],
            failure: None,
        }
    }

    /// Takes what happened; whether that was the end.
    pub(super) fn take(&mut self, event: Event, tokenizer: Option<&Tokenizer>) -> bool {
        match event {
            Event::Started { cached } => self.cached_tokens = cached,
            Event::Token {
                choice,
                id,
                text,
                logprob,
            } => {
                let choice = &mut self.choices[choice];
                choice.text.push_str(&text);
                choice.n_tokens += 1;
                choice
                    .logprobs
                    .extend(logprob.map(|l| logprob_entry(id, &l, tokenizer)));
            }
            Event::Finished {
                choice, reason, text, ..
            } => {
                let choice = &mut self.choices[choice];
                choice.text.push_str(&text);
                choice.reason = Some(reason);
            }
            Event::Failed(error) => self.failure = Some(Refusal::of(&error)),
            _ => {}
        }
        self.failure.is_some() || self.choices.iter().all(|choice| choice.reason.is_some())
    }

    pub(super) fn is_error(&self) -> bool {
        self.failure.is_some()
    }

    /// The line of the output.
    pub(super) fn line(&self) -> Value {
        if let Some(refusal) = &self.failure {
            return refused(self.number, &self.custom_id, refusal);
        }
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let choices: Vec<Value> = (0..)
            .zip(&self.choices)
            .map(|(i, choice)| self.choice(i, choice))
            .collect();
        let completion_tokens: usize = self.choices.iter().map(|choice| choice.n_tokens).sum();
        let (prefix, object) = if self.is_chat {
            ("chatcmpl", "chat.completion")
        } else {
            ("cmpl", "text_completion")
        };
        let body = json!({
            "id": format!("{prefix}-{}", self.number),
            "object": object,
            "created": created,
            "model": self.model,
            "choices": choices,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": self.prompt_tokens + completion_tokens,
                "prompt_tokens_details": { "cached_tokens": self.cached_tokens },
            },
        });
        wrapped(self.number, &self.custom_id, 200, &body)
    }

    fn choice(&self, index: usize, choice: &Choice) -> Value {
        let reason = match choice.reason {
            Some(FinishReason::Stop | FinishReason::StopString) => "stop",
            _ => "length",
        };
        if self.is_chat {
            let logprobs = self
                .wants_logprobs
                .then(|| json!({ "content": choice.logprobs, "refusal": null }));
            return json!({
                "index": index,
                "message": { "role": "assistant", "content": choice.text, "refusal": null },
                "logprobs": logprobs,
                "finish_reason": reason,
            });
        }
        let logprobs = self.wants_logprobs.then(|| completion_logprobs(&choice.logprobs));
        json!({ "index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": reason })
    }
}

/// The line of a request that is not answered.
pub(super) fn refused(number: usize, custom_id: &str, refusal: &Refusal) -> Value {
    wrapped(number, custom_id, refusal.status, &refusal.body())
}

fn wrapped(number: usize, custom_id: &str, status: u16, body: &Value) -> Value {
    json!({
        "id": format!("batch_req_{number}"),
        "custom_id": custom_id,
        "response": { "status_code": status, "request_id": format!("req_{number}"), "body": body },
        "error": null,
    })
}

fn logprob_entry(id: u32, logprob: &Logprob, tokenizer: Option<&Tokenizer>) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = tokenizer.map_or_else(Vec::new, |tokenizer| bytes(tokenizer, id));
        json!({
            "token": String::from_utf8_lossy(&bytes),
            "logprob": logprob.max(LOWEST),
            "bytes": bytes,
        })
    };
    let mut own = entry(id, logprob.logprob);
    let top: Vec<Value> = logprob
        .top
        .iter()
        .map(|&(id, logprob)| entry(id, logprob))
        .collect();
    own["top_logprobs"] = Value::Array(top);
    own
}

/// The bytes of a token, as it is inside a text.
fn bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let decoded = || tokenizer.decode(&[id]).unwrap_or_default().into_bytes();
    tokenizer.token_bytes(id).unwrap_or_else(decoded)
}

/// The older form of the completions endpoint, from the newer one.
fn completion_logprobs(entries: &[Value]) -> Value {
    let of = |name: &str| -> Vec<Value> { entries.iter().map(|entry| entry[name].clone()).collect() };
    let mut offset = 0;
    let (mut offsets, mut tops) = (Vec::new(), Vec::new());
    for entry in entries {
        offsets.push(offset);
        offset += entry["token"].as_str().map_or(0, |token| token.chars().count());
        let mut top = serde_json::Map::new();
        // The chosen token is one of them.
        for one in entry["top_logprobs"]
            .as_array()
            .into_iter()
            .flatten()
            .chain([entry])
        {
            let token = one["token"].as_str().unwrap_or_default();
            top.entry(token).or_insert_with(|| one["logprob"].clone());
        }
        tops.push(Value::Object(top));
    }
    json!({
        "tokens": of("token"),
        "token_logprobs": of("logprob"),
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}
