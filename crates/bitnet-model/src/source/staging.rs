//! Files that appear in a folder all together or not at all.
//!
//! Each is written under a name of its own beside its final one, and only when all are on the disk are they renamed. Until
//! then, whatever fails, dropping the staging removes what it wrote.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Ends the names of files that are not complete; a crash can leave them, and the next run writes over them.
const PARTIAL: &str = ".partial";

/// Files on their way into a folder.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PathBuf,
    /// Folders made for this, outermost first.
    created: Vec<PathBuf>,
    names: Vec<String>,
}

impl Staging {
    /// Starts in `dir`, which is made if need be.
    pub(crate) fn begin(dir: &Path) -> Result<Self> {
        let missing = dir
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let mut created: Vec<PathBuf> = missing.map(Into::into).collect();
        created.reverse();
        let staging = Self {
            dir: dir.into(),
            created,
            names: Vec::new(),
        };
        std::fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))?;
        Ok(staging)
    }

    /// Begins a file. It is locked, so that two runs do not write into each other.
    pub(crate) fn create(&mut self, name: &str) -> Result<File> {
        let path = self.partial(name);
        let io = |source| Error::io(&path, source);
        let open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let file = open.map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Request(format!(
                    "{}: another program is writing this file; let it finish, or name another folder",
                    path.display()
                )));
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        self.names.push(name.into());
        file.set_len(0).map_err(io)?;
        Ok(file)
    }

    /// Writes a whole file.
    pub(crate) fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(|source| Error::io(self.dir.join(name), source))
    }

    /// Gives the files their names, in the order in which they were begun, after removing `obsolete` ones.
    pub(crate) fn commit(mut self, obsolete: &[&str]) -> Result<()> {
        for name in obsolete {
            let path = self.dir.join(name);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(path, source));
                }
                _ => {}
            }
        }
        for (done, name) in self.names.iter().enumerate() {
            let path = self.dir.join(name);
            if let Err(source) = std::fs::rename(self.partial(name), &path) {
                for name in &self.names[..done] {
                    let _ = std::fs::remove_file(self.dir.join(name));
                }
                return Err(Error::io(path, source));
            }
        }
        self.names.clear();
        self.created.clear();
        // The renames themselves, where folders can be synchronized.
        if cfg!(unix) {
            let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
            synced.map_err(|source| Error::io(&self.dir, source))?;
        }
        Ok(())
    }

    fn partial(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}{PARTIAL}"))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for name in &self.names {
            // Nothing can be done about a failure here, and the first one is being reported already.
            let _ = std::fs::remove_file(self.partial(name));
        }
        for dir in self.created.iter().rev() {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Whether a folder holds nothing but what a run that was interrupted left.
pub(crate) fn is_vacant(dir: &Path) -> Result<bool> {
    let io = |source| Error::io(dir, source);
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        if !name.to_string_lossy().ends_with(PARTIAL) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn all_files_or_none() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let mut staging = Staging::begin(&dir).unwrap();
        staging.write("x", b"1").unwrap();
        assert_eq!(names(&dir), [".x.partial"]);
        assert!(is_vacant(&dir).unwrap());
        drop(staging);
        assert!(names(root.path()).is_empty(), "folders made for it go too");

        let mut staging = Staging::begin(&dir).unwrap();
        staging.write("x", b"1").unwrap();
        staging.write("y", b"2").unwrap();
        staging.commit(&[]).unwrap();
        assert_eq!(names(&dir), ["x", "y"]);
        assert!(!is_vacant(&dir).unwrap());

        let mut staging = Staging::begin(&dir).unwrap();
        staging.write("x", b"3").unwrap();
        drop(staging);
        assert_eq!(
            std::fs::read(dir.join("x")).unwrap(),
            b"1",
            "what was there before stays"
        );

        let mut staging = Staging::begin(&dir).unwrap();
        staging.write("x", b"3").unwrap();
        staging.commit(&["y", "z"]).unwrap();
        assert_eq!(
            (names(&dir), std::fs::read(dir.join("x")).unwrap()),
            (vec!["x".into()], b"3".to_vec())
        );
    }

    #[test]
    fn two_runs_do_not_share_a_file() {
        let root = tempfile::tempdir().unwrap();
        let mut first = Staging::begin(root.path()).unwrap();
        let _file = first.create("x").unwrap();
        let mut second = Staging::begin(root.path()).unwrap();
        let error = second.create("x").unwrap_err().to_string();
        assert!(error.contains("another program is writing"), "{error}");
        drop(second);
        assert_eq!(names(root.path()), [".x.partial"], "the first run's file stays");
    }
}
