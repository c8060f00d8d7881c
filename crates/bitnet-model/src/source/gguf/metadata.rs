//! The metadata of a GGUF file: typed access, with errors that name the file, the key and what was found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A value of a key. Numbers are widened: files differ in the width they choose.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Not always UTF-8.
    Text(Vec<u8>),
    Array(Array),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Array {
    Texts(Vec<Vec<u8>>),
    /// As they stand in the file; `kind` is their type's number.
    Numbers {
        kind: u32,
        bytes: Vec<u8>,
    },
}

/// Keys and values, and the file they stand in.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(path: PathBuf, values: BTreeMap<String, Value>) -> Self {
        Self { path, values }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// An [`Error::Invalid`] about the file.
    pub(super) fn invalid(&self, message: impl Into<String>) -> Error {
        Error::invalid(&self.path, message)
    }

    /// An [`Error::Unsupported`] about the file.
    pub(super) fn unsupported(&self, message: impl Into<String>) -> Error {
        Error::unsupported(&self.path, message)
    }

    /// The keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether there is such a key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A whole number that is not negative, of any width; an array of equal numbers counts as one.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        let number = match value {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            Value::Array(array) => array.integers().and_then(|numbers| {
                let first = *numbers.first()?;
                numbers.iter().all(|&number| number == first).then_some(first)
            }),
            _ => None,
        };
        match number.and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.unexpected(key, "a whole number, or an array of equal ones")),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(Value::Unsigned(number)) => Ok(Some(*number as f64)),
            Some(Value::Signed(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.unexpected(key, "a number")),
        }
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.unexpected(key, "true or false")),
        }
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(self.invalid(format!("key `{key}` is no UTF-8"))),
            },
            Some(_) => Err(self.unexpected(key, "a string")),
        }
    }

    /// Strings, as bytes.
    pub(super) fn texts(&self, key: &str) -> Result<Option<&[Vec<u8>]>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Texts(texts))) => Ok(Some(texts)),
            Some(_) => Err(self.unexpected(key, "an array of strings")),
        }
    }

    /// Whole numbers that are not negative.
    pub(super) fn counts(&self, key: &str) -> Result<Option<Vec<u64>>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => match array.integers() {
                Some(numbers) => Ok(Some(numbers)),
                None => Err(self.unexpected(key, "an array of whole numbers, none negative")),
            },
            Some(_) => Err(self.unexpected(key, "an array of whole numbers")),
        }
    }

    /// Numbers of 32 bits.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Numbers { kind: 6, bytes })) => {
                let floats = bytes.as_chunks().0.iter();
                Ok(Some(floats.map(|&bytes| f32::from_le_bytes(bytes)).collect()))
            }
            Some(_) => Err(self.unexpected(key, "an array of 32-bit floats")),
        }
    }

    /// Where tensors may begin: a multiple of this, if the file says it.
    pub(super) fn alignment(&self) -> Result<Option<u64>> {
        let key = "general.alignment";
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(align)) if align.is_power_of_two() && *align <= 1 << 20 => Ok(Some(*align)),
            Some(_) => Err(self.unexpected(key, "a power of two, at most 2^20")),
        }
    }

    fn unexpected(&self, key: &str, expected: &str) -> Error {
        let found = match &self.values[key] {
            Value::Unsigned(number) => number.to_string(),
            Value::Signed(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Text(_) => "a string".to_owned(),
            Value::Array(Array::Texts(_)) => "an array of strings".to_owned(),
            Value::Array(Array::Numbers { .. }) => "an array of numbers".to_owned(),
        };
        self.invalid(format!("key `{key}` is {found}; expected {expected}"))
    }
}

impl Array {
    /// All values, where they are whole and none is negative.
    fn integers(&self) -> Option<Vec<u64>> {
        fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> i128) -> Option<Vec<u64>> {
            let numbers = bytes.as_chunks().0.iter();
            numbers.map(|&bytes| u64::try_from(number(bytes)).ok()).collect()
        }
        let Self::Numbers { kind, bytes } = self else {
            return None;
        };
        match kind {
            0 => each(bytes, |bytes| u8::from_le_bytes(bytes).into()),
            1 => each(bytes, |bytes| i8::from_le_bytes(bytes).into()),
            2 => each(bytes, |bytes| u16::from_le_bytes(bytes).into()),
            3 => each(bytes, |bytes| i16::from_le_bytes(bytes).into()),
            4 => each(bytes, |bytes| u32::from_le_bytes(bytes).into()),
            5 => each(bytes, |bytes| i32::from_le_bytes(bytes).into()),
            10 => each(bytes, |bytes| u64::from_le_bytes(bytes).into()),
            11 => each(bytes, |bytes| i64::from_le_bytes(bytes).into()),
            _ => None,
        }
    }
}
