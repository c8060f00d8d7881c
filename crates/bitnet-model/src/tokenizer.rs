//! Text to token ids and back: `tokenizer.json` with the facts of `tokenizer_config.json` that change the ids.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::DecoderWrapper;

use crate::{Error, Files, Result};

/// The tokenizer of a model folder. A clone is cheap and shares the vocabulary, so that a stream of text can own one.
///
/// ```
/// use bitnet_model::Tokenizer;
///
/// # let folder = "../bitnet-cli/demo-model";
/// let tokenizer = Tokenizer::from_folder(folder, None, &[])?;
/// let ids = tokenizer.encode_prompt("What is 17 + 25?")?;
/// assert_eq!(ids.first().copied(), tokenizer.bos());
/// assert_eq!(tokenizer.decode(&ids[1..])?, "What is 17 + 25?");
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
    bos: Option<u32>,
    special: Arc<HashSet<u32>>,
    byte_level: bool,
}

/// What `tokenizer_config.json` and `special_tokens_map.json` say beside the vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokenizerConfig {
    /// The text of `bos_token`, `eos_token` and so on.
    pub(crate) special_tokens: BTreeMap<String, String>,
    /// `false` where the model wants no beginning-of-sequence token.
    pub(crate) add_bos_token: Option<bool>,
    /// A template, or a list of named ones.
    pub(crate) chat_template: Option<Value>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of `folder`, and `tokenizer_config.json` and `special_tokens_map.json` where they exist.
    ///
    /// `bos` and `eos` are the model's own ids, from `config.json`: without a `tokenizer_config.json` they decide whether
    /// prompts begin with `bos`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing, or a file cannot be read or is malformed.
    pub fn from_folder(folder: impl Into<Files>, bos: Option<u32>, eos: &[u32]) -> Result<Self> {
        let files = folder.into();
        let path = files.path("tokenizer.json");
        let json = files.read("tokenizer.json")?.ok_or_else(|| {
            Error::invalid(
                &path,
                "no such file; text prompts need a tokenizer.json beside the weights (token ids work without one)",
            )
        })?;
        let config = TokenizerConfig::from_files(&files)?;
        Self::from_json(&json, &path, config.as_ref(), bos, eos)
    }

    /// As [`Tokenizer::from_folder`], from the bytes of the files; `path` is what error messages call `tokenizer.json`.
    pub(crate) fn from_json(
        json: &[u8],
        path: &Path,
        config: Option<&TokenizerConfig>,
        bos: Option<u32>,
        eos: &[u32],
    ) -> Result<Self> {
        // The library panics on a file that was cut off, and does not say where.
        serde_json::from_slice::<IgnoredAny>(json).map_err(|e| {
            Error::invalid(
                path,
                format!("not valid JSON: {e}; if the download was cut off, repeat it"),
            )
        })?;
        let mut inner = guard(path, || tokenizers::Tokenizer::from_bytes(json))?;
        // Training-time truncation and padding of whole batches: a prompt must arrive as it was written.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::invalid(path, e.to_string()))?;
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let bos = match config {
            Some(config) if config.add_bos_token == Some(false) => None,
            Some(config) => {
                let text = config.special_tokens.get("bos_token");
                text.and_then(|text| inner.token_to_id(text))
            }
            None => bos.filter(|id| !eos.contains(id)),
        };
        Ok(Self {
            inner: Arc::new(inner),
            path: path.to_owned(),
            bos,
            special: Arc::new(special),
            byte_level,
        })
    }

    /// The token that begins every prompt, where the model wants one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id of a token given as its text, special tokens included.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's own spelling of a token (`Ġthe`, `<|eot_id|>`), or `None` for an id without a token.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `id` is a special token, one that text shown to people leaves out.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Token ids of `text` with what the post-processor adds: transformers' `add_special_tokens=True`.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, true)
    }

    /// Token ids of `text` alone: transformers' `add_special_tokens=False`. Special tokens spelled out in the text count.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    /// Token ids of a prompt, which begins with exactly one [`Tokenizer::bos`] whether the text, the post-processor, both
    /// or neither brought one.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.bos {
            let present = ids.iter().take_while(|&&id| id == bos).count();
            match present {
                0 => ids.insert(0, bos),
                n => drop(ids.drain(..n - 1)),
            }
        }
        Ok(ids)
    }

    /// The bytes of a token, or `None` where the vocabulary is not byte-level: there a token's text depends on its
    /// neighbors. An id without a token has no bytes.
    pub(crate) fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if !self.byte_level {
            return None;
        }
        let token = self.inner.id_to_token(id).unwrap_or_default();
        let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
        // An added token may hold characters outside the byte alphabet; then it stands for itself.
        Some(bytes.unwrap_or_else(|| token.into_bytes()))
    }

    /// Text of `ids`, special tokens spelled out; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guard(&self.path, || self.inner.decode(ids, false))
    }

    fn ids(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = guard(&self.path, || self.inner.encode_fast(text, add_special_tokens))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`; tokens it does not name come from `special_tokens_map.json`.
    pub(crate) fn from_files(files: &Files) -> Result<Option<Self>> {
        let config = read_object(files, "tokenizer_config.json")?;
        let map = read_object(files, "special_tokens_map.json")?;
        Ok((config.is_some() || map.is_some()).then(|| Self::from_values(config.as_ref(), map.as_ref())))
    }

    /// As [`TokenizerConfig::from_files`], from the parsed files.
    pub(crate) fn from_values(config: Option<&Value>, map: Option<&Value>) -> Self {
        let token = |name: &str| {
            [config, map].into_iter().flatten().find_map(|file| {
                let token = file.get(name)?;
                token.get("content").unwrap_or(token).as_str().map(str::to_owned)
            })
        };
        let names = [
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        ];
        Self {
            special_tokens: names
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), token(name)?)))
                .collect(),
            add_bos_token: config.and_then(|c| c.get("add_bos_token")?.as_bool()),
            chat_template: config.and_then(|c| c.get("chat_template").cloned()),
        }
    }
}

/// A JSON object in a file, or `None` where there is no such file.
pub(crate) fn read_object(files: &Files, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = files.read(name)? else {
        return Ok(None);
    };
    let invalid = |message: String| Error::invalid(files.path(name), message);
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| invalid(format!("not valid JSON: {e}")))?;
    if !value.is_object() {
        return Err(invalid("not a JSON object".to_owned()));
    }
    Ok(Some(value))
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 is itself, the other 68 bytes are
/// in order from U+0100 (the table of GPT-2's tokenizer).
fn byte_of(c: char) -> Option<u8> {
    let code = match u32::from(c) {
        own @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => own,
        control @ 0x100..=0x120 => control - 0x100,
        upper @ 0x121..=0x142 => upper - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(code).ok()
}

/// Runs code of the `tokenizers` crate, whose handling of malformed vocabularies includes panics.
fn guard<T>(path: &Path, f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(Error::invalid(path, format!("the tokenizer cannot use it: {e}"))),
        Err(_) => Err(Error::invalid(
            path,
            "the tokenizer library failed on it; the file is malformed, download it again",
        )),
    }
}
