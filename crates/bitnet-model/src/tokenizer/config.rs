//! What `tokenizer_config.json` and `special_tokens_map.json` say beside the vocabulary.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::source::Fields;
use crate::{Error, Files, Result};

const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What the two files say.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenizerConfig {
    /// The text of `bos_token`, `eos_token` and so on.
    pub(crate) special_tokens: BTreeMap<String, String>,
    /// `false` where the model wants no beginning-of-sequence token.
    pub(crate) add_bos_token: Option<bool>,
    /// A template, or a list of named ones.
    pub(crate) chat_template: Option<Value>,
    /// `legacy` of a `LlamaTokenizer`.
    pub(crate) llama_legacy: Option<bool>,
    /// Tokens beside the vocabulary's own, with their ids: `added_tokens_decoder`.
    added_tokens: BTreeMap<u32, AddedToken>,
    /// Special tokens that are named and stand nowhere else.
    extra_tokens: Vec<AddedToken>,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`; tokens it does not name come from `special_tokens_map.json`.
    pub(crate) fn from_files(files: &Files) -> Result<Option<Self>> {
        let config = Fields::read(files, "tokenizer_config.json")?;
        let map = Fields::read(files, "special_tokens_map.json")?;
        if config.is_none() && map.is_none() {
            return Ok(None);
        }
        Self::from_fields(config.as_ref(), map.as_ref()).map(Some)
    }

    fn from_fields(config: Option<&Fields>, map: Option<&Fields>) -> Result<Self> {
        let mut read = Self::default();
        let both = || [config, map].into_iter().flatten();
        for name in NAMES {
            for fields in both() {
                let Some(token) = fields.get(name) else { continue };
                let token = added_token(token, true)
                    .ok_or_else(|| fields.invalid(format!("{name} is {token}; expected a token")))?;
                read.special_tokens.insert(name.to_owned(), token.content.clone());
                read.extra_tokens.push(token);
                break;
            }
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            let Some(fields) = both().find(|fields| fields.get(key).is_some()) else {
                continue;
            };
            let tokens: Vec<&Value> = match &fields.map[key] {
                Value::Array(tokens) => tokens.iter().collect(),
                Value::Object(tokens) => tokens.values().collect(),
                other => {
                    return Err(fields.invalid(format!("{key} is {other}; expected a list of tokens")));
                }
            };
            for token in tokens {
                let token = added_token(token, true)
                    .ok_or_else(|| fields.invalid(format!("{key} has {token}; expected tokens")))?;
                read.extra_tokens.push(token);
            }
        }
        let Some(config) = config else { return Ok(read) };
        if let Some(tokens) = config.get("added_tokens_decoder") {
            for (id, token) in &config.nested("added_tokens_decoder", tokens)?.map {
                let entry = id.parse().ok().zip(added_token(token, false));
                let (id, token) = entry.ok_or_else(|| {
                    config.invalid(format!(
                        "added_tokens_decoder has {id:?}: {token}; expected token ids, each with an object that has `content`"
                    ))
                })?;
                read.added_tokens.insert(id, token);
            }
        }
        let flag = |key: &str| config.get(key).map(|_| config.flag(key, false)).transpose();
        read.add_bos_token = flag("add_bos_token")?;
        if config.text("tokenizer_class", "")?.starts_with("LlamaTokenizer") {
            read.llama_legacy = flag("legacy")?;
        }
        read.chat_template = config.map.get("chat_template").cloned();
        Ok(read)
    }

    /// Gives `inner` these tokens as transformers does: what tokenizer_config.json says of a token holds, and special tokens that
    /// are only named are special too. `path` is what messages call `tokenizer.json`.
    pub(super) fn add_tokens(&self, inner: &mut tokenizers::Tokenizer, path: &Path) -> Result<()> {
        let known = inner.get_added_tokens_decoder();
        let is_named = |token: &AddedToken| self.special_tokens.values().any(|name| *name == token.content);
        let mut tokens = Vec::new();
        for token in self.added_tokens.values() {
            let token = token.clone().special(token.special || is_named(token));
            if known.values().all(|known| !is_same(known, &token)) {
                tokens.push(token);
            }
        }
        for token in &self.extra_tokens {
            let stands = |other: &AddedToken| other.content == token.content;
            if !self.added_tokens.values().any(stands) && !known.values().any(stands) {
                tokens.push(token.clone());
            }
        }
        if !tokens.is_empty() {
            super::guard(path, || inner.add_tokens(tokens))?;
        }
        for (&id, token) in &self.added_tokens {
            let found = inner.token_to_id(&token.content);
            if found != Some(id) && !token.content.is_empty() {
                return Err(Error::invalid(
                    path,
                    format!(
                        "has {:?} as token {}, and added_tokens_decoder of tokenizer_config.json as {id}; the files do not \
                         belong together",
                        token.content,
                        found.map_or_else(|| "none".to_owned(), |id| id.to_string())
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Whether two tokens are the same in all that changes ids.
fn is_same(a: &AddedToken, b: &AddedToken) -> bool {
    let facts = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && facts(a) == facts(b)
}

/// A token: its text, or an object with its text and how it is looked for.
fn added_token(value: &Value, is_special: bool) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, is_special));
    }
    let flag = |key: &str, default: bool| match value.get(key) {
        None | Some(Value::Null) => Some(default),
        Some(flag) => flag.as_bool(),
    };
    let special = flag("special", is_special)?;
    Some(
        AddedToken::from(value.get("content")?.as_str()?, special)
            .single_word(flag("single_word", false)?)
            .lstrip(flag("lstrip", false)?)
            .rstrip(flag("rstrip", false)?)
            .normalized(flag("normalized", !special)?),
    )
}
