//! Bodies of requests as JSON objects.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Reads a body: UTF-8, one JSON object, at most 128 levels deep, no NaN, no infinity, no half of a surrogate pair. Of fields of the
/// same name the last counts.
///
/// # Errors
/// 400 `invalid_json` for anything else.
pub fn parse(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::not_json("the body is empty: a JSON object is expected"));
    }
    let text = std::str::from_utf8(body).map_err(|e| {
        ApiError::not_json(format!(
            "the body is not UTF-8 from its byte {} on",
            e.valid_up_to()
        ))
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::not_json(
            "the body is JSON and no object: {\"name\": value, ...} is expected",
        )),
        Err(e) => Err(ApiError::not_json(format!("the body is not JSON: {e}"))),
    }
}
