//! What an answer can be asked to obey.

use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::{Value, json};

use crate::cost::Budget;
use crate::error::GrammarError;
use crate::gbnf;
use crate::json;
use crate::tools::{self, Calls, quoted};

/// Most bytes of a regular expression, of choices and of a grammar.
pub(crate) const MAX_TEXT: usize = 64 << 10;

/// What an answer must obey, from its first byte to its last.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any object of JSON.
    JsonObject,
    /// JSON that obeys a JSON schema (drafts 4 to 2020-12). Keywords that llguidance does not know how to obey are refused.
    JsonSchema(Value),
    /// A regular expression in the notation of Rust's `regex`, for the whole text.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's dialect of Lark's notation.
    Lark(String),
    /// A grammar in the notation of llama.cpp.
    Gbnf(String),
    /// Calls of tools.
    Calls(Calls),
    /// Calls of tools, or in their place JSON that obeys a JSON schema and nothing else. [`Calls::choice`] does not matter.
    CallsOrJson(Calls, Value),
}

impl Grammar {
    /// A grammar in either notation: with `::=` in it, it is llama.cpp's.
    #[must_use]
    pub fn from_text(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.contains("::=") {
            Self::Gbnf(text)
        } else {
            Self::Lark(text)
        }
    }

    pub(crate) fn to_library(&self) -> Result<TopLevelGrammar, GrammarError> {
        let lark = match self {
            Self::JsonObject => {
                let schema = json::prepared(&json!({"type": "object"}), &mut Budget::default())?;
                return Ok(TopLevelGrammar::from_json_schema(schema));
            }
            Self::JsonSchema(schema) => {
                return Ok(TopLevelGrammar::from_json_schema(json::prepared(
                    schema,
                    &mut Budget::default(),
                )?));
            }
            Self::Regex(text) => regex(text)?,
            Self::Choice(choices) => choice(choices)?,
            Self::Lark(text) => {
                let text = bounded("the grammar", text)?;
                json::check_inside(text)?;
                text.to_owned()
            }
            Self::Gbnf(text) => gbnf::to_lark(bounded("the grammar", text)?)?,
            Self::Calls(calls) => tools::lark(calls, None)?,
            Self::CallsOrJson(calls, schema) => tools::lark(calls, Some(schema))?,
        };
        Ok(TopLevelGrammar::from_lark(lark))
    }
}

fn bounded<'t>(what: &str, text: &'t str) -> Result<&'t str, GrammarError> {
    if text.len() > MAX_TEXT {
        return Err(GrammarError::new(format!(
            "{what} has more than {MAX_TEXT} bytes"
        )));
    }
    Ok(text)
}

fn regex(text: &str) -> Result<String, GrammarError> {
    let text = bounded("the regular expression", text)?;
    if text.is_empty() {
        return Ok("start: \"\"\n".to_owned());
    }
    if text.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1 {
        return Err(GrammarError::new(
            "the regular expression ends with a backslash that escapes nothing",
        ));
    }
    Ok(format!("start: /{}/\n", regex_to_lark(text, "")))
}

fn choice(choices: &[String]) -> Result<String, GrammarError> {
    if choices.is_empty() {
        return Err(GrammarError::new(
            "there is nothing to choose from: the list of choices is empty",
        ));
    }
    let all: Vec<String> = choices.iter().map(|text| quoted(text)).collect();
    let all = all.join(" | ");
    bounded("the list of choices", &all)?;
    // As one terminal, so that of `a` and `ab` both can be chosen.
    Ok(format!("start: CHOICE\nCHOICE: {all}\n"))
}
