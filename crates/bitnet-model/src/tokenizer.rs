//! Text to token ids and back: `tokenizer.json` with the facts of `tokenizer_config.json` that change the ids.

mod bytes;
mod config;
mod growth;

mod least;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

pub(crate) use config::TokenizerConfig;
use growth::{Growth, Outline};

use crate::source::special_ids;
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
    end_ids: Vec<u32>,
    special: Arc<HashSet<u32>>,
    byte_level: bool,
    byte_fallback: bool,
    growth: Arc<Growth>,
}

impl Tokenizer {
    /// The tokenizer of a model as [`crate::Model::load`] has it: as [`Tokenizer::from_folder`], with the ids that `config.json`
    /// names, where there is one.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_folder`], and when `config.json` cannot be read.
    pub fn of_model(folder: impl Into<Files>) -> Result<Self> {
        let files = folder.into();
        let (bos, eos) = special_ids(&files)?;
        Self::from_folder(files, bos, &eos)
    }

    /// Reads `tokenizer.json` of `folder`, and `tokenizer_config.json` and `special_tokens_map.json` where they exist.
    ///
    /// `bos` and `eos` are the model's own ids, from `config.json`: without a `tokenizer_config.json` they decide whether
    /// prompts begin with `bos`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing, or a file cannot be read or is malformed.
    pub fn from_folder(folder: impl Into<Files>, bos: Option<u32>, eos: &[u32]) -> Result<Self> {
        let files = folder.into().opened()?;
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
        let outline: Outline = serde_json::from_slice(json).map_err(|e| {
            Error::invalid(
                path,
                format!("not valid JSON: {e}; if the download was cut off, repeat it"),
            )
        })?;
        let growth = Growth::of(&outline).map_err(|message| Error::invalid(path, message))?;
        let mut inner = guard(path, || tokenizers::Tokenizer::from_bytes(json))?;
        // Training-time truncation and padding of whole batches: a prompt must arrive as it was written.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::invalid(path, e.to_string()))?;
        // So is dropout: the same text has the same ids.
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
        if let Some(config) = config {
            config.add_tokens(&mut inner, path)?;
            if let Some(legacy) = config.llama_legacy {
                guard(path, || prefix_spaces(&mut inner, legacy))?;
            }
        }
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .collect();
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let named = |name: &str| config.and_then(|c| inner.token_to_id(c.special_tokens.get(name)?));
        let bos = match config {
            Some(config) if config.add_bos_token == Some(false) => None,
            Some(_) => named("bos_token"),
            None => bos.filter(|id| !eos.contains(id)),
        };
        let mut end_ids: Vec<u32> = [named("eos_token"), inner.token_to_id(END_OF_TURN)]
            .into_iter()
            .flatten()
            .collect();
        end_ids.dedup();
        Ok(Self {
            path: path.to_owned(),
            bos,
            end_ids,
            special: Arc::new(special),
            byte_level,
            byte_fallback: outline.has_byte_fallback(),
            growth: Arc::new(growth),
            inner: Arc::new(inner),
        })
    }

    /// The token that begins every prompt, where the model wants one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end an answer by the tokenizer's files: `eos_token`, which a chat model's authors may change without
    /// changing `config.json`, and Llama 3's `<|eot_id|>`.
    #[must_use]
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
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
        self.encode(text).map(|ids| self.with_one_bos(ids))
    }

    /// Token ids of a rendered conversation, which spells out its special tokens itself: the post-processor adds none, and it
    /// begins with exactly one [`Tokenizer::bos`].
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_plain(text).map(|ids| self.with_one_bos(ids))
    }

    fn with_one_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.bos {
            let present = ids.iter().take_while(|&&id| id == bos).count();
            match present {
                0 => ids.insert(0, bos),
                n => drop(ids.drain(..n - 1)),
            }
        }
        ids
    }

    /// The byte that a token such as `<0x0A>` stands for, where the decoder joins such tokens to characters.
    pub(crate) fn fallback_byte(&self, id: u32) -> Option<u8> {
        if !self.byte_fallback {
            return None;
        }
        let token = self.inner.id_to_token(id)?;
        let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
        (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
    }

    /// The bytes of a token, or `None` where the vocabulary is not byte-level: there a token's text depends on its
    /// neighbors. An id without a token has no bytes.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if !self.byte_level {
            return None;
        }
        let token = self.inner.id_to_token(id).unwrap_or_default();
        let bytes: Option<Vec<u8>> = token.chars().map(bytes::byte_of).collect();
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
        self.growth
            .check(text)
            .map_err(|message| Error::invalid(&self.path, message))?;
        let encoding = guard(&self.path, || self.inner.encode_fast(text, add_special_tokens))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// Ends a turn in the models that took over Llama 3's vocabulary; some of their files name the base model's end token alone.
const END_OF_TURN: &str = "<|eot_id|>";

/// What `legacy` of a `LlamaTokenizer` means: with it every stretch of text between special tokens begins with a space, without
/// it the first alone. Vocabularies without such spaces stay as they are.
fn prefix_spaces(inner: &mut tokenizers::Tokenizer, legacy: bool) -> tokenizers::Result<()> {
    let normalizer = serde_json::to_value(inner.get_normalizer())?;
    let prepends = |part: &Value| part["type"] == "Prepend" && part["prepend"] == "▁";
    let by_normalizer = prepends(&normalizer)
        || (normalizer["normalizers"].as_array()).is_some_and(|parts| parts.iter().any(prepends));
    let pre_tokenizer = serde_json::to_value(inner.get_pre_tokenizer())?;
    let by_pre_tokenizer = pre_tokenizer["type"] == "Metaspace" && pre_tokenizer["prepend_scheme"] != "never";
    if by_normalizer || by_pre_tokenizer {
        let scheme = if legacy { "always" } else { "first" };
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        inner.with_normalizer(None::<NormalizerWrapper>)?;
        inner.with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(metaspace)?));
    }
    Ok(())
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
