//! Regular files and nothing in their place: what is read has a bound and an end, and what is written replaces no device, no pipe and
//! no link.
//!
//! Errors carry no path, since callers name it in their own; where this crate has more to say than the system, the error holds a
//! message ([`std::io::Error::get_ref`]) and its kind stays what it was.
//!
//! ```
//! let path = std::path::Path::new("Cargo.toml");
//! assert!(!bitnet_files::read(path, 1 << 20)?.is_empty());
//! assert!(bitnet_files::read(path, 1).is_err());
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

use std::fs::{File, FileType, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Opens a regular file to read it.
///
/// # Errors
/// When there is none, what has the name is a folder, a pipe or a device, or a link that leads nowhere, or it cannot be opened.
pub fn open(path: &Path) -> Result<File> {
    let refuse = |kind: FileType| {
        let found = if kind.is_dir() {
            "a folder"
        } else {
            "a pipe or device"
        };
        Error::new(
            ErrorKind::InvalidInput,
            format!("is {found}, where a file is expected"),
        )
    };
    // Asked before opening: opening a pipe would wait for its other end, and opening a device may do something.
    let kind = match std::fs::metadata(path) {
        Ok(attributes) => attributes.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(match std::fs::read_link(path) {
                Ok(target) => Error::new(
                    ErrorKind::NotFound,
                    format!("is a link to {}, which is not there", target.display()),
                ),
                Err(_) => error,
            });
        }
        Err(error) => return Err(error),
    };
    if !kind.is_file() {
        return Err(refuse(kind));
    }
    let file = without_waiting(OpenOptions::new().read(true), true).open(path)?;
    // Somebody may have put something else there between the two.
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind => Err(refuse(kind)),
    }
}

/// All bytes of the regular file `path`, of which there may be at most `limit`.
///
/// # Errors
/// As for [`open`], when it is larger than `limit`, and when it cannot be read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let too_large = |size: u64| {
        let message = format!("has {size} bytes or more; a file of its kind has at most {limit}");
        Error::new(ErrorKind::FileTooLarge, message)
    };
    let size = file.metadata()?.len();
    if size > limit {
        return Err(too_large(size));
    }
    // Files of the system, such as those of /proc, say 0 whatever they hold, and any file can grow while it is read.
    let mut bytes = Vec::with_capacity(size as usize);
    (&file).take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        read if read > limit => Err(too_large(read)),
        _ => Ok(bytes),
    }
}

/// Opens the regular file `path` to read it and to write to it, and makes it where it is not there.
///
/// # Errors
/// As for [`check_replaceable`], and when it cannot be opened.
pub fn open_to_write(path: &Path) -> Result<File> {
    check_replaceable(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = without_waiting(&mut options, false).open(path)?;
    // The open file is asked, not the name, which may be another's by now.
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(not_a_file()),
    }
}

/// Refuses what must not be replaced by a file, or written to as one: everything but a file. What is not there is no obstacle.
///
/// # Errors
/// When `path` is a folder, a link, a pipe or a device, and when the system does not tell.
pub fn check_replaceable(path: &Path) -> Result<()> {
    let refuse = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_file() => Ok(()),
        Ok(found) if found.is_dir() => refuse("is a folder; give the name of a file".into()),
        Ok(found) if found.is_symlink() => {
            let target = std::fs::read_link(path).unwrap_or_default();
            refuse(format!(
                "is a link to {}, which is not replaced; name a file",
                target.display()
            ))
        }
        Ok(_) => Err(not_a_file()),
    }
}

fn not_a_file() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "is a pipe or device, which is not replaced; give the name of a file",
    )
}

/// Whether the name `path` is still that of the open `file`.
#[cfg(unix)]
#[must_use]
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (open, there) = (
        file.metadata().map(identity),
        std::fs::metadata(path).map(identity),
    );
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

/// Whether the name `path` is still that of the open `file`: a file that is open is not removed.
#[cfg(not(unix))]
#[must_use]
pub fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Opening waits for no other end of a pipe, and follows links only where it may.
#[cfg(unix)]
fn without_waiting(options: &mut OpenOptions, follows: bool) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(libc::O_NONBLOCK | if follows { 0 } else { libc::O_NOFOLLOW })
}

#[cfg(not(unix))]
fn without_waiting(options: &mut OpenOptions, _follows: bool) -> &mut OpenOptions {
    options
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_files_are_read_and_written() {
        let root = tempfile::tempdir().unwrap();
        let [file, link, nowhere, fifo] =
            ["file", "link", "nowhere", "fifo"].map(|name| root.path().join(name));
        std::fs::write(&file, "text").unwrap();
        symlink(&file, &link).unwrap();
        symlink("missing", &nowhere).unwrap();
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(read(&link, 4).unwrap(), b"text");
        assert_eq!(read(&link, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(&nowhere, 3).unwrap_err().kind(), ErrorKind::NotFound);
        for place in [root.path(), &fifo, Path::new("/dev/zero")] {
            let message = read(place, u64::MAX).unwrap_err().to_string();
            assert!(message.contains("where a file is expected"), "{message}");
        }
        for place in [root.path(), &fifo, &link, &nowhere, Path::new("/dev/full")] {
            assert_eq!(
                open_to_write(place).unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{}",
                place.display()
            );
        }
        // A link that is planted after the check is not followed either.
        let mut options = OpenOptions::new();
        assert!(
            without_waiting(options.read(true).write(true), false)
                .open(&link)
                .is_err()
        );

        let mut opened = open_to_write(&file).unwrap();
        assert!(is_at(&opened, &file) && !is_at(&opened, &fifo));
        opened.write_all(b"TE").unwrap();
        assert_eq!(read(&file, 4).unwrap(), b"TExt");
        drop(open_to_write(&root.path().join("new")).unwrap());
        assert_eq!(read(&root.path().join("new"), 4).unwrap(), b"");
    }
}
