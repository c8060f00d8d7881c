//! From a scheduler's events to OpenAI's JSON: answers in one piece, and the events of a stream.

use std::sync::Arc;

use bitnet_model::schedule::Event;

use crate::calls::{CallParser, Piece};
use crate::error::ApiError;
use crate::form::{Body, ChoiceForm, Delta, Logprobs, Message, StopReason, Usage, finish_reason};
use crate::job::{Job, Plan};
use crate::logprobs::{Columns, Content, Entry, Namer};
use crate::parts::{Choice, Chunk, Ended, Part, PromptState};
use crate::served::{Served, now};
use crate::tools::Calls;

/// The answers to a job, while they are made. It gets the events of the job's requests in the order in which each request has them;
/// those of several requests may be mixed.
///
/// A stream gets its events by [`Answers::chunks`], whose texts go out as `data: TEXT\n\n`, and `data: [DONE]\n\n` when
/// [`Answers::is_over`] without a [`Answers::failure`]. What gathers between two calls is joined, so a slow reader gets fewer and
/// larger events.
pub struct Answers {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    plan: Arc<Plan>,
    prompts: Vec<PromptState>,
    choices: Vec<Choice>,
    /// Choices that have not ended.
    left: usize,
    failure: Option<ApiError>,
    chunks: Vec<Chunk>,
}

impl Answers {
    /// For `job`, whose answer has an id that ends with `id`.
    #[must_use]
    pub fn new(served: &Served, job: &Job, id: &str) -> Self {
        let plan = Arc::clone(&job.plan);
        let prefix = if plan.is_chat { "chatcmpl" } else { "cmpl" };
        let namer = |n_chars| Namer::new(served.tokenizer.as_ref(), plan.names_ids, plan.special, n_chars);
        let prompts = plan.prompts.iter().map(|asked| {
            let mut of_prompt = (asked.echo.is_some() && plan.has_logprobs).then(|| namer(0));
            if let Some(namer) = &mut of_prompt {
                namer.shows_special |= asked.is_text;
            }
            PromptState {
                cached: 0,
                entries: Vec::new(),
                namer: of_prompt,
            }
        });
        let mut choices = Vec::with_capacity(plan.prompts.len() * plan.n);
        for asked in &plan.prompts {
            let n_chars = asked.echo.as_ref().map_or(0, |text| text.chars().count());
            for _ in 0..plan.n {
                choices.push(Choice {
                    n_tokens: 0,
                    text: String::new(),
                    ids: Vec::new(),
                    entries: Vec::new(),
                    calls: Vec::new(),
                    parser: match plan.calls {
                        Calls::Free => Some(CallParser::new(false)),
                        Calls::Forced => Some(CallParser::new(true)),
                        Calls::Off | Calls::Forbidden => None,
                    },
                    namer: plan.has_logprobs.then(|| namer(n_chars)),
                    is_begun: false,
                    end: None,
                    open: None,
                });
            }
        }
        Self {
            id: format!("{prefix}-{id}"),
            created: now(),
            model: served.name().to_owned(),
            fingerprint: served.fingerprint.clone(),
            prompts: prompts.collect(),
            left: choices.len(),
            choices,
            failure: None,
            chunks: Vec::new(),
            plan: Arc::clone(&job.plan),
        }
    }

    /// Takes what happened to the request of prompt `prompt`.
    ///
    /// # Panics
    /// Where the job has no such prompt, or the event is of an answer that was not asked for.
    pub fn take(&mut self, prompt: usize, event: Event) {
        match event {
            Event::Started { cached } => {
                self.prompts[prompt].cached = cached;
                if self.plan.is_chat && self.plan.stream.is_some() {
                    let n = self.plan.n;
                    self.chunks
                        .extend((prompt * n..(prompt + 1) * n).map(Chunk::Role));
                }
            }
            Event::PromptLogprobs { first, logprobs } => {
                let ids = &self.plan.prompts[prompt].ids;
                let state = &mut self.prompts[prompt];
                state.begin(&self.plan.prompts[prompt]);
                if let Some(namer) = &mut state.namer {
                    let known = ids.iter().skip(first).zip(&logprobs);
                    state
                        .entries
                        .extend(known.map(|(&id, logprob)| namer.entry(id, Some(logprob))));
                }
            }
            Event::Token {
                choice,
                id,
                text,
                logprob,
            } => {
                let index = prompt * self.plan.n + choice;
                self.begin(index);
                let choice = &mut self.choices[index];
                choice.n_tokens += 1;
                let entry = match (&mut choice.namer, logprob) {
                    (Some(namer), Some(logprob)) => Some(namer.entry(id, Some(&logprob))),
                    _ => None,
                };
                let pieces = choice.pieces(text);
                let id = self.plan.has_token_ids.then_some(id);
                self.add(index, pieces, entry, id);
            }
            Event::Finished {
                choice,
                reason,
                ended_by,
                text,
                ..
            } => {
                let index = prompt * self.plan.n + choice;
                self.begin(index);
                let choice = &mut self.choices[index];
                let mut pieces = choice.pieces(text);
                if let Some(parser) = &mut choice.parser {
                    pieces.extend(parser.finish());
                }
                let calls = choice.parser.as_ref().is_some_and(CallParser::has_whole_calls);
                choice.end = Some(Ended {
                    reason: finish_reason(reason, calls),
                    stop: StopReason::of(ended_by),
                });
                self.add(index, pieces, None, None);
                self.left -= 1;
                let ended = self.choices[index].end.as_ref();
                if let Some(stream) = self.plan.stream
                    && ended.is_some_and(|end| end.reason.is_some())
                {
                    self.chunks.push(Chunk::End(index));
                    if self.left == 0 && stream.include_usage {
                        self.chunks.push(Chunk::Usage);
                    }
                }
            }
            Event::Failed(error) => self.failure = Some(ApiError::from(&error)),
            _ => {}
        }
    }

