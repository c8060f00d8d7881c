//! Digests that the hub announces: SHA-256 of large files, git's SHA-1 of small ones.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// What the bytes of a file must hash to, in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Of the bytes: files in the hub's storage for large files.
    Sha256(String),
    /// Of `blob`, a space, their number, a zero byte and the bytes: what git calls a file in the repository itself.
    GitBlob(String),
}

impl Digest {
    /// The digest that an entity tag is, or `None` where a mirror made up its own.
    pub(crate) fn parse(etag: &str) -> Option<Self> {
        let digits = etag
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match etag.len() {
            64 if digits => Some(Self::Sha256(etag.to_owned())),
            40 if digits => Some(Self::GitBlob(etag.to_owned())),
            _ => None,
        }
    }

    /// Its digits.
    pub(crate) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
        }
    }

    /// The digits of the file at `path`, by the same rule.
    pub(crate) fn of(&self, path: &Path) -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut context = match self {
            Self::Sha256(_) => Context::new(&SHA256),
            Self::GitBlob(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
                context
            }
        };
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => context.update(&buffer[..n]),
            }
        }
        Ok(context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object a` and `sha256sum a`.
        for digits in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let digest = Digest::parse(digits).unwrap();
            assert_eq!(digest.of(&path).unwrap(), digest.digits());
        }
        assert_eq!(Digest::parse("5d41402abc4b2a76b9719d911017c592"), None);
    }
}
