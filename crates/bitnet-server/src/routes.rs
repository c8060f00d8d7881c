//! Which path is answered by what.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::StatusCode;
use axum::http::header::ALLOW;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use bitnet_api::{ApiError, Served};
use serde_json::{Map, Value};

use crate::body;
use crate::gate::gate;
use crate::generate;
use crate::info;
use crate::page;
use crate::refusal::{Refusal, json};
use crate::state::{PIECE, State};

type Shared = Extract<Arc<State>>;

/// All routes.
pub(crate) fn all(state: &Arc<State>) -> Router {
    let options = &state.options;
    let mut router = Router::new()
        .route("/v1/chat/completions", only_post(post(generate::chat)))
        .route("/v1/completions", only_post(post(generate::completions)))
        .route("/v1/embeddings", only_post(post(embeddings)))
        .route("/v1/models", only_get(get(info::models)))
        .route("/v1/models/{*id}", only_get(get(info::model)))
        .route("/tokenize", only_post(post(tokenize)))
        .route("/detokenize", only_post(post(detokenize)))
        .route("/apply-template", only_post(post(apply_template)))
        .route("/health", only_get(get(info::health)))
        .route("/v1/health", only_get(get(info::health)))
        .route("/readyz", only_get(get(info::health)))
        .route("/livez", only_get(get(info::live)))
        .route("/ping", only_get(get(info::live)))
        .route("/version", only_get(get(info::version)))
        .route("/props", only_get(get(info::props)))
        .route("/openapi.json", only_get(get(info::openapi)));
    if options.has_metrics {
        router = router.route("/metrics", only_get(get(info::metrics)));
    }
    if options.has_slots {
        router = router.route("/slots", only_get(get(info::slots)));
    }
    if options.has_page {
        router = router.route("/", only_get(get(page::page)));
    }
    router
        .fallback(unknown)
        .layer(middleware::from_fn_with_state(Arc::clone(state), gate))
        .with_state(Arc::clone(state))
}

fn only_post(routes: MethodRouter<Arc<State>>) -> MethodRouter<Arc<State>> {
    routes.fallback(|request: Request| wrong_method(request, "POST"))
}

fn only_get(routes: MethodRouter<Arc<State>>) -> MethodRouter<Arc<State>> {
    routes.fallback(|request: Request| wrong_method(request, "GET, HEAD"))
}

async fn wrong_method(request: Request, allowed: &'static str) -> Response {
    let error = ApiError::method(request.method().as_str(), allowed);
    let mut response = body::refuse(request, error).await.into_response();
    response
        .headers_mut()
        .insert(ALLOW, axum::http::HeaderValue::from_static(allowed));
    response
}

async fn unknown(request: Request) -> Refusal {
    let error = ApiError::path(request.uri().path());
    body::refuse(request, error).await
}

/// `POST /v1/embeddings`
async fn embeddings(request: Request) -> Refusal {
    let message = "this server serves a model that generates text; embeddings are not built yet";
    body::refuse(request, ApiError::not_supported(message)).await
}

/// `POST /tokenize`
async fn tokenize(Extract(state): Shared, request: Request) -> Result<Response, Refusal> {
    compute(&state, request, bitnet_api::tokenize).await
}

/// `POST /detokenize`
async fn detokenize(Extract(state): Shared, request: Request) -> Result<Response, Refusal> {
    compute(&state, request, bitnet_api::detokenize).await
}

/// `POST /apply-template`
async fn apply_template(Extract(state): Shared, request: Request) -> Result<Response, Refusal> {
    compute(&state, request, bitnet_api::apply_template).await
}

/// Answers with what needs the model's files alone, on a thread that may take its time.
async fn compute(
    state: &Arc<State>,
    request: Request,
    what: fn(&Served, Map<String, Value>) -> Result<Value, ApiError>,
) -> Result<Response, Refusal> {
    let loaded = match state.ready() {
        Ok(loaded) => loaded,
        Err(refusal) => return Err(body::refuse(request, refusal).await),
    };
    let body = body::read(state, request).await?;
    let turn = match body.bytes.len() {
        0..PIECE => None,
        _ => Some(state.turn(loaded).await?),
    };
    let served = Arc::clone(&loaded.served);
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        what(&served, bitnet_api::parse(&body.bytes)?)
    });
    match work.await {
        Ok(value) => Ok(json(StatusCode::OK, &value?)),
        // It goes on as a panic of this request, which is caught where all are.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Refusal::shutting_down()),
        },
    }
}
