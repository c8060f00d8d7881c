//! The files of a model: in a folder, or in the memory of a program that brings its model along.
//!
//! Knows nothing of what they hold.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Where the files of a model are. Whatever takes these takes a path, too.
///
/// ```
/// use bitnet_model::Files;
///
/// let folder = Files::from("models/bitnet-b1.58-2B-4T");
/// assert_eq!(folder.to_string(), "models/bitnet-b1.58-2B-4T");
///
/// // With `include_bytes!`, a program needs no file but its own.
/// let embedded = Files::Embedded {
///     name: "tiny",
///     files: &[("config.json", b"{}")],
/// };
/// assert_eq!(embedded.path("config.json").to_str(), Some("tiny/config.json"));
/// assert!(embedded.has("config.json") && !embedded.has("tokenizer.json"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// A folder.
    Folder(PathBuf),
    /// Bytes in memory.
    Embedded {
        /// What messages call it.
        name: &'static str,
        /// Names, as in a folder, and contents.
        files: &'static [(&'static str, &'static [u8])],
    },
}

impl Files {
    /// The folder, or the name that stands for it.
    #[must_use]
    pub fn root(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Embedded { name, .. } => Path::new(name),
        }
    }

    /// What messages call the file `name`; in a folder, its path.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Whether there is a file `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).exists(),
            Self::Embedded { .. } => self.embedded(name).is_some(),
        }
    }

    /// All of the file `name`, or `None` where there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                match std::fs::read(&path) {
                    Ok(content) => Ok(Some(content.into())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::io(path, error)),
                }
            }
            Self::Embedded { .. } => Ok(self.embedded(name).map(Cow::Borrowed)),
        }
    }

    /// Opens the file `name` to read pieces of it.
    pub(crate) fn open(&self, name: &str) -> Result<Pieces> {
        let Self::Folder(folder) = self else {
            let missing = || Error::io(self.path(name), io::ErrorKind::NotFound.into());
            return self.embedded(name).map(Pieces::Memory).ok_or_else(missing);
        };
        let path = folder.join(name);
        let io = |source| Error::io(&path, source);
        // Asked before opening: opening a pipe would wait for its other end.
        if !std::fs::metadata(&path).map_err(io)?.is_file() {
            return Err(Error::invalid(&path, "is not a file"));
        }
        Ok(Pieces::File(File::open(&path).map_err(io)?))
    }

    fn embedded(&self, name: &str) -> Option<&'static [u8]> {
        let Self::Embedded { files, .. } = self else {
            return None;
        };
        let (_, content) = files.iter().find(|(file, _)| *file == name)?;
        Some(content)
    }
}

impl std::fmt::Display for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.root().display().fmt(f)
    }
}

impl From<PathBuf> for Files {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

impl From<String> for Files {
    fn from(folder: String) -> Self {
        Self::Folder(folder.into())
    }
}

impl From<&Self> for Files {
    fn from(files: &Self) -> Self {
        files.clone()
    }
}

impl<T: ?Sized + AsRef<std::ffi::OsStr>> From<&T> for Files {
    fn from(folder: &T) -> Self {
        Self::Folder(folder.into())
    }
}

/// An open file, or bytes in memory: read anywhere, any number of times.
#[derive(Debug)]
pub(crate) enum Pieces {
    File(File),
    Memory(&'static [u8]),
}

impl Pieces {
    /// Its size in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Memory(content) => Ok(content.len() as u64),
        }
    }

    /// Fills `out` with the bytes from `offset` on.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => read_exact_at(file, out, offset),
            Self::Memory(content) => {
                let piece = usize::try_from(offset)
                    .ok()
                    .and_then(|start| content.get(start..start.checked_add(out.len())?));
                out.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
