//! generation_config.json: how the model's own authors choose tokens and stop, and what of it is refused.
//!
//! Keys are those of transformers' `GenerationConfig`. What changes the tokens is obeyed or refused by name, never passed over;
//! `max_new_tokens` counts where nobody says a number, and `max_length` never: the context is the limit.

use serde_json::Value;

use crate::source::Fields;
use crate::{Files, Result, Sampling};

const FILE: &str = "generation_config.json";

/// What a generation_config.json says.
///
/// ```
/// use bitnet_model::GenerationConfig;
///
/// # let folder = "../bitnet-cli/demo-model";
/// let config = GenerationConfig::from_files(&folder.into())?;
/// assert!(config.stop_strings.is_empty());
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// How tokens are chosen: the fields that the file sets, the default for the others.
    pub sampling: Sampling,
    /// Strings that end a text.
    pub stop_strings: Vec<String>,
    /// Most tokens of an answer, for whoever says no number: `max_new_tokens`.
    pub max_new_tokens: Option<usize>,
}

/// Settings that are not implemented, each with the values that change nothing. What null and a missing key mean is that too.
const REFUSED: [(&str, &[f64]); 21] = [
    ("num_beams", &[1.0]),
    ("num_beam_groups", &[1.0]),
    ("diversity_penalty", &[0.0]),
    ("penalty_alpha", &[0.0]),
    ("typical_p", &[1.0]),
    ("top_h", &[]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("exponential_decay_length_penalty", &[]),
    ("min_length", &[0.0]),
    ("min_new_tokens", &[0.0]),
    ("forced_bos_token_id", &[]),
    ("forced_eos_token_id", &[]),
    ("forced_decoder_ids", &[]),
    ("begin_suppress_tokens", &[]),
    ("guidance_scale", &[1.0]),
    ("watermarking_config", &[]),
    ("dola_layers", &[]),
    ("token_healing", &[]),
];

impl GenerationConfig {
    /// Reads the file among `files`; without one, everything is the default.
    ///
    /// # Errors
    /// When the file exists and cannot be read, is no JSON object, sets a value of a wrong type or out of range, or asks for
    /// what is not implemented and would change the tokens.
    pub fn from_files(files: &Files) -> Result<Self> {
        Self::over(files, Sampling::default())
    }

    /// As [`GenerationConfig::from_files`], with other values for what the file leaves open.
    ///
    /// # Errors
    /// As for [`GenerationConfig::from_files`].
    pub fn over(files: &Files, default: Sampling) -> Result<Self> {
        let Some(fields) = Fields::read(files, FILE)? else {
            return Ok(Self {
                sampling: default,
                ..Self::default()
            });
        };
        refuse_what_is_not_implemented(&fields)?;
        let config = Self {
            sampling: sampling(&fields, default)?,
            stop_strings: strings(&fields, "stop_strings")?,
            max_new_tokens: match fields.get("max_new_tokens") {
                None => None,
                Some(value) => Some(
                    value
                        .as_u64()
                        .filter(|&n| n > 0)
                        .and_then(|n| usize::try_from(n).ok())
                        .ok_or_else(|| {
                            fields.invalid(format!(
                                "max_new_tokens is {value}; expected a whole number, 1 or more"
                            ))
                        })?,
                ),
            },
        };
        config
            .sampling
            .check()
            .map_err(|e| fields.invalid(e.to_string()))?;
        Ok(config)
    }
}

impl Sampling {
    /// The model's own settings: [`GenerationConfig::sampling`] of `folder`.
    ///
    /// # Errors
    /// As for [`GenerationConfig::from_files`].
    pub fn from_folder(folder: impl Into<Files>) -> Result<Self> {
        Ok(GenerationConfig::from_files(&folder.into())?.sampling)
    }
}

fn refuse_what_is_not_implemented(fields: &Fields) -> Result<()> {
    for (key, harmless) in REFUSED {
        let Some(value) = fields.get(key) else { continue };
        let is_empty = value.as_array().is_some_and(Vec::is_empty) || *value == Value::Bool(false);
        let is_off = value.as_f64().is_some_and(|number| harmless.contains(&number));
        if !is_empty && !is_off {
            return Err(fields.unsupported(format!(
                "{key} is {value}, which is not implemented and would change the tokens; take it out of the file"
            )));
        }
    }
    Ok(())
}

fn sampling(fields: &Fields, default: Sampling) -> Result<Sampling> {
    let number = |key: &str| match fields.get(key).map(|value| (value, value.as_f64())) {
        None => Ok(None),
        Some((_, Some(number))) => Ok(Some(number as f32)),
        Some((value, None)) => Err(fields.invalid(format!("{key} is {value}; expected a number"))),
    };
    let whole = |key: &str, default: usize| match fields.get(key).map(|value| (value, value.as_u64())) {
        None => Ok(default),
        Some((_, Some(n))) => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
        Some((value, None)) => {
            Err(fields.invalid(format!("{key} is {value}; expected a whole number, 0 or more")))
        }
    };
    let temperature = number("temperature")?.unwrap_or(default.temperature);
    let repetition_penalty = number("repetition_penalty")?;
    Ok(Sampling {
        temperature: if fields.flag("do_sample", true)? {
            temperature
        } else {
            0.0
        },
        top_k: whole("top_k", default.top_k)?,
        top_p: number("top_p")?.unwrap_or(default.top_p),
        min_p: number("min_p")?.unwrap_or(default.min_p),
        repeat_penalty: repetition_penalty.unwrap_or(default.repeat_penalty),
        // transformers penalizes the whole text.
        repeat_last_n: repetition_penalty.map_or(default.repeat_last_n, |_| usize::MAX),
        logit_bias: sequence_bias(fields)?,
        bad_words: bad_words(fields)?,
        no_repeat_ngram: whole("no_repeat_ngram_size", 0)?,
        ..default
    })
}

/// `suppress_tokens` are forbidden words of one token; of `bad_words_ids`, transformers too leaves out what would forbid the end.
fn bad_words(fields: &Fields) -> Result<Vec<Vec<u32>>> {
    let mut words: Vec<Vec<u32>> = fields
        .ids("suppress_tokens")?
        .into_iter()
        .map(|id| vec![id])
        .collect();
    let Some(value) = fields.get("bad_words_ids") else {
        return Ok(words);
    };
    let malformed = || {
        fields.invalid(format!(
            "bad_words_ids is {value}; expected a list of lists of token ids"
        ))
    };
    let ends = fields.ids("eos_token_id")?;
    for word in value.as_array().ok_or_else(malformed)? {
        let word = ids(word).filter(|word| !word.is_empty()).ok_or_else(malformed)?;
        if !matches!(word[..], [id] if ends.contains(&id)) {
            words.push(word);
        }
    }
    Ok(words)
}

/// `sequence_bias`, a list of pairs of token ids and a number; sequences of one token alone are implemented.
fn sequence_bias(fields: &Fields) -> Result<Vec<(u32, f32)>> {
    let Some(value) = fields.get("sequence_bias") else {
        return Ok(Vec::new());
    };
    let unsupported = || {
        fields.unsupported(format!(
            "sequence_bias is {value}; implemented are pairs of one token id in a list and its bias, such as [[[7], -1.5]]"
        ))
    };
    let pairs = value.as_array().ok_or_else(unsupported)?;
    pairs
        .iter()
        .map(|pair| match pair.as_array().map(Vec::as_slice) {
            Some([sequence, bias]) => match (ids(sequence).as_deref(), bias.as_f64()) {
                (Some(&[id]), Some(bias)) => Ok((id, bias as f32)),
                _ => Err(unsupported()),
            },
            _ => Err(unsupported()),
        })
        .collect()
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

/// A string or a list of strings.
fn strings(fields: &Fields, key: &str) -> Result<Vec<String>> {
    let values = match fields.get(key) {
        None => &[][..],
        Some(Value::Array(values)) => values,
        Some(value) => std::slice::from_ref(value),
    };
    let text = |value: &Value| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(fields.invalid(format!("{key} has {value}; expected strings that are not empty"))),
    };
    values.iter().map(text).collect()
}
