//! Typed access to the fields of a JSON file, with errors that name the file, the key and what was found.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Files, Result};

/// A JSON object and the file it stands in.
pub(crate) struct Fields {
    path: PathBuf,
    pub(crate) map: Map<String, Value>,
}

impl Fields {
    /// Reads a file into a [`Value`], in which the last of two equal keys wins: published files have such pairs. `None` where
    /// there is no such file.
    pub(crate) fn read(files: &Files, name: &str) -> Result<Option<Self>> {
        let Some(text) = files.read(name)? else {
            return Ok(None);
        };
        let path = files.path(name);
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Ok(Some(Self { path, map })),
            Ok(_) => Err(Error::invalid(path, "is not a JSON object")),
            Err(error) => Err(Error::invalid(path, format!("is not valid JSON: {error}"))),
        }
    }

    /// The fields of a file of another kind.
    pub(crate) fn new(path: &Path, map: Map<String, Value>) -> Self {
        Self {
            path: path.into(),
            map,
        }
    }

    /// The object that a key of this one holds, for messages about the same file.
    pub(crate) fn nested(&self, key: &str, value: &Value) -> Result<Self> {
        let path = self.path.clone();
        match value.as_object() {
            Some(map) => Ok(Self {
                path,
                map: map.clone(),
            }),
            None => Err(self.invalid(format!("{key} is {value}; expected an object"))),
        }
    }

    /// A value that is there and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A positive whole number.
    pub(crate) fn size(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_u64() {
            Some(size @ 1..=0xffff_ffff) => Ok(size as usize),
            _ => Err(self.invalid(format!(
                "{key} is {value}; expected a whole number from 1 to 2^32 - 1"
            ))),
        }
    }

    /// A positive number.
    pub(crate) fn positive(&self, key: &str, default: f64) -> Result<f32> {
        let number = self.get(key).map_or(Some(default), Value::as_f64);
        match number.map(|number| number as f32) {
            Some(number) if number > 0.0 && number.is_finite() => Ok(number),
            _ => Err(self.invalid(format!("{key} is {}; expected a positive number", self.map[key]))),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.invalid(format!("{key} is {other}; expected true or false"))),
        }
    }

    /// A string.
    pub(crate) fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.invalid(format!("{key} is {other}; expected a string"))),
        }
    }

    /// Token ids: a number, a list or null; -1 stands for none in some files.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let values = match self.get(key) {
            None => &[][..],
            Some(Value::Array(values)) => values,
            Some(value) => std::slice::from_ref(value),
        };
        let ids = values.iter().filter(|value| value.as_i64() != Some(-1));
        ids.map(|value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.invalid(format!("{key} has {value}; expected token ids")))
        })
        .collect()
    }

    /// An [`Error::Invalid`] about the file.
    pub(crate) fn invalid(&self, message: impl Into<String>) -> Error {
        Error::invalid(&self.path, message)
    }

    /// An [`Error::Unsupported`] about the file.
    pub(crate) fn unsupported(&self, message: impl Into<String>) -> Error {
        Error::unsupported(&self.path, message)
    }
}
