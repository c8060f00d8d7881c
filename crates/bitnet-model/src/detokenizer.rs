//! Text as it is generated: token by token, never half a character, and held back where it may become a stop string.

use std::ops::Range;
use std::sync::Arc;

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
    /// Bytes of a character that is not complete: of a byte-level vocabulary, or of a run of byte tokens.
    bytes: Vec<u8>,
    /// Other vocabularies: every id so far, where the decoding window begins, and how much of the window's text was returned.
    ids: Vec<u32>,
    window: usize,
    shown: String,
    /// Whether the last id was a byte token.
    in_run: bool,
    emitted: String,
}

/// Tokens after which a window whose end stays undecided moves on; a character has at most four bytes.
const WINDOW: usize = 32;

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
            shown: String::new(),
            in_run: false,
            emitted: String::new(),
        }
    }

    /// The spelling of `id` where [`Detokenizer::push`] would leave it out: a special token that is hidden.
    #[must_use]
    pub fn hidden(&self, id: u32) -> Option<String> {
        let is_hidden = self.special == SpecialTokens::Hide && self.tokenizer.is_special(id);
        is_hidden.then(|| self.tokenizer.id_to_token(id).unwrap_or_default())
    }

    /// The text that `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.hidden(id).is_some() {
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
            let all = self.tokenizer.decode(&self.ids)?;
            match all.strip_prefix(&self.emitted) {
                Some(text) => text.clone_into(&mut rest),
                // What was returned cannot be taken back; nothing of the end is lost.
                None if !self.in_run => {
                    let text = self.tokenizer.decode(&self.ids[self.window..])?;
                    rest.push_str(beyond(&text, &self.shown));
                }
                None => {}
            }
            (self.window, self.in_run) = (0, false);
            self.ids.clear();
            self.shown.clear();
            self.emitted.clear();
        }
        Ok(rest)
    }

    /// Decoders that look at neighbors (leading spaces, byte fallback) see a window that begins at the last token known
    /// to end a character; decoding everything each time would be quadratic.
    fn push_to_window(&mut self, id: u32) -> Result<String> {
        if let Some(byte) = self.tokenizer.fallback_byte(id) {
            return self.push_byte(id, byte);
        }
        let mut text = String::new();
        if std::mem::take(&mut self.in_run) {
            text = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
            // A run that is no UTF-8 decodes to other text than what was returned of it; the next token follows either.
            self.shown = self.tokenizer.decode(&self.ids[self.window..])?;
        }
        self.ids.push(id);
        text.push_str(&self.decode_window()?);
        self.emitted.push_str(&text);
        Ok(text)
    }

    /// What the window's text has grown by. Its last U+FFFD is held back, since it may be the beginning of a character.
    fn decode_window(&mut self) -> Result<String> {
        let mut all = self.tokenizer.decode(&self.ids[self.window..])?;
        let is_whole = !all.ends_with(char::REPLACEMENT_CHARACTER);
        if !is_whole {
            all.pop();
        }
        let text = beyond(&all, &self.shown).to_owned();
        self.shown = all;
        let context = if is_whole { 1 } else { WINDOW / 2 };
        if self.ids.len() - self.window > if is_whole { 1 } else { WINDOW } {
            self.window = self.ids.len() - context;
            self.shown = self.tokenizer.decode(&self.ids[self.window..])?;
            if !is_whole {
                self.shown.pop();
            }
        }
        Ok(text)
    }

    /// One of a run of byte tokens. The decoder makes the whole run U+FFFD if any of it is no UTF-8, which may never be known; so
    /// characters are returned as they become whole.
    fn push_byte(&mut self, id: u32, byte: u8) -> Result<String> {
        self.in_run = true;
        self.ids.push(id);
        self.bytes.push(byte);
        let mut text = take_characters(&mut self.bytes);
        if self.emitted.is_empty() && self.bytes.is_empty() && !text.is_empty() {
            // Decoders may leave out a space at the very beginning.
            text = self.tokenizer.decode(&self.ids)?;
        }
        self.emitted.push_str(&text);
        Ok(text)
    }
}

