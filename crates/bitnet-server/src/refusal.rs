//! Errors as HTTP answers.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bitnet_api::ApiError;
use serde_json::Value;

/// Why a request is not answered, and what the headers say of it.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// What the client is told.
    pub(crate) error: Box<ApiError>,
    /// When to come again, where that helps.
    retry_after: Option<Duration>,
    /// Whether the connection ends, since the rest of the request is not read.
    pub(crate) closes: bool,
}

/// The code of the error of an answer, for metrics and the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code(pub(crate) &'static str);

impl Refusal {
    pub(crate) fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }

    /// Ends the connection with it.
    pub(crate) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// The model is being loaded.
    pub(crate) fn loading() -> Self {
        Self::from(ApiError::loading()).retry_after(Duration::from_secs(2))
    }

    /// The server ends.
    pub(crate) fn shutting_down() -> Self {
        Self::from(ApiError::shutting_down())
            .retry_after(Duration::from_secs(1))
            .closing()
    }

    /// Its name in metrics and logs.
    pub(crate) fn code(&self) -> &'static str {
        self.error.code.unwrap_or("invalid_request")
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self {
            error: Box::new(error),
            retry_after: None,
            closes: false,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, &self.error.body());
        if let Some(time) = self.retry_after {
            let seconds = time.as_secs().clamp(1, 30);
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.closes {
            close(&mut response);
        }
        response.extensions_mut().insert(Code(self.code()));
        response
    }
}

/// Says that the connection ends with this answer.
pub(crate) fn close(response: &mut Response) {
    response
        .headers_mut()
        .insert(axum::http::header::CONNECTION, HeaderValue::from_static("close"));
}

/// An answer of JSON.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response {
    json_text(status, value.to_string())
}

/// An answer of JSON that is written already.
pub(crate) fn json_text(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
