//! Keys of clients: which are known, and whether a request has one of them.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use subtle::{Choice, ConstantTimeEq};

/// Most bytes of a file with keys.
const MAX_FILE: u64 = 1 << 20;

/// The keys that clients may have.
#[derive(Debug)]
pub(crate) struct Keys {
    given: Vec<String>,
    file: Option<PathBuf>,
    all: RwLock<Arc<Vec<String>>>,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// No key is asked for.
    Anyone,
    /// That of the key with this place in the list.
    Key(usize),
}

impl Keys {
    /// Those given, and those of a file.
    pub(crate) fn new(given: Vec<String>, file: Option<PathBuf>) -> io::Result<Self> {
        let keys = Self {
            given,
            file,
            all: RwLock::default(),
        };
        keys.reload()?;
        Ok(keys)
    }

    /// Reads the file again; the number of keys. What cannot be read changes nothing.
    pub(crate) fn reload(&self) -> io::Result<usize> {
        let mut all = self.given.clone();
        if let Some(path) = &self.file {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            let bytes = bitnet_files::read(path, MAX_FILE).map_err(named)?;
            let text = String::from_utf8(bytes).map_err(|e| named(io::Error::other(e)))?;
            let keys = text.lines().map(str::trim);
            all.extend(
                keys.filter(|key| !key.is_empty() && !key.starts_with('#'))
                    .map(str::to_owned),
            );
            if all.is_empty() {
                // Nobody who names a file of keys wants a server that is open to all.
                return Err(named(io::Error::other("there is no key in it; write one a line")));
            }
        }
        let n = all.len();
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(all);
        Ok(n)
    }

    /// Whether a key is asked for.
    pub(crate) fn are_asked_for(&self) -> bool {
        !self.list().is_empty()
    }

    /// How many there are, and the length of the shortest.
    pub(crate) fn facts(&self) -> (usize, usize) {
        let keys = self.list();
        (keys.len(), keys.iter().map(String::len).min().unwrap_or(0))
    }

    /// Whose request it is; `None` where a key is asked for and none of them is given.
    pub(crate) fn holder(&self, headers: &HeaderMap) -> Option<Holder> {
        let keys = self.list();
        if keys.is_empty() {
            return Some(Holder::Anyone);
        }
        let given = presented(headers)?;
        // Every key is compared to its end, so that the time tells nothing of where they differ.
        let mut found = None;
        for (i, key) in keys.iter().enumerate() {
            if bool::from(equal(key.as_bytes(), given)) {
                found = Some(Holder::Key(i));
            }
        }
        found
    }

    fn list(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.all.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether the request has this one key.
pub(crate) fn has(headers: &HeaderMap, key: &str) -> bool {
    presented(headers).is_some_and(|given| bool::from(equal(key.as_bytes(), given)))
}

/// The key of a request: `Authorization: Bearer KEY`, or `api-key: KEY` as Azure's clients send it.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii());
    }
    headers.get("api-key").map(|value| value.as_bytes().trim_ascii())
}

fn equal(key: &[u8], given: &[u8]) -> Choice {
    key.ct_eq(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn one_of_the_keys_is_needed_where_there_are_any() {
        let open = Keys::new(Vec::new(), None).unwrap();
        assert_eq!(open.holder(&HeaderMap::new()), Some(Holder::Anyone));
        let keys = Keys::new(vec!["first-key".into(), "second".into()], None).unwrap();
        for (name, value, holder) in [
            ("authorization", "Bearer first-key", Some(Holder::Key(0))),
            ("authorization", "bearer second", Some(Holder::Key(1))),
            ("api-key", "second", Some(Holder::Key(1))),
            ("authorization", "Bearer first-ke", None),
            ("authorization", "Bearer", None),
            ("authorization", "Bearer ", None),
            ("authorization", "Basic first-key", None),
            ("authorization", "", None),
            ("x-key", "second", None),
        ] {
            assert_eq!(keys.holder(&headers(name, value)), holder, "{name}: {value}");
        }
    }

    #[test]
    fn a_file_is_read_again_and_an_unreadable_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# of the team\none\n\n two \n").unwrap();
        let keys = Keys::new(Vec::new(), Some(path.clone())).unwrap();
        assert_eq!(keys.facts(), (2, 3));
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(keys.reload().unwrap(), 1);
        assert_eq!(keys.holder(&headers("api-key", "two")), None);
        assert_eq!(keys.holder(&headers("api-key", "three")), Some(Holder::Key(0)));
        for empty in ["", "# nothing\n"] {
            std::fs::write(&path, empty).unwrap();
            assert!(keys.reload().unwrap_err().to_string().contains("no key"));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(keys.reload().is_err());
        assert_eq!(keys.facts(), (1, 5));
    }
}
