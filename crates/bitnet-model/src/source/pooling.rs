//! How an embedding model makes one vector of those of a text's tokens.

use std::fmt;

use serde_json::Value;

use super::fields::Fields;
use super::files::Files;
use crate::Result;

/// What becomes of the vectors of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first.
    First,
    /// The last.
    Last,
}

impl Pooling {
    /// What the model's files say: `1_Pooling/config.json` of sentence-transformers, `pooling_type` of a GGUF file, or the key that
    /// [`crate::convert`] writes into config.json. `None` where they say nothing: files contradict the papers here, so that
    /// nothing is taken for granted.
    ///
    /// # Errors
    /// When a file cannot be read or names another way.
    pub fn from_files(files: impl Into<Files>) -> Result<Option<Self>> {
        let files = files.into().opened()?;
        if let Some(config) = Fields::read(&files, "config.json")?
            && config.get("pooling").is_some()
        {
            return match config.text("pooling", "")? {
                "mean" => Ok(Some(Self::Mean)),
                "first" => Ok(Some(Self::First)),
                "last" => Ok(Some(Self::Last)),
                other => Err(config.unsupported(format!(
                    "pooling is `{other}`; supported are mean, first and last"
                ))),
            };
        }
        let Some(config) = Fields::read(&files, "1_Pooling/config.json")? else {
            return Ok(None);
        };
        let modes = config.map.iter();
        let on: Vec<&str> = modes
            .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true))
            .map(|(key, _)| key.as_str())
            .collect();
        match on[..] {
            [] => Ok(None),
            ["pooling_mode_mean_tokens"] => Ok(Some(Self::Mean)),
            ["pooling_mode_cls_token"] => Ok(Some(Self::First)),
            ["pooling_mode_lasttoken"] => Ok(Some(Self::Last)),
            _ => Err(config.unsupported(format!(
                "{} is set; supported is one of pooling_mode_mean_tokens, pooling_mode_cls_token and pooling_mode_lasttoken",
                on.join(" and ")
            ))),
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mean => "mean",
            Self::First => "first",
            Self::Last => "last",
        })
    }
}
