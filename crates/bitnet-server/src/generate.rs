//! The two endpoints that generate: from a body to an answer, in one piece or as a stream.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State as Extract};
use axum::http::StatusCode;
use axum::response::Response;
use bitnet_api::{Answers, ApiError, Endpoint, Job, Served};
use bitnet_model::schedule::Event;
use serde_json::{Map, Value};
use tokio::task::JoinError;
use tokio::time::Instant as Deadline;

use crate::abort::Abort;
use crate::body;
use crate::exchange::Exchange;
use crate::keys::Holder;
use crate::queue::{Full, Place};
use crate::refusal::{Refusal, json_text};
use crate::running::{Came, Running, no_engine, of_engine};
use crate::state::{Loaded, Shown, Stage, State};
use crate::stream::{self, Streaming, finish_reason, note, timed_out};

/// `POST /v1/chat/completions`
pub(crate) async fn chat(
    Extract(state): Extract<Arc<State>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    Extension(holder): Extension<Holder>,
    request: Request,
) -> Result<Response, Refusal> {
    generate(state, exchange, holder, request, Endpoint::Chat).await
}

/// `POST /v1/completions`
pub(crate) async fn completions(
    Extract(state): Extract<Arc<State>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    Extension(holder): Extension<Holder>,
    request: Request,
) -> Result<Response, Refusal> {
    generate(state, exchange, holder, request, Endpoint::Completions).await
}

async fn generate(
    state: Arc<State>,
    exchange: Arc<Exchange>,
    holder: Holder,
    request: Request,
    endpoint: Endpoint,
) -> Result<Response, Refusal> {
    if let Err(refusal) = state.ready() {
        return Err(body::refuse(request, refusal).await);
    }
    let body = body::read(&state, request).await?;
    let loaded = state.ready()?;
    let job = read(&state, loaded, &exchange, body, endpoint).await?;
    let asked = Asked::submit(&state, loaded, &exchange, holder, job)?;
    asked.answer(&state).await
}

/// What a body is, once it was looked at.
enum Read {
    Job(Job),
    /// A grammar must be compiled, which takes longer.
    Constrained(Map<String, Value>),
}

/// Reads a request, on a thread that may take its time: templates run, long prompts are tokenized, grammars compiled. Grammars have
/// some of those threads and no more, so that nobody else waits for them.
async fn read(
    state: &State,
    loaded: &Loaded,
    exchange: &Arc<Exchange>,
    body: body::Received,
    endpoint: Endpoint,
) -> Result<Job, Refusal> {
    let make = move |served: &Served, fields| match endpoint {
        Endpoint::Completions => bitnet_api::completion(served, fields),
        _ => bitnet_api::chat(served, fields),
    };
    let panicked = |error: JoinError| {
        tracing::error!(id = exchange.id, %error, "reading a request panicked");
        ApiError::internal(&exchange.id)
    };
    let served = Arc::clone(&loaded.served);
    let logs_prompts = state.options.logs_prompts;
    let id = exchange.id.clone();
    let begun = Instant::now();
    let read = tokio::task::spawn_blocking(move || {
        if logs_prompts {
            tracing::info!(id, body = %String::from_utf8_lossy(&body.bytes), "asked");
        }
        let fields = bitnet_api::parse(&body.bytes)?;
        drop(body);
        if bitnet_api::is_constrained(&fields) {
            return Ok(Read::Constrained(fields));
        }
        make(&served, fields).map(Read::Job)
    });
    let job = match read.await.map_err(panicked)? {
        Ok(Read::Job(job)) => Ok(job),
        Err(error) => Err(error),
        Ok(Read::Constrained(fields)) => {
            let turn = state.turn(loaded).await?;
            let served = Arc::clone(&loaded.served);
            let made = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                make(&served, fields)
            });
            made.await.map_err(panicked)?
        }
    };
    state.meters.parse.record(begun.elapsed());
    let job = job?;
    if let Some(time) = job.grammar_time {
        state.meters.grammar.record(time);
    }
    Ok(job)
}

/// A job that was handed to the engine.
struct Asked {
    running: Running,
    answers: Answers,
    /// Tokens of each prompt.
    prompts: Vec<usize>,
    is_stream: bool,
    exchange: Arc<Exchange>,
    place: Place,
    shown: Shown,
    deadline: Option<Deadline>,
    /// What has come.
    came: Vec<Came>,
}

