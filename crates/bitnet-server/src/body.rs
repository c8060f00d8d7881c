//! Bodies: what a request sends, within the limits of size, time and memory, and what it is sent, until its last byte.

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
use tokio::time::Instant;

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
