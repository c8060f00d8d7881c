//! What requests are read against.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use bitnet_grammar::Compiler;
use bitnet_model::{ChatTemplate, GenerateOptions, GenerationConfig, Model, Sampling, Tokenizer};
use serde_json::{Value, json};

use crate::error::ApiError;

/// A model and the settings of whoever serves it.
pub struct Served {
    /// Its names; answers have the first.
    pub names: Vec<String>,
    /// The model's tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template.
    pub chat_template: Option<ChatTemplate>,
    /// Compiles what answers must be; absent without a tokenizer.
    pub compiler: Option<Compiler>,
    /// What a request leaves open.
    pub defaults: GenerateOptions,
    /// Most tokens of a completion that says no number, which is 16 in OpenAI's API; those of a conversation are in `defaults`.
    pub completion_tokens: Option<usize>,
    /// Most tokens of a prompt and its answer together.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Most answers to one prompt.
    pub max_n: usize,
    /// Whether requests may have priorities.
    pub has_priorities: bool,
    /// `system_fingerprint` of answers.
    pub fingerprint: String,
    /// When the model was loaded, in seconds since 1970.
    pub created: u64,
}

impl Served {
    /// For a model that is loaded, with the model's own settings over none at all: temperature 1, no cuts, no penalties.
    ///
    /// # Errors
    /// As for [`GenerationConfig::from_files`].
    pub fn new(model: &Model, names: Vec<String>) -> bitnet_model::Result<Self> {
        let spec = model.backend().spec();
        let config = GenerationConfig::over(model.files(), Sampling::plain())?;
        let device = spec.name.split(' ').next().unwrap_or_default();
        Ok(Self {
            fingerprint: format!(
                "bitnet-{}-{:08x}-{device}",
                env!("CARGO_PKG_VERSION"),
                hash(&format!("{:?} {names:?}", model.config()))
            ),
            names,
            compiler: model.tokenizer().map(|tokenizer| {
                let eos = [&spec.config.eos, tokenizer.end_ids()].concat();
                Compiler::new(tokenizer, spec.config.vocab, &eos)
            }),
            tokenizer: model.tokenizer().cloned(),
            chat_template: model.chat_template().cloned(),
            defaults: GenerateOptions {
                sampling: config.sampling,
                stop: config.stop_strings,
                max_tokens: config.max_new_tokens,
                ..GenerateOptions::default()
            },
            completion_tokens: Some(16),
            context: spec.context,
            vocab: spec.config.vocab,
            max_n: 16,
            has_priorities: false,
            created: now(),
        })
    }

    /// The name of the model in answers.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Refuses a request for another model.
    pub(crate) fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(name) if !self.names.iter().any(|own| own == name) => {
                Err(ApiError::model(name, &self.names))
            }
            _ => Ok(()),
        }
    }

    /// The tokenizer, for what cannot do without.
    pub(crate) fn tokenizer(&self, param: &str) -> Result<&Tokenizer, ApiError> {
        self.tokenizer.as_ref().ok_or_else(|| {
            ApiError::invalid(
                param,
                "the model has no tokenizer.json: only token ids can be prompts",
            )
        })
    }

    /// Refuses a text that no context of this length holds, before its tokens are made.
    pub(crate) fn check_length(&self, text: &str, param: &str) -> Result<(), ApiError> {
        let fewest = self
            .tokenizer
            .as_ref()
            .map_or(0, |tokenizer| tokenizer.fewest_tokens(text));
        match fewest > self.context {
            true => Err(ApiError::context(Some(param), fewest, self.context)),
            false => Ok(()),
        }
    }

    /// `GET /v1/models`.
    #[must_use]
    pub fn models(&self) -> Value {
        let data: Vec<Value> = self.names.iter().map(|name| self.entry(name)).collect();
        json!({ "object": "list", "data": data })
    }

    /// `GET /v1/models/{id}`.
    ///
    /// # Errors
    /// 404 for a model that is not served.
    pub fn model(&self, id: &str) -> Result<Value, ApiError> {
        self.check_model(Some(id))?;
        Ok(self.entry(id))
    }

    fn entry(&self, name: &str) -> Value {
        json!({
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "bitnet",
            "root": self.name(),
            "max_model_len": self.context,
        })
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("names", &self.names)
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// FNV-1a, which is the same in every version of the program.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// A number that nobody can foretell.
pub(crate) fn random() -> u64 {
    // The standard library's keys are random, and its hash spreads them.
    RandomState::new().hash_one(0)
}
