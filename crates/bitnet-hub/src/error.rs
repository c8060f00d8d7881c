//! What can go wrong between here and the hub, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model could not be found, fetched or removed. [`Error::remedy`] tells what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no name of a model.
    #[error("`{text}` does not name a model of the hub: {why}")]
    Name {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A variable of the environment holds what it must not.
    #[error("{variable} {why}")]
    Environment {
        /// Its name, or the file that stands for it.
        variable: String,
        /// What is wrong with it.
        why: String,
    },
    /// The hub has no such model, or does not show it to whoever asks.
    #[error("{name}: {host} has no such model, or does not show it{}", if *.token { " to the owner of this token" } else { " without a token" })]
    NoModel {
        /// The model.
        name: String,
        /// The hub.
        host: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The model has no such revision.
    #[error("{name}: there is no revision `{revision}`")]
    NoRevision {
        /// The model.
        name: String,
        /// What was asked for.
        revision: String,
    },
    /// The model has no such file.
    #[error("{name}: no file of it is called or quantized as `{choice}`")]
    NoFile {
        /// The model.
        name: String,
        /// What was asked for.
        choice: String,
        /// The files that can be asked for.
        files: Vec<String>,
    },
    /// Several files fit what was asked for.
    #[error("{name}: {} GGUF files fit: {}", .files.len(), .files.join(", "))]
    Ambiguous {
        /// The model.
        name: String,
        /// They.
        files: Vec<String>,
    },
    /// Files of a split GGUF are missing.
    #[error("{name}: the split GGUF lacks {part}")]
    NoPart {
        /// The model.
        name: String,
        /// The first file that is missing.
        part: String,
    },
    /// There are no weights that could be read.
    #[error("{name}: holds neither safetensors with a config.json nor GGUF files")]
    NoWeights {
        /// The model.
        name: String,
    },
    /// A file of the model is not what its name says.
    #[error("{name}: {file} {why}")]
    Content {
        /// The model.
        name: String,
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The authors give the model to those who agree to their terms.
    #[error("{name}: the model is gated{}", if *.token { ", and the owner of this token has no access yet" } else { "; it needs a token" })]
    Gated {
        /// The model.
        name: String,
        /// The page that asks for agreement.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub does not accept the token.
    #[error("{name}: {host} refuses the token")]
    Token {
        /// The model.
        name: String,
        /// The hub.
        host: String,
    },
    /// Too many requests.
    #[error("{name}: {host} answers no more requests for now (429){}", that_long(.wait))]
    RateLimited {
        /// The model.
        name: String,
        /// Who says so.
        host: String,
        /// For how many seconds, where it says that.
        wait: Option<u64>,
    },
    /// Another answer than the one that was asked for.
    #[error("{name}: {host} answers {status} for {what}")]
    Status {
        /// The model.
        name: String,
        /// Who says so.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
    },
    /// An answer that makes no sense.
    #[error("{name}: {host} is no hub as this program knows it: {why}")]
    Answer {
        /// The model.
        name: String,
        /// Who answered.
        host: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// No connection.
    #[error("{name}: cannot reach {host}: {why}")]
    Unreachable {
        /// The model.
        name: String,
        /// Who was asked.
        host: String,
        /// What happened.
        why: String,
    },
    /// The connection ends early, again and again.
    #[error("{name}: the connection to {host} was cut {tries} times in a row at byte {at} of {file}: {why}")]
    Cut {
        /// The model.
        name: String,
        /// The hub.
        host: String,
        /// The file.
        file: String,
        /// Bytes that are here.
        at: u64,
        /// Attempts that brought nothing.
        tries: u32,
        /// What happened last.
        why: String,
    },
    /// Bytes that are not those that the hub announced.
    #[error("{name}: {file} arrived damaged: its digest is {found}, and {host} announced {expected}")]
    Damaged {
        /// The model.
        name: String,
        /// The file.
        file: String,
        /// The hub.
        host: String,
        /// The digest that was announced.
        expected: String,
        /// The digest of what arrived.
        found: String,
    },
    /// No room.
    #[error("{}: the disk is full: {file} needs {needed} bytes more{}", .folder.display(), that_is_free(.free))]
    DiskFull {
        /// The folder that was written to.
        folder: PathBuf,
        /// The file.
        file: String,
        /// What is still to be written.
        needed: u64,
        /// What is free, where that is known.
        free: Option<u64>,
    },
    /// The model, or a part of it, is not in the cache, and connections are forbidden.
    #[error("{name}: {} in {}, and HF_HUB_OFFLINE forbids to fetch it", that_is_missing(.missing), .cache.display())]
    Offline {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// The file that is missing, where others are there.
        missing: Option<String>,
    },
    /// The cache holds nothing of that name.
    #[error("{name}: not in {}", .cache.display())]
    NotCached {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Another process is fetching the model.
    #[error("{name}: another process is fetching it")]
    Busy {
        /// The model.
        name: String,
    },
    /// The file system says no.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the file system at `path`.
    pub(crate) fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_owned();
        Self::Io { path, source }
    }

    /// What to do about it, in a sentence without a period.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Name { .. } => "names are owner/name, owner/name:file.gguf, owner/name:I2_S, each also with @revision".into(),
            Self::Environment { .. } => "correct it, or remove it from the environment".into(),
            Self::NoModel { token, .. } => {
                let private = if *token {
                    "the token in HF_TOKEN or its file must belong to somebody who may read it"
                } else {
                    "a private model needs HF_TOKEN or `hf auth login`"
                };
                format!("check the spelling; {private}")
            }
            Self::NoRevision { .. } => "revisions are branches, tags and commits; without @ it is main".into(),
            Self::NoFile { files, .. } if files.is_empty() => {
                "it has no GGUF files; name it without a file or quantization".into()
            }
            Self::NoFile { files, .. } => format!("it has {}", files.join(", ")),
            Self::Ambiguous { name, files } => {
                let first = files.first().map_or("file.gguf", String::as_str);
                format!("name one: {name}:{first}")
            }
            Self::NoPart { .. } | Self::Content { .. } => "tell its authors, or use another revision".into(),
            Self::NoWeights { .. } => {
                "pickled checkpoints (.bin, .pt) are not read; look for a repository with safetensors or GGUF".into()
            }
            Self::Gated { page, token: false, .. } => {
                format!("agree to its terms at {page}, then set HF_TOKEN or run `hf auth login`")
            }
            Self::Gated { page, .. } => format!("ask for access at {page}; some authors decide by hand"),
            Self::Token { .. } => "make a new one at https://huggingface.co/settings/tokens and set HF_TOKEN".into(),
            Self::RateLimited { .. } => "try again later; with HF_TOKEN the limits are higher".into(),
            Self::Status { status: 500.., .. } => "the hub has a problem; try again later".into(),
            Self::Status { .. } | Self::Answer { .. } => {
                "HF_ENDPOINT and the proxy of the environment must lead to a Hugging Face Hub".into()
            }
            Self::Unreachable { .. } => "check the network, HTTPS_PROXY and HF_ENDPOINT; behind a proxy that \
                 intercepts TLS, SSL_CERT_FILE names its certificate; what is in the cache runs without a connection"
                .into(),
            Self::Cut { .. } => "what arrived is kept; the same command goes on from there".into(),
            Self::Damaged { .. } => {
                "it was removed; fetch it again, and if that does not help, ask whoever runs the proxy or mirror".into()
            }
            Self::DiskFull { .. } => "free some space or let HF_HUB_CACHE name another disk; the same command goes on \
                 with what arrived"
                .into(),
            Self::Offline { .. } => "fetch it once with a connection and without HF_HUB_OFFLINE".into(),
            Self::NotCached { .. } => "HF_HUB_CACHE and HF_HOME name other places".into(),
            Self::Busy { .. } => "let it finish, or end it".into(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "HF_HUB_CACHE names another folder".into()
            }
            Self::Io { .. } => "HF_HUB_CACHE names another place".into(),
        }
    }
}

fn that_long(wait: &Option<u64>) -> String {
    wait.map_or_else(String::new, |wait| format!(" for {wait} s"))
}

fn that_is_free(free: &Option<u64>) -> String {
    free.map_or_else(String::new, |free| format!(", and {free} are free"))
}

fn that_is_missing(missing: &Option<String>) -> String {
    let what = |file: &String| format!("{file} is missing");
    missing.as_ref().map_or_else(|| "not".into(), what)
}
