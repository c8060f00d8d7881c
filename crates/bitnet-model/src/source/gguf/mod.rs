//! GGUF files: container, metadata, and what stands in them of a model's configuration and tokenizer.
//!
//! Their ternary types are read in [`super::projection`] and [`super::ternary_types`], their dense ones in
//! [`super::dense`].

mod metadata;

mod container;
mod tokenizer;

mod config;

use std::path::Path;

use serde_json::{Value, json};

pub(super) use config::GgufConfig;
pub(super) use container::is_gguf;

use super::tensors::TensorFiles;
use crate::Result;
use metadata::Metadata;

/// An opened GGUF file, or a split one's files.
#[derive(Debug)]
pub struct GgufFile {
    metadata: Metadata,
    tensors: TensorFiles,
}

impl PartialEq for GgufFile {
    /// Whether they are the same file.
    fn eq(&self, other: &Self) -> bool {
        self.path() == other.path()
    }
}

impl Eq for GgufFile {}

impl GgufFile {
    /// Opens a file and reads all but the tensors.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (metadata, tensors) = container::open(path)?;
        Ok(Self { metadata, tensors })
    }

    /// Its path; of a split model, the first file's.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.metadata.path()
    }

    /// Its tensors.
    pub(super) fn tensors(&self) -> &TensorFiles {
        &self.tensors
    }

    /// What it says of the model.
    pub(super) fn config(&self) -> Result<GgufConfig> {
        config::read(&self.metadata, &self.tensors)
    }

    /// Whether [`GgufFile::read`] makes a file `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        match name {
            "config.json" => true,
            "tokenizer.json" | "tokenizer_config.json" => tokenizer::is_there(&self.metadata),
            "1_Pooling/config.json" => self.pooling().is_ok_and(|pooling| pooling.is_some()),
            _ => false,
        }
    }

    /// A file of a model folder, made of the metadata; `None` where nothing in them stands for it.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let json = |value: Value| Some(value.to_string().into_bytes());
        if !self.has(name) {
            // An unknown way of pooling is reported where it is asked for.
            return match name {
                "1_Pooling/config.json" => self.pooling().map(|_| None),
                _ => Ok(None),
            };
        }
        Ok(match name {
            "config.json" => json(Value::Object(self.config()?.json)),
            "tokenizer.json" => Some(tokenizer::json(&self.metadata)?.into_bytes()),
            "tokenizer_config.json" => json(tokenizer::config(&self.metadata)?),
            _ => self.pooling()?.and_then(json),
        })
    }

    /// The pooling of an embedding model, as sentence-transformers writes it.
    fn pooling(&self) -> Result<Option<Value>> {
        let architecture = self.metadata.text("general.architecture")?.unwrap_or_default();
        let key = format!("{architecture}.pooling_type");
        let mode = match self.metadata.count(&key)? {
            None | Some(0) => return Ok(None),
            Some(1) => "pooling_mode_mean_tokens",
            Some(2) => "pooling_mode_cls_token",
            Some(3) => "pooling_mode_lasttoken",
            Some(other) => {
                return Err(self.metadata.unsupported(format!(
                    "key `{key}` is {other}; supported are 1 (mean), 2 (first token) and 3 (last token)"
                )));
            }
        };
        Ok(Some(json!({mode: true})))
    }
}
