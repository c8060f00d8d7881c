//! What is told of a pull while it goes on.

/// Something that a person may want to see.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The hub was asked; now files are fetched.
    Begins {
        /// The commit that the revision is at.
        commit: &'a str,
        /// Bytes of the files that are not in the cache yet, as far as they are known.
        bytes: u64,
    },
    /// Bytes arrived.
    Fetching {
        /// The file.
        file: &'a str,
        /// Bytes of all files that are here.
        done: u64,
        /// Bytes of all files.
        total: u64,
    },
    /// A whole file is read to compare its digest.
    Checking {
        /// The file.
        file: &'a str,
    },
    /// The hub announced no digest of a file: only its size is known to be right.
    Unchecked {
        /// The file.
        file: &'a str,
    },
    /// Nothing happens for a while.
    Waiting {
        /// Why.
        why: &'a str,
        /// For how long, where that is known.
        seconds: Option<u64>,
    },
}

/// Who is told.
pub(crate) type Watch<'w> = &'w mut dyn FnMut(Event<'_>);
