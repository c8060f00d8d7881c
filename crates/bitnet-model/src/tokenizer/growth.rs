//! How much longer a tokenizer's files can make a text: a few replacements in a row double it as often as they like.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// Bytes a normalized text may have, where the text itself is no longer.
const MAX_BYTES: f64 = (16 << 20) as f64;
/// What normalizers may multiply a text by in the worst case, all of them together: those that are in use stay below 10,000.
const MAX_NORMALIZED: f64 = 1e6;
/// The same for decoders, which in use make text shorter.
const MAX_DECODED: f64 = 4096.0;

/// The parts of a tokenizer.json that change the length of texts.
#[derive(Deserialize)]
pub(super) struct Outline {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    added_tokens: Value,
}

impl Outline {
    /// Whether tokens such as `<0x0A>` are decoded to bytes.
    pub(super) fn has_byte_fallback(&self) -> bool {
        let mut found = false;
        each_part(&self.decoder, "decoders", &mut |part| {
            found |= part["type"] == "ByteFallback"
        });
        found
    }
}

/// The normalizers, one after the other, each with the most it multiplies a text by.
pub(super) struct Growth {
    steps: Vec<(Value, f64)>,
}

impl Growth {
    /// Refuses what could only be meant to fill memory.
    pub(super) fn of(outline: &Outline) -> Result<Self, String> {
        let mut steps = Vec::new();
        each_part(&outline.normalizer, "normalizers", &mut |part| {
            steps.push((part.clone(), factor(part)));
        });
        let growth = Self { steps };
        if growth.product() > MAX_NORMALIZED {
            return Err(format!(
                "its normalizers can make a text {:.0e} times as long; the file is damaged or hostile",
                growth.product()
            ));
        }
        let mut decoded = 1.0;
        each_part(&outline.decoder, "decoders", &mut |part| decoded *= factor(part));
        if decoded > MAX_DECODED {
            return Err(format!(
                "its decoders can make a text {decoded:.0e} times as long; the file is damaged or hostile"
            ));
        }
        // Added tokens are normalized as the file is read.
        let added = outline.added_tokens.as_array().into_iter().flatten();
        let bytes: usize = added
            .filter_map(|token| token["content"].as_str())
            .map(str::len)
            .sum();
        growth.check_bytes(bytes as f64 * growth.product(), bytes)?;
        let mut texts = 0;
        each_part(&outline.post_processor, "processors", &mut |part| {
            let pieces = part["single"].as_array().into_iter().flatten();
            texts = texts.max(pieces.filter(|piece| !piece["Sequence"].is_null()).count());
        });
        if texts > 1 {
            return Err("its post-processor repeats the text; only one copy is implemented".to_owned());
        }
        Ok(growth)
    }

    /// Refuses a text that would become too long.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        if self
            .check_bytes(text.len() as f64 * self.product(), text.len())
            .is_ok()
        {
            return Ok(());
        }
        // The worst case is too long: see what this text becomes, each step if its own worst case has room.
        let mut normalized = NormalizedString::from(text);
        for (step, factor) in &self.steps {
            self.check_bytes(normalized.get().len() as f64 * factor, text.len())?;
            let step: NormalizerWrapper = serde_json::from_value(step.clone()).map_err(|e| e.to_string())?;
            step.normalize(&mut normalized).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn check_bytes(&self, bytes: f64, given: usize) -> Result<(), String> {
        if bytes <= MAX_BYTES.max(4.0 * given as f64) {
            return Ok(());
        }
        Err(format!(
            "its normalizers can make this text of {given} bytes {bytes:.0} bytes long; the file is damaged or hostile, or the \
             text is too long"
        ))
    }

    fn product(&self) -> f64 {
        self.steps.iter().map(|(_, factor)| factor).product()
    }
}

/// The parts that a part consists of, or itself.
pub(super) fn each_part(part: &Value, list: &str, each: &mut dyn FnMut(&Value)) {
    match part[list].as_array() {
        Some(parts) => parts.iter().for_each(|part| each_part(part, list, each)),
        None if part.is_null() => {}
        None => each(part),
    }
}

/// The most that a normalizer or decoder multiplies the bytes of a text by.
fn factor(part: &Value) -> f64 {
    let len = |value: &Value| value.as_str().map_or(0.0, |text| text.len() as f64);
    match part["type"].as_str().unwrap_or_default() {
        "Replace" => match &part["pattern"]["String"] {
            Value::String(pattern) if !pattern.is_empty() => {
                (len(&part["content"]) / pattern.len() as f64).max(1.0)
            }
            // An expression may match the empty string before each byte.
            _ => len(&part["content"]) + 1.0,
        },
        "Prepend" => 1.0 + len(&part["prepend"]),
        // U+FDFA becomes 18 characters.
        "NFKC" | "NFKD" => 12.0,
        "NFC" | "NFD" => 4.0,
        "Precompiled" => part["precompiled_charsmap"]
            .as_str()
            .map_or(1.0, longest_replacement),
        "Strip" | "StripAccents" | "Nmt" | "ByteFallback" | "Fuse" | "CTC" | "Metaspace" => 1.0,
        "WordPiece" => 1.0 + len(&part["prefix"]),
        _ => 3.0,
    }
}

/// The longest text in SentencePiece's table of replacements: base64 of the length of a tree in 4 bytes, the tree, and texts that
/// end with a zero byte each.
fn longest_replacement(charsmap: &str) -> f64 {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(u32::from(c - b'A')),
        b'a'..=b'z' => Some(u32::from(c - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(c - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u32> = charsmap.bytes().filter_map(digit).collect();
    let bytes: Vec<u8> = digits
        .chunks(4)
        .flat_map(|four| {
            let word = four.iter().fold(0, |word, digit| word << 6 | digit) << (6 * (4 - four.len()));
            word.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect();
    let Some((tree, rest)) = bytes.split_first_chunk::<4>() else {
        return 1.0;
    };
    let texts = rest.get(u32::from_le_bytes(*tree) as usize..).unwrap_or(rest);
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max();
    longest.unwrap_or(1).max(1) as f64
}
