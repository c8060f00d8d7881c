//! How few tokens a text can have: what cannot fit a context is refused by its length, before its tokens are made.

use serde_json::Value;
use tokenizers::ModelWrapper;

use super::Tokenizer;
use super::bytes::byte_of;
use super::growth::each_part;

/// Shorter texts have their tokens about as fast as their number is bounded.
const WORTHWHILE: usize = 256 << 10;

impl Tokenizer {
    /// Tokens that a prompt has at the least, whatever they are; 0 where the text is short or nothing can be said.
    /// [`Tokenizer::encode_prompt`] takes seconds for texts that no context holds.
    #[must_use]
    pub fn fewest_tokens(&self, text: &str) -> usize {
        if text.len() < WORTHWHILE {
            return 0;
        }
        // However often it is spelled out at the beginning, it is there once.
        let bos = self.bos().and_then(|id| self.id_to_token(id));
        let text = match bos.filter(|bos| !bos.is_empty()) {
            Some(bos) => text.trim_start_matches(&*bos),
            None => text,
        };
        self.longest_token()
            .map_or(0, |longest| text.len().div_ceil(longest))
    }

    /// The most bytes of a text that one token stands for, or `None` where a token can stand for any number of them: where
    /// normalizers or pre-tokenizers remove text, added tokens take the spaces around them along, or what is unknown is left
    /// out or joined.
    fn longest_token(&self) -> Option<usize> {
        let parts = |part: serde_json::Result<Value>, list: &str, fits: &dyn Fn(&Value) -> bool| {
            let mut all = part.is_ok();
            each_part(&part.unwrap_or_default(), list, &mut |part| all &= fits(part));
            all
        };
        let normalizer = serde_json::to_value(self.inner.get_normalizer());
        let lengthens = parts(normalizer, "normalizers", &|part| match (
            &part["type"],
            &part["pattern"]["String"],
            &part["content"],
        ) {
            (Value::String(kind), ..) if kind == "Prepend" => true,
            (Value::String(kind), Value::String(pattern), Value::String(content)) => {
                kind == "Replace" && content.len() >= pattern.len()
            }
            _ => false,
        });
        let pre_tokenizer = || serde_json::to_value(self.inner.get_pre_tokenizer());
        let keeps = parts(pre_tokenizer(), "pretokenizers", &|part| match part["type"]
            .as_str()
            .unwrap_or_default()
        {
            "ByteLevel" | "Metaspace" | "Digits" => true,
            "Split" => part["behavior"] != "Removed",
            _ => false,
        });
        let has_no_bytes = parts(pre_tokenizer(), "pretokenizers", &|part| {
            part["type"] != "ByteLevel"
        });
        let knows_all = match self.inner.get_model() {
            ModelWrapper::BPE(bpe) if has_no_bytes => {
                let byte = |byte: u8| self.token_to_id(&format!("<0x{byte:02X}>")).is_some();
                bpe.byte_fallback && (0..=u8::MAX).all(byte)
            }
            // The alphabet has 256 characters, all of them below this one.
            ModelWrapper::BPE(_) => {
                let letters = (0..0x200)
                    .filter_map(char::from_u32)
                    .filter(|&c| byte_of(c).is_some());
                letters
                    .filter(|c| self.token_to_id(c.encode_utf8(&mut [0; 4])).is_some())
                    .count()
                    == 256
            }
            _ => false,
        };
        let added = self.inner.get_added_tokens_decoder();
        let takes_no_spaces = added.values().all(|token| !token.lstrip && !token.rstrip);
        // As they are spelled in the vocabulary, tokens have as many bytes as in a text, or more.
        let longest = || self.inner.get_vocab(true).keys().map(String::len).max();
        (lengthens && keeps && knows_all && takes_no_spaces)
            .then(longest)
            .flatten()
            .filter(|&longest| longest > 0)
    }
}