/// What of `text` comes after what it has in common with `shown`.
fn beyond<'s>(text: &'s str, shown: &str) -> &'s str {
    let common = text
        .bytes()
        .zip(shown.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    &text[text.floor_char_boundary(common)..]
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
/// The first piece that completes one ends the text; of several that it completes, the one that begins first. What is held back is the
/// longest end of the text that is the beginning of a stop string, and no more. The time is linear in the text, for each stop string.
///
/// ```
/// use bitnet_model::StopStrings;
///
/// let mut stops = StopStrings::new(&["###".to_owned()]);
/// assert_eq!(stops.push("yes #"), ("yes ".to_owned(), None));
/// assert_eq!(stops.push("## no"), (String::new(), Some(0)));
/// ```
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Arc<[Stop]>,
    /// For each, how many bytes of its beginning the text ends with.
    matched: Vec<usize>,
    includes: bool,
    held: String,
    /// Parts of what is held that are looked at and never returned.
    hidden: Vec<Range<usize>>,
}

/// A string and, for each of its beginnings, the length of the longest shorter one that it ends with (Knuth, Morris and Pratt).
#[derive(Debug)]
struct Stop {
    text: String,
    shorter: Vec<usize>,
}

impl Stop {
    fn new(text: &str) -> Self {
        let mut stop = Self {
            text: text.to_owned(),
            shorter: Vec::with_capacity(text.len()),
        };
        let mut matched = 0;
        for (at, byte) in text.bytes().enumerate() {
            if at > 0 {
                matched = stop.after(matched, byte);
            }
            stop.shorter.push(matched);
        }
        stop
    }

    /// How much of its beginning a text ends with that ended with `matched` bytes of it, not all, and goes on with `byte`.
    fn after(&self, mut matched: usize, byte: u8) -> usize {
        let text = self.text.as_bytes();
        while text[matched] != byte {
            match matched.checked_sub(1) {
                None => return 0,
                Some(last) => matched = self.shorter[last],
            }
        }
        matched + 1
    }
}

