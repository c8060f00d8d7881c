//! Files that appear in a folder all together or not at all, and single files that replace another at once.
//!
//! Each is written under a name of its own beside its final one, and only when all are on the disk are they renamed. Until
//! then, whatever fails, dropping the staging removes what it wrote. The folder is locked from the first file until all
//! have their names, so that of several runs that write into it one goes on and the others are refused.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Ends the names of files that are not complete; a crash can leave them, and the next run removes them.
const PARTIAL: &str = ".partial";

/// Files on their way into a folder.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PathBuf,
    /// Folders made for this, outermost first.
    created: Vec<PathBuf>,
    names: Vec<String>,
    /// Held until the last file has its name; where there are no locks, an open file or nothing.
    _lock: Option<File>,
}

impl Staging {
    /// Starts in `dir`, which is made if need be, and locks it.
    pub(crate) fn begin(dir: &Path) -> Result<Self> {
        // Without a slash at the end, which would make a link what it leads to.
        let named: PathBuf = dir.components().collect();
        if named.is_symlink() {
            let target = std::fs::read_link(&named).unwrap_or_default();
            return Err(Error::Request(format!(
                "{}: is a link to {}, and what it leads to is not written to; name the folder itself",
                named.display(),
                target.display()
            )));
        }
        let missing = dir
            .ancestors()
            .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let mut created: Vec<PathBuf> = missing.map(Into::into).collect();
        created.reverse();
        let mut staging = Self {
            dir: dir.into(),
            created,
            names: Vec::new(),
            _lock: None,
        };
        // A run that failed may remove the folder between these two steps.
        for _ in 0..100 {
            std::fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))?;
            match lock(dir) {
                Ok(Locked::Yes(file)) => {
                    staging._lock = Some(file);
                    return Ok(staging);
                }
                Ok(Locked::Impossible) => return Ok(staging),
                Ok(Locked::Gone) => {}
                Err(error) => {
                    // What another run is writing into is not this one's to remove.
                    staging.created.clear();
                    return Err(error);
                }
            }
        }
        Err(Error::io(dir, ErrorKind::NotFound.into()))
    }

    /// Begins a file. One of that name that an earlier run left is removed, and so is a link in its place.
    pub(crate) fn create(&mut self, name: &str) -> Result<File> {
        check_replaceable(&self.dir.join(name))?;
        let file = create_anew(&self.partial(name))?;
        self.names.push(name.into());
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
                Err(source) if source.kind() != ErrorKind::NotFound => {
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
        sync_folder(&self.dir)
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

/// A file on its way to a name of its own, in a folder that others may write to at the same time.
#[derive(Debug)]
pub(crate) struct StagedFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl StagedFile {
    /// Begins the file `path`. A folder, a device or a pipe of that name is refused, and a link as well: whoever can plant
    /// one would choose what is overwritten.
    pub(crate) fn begin(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            let message = "not the name of a file; give one such as result.safetensors";
            return Err(Error::Request(format!("{}: {message}", path.display())));
        };
        check_replaceable(path)?;
        if let Some(dir) = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir())
        {
            return Err(Error::Request(format!(
                "{}: no such folder; make it first",
                dir.display()
            )));
        }
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}{PARTIAL}", std::process::id()));
        let partial = path.with_file_name(partial);
        let file = create_anew(&partial)?;
        Ok(Self {
            path: path.into(),
            partial,
            file,
        })
    }

    /// Where the content goes.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name, in the place of one that had it.
    pub(crate) fn commit(self) -> Result<()> {
        let io = |source| Error::io(&self.path, source);
        self.file.sync_all().map_err(io)?;
        check_replaceable(&self.path)?;
        std::fs::rename(&self.partial, &self.path).map_err(io)?;
        match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => sync_folder(dir),
            _ => sync_folder(Path::new(".")),
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // After the renaming there is none.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Writes a whole file, which appears when it is complete and replaces one of that name.
///
/// # Errors
/// When `path` is a folder, a device, a pipe or a link, or the file cannot be written.
pub fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut staged = StagedFile::begin(path)?;
    staged
        .file()
        .write_all(content)
        .map_err(|source| Error::io(path, source))?;
    staged.commit()
}

/// Refuses what must not be replaced by a file: everything but a file.
fn check_replaceable(path: &Path) -> Result<()> {
    bitnet_files::check_replaceable(path).map_err(|source| match source.get_ref() {
        Some(message) => Error::Request(format!("{}: {message}", path.display())),
        None => Error::io(path, source),
    })
}

/// Makes a file that was not there: no link is followed, and what has the name is removed first.
fn create_anew(path: &Path) -> Result<File> {
    let io = |source| Error::io(path, source);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(io)
}