    /// What comes before the first token of a choice: the prompt, where it is echoed, and its ids.
    fn begin(&mut self, index: usize) {
        if std::mem::replace(&mut self.choices[index].is_begun, true) {
            return;
        }
        let plan = Arc::clone(&self.plan);
        let asked = &plan.prompts[index / plan.n];
        let echo = asked.echo.as_deref().unwrap_or_default();
        // A prompt of one token has no log-probabilities, and yet an entry.
        self.prompts[index / plan.n].begin(asked);
        if plan.stream.is_none() {
            self.choices[index].text.push_str(echo);
        } else if asked.echo.is_some() || (plan.has_token_ids && !plan.is_chat) {
            self.chunks.push(Chunk::Part(Part {
                choice: index,
                text: echo.to_owned(),
                has_prompt: true,
                ..Part::default()
            }));
        }
    }

    /// Adds to a choice.
    fn add(&mut self, index: usize, pieces: Vec<Piece>, entry: Option<Entry>, id: Option<u32>) {
        if self.plan.stream.is_none() {
            return self.choices[index].keep(pieces, entry, id);
        }
        if pieces.is_empty() && entry.is_none() && id.is_none() {
            return;
        }
        let opens_call = pieces.iter().any(|piece| matches!(piece, Piece::Call { .. }));
        let part = match self.choices[index].open {
            Some(at) => Some(&mut self.chunks[at]),
            None => None,
        };
        let part = match part {
            // A call's beginning is an event of its own.
            Some(Chunk::Part(part)) if !opens_call && !part.ends_with_beginning() => part,
            _ => {
                self.choices[index].open = Some(self.chunks.len());
                self.chunks.push(Chunk::Part(Part {
                    choice: index,
                    ..Part::default()
                }));
                match self.chunks.last_mut() {
                    Some(Chunk::Part(part)) => part,
                    _ => return,
                }
            }
        };
        part.entries.extend(entry);
        part.ids.extend(id);
        for piece in pieces {
            part.push(piece);
        }
    }

