//! The tokenizer of a model folder as the keys of a GGUF file.

use std::collections::BTreeMap;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::fields::Fields;
use super::files::Files;
use super::gguf_writer::Header;
use super::vocabulary::{BITNET_TEMPLATE, Kind, LLAMA3_SPLIT, QWEN2_SPLIT};
use crate::{Error, Result, WeightSource};

/// A token, before it has its place.
struct Token {
    text: String,
    kind: Kind,
}

/// Writes the keys; returns what people should know.
pub(super) fn write(source: &Checkpoint, header: &mut Header) -> Result<Vec<String>> {
    let (files, config) = (source.files(), source.config());
    let prefix = "tokenizer.ggml.";
    for (role, id) in ["eos", "eot", "eom"].into_iter().zip(&config.eos) {
        header.count(&format!("{prefix}{role}_token_id"), *id);
    }
    if let Some(bos) = config.bos {
        header.count(&format!("{prefix}bos_token_id"), bos);
    }
    let Some(tokenizer) = Fields::read(files, "tokenizer.json")? else {
        return Ok(vec![
            "there is no tokenizer.json, so the file has no tokenizer: it takes token ids alone".into(),
        ]);
    };
    let model = match tokenizer.get("model") {
        Some(model) => tokenizer.nested("model", model)?,
        None => return Err(tokenizer.invalid("has no `model`")),
    };
    if !matches!(model.text("type", "BPE")?, "BPE") {
        return Err(model.unsupported(format!(
            "model is of type {}; GGUF is written of BPE alone",
            model.map["type"]
        )));
    }
    let sentencepiece = model.flag("byte_fallback", false)?;
    let tokens = tokens(&tokenizer, &model, config.vocab, sentencepiece)?;
    let merges = merges(&model)?;
    if sentencepiece {
        header.text("tokenizer.ggml.model", "llama");
        header.text("tokenizer.ggml.pre", "default");
        header.floats("tokenizer.ggml.scores", &scores(&tokens, &merges));
        let prepends = tokenizer
            .get("normalizer")
            .is_some_and(|value| value.to_string().contains("\"Prepend\""));
        header.flag("tokenizer.ggml.add_space_prefix", prepends);
    } else {
        header.text("tokenizer.ggml.model", "gpt2");
        header.text("tokenizer.ggml.pre", pre(&tokenizer)?);
        let joined: Vec<String> = merges
            .iter()
            .map(|(left, right)| format!("{left} {right}"))
            .collect();
        header.texts("tokenizer.ggml.merges", joined.iter().map(String::as_str));
    }
    header.texts(
        "tokenizer.ggml.tokens",
        tokens.iter().map(|token| token.text.as_str()),
    );
    let kinds: Vec<i32> = tokens.iter().map(|token| number(token.kind)).collect();
    header.integers("tokenizer.ggml.token_type", &kinds);
    roles(files, source, &tokens, &tokenizer, header)
}

/// The tokens with a role, what is put around a text, and the chat template.
fn roles(
    files: &Files,
    source: &Checkpoint,
    tokens: &[Token],
    tokenizer: &Fields,
    header: &mut Header,
) -> Result<Vec<String>> {
    let config = source.config();
    let own = Fields::read(files, "tokenizer_config.json")?;
    let id_of = |name: &str| {
        let value = own.as_ref()?.get(name)?;
        let text = value.get("content").unwrap_or(value).as_str()?;
        tokens.iter().position(|token| token.text == text)
    };
    for (name, role) in [("unk_token", "unknown"), ("pad_token", "padding")] {
        if let Some(id) = id_of(name).and_then(|id| u32::try_from(id).ok()) {
            header.count(&format!("tokenizer.ggml.{role}_token_id"), id);
        }
    }
    let (begins, ends) = around(tokenizer);
    let add_bos = match &own {
        _ if begins || ends => begins,
        Some(own) => own.flag("add_bos_token", true)? && id_of("bos_token").is_some(),
        None => config.bos.is_some_and(|bos| !config.eos.contains(&bos)),
    };
    header.flag("tokenizer.ggml.add_bos_token", add_bos && config.bos.is_some());
    header.flag("tokenizer.ggml.add_eos_token", ends);
    let template = match files.read("chat_template.jinja")? {
        Some(text) => String::from_utf8(text.to_vec()).ok(),
        None => own
            .as_ref()
            .and_then(|own| own.get("chat_template")?.as_str().map(str::to_owned)),
    };
    let bitnet = source
        .json()
        .get("model_type")
        .is_some_and(|name| name == "bitnet");
    let template = template.or_else(|| {
        let chats = bitnet && tokens.iter().any(|token| token.text == "<|eot_id|>");
        chats.then(|| BITNET_TEMPLATE.to_owned())
    });
    match template {
        Some(template) => {
            header.text("tokenizer.chat_template", &template);
            Ok(Vec::new())
        }
        None => Ok(vec![
            "the model has no chat template, so the file has none".into(),
        ]),
    }
}

