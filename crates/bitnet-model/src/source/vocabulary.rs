//! Vocabularies as other programs keep them (a list of pieces), as the tokenizer.json that gives the same ids.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Value, json};

/// Longest piece whose parts are looked for: the work grows with the square of the length, and real pieces are shorter.
const MAX_PIECE: usize = 256;

/// The split of Llama 3's tokenizer, as its tokenizer.json has it.
pub(super) const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The split of Qwen 2's: digits one by one.
pub(super) const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The chat template of BitNet b1.58 2B-4T, for files of that model that have none, or another one.
pub(crate) const BITNET_TEMPLATE: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}\
    {% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}\
    {% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

/// SentencePiece's character for a space.
const SPACE: &str = "\u{2581}";

/// What a piece is; the numbers are SentencePiece's, and GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    /// Matched before a text is split, and hidden where text is shown.
    Control,
    /// Matched before a text is split.
    User,
    Unused,
    /// One byte, spelled `<0x41>`.
    Byte,
}

impl Kind {
    /// The kind of that number.
    pub(super) fn of(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::User,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// A piece of a vocabulary; its place in the list is its id.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// What is put around every text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    pub(super) first: Option<u32>,
    pub(super) last: Option<u32>,
}

/// How a byte-level vocabulary cuts text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    pub(super) regex: &'static str,
    /// A word that is a token is one, whatever the merges would make of it.
    pub(super) ignore_merges: bool,
    /// Unicode normal form C first.
    pub(super) compose: bool,
}

#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: Value,
    padding: Value,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'a>,
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: Value,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Value,
    end_of_word_suffix: Value,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, usize>,
    merges: Vec<(&'a str, &'a str)>,
}

/// A byte-level vocabulary (GPT-2's kind) with its merges, the first of them first.
pub(super) fn byte_level(
    pieces: &[Piece],
    merges: &[(&str, &str)],
    split: Split,
    ends: Ends,
) -> Result<String, String> {
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": split.regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    write(TokenizerJson {
        normalizer: if split.compose {
            json!({"type": "NFC"})
        } else {
            Value::Null
        },
        pre_tokenizer,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: Bpe {
            ignore_merges: split.ignore_merges,
            merges: merges.to_vec(),
            ..Bpe::new(vocabulary(pieces)?)
        },
        ..TokenizerJson::new(pieces, ends)?
    })
}

/// A SentencePiece vocabulary of the BPE kind. Its merges are not stored: a piece can be made of two that are pieces, and the
/// piece with the highest score is made first.
pub(super) fn sentencepiece(pieces: &[Piece], add_prefix_space: bool, ends: Ends) -> Result<String, String> {
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if add_prefix_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = pieces.iter().find(|piece| piece.kind == Kind::Unknown);
    write(TokenizerJson {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: Bpe {
            unk_token: unknown.map(|piece| piece.text.as_str()),
            fuse_unk: true,
            byte_fallback: pieces.iter().any(|piece| piece.kind == Kind::Byte),
            merges: merges(pieces)?,
            ..Bpe::new(vocabulary(pieces)?)
        },
        ..TokenizerJson::new(pieces, ends)?
    })
}

impl<'a> TokenizerJson<'a> {
    fn new(pieces: &'a [Piece], ends: Ends) -> Result<Self, String> {
        let special = |kind| matches!(kind, Kind::Control | Kind::Unknown);
        let added = pieces
            .iter()
            .enumerate()
            .filter(|(_, piece)| special(piece.kind) || piece.kind == Kind::User)
            .filter(|(_, piece)| !piece.text.is_empty());
        let added = added.map(|(id, piece)| {
            json!({
                "id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": special(piece.kind),
            })
        });
        Ok(Self {
            version: "1.0",
            truncation: Value::Null,
            padding: Value::Null,
            added_tokens: added.collect(),
            normalizer: Value::Null,
            pre_tokenizer: Value::Null,
            post_processor: template(pieces, ends)?,
            decoder: Value::Null,
            model: Bpe::new(BTreeMap::new()),
        })
    }
}

impl<'a> Bpe<'a> {
    fn new(vocab: BTreeMap<&'a str, usize>) -> Self {
        Self {
            r#type: "BPE",
            dropout: Value::Null,
            unk_token: None,
            continuing_subword_prefix: Value::Null,
            end_of_word_suffix: Value::Null,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab,
            merges: Vec::new(),
        }
    }
}

fn write(json: TokenizerJson<'_>) -> Result<String, String> {
    serde_json::to_string(&json).map_err(|error| error.to_string())
}

/// The pieces that can stand in a text, with their ids.
fn vocabulary(pieces: &[Piece]) -> Result<BTreeMap<&str, usize>, String> {
    let mut ids = BTreeMap::new();
    for (id, piece) in pieces.iter().enumerate() {
        if piece.kind == Kind::Unused || piece.text.is_empty() {
            continue;
        }
        if let Some(first) = ids.insert(piece.text.as_str(), id) {
            return Err(format!("tokens {first} and {id} are both {:?}", piece.text));
        }
    }
    Ok(ids)
}

fn merges(pieces: &[Piece]) -> Result<Vec<(&str, &str)>, String> {
    let normal = || {
        let all = pieces.iter().enumerate();
        all.filter(|(_, piece)| piece.kind == Kind::Normal)
    };
    let ids: HashMap<&str, usize> = normal().map(|(id, piece)| (piece.text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, piece) in normal() {
        let text = piece.text.as_str();
        if text.len() > MAX_PIECE {
            return Err(format!(
                "token {id} has {} bytes; at most {MAX_PIECE} are supported",
                text.len()
            ));
        }
        if piece.score.is_nan() {
            return Err(format!("the score of token {id} is NaN"));
        }
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push((piece.score, id, l, r, (left, right)));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    Ok(merges.into_iter().map(|merge| merge.4).collect())
}

/// The post-processor that puts tokens around a text.
fn template(pieces: &[Piece], ends: Ends) -> Result<Value, String> {
    let mut special = serde_json::Map::new();
    let mut token = |id: Option<u32>| -> Result<Option<String>, String> {
        let Some(id) = id else { return Ok(None) };
        let piece = pieces.get(id as usize).ok_or_else(|| {
            format!(
                "token {id} is to stand around every text, and there are {} tokens",
                pieces.len()
            )
        })?;
        let text = piece.text.clone();
        special.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
        Ok(Some(text))
    };
    let (first, last) = (token(ends.first)?, token(ends.last)?);
    if first.is_none() && last.is_none() {
        return Ok(Value::Null);
    }
    let around = |sequence: &str, kind: usize| {
        let end = |token: &Option<String>| {
            let token = token.as_ref()?;
            Some(json!({"SpecialToken": {"id": token, "type_id": kind}}))
        };
        let sequence = json!({"Sequence": {"id": sequence, "type_id": kind}});
        [end(&first), Some(sequence), end(&last)].into_iter().flatten()
    };
    Ok(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0).collect::<Vec<_>>(),
        "pair": around("A", 0).chain(around("B", 1)).collect::<Vec<_>>(),
        "special_tokens": special,
    }))
}
