//! Text as it is generated: token by token, never half a character, and held back where it may become a stop string.

use crate::{Result, Tokenizer};

/// Which tokens become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Special tokens such as `<|eot_id|>` are left out.
    #[default]
    Hide,
    /// Special tokens are spelled out.
    Show,
}

/// Turns a stream of ids into text. What [`Detokenizer::push`] and [`Detokenizer::finish`] return, joined, is what
/// [`Tokenizer::decode`] gives for all the ids at once.
///
/// ```
/// use bitnet_model::{Detokenizer, SpecialTokens, Tokenizer};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let tokenizer = Tokenizer::from_folder(folder, None, &[])?;
/// let mut stream = Detokenizer::new(&tokenizer, SpecialTokens::Hide);
/// let mut text = String::new();
/// // The two bytes of the last letter are tokens of their own: it appears when both are there.
/// for id in tokenizer.encode_plain("a café")? {
///     text += &stream.push(id)?;
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, "a café");
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    /// Byte-level vocabularies: bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Other vocabularies: every id so far, where the decoding window begins, and where its undecided end begins.
    ids: Vec<u32>,
    window: usize,
    settled: usize,
    emitted: String,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, special: SpecialTokens) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            special,
            bytes: Vec::new(),
            ids: Vec::new(),
            window: 0,
            settled: 0,
            emitted: String::new(),
        }
    }

    /// The text that `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.special == SpecialTokens::Hide && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        match self.tokenizer.token_bytes(id) {
            Some(bytes) => {
                self.bytes.extend(bytes);
                Ok(take_characters(&mut self.bytes))
            }
            None => self.push_to_window(id),
        }
    }

    /// The text still held back, U+FFFD in place of a character that was never completed.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        let mut rest = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        if !self.ids.is_empty() {
            let all = self.tokenizer.decode(&std::mem::take(&mut self.ids))?;
            rest = all.strip_prefix(&self.emitted).unwrap_or_default().to_owned();
            (self.window, self.settled) = (0, 0);
            self.emitted.clear();
        }
        Ok(rest)
    }

    /// Decoders that look at neighbors (leading spaces, byte fallback) see a window that begins at the last token known
    /// to end a character; decoding everything each time would be quadratic.
    fn push_to_window(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let byte_fallback = |id| {
            let token = self.tokenizer.id_to_token(id).unwrap_or_default();
            token.starts_with("<0x") && token.len() == 6
        };
        // A run of byte tokens is decoded as one: another byte may still make all of it invalid.
        if byte_fallback(id) {
            return Ok(String::new());
        }
        let before = self.tokenizer.decode(&self.ids[self.window..self.settled])?;
        let after = self.tokenizer.decode(&self.ids[self.window..])?;
        match after.strip_prefix(&before) {
            Some(text) if !text.ends_with(char::REPLACEMENT_CHARACTER) => {
                self.window = self.settled;
                self.settled = self.ids.len();
                self.emitted.push_str(text);
                Ok(text.to_owned())
            }
            _ => Ok(String::new()),
        }
    }
}

/// Removes the whole characters from the front of `bytes`; invalid bytes become U+FFFD as in [`String::from_utf8_lossy`].
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let incomplete =
        bytes
            .utf8_chunks()
            .last()
            .map_or(0, |chunk| match std::str::from_utf8(chunk.invalid()) {
                // Only an unexpected end may still become a character; any other invalid byte is final.
                Err(e) if e.error_len().is_none() => chunk.invalid().len(),
                _ => 0,
            });
    let rest = bytes.split_off(bytes.len() - incomplete);
    String::from_utf8_lossy(&std::mem::replace(bytes, rest)).into_owned()
}

/// Looks for stop strings in text that arrives in pieces.
///
/// ```
/// use bitnet_model::StopStrings;
///
/// let mut stops = StopStrings::new(&["###".to_owned()]);
/// assert_eq!(stops.push("yes #"), ("yes ".to_owned(), false));
/// assert_eq!(stops.push("## no"), (String::new(), true));
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Stops at the first occurrence of any of `stops`; empty strings are ignored.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            held: String::new(),
        }
    }

    /// Takes a piece; returns the text that is certain not to belong to a stop string, and whether one was found (then
    /// the text ends before it and what follows is dropped).
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let undecided = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])));
        let rest = self.held.split_off(undecided.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text still held back, when no more is coming.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lossy_in_pieces(pieces: &[Vec<u8>]) -> String {
        let (mut bytes, mut text) = (Vec::new(), String::new());
        for piece in pieces {
            bytes.extend(piece);
            text.push_str(&take_characters(&mut bytes));
        }
        text + &String::from_utf8_lossy(&bytes)
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut bytes = vec![b'a', 0xf0, 0x9f];
        assert_eq!(take_characters(&mut bytes), "a");
        bytes.push(0x91);
        assert_eq!(take_characters(&mut bytes), "");
        bytes.push(0xa9);
        assert_eq!(take_characters(&mut bytes), "👩");
        bytes.extend([0xff, b'b', 0xe6]);
        assert_eq!(take_characters(&mut bytes), "\u{fffd}b");
        assert_eq!(bytes, [0xe6]);
    }

    proptest! {
        #[test]
        fn pieces_of_any_bytes_join_to_the_lossy_whole(
            pieces in prop::collection::vec(prop::collection::vec(
                prop_oneof![Just(0xe6u8), Just(0x98), Just(0xa5), Just(0xf0), Just(0x80), any::<u8>()], 0..4), 0..12)
        ) {
            let whole = pieces.concat();
            prop_assert_eq!(lossy_in_pieces(&pieces), String::from_utf8_lossy(&whole));
        }

        #[test]
        fn stop_strings_match_across_pieces(text in "[ab春]{0,24}", stops in prop::collection::vec("[ab春]{1,4}", 0..3), cut in 1usize..4) {
            let mut matcher = StopStrings::new(&stops);
            let (mut out, mut stopped) = (String::new(), false);
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(cut) {
                if stopped { break; }
                let (ready, found) = matcher.push(&piece.iter().collect::<String>());
                out.push_str(&ready);
                stopped = found;
            }
            out.push_str(&matcher.finish());
            // The matcher stops at the first stop string to be complete.
            let first = (0..=text.len()).filter(|&end| text.is_char_boundary(end)).find(|&end| stops.iter().any(|s| text[..end].ends_with(s.as_str())));
            prop_assert_eq!(stopped, first.is_some());
            let allowed = stops.iter().filter_map(|s| text.find(s.as_str())).min().unwrap_or(text.len());
            prop_assert!(text.starts_with(&out));
            prop_assert!(out.len() <= first.unwrap_or(text.len()) && (first.is_some() || out.len() == text.len()));
            prop_assert!(stops.iter().all(|s| !out.contains(s.as_str())) && out.len() >= allowed.min(out.len()));
        }
    }
}
