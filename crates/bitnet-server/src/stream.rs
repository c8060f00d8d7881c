//! A streamed answer: server-sent events, written by a task of their own that notices clients that do not read or go away.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use bitnet_api::{Answers, ApiError};
use bitnet_model::schedule::Event;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until, timeout};

use crate::abort::Abort;
use crate::exchange::Exchange;
use crate::queue::Place;
use crate::refusal::Refusal;
use crate::running::{Came, Running, no_engine, of_engine};
use crate::state::{Shown, Stage, State};

/// Writes that wait for the socket, each of what had gathered.
const WRITES: usize = 4;
/// Events of the engine after which no more are added to a write.
const ENOUGH: usize = 64;
/// What keeps proxies and clients from giving up.
const PING: &[u8] = b":\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// A piece of a stream.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// It is complete.
    End,
}

/// The body of a stream.
struct EventStream {
    pieces: Receiver<Piece>,
    /// What is said where the stream breaks off without having said why.
    broken: Option<Bytes>,
    is_over: bool,
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let piece = match self.pieces.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Piece::Bytes(bytes))) => Some(bytes),
            Poll::Ready(Some(Piece::End)) => {
                self.is_over = true;
                None
            }
            Poll::Ready(None) => {
                self.is_over = true;
                self.broken.take()
            }
        };
        Poll::Ready(piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

/// What a stream needs until its end.
pub(crate) struct Streaming {
    pub(crate) running: Running,
    pub(crate) answers: Answers,
    /// Tokens of each prompt.
    pub(crate) prompts: Vec<usize>,
    /// What came before the answer was begun.
    pub(crate) before: Vec<Came>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) place: Place,
    pub(crate) shown: Shown,
    /// When it must be over.
    pub(crate) deadline: Option<Instant>,
}

/// Answers with a stream.
pub(crate) fn answer(state: &Arc<State>, streaming: Streaming) -> Response {
    let (sender, pieces) = channel(WRITES);
    let broken = ApiError::internal(&streaming.exchange.id).body();
    tokio::spawn(write(Arc::clone(state), streaming, sender));
    let body = EventStream {
        pieces,
        broken: Some(event(&broken)),
        is_over: false,
    };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Why a stream ends before its end.
enum Break {
    /// Nobody is there to be told.
    Gone(Abort),
    /// It is told as an event.
    Told(ApiError, Abort),
}

async fn write(state: Arc<State>, streaming: Streaming, sender: Sender<Piece>) {
    let Streaming {
        mut running,
        answers,
        prompts,
        before,
        exchange,
        place,
        shown,
        deadline,
    } = streaming;
    let mut writer = Writer {
        answers,
        prompts,
        exchange: Arc::clone(&exchange),
        sender,
        slow: state.options.slow_client_timeout,
        buffer: Vec::new(),
    };
    let result = writer.run(&state, &mut running, before, deadline).await;
    // The engine's work and the place end before the last bytes are taken.
    drop((running, place, shown));
    match result {
        Ok(()) => {
            exchange.finished(finish_reason(&writer.answers));
            if let Err(cause) = writer.end(DONE).await {
                exchange.abort(cause);
            }
        }
        Err(Break::Gone(cause)) => exchange.abort(cause),
        Err(Break::Told(error, cause)) => {
            exchange.abort(cause);
            let _ = writer.end(&event(&error.body())).await;
        }
    }
}

struct Writer {
    answers: Answers,
    prompts: Vec<usize>,
    exchange: Arc<Exchange>,
    sender: Sender<Piece>,
    /// How long a write may wait for the client.
    slow: Duration,
    buffer: Vec<u8>,
}

impl Writer {
    /// Writes events until the answers are over.
    async fn run(
        &mut self,
        state: &State,
        running: &mut Running,
        before: Vec<Came>,
        deadline: Option<Instant>,
    ) -> Result<(), Break> {
        let mut stage = state.stage.subscribe();
        let interval = state.options.ping_interval;
        for came in before {
            self.take(came)?;
        }
        loop {
            // What has gathered goes out in one write.
            let mut n = 0;
            while n < ENOUGH
                && !self.answers.is_over()
                && let Some(came) = running.try_next()
            {
                self.take(came)?;
                n += 1;
            }
            for chunk in self.answers.chunks() {
                put(&mut self.buffer, chunk.as_bytes());
            }
            if self.answers.is_over() {
                return Ok(());
            }
            self.flush().await.map_err(Break::Gone)?;
            let ping = Instant::now() + interval;
            tokio::select! {
                biased;
                () = self.sender.closed() => return Err(Break::Gone(Abort::Disconnect)),
                came = running.next() => match came {
                    Some(came) => self.take(came)?,
                    None => return Err(Break::Told(no_engine(&self.exchange.id), Abort::Error)),
                },
                _ = stage.wait_for(|stage| *stage == Stage::Cut) => {
                    return Err(Break::Told(*Refusal::shutting_down().error, Abort::Shutdown));
                }
                () = sleep_until(deadline.unwrap_or(ping)), if deadline.is_some() => {
                    return Err(Break::Told(timed_out(state), Abort::Timeout));
                }
                () = sleep_until(ping) => self.buffer.extend_from_slice(PING),
            }
        }
    }

    fn take(&mut self, (prompt, at, event): Came) -> Result<(), Break> {
        note(&self.exchange, &self.prompts, prompt, at, &event);
        if let Event::Failed(error) = &event {
            return Err(Break::Told(of_engine(error, &self.exchange.id), Abort::Error));
        }
        self.answers.take(prompt, event);
        Ok(())
    }

    /// Hands on what has gathered, and waits while the client takes nothing, but not for long.
    async fn flush(&mut self) -> Result<(), Abort> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Piece::Bytes(std::mem::take(&mut self.buffer).into());
        self.send(piece).await
    }

    async fn send(&self, piece: Piece) -> Result<(), Abort> {
        match timeout(self.slow, self.sender.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Abort::Disconnect),
            Err(_) => Err(Abort::SlowClient),
        }
    }

    /// Writes the last event, and the end.
    async fn end(&mut self, last: &[u8]) -> Result<(), Abort> {
        self.buffer.extend_from_slice(last);
        self.flush().await?;
        self.send(Piece::End).await
    }
}

/// What a client is told whose time is over.
pub(crate) fn timed_out(state: &State) -> ApiError {
    ApiError::timeout(state.options.request_timeout.unwrap_or_default().as_secs())
}

/// Counts and times an event.
pub(crate) fn note(
    exchange: &Exchange,
    prompts: &[usize],
    prompt: usize,
    at: std::time::Instant,
    event: &Event,
) {
    match event {
        Event::Started { cached } => {
            exchange.started(at, prompts.get(prompt).copied().unwrap_or(0), *cached);
        }
        Event::Token { choice, .. } => exchange.token(at, prompt, *choice),
        _ => {}
    }
}

/// How the first answer ended, which stands for all in metrics and the log.
pub(crate) fn finish_reason(answers: &Answers) -> &'static str {
    let mut reasons = answers.choices().filter_map(|(_, reason)| reason);
    reasons.next().unwrap_or("stop")
}

fn put(buffer: &mut Vec<u8>, chunk: &[u8]) {
    buffer.extend_from_slice(b"data: ");
    buffer.extend_from_slice(chunk);
    buffer.extend_from_slice(b"\n\n");
}

fn event(value: &Value) -> Bytes {
    let mut bytes = Vec::new();
    put(&mut bytes, value.to_string().as_bytes());
    bytes.into()
}
