//! The crate's error type.

use crate::simd::Simd;

/// What can go wrong while setting up; the arithmetic itself does not fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The instruction set asked for does not exist on this processor.
    #[error("this processor cannot run {wanted}; it can run {}", Simd::names(available))]
    Simd {
        /// The one asked for.
        wanted: Simd,
        /// The ones this processor has.
        available: Vec<Simd>,
    },
    /// The system did not give memory.
    #[error("memory for {what} cannot be had: {}", size(*bytes))]
    Memory {
        /// What it was for.
        what: &'static str,
        /// The size asked for; `usize::MAX` stands for every size past it.
        bytes: usize,
    },
    /// Sizes that do not fit each other.
    #[error("{what}: found {found}, expected {expected}")]
    Shape {
        /// Which size.
        what: &'static str,
        /// What was given.
        found: usize,
        /// What fits.
        expected: usize,
    },
    /// More threads than a processor can use.
    #[error("{wanted} threads are too many: at most {max} can be used")]
    Threads {
        /// Threads asked for.
        wanted: usize,
        /// The most there can be.
        max: usize,
    },
    /// The system does not tell which processors are near which memory.
    #[error("threads cannot be kept on memory nodes here ({source}); leave their places to the system")]
    Numa {
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("worker thread {index} of {n_threads} cannot be started: {source}")]
    Thread {
        /// Which one.
        index: usize,
        /// Threads asked for.
        n_threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Fails unless `found` is `expected`.
pub(crate) fn check_size(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::Shape {
            what,
            found,
            expected,
        })
    }
}

/// A size for people.
fn size(bytes: usize) -> String {
    match bytes {
        usize::MAX => "more than there are addresses".to_owned(),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
