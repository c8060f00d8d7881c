//! Conversations as prompts: the model's own Jinja template, rendered as transformers renders it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::jinja::{Failure, Template};
use crate::source::{BITNET_TEMPLATE, Fields, MAX_TEXT, read_file};
use crate::tokenizer::TokenizerConfig;
use crate::{Error, Files, Result, Tokenizer};

/// A file of its own for the template.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`; templates may know more.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }

    /// Instructions for the whole conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model answered.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// A compiled chat template.
///
/// ```
/// use bitnet_model::{ChatTemplate, Message, Tokenizer};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let tokenizer = Tokenizer::from_folder(folder, None, &[])?;
/// let template = ChatTemplate::from_folder(folder, &tokenizer)?.expect("this model has one");
/// let prompt = template.render(&[Message::user("Hello!")])?;
/// assert_eq!(prompt, "User:Hello!<|eot_id|>Assistant:");
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    /// Compiled, or why it cannot be used.
    template: Result<Arc<Template>, String>,
    /// Its text; empty where there is none that could be compiled.
    source: Arc<str>,
    /// What error messages call the template.
    origin: String,
    special_tokens: BTreeMap<String, String>,
    built_in: bool,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, else the one (of several, the one named `default`) in
    /// `tokenizer_config.json`, else for the BitNet architecture the built-in one of BitNet b1.58 2B-4T.
    /// `None` where there is none at all.
    ///
    /// # Errors
    /// When a file cannot be read or is malformed, or the template does not compile.
    pub fn from_folder(folder: impl Into<Files>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let files = folder.into();
        let config = TokenizerConfig::from_files(&files)?.unwrap_or_default();
        if let Some(source) = files.read(TEMPLATE_FILE)? {
            return Self::from_bytes(&source, &files.path(TEMPLATE_FILE), config).map(Some);
        }
        let path = files.path("tokenizer_config.json");
        let origin = || format!("{}: chat_template", path.display());
        if let Some(source) = config.template(&path)? {
            return Self::compile(source, origin(), config.special_tokens.clone()).map(Some);
        }
        let config_json = Fields::read(&files, "config.json")?;
        let model_type = config_json.and_then(|c| Some(c.get("model_type")?.as_str()?.to_owned()));
        if model_type.as_deref() != Some("bitnet") || tokenizer.token_to_id("<|eot_id|>").is_none() {
            return Ok(None);
        }
        let origin = "the built-in chat template".to_owned();
        let mut template = Self::compile(BITNET_TEMPLATE, origin, config.special_tokens)?;
        template.built_in = true;
        Ok(Some(template))
    }

    /// A template from its source; `special_tokens` (`bos_token`, `eos_token`, ...) are variables of it.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn from_source(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        Self::compile(source, "the chat template".to_owned(), special_tokens)
    }

    /// A template of its own file, with the special tokens of the model in `folder`.
    ///
    /// # Errors
    /// When a file cannot be read or is malformed, or the template does not compile.
    pub fn from_file(path: &Path, folder: impl Into<Files>) -> Result<Self> {
        let config = TokenizerConfig::from_files(&folder.into())?.unwrap_or_default();
        let source = read_file(path, MAX_TEXT)?;
        Self::from_bytes(&source, path, config)
    }

    fn from_bytes(source: &[u8], path: &Path, config: TokenizerConfig) -> Result<Self> {
        let source = std::str::from_utf8(source).map_err(|e| Error::invalid(path, e.to_string()))?;
        Self::compile(source, path.display().to_string(), config.special_tokens)
    }

    /// Compiles `source`; `special_tokens` (`bos_token`, `eos_token`, ...) are variables of the template.
    pub(crate) fn compile(
        source: &str,
        origin: String,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        let template = Template::new(source).map_err(|e| Error::invalid(&origin, describe(&e)))?;
        Ok(Self {
            template: Ok(Arc::new(template)),
            source: source.into(),
            origin,
            special_tokens,
            built_in: false,
        })
    }

    /// A template that cannot be used, of a model that text and token ids can prompt all the same.
    pub(crate) fn broken(reason: Error) -> Self {
        Self {
            template: Err(reason.to_string()),
            source: "".into(),
            origin: String::new(),
            special_tokens: BTreeMap::new(),
            built_in: false,
        }
    }

    /// Whether it can be used: loading a model passes over what is wrong with its template, which text and token ids do not need.
    ///
    /// # Errors
    /// When its file cannot be read or is malformed, or it does not compile.
    pub fn check(&self) -> Result<()> {
        self.compiled().map(|_| ())
    }

    fn compiled(&self) -> Result<&Template> {
        self.template
            .as_deref()
            .map_err(|reason| Error::Request(reason.clone()))
    }

    /// Its text, as its file has it.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the folder had no template and the one of BitNet b1.58 2B-4T stands in.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.built_in
    }

    /// Whether it looks at `tools`, and so has a form of its own for them.
    #[must_use]
    pub fn knows_tools(&self) -> bool {
        self.template
            .as_ref()
            .is_ok_and(|template| template.knows_tools())
    }

    /// The prompt of a conversation, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let variables = Map::from_iter([("messages".to_owned(), json!(messages))]);
        self.render_with(variables)
    }

    /// The prompt of a conversation with everything that a template may look at: `messages`, which may have tool calls and parts,
    /// `tools`, `documents`, `add_generation_prompt` (true where it is not given), and whatever this model's template knows.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`].
    pub fn render_with(&self, variables: Map<String, Value>) -> Result<String> {
        let mut all: BTreeMap<&str, Value> = BTreeMap::from([
            ("tools", Value::Null),
            ("documents", Value::Null),
            ("add_generation_prompt", Value::Bool(true)),
        ]);
        let tokens = self.special_tokens.iter();
        all.extend(tokens.map(|(name, token)| (&name[..], Value::String(token.clone()))));
        all.extend(variables.iter().map(|(name, value)| (&name[..], value.clone())));
        self.compiled()?
            .render(&all)
            .map_err(|e| Error::Request(format!("{}: {}", self.origin, describe(&e))))
    }
}

impl TokenizerConfig {
    /// The chat template's source: a string, or the one named `default` of a list.
    fn template(&self, path: &Path) -> Result<Option<&str>> {
        let malformed = || {
            Error::invalid(
                path,
                "chat_template is neither a string nor a list of {name, template} with one named \"default\"",
            )
        };
        match &self.chat_template {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(source)) => Ok(Some(source)),
            Some(Value::Array(named)) => {
                let default = named
                    .iter()
                    .find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
                let source = default.and_then(|t| t.get("template")?.as_str());
                source.map(Some).ok_or_else(malformed)
            }
            Some(_) => Err(malformed()),
        }
    }
}

/// The message and line of a template's failure. Templates write messages too, which may hold control characters.
fn describe(failure: &Failure) -> String {
    let mut message = String::new();
    for c in failure.message.chars().take(500) {
        if c.is_control() {
            message.extend(c.escape_default())
        } else {
            message.push(c)
        }
    }
    match failure.line {
        0 => message,
        line => format!("{message} (line {line} of the template)"),
    }
}

#[cfg(test)]
mod tests;
