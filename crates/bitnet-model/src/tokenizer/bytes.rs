//! Tokens as bytes: what each adds to a text.

use super::Tokenizer;
use crate::{Error, Result};

impl Tokenizer {
    /// The bytes that each id below `n` adds to a text that has begun, for programs that follow texts byte by byte, such as
    /// grammars. An id without a token adds none, and a special token adds its spelling.
    ///
    /// # Errors
    /// When the vocabulary has no byte-level alphabet and no token whose text is the same at the beginning and inside of a text, so
    /// that what the others add cannot be seen; when the tokenizer's decoder fails.
    pub fn vocabulary(&self, n: usize) -> Result<Vec<Vec<u8>>> {
        let ids = (0..n).map_while(|id| u32::try_from(id).ok());
        if self.byte_level {
            return Ok(ids.map(|id| self.token_bytes(id).unwrap_or_default()).collect());
        }
        // Behind a token that is known, so that a decoder which strips the space in front of a text has nothing to strip.
        let (first, before) = self.plain_token(n)?;
        ids.map(|id| {
            if let Some(byte) = self.fallback_byte(id) {
                return Ok(vec![byte]);
            }
            if self.id_to_token(id).is_none() {
                return Ok(Vec::new());
            }
            let text = self.decode(&[first, id])?;
            Ok(text.strip_prefix(&before).unwrap_or_default().as_bytes().to_vec())
        })
        .collect()
    }

    /// A token that is the same text wherever it stands, and the text.
    fn plain_token(&self, n: usize) -> Result<(u32, String)> {
        for id in (0..n).map_while(|id| u32::try_from(id).ok()) {
            let Some(token) = self.id_to_token(id) else {
                continue;
            };
            let is_word = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if is_word && !self.is_special(id) && self.decode(&[id, id])? == format!("{token}{token}") {
                return Ok((id, token));
            }
        }
        Err(Error::invalid(
            &self.path,
            "no token of this vocabulary is the same text wherever it stands: what tokens add to a text cannot be told, and \
             answers cannot be constrained",
        ))
    }
}

/// The byte that a character of the byte-level alphabet stands for: printable Latin-1 is itself, the other 68 bytes are
/// in order from U+0100 (the table of GPT-2's tokenizer).
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = match u32::from(c) {
        own @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => own,
        control @ 0x100..=0x120 => control - 0x100,
        upper @ 0x121..=0x142 => upper - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(code).ok()
}
