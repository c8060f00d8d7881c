//! Bodies: what a request sends, within the limits of size, time and memory, and what it is sent, until its last byte.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use bitnet_api::ApiError;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use crate::abort::Abort;
use crate::conn::Turn;
use crate::exchange::Exchange;
use crate::refusal::Refusal;
use crate::state::{Active, PIECE, State};

/// How long a body may take.
const TIME: Duration = Duration::from_secs(30);
/// A body that is too large is read up to here, so that its sender sees the answer and not a connection that was reset.
const READ_ANYWAY: usize = 64 << 20;

/// The bytes of a body, and the room that they take.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

/// Reads a body that is declared as JSON.
pub(crate) async fn read(state: &Arc<State>, request: Request) -> Result<Received, Refusal> {
    let headers = request.headers();
    let is_json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| {
            let kind = kind.split(';').next().unwrap_or_default();
            kind.trim().eq_ignore_ascii_case("application/json")
        });
    let encoding = headers
        .get(CONTENT_ENCODING)
        .filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let waits = headers.contains_key(EXPECT);
    let limit = state.options.max_body;
    let until = Instant::now() + TIME;
    let mut body = request.into_body();
    let refusal = if let Some(encoding) = encoding {
        Some(ApiError::body_encoding(&encoding))
    } else if !is_json {
        Some(ApiError::body_type())
    } else if length.is_some_and(|n| n > limit as u64) {
        Some(ApiError::body_size(limit))
    } else {
        None
    };
    if let Some(error) = refusal {
        // Who waits for a `100 Continue` has sent nothing and need not.
        let is_read = !waits && skip(&mut body, 0, until).await;
        let refusal = Refusal::from(error);
        return Err(if is_read { refusal } else { refusal.closing() });
    }
    let mut bytes = Vec::new();
    let mut room: Option<OwnedSemaphorePermit> = None;
    loop {
        let Ok(frame) = tokio::time::timeout_at(until, body.frame()).await else {
            return Err(late());
        };
        let data = match frame {
            None => return Ok(Received { bytes, _room: room }),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => {
                let message = format!("the body ended before its end: {error}");
                return Err(Refusal::from(ApiError::not_json(message)).closing());
            }
        };
        if bytes.len() + data.len() > limit {
            let is_read = skip(&mut body, bytes.len() + data.len(), until).await;
            let refusal = Refusal::from(ApiError::body_size(limit));
            return Err(if is_read { refusal } else { refusal.closing() });
        }
        // The first piece is free: small requests never wait for large ones.
        let pieces = ((bytes.len() + data.len()) / PIECE)
            .saturating_sub(room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if pieces > 0 {
            let wanted =
                Arc::clone(&state.bodies).acquire_many_owned(u32::try_from(pieces).unwrap_or(u32::MAX));
            // The semaphore is never closed.
            let Ok(Ok(more)) = tokio::time::timeout_at(until, wanted).await else {
                return Err(late());
            };
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
        }
        bytes.extend_from_slice(&data);
    }
}

fn late() -> Refusal {
    let message = format!("the body did not come within {} s", TIME.as_secs());
    Refusal::from(ApiError::new(408, "timeout_error", Some("body_timeout"), message)).closing()
}

/// A refusal that does not depend on the body, once that came: who is still sending it finds the connection as usable as before, or
/// is told that it is closed.
pub(crate) async fn refuse(request: Request, refusal: impl Into<Refusal>) -> Refusal {
    let refusal = refusal.into();
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    let is_read = body.is_end_stream() || (!waits && skip(&mut body, 0, Instant::now() + TIME).await);
    if is_read { refusal } else { refusal.closing() }
}

/// Reads the rest of a body of which `seen` bytes came, and forgets it; whether its end came.
async fn skip(body: &mut Body, mut seen: usize, until: Instant) -> bool {
    loop {
        match tokio::time::timeout_at(until, body.frame()).await {
            Ok(Some(Ok(frame))) => seen += frame.data_ref().map_or(0, Bytes::len),
            Ok(None) => return true,
            Ok(Some(Err(_))) | Err(_) => return false,
        }
        if seen > READ_ANYWAY {
            return false;
        }
    }
}

/// What is handed on of a large answer at a time.
const HANDED: usize = 64 << 10;

/// A large answer by pieces: of one that nobody reads little is held, and not for longer than `slow`.
pub(crate) fn by_pieces(body: Body, slow: Duration, exchange: &Arc<Exchange>) -> Body {
    let Some(left) = body.size_hint().exact().filter(|&size| size > HANDED as u64) else {
        return body;
    };
    let (sender, pieces) = channel(1);
    tokio::spawn(hand_on(body, slow, Arc::clone(exchange), sender));
    Body::new(Pieces { pieces, left })
}

async fn hand_on(mut body: Body, slow: Duration, exchange: Arc<Exchange>, sender: Sender<Bytes>) {
    while let Some(Ok(frame)) = body.frame().await {
        let mut data = frame.into_data().unwrap_or_default();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(HANDED));
            match tokio::time::timeout(slow, sender.send(piece)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => return exchange.abort(Abort::SlowClient),
            }
        }
    }
}

/// Pieces of an answer of known size.
struct Pieces {
    pieces: Receiver<Bytes>,
    /// Bytes that have not been taken.
    left: u64,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match self.pieces.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(piece)) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(None) => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// The body of an answer, and whom its end concerns.
pub(crate) struct Answer {
    pub(crate) body: Body,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) _turn: Option<Turn>,
    pub(crate) _active: Active,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(poll, Poll::Ready(None)) || self.body.is_end_stream() {
            self.exchange.sent();
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
