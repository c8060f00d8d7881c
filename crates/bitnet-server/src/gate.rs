//! What every request passes before its path is looked at: its name, `Host`, preflights, keys, and a net for panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State as Extract};
use axum::http::header::{ACCESS_CONTROL_REQUEST_METHOD, CONNECTION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bitnet_api::ApiError;
use futures_util::FutureExt;

use crate::body::{self, Answer};
use crate::conn::{Conn, IDLE, Turn};
use crate::exchange::Exchange;
use crate::keys;
use crate::origin;
use crate::refusal::{Code, Refusal, close};
use crate::state::{Active, Stage, State};

/// Most bytes of names and values of headers.
const MAX_HEADERS: usize = 16 << 10;

/// Paths that need no key. `/metrics` has a key of its own.
const OPEN: [&str; 9] = [
    "/",
    "/health",
    "/livez",
    "/metrics",
    "/openapi.json",
    "/ping",
    "/readyz",
    "/v1/health",
    "/version",
];

/// Marks a request whose path does not begin with `--api-prefix`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside;

/// Lets a request through, or refuses it, and completes its answer.
pub(crate) async fn gate(Extract(state): Extract<Arc<State>>, mut request: Request, next: Next) -> Response {
    let active = Active::new(Arc::clone(&state));
    let conn = request.extensions().get::<Arc<Conn>>().cloned();
    let turn = conn.clone().map(Turn::new);
    let exchange = Exchange::new(
        state.name(),
        request.method().clone(),
        request.uri().path(),
        request.headers(),
        Arc::clone(&state.meters),
        conn,
    );
    let origin = request.headers().get(ORIGIN).cloned();
    let (version, is_head) = (request.version(), request.method() == Method::HEAD);
    let mut response = if is_preflight(&request) && admit_host(&state, &request).is_ok() {
        let mut response = StatusCode::NO_CONTENT.into_response();
        origin::allow_asked(response.headers_mut());
        response
    } else {
        match admit(&state, &request) {
            Err(refusal) => body::refuse(request, refusal).await.into_response(),
            Ok(holder) => {
                request.extensions_mut().insert(Arc::clone(&exchange));
                request.extensions_mut().insert(holder);
                // A panic is one request's failure, and no other's.
                match AssertUnwindSafe(next.run(request)).catch_unwind().await {
                    Ok(response) => response,
                    Err(_) => {
                        tracing::error!(id = exchange.id, "a handler panicked");
                        Refusal::from(ApiError::internal(&exchange.id)).into_response()
                    }
                }
            }
        }
    };
    origin::allow(&state.options.cors, origin.as_ref(), response.headers_mut());
    if let Ok(id) = HeaderValue::from_str(&exchange.id) {
        response.headers_mut().insert("x-request-id", id);
    }
    if version == Version::HTTP_2 {
        response.headers_mut().remove(CONNECTION);
    } else if version == Version::HTTP_10 || state.stage() >= Stage::Draining {
        close(&mut response);
    } else if !response.headers().contains_key(CONNECTION) {
        let idle = HeaderValue::from_str(&format!("timeout={}", IDLE.as_secs()));
        if let Ok(idle) = idle {
            response
                .headers_mut()
                .insert(HeaderName::from_static("keep-alive"), idle);
        }
    }
    let code = response.extensions().get::<Code>().map(|code| code.0);
    exchange.answered(response.status().as_u16(), code);
    let (parts, mut body) = response.into_parts();
    if !is_head {
        body = body::by_pieces(body, state.options.slow_client_timeout, &exchange);
    }
    if is_head || body.is_end_stream() {
        // Nobody asks for the bytes of such a body.
        exchange.sent();
    }
    let answer = Answer {
        body,
        exchange,
        _turn: turn,
        _active: active,
    };
    Response::from_parts(parts, Body::new(answer))
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Refuses what a page of another name sends to a server that is meant for this machine alone.
fn admit_host(state: &State, request: &Request) -> Result<(), Refusal> {
    if !state.checks_host {
        return Ok(());
    }
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(HOST).and_then(|host| host.to_str().ok()),
    };
    // Programs of HTTP/1.0 name no host; browsers always do.
    if host.is_none_or(origin::is_loopback_name) {
        return Ok(());
    }
    let message = "this server listens on loopback without a key and answers to localhost and 127.0.0.1 alone; \
        start it with --api-key to reach it by another name";
    let error = ApiError::new(403, "invalid_request_error", Some("forbidden_host"), message);
    Err(Refusal::from(error))
}

/// Whose request it is, if it may go on.
fn admit(state: &State, request: &Request) -> Result<keys::Holder, Refusal> {
    let headers = request.headers();
    if size(headers) > MAX_HEADERS {
        return Err(Refusal::from(ApiError::header_size(MAX_HEADERS)).closing());
    }
    admit_host(state, request)?;
    let path = request.uri().path();
    if request.extensions().get::<Outside>().is_some() {
        return Err(Refusal::from(ApiError::path(path)));
    }
    if path == "/metrics"
        && let Some(key) = &state.options.metrics_key
        && !keys::has(headers, key)
    {
        return Err(Refusal::from(ApiError::key()));
    }
    match state.keys.holder(headers) {
        Some(holder) => Ok(holder),
        None if OPEN.contains(&path) => Ok(keys::Holder::Anyone),
        None => Err(Refusal::from(ApiError::key())),
    }
}

fn size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::ServeOptions;
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_panic_is_one_request_s_failure() {
        async fn boom() -> &'static str {
            panic!("a mistake in a handler")
        }
        let state = State::new(ServeOptions::default(), false).unwrap();
        let router: Router = Router::new()
            .route("/boom", get(boom))
            .route("/fine", get(|| async { "fine" }))
            .layer(from_fn_with_state(Arc::clone(&state), gate));
        let ask = |path: &str| {
            router
                .clone()
                .oneshot(Request::get(path).body(Body::empty()).unwrap())
        };
        let response = ask("/boom").await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(
            body.contains("\"internal\"") && body.contains(&id) && !body.contains("mistake"),
            "{body}"
        );
        assert_eq!(ask("/fine").await.unwrap().status(), StatusCode::OK);
        assert_eq!(*state.active.borrow(), 0, "nothing is left behind");
    }
}
