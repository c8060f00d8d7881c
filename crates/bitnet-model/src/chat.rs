//! Conversations as prompts: the model's own Jinja template, rendered as transformers renders it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, context};
use serde::Serialize;
use serde_json::Value;

use crate::source::{Fields, MAX_TEXT, read_file};
use crate::tokenizer::TokenizerConfig;
use crate::{Error, Files, Result, Tokenizer};

/// The template of BitNet b1.58 2B-4T, for folders of that architecture that come without one.
const BITNET_TEMPLATE: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}\
    {% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}\
    {% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

/// A file of its own for the template.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Steps a template may take; a real one takes some dozens a message.
const FUEL: u64 = 10_000_000;

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
#[derive(Debug)]
pub struct ChatTemplate {
    /// Compiled, or why it cannot be used.
    environment: Result<Environment<'static>, String>,
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
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(format);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_filter("trim", trim);
        environment
            .add_template_owned("chat", plain_blocks(source).into_owned())
            .map_err(|e| Error::invalid(&origin, describe(&e)))?;
        Ok(Self {
            environment: Ok(environment),
            origin,
            special_tokens,
            built_in: false,
        })
    }

    /// A template that cannot be used, of a model that text and token ids can prompt all the same.
    pub(crate) fn broken(reason: Error) -> Self {
        Self {
            environment: Err(reason.to_string()),
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

    fn compiled(&self) -> Result<&Environment<'static>> {
        self.environment
            .as_ref()
            .map_err(|reason| Error::Request(reason.clone()))
    }

    /// Whether the folder had no template and the one of BitNet b1.58 2B-4T stands in.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.built_in
    }

    /// The prompt of a conversation, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let variables = context! {
            messages,
            tools => (),
            documents => (),
            add_generation_prompt => true,
            ..minijinja::Value::from_serialize(&self.special_tokens)
        };
        self.compiled()?
            .get_template("chat")
            .and_then(|template| template.render(variables))
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

/// Writes a value as Python's `str` would: `True`, `None`.
fn format(out: &mut Output, state: &State, value: &minijinja::Value) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::None => Ok(out.write_str("None")?),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time in a `strftime` format.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    use std::fmt::Write;
    let mut text = String::new();
    // `to_string` would panic on a format that chrono does not know.
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        let message = format!("strftime_now: unknown format {format:?}");
        minijinja::Error::new(ErrorKind::InvalidOperation, message)
    })?;
    Ok(text)
}

/// `str.strip`: Python counts four separator characters as space that Unicode does not.
fn trim(text: Cow<'_, str>, chars: Option<Cow<'_, str>>) -> String {
    let trimmed = match &chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)),
        None => text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\x1c'..='\x1f')),
    };
    trimmed.to_owned()
}

/// transformers' `tojson`, which is Python's `json.dumps(value, ensure_ascii=False)`: a space after colons and, on one
/// line, after commas; nothing escaped for HTML.
fn to_json(value: minijinja::Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let unserializable = |e| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "tojson cannot serialize this value")
            .with_source(e)
    };
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(64));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonJson)),
    };
    written.map_err(unserializable)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Python's default separators.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// Replaces transformers' own `{% generation %} ... {% endgeneration %}`, which only marks text for training, by a block
/// that does nothing.
fn plain_blocks(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return source.into();
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        let lead = tag.len() - word.len();
        let (plain, length) = ["generation", "endgeneration"]
            .into_iter()
            .zip(["if true", "endif"])
            .find_map(|(name, plain)| {
                let end = word
                    .strip_prefix(name)?
                    .trim_start()
                    .trim_start_matches(['-', '+']);
                end.starts_with("%}").then_some((plain, name.len()))
            })
            .unwrap_or(("", 0));
        out.push_str(&tag[..lead]);
        out.push_str(plain);
        rest = &tag[lead + length..];
    }
    out.push_str(rest);
    out.into()
}

/// The message and line of a template error, without the library's own framing.
fn describe(error: &minijinja::Error) -> String {
    let message = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{message} (line {line} of the template)"),
        None => message,
    }
}

#[cfg(test)]
mod tests;
