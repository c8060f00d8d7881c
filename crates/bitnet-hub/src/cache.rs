//! The folder that Python's `huggingface_hub` and this program share.
//!
//! ```text
//! models--owner--name/refs/main                      the commit that a branch was at when it was fetched
//! models--owner--name/snapshots/<commit>/<file>      a symbolic link to
//! models--owner--name/blobs/<digest>                 the bytes, named by the hub's entity tag
//! models--owner--name/blobs/<digest>.incomplete      the bytes that have arrived
//! .locks/models--owner--name/<digest>.lock           held by whoever fetches them
//! ```
//! Where there are no symbolic links, the file itself is in the snapshot.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitnet_files::is_at;

use crate::choose::is_file_name;
use crate::name::is_commit;
use crate::{Error, Result};

/// Subfolders deeper than that hold nothing of a model.
const DEPTH: usize = 8;

/// Most bytes of a file that holds a commit, which has 40.
const MAX_REF: u64 = 4096;

/// How often a lock is asked for that somebody else holds.
const PATIENCE: Duration = Duration::from_millis(200);

/// The part of the cache that belongs to one repository.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    pub(crate) folder: PathBuf,
    pub(crate) locks: PathBuf,
    symlinks: bool,
}

/// A lock on a blob; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock(
    #[expect(dead_code, reason = "the lock lives as long as the file is open")] Option<File>,
);

impl Repository {
    /// The place of `owner/name` in the cache at `root`.
    pub(crate) fn new(root: &Path, repo: &str, symlinks: bool) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self {
            folder: root.join(&name),
            locks: root.join(".locks").join(&name),
            symlinks,
        }
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The commit of a revision that was fetched.
    pub(crate) fn commit(&self, revision: &str) -> Result<Option<String>> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.folder.join("refs").join(revision);
        let bytes = absent(bitnet_files::read(&path, MAX_REF)).map_err(|source| Error::io(path, source))?;
        // What is no commit, such as bytes that are no text, is as no revision.
        Ok(bytes
            .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
            .filter(|commit| is_commit(commit)))
    }

    /// The files of a snapshot whose bytes are there, with `/` between folders.
    pub(crate) fn files(&self, commit: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        walk(&self.snapshot(commit), "", DEPTH, &mut names)?;
        names.retain(|name| is_file_name(name));
        names.sort();
        Ok(names)
    }

    /// Remembers the commit of a branch or tag. Whoever reads it at the same time sees the old or the new one.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision)?.as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let partial = path.with_added_extension(format!("{}.tmp", std::process::id()));
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&partial, commit))
            .and_then(|()| std::fs::rename(&partial, &path))
            .map_err(|source| Error::io(path, source))
    }

    /// Waits until nobody else fetches that blob. `waiting` is called once, when somebody does.
    pub(crate) fn lock(&self, etag: &str, waiting: &mut dyn FnMut()) -> Result<Lock> {
        let path = self.locks.join(format!("{etag}.lock"));
        let io = |source| Error::io(&path, source);
        std::fs::create_dir_all(&self.locks).map_err(io)?;
        let mut told = false;
        loop {
            let open = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let file = open.map_err(io)?;
            match file.try_lock() {
                // Whoever held it may have removed it, and others may have made a new one since.
                Ok(()) if is_at(&file, &path) => return Ok(Lock(Some(file))),
                Ok(()) => {}
                // Some network file systems have no locks. Digests show what two writers did to each other.
                Err(TryLockError::Error(_)) => return Ok(Lock(None)),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        waiting();
                        told = true;
                    }
                    std::thread::sleep(PATIENCE);
                }
            }
        }
    }

    /// Whether somebody fetches a blob of it now.
    pub(crate) fn is_locked(&self) -> bool {
        let held = |entry: io::Result<std::fs::DirEntry>| {
            let file = entry.and_then(|entry| OpenOptions::new().read(true).write(true).open(entry.path()));
            file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
        };
        std::fs::read_dir(&self.locks).is_ok_and(|mut entries| entries.any(held))
    }

    /// Makes the file `name` of a snapshot be the blob. A `new` blob is nobody else's: where there are no links it is moved.
    pub(crate) fn link(&self, commit: &str, name: &str, etag: &str, new: bool) -> Result<()> {
        let (blob, pointer) = (self.blob(etag), self.snapshot(commit).join(name));
        let io = |source| Error::io(&pointer, source);
        std::fs::create_dir_all(pointer.parent().unwrap_or(&self.folder)).map_err(io)?;
        absent(std::fs::remove_file(&pointer)).map_err(io)?;
        if self.symlinks {
            // Relative, so that the cache can be moved: out of the snapshot's subfolders, the snapshot, and `snapshots`.
            let mut target: PathBuf = name.split('/').map(|_| "..").collect();
            target.extend(["..", "blobs", etag]);
            match symlink(&target, &pointer) {
                Ok(()) => return Ok(()),
                // Another process was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                // File systems of cameras, and Windows without developer mode, have none.
                Err(_) => {}
            }
        }
        if new {
            std::fs::rename(&blob, &pointer).map_err(io)
        } else {
            std::fs::copy(&blob, &pointer).map(drop).map_err(io)
        }
    }

    /// Whether the two paths are the same repository's.
    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }
}

/// Collects the files below `folder`, links to files included.
fn walk(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    let io = |source| Error::io(folder, source);
    let Some(entries) = absent(std::fs::read_dir(folder)).map_err(io)? else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.map_err(io)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let name = format!("{prefix}{name}");
        if entry.file_type().map_err(io)?.is_dir() {
            if depth > 0 {
                walk(&entry.path(), &format!("{name}/"), depth - 1, names)?;
            }
        } else if entry.path().is_file() {
            names.push(name);
        }
    }
    Ok(())
}

/// What is not there is `None`.
pub(crate) fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// Bytes that may still be written to the file system of `folder`, where that is known.
#[cfg(unix)]
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(folder).ok()?;
    // Some virtual file systems tell nothing.
    #[allow(
        clippy::unnecessary_cast,
        clippy::useless_conversion,
        reason = "the types differ between systems"
    )]
    (found.blocks() > 0)
        .then(|| u64::from(found.blocks_available()).saturating_mul(found.fragment_size() as u64))
}

#[cfg(windows)]
pub(crate) fn free_bytes(_: &Path) -> Option<u64> {
    None
}