    /// Whether nothing more comes: every answer has ended, or the request has failed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.left == 0 || self.failure.is_some()
    }

    /// Why there is no answer, where there is none: a status for answers in one piece, an event for a stream.
    #[must_use]
    pub fn failure(&self) -> Option<&ApiError> {
        self.failure.as_ref()
    }

    /// The id of the answer.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Tokens of the prompts.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.plan.prompts.iter().map(|asked| asked.n_tokens).sum()
    }

    /// Those of them that need not be computed, as far as is known.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.cached).sum()
    }

    /// Tokens of the answers so far.
    #[must_use]
    pub fn completion_tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.n_tokens).sum()
    }

    /// Tokens and `finish_reason` of each choice; `None` where it goes on or was cancelled.
    pub fn choices(&self) -> impl Iterator<Item = (usize, Option<&'static str>)> {
        self.choices
            .iter()
            .map(|choice| (choice.n_tokens, choice.end.as_ref().and_then(|end| end.reason)))
    }

    fn usage(&self) -> Usage {
        Usage::new(
            self.prompt_tokens(),
            self.cached_tokens(),
            self.completion_tokens(),
        )
    }

    /// The events that have gathered, each a JSON text of one line. The last of a stream that asked for it are the counts of tokens.
    pub fn chunks(&mut self) -> Vec<String> {
        let chunks = std::mem::take(&mut self.chunks);
        for choice in &mut self.choices {
            choice.open = None;
        }
        chunks.iter().map(|chunk| self.chunk(chunk)).collect()
    }

    fn chunk(&self, chunk: &Chunk) -> String {
        let plan = &self.plan;
        let mut form = ChoiceForm::default();
        let mut prompt_ids = None;
        match chunk {
            Chunk::Role(choice) => {
                form.index = *choice;
                let content = (plan.calls != Calls::Forced).then_some("");
                form.delta = Some(Delta {
                    role: Some("assistant"),
                    content: Some(content),
                    tool_calls: &[],
                });
                prompt_ids = plan
                    .has_token_ids
                    .then_some(&plan.prompts[choice / plan.n].ids[..]);
            }
            Chunk::Part(part) => {
                form.index = part.choice;
                let before = &self.prompts[part.choice / plan.n].entries;
                let before = if part.has_prompt { &before[..] } else { &[] };
                if plan.is_chat {
                    form.delta = Some(Delta {
                        role: None,
                        content: (!part.text.is_empty()).then_some(Some(&part.text)),
                        tool_calls: &part.calls,
                    });
                } else {
                    form.text = Some(&part.text);
                }
                form.logprobs = self.logprobs(before, &part.entries);
                form.token_ids = plan.has_token_ids.then_some(&part.ids);
                let ids = plan.has_token_ids && part.has_prompt;
                form.prompt_token_ids = ids.then_some(&plan.prompts[part.choice / plan.n].ids);
            }
            Chunk::End(choice) => {
                form.index = *choice;
                if plan.is_chat {
                    form.delta = Some(Delta::default());
                } else {
                    form.text = Some("");
                }
                if let Some(end) = &self.choices[*choice].end {
                    form.finish_reason = end.reason;
                    form.stop_reason = Some(&end.stop);
                }
            }
            Chunk::Usage => {}
        }
        let is_usage = matches!(chunk, Chunk::Usage);
        let is_told = is_usage || plan.stream.is_some_and(|stream| stream.continuous_usage);
        json(&Body {
            id: &self.id,
            object: if plan.is_chat {
                "chat.completion.chunk"
            } else {
                "text_completion"
            },
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices: if is_usage { Vec::new() } else { vec![form] },
            usage: is_told.then(|| self.usage()),
            prompt_token_ids: prompt_ids,
        })
    }

    fn logprobs<'a>(&self, prompt: &'a [Entry], answer: &'a [Entry]) -> Option<Logprobs<'a>> {
        if !self.plan.has_logprobs {
            return None;
        }
        Some(match self.plan.is_chat {
            true => Logprobs::Chat(Content::new(answer)),
            false => Logprobs::Text(Columns::new(prompt.iter().chain(answer))),
        })
    }

    /// The answer in one piece, a JSON text.
    ///
    /// # Errors
    /// Where the request has failed.
    pub fn whole(self) -> Result<String, ApiError> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let plan = &self.plan;
        let choices = self.choices.iter().enumerate().map(|(index, choice)| {
            let prompt = index / plan.n;
            let asked = &plan.prompts[prompt];
            let mut form = ChoiceForm {
                index,
                logprobs: self.logprobs(&self.prompts[prompt].entries, &choice.entries),
                finish_reason: choice.end.as_ref().and_then(|end| end.reason),
                stop_reason: choice.end.as_ref().map(|end| &end.stop),
                token_ids: plan.has_token_ids.then_some(&choice.ids),
                ..ChoiceForm::default()
            };
            if plan.is_chat {
                let is_call = plan.calls == Calls::Forced || !choice.calls.is_empty();
                let content = (!is_call || !choice.text.trim().is_empty()).then_some(&choice.text[..]);
                form.message = Some(Message::new(content, &choice.calls));
            } else {
                form.text = Some(&choice.text);
                form.prompt_token_ids = plan.has_token_ids.then_some(&asked.ids);
            }
            form
        });
        let first = plan
            .prompts
            .first()
            .filter(|_| plan.is_chat && plan.has_token_ids);
        Ok(json(&Body {
            id: &self.id,
            object: if plan.is_chat {
                "chat.completion"
            } else {
                "text_completion"
            },
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices: choices.collect(),
            usage: Some(self.usage()),
            prompt_token_ids: first.map(|asked| &asked.ids[..]),
        }))
    }
}

fn json(body: &Body<'_>) -> String {
    // Texts, numbers and maps with texts for keys: there is nothing that JSON has not.
    serde_json::to_string(body).unwrap_or_default()
}
