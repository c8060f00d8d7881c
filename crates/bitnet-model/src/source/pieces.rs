//! Bytes that are read piece by piece or whole: of a regular file, or in memory.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result};

/// The bytes of one file in memory, whoever owns them.
pub(super) type Shared = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// All of a file.
pub(crate) enum Content {
    Read(Vec<u8>),
    Memory(Shared),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Memory(shared) => shared.as_ref().as_ref(),
        }
    }
}

/// All bytes of the regular file `path`, which may be at most `limit`: a pipe, a device or a folder in its place, a link
/// that leads nowhere and a file that is larger are errors that say so, before anything is read.
///
/// # Errors
/// When there is no such file, it is not a regular one, it is larger than `limit`, or it cannot be read.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    bitnet_files::read(path, limit).map_err(|source| named(path, source))
}

/// What was found in the place of a file is a fact of its content, and what the system says one of reading it.
fn named(path: &Path, source: io::Error) -> Error {
    match source.get_ref() {
        Some(message) => Error::invalid(path, message.to_string()),
        None => Error::io(path, source),
    }
}

/// An open file, or bytes in memory: read anywhere, any number of times.
pub(crate) enum Pieces {
    File(File),
    Memory(Shared),
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Memory(content) => write!(f, "{} bytes in memory", content.as_ref().as_ref().len()),
        }
    }
}

impl Pieces {
    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        bitnet_files::open(path)
            .map(Self::File)
            .map_err(|source| named(path, source))
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Memory(content) => Ok(content.as_ref().as_ref().len() as u64),
        }
    }

    /// Fills `out` with the bytes from `offset` on.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => read_exact_at(file, out, offset),
            Self::Memory(content) => {
                let content = content.as_ref().as_ref();
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
