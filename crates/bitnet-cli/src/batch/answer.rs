//! Requests and answers as lines of files.

use bitnet_api::{ApiError, Job, Served, chat, completion, parse};
use serde_json::{Map, Value, json};

/// Reads a line of OpenAI's batch format, or its body alone. `None` of a number of tokens goes on until the model stops.
pub(super) fn read(line: &Map<String, Value>, served: &mut Served) -> Result<Job, ApiError> {
    let (mut body, url) = match line.get("body") {
        Some(Value::Object(body)) => (body.clone(), line.get("url").and_then(Value::as_str)),
        Some(_) => return Err(ApiError::invalid("body", "body: an object is expected")),
        None => (line.clone(), None),
    };
    let is_chat = match url {
        None => body.contains_key("messages"),
        Some("/v1/chat/completions") => true,
        Some("/v1/completions") => false,
        Some(url) => {
            let message =
                format!("url is {url:?}: /v1/chat/completions and /v1/completions are answered here");
            return Err(ApiError::invalid("url", message));
        }
    };
    if let Some(Value::Bool(true)) = body.get("stream") {
        return Err(ApiError::invalid(
            "stream",
            "stream is true, and a line of a file is written in one piece",
        ));
    }
    if !is_chat && !body.contains_key("prompt") {
        let message = "there is neither a prompt nor messages";
        return Err(ApiError::invalid("prompt", message));
    }
    // The file was written for some service; here one model answers.
    body.remove("model");
    // OpenAI's default for completions in its own format; who gives a prompt alone has the flags.
    served.completion_tokens = match url {
        Some(_) => Some(16),
        None => served.defaults.max_tokens,
    };
    if is_chat {
        chat(served, body)
    } else {
        completion(served, body)
    }
}

/// A line of the input as JSON.
pub(super) fn line(text: &str) -> Result<Map<String, Value>, ApiError> {
    parse(text.as_bytes()).map_err(|error| ApiError {
        message: error.message.replacen("the body", "the line", 1),
        ..error
    })
}

/// The line of an answer, or of what is wrong with the request.
pub(super) fn written(number: usize, custom_id: &str, answer: Result<&str, &ApiError>) -> Value {
    let (status, body) = match answer {
        Ok(text) => (200, serde_json::from_str(text).unwrap_or_default()),
        Err(error) => (error.status, error.body()),
    };
    json!({
        "id": format!("batch_req_{number}"),
        "custom_id": custom_id,
        "response": { "status_code": status, "request_id": format!("req_{number}"), "body": body },
        "error": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_model::{Device, Model};

    #[test]
    fn lines_are_bodies_or_openais_format() {
        let model = Model::load("demo-model", Device::Cpu).unwrap();
        let mut served = Served::new(&model, vec!["demo".to_owned()]).unwrap();
        let mut max_tokens = |text: &str| {
            let job = read(&line(text)?, &mut served)?;
            Ok::<_, ApiError>((job.is_chat, job.requests[0].options.max_tokens))
        };
        let chat = r#"{"custom_id": "a", "url": "/v1/chat/completions", "body": {"model": "gpt", "messages": [{"role": "user", "content": "a"}]}}"#;
        // What the context of 1,024 leaves.
        assert_eq!(max_tokens(chat), Ok((true, Some(1017))));
        assert_eq!(
            max_tokens(r#"{"url": "/v1/completions", "body": {"prompt": [1]}}"#),
            Ok((false, Some(16)))
        );
        assert_eq!(max_tokens(r#"{"prompt": [1]}"#), Ok((false, Some(1023))));
        for (text, param) in [
            (r#"{"url": "/v1/images", "body": {}}"#, "url"),
            (r#"{"body": 5}"#, "body"),
            (r#"{}"#, "prompt"),
            (r#"{"prompt": [1], "stream": true}"#, "stream"),
            (r#"{"prompt": [1], "temperature": -1}"#, "temperature"),
        ] {
            assert_eq!(
                max_tokens(text).unwrap_err().param.as_deref(),
                Some(param),
                "{text}"
            );
        }
        let error = max_tokens("{\"prompt\"").unwrap_err();
        assert!(
            error.message.starts_with("the line is not JSON"),
            "{}",
            error.message
        );
    }
}
