//! Bytes that are read piece by piece or whole: of a regular file, or in memory.

use std::fs::File;
use std::io::{self, Read};
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
    let file = open_file(path)?;
    let io = |source| Error::io(path, source);
    let too_large = |size: u64| {
        Error::invalid(
            path,
            format!("has {size} bytes or more; a file of its kind has at most {limit}"),
        )
    };
    let size = file.metadata().map_err(io)?.len();
    if size > limit {
        return Err(too_large(size));
    }
    // Files of the system, such as those of /proc, say 0 whatever they hold, and any file can grow while it is read.
    let mut bytes = Vec::with_capacity(size as usize);
    (&file).take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    match bytes.len() as u64 {
        read if read > limit => Err(too_large(read)),
        _ => Ok(bytes),
    }
}

/// Opens a regular file.
fn open_file(path: &Path) -> Result<File> {
    let io = |source| Error::io(path, source);
    // Asked before opening: opening a pipe would wait for its other end.
    let kind = match std::fs::metadata(path) {
        Ok(attributes) => attributes.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(match std::fs::read_link(path) {
                Ok(target) => Error::invalid(
                    path,
                    format!("is a link to {}, which is not there", target.display()),
                ),
                Err(_) => io(error),
            });
        }
        Err(error) => return Err(io(error)),
    };
    if kind.is_file() {
        return File::open(path).map_err(io);
    }
    let found = if kind.is_dir() {
        "a folder"
    } else {
        "a pipe or device"
    };
    Err(Error::invalid(
        path,
        format!("is {found}, where a file is expected"),
    ))
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
        open_file(path).map(Self::File)
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