/// Puts renamed files on the disk, where folders can be synchronized.
fn sync_folder(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| Error::io(dir, source))?;
    }
    Ok(())
}

/// What came of locking a folder.
enum Locked {
    /// It is locked as long as this is open.
    Yes(File),
    /// The folder that was opened is no longer the one of that name.
    Gone,
    /// The file system has no locks.
    Impossible,
}

/// Locks the folder itself, so that no file has to be left for the next run to lock.
#[cfg(unix)]
fn lock(dir: &Path) -> Result<Locked> {
    use std::os::unix::fs::MetadataExt;
    let gone = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => Ok(Locked::Gone),
        _ => Err(Error::io(dir, error)),
    };
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(error) => return gone(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy(dir)),
        Err(TryLockError::Error(_)) => return Ok(Locked::Impossible),
    }
    let opened = file.metadata().map_err(|error| Error::io(dir, error))?;
    match std::fs::metadata(dir) {
        Ok(named) if (named.dev(), named.ino()) == (opened.dev(), opened.ino()) => Ok(Locked::Yes(file)),
        Ok(_) => Ok(Locked::Gone),
        Err(error) => gone(error),
    }
}

/// Locks a file in the folder, since folders cannot be opened everywhere. The system removes it with the last program
/// that has it open.
#[cfg(windows)]
fn lock(dir: &Path) -> Result<Locked> {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
    let path = dir.join(format!(".lock{PARTIAL}"));
    let open = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(FILE_FLAG_DELETE_ON_CLOSE)
        .open(&path);
    let file = match open {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Locked::Gone),
        // Another program is about to remove it.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(busy(dir)),
        Err(error) => return Err(Error::io(path, error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Locked::Yes(file)),
        Err(TryLockError::WouldBlock) => Err(busy(dir)),
        Err(TryLockError::Error(_)) => Ok(Locked::Impossible),
    }
}

/// Systems of neither kind have no locks that the standard library knows.
#[cfg(not(any(unix, windows)))]
fn lock(_: &Path) -> Result<Locked> {
    Ok(Locked::Impossible)
}

fn busy(dir: &Path) -> Error {
    Error::Request(format!(
        "{}: another program is writing into this folder; let it finish, or name another folder",
        dir.display()
    ))
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
    fn two_runs_do_not_share_a_folder() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("new");
        let mut first = Staging::begin(&dir).unwrap();
        first.write("x", b"1").unwrap();
        let error = Staging::begin(&dir).unwrap_err().to_string();
        assert!(error.contains("another program is writing"), "{error}");
        assert_eq!(names(&dir), [".x.partial"], "the first run's file stays");
        first.commit(&[]).unwrap();
        let mut second = Staging::begin(&dir).unwrap();
        second.write("x", b"2").unwrap();
        second.commit(&[]).unwrap();
        assert_eq!(
            (names(&dir), std::fs::read(dir.join("x")).unwrap()),
            (vec!["x".into()], b"2".to_vec())
        );
    }

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        replace_file(&path, b"1").unwrap();
        let mut staged = StagedFile::begin(&path).unwrap();
        staged.file().write_all(b"2").unwrap();
        assert_eq!(names(root.path()).len(), 2);
        drop(staged);
        assert_eq!(
            (names(root.path()), std::fs::read(&path).unwrap()),
            (vec!["x".into()], b"1".to_vec())
        );
        replace_file(&path, b"3").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"3");
        assert!(
            replace_file(root.path(), b"4")
                .unwrap_err()
                .to_string()
                .contains("is a folder")
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        let victim = root.path().join("victim");
        std::fs::write(&victim, b"kept").unwrap();
        let link = root.path().join("link");
        symlink(&victim, &link).unwrap();
        let error = replace_file(&link, b"1").unwrap_err().to_string();
        assert!(error.contains("is a link to ") && link.is_symlink(), "{error}");

        let dir = root.path().join("out");
        std::fs::create_dir(&dir).unwrap();
        let to_dir = root.path().join("to_dir");
        symlink(&dir, &to_dir).unwrap();
        for named in [to_dir.clone(), to_dir.join("")] {
            let error = Staging::begin(&named).unwrap_err().to_string();
            assert!(error.contains("is a link to "), "{error}");
        }
        symlink(&victim, dir.join(".x.partial")).unwrap();
        let mut staging = Staging::begin(&dir).unwrap();
        staging.write("x", b"1").unwrap();
        staging.commit(&[]).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"kept");
        assert_eq!(std::fs::read(dir.join("x")).unwrap(), b"1");
    }
}
