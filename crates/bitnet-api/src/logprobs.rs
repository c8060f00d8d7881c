//! Log-probabilities in the two forms that OpenAI's API has.

use bitnet_model::{Logprob, SpecialTokens, Tokenizer};
use serde::{Serialize, Serializer};

/// What JSON has for a log-probability of minus infinity.
const LOWEST: f32 = -9999.0;

/// A token and how likely it was: an entry of chat's form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    own: Token,
    top_logprobs: Vec<Token>,
    /// Characters of the text before it.
    #[serde(skip)]
    offset: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Token {
    token: String,
    #[serde(serialize_with = "finite")]
    logprob: Option<f32>,
    /// What it adds to the text.
    bytes: Vec<u8>,
}

fn finite<S: Serializer>(logprob: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
    logprob.map(bounded).serialize(serializer)
}

fn bounded(logprob: f32) -> f32 {
    // A probability rounded above 1 would be taken for an error of ours.
    if logprob.is_nan() {
        LOWEST
    } else {
        logprob.clamp(LOWEST, 0.0)
    }
}

/// Names tokens, and counts the characters of the text that they make.
#[derive(Clone)]
pub(crate) struct Namer {
    tokenizer: Option<Tokenizer>,
    names_ids: bool,
    /// Whether special tokens are part of the text.
    pub(crate) shows_special: bool,
    /// Whole characters so far.
    n_chars: usize,
    /// Bytes of a character that is not whole.
    partial: Vec<u8>,
    is_first: bool,
}

impl Namer {
    /// For a text that begins after `n_chars` characters.
    pub(crate) fn new(
        tokenizer: Option<&Tokenizer>,
        names_ids: bool,
        special: SpecialTokens,
        n_chars: usize,
    ) -> Self {
        Self {
            tokenizer: tokenizer.cloned(),
            names_ids,
            shows_special: special == SpecialTokens::Show,
            n_chars,
            partial: Vec::new(),
            is_first: true,
        }
    }

    /// The entry of the text's next token; `logprob` is `None` for the first of a prompt.
    pub(crate) fn entry(&mut self, id: u32, logprob: Option<&Logprob>) -> Entry {
        let own = self.token(id, logprob.map(|l| l.logprob));
        let top = logprob.map_or(&[][..], |l| &l.top);
        let top_logprobs = top.iter().map(|&(id, p)| self.token(id, Some(p))).collect();
        let offset = self.n_chars;
        self.advance(&own.bytes);
        let is_special = |tokenizer: &Tokenizer| tokenizer.is_special(id);
        self.is_first &= self.tokenizer.as_ref().is_some_and(is_special);
        Entry {
            own,
            top_logprobs,
            offset,
        }
    }

    fn token(&self, id: u32, logprob: Option<f32>) -> Token {
        let (text, bytes) = match &self.tokenizer {
            None => (String::new(), Vec::new()),
            Some(tokenizer) if tokenizer.is_special(id) => {
                let text = tokenizer.id_to_token(id).unwrap_or_default();
                let bytes = if self.shows_special {
                    text.clone().into_bytes()
                } else {
                    Vec::new()
                };
                (text, bytes)
            }
            Some(tokenizer) => {
                let bytes = bytes(tokenizer, id, self.is_first);
                (String::from_utf8_lossy(&bytes).into_owned(), bytes)
            }
        };
        let token = if self.names_ids {
            format!("token_id:{id}")
        } else {
            text
        };
        Token {
            token,
            logprob,
            bytes,
        }
    }

    fn advance(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let mut kept = 0;
        let mut chunks = self.partial.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.n_chars += chunk.valid().chars().count();
            let invalid = chunk.invalid();
            // What the text's end cuts off may become a character yet; what is no beginning of one is U+FFFD.
            let is_cut = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if is_cut && chunks.peek().is_none() {
                kept = invalid.len();
            } else if !invalid.is_empty() {
                self.n_chars += 1;
            }
        }
        self.partial.drain(..self.partial.len() - kept);
    }
}

