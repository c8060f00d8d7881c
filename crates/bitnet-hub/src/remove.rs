//! Removing models from the cache: a repository, a revision, or a file, and the bytes that nothing else uses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cache::{Repository, absent};
use crate::choose::choose;
use crate::hub::weights_of;
use crate::inventory::{entries, revisions};
use crate::{Error, Hub, ModelName, Result};

/// What removing a model would do. Nothing is removed before [`Removal::carry_out`].
#[derive(Debug)]
pub struct Removal {
    repository: Repository,
    /// Branches, tags: removed first, so that nothing finds a model that is half there.
    refs: Vec<PathBuf>,
    pointers: Vec<PathBuf>,
    blobs: Vec<PathBuf>,
    /// Whether nothing of the repository is left.
    whole: bool,
    bytes: u64,
}

/// A file of a snapshot.
struct Pointer {
    path: PathBuf,
    commit: String,
    /// The name in the snapshot.
    name: String,
    /// The name of the blob; `None` where the file is its own.
    blob: Option<String>,
}

impl Removal {
    /// Bytes that it frees.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Files of the model that it removes.
    #[must_use]
    pub fn files(&self) -> usize {
        self.pointers.len()
    }

    /// Removes them.
    ///
    /// # Errors
    /// When the file system refuses; what is removed by then stays removed, and another removal goes on from there.
    pub fn carry_out(self) -> Result<()> {
        let folder = &self.repository.folder;
        for path in self.refs.iter().chain(&self.pointers).chain(&self.blobs) {
            absent(std::fs::remove_file(path)).map_err(|source| Error::io(path, source))?;
        }
        if self.whole {
            for entry in entries(folder)? {
                let path = folder.join(entry);
                let removed = if path.is_dir() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                absent(removed).map_err(|source| Error::io(&path, source))?;
            }
            // A link to a folder on another disk is a file to the system.
            let removed = std::fs::remove_dir(folder).or_else(|_| std::fs::remove_file(folder));
            absent(removed).map_err(|source| Error::io(folder, source))?;
            absent(std::fs::remove_dir_all(&self.repository.locks))
                .map_err(|source| Error::io(&self.repository.locks, source))?;
            return Ok(());
        }
        // Folders that are empty now, from the innermost out; others stay.
        for path in &self.pointers {
            let inside = path
                .ancestors()
                .skip(1)
                .take_while(|folder| !folder.ends_with("snapshots"));
            for folder in inside {
                if std::fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Hub {
    /// Plans to remove a model: with a file or quantization in its name that file, with a revision that revision, else all of the
    /// repository. What another revision or file uses stays.
    ///
    /// # Errors
    /// When the cache has no such model, or another process is fetching it now.
    pub fn removal(&self, name: &ModelName) -> Result<Removal> {
        let repository = self.repository(name);
        let not_cached = || Error::NotCached {
            name: name.to_string(),
            cache: self.settings().cache.clone(),
        };
        if !repository.exists() {
            return Err(not_cached());
        }
        if repository.is_locked() {
            return Err(Error::Busy {
                name: name.to_string(),
            });
        }
        let all = pointers(&repository)?;
        let everything = name.choice().is_none() && !name.names_revision();
        let (doomed, kept): (Vec<Pointer>, Vec<Pointer>) = if everything {
            (all, Vec::new())
        } else {
            let commit = repository.commit(name.revision())?.ok_or_else(not_cached)?;
            let chosen = match name.choice() {
                None => None,
                Some(_) => {
                    let names = repository.files(&commit)?;
                    let choice = choose(name, &names)?;
                    let snapshot = repository.snapshot(&commit);
                    let mut files = weights_of(&choice, name, &snapshot)?;
                    files.extend(choice.small);
                    Some(files)
                }
            };
            all.into_iter().partition(|pointer| {
                pointer.commit == commit && chosen.as_ref().is_none_or(|files| files.contains(&pointer.name))
            })
        };
        if doomed.is_empty() && !everything {
            return Err(not_cached());
        }
        let used: BTreeSet<&String> = kept.iter().filter_map(|pointer| pointer.blob.as_ref()).collect();
        let whole = kept.is_empty();
        let blobs: BTreeSet<String> = if whole {
            entries(&repository.folder.join("blobs"))?.into_iter().collect()
        } else {
            let unused = |blob: &&String| !used.contains(blob);
            doomed
                .iter()
                .filter_map(|pointer| pointer.blob.as_ref())
                .filter(unused)
                .cloned()
                .collect()
        };
        let blobs: Vec<PathBuf> = blobs.iter().map(|blob| repository.blob(blob)).collect();
        let refs = revisions(&repository)?.into_iter();
        let refs = refs.filter(|(_, commit)| !kept.iter().any(|pointer| pointer.commit == *commit));
        let refs = refs
            .map(|(revision, _)| repository.folder.join("refs").join(revision))
            .collect();
        let pointers: Vec<PathBuf> = doomed.into_iter().map(|pointer| pointer.path).collect();
        Ok(Removal {
            bytes: pointers.iter().chain(&blobs).map(|path| own_bytes(path)).sum(),
            repository,
            refs,
            pointers,
            blobs,
            whole,
        })
    }
}

/// The bytes of a file itself: none for a link.
fn own_bytes(path: &Path) -> u64 {
    let metadata = path.symlink_metadata().ok().filter(std::fs::Metadata::is_file);
    metadata.map_or(0, |metadata| metadata.len())
}

/// The files of all snapshots, those included whose bytes are not there.
fn pointers(repository: &Repository) -> Result<Vec<Pointer>> {
    let mut pointers = Vec::new();
    let snapshots = repository.folder.join("snapshots");
    for commit in entries(&snapshots)? {
        let root = snapshots.join(&commit);
        let mut folders = vec![(root.clone(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in entries(&folder)? {
                let path = folder.join(&entry);
                let name = format!("{prefix}{entry}");
                let target = std::fs::read_link(&path).ok();
                if target.is_none() && path.is_dir() {
                    folders.push((path, format!("{name}/")));
                    continue;
                }
                let blob = target.and_then(|target| target.file_name()?.to_str().map(str::to_owned));
                pointers.push(Pointer {
                    path,
                    commit: commit.clone(),
                    name,
                    blob,
                });
            }
        }
    }
    Ok(pointers)
}
