//! The files of a model: in a folder, made of a GGUF file, or in the memory of a program that brings its model along.
//!
//! Knows the names of files that can stand in for others, and nothing of what they hold.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::gguf::{self, GgufFile};
use super::pieces::{Content, Pieces, Shared, read_file};
use super::sentencepiece;
use crate::{Error, Result};

/// A folder with one of these holds a model in one safetensors file, or in several.
pub(super) const WEIGHTS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// Most bytes of a configuration, a chat template, an index or a license; published ones have some kilobytes.
pub(crate) const MAX_TEXT: u64 = 32 << 20;

/// Most bytes of a tokenizer; the largest that is published has 33 MB.
const MAX_TOKENIZER: u64 = 256 << 20;

/// Where the files of a model are. Whatever takes these takes a path, too: of a folder, or of a GGUF file.
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
#[non_exhaustive]
pub enum Files {
    /// A folder, or a GGUF file that nobody has opened yet.
    Folder(PathBuf),
    /// Bytes in memory.
    Memory(MemoryFiles),
    /// An opened GGUF file. Its metadata stand for config.json and the tokenizer's files.
    Gguf(Arc<GgufFile>),
}

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

impl Files {
    /// The folder or GGUF file, or the name that stands for it.
    #[must_use]
    pub fn root(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Memory(files) => Path::new(&files.name),
            Self::Gguf(file) => file.path(),
        }
    }

    /// What messages call the file `name`; in a folder, its path.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Gguf(file) => file.path().to_owned(),
            _ => self.root().join(name),
        }
    }

    /// Opens a GGUF file, where this is one: the path of a file, or of a folder with no other model in it than one in GGUF.
    /// Anything else comes back as it is.
    pub(crate) fn opened(self) -> Result<Self> {
        match self.gguf_path()? {
            Some(path) => Ok(Self::Gguf(Arc::new(GgufFile::open(&path)?))),
            None => Ok(self),
        }
    }

    fn gguf_path(&self) -> Result<Option<PathBuf>> {
        let Self::Folder(path) = self else {
            return Ok(None);
        };
        let Ok(attributes) = std::fs::metadata(path) else {
            return Ok(None);
        };
        if !attributes.is_dir() {
            return match gguf::is_gguf(path) {
                true => Ok(Some(path.clone())),
                false => Err(Error::invalid(
                    path,
                    "is a file, and not a GGUF file; name the folder that holds config.json and model.safetensors, or a GGUF file",
                )),
            };
        }
        // Repositories of GGUF files often have a config.json too.
        if WEIGHTS.iter().any(|name| path.join(name).exists()) {
            return Ok(None);
        }
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        // Of a split model the first part.
        let later_part = |name: &str| name.contains("-of-") && !name.contains("-00001-of-");
        let mut names: Vec<String> = names
            .filter(|name| name.ends_with(".gguf") && !later_part(name))
            .collect();
        names.sort_unstable();
        match &names[..] {
            [] => Ok(None),
            [name] => Ok(Some(path.join(name))),
            _ => Err(Error::invalid(
                path,
                format!(
                    "holds {} GGUF files; name one of them: {}",
                    names.len(),
                    names.join(", ")
                ),
            )),
        }
    }

    /// Whether there is something called `name`, or something that stands for it. A link that leads nowhere counts: reading it is
    /// the error that says so.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Gguf(file) => file.has(name),
            _ => {
                self.has_stored(name)
                    || stand_in(name).is_some_and(|other| self.has_stored(other))
                    || matches!(self.clone().opened(), Ok(Self::Gguf(file)) if file.has(name))
            }
        }
    }

    /// All of the file `name`, or `None` where there is none. A file of more bytes than any of its kind has is refused
    /// before it is read.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Content>> {
        let made = |file: &GgufFile| Ok(file.read(name)?.map(Content::Read));
        if let Self::Gguf(file) = self {
            return made(file);
        }
        if let Some(content) = self.read_stored(name)? {
            return Ok(Some(content));
        }
        if let Some(other) = stand_in(name)
            && let Some(content) = self.read_stored(other)?
        {
            let added = self.read_stored("added_tokens.json")?;
            let json = sentencepiece::tokenizer_json(&content, added.as_deref())
                .map_err(|message| Error::invalid(self.path(other), message))?;
            return Ok(Some(Content::Read(json.into_bytes())));
        }
        match self.clone().opened()? {
            Self::Gguf(file) => made(&file),
            _ => Ok(None),
        }
    }

    fn has_stored(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).symlink_metadata().is_ok(),
            Self::Memory(files) => files.get(name).is_some(),
            Self::Gguf(_) => false,
        }
    }

    fn read_stored(&self, name: &str) -> Result<Option<Content>> {
        let limit = match name {
            "tokenizer.json" | "tokenizer.model" => MAX_TOKENIZER,
            _ => MAX_TEXT,
        };
        match self {
            Self::Folder(folder) if self.has_stored(name) => {
                read_file(&folder.join(name), limit).map(|bytes| Some(Content::Read(bytes)))
            }
            Self::Memory(files) => Ok(files.get(name).map(Content::Memory)),
            _ => Ok(None),
        }
    }

    /// Opens the file `name` to read pieces of it.
    pub(crate) fn open(&self, name: &str) -> Result<Pieces> {
        match self {
            Self::Folder(folder) => Pieces::open(&folder.join(name)),
            Self::Memory(files) => {
                let missing = || Error::io(self.path(name), io::ErrorKind::NotFound.into());
                files.get(name).map(Pieces::Memory).ok_or_else(missing)
            }
            Self::Gguf(_) => Err(Error::io(self.path(name), io::ErrorKind::NotFound.into())),
        }
    }
}

/// The file of which a missing file `name` can be made.
fn stand_in(name: &str) -> Option<&'static str> {
    (name == "tokenizer.json").then_some("tokenizer.model")
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
