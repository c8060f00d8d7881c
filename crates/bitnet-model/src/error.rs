//! The crate's error type: every variant names the thing at fault, what was found and what to do.

use std::path::PathBuf;

/// What can go wrong while reading, building or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read and its content cannot be used.
    #[error("{path}: {message}")]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, what was expected and what to do.
        message: String,
    },
    /// The checkpoint is well formed, but of a kind this engine does not run.
    #[error("{path}: not supported: {message}")]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What was found and which values are supported.
        message: String,
    },
    /// The weights have more magnitudes than ternary ones have.
    #[error("{path}: not supported: {message}")]
    NotTernary {
        /// The file.
        path: PathBuf,
        /// Which tensor, what was found, and why it must be ternary.
        message: String,
    },
    /// An output would take the place of something, and may not.
    #[error("{path}: {message}")]
    Occupied {
        /// The file or folder.
        path: PathBuf,
        /// What is there and what to do.
        message: String,
    },
    /// A request that cannot be carried out: too long, out of range, contradictory.
    #[error("{0}")]
    Request(String),
    /// The caller broke the work off.
    #[error("interrupted; nothing of it was kept")]
    Cancelled,
    /// A sequence would have more tokens than the context holds.
    #[error(
        "the context holds {have} tokens, and {needed} are needed; shorten the prompt, or load the model for a longer context"
    )]
    ContextFull {
        /// Tokens that the sequence would have, at the least.
        needed: usize,
        /// Tokens that it can have.
        have: usize,
    },
    /// The cache of keys and values has no room now; there may be when other sequences end.
    #[error(
        "{needed} pages of keys and values are needed and {available} are free: too many sequences at once, or too long ones"
    )]
    OutOfPages {
        /// Pages that were to be taken.
        needed: usize,
        /// Pages that nobody holds.
        available: usize,
    },
    /// A device has too little memory.
    #[error("not enough memory for {what}: {} are needed and {} can be had", size(*needed), size(*available))]
    OutOfMemory {
        /// What it is for.
        what: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// What a model computed is no number: its weights are damaged, or a device computes wrong.
    #[error("{0}")]
    Damaged(String),
    /// There is no device as it was asked for: no driver, no GPU of that number, no such instruction set.
    #[error(transparent)]
    NoDevice(Source),
    /// A device refused or failed; what it said.
    #[error(transparent)]
    DeviceFailed(Source),
    /// A device cannot do what was asked of it.
    #[error("{0}")]
    Device(String),
}

/// An error of a device's own crate.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    let mib = bytes.div_ceil(1 << 20);
    if bytes == u64::MAX {
        "more bytes than can be counted".to_owned()
    } else if mib < 10 << 10 {
        format!("{mib} MiB")
    } else {
        format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
    }
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }

    /// An [`Error::Invalid`] for `path`.
    pub fn invalid(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.into(),
            message: message.into(),
        }
    }

    /// An [`Error::Unsupported`] for `path`.
    pub fn unsupported(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.into(),
            message: message.into(),
        }
    }
}
