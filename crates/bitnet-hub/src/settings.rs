//! What the environment says: the variables of Python's `huggingface_hub`, with its defaults.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// The hub and the cache.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the cache, which need not exist.
    pub cache: PathBuf,
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// Who asks. It is sent to the endpoint, and to no other host that the endpoint names.
    pub token: Option<Secret>,
    /// Whether connections are forbidden.
    pub offline: bool,
    /// Whether the cache may consist of symbolic links; otherwise files are moved and copied.
    pub symlinks: bool,
    /// How long to wait for the next byte.
    pub timeout: Duration,
    /// Certificates to trust instead of Mozilla's.
    pub certificates: Option<PathBuf>,
}

/// A token, which is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

impl Secret {
    /// A token of visible ASCII characters, which is what a header can carry.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let visible = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        visible.then(|| Self(text.to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

const HUB: &str = "https://huggingface.co";

impl Settings {
    /// Reads `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_SYMLINKS`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_DOWNLOAD_TIMEOUT`, `SSL_CERT_FILE`, their older names, and the file of the token.
    ///
    /// # Errors
    /// When a variable holds what it must not, no folder for the cache can be named, or the token's file cannot be read.
    pub fn from_env() -> Result<Self> {
        Self::read(&|name| std::env::var_os(name), std::env::home_dir())
    }

    fn read(variable: &dyn Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Result<Self> {
        let raw = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| raw(name).map(|value| expand(Path::new(&value), home.as_deref()));
        let text = |name: &str| match raw(name).map(OsString::into_string) {
            Some(Err(_)) => Err(environment(name, "is not Unicode")),
            Some(Ok(text)) => Ok(Some(text)),
            None => Ok(None),
        };
        let is_true = |name: &str| {
            raw(name).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_string_lossy().to_lowercase().as_str())
            })
        };

        let folder = match (path("HF_HOME"), path("XDG_CACHE_HOME"), &home) {
            (Some(folder), ..) => Some(folder),
            (None, Some(caches), _) => Some(caches.join("huggingface")),
            (None, None, Some(home)) => Some(home.join(".cache").join("huggingface")),
            (None, None, None) => None,
        };
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(folder.as_ref()?.join("hub")))
            .ok_or_else(|| environment("HF_HOME", "is not set, and there is no home folder"))?;

        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| HUB.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(environment("HF_ENDPOINT", "must begin with https:// or http://"));
        }

        let mut token = None;
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if token.is_none()
                && let Some(text) = text(name)?.filter(|text| !text.trim().is_empty())
            {
                let secret = Secret::new(&text);
                token = Some(secret.ok_or_else(|| environment(name, "holds characters that no token has"))?);
            }
        }
        if token.is_none() && !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            let file = path("HF_TOKEN_PATH").or_else(|| Some(folder.as_ref()?.join("token")));
            token = file.map_or(Ok(None), |file| token_of(&file))?;
        }

        let timeout = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            None => 30,
            Some(text) => match text.trim().parse() {
                Ok(seconds @ 1..=86_400) => seconds,
                _ => {
                    return Err(environment(
                        "HF_HUB_DOWNLOAD_TIMEOUT",
                        "must be a number of seconds, 1 or more",
                    ));
                }
            },
        };
        Ok(Self {
            cache,
            endpoint,
            token,
            // As in Python, the second counts where the first is not set.
            offline: is_true(if raw("HF_HUB_OFFLINE").is_some() {
                "HF_HUB_OFFLINE"
            } else {
                "TRANSFORMERS_OFFLINE"
            }),
            symlinks: !is_true("HF_HUB_DISABLE_SYMLINKS"),
            timeout: Duration::from_secs(timeout),
            certificates: path("SSL_CERT_FILE"),
        })
    }

    /// The hub, for messages.
    #[must_use]
    pub fn host(&self) -> &str {
        self.endpoint
            .split_once("://")
            .map_or(&*self.endpoint, |(_, host)| host)
    }
}

/// Most bytes of a file with a token.
const MAX_TOKEN: u64 = 64 << 10;

fn token_of(file: &Path) -> Result<Option<Secret>> {
    let text = bitnet_files::read(file, MAX_TOKEN).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    match text {
        Ok(text) if text.trim().is_empty() => Ok(None),
        // The mark of bytes that are no text is a character that no token has.
        Ok(text) => match Secret::new(&text) {
            None => Err(environment(
                &file.display().to_string(),
                "holds characters that no token has",
            )),
            secret => Ok(secret),
        },
        // A folder in whose place a file could be is no token either.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io(file, source)),
    }
}

fn environment(variable: &str, why: &str) -> Error {
    Error::Environment {
        variable: variable.to_owned(),
        why: why.to_owned(),
    }
}

/// `~` is the home folder, which a shell writes out in most places but not in all.
fn expand(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings> {
        let get = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Settings::read(&get, Some(PathBuf::from("/home/a")))
    }

    #[test]
    fn folders_follow_pythons_order() {
        let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache;
        assert_eq!(cache(&[]), Path::new("/home/a/.cache/huggingface/hub"));
        let mut variables = vec![("XDG_CACHE_HOME", "/x")];
        assert_eq!(cache(&variables), Path::new("/x/huggingface/hub"));
        variables.push(("HF_HOME", "~/h"));
        assert_eq!(cache(&variables), Path::new("/home/a/h/hub"));
        variables.push(("HUGGINGFACE_HUB_CACHE", "/old"));
        assert_eq!(cache(&variables), Path::new("/old"));
        variables.push(("HF_HUB_CACHE", "/new"));
        assert_eq!(cache(&variables), Path::new("/new"));
    }

    #[test]
    fn a_token_comes_from_the_environment_or_its_file_and_is_not_printed() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(read(&[("HF_HOME", home)]).unwrap().token, None);
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let token =
            |variables: &[(&str, &str)]| read(&[&[("HF_HOME", home)], variables].concat()).unwrap().token;
        assert_eq!(token(&[]).unwrap().reveal(), "hf_file");
        assert_eq!(token(&[("HF_TOKEN", " hf_a ")]).unwrap().reveal(), "hf_a");
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let settings = read(&[("HF_HOME", home)]).unwrap();
        assert!(!format!("{settings:?}").contains("hf_file"));
        let error = read(&[("HF_TOKEN", "a\nb")]).unwrap_err().to_string();
        assert_eq!(error, "HF_TOKEN holds characters that no token has");
    }

    #[test]
    fn wrong_values_are_named() {
        let settings = read(&[
            ("HF_ENDPOINT", "http://localhost:1/"),
            ("TRANSFORMERS_OFFLINE", "YES"),
        ])
        .unwrap();
        assert_eq!(
            (settings.endpoint.as_str(), settings.offline),
            ("http://localhost:1", true)
        );
        assert_eq!(settings.host(), "localhost:1");
        assert!(
            !read(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")])
                .unwrap()
                .offline
        );
        for (name, value) in [("HF_ENDPOINT", "localhost"), ("HF_HUB_DOWNLOAD_TIMEOUT", "0")] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
