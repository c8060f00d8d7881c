//! What answers must obey: a JSON schema or a grammar.

use std::path::PathBuf;

use anyhow::Context;
use bitnet_grammar::{Compiler, Grammar};
use bitnet_model::Model;
use bitnet_model::schedule::Mask;

use crate::args::read_text;
use crate::failure::hinted;

/// Which form an answer has; at most one is given.
#[derive(Debug, clap::Args)]
pub(crate) struct ConstraintArgs {
    /// Answer with JSON that obeys this JSON schema, given as text or as the name of a file; {} is any JSON
    #[arg(short = 'j', long, value_name = "SCHEMA", help_heading = "Form of the answer")]
    json_schema: Option<String>,
    /// Answer with a text of this grammar, in the notation of llama.cpp (root ::= ...) or of Lark (start: ...)
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "json_schema",
        help_heading = "Form of the answer"
    )]
    grammar: Option<String>,
    /// The same, with the grammar in a file
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["grammar", "json_schema"],
        help_heading = "Form of the answer"
    )]
    grammar_file: Option<PathBuf>,
}

/// A grammar, and the flag that gave it.
pub(crate) struct Constraint {
    grammar: Grammar,
    flag: &'static str,
}

impl ConstraintArgs {
    /// Reads it, before a model is loaded for nothing.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Constraint>> {
        let (grammar, flag) = if let Some(given) = &self.json_schema {
            (schema(given)?, "--json-schema")
        } else if let Some(text) = &self.grammar {
            (Grammar::from_text(text), "--grammar")
        } else if let Some(path) = &self.grammar_file {
            (Grammar::from_text(read_text(path)?), "--grammar-file")
        } else {
            return Ok(None);
        };
        Ok(Some(Constraint { grammar, flag }))
    }
}

/// A schema begins with a brace, and everything else is the name of a file.
fn schema(given: &str) -> anyhow::Result<Grammar> {
    let (text, name) = if given.trim_start().starts_with('{') {
        (given.to_owned(), "--json-schema".to_owned())
    } else {
        let path = PathBuf::from(given);
        (read_text(&path)?, path.display().to_string())
    };
    let schema = serde_json::from_str(&text).with_context(|| format!("{name}: not valid JSON"))?;
    Ok(Grammar::JsonSchema(schema))
}

impl Constraint {
    /// What it allows `model` to say.
    pub(crate) fn mask(&self, model: &Model) -> anyhow::Result<Box<dyn Mask>> {
        let flag = self.flag;
        let Some(tokenizer) = model.tokenizer() else {
            return Err(hinted(
                format!("{flag} needs to know the text of tokens, and the model has no tokenizer"),
                "put the model's tokenizer.json beside its weights, or take a GGUF file that has one",
            ));
        };
        let compiler = Compiler::of_model(tokenizer, model.config());
        compiler
            .compile(&self.grammar)
            .map_err(|error| anyhow::anyhow!("{flag}: {error}"))
    }
}
