//! What the cache holds.

use std::path::{Path, PathBuf};

use crate::cache::{Repository, absent};
use crate::choose::{Choice, Format, choose, gguf_files};
use crate::hub::{place, weights_of};
use crate::{Error, Hub, ModelName, Result};

/// A model in the cache, or one that was begun.
#[derive(Clone, Debug)]
pub struct Cached {
    /// The name that finds it.
    pub name: ModelName,
    /// The form of its weights; `None` where only a part has arrived.
    pub format: Option<Format>,
    /// Its folder or file; of what was begun, the repository's folder.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// The commit, where it is whole.
    pub commit: Option<String>,
}

impl Hub {
    /// The models in the cache whose weights are there, in the order of their names, and those of which only a part is. What
    /// kind of model each is, nobody has looked at.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn models(&self) -> Result<Vec<Cached>> {
        let mut models = Vec::new();
        for repo in entries(&self.settings().cache)? {
            let Some(name) = repo
                .strip_prefix("models--")
                .map(|name| name.replacen("--", "/", 1))
            else {
                continue;
            };
            // Models without an owner, of the hub's first days, have no name here.
            if let Ok(name) = name.parse() {
                self.of_repository(&name, &mut models)?;
            }
        }
        Ok(models)
    }

    fn of_repository(&self, name: &ModelName, models: &mut Vec<Cached>) -> Result<()> {
        let repository = self.repository(name);
        let (before, revisions) = (models.len(), revisions(&repository)?);
        for commit in entries(&repository.folder.join("snapshots"))? {
            let named = revisions
                .iter()
                .filter(|(_, at)| *at == commit)
                .map(|(revision, _)| revision.as_str());
            let revision = named
                .min_by_key(|revision| *revision != "main")
                .unwrap_or(&commit);
            let Ok(name) = format!("{}@{revision}", name.repo()).parse::<ModelName>() else {
                continue;
            };
            let names = repository.files(&commit)?;
            let mut found = Vec::new();
            let default = choose(&name, &names)
                .ok()
                .map(|choice| place(&repository, &commit, &choice));
            let files = gguf_files(&names);
            let choices = files
                .iter()
                .map(|file| file.parts[0].as_str())
                .chain(["safetensors"]);
            for choice in choices {
                let full = name.with(Some(choice), revision);
                let Ok(chosen) = choose(&full, &names) else {
                    continue;
                };
                let path = place(&repository, &commit, &chosen);
                let is_default = default.as_ref() == Some(&path);
                let snapshot = repository.snapshot(&commit);
                let Some(bytes) = size(&chosen, &full, &snapshot, &names) else {
                    continue;
                };
                found.push(Cached {
                    name: if is_default {
                        name.with(None, revision)
                    } else {
                        full
                    },
                    format: Some(chosen.format),
                    path,
                    bytes,
                    commit: Some(commit.clone()),
                });
            }
            models.append(&mut found);
        }
        let partial = |blob: &String| blob.ends_with(".incomplete");
        let blobs = repository.folder.join("blobs");
        let begun: Vec<String> = entries(&blobs)?.into_iter().filter(partial).collect();
        if models.len() == before && !begun.is_empty() {
            models.push(Cached {
                name: name.clone(),
                format: None,
                bytes: begun
                    .iter()
                    .filter_map(|blob| Some(blobs.join(blob).metadata().ok()?.len()))
                    .sum(),
                path: repository.folder,
                commit: None,
            });
        }
        Ok(())
    }
}

/// The bytes of a model's files, where its weights are all there.
fn size(choice: &Choice, name: &ModelName, snapshot: &Path, names: &[String]) -> Option<u64> {
    let weights = weights_of(choice, name, snapshot).ok()?;
    let files = choice.small.iter().chain(&weights);
    let bytes = files.map(|file| {
        let there = names.contains(file);
        there.then(|| snapshot.join(file).metadata().ok().map(|metadata| metadata.len()))?
    });
    bytes.sum()
}

/// The branches and tags that were fetched, and the commits that they were at.
pub(crate) fn revisions(repository: &Repository) -> Result<Vec<(String, String)>> {
    fn below(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
        for entry in entries(folder)? {
            let path = folder.join(&entry);
            let name = format!("{prefix}{entry}");
            if !path.is_dir() {
                names.push(name);
            } else if depth > 0 {
                below(&path, &format!("{name}/"), depth - 1, names)?;
            }
        }
        Ok(())
    }
    let mut names = Vec::new();
    below(&repository.folder.join("refs"), "", 8, &mut names)?;
    let mut revisions = Vec::new();
    for name in names {
        if let Some(commit) = repository.commit(&name)? {
            revisions.push((name, commit));
        }
    }
    Ok(revisions)
}

/// The names in a folder, in order; none where there is no folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<String>> {
    let io = |source| Error::io(folder, source);
    let mut names = Vec::new();
    for entry in absent(std::fs::read_dir(folder))
        .map_err(io)?
        .into_iter()
        .flatten()
    {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
