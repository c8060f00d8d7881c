//! How tokens are chosen and when an answer ends: a request's fields over the server's defaults.

use std::collections::BTreeMap;

use bitnet_model::{GenerateOptions, SpecialTokens};
use serde_json::Value;

use crate::error::{ApiError, shown};
use crate::fields::{Endpoint, Fields};
use crate::prompts::token_ids;
use crate::served::{Served, random};

/// Below this a temperature is 0.
const GREEDY: f64 = 1e-5;
/// Most ids of `stop_token_ids`: each token chosen is compared with each of them.
const MOST_STOP_IDS: usize = 1024;

/// The options of a request; where it has no seed, a random one.
pub(crate) fn read(
    served: &Served,
    fields: &Fields,
    endpoint: Endpoint,
) -> Result<GenerateOptions, ApiError> {
    let mut options = served.defaults.clone();
    sampling(served, fields, &mut options)?;
    let default = match endpoint {
        Endpoint::Completions => served.completion_tokens,
        _ => served.defaults.max_tokens,
    };
    options.max_tokens = fields
        .count("max_completion_tokens")
        .or_else(|| fields.count("max_tokens"))
        .or(default);
    if let Some(min) = fields.count("min_tokens") {
        if options.max_tokens.is_some_and(|max| min > max) {
            let max = options.max_tokens.unwrap_or_default();
            let message = format!("min_tokens is {min} and max_tokens {max}: the first must not be larger");
            return Err(ApiError::invalid("min_tokens", message));
        }
        options.min_tokens = min;
    }
    match fields.get("stop") {
        Some(Value::String(text)) => options.stop.push(text.clone()),
        Some(Value::Array(list)) => {
            options
                .stop
                .extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        _ => {}
    }
    if !options.stop.is_empty() && fields.get("stop").is_some() {
        served.tokenizer("stop")?;
    }
    if let Some(ids) = fields.get("stop_token_ids").and_then(Value::as_array) {
        if ids.len() > MOST_STOP_IDS {
            let message = format!(
                "stop_token_ids has {} ids: at most {MOST_STOP_IDS} are allowed",
                ids.len()
            );
            return Err(ApiError::invalid("stop_token_ids", message));
        }
        options
            .stop_ids
            .extend(token_ids(ids, served.vocab, "stop_token_ids")?);
    }
    if let Some(ignores) = fields.flag("ignore_eos") {
        options.ignore_eos = ignores;
    }
    options.include_stop = fields.is_set("include_stop_str_in_output");
    match fields.flag("skip_special_tokens") {
        Some(true) => options.special = SpecialTokens::Hide,
        Some(false) => options.special = SpecialTokens::Show,
        None => {}
    }
    Ok(options)
}

fn sampling(served: &Served, fields: &Fields, options: &mut GenerateOptions) -> Result<(), ApiError> {
    let sampling = &mut options.sampling;
    let set = |name: &str, field: &mut f32| {
        if let Some(x) = fields.number(name) {
            *field = x as f32;
        }
    };
    set("temperature", &mut sampling.temperature);
    set("top_p", &mut sampling.top_p);
    set("min_p", &mut sampling.min_p);
    let penalties = ["repetition_penalty", "presence_penalty", "frequency_penalty"];
    set(penalties[0], &mut sampling.repeat_penalty);
    set(penalties[1], &mut sampling.presence_penalty);
    set(penalties[2], &mut sampling.frequency_penalty);
    if penalties.iter().any(|name| fields.get(name).is_some()) {
        // OpenAI's and vLLM's look at all of the text, and two of them at the answer alone.
        sampling.repeat_last_n = usize::MAX;
        sampling.penalize_prompt = false;
    }
    // What is above 0 may be nothing any more as an f32.
    sampling.repeat_penalty = sampling.repeat_penalty.max(f32::MIN_POSITIVE);
    if let Some(k) = fields.whole("top_k") {
        sampling.top_k = usize::try_from(k).unwrap_or(0);
    }
    // The most likely token of one is the most likely of all.
    if f64::from(sampling.temperature) < GREEDY || sampling.top_k == 1 {
        sampling.temperature = 0.0;
    }
    sampling.seed = match fields.whole("seed") {
        // Negative numbers are other seeds than positive ones.
        Some(seed) if seed < 0 => (seed as i64).cast_unsigned(),
        Some(seed) => seed as u64,
        None => random(),
    };
    if let Some(Value::Object(bias)) = fields.get("logit_bias") {
        for (id, value) in bias_of(bias, served.vocab)? {
            sampling.logit_bias.push((id, value));
        }
    }
    Ok(())
}

fn bias_of(bias: &serde_json::Map<String, Value>, vocab: usize) -> Result<BTreeMap<u32, f32>, ApiError> {
    let mut all = BTreeMap::new();
    for (key, value) in bias {
        let is_digits = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
        let id: Option<u32> = key.parse().ok().filter(|&id| is_digits && (id as usize) < vocab);
        let number = value.as_f64().filter(|x| (-100.0..=100.0).contains(x));
        let (Some(id), Some(number)) = (id, number) else {
            let message = format!(
                "logit_bias has {}: {}: token ids below {vocab} with numbers from -100 to 100 are expected",
                shown(&Value::String(key.clone())),
                shown(value)
            );
            return Err(ApiError::invalid("logit_bias", message));
        };
        // OpenAI's -100 is a ban.
        let number = if number == -100.0 {
            f32::NEG_INFINITY
        } else {
            number as f32
        };
        all.insert(id, number);
    }
    Ok(all)
}
