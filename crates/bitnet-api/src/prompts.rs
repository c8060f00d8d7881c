//! Prompts of completions: texts, token ids, or several of either.

use bitnet_model::{Detokenizer, SpecialTokens};
use serde_json::Value;

use crate::error::{ApiError, shown};
use crate::fields::as_whole;
use crate::served::Served;

/// Most prompts of one request.
const MOST: usize = 2048;

/// A prompt, as tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// What it was before, where it was a text.
    pub(crate) text: Option<String>,
}

/// The prompts of `value`, in order.
pub(crate) fn read(served: &Served, value: &Value) -> Result<Vec<Tokens>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![from_text(served, text)?]),
        Value::Array(items) => items,
        _ => return Err(wrong(value)),
    };
    let Some(first) = items.first() else {
        return Err(ApiError::invalid(
            "prompt",
            "prompt is an empty list: give at least one prompt",
        ));
    };
    if first.is_number() {
        return Ok(vec![from_ids(served, items)?]);
    }
    if items.len() > MOST {
        let message = format!("prompt has {} prompts: at most {MOST} are allowed", items.len());
        return Err(ApiError::invalid("prompt", message));
    }
    let one = |item: &Value| match item {
        Value::String(text) => from_text(served, text),
        Value::Array(ids) if !ids.is_empty() => from_ids(served, ids),
        _ => Err(wrong(item)),
    };
    items.iter().map(one).collect()
}

fn wrong(found: &Value) -> ApiError {
    let message = format!(
        "prompt has {}: a text, a list of texts, a list of token ids, or a list of such lists, none of them empty, is expected",
        shown(found)
    );
    ApiError::invalid("prompt", message)
}

fn from_text(served: &Served, text: &str) -> Result<Tokens, ApiError> {
    let tokenizer = served.tokenizer("prompt")?;
    served.check_length(text, "prompt")?;
    let ids = tokenizer
        .encode_prompt(text)
        .map_err(|e| ApiError::of(&e, "prompt"))?;
    // The others need not be looked at.
    if ids.len() > served.context {
        return Err(ApiError::context(Some("prompt"), ids.len(), served.context));
    }
    if ids.is_empty() {
        return Err(ApiError::invalid(
            "prompt",
            "prompt is empty, and this model has no token that begins a text: give at least one character",
        ));
    }
    Ok(Tokens {
        ids,
        text: Some(text.to_owned()),
    })
}

fn from_ids(served: &Served, ids: &[Value]) -> Result<Tokens, ApiError> {
    Ok(Tokens {
        ids: token_ids(ids, served.vocab, "prompt")?,
        text: None,
    })
}

/// Token ids, each below the vocabulary.
pub(crate) fn token_ids(ids: &[Value], vocab: usize, param: &str) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| {
        let id = as_whole(value).and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < vocab).ok_or_else(|| {
            let message = format!(
                "{param} has {}: a token id below {vocab} is expected",
                shown(value)
            );
            ApiError::invalid(param, message)
        })
    };
    ids.iter().map(id).collect()
}

impl Tokens {
    /// Whether its first token stands in its text, and was not put before it.
    pub(crate) fn spells_first(&self, served: &Served, special: SpecialTokens) -> bool {
        let Some(text) = &self.text else {
            return special == SpecialTokens::Show;
        };
        let spelled = self.ids.first().zip(served.tokenizer.as_ref());
        let spelled = spelled.and_then(|(&id, tokenizer)| tokenizer.id_to_token(id));
        spelled.is_some_and(|spelled| text.starts_with(&spelled))
    }

    /// The text that an answer with `echo` begins with.
    pub(crate) fn shown(&self, served: &Served, special: SpecialTokens) -> Result<String, ApiError> {
        if let Some(text) = &self.text {
            return Ok(text.clone());
        }
        let tokenizer = served.tokenizer("echo")?;
        let mut detokenizer = Detokenizer::new(tokenizer, special);
        let mut text = String::new();
        let failed = |e| ApiError::of(&e, "prompt");
        for &id in &self.ids {
            text.push_str(&detokenizer.push(id).map_err(failed)?);
        }
        text.push_str(&detokenizer.finish().map_err(failed)?);
        Ok(text)
    }
}
