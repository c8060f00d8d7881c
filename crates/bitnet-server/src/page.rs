//! The chat page: one file that is part of the program.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::sync::OnceLock;

use axum::body::{Body, Bytes};
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;

const PAGE: &str = include_str!("page/index.html");

/// The page, packed, and the name of this version of it.
struct Packed {
    bytes: Option<Bytes>,
    tag: HeaderValue,
}

fn packed() -> &'static Packed {
    static PACKED: OnceLock<Packed> = OnceLock::new();
    PACKED.get_or_init(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let bytes = encoder.write_all(PAGE.as_bytes()).and_then(|()| encoder.finish());
        let mut hasher = DefaultHasher::new();
        PAGE.hash(&mut hasher);
        let tag = HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()));
        Packed {
            bytes: bytes.ok().map(Bytes::from),
            tag: tag.unwrap_or(HeaderValue::from_static("\"page\"")),
        }
    })
}

/// `GET /`
pub(crate) async fn page(headers: HeaderMap) -> Response {
    let packed = packed();
    let takes = |name, what: &str| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| {
            let (one, weight) = one.split_once(';').unwrap_or((one, ""));
            let is_refused = weight
                .trim()
                .strip_prefix("q=")
                .is_some_and(|q| q.trim().parse() == Ok(0.0));
            (one.trim().trim_start_matches("W/") == what || one.trim() == "*") && !is_refused
        })
    };
    let tag = packed.tag.to_str().unwrap_or_default();
    let mut response = if takes(IF_NONE_MATCH, tag) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if let Some(bytes) = packed.bytes.as_ref().filter(|_| takes(ACCEPT_ENCODING, "gzip")) {
        let mut response = Response::new(Body::from(bytes.clone()));
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        Response::new(Body::from(PAGE))
    };
    let own = response.headers_mut();
    own.insert(ETAG, packed.tag.clone());
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-cache"),
        (VARY, "accept-encoding"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
        ),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ] {
        own.insert(name, HeaderValue::from_static(value));
    }
    response
}