/// Whether the post-processor begins a text with a token, and whether it ends one with a token.
fn around(tokenizer: &Fields) -> (bool, bool) {
    let Some(processor) = tokenizer.get("post_processor") else {
        return (false, false);
    };
    let of = |processor: &Value| {
        let single = processor.get("single").and_then(Value::as_array)?;
        let is_token = |part: Option<&Value>| part.is_some_and(|part| part.get("SpecialToken").is_some());
        Some((is_token(single.first()), is_token(single.last())))
    };
    let parts = processor.get("processors").and_then(Value::as_array);
    let found = match parts {
        Some(parts) => parts.iter().find_map(of),
        None => of(processor),
    };
    found.unwrap_or((false, false))
}

/// All ids of the embedding, those without a token as unused ones.
fn tokens(tokenizer: &Fields, model: &Fields, vocab: usize, sentencepiece: bool) -> Result<Vec<Token>> {
    let mut known: BTreeMap<usize, Token> = BTreeMap::new();
    let place = |id: Option<u64>, text: &str| match id.and_then(|id| usize::try_from(id).ok()) {
        Some(id) if id < vocab => Ok(id),
        _ => Err(tokenizer.invalid(format!(
            "token {text:?} has no id below {vocab}, the rows of the embedding"
        ))),
    };
    let unknown = model.text("unk_token", "")?.to_owned();
    let pieces = model.get("vocab").and_then(Value::as_object);
    for (text, id) in pieces.ok_or_else(|| tokenizer.invalid("model.vocab is no object"))? {
        let byte = sentencepiece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = match byte {
            true => Kind::Byte,
            false if sentencepiece && *text == unknown => Kind::Unknown,
            false => Kind::Normal,
        };
        let text = text.clone();
        known.insert(place(id.as_u64(), &text)?, Token { text, kind });
    }
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    for token in added.into_iter().flatten() {
        let text = token
            .get("content")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let id = place(token.get("id").and_then(Value::as_u64), &text)?;
        if known.get(&id).is_some_and(|known| known.kind == Kind::Unknown) {
            continue;
        }
        let kind = match token.get("special") {
            Some(Value::Bool(true)) => Kind::Control,
            _ => Kind::User,
        };
        known.insert(id, Token { text, kind });
    }
    let token = |id| {
        known.remove(&id).unwrap_or_else(|| Token {
            text: format!("[PAD{id}]"),
            kind: Kind::Unused,
        })
    };
    Ok((0..vocab).map(token).collect())
}

/// Pairs, as lists of two or as texts with a space between them.
fn merges(model: &Fields) -> Result<Vec<(String, String)>> {
    let list = model.get("merges").and_then(Value::as_array);
    let merges = list.into_iter().flatten().map(|merge| {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match &pair[..] {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        pair.map(|(left, right)| (left.to_owned(), right.to_owned()))
            .ok_or_else(|| model.invalid(format!("model.merges has {merge}, which is no pair of tokens")))
    });
    merges.collect()
}

/// Scores that put pieces in the order of the merges that make them.
fn scores(tokens: &[Token], merges: &[(String, String)]) -> Vec<f32> {
    let mut rank: BTreeMap<String, usize> = BTreeMap::new();
    for (left, right) in merges {
        let next = rank.len();
        rank.entry(format!("{left}{right}")).or_insert(next);
    }
    let last = rank.len();
    let score = |token: &Token| match token.kind {
        Kind::Normal => -(rank.get(&token.text).copied().unwrap_or(last) as f32),
        _ => 0.0,
    };
    tokens.iter().map(score).collect()
}

/// The name that other programs know the split by.
fn pre(tokenizer: &Fields) -> Result<&'static str> {
    let text = tokenizer
        .get("pre_tokenizer")
        .map(Value::to_string)
        .unwrap_or_default();
    let has = |split: &str| text.contains(&Value::from(split).to_string());
    if has(LLAMA3_SPLIT) {
        Ok("llama-bpe")
    } else if has(QWEN2_SPLIT) {
        Ok("qwen2")
    } else {
        Err(Error::Request(
            "tokenizer.json splits text in a way that GGUF has no name for that this program knows (llama-bpe, qwen2)".into(),
        ))
    }
}

fn number(kind: Kind) -> i32 {
    match kind {
        Kind::Normal => 1,
        Kind::Unknown => 2,
        Kind::Control => 3,
        Kind::User => 4,
        Kind::Unused => 5,
        Kind::Byte => 6,
    }
}