/// The bytes that a token adds to a text.
fn bytes(tokenizer: &Tokenizer, id: u32, is_first: bool) -> Vec<u8> {
    if let Some(bytes) = tokenizer.token_bytes(id) {
        return bytes;
    }
    // Vocabularies of SentencePiece: byte tokens, and a mark in place of a space, which the decoder drops where a text begins.
    let spelled = tokenizer.id_to_token(id).unwrap_or_default();
    let hex = spelled
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = hex
        .filter(|hex| hex.len() == 2)
        .and_then(|hex| u8::from_str_radix(hex, 16).ok())
    {
        return vec![byte];
    }
    if is_first {
        return tokenizer.decode(&[id]).unwrap_or_default().into_bytes();
    }
    spelled.replace('▁', " ").into_bytes()
}

/// Chat's form.
#[derive(Debug, Serialize)]
pub(crate) struct Content<'e> {
    content: &'e [Entry],
    refusal: Option<()>,
}

impl<'e> Content<'e> {
    pub(crate) fn new(content: &'e [Entry]) -> Self {
        Self {
            content,
            refusal: None,
        }
    }
}

/// The older form, of completions.
#[derive(Debug, Serialize)]
pub(crate) struct Columns<'e> {
    tokens: Vec<&'e str>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<ByText<'e>>>,
    text_offset: Vec<usize>,
}

impl<'e> Columns<'e> {
    pub(crate) fn new(entries: impl Iterator<Item = &'e Entry> + Clone) -> Self {
        Self {
            tokens: entries.clone().map(|entry| entry.own.token.as_str()).collect(),
            token_logprobs: entries
                .clone()
                .map(|entry| entry.own.logprob.map(bounded))
                .collect(),
            top_logprobs: entries.clone().map(Entry::by_text).collect(),
            text_offset: entries.map(|entry| entry.offset).collect(),
        }
    }
}

/// Tokens by their texts, as a JSON object.
#[derive(Debug)]
struct ByText<'e>(Vec<(&'e str, f32)>);

impl Serialize for ByText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl Entry {
    /// The most likely tokens, of those of the same text the most likely one, and the chosen one.
    fn by_text(&self) -> Option<ByText<'_>> {
        self.own.logprob?;
        let mut tokens: Vec<(&str, f32)> = Vec::new();
        for token in self.top_logprobs.iter().chain([&self.own]) {
            let is_there = tokens.iter().any(|&(text, _)| text == token.token);
            if let Some(logprob) = token.logprob.filter(|_| !is_there) {
                tokens.push((&token.token, bounded(logprob)));
            }
        }
        Some(ByText(tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_characters_of_the_text() {
        let mut namer = Namer::new(None, false, SpecialTokens::Hide, 5);
        let mut offsets = Vec::new();
        // "é" in two tokens, a byte that begins nothing, "ab", the first half of a character.
        for bytes in [&b"\xc3"[..], b"\xa9", b"\xff", b"ab", b"\xe6\x98", b"c"] {
            offsets.push(namer.n_chars);
            namer.advance(bytes);
        }
        assert_eq!((offsets, namer.n_chars), (vec![5, 5, 6, 7, 9, 9], 11));
    }

    #[test]
    fn nothing_is_infinite_or_above_one() {
        let mut namer = Namer::new(None, true, SpecialTokens::Hide, 0);
        let logprob = Logprob {
            logprob: f32::NEG_INFINITY,
            top: vec![(3, 1e-7), (4, -2.5)],
        };
        let entry = namer.entry(7, Some(&logprob));
        let json = serde_json::to_value(&entry).unwrap();
        assert_eq!(json["logprob"], -9999.0);
        assert_eq!(json["token"], "token_id:7");
        assert_eq!(json["top_logprobs"][0]["logprob"], 0.0);
        let columns = serde_json::to_value(Columns::new([&entry].into_iter())).unwrap();
        assert_eq!(columns["top_logprobs"][0]["token_id:4"], -2.5);
        assert_eq!(columns["top_logprobs"][0]["token_id:7"], -9999.0);
    }
}
