//! Finding a model in the cache, and fetching it there.

use std::path::{Path, PathBuf};

use crate::cache::Repository;
use crate::choose::{Choice, Format, Weights, choose, shards};
use crate::client::{Client, Listed, Listing};
use crate::event::{Event, Watch};
use crate::fetch::Fetch;
use crate::{Error, ModelName, Result, Settings};

/// The hub and the cache of this machine.
#[derive(Clone, Debug)]
pub struct Hub {
    settings: Settings,
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The folder with the safetensors files, or the GGUF file; its first part where it is split.
    pub path: PathBuf,
    /// Which of the two.
    pub format: Format,
    /// The commit of the repository.
    pub commit: String,
    /// Bytes that came over the network for it now.
    pub fetched: u64,
}

/// Whether a pull reads what is in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Only what arrives is compared with its digest.
    Arriving,
    /// Everything is; what is damaged is fetched again.
    All,
}

/// What the cache holds of a model.
enum State {
    Whole(Found),
    /// The missing file, where others are there.
    Partial(Option<String>),
}

impl Hub {
    /// A hub and a cache; nothing is opened yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// What it was made from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The part of the cache that belongs to a model.
    pub(crate) fn repository(&self, name: &ModelName) -> Repository {
        Repository::new(&self.settings.cache, name.repo(), self.settings.symlinks)
    }

    /// The model, where the cache has all of it. Opens no connection.
    ///
    /// # Errors
    /// When several files in the cache fit the name, or the cache cannot be read.
    pub fn find(&self, name: &ModelName) -> Result<Option<Found>> {
        match self.state(name)? {
            State::Whole(found) => Ok(Some(found)),
            State::Partial(_) => Ok(None),
        }
    }

    /// The model: from the cache without a connection where it is there, else fetched.
    ///
    /// # Errors
    /// Those of [`Hub::find`] and [`Hub::pull`].
    pub fn get(&self, name: &ModelName, watch: Watch<'_>) -> Result<Found> {
        match self.find(name)? {
            Some(found) => Ok(found),
            None => self.pull(name, Verify::Arriving, watch),
        }
    }

    /// Fetches what the cache does not have of the newest commit of the revision. Where it was interrupted before, it goes on.
    /// Where connections are forbidden, the commit in the cache is the newest.
    ///
    /// # Errors
    /// Whatever can go wrong between here and the hub, and on the way into the cache; [`Error::remedy`] tells what to do.
    pub fn pull(&self, name: &ModelName, verify: Verify, watch: Watch<'_>) -> Result<Found> {
        if self.settings.offline {
            let missing = match self.state(name)? {
                State::Whole(found) if verify == Verify::Arriving => return Ok(found),
                State::Whole(_) => None,
                State::Partial(missing) => missing,
            };
            return Err(Error::Offline {
                name: name.to_string(),
                cache: self.settings.cache.clone(),
                missing,
            });
        }
        let client = Client::new(&self.settings, name)?;
        let Listing { commit, files } = client.list(watch)?;
        let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        let choice = choose(name, &names)?;
        let repository = self.repository(name);
        let mut fetch = Fetch {
            settings: &self.settings,
            name,
            client,
            repository: &repository,
            commit: commit.clone(),
            verify: verify == Verify::All,
            done: 0,
            total: 0,
            fetched: 0,
        };
        let listed = |wanted: &String| {
            let found = files.iter().find(|file| file.name == *wanted);
            found.ok_or_else(|| content(name, wanted, "is named by the index, but not in the repository"))
        };
        let sum = |files: &[&Listed]| files.iter().filter_map(|file| file.size).sum::<u64>();

        let small: Vec<&Listed> = choice.small.iter().map(listed).collect::<Result<_>>()?;
        fetch.total = sum(&small);
        for file in &small {
            fetch.file(file, watch)?;
        }
        let snapshot = repository.snapshot(&commit);
        let weights = weights_of(&choice, name, &snapshot)?;
        let weights: Vec<&Listed> = weights.iter().map(listed).collect::<Result<_>>()?;
        fetch.total += sum(&weights);
        let missing: Vec<&Listed> = weights
            .iter()
            .copied()
            .filter(|file| !fetch.has(&file.name))
            .collect();
        watch(Event::Begins {
            commit: &commit,
            bytes: sum(&missing),
        });
        for file in &weights {
            fetch.file(file, watch)?;
        }
        // Last: until everything is there, the revision stays at the commit that it had before.
        repository.set_commit(name.revision(), &commit)?;
        Ok(Found {
            path: place(&repository, &commit, &choice),
            format: choice.format,
            commit,
            fetched: fetch.fetched,
        })
    }

    fn state(&self, name: &ModelName) -> Result<State> {
        let repository = self.repository(name);
        let Some(commit) = repository.commit(name.revision())? else {
            return Ok(State::Partial(None));
        };
        let names = repository.files(&commit)?;
        let choice = match choose(name, &names) {
            Ok(choice) => choice,
            Err(Error::NoPart { part, .. }) => return Ok(State::Partial(Some(part))),
            Err(Error::NoWeights { .. } | Error::NoFile { .. }) => {
                return Ok(State::Partial(
                    (!names.is_empty()).then(|| "the file with the weights".to_owned()),
                ));
            }
            Err(error) => return Err(error),
        };
        let snapshot = repository.snapshot(&commit);
        let weights = weights_of(&choice, name, &snapshot)?;
        if let Some(missing) = weights.into_iter().find(|weights| !names.contains(weights)) {
            return Ok(State::Partial(Some(missing)));
        }
        Ok(State::Whole(Found {
            path: place(&repository, &commit, &choice),
            format: choice.format,
            commit,
            fetched: 0,
        }))
    }
}

/// Most bytes of the list of a model's weights; published ones have some hundred kilobytes.
const MAX_INDEX: u64 = 32 << 20;

/// The names of the files with weights, by the list in `snapshot` where there are several.
pub(crate) fn weights_of(choice: &Choice, name: &ModelName, snapshot: &Path) -> Result<Vec<String>> {
    match &choice.weights {
        Weights::Files(files) => Ok(files.clone()),
        Weights::Index(index) => {
            let text = bitnet_files::read(&snapshot.join(index), MAX_INDEX)
                .map_err(|error| content(name, index, &error.to_string()))?;
            shards(&text).map_err(|why| content(name, index, &why))
        }
    }
}

/// Where whoever runs the model finds it.
pub(crate) fn place(repository: &Repository, commit: &str, choice: &Choice) -> PathBuf {
    let snapshot = repository.snapshot(commit);
    match (&choice.format, &choice.weights) {
        (Format::Gguf, Weights::Files(files)) => {
            files.first().map_or(snapshot.clone(), |file| snapshot.join(file))
        }
        _ => snapshot,
    }
}

fn content(name: &ModelName, file: &str, why: &str) -> Error {
    Error::Content {
        name: name.to_string(),
        file: file.to_owned(),
        why: why.to_owned(),
    }
}