impl Asked {
    fn submit(
        state: &Arc<State>,
        loaded: &Loaded,
        exchange: &Arc<Exchange>,
        holder: Holder,
        mut job: Job,
    ) -> Result<Self, Refusal> {
        if !state.options.shares_prompts {
            // Only prompts of the same salt share, and no other request has this one.
            let salt = state.unique();
            job.requests.iter_mut().for_each(|request| request.salt = salt);
        }
        let prompts: Vec<usize> = job.requests.iter().map(|request| request.prompt.len()).collect();
        let tokens = prompts.iter().sum();
        let answers = job.requests.iter().map(|request| request.n).sum();
        let max_tokens = job
            .requests
            .first()
            .and_then(|request| request.options.max_tokens);
        let key = match holder {
            Holder::Key(key) if state.keys.facts().0 > 1 => Some(key),
            _ => None,
        };
        let place = loaded.queue.enter(answers, tokens, key).map_err(full)?;
        let id = state.name();
        let answers = Answers::new(&loaded.served, &job, &id);
        let running =
            Running::start(&loaded.client, job.requests).map_err(|e| of_engine(&e, &exchange.id))?;
        exchange.submitted(tokens, max_tokens);
        let began = Deadline::from_std(exchange.began);
        Ok(Self {
            running,
            answers,
            prompts,
            is_stream: job.stream.is_some(),
            exchange: Arc::clone(exchange),
            place,
            shown: state.show(exchange),
            deadline: state.options.request_timeout.map(|time| began + time),
            came: Vec::new(),
        })
    }

    /// Waits for its turn, so that whatever is refused is refused before a stream begins, and answers.
    async fn answer(mut self, state: &Arc<State>) -> Result<Response, Refusal> {
        let turn = Deadline::now() + state.options.max_queue_time;
        let came = self.next(state, Some(turn)).await?;
        self.came.push(came);
        self.place.served();
        if self.is_stream {
            let streaming = Streaming {
                running: self.running,
                answers: self.answers,
                prompts: self.prompts,
                before: self.came,
                exchange: self.exchange,
                place: self.place,
                shown: self.shown,
                deadline: self.deadline,
            };
            return Ok(stream::answer(state, streaming));
        }
        for came in std::mem::take(&mut self.came) {
            self.take(came);
        }
        while !self.answers.is_over() {
            let came = self.next(state, None).await?;
            self.take(came);
        }
        let reason = finish_reason(&self.answers);
        let text = self.answers.whole()?;
        self.exchange.finished(reason);
        Ok(json_text(StatusCode::OK, text))
    }

    fn take(&mut self, (prompt, at, event): Came) {
        note(&self.exchange, &self.prompts, prompt, at, &event);
        self.answers.take(prompt, event);
    }

    /// The next event, unless the request fails before; `turn` is when its turn must have come.
    async fn next(&mut self, state: &State, turn: Option<Deadline>) -> Result<Came, Refusal> {
        let mut stage = state.stage.subscribe();
        let far = Deadline::now() + std::time::Duration::from_secs(3600);
        let refusal = tokio::select! {
            biased;
            came = self.running.next() => match came {
                Some((_, _, Event::Failed(error))) => {
                    self.exchange.abort(Abort::Error);
                    return Err(of_engine(&error, &self.exchange.id).into());
                }
                Some(came) => return Ok(came),
                None => {
                    self.exchange.abort(Abort::Error);
                    return Err(no_engine(&self.exchange.id).into());
                }
            },
            _ = stage.wait_for(|stage| *stage == Stage::Cut) => {
                self.exchange.abort(Abort::Shutdown);
                Refusal::shutting_down()
            }
            () = tokio::time::sleep_until(self.deadline.unwrap_or(far)), if self.deadline.is_some() => {
                self.exchange.abort(Abort::Timeout);
                timed_out(state).into()
            }
            () = tokio::time::sleep_until(turn.unwrap_or(far)), if turn.is_some() => {
                self.exchange.abort(Abort::Timeout);
                let waited = state.options.max_queue_time.as_secs();
                let again = state.loaded.get().map(|loaded| loaded.queue.retry_after());
                Refusal::from(ApiError::queue_timeout(waited)).retry_after(again.unwrap_or_default())
            }
        };
        Err(refusal)
    }
}

fn full(full: Full) -> Refusal {
    let mut error = ApiError::queue_full();
    if full.is_of_key {
        error.message =
            "this key has as many requests under way as one key may; try again after the seconds of \
            Retry-After"
                .to_owned();
    }
    Refusal::from(error).retry_after(full.retry_after)
}
