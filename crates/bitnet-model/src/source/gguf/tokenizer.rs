//! The tokenizer in the metadata of a GGUF file, as the files of a model folder that give the same ids.

use serde_json::{Map, Value, json};

use super::super::vocabulary::{
    BITNET_TEMPLATE, Ends, Kind, LLAMA3_SPLIT, Piece, QWEN2_SPLIT, Split, byte_level, sentencepiece,
};
use super::metadata::Metadata;
use crate::{Error, Result};

const TOKENS: &str = "tokenizer.ggml.tokens";

/// Control tokens that end a turn whatever the metadata say: files name one end token where models have two.
const ENDS: [&str; 7] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
];

/// What bitnet.cpp's converter writes as the chat template of any model.
const FOREIGN_TEMPLATE: &str = "BITNETAssistant";

/// What kind of vocabulary a file has.
enum Family {
    SentencePiece,
    ByteLevel(Split, bool),
}

/// Whether there is a tokenizer.
pub(super) fn is_there(metadata: &Metadata) -> bool {
    metadata.has("tokenizer.ggml.model") && metadata.has(TOKENS)
}

/// Whether the vocabulary is SentencePiece's, as Llama 2 has it.
pub(super) fn is_sentencepiece(metadata: &Metadata) -> Result<bool> {
    Ok(metadata.text("tokenizer.ggml.model")? == Some("llama"))
}

/// How many tokens there are, where there is a list of them.
pub(super) fn n_tokens(metadata: &Metadata) -> Result<Option<usize>> {
    Ok(metadata.texts(TOKENS)?.map(<[_]>::len))
}

/// tokenizer.json.
pub(super) fn json(metadata: &Metadata) -> Result<String> {
    let pieces = pieces(metadata)?;
    let ends = Ends {
        first: first(metadata)?,
        last: match metadata.flag("tokenizer.ggml.add_eos_token")? {
            Some(true) => id(metadata, "eos")?,
            _ => None,
        },
    };
    let json = match family(metadata)? {
        Family::SentencePiece => {
            let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            sentencepiece(&pieces, prefix, ends)
        }
        Family::ByteLevel(split, _) => {
            let key = "tokenizer.ggml.merges";
            let merges = metadata.texts(key)?.ok_or_else(|| {
                metadata.invalid(format!(
                    "has no key `{key}`, without which text cannot be tokenized"
                ))
            })?;
            let merges = merges.iter().enumerate().map(|(index, merge)| {
                let merge = std::str::from_utf8(merge).ok();
                // The first half may itself begin with a space's stand-in, never with a space.
                merge.and_then(|merge| merge.split_once(' ')).ok_or_else(|| {
                    metadata.invalid(format!(
                        "value {index} of `{key}` is not two tokens with a space between them"
                    ))
                })
            });
            byte_level(&pieces, &merges.collect::<Result<Vec<_>>>()?, split, ends)
        }
    };
    json.map_err(|message| metadata.invalid(format!("its tokenizer cannot be used: {message}")))
}

/// tokenizer_config.json: the tokens with a role, and the chat template.
pub(super) fn config(metadata: &Metadata) -> Result<Value> {
    let mut config = Map::new();
    for (role, name) in [
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
    ] {
        if let Some(text) = id(metadata, role)?.map(|id| text(metadata, id)).transpose()? {
            config.insert(name.into(), text.into());
        }
    }
    config.insert("add_bos_token".into(), first(metadata)?.is_some().into());
    if let Some(template) = template(metadata)? {
        config.insert("chat_template".into(), template.into());
    }
    Ok(config.into())
}

/// The chat template; the model's own where the file has another model's, see [`foreign_template`].
fn template(metadata: &Metadata) -> Result<Option<&str>> {
    if foreign_template(metadata)? {
        return Ok(Some(BITNET_TEMPLATE));
    }
    match metadata.text("tokenizer.chat_template")? {
        None => metadata.text("tokenizer.chat_template.default"),
        template => Ok(template),
    }
}

/// Whether the chat template is the one that bitnet.cpp's converter writes whatever the model.
pub(super) fn foreign_template(metadata: &Metadata) -> Result<bool> {
    let bitnet = metadata
        .text("general.architecture")?
        .is_some_and(|name| name.starts_with("bitnet"));
    let template = metadata.text("tokenizer.chat_template")?;
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
    Ok(bitnet
        && template.is_some_and(|template| template.contains(FOREIGN_TEMPLATE))
        && tokens.iter().any(|token| token == b"<|eot_id|>"))
}

/// The first token of every text, where there is one.
pub(super) fn first(metadata: &Metadata) -> Result<Option<u32>> {
    let add = match metadata.flag("tokenizer.ggml.add_bos_token")? {
        Some(add) => add,
        None => match family(metadata)? {
            Family::SentencePiece => true,
            Family::ByteLevel(_, add) => add,
        },
    };
    if add { id(metadata, "bos") } else { Ok(None) }
}

/// Tokens that end a text: those that the metadata name, and then those that only their spelling tells.
pub(super) fn last(metadata: &Metadata) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut named = Vec::new();
    for role in ["eos", "eot", "eom"] {
        if let Some(id) = id(metadata, role)?
            && !named.contains(&id)
        {
            named.push(id);
        }
    }
    let kinds = metadata.counts("tokenizer.ggml.token_type")?.unwrap_or_default();
    let control = |id: usize| kinds.get(id).copied().and_then(Kind::of) == Some(Kind::Control);
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default().iter().enumerate();
    let spelled = tokens
        .filter(|(id, text)| control(*id) && ENDS.iter().any(|end| end.as_bytes() == text.as_slice()))
        .filter_map(|(id, _)| u32::try_from(id).ok())
        .filter(|id| !named.contains(id))
        .collect();
    Ok((named, spelled))
}

