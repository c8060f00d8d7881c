//! One file of a model, from the hub into the cache: resumed, checked, and linked.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::thread::sleep;

use crate::cache::{Repository, absent, free_bytes};
use crate::client::{Client, Entity, Listed, MAX_TRIES, pause};
use crate::digest::Digest;
use crate::event::{Event, Watch};
use crate::{Error, ModelName, Result, Settings};

/// Files of one revision on their way into the cache.
pub(crate) struct Fetch<'s> {
    pub(crate) settings: &'s Settings,
    pub(crate) name: &'s ModelName,
    pub(crate) client: Client<'s>,
    pub(crate) repository: &'s Repository,
    pub(crate) commit: String,
    /// Whether files that are in the cache are compared with their digests, too.
    pub(crate) verify: bool,
    /// Bytes of the files that are done, and of all.
    pub(crate) done: u64,
    pub(crate) total: u64,
    /// Bytes that came over the network.
    pub(crate) fetched: u64,
}

/// Why the bytes stopped coming.
enum Stop {
    /// The connection ended, or stalled; a new one may go on.
    Cut(String),
    /// More would not help.
    Failed(Error),
}

impl Fetch<'_> {
    /// Whether the file is in the snapshot.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.repository.snapshot(&self.commit).join(file).is_file()
    }

    /// Puts a file into the snapshot.
    pub(crate) fn file(&mut self, listed: &Listed, watch: Watch<'_>) -> Result<()> {
        let file = listed.name.as_str();
        let pointer = self.repository.snapshot(&self.commit).join(file);
        if self.has(file) && !self.verify {
            self.done += listed.size.unwrap_or(0);
            return Ok(());
        }
        let entity = self.client.head(&self.commit, file, watch)?;
        // A mirror may name the bytes its own way; the list then has the digest.
        let digest = Digest::parse(&entity.etag).or_else(|| listed.digest.clone());
        let repository = self.repository;
        let lock = repository.lock(&entity.etag, &mut || {
            let why = &format!("another process is fetching {file}");
            watch(Event::Waiting { why, seconds: None });
        })?;
        let blob = repository.blob(&entity.etag);
        if self.verify && self.has(file) {
            let damaged = match &digest {
                Some(digest) => {
                    watch(Event::Checking { file });
                    digest
                        .of(&pointer)
                        .map_err(|source| Error::io(&pointer, source))?
                        != digest.digits()
                }
                None => {
                    let size = pointer
                        .metadata()
                        .map_err(|source| Error::io(&pointer, source))?
                        .len();
                    entity.size.is_some_and(|expected| expected != size)
                }
            };
            if damaged {
                for path in [&pointer, &blob] {
                    absent(std::fs::remove_file(path)).map_err(|source| Error::io(path, source))?;
                }
            }
        }
        let size = entity.size.or(listed.size);
        if !self.has(file) {
            let new = !blob.is_file();
            if new {
                self.blob(
                    file,
                    &Entity {
                        etag: entity.etag.clone(),
                        size,
                    },
                    digest.as_ref(),
                    watch,
                )?;
            }
            repository.link(&self.commit, file, &entity.etag, new)?;
        }
        drop(lock);
        self.done += size.unwrap_or(0);
        Ok(())
    }

    /// Makes the blob of a file. Until it is whole and right it has another name.
    fn blob(&mut self, file: &str, entity: &Entity, digest: Option<&Digest>, watch: Watch<'_>) -> Result<()> {
        let blob = self.repository.blob(&entity.etag);
        let partial = blob.with_added_extension("incomplete");
        let folder = blob.parent().unwrap_or(&blob);
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        loop {
            let resumed = self.download(file, entity, &partial, watch)?;
            let Some(digest) = digest else {
                watch(Event::Unchecked { file });
                break;
            };
            watch(Event::Checking { file });
            let found = digest
                .of(&partial)
                .map_err(|source| Error::io(&partial, source))?;
            if found == digest.digits() {
                break;
            }
            std::fs::remove_file(&partial).map_err(|source| Error::io(&partial, source))?;
            // What was here already may be what is wrong.
            if !resumed {
                return Err(Error::Damaged {
                    name: self.name.to_string(),
                    file: file.to_owned(),
                    host: self.settings.host().to_owned(),
                    expected: digest.digits().to_owned(),
                    found,
                });
            }
        }
        std::fs::rename(&partial, &blob).map_err(|source| Error::io(&blob, source))
    }

    /// Fetches what is missing of `partial`; says whether some of it was there.
    fn download(&mut self, file: &str, entity: &Entity, partial: &Path, watch: Watch<'_>) -> Result<bool> {
        let io = |source| Error::io(partial, source);
        let mut out = OpenOptions::new()
            .append(true)
            .create(true)
            .open(partial)
            .map_err(io)?;
        let mut have = out.metadata().map_err(io)?.len();
        // Of a file whose length is not known, nobody can say whether it is whole.
        if entity.size.is_none_or(|size| have > size) {
            out.set_len(0).map_err(io)?;
            have = 0;
        }
        let resumed = have > 0;
        if let Some(size) = entity.size {
            let folder = partial.parent().unwrap_or(partial);
            let free = free_bytes(folder);
            if free.is_some_and(|free| free < size - have) {
                return Err(self.full(file, partial, size - have, free));
            }
        }
        let mut tries = 0;
        while entity.size.is_none_or(|size| have < size) {
            let before = have;
            let why = match self.receive(file, entity, &mut out, partial, &mut have, watch) {
                Ok(()) if entity.size.is_none_or(|size| have >= size) => break,
                Ok(()) => "it ended early".to_owned(),
                Err(Stop::Cut(why)) => why,
                Err(Stop::Failed(error)) => return Err(error),
            };
            tries = if have > before { 1 } else { tries + 1 };
            if tries >= MAX_TRIES {
                return Err(Error::Cut {
                    name: self.name.to_string(),
                    host: self.settings.host().to_owned(),
                    file: file.to_owned(),
                    at: have,
                    tries,
                    why,
                });
            }
            watch(Event::Waiting {
                why: &format!("{file}: {why}"),
                seconds: None,
            });
            sleep(pause(tries));
        }
        out.sync_all()
            .map_err(|source| self.write_error(file, entity, have, partial, source))?;
        Ok(resumed)
    }

    /// Appends what one connection brings. `have` counts what is in the file.
    fn receive(
        &mut self,
        file: &str,
        entity: &Entity,
        out: &mut File,
        partial: &Path,
        have: &mut u64,
        watch: Watch<'_>,
    ) -> std::result::Result<(), Stop> {
        let (begins, body) = self
            .client
            .get(&self.commit, file, *have, watch)
            .map_err(Stop::Failed)?;
        if begins != *have {
            out.set_len(begins)
                .map_err(|source| Stop::Failed(Error::io(partial, source)))?;
            *have = begins;
        }
        // A byte more than there should be shows that it is another file.
        let most = entity.size.map_or(u64::MAX, |size| size - *have + 1);
        let mut body = body.take(most);
        let mut buffer = vec![0; 1 << 18];
        loop {
            watch(Event::Fetching {
                file,
                done: self.done + *have,
                total: self.total.max(self.done + *have),
            });
            let n = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stop::Cut(error.to_string())),
            };
            out.write_all(&buffer[..n])
                .map_err(|source| Stop::Failed(self.write_error(file, entity, *have, partial, source)))?;
            *have += n as u64;
            self.fetched += n as u64;
        }
    }

    fn write_error(
        &self,
        file: &str,
        entity: &Entity,
        have: u64,
        partial: &Path,
        source: std::io::Error,
    ) -> Error {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => self.full(
                file,
                partial,
                entity.size.map_or(0, |size| size.saturating_sub(have)),
                None,
            ),
            _ => Error::io(partial, source),
        }
    }

    fn full(&self, file: &str, partial: &Path, needed: u64, free: Option<u64>) -> Error {
        Error::DiskFull {
            folder: partial.parent().unwrap_or(partial).to_owned(),
            file: file.to_owned(),
            needed,
            free,
        }
    }
}
