//! How models of the hub are named: `owner/name`, which of its files, which revision.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A model of the hub: `owner/name[:file or quantization][@revision]`.
///
/// ```
/// use bitnet_hub::ModelName;
///
/// let name: ModelName = "tiiuae/Falcon-E-3B-Instruct-GGUF:i2_s@main".parse()?;
/// assert_eq!(name.repo(), "tiiuae/Falcon-E-3B-Instruct-GGUF");
/// assert_eq!((name.choice(), name.revision()), (Some("i2_s"), "main"));
/// // An address works too.
/// let name: ModelName = "https://huggingface.co/microsoft/bitnet-b1.58-2B-4T".parse()?;
/// assert_eq!(name.to_string(), "microsoft/bitnet-b1.58-2B-4T");
/// # Ok::<(), bitnet_hub::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    repo: String,
    choice: Option<String>,
    revision: Option<String>,
}

impl ModelName {
    /// `owner/name`.
    #[must_use]
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The file or quantization that is asked for.
    #[must_use]
    pub fn choice(&self) -> Option<&str> {
        self.choice.as_deref()
    }

    /// The branch, tag or commit: `main` where none is named.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// Whether a revision was named.
    #[must_use]
    pub fn names_revision(&self) -> bool {
        self.revision.is_some()
    }

    /// The same repository with another choice and revision.
    pub(crate) fn with(&self, choice: Option<&str>, revision: &str) -> Self {
        Self {
            repo: self.repo.clone(),
            choice: choice.map(str::to_owned),
            revision: (revision != MAIN).then(|| revision.to_owned()),
        }
    }
}

/// The revision that everybody means.
pub(crate) const MAIN: &str = "main";

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(choice) = &self.choice {
            write!(f, ":{choice}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why| Error::Name {
            text: text.chars().filter(|c| !c.is_control()).collect(),
            why,
        };
        let named = [
            "https://huggingface.co/",
            "https://hf.co/",
            "huggingface.co/",
            "hf.co/",
            "hf://",
        ]
        .iter()
        .find_map(|host| text.strip_prefix(host))
        .unwrap_or(text);
        let end = named.find([':', '@']).unwrap_or(named.len());
        let (repo, rest) = named.split_at(end);
        let (owner, name) = repo.split_once('/').ok_or_else(|| wrong("expected owner/name"))?;
        if name.contains('/') {
            return Err(wrong(
                "expected owner/name; a file follows after a colon, a revision after @",
            ));
        }
        if !is_part(owner) || !is_part(name) {
            return Err(wrong(
                "owner and name consist of letters, digits, and . - _ between them",
            ));
        }
        let (mut choice, mut revision) = (None, None);
        if let Some(file) = rest.strip_prefix(':') {
            let (file, after) = file
                .rsplit_once('@')
                .map_or((file, None), |(file, r)| (file, Some(r)));
            (choice, revision) = (Some(file), after);
        } else if let Some(after) = rest.strip_prefix('@') {
            let (after, file) = after
                .split_once(':')
                .map_or((after, None), |(r, file)| (r, Some(file)));
            (choice, revision) = (file, Some(after));
        }
        if choice.is_some_and(|file| file.is_empty() || file.contains(char::is_control)) {
            return Err(wrong("a file or quantization follows after the colon"));
        }
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(wrong("a branch, tag or commit follows after @"));
        }
        Ok(Self {
            repo: repo.to_owned(),
            choice: choice.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

/// The hub's rule. `--` is what the cache writes for `/`.
fn is_part(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    text.len() <= 96
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !text.contains("--")
        && !text.contains("..")
}

/// Git's rule, narrowed to what is a path of its own below `refs` in the cache on every system.
pub(crate) fn is_revision(text: &str) -> bool {
    text.len() <= 200
        && text.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && !part.ends_with('.')
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
        })
}

/// Whether the text is the name of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart() {
        for (text, repo, choice, revision) in [
            ("a/b", "a/b", None, "main"),
            ("a/b:I2_S", "a/b", Some("I2_S"), "main"),
            ("a/b:x/y.gguf@v1", "a/b", Some("x/y.gguf"), "v1"),
            ("a/b@refs/pr/3", "a/b", None, "refs/pr/3"),
            ("a/b@v1:Q2", "a/b", Some("Q2"), "v1"),
            ("hf.co/a/b.c-d:tq2_0", "a/b.c-d", Some("tq2_0"), "main"),
        ] {
            let name: ModelName = text.parse().unwrap();
            assert_eq!(
                (name.repo(), name.choice(), name.revision()),
                (repo, choice, revision)
            );
            assert_eq!(name.to_string().parse::<ModelName>().unwrap(), name);
        }
    }

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/.b",
            "a--c/b",
            "a/b:",
            "a/b@",
            "a/b@../x",
            "a/b@x//y",
            "a/b@-f",
            "a b/c",
            "a/b:\u{1b}[2J",
            "C:/models/x",
            "./a/b",
            "~/a",
            "a\\b/c",
            "a/b@x\ny",
        ] {
            let error = text.parse::<ModelName>().unwrap_err();
            assert!(matches!(error, Error::Name { .. }), "{text}");
            assert!(!error.to_string().contains(char::is_control));
        }
    }
}