/// The id of the token of a role, which must be a token.
pub(super) fn id(metadata: &Metadata, role: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{role}_token_id");
    // -1, or the same number without its sign, stands for none in some files.
    let Ok(Some(id)) = metadata.count(&key) else {
        return Ok(None);
    };
    let n_tokens = n_tokens(metadata)?.unwrap_or(usize::MAX);
    match u32::try_from(id) {
        Ok(u32::MAX) => Ok(None),
        Ok(id) if (id as usize) < n_tokens => Ok(Some(id)),
        _ => Err(metadata.invalid(format!("key `{key}` is {id}, and there are {n_tokens} tokens"))),
    }
}

/// The spelling of a token.
pub(super) fn text(metadata: &Metadata, id: u32) -> Result<String> {
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
    let text = tokens
        .get(id as usize)
        .map(|text| String::from_utf8(text.clone()));
    match text {
        Some(Ok(text)) => Ok(text),
        _ => Err(no_text(metadata, id as usize)),
    }
}

fn no_text(metadata: &Metadata, id: usize) -> Error {
    metadata.invalid(format!(
        "token {id} is no UTF-8, so that text cannot be tokenized"
    ))
}

fn family(metadata: &Metadata) -> Result<Family> {
    let pre = metadata.text("tokenizer.ggml.pre")?;
    match metadata.text("tokenizer.ggml.model")? {
        Some("llama") => Ok(Family::SentencePiece),
        Some("gpt2") => {
            // The official file of BitNet b1.58 2B-4T names none. It has Llama 3's.
            let bitnet = metadata
                .text("general.architecture")?
                .is_some_and(|name| name.starts_with("bitnet"));
            let unnamed = bitnet || n_tokens(metadata)? == Some(128_256);
            match pre {
                Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon_e" | "falcon-e" | "falcon-h1") => {}
                None | Some("default") if unnamed => {}
                Some("qwen2") => {
                    let split = Split {
                        regex: QWEN2_SPLIT,
                        ignore_merges: false,
                        compose: true,
                    };
                    return Ok(Family::ByteLevel(split, false));
                }
                other => {
                    return Err(metadata.unsupported(format!(
                        "key `tokenizer.ggml.pre` is {}; supported are llama-bpe, falcon3, falcon_e, falcon-h1 and qwen2: use token ids, or \
                         the safetensors folder of the model",
                        other.map_or("missing".into(), |pre| format!("`{pre}`"))
                    )));
                }
            }
            let split = Split {
                regex: LLAMA3_SPLIT,
                ignore_merges: true,
                compose: false,
            };
            Ok(Family::ByteLevel(split, true))
        }
        other => Err(metadata.unsupported(format!(
            "key `tokenizer.ggml.model` is {}; supported are `gpt2` and `llama`: use token ids, or the safetensors folder of the model",
            other.map_or("missing".into(), |model| format!("`{model}`"))
        ))),
    }
}

fn pieces(metadata: &Metadata) -> Result<Vec<Piece>> {
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
    let scores = metadata.floats("tokenizer.ggml.scores")?;
    let kinds = metadata.counts("tokenizer.ggml.token_type")?;
    for (what, length) in [
        ("scores", scores.as_ref().map(Vec::len)),
        ("token_type", kinds.as_ref().map(Vec::len)),
    ] {
        if length.is_some_and(|length| length != tokens.len()) {
            return Err(metadata.invalid(format!(
                "key `tokenizer.ggml.{what}` has {} values for {} tokens",
                length.unwrap_or_default(),
                tokens.len()
            )));
        }
    }
    let pieces = tokens.iter().enumerate().map(|(id, text)| {
        let number = kinds.as_ref().map_or(1, |kinds| kinds[id]);
        let kind = Kind::of(number)
            .ok_or_else(|| metadata.invalid(format!("token {id} is of the unknown type {number}")))?;
        // Nobody asks for the text of a token that is not used.
        let text = match String::from_utf8(text.clone()) {
            Ok(text) => text,
            Err(_) if kind == Kind::Unused => String::new(),
            Err(_) => return Err(no_text(metadata, id)),
        };
        Ok(Piece {
            text,
            score: scores.as_ref().map_or(-(id as f32), |scores| scores[id]),
            kind,
        })
    });
    pieces.collect()
}

/// What of it differs from what the file says, for people.
pub(super) fn notes(metadata: &Metadata) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let (_, spelled) = last(metadata)?;
    if !spelled.is_empty() {
        let texts: Result<Vec<_>> = spelled.iter().map(|&id| text(metadata, id)).collect();
        notes.push(format!("{} end a turn too, by their names", texts?.join(" and ")));
    }
    if foreign_template(metadata)? {
        notes.push(
            "its chat template is the placeholder of bitnet.cpp's converter; the model's own is used".into(),
        );
    }
    Ok(notes)
}

/// The keys of [`config`] that have no use without a tokenizer.
pub(super) fn ids(metadata: &Metadata) -> Result<(Value, Value)> {
    let (mut named, spelled) = last(metadata)?;
    named.extend(spelled);
    Ok((json!(id(metadata, "bos")?), json!(named)))
}