impl StopStrings {
    /// Stops at the first occurrence of any of `stops`; empty strings never occur.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self {
            matched: vec![0; stops.len()],
            stops: stops.iter().map(|stop| Stop::new(stop)).collect(),
            includes: false,
            held: String::new(),
            hidden: Vec::new(),
        }
    }

    /// Says whether the stop string that is found is part of the text.
    #[must_use]
    pub fn including(mut self, includes: bool) -> Self {
        self.includes = includes;
        self
    }

    /// The stop string of this index.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&str> {
        self.stops.get(index).map(|stop| stop.text.as_str())
    }

    /// Takes a piece; returns the text that is certain not to belong to a stop string, and the index of the one that was found,
    /// if one was: then the text ends before it, or with it, and what follows is dropped.
    pub fn push(&mut self, piece: &str) -> (String, Option<usize>) {
        let before = self.held.len();
        self.held.push_str(piece);
        // Where it begins, where it ends, and which one.
        let mut found: Option<(usize, usize, usize)> = None;
        for (index, (stop, matched)) in self.stops.iter().zip(&mut self.matched).enumerate() {
            if stop.text.is_empty() {
                continue;
            }
            for (end, byte) in (before + 1..).zip(piece.bytes()) {
                *matched = stop.after(*matched, byte);
                if *matched == stop.text.len() {
                    let this = (end - stop.text.len(), end, index);
                    found = Some(found.map_or(this, |other| other.min(this)));
                    break;
                }
            }
        }
        if let Some((start, end, index)) = found {
            let mut text = self.release(start);
            if self.includes {
                text.push_str(&self.held[..end - start]);
            }
            self.finish();
            return (text, Some(index));
        }
        let undecided = self.matched.iter().max().copied().unwrap_or(0);
        (self.release(self.held.len() - undecided), None)
    }

    /// As [`StopStrings::push`], for a piece that stop strings may match and that is not part of the text: a special token.
    pub fn push_hidden(&mut self, piece: &str) -> (String, Option<usize>) {
        let start = self.held.len();
        self.hidden.push(start..start + piece.len());
        self.push(piece)
    }

    /// The text still held back, when no more is coming.
    pub fn finish(&mut self) -> String {
        self.matched.fill(0);
        self.release(self.held.len())
    }

    /// The text before `at` without its hidden parts.
    fn release(&mut self, at: usize) -> String {
        let rest = self.held.split_off(at);
        let released = std::mem::replace(&mut self.held, rest);
        let (mut text, mut from) = (String::new(), 0);
        for range in &self.hidden {
            let (start, end) = (range.start.clamp(from, at), range.end.min(at));
            text.push_str(&released[from..start]);
            from = end.max(from);
        }
        text.push_str(&released[from..]);
        self.hidden.retain_mut(|range| {
            *range = range.start.saturating_sub(at)..range.end.saturating_sub(at);
            range.start < range.end
        });
        text
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

    #[test]
    fn a_hidden_token_is_matched_and_never_shown() {
        let stops = |stop: &str| StopStrings::new(&[stop.to_owned()]);
        assert_eq!(stops("<|x|>").push_hidden("<|x|>"), (String::new(), Some(0)));
        let mut matcher = stops("b<|x|>c");
        assert_eq!(matcher.push("ab"), ("a".to_owned(), None));
        assert_eq!(matcher.push_hidden("<|x|>"), (String::new(), None));
        assert_eq!(matcher.push("d"), ("bd".to_owned(), None));
        assert_eq!(matcher.push("b"), (String::new(), None));
        assert_eq!(matcher.push_hidden("<|x|>"), (String::new(), None));
        assert_eq!(matcher.push("c and more"), (String::new(), Some(0)));
        // A stop string may begin in the middle of a hidden token.
        let mut matcher = stops("|>!");
        assert_eq!(matcher.push_hidden("<|x|>"), (String::new(), None));
        assert_eq!(matcher.push("?"), ("?".to_owned(), None));
        assert_eq!(matcher.push_hidden("<|x|>"), (String::new(), None));
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn the_first_to_be_complete_ends_the_text_and_of_several_the_one_that_begins_first() {
        let stops =
            |stops: &[&str]| StopStrings::new(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        // One piece completes both; apart, the shorter one comes first.
        assert_eq!(stops(&["bc", "abcd"]).push("xabcd"), ("x".to_owned(), Some(1)));
        let mut matcher = stops(&["bc", "abcd"]);
        assert_eq!(matcher.push("xab"), ("x".to_owned(), None));
        assert_eq!(matcher.push("c"), ("a".to_owned(), Some(0)));
        assert_eq!(stops(&["abc", "ab"]).push("abc"), (String::new(), Some(1)));
        assert_eq!(stops(&["", "b"]).push("ab"), ("a".to_owned(), Some(1)));
        // The stop string is kept where that is asked for, hidden parts of it too, and nothing after it.
        assert_eq!(
            stops(&["bc"]).including(true).push("abcd"),
            ("abc".to_owned(), Some(0))
        );
        let mut matcher = stops(&["b<|x|>"]).including(true);
        assert_eq!(matcher.push("ab"), ("a".to_owned(), None));
        assert_eq!(matcher.push_hidden("<|x|>"), ("b<|x|>".to_owned(), Some(0)));
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
        fn stop_strings_match_across_pieces(
            text in "[ab春]{0,24}", stops in prop::collection::vec("[ab春]{1,4}", 0..3), cut in 1usize..4, includes: bool
        ) {
            let mut matcher = StopStrings::new(&stops).including(includes);
            let (mut whole, mut out, mut found) = (String::new(), String::new(), None);
            for piece in text.chars().collect::<Vec<_>>().chunks(cut) {
                let piece: String = piece.iter().collect();
                whole.push_str(&piece);
                let (ready, index) = matcher.push(&piece);
                out.push_str(&ready);
                // By the definition: all occurrences in all of the text.
                let places = stops.iter().enumerate().filter_map(|(i, stop)| {
                    whole.find(stop.as_str()).map(|start| (start, start + stop.len(), i))
                });
                let expected = places.min();
                prop_assert_eq!(index, expected.map(|(_, _, i)| i));
                if let Some((start, end, _)) = expected {
                    prop_assert_eq!(&out, &whole[..if includes { end } else { start }]);
                    found = index;
                    break;
                }
                let may_begin = |at: &usize| stops.iter().any(|stop| stop.starts_with(&whole[*at..]));
                let held = whole.char_indices().map(|(at, _)| at).find(may_begin);
                prop_assert_eq!(&out, &whole[..held.unwrap_or(whole.len())]);
            }
            if found.is_none() {
                out.push_str(&matcher.finish());
                prop_assert_eq!(out, text);
            } else {
                prop_assert_eq!(matcher.finish(), "");
            }
        }
    }
}
