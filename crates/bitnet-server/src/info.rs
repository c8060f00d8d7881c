//! What the server tells of itself: its health, models, metrics and what runs.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bitnet_api::ApiError;
use serde_json::json as value;

use crate::logs;
use crate::refusal::{Refusal, json};
use crate::state::{Loaded, State};

type Shared = Extract<Arc<State>>;

/// `GET /health`, `/v1/health`, `/readyz`: whether it takes requests.
pub(crate) async fn health(Extract(state): Shared) -> Result<Response, Refusal> {
    let loaded = state.ready()?;
    if let Some(why) = loaded
        .lost()
        .or_else(|| loaded.stalled(state.options.engine_timeout))
    {
        return Err(ApiError::new(503, "unavailable_error", Some("engine"), why).into());
    }
    Ok(json(StatusCode::OK, &value!({ "status": "ok" })))
}

/// `GET /livez`, `/ping`: whether the process should live. It depends on no load.
pub(crate) async fn live(Extract(state): Shared) -> Result<Response, Refusal> {
    match state.loaded.get().and_then(Loaded::lost) {
        None => Ok(json(StatusCode::OK, &value!({ "status": "ok" }))),
        Some(why) => Err(ApiError::new(500, "server_error", Some("engine"), why).into()),
    }
}

/// `GET /version`
pub(crate) async fn version() -> Response {
    json(StatusCode::OK, &value!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// `GET /v1/models`
pub(crate) async fn models(Extract(state): Shared) -> Result<Response, Refusal> {
    Ok(json(StatusCode::OK, &state.ready()?.served.models()))
}

/// `GET /v1/models/{id}`, whose id may hold slashes.
pub(crate) async fn model(
    Extract(state): Shared,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    // What is no UTF-8 is the name of no model.
    let id = id.map_or_else(|_| char::REPLACEMENT_CHARACTER.to_string(), |Path(id)| id);
    Ok(json(StatusCode::OK, &state.ready()?.served.model(&id)?))
}

/// `GET /metrics`
pub(crate) async fn metrics(Extract(state): Shared) -> Response {
    if let Some(loaded) = state.loaded.get() {
        state.meters.set(&loaded.client.stats(), &loaded.client.health());
    }
    state.meters.log_lines_lost(logs::lost());
    let mut response = state.meters.text().into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// `GET /openapi.json`
pub(crate) async fn openapi() -> Response {
    json(StatusCode::OK, &bitnet_api::openapi())
}

/// `GET /props`: what is served, by llama.cpp's names.
pub(crate) async fn props(Extract(state): Shared) -> Result<Response, Refusal> {
    let loaded = state.ready()?;
    let (client, served) = (&loaded.client, &loaded.served);
    let sampling = &served.defaults.sampling;
    let settings = value!({
        "n_ctx": served.context,
        "params": {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repeat_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "max_tokens": served.defaults.max_tokens,
            "stop": served.defaults.stop,
        },
    });
    let props = value!({
        "default_generation_settings": settings,
        "total_slots": state.options.slots,
        "model_alias": served.name(),
        "model_names": served.names,
        "chat_template": served.chat_template.as_ref().map(bitnet_model::ChatTemplate::source),
        "n_ctx": served.context,
        "n_vocab": served.vocab,
        "device": client.device(),
        "build_info": format!("bitnet {}", env!("CARGO_PKG_VERSION")),
        "system_fingerprint": served.fingerprint,
    });
    Ok(json(StatusCode::OK, &props))
}

/// `GET /slots`: what runs now. What was asked and answered is nobody's business.
pub(crate) async fn slots(Extract(state): Shared) -> Result<Response, Refusal> {
    let served = &state.ready()?.served;
    let running = state.running();
    let slots: Vec<_> = (0..)
        .zip(&running)
        .map(|(number, exchange): (usize, _)| {
            let facts = exchange.facts();
            value!({
                "id": number,
                "id_task": exchange.id,
                "n_ctx": served.context,
                "is_processing": facts.started.is_some(),
                "n_prompt_tokens": facts.prompt_tokens,
                "n_prompt_tokens_cache": facts.cached_tokens,
                "n_decoded": facts.tokens,
                "n_predict": facts.max_tokens,
                "seconds": exchange.began.elapsed().as_secs_f64(),
            })
        })
        .collect();
    Ok(json(StatusCode::OK, &value!(slots)))
}
