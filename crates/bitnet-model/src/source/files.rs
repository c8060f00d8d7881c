//! The files of a model: in a folder, or in the memory of a program that brings its model along.
//!
//! Knows nothing of what they hold.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result};

/// Most bytes of a configuration, a chat template, an index or a license; published ones have some kilobytes.
pub(crate) const MAX_TEXT: u64 = 32 << 20;

/// Most bytes of a tokenizer; the largest that is published has 33 MB.
const MAX_TOKENIZER: u64 = 256 << 20;

/// Where the files of a model are. Whatever takes these takes a path, too.
///
/// ```
/// use bitnet_model::{Files, MemoryFiles};
///
/// let folder = Files::from("models/bitnet-b1.58-2B-4T");
/// assert_eq!(folder.to_string(), "models/bitnet-b1.58-2B-4T");
///
/// // Bytes that were read, downloaded or decrypted, or those of `include_bytes!`.
/// let files = MemoryFiles::new("tiny").with("config.json", vec![b'{', b'}']);
/// let files = Files::from(files.with("LICENSE", b"MIT"));
/// assert_eq!(files.path("config.json").to_str(), Some("tiny/config.json"));
/// assert!(files.has("config.json") && !files.has("tokenizer.json"));
/// ```
#[derive(Clone, Debug)]
pub enum Files {
    /// A folder.
    Folder(PathBuf),
    /// Bytes in memory.
    Memory(MemoryFiles),
}

/// The bytes of one file in memory, whoever owns them.
type Shared = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A model in the memory of a program. Clones share the bytes.
#[derive(Clone)]
pub struct MemoryFiles {
    name: String,
    files: Vec<(String, Shared)>,
}

impl MemoryFiles {
    /// No files yet; `name` is what messages call the model.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            files: Vec::new(),
        }
    }

    /// These files and one more, named as in a folder. The content may be a `Vec<u8>`, a `&'static [u8]`, a memory map, or
    /// whatever else owns bytes that do not change.
    #[must_use]
    pub fn with(
        mut self,
        file: impl Into<String>,
        content: impl AsRef<[u8]> + Send + Sync + 'static,
    ) -> Self {
        self.files.push((file.into(), Arc::new(content)));
        self
    }

    fn get(&self, file: &str) -> Option<Shared> {
        let found = self.files.iter().find(|(name, _)| name == file);
        found.map(|(_, content)| Arc::clone(content))
    }
}

impl std::fmt::Debug for MemoryFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sizes = self
            .files
            .iter()
            .map(|(name, content)| (name, content.as_ref().as_ref().len()));
        f.debug_map().entries(sizes).finish()
    }
}

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

impl Files {
    /// The folder, or the name that stands for it.
    #[must_use]
    pub fn root(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Memory(files) => Path::new(&files.name),
        }
    }

    /// What messages call the file `name`; in a folder, its path.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Whether there is something called `name`. A link that leads nowhere counts: reading it is the error that says so.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).symlink_metadata().is_ok(),
            Self::Memory(files) => files.get(name).is_some(),
        }
    }

    /// All of the file `name`, or `None` where there is none. A file of more bytes than any of its kind has is refused
    /// before it is read.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Content>> {
        let limit = match name {
            "tokenizer.json" | "tokenizer.model" => MAX_TOKENIZER,
            _ => MAX_TEXT,
        };
        match self {
            Self::Folder(folder) if self.has(name) => {
                read_file(&folder.join(name), limit).map(|bytes| Some(Content::Read(bytes)))
            }
            Self::Folder(_) => Ok(None),
            Self::Memory(files) => Ok(files.get(name).map(Content::Memory)),
        }
    }

    /// Opens the file `name` to read pieces of it.
    pub(crate) fn open(&self, name: &str) -> Result<Pieces> {
        match self {
            Self::Folder(folder) => open_file(&folder.join(name)).map(Pieces::File),
            Self::Memory(files) => {
                let missing = || Error::io(self.path(name), io::ErrorKind::NotFound.into());
                files.get(name).map(Pieces::Memory).ok_or_else(missing)
            }
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

impl From<MemoryFiles> for Files {
    fn from(files: MemoryFiles) -> Self {
        Self::Memory(files)
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
