//! `tokenizer.model`, the protocol buffer of SentencePiece, as the tokenizer.json that gives the same ids.
//!
//! Of the message `ModelProto` (`sentencepiece_model.proto`) are read: the pieces (field 1: text 1, score 2, type 3), of the
//! trainer's specification (field 2) the model type (3) and `treat_whitespace_as_suffix` (24), and of the normalizer's (field 3)
//! `precompiled_charsmap` (2), `add_dummy_prefix` (3), `remove_extra_whitespaces` (4) and `escape_whitespaces` (5).

use serde_json::Value;

use super::vocabulary::{Ends, Kind, Piece, sentencepiece};

/// The trainer's number of byte-pair encoding; 1 is a unigram model, 3 whole words, 4 characters.
const BPE: u64 = 2;

/// A tokenizer.json that does what tokenizer.model and `added_tokens.json` (names and ids) say, for models of the Llama 2 kind:
/// `<s>` before every text.
pub(super) fn tokenizer_json(model: &[u8], added: Option<&[u8]>) -> Result<String, String> {
    let Model {
        mut pieces,
        model_type,
        charsmap,
        dummy_prefix,
        remove_extra_spaces,
        escape_spaces,
        suffix,
    } = Model::parse(model).ok_or("is no SentencePiece model, or is cut off; download it again")?;
    if model_type != BPE {
        return Err(format!(
            "holds a SentencePiece model of type {model_type}; only type {BPE} (BPE) is supported: a tokenizer.json is needed"
        ));
    }
    if charsmap || remove_extra_spaces || !escape_spaces || suffix {
        return Err(
            "normalizes text in a way that is not supported; a tokenizer.json is needed (transformers writes one)".into(),
        );
    }
    if let Some(added) = added {
        add(&mut pieces, added)?;
    }
    let first = pieces
        .iter()
        .position(|piece| piece.kind == Kind::Control && piece.text == "<s>");
    let ends = Ends {
        first: first.and_then(|id| u32::try_from(id).ok()),
        last: None,
    };
    sentencepiece(&pieces, dummy_prefix, ends)
}

/// Adds the tokens of added_tokens.json, whose ids must go on where the pieces end.
fn add(pieces: &mut Vec<Piece>, json: &[u8]) -> Result<(), String> {
    let value: Value = serde_json::from_slice(json).map_err(|error| format!("added_tokens.json: {error}"))?;
    let tokens = value.as_object().into_iter().flatten();
    let mut tokens: Vec<_> = tokens.map(|(text, id)| (id.as_u64(), text)).collect();
    tokens.sort_unstable();
    for (id, text) in tokens {
        let known = id.and_then(|id| pieces.get(usize::try_from(id).ok()?));
        if known.is_some_and(|piece| piece.text == *text) {
            continue;
        }
        if id != Some(pieces.len() as u64) {
            return Err(format!(
                "has {} pieces, and added_tokens.json gives {text:?} the id {}",
                pieces.len(),
                id.map_or("of no number".into(), |id| id.to_string())
            ));
        }
        // What looks like padding is no text.
        let kind = if matches!(text.as_str(), "<pad>" | "[PAD]") {
            Kind::Control
        } else {
            Kind::User
        };
        pieces.push(Piece {
            text: text.clone(),
            score: 0.0,
            kind,
        });
    }
    Ok(())
}

struct Model {
    pieces: Vec<Piece>,
    model_type: u64,
    charsmap: bool,
    dummy_prefix: bool,
    remove_extra_spaces: bool,
    escape_spaces: bool,
    suffix: bool,
}

impl Model {
    fn parse(bytes: &[u8]) -> Option<Self> {
        // Values that a file leaves out are those of the .proto file.
        let mut model = Self {
            pieces: Vec::new(),
            model_type: 1,
            charsmap: false,
            dummy_prefix: true,
            remove_extra_spaces: true,
            escape_spaces: true,
            suffix: false,
        };
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
                (2, Field::Bytes(bytes)) => {
                    let mut trainer = Message(bytes);
                    while let Some((field, value)) = trainer.next()? {
                        match (field, value) {
                            (3, Field::Number(number)) => model.model_type = number,
                            (24, Field::Number(number)) => model.suffix = number != 0,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(bytes)) => {
                    let mut normalizer = Message(bytes);
                    while let Some((field, value)) = normalizer.next()? {
                        match (field, value) {
                            (2, Field::Bytes(bytes)) => model.charsmap = !bytes.is_empty(),
                            (3, Field::Number(number)) => model.dummy_prefix = number != 0,
                            (4, Field::Number(number)) => model.remove_extra_spaces = number != 0,
                            (5, Field::Number(number)) => model.escape_spaces = number != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece {
        text: String::new(),
        score: 0.0,
        kind: Kind::Normal,
    };
    let mut message = Message(bytes);
    while let Some((field, value)) = message.next()? {
        match (field, value) {
            (1, Field::Bytes(bytes)) => piece.text = std::str::from_utf8(bytes).ok()?.to_owned(),
            (2, Field::Bytes(bytes)) => piece.score = f32::from_le_bytes(bytes.try_into().ok()?),
            (3, Field::Number(number)) => piece.kind = Kind::of(number)?,
            _ => {}
        }
    }
    Some(piece)
}

/// The fields of a message that are still to be read.
struct Message<'a>(&'a [u8]);

/// The value of a field: numbers of variable length, or bytes (those of fixed-width numbers too).
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    /// The next field: `Some(None)` at the end, `None` where the bytes are no message.
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let key = self.number()?;
        let value = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Bytes(self.take(4)?),
            _ => return None,
        };
        Some(Some((key >> 3, value)))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return None };
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}
