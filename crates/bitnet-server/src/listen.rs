//! The connections that a server takes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use crate::bound::{Listener, SEND_BUFFER};
use crate::conn::{Conn, HEAD, IDLE, Socket, Verdict, Watched};
use crate::gate::Outside;

/// What is read of a head before it is refused by hyper itself, with 431 and no body.
const HEAD_BUFFER: usize = 64 << 10;
/// Headers beyond which hyper does the same; a hundred unless told otherwise, which some chains of proxies reach.
const MOST_HEADERS: usize = 512;

/// The connections that are open, to find the one that is idle for the longest.
#[derive(Debug, Default)]
struct Open {
    conns: BTreeMap<u64, Arc<Conn>>,
    next: u64,
}

/// Takes connections until it is dropped, at most `most` at a time. With all taken the one that has been silent for the longest makes
/// room. When `ends` says so, each ends after its answer.
pub(crate) async fn accept(
    listener: Listener,
    router: Router,
    prefix: String,
    most: usize,
    ends: watch::Receiver<bool>,
) {
    let open: Arc<Mutex<Open>> = Arc::default();
    let places = Arc::new(Semaphore::new(most));
    let prefix: Arc<str> = prefix.into();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Conn` times heads and silence, both by a clock of its own; this one stands behind it.
        .header_read_timeout(IDLE + HEAD)
        .max_buf_size(HEAD_BUFFER)
        .max_headers(MOST_HEADERS)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_header_list_size(HEAD_BUFFER as u32)
        .max_concurrent_streams(256)
        .max_send_buf_size(SEND_BUFFER);
    let builder = Arc::new(builder);
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                // One connection that broke off, or no files left: neither ends the server.
                if !matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) {
                    tracing::warn!(%error, "a connection could not be taken");
                    make_room(&open);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        let place = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                make_room(&open);
                // The semaphore is never closed.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                place
            }
        };
        let conn = Conn::new();
        let number = {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            open.next += 1;
            let number = open.next;
            open.conns.insert(number, Arc::clone(&conn));
            number
        };
        let (router, prefix, builder) = (router.clone(), Arc::clone(&prefix), Arc::clone(&builder));
        let (ends, open) = (ends.clone(), Arc::clone(&open));
        tokio::spawn(async move {
            serve(socket, conn, router, prefix, &builder, ends).await;
            open.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .conns
                .remove(&number);
            drop(place);
        });
    }
}

/// Ends the connection that has been silent for the longest.
fn make_room(open: &Mutex<Open>) {
    let open = open.lock().unwrap_or_else(PoisonError::into_inner);
    // Of several that are silent for as long, the last of these, which is the oldest: the newest is likely to have just sent a request
    // that nobody has read.
    let idle = open
        .conns
        .values()
        .rev()
        .filter_map(|conn| Some((conn.idle()?, conn)));
    if let Some((_, conn)) = idle.max_by_key(|(time, _)| *time) {
        conn.close();
    }
}

/// Answers the requests of a connection.
async fn serve(
    socket: Box<dyn Socket>,
    conn: Arc<Conn>,
    router: Router,
    prefix: Arc<str>,
    builder: &auto::Builder<TokioExecutor>,
    mut ends: watch::Receiver<bool>,
) {
    let of_requests = Arc::clone(&conn);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&of_requests));
        strip(&prefix, &mut request);
        router.clone().oneshot(request)
    });
    let io = TokioIo::new(Watched {
        socket,
        conn: Arc::clone(&conn),
    });
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    let mut is_ending = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error, "a connection broke off");
                }
                return;
            }
            () = conn.closed() => return,
            _ = clock.tick() => match conn.verdict() {
                Verdict::Keep => {}
                // It had its time to end by itself.
                Verdict::End if is_ending => return,
                Verdict::End => {
                    connection.as_mut().graceful_shutdown();
                    is_ending = true;
                }
                Verdict::Cut => return,
            },
            changed = ends.wait_for(|ends| *ends), if !is_ending => {
                if changed.is_ok() {
                    connection.as_mut().graceful_shutdown();
                }
                is_ending = true;
            }
        }
    }
}

/// Takes the prefix off a path, and marks what has none.
fn strip(prefix: &str, request: &mut Request) {
    if prefix.is_empty() {
        return;
    }
    let uri = request.uri();
    let rest = uri
        .path_and_query()
        .and_then(|path| path.as_str().strip_prefix(prefix));
    let path = match rest {
        Some(rest) if rest.is_empty() || rest.starts_with('?') => Some(format!("/{rest}")),
        Some(rest) if rest.starts_with('/') => Some(rest.to_owned()),
        _ => None,
    };
    let Some(path) = path.and_then(|path| path.parse::<PathAndQuery>().ok()) else {
        request.extensions_mut().insert(Outside);
        return;
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_taken_off_whole() {
        for (path, inside) in [
            ("/llm/v1/models?x=1", Some("/v1/models?x=1")),
            ("/llm", Some("/")),
            ("/llm?a", Some("/?a")),
            ("/llmx/v1", None),
            ("/v1/models", None),
        ] {
            let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
            strip("/llm", &mut request);
            assert_eq!(
                request.extensions().get::<Outside>().is_none(),
                inside.is_some(),
                "{path}"
            );
            if let Some(inside) = inside {
                assert_eq!(request.uri().to_string(), inside);
            }
        }
    }
}
