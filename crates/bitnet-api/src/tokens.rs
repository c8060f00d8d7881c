//! `/tokenize`, `/detokenize` and `/apply-template`, in vLLM's and llama.cpp's forms.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Endpoint, Fields};
use crate::messages;
use crate::prompts::token_ids;
use crate::served::Served;
use crate::tools::Toolbox;

/// A text of so many bytes is made tokens of, however small the context is.
const SHORT: usize = 256 << 10;
/// Bytes of a text for each token of the context, beyond which it is not: while that is done a byte takes hundreds.
const BYTES: usize = 16;

/// The tokens of a prompt, of a conversation, or of a text.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn tokenize(served: &Served, body: Map<String, Value>) -> Result<Value, ApiError> {
    let fields = Fields::read(body, Endpoint::Tokenize)?;
    served.check_model(fields.text("model"))?;
    let tokenizer = served.tokenizer("prompt")?;
    let (name, ids) = if fields.get("messages").is_some() {
        let text = conversation(served, &fields)?;
        check(served, &text, "messages")?;
        ("messages", tokenizer.encode_rendered(&text))
    } else if let Some(text) = fields.text("prompt") {
        let is_prompt = fields.flag("add_special_tokens").unwrap_or(true);
        check(served, text, "prompt")?;
        ("prompt", encoded(tokenizer, text, is_prompt))
    } else if let Some(text) = fields.text("content") {
        let is_prompt = fields.is_set("add_special");
        check(served, text, "content")?;
        ("content", encoded(tokenizer, text, is_prompt))
    } else {
        return Err(ApiError::invalid(
            "prompt",
            "there is nothing to tokenize: prompt, messages or content is expected",
        ));
    };
    let ids = ids.map_err(|e| ApiError::of(&e, name))?;
    let spelled = |id: u32| {
        tokenizer
            .token_bytes(id)
            .unwrap_or_else(|| tokenizer.decode(&[id]).unwrap_or_default().into_bytes())
    };
    let tokens: Value = if fields.is_set("with_pieces") {
        let piece = |&id: &u32| match String::from_utf8(spelled(id)) {
            Ok(text) => json!({ "id": id, "piece": text }),
            Err(e) => json!({ "id": id, "piece": e.into_bytes() }),
        };
        ids.iter().map(piece).collect()
    } else {
        json!(ids)
    };
    let mut answer = json!({ "tokens": tokens, "count": ids.len(), "max_model_len": served.context });
    if fields.is_set("return_token_strs") {
        let text = |&id: &u32| String::from_utf8_lossy(&spelled(id)).into_owned();
        answer["token_strs"] = ids.iter().map(text).collect();
    }
    Ok(answer)
}

fn check(served: &Served, text: &str, name: &str) -> Result<(), ApiError> {
    let most = SHORT.max(served.context.saturating_mul(BYTES));
    if text.len() > most {
        let message = format!(
            "{name} has {} bytes: at most {most} are made tokens of at a time",
            text.len()
        );
        return Err(ApiError::invalid(name, message));
    }
    Ok(())
}

fn encoded(
    tokenizer: &bitnet_model::Tokenizer,
    text: &str,
    is_prompt: bool,
) -> bitnet_model::Result<Vec<u32>> {
    if is_prompt {
        tokenizer.encode_prompt(text)
    } else {
        tokenizer.encode_plain(text)
    }
}

/// The text of tokens, special ones spelled out.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn detokenize(served: &Served, body: Map<String, Value>) -> Result<Value, ApiError> {
    let fields = Fields::read(body, Endpoint::Detokenize)?;
    served.check_model(fields.text("model"))?;
    let ids = fields.get("tokens").and_then(Value::as_array);
    let ids = token_ids(ids.map_or(&[], Vec::as_slice), served.vocab, "tokens")?;
    let text = served
        .tokenizer("tokens")?
        .decode(&ids)
        .map_err(|e| ApiError::of(&e, "tokens"))?;
    Ok(json!({ "prompt": text, "content": text }))
}

/// The text that the chat template makes of a conversation.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn apply_template(served: &Served, body: Map<String, Value>) -> Result<Value, ApiError> {
    let fields = Fields::read(body, Endpoint::ApplyTemplate)?;
    served.check_model(fields.text("model"))?;
    Ok(json!({ "prompt": conversation(served, &fields)? }))
}

fn conversation(served: &Served, fields: &Fields) -> Result<String, ApiError> {
    let tools = Toolbox::read(fields)?;
    messages::render(served, fields, Some(&tools))
}
