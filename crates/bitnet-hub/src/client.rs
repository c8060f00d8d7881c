//! HTTP to the hub: the only code that opens connections.
//!
//! Redirects are followed here and not by the HTTP library, so that the token goes to the hub and to nobody else.

use std::io::Read;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::choose::is_file_name;
use crate::digest::Digest;
use crate::event::{Event, Watch};
use crate::name::is_commit;
use crate::{Error, ModelName, Result, Settings};

/// Redirects of one request.
const MAX_REDIRECTS: usize = 10;

/// Attempts at a request that fails for a reason that may pass.
pub(crate) const MAX_TRIES: u32 = 5;

/// The longest that is waited because the hub asks for it.
const MAX_WAIT: u64 = 120;

/// The longest list of files that is read.
const MAX_LIST: u64 = 64 << 20;

/// Everything but what needs no escape in a part of a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A connection to the hub on behalf of one model.
#[derive(Debug)]
pub(crate) struct Client<'s> {
    agent: Agent,
    settings: &'s Settings,
    name: &'s ModelName,
}

/// What the hub tells of a revision.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<Listed>,
}

/// What it tells of a file in it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    pub(crate) digest: Option<Digest>,
}

/// What the headers of a file tell.
#[derive(Debug)]
pub(crate) struct Entity {
    pub(crate) etag: String,
    pub(crate) size: Option<u64>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

impl<'s> Client<'s> {
    /// Prepares connections; opens none.
    pub(crate) fn new(settings: &'s Settings, name: &'s ModelName) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            tls = tls.root_certs(roots(path)?);
        }
        let soon = Some(Duration::from_secs(10));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(soon)
            .timeout_connect(soon)
            .timeout_recv_response(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout))
            .timeout_per_write(Some(settings.timeout))
            .user_agent(concat!("bitnet/", env!("CARGO_PKG_VERSION")))
            // The bytes of a file as they are: compressed ones have another length and no ranges.
            .accept_encoding("identity")
            .tls_config(tls.build());
        Ok(Self {
            agent: config.build().new_agent(),
            settings,
            name,
        })
    }

    /// The files of the revision.
    pub(crate) fn list(&self, watch: Watch<'_>) -> Result<Listing> {
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.settings.endpoint,
            self.name.repo(),
            escape(self.name.revision())
        );
        let response = self.send(&Method::GET, &url, 0, true, watch)?;
        let response = self.accept(response, "the list of files")?;
        let mut text = Vec::new();
        let mut body = response.into_body().into_reader().take(MAX_LIST + 1);
        body.read_to_end(&mut text)
            .map_err(|error| self.unreachable(self.settings.host(), &error.to_string()))?;
        if text.len() as u64 > MAX_LIST {
            return Err(self.nonsense("its list of files is endless".to_owned()));
        }
        let info: Info = serde_json::from_slice(&text)
            .map_err(|error| self.nonsense(format!("its list of files cannot be read: {error}")))?;
        if !is_commit(&info.sha) {
            return Err(self.nonsense("its list of files names no commit".to_owned()));
        }
        let files = info
            .siblings
            .into_iter()
            .filter(|file| is_file_name(&file.rfilename));
        let listed = |file: Sibling| Listed {
            size: file.size,
            digest: match file.lfs {
                Some(lfs) => lfs.sha256.as_deref().and_then(Digest::parse),
                None => file.blob_id.as_deref().and_then(Digest::parse),
            },
            name: file.rfilename,
        };
        Ok(Listing {
            commit: info.sha,
            files: files.map(listed).collect(),
        })
    }

    /// What the hub calls the bytes of a file.
    pub(crate) fn head(&self, commit: &str, file: &str, watch: Watch<'_>) -> Result<Entity> {
        let response = self.send(&Method::HEAD, &self.address(commit, file), 0, false, watch)?;
        if !response.status().is_redirection() {
            self.check(&response, file)?;
        }
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag")
            .or_else(|| text(headers, "etag"))
            .unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let is_name = (1..=128).contains(&etag.len())
            && etag
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !is_name {
            return Err(self.nonsense(format!("{file} has no entity tag")));
        }
        let length = || text(headers, "content-length").filter(|_| !response.status().is_redirection());
        let size = text(headers, "x-linked-size").or_else(length);
        Ok(Entity {
            etag: etag.to_owned(),
            size: size.and_then(|size| size.parse().ok()),
        })
    }

    /// The bytes of a file from byte `from` on, and the byte at which they really begin.
    pub(crate) fn get(
        &self,
        commit: &str,
        file: &str,
        from: u64,
        watch: Watch<'_>,
    ) -> Result<(u64, impl Read + use<>)> {
        let response = self.send(&Method::GET, &self.address(commit, file), from, true, watch)?;
        let response = self.accept(response, file)?;
        let begins = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(response.headers(), "content-range").unwrap_or_default();
                range
                    .strip_prefix("bytes ")
                    .and_then(|range| range.split('-').next()?.parse().ok())
            }
            _ => Some(0),
        };
        match begins {
            Some(begins) if begins == from || begins == 0 => Ok((begins, response.into_body().into_reader())),
            _ => Err(self.nonsense(format!("another part of {file} came than was asked for"))),
        }
    }

    fn address(&self, commit: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(escape).collect();
        format!(
            "{}/{}/resolve/{commit}/{}",
            self.settings.endpoint,
            self.name.repo(),
            file.join("/")
        )
    }

    /// Sends a request and follows redirects: to the same origin always, to others if `across`, and where the answer does not
    /// tell yet what the file is.
    fn send(
        &self,
        method: &Method,
        url: &str,
        from: u64,
        across: bool,
        watch: Watch<'_>,
    ) -> Result<Response<Body>> {
        let endpoint = self.settings.endpoint.parse::<Uri>();
        let endpoint = endpoint.map_err(|error| Error::Environment {
            variable: "HF_ENDPOINT".to_owned(),
            why: format!("is no address: {error}"),
        })?;
        let mut uri: Uri = url
            .parse()
            .map_err(|_| self.nonsense("the name makes no address".to_owned()))?;
        for _ in 0..=MAX_REDIRECTS {
            let trusted = origin(&uri) == origin(&endpoint);
            let response = self.attempt(method, &uri, from, trusted, watch)?;
            if !response.status().is_redirection()
                || text(response.headers(), "x-linked-etag").is_some() && !across
            {
                return Ok(response);
            }
            let next = text(response.headers(), "location").and_then(|to| resolve(&uri, to));
            let next = next.ok_or_else(|| self.nonsense("it redirects to nowhere".to_owned()))?;
            if !across && origin(&next) != origin(&uri) && text(response.headers(), "etag").is_some() {
                return Ok(response);
            }
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(self.nonsense("it redirects from https to an open connection".to_owned()));
            }
            uri = next;
        }
        Err(self.nonsense(format!("it redirects more than {MAX_REDIRECTS} times")))
    }

    /// Sends a request, again where what went wrong may pass.
    fn attempt(
        &self,
        method: &Method,
        uri: &Uri,
        from: u64,
        trusted: bool,
        watch: Watch<'_>,
    ) -> Result<Response<Body>> {
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let mut tries = 0;
        loop {
            tries += 1;
            let mut request = Request::builder().method(method).uri(uri);
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            if let Some(token) = self.settings.token.as_ref().filter(|_| trusted) {
                request = request.header("authorization", format!("Bearer {}", token.reveal()));
            }
            let request = request
                .body(())
                .map_err(|_| self.nonsense("the name makes no address".to_owned()))?;
            let wait = match self.agent.run(request) {
                Ok(response) => match response.status().as_u16() {
                    429 => match asked_to_wait(response.headers()) {
                        seconds
                            if tries == MAX_TRIES || seconds.is_some_and(|seconds| seconds > MAX_WAIT) =>
                        {
                            return Err(Error::RateLimited {
                                name: self.name.to_string(),
                                host: host.to_owned(),
                                wait: seconds,
                            });
                        }
                        seconds => {
                            let wait = seconds.map_or_else(|| pause(tries), Duration::from_secs);
                            let why = &format!("{host} asks for a pause (429)");
                            watch(Event::Waiting {
                                why,
                                seconds: Some(wait.as_secs()),
                            });
                            wait
                        }
                    },
                    408 | 500 | 502 | 503 | 504 if tries < MAX_TRIES => {
                        let why = &format!("{host} answers {}", response.status().as_u16());
                        watch(Event::Waiting { why, seconds: None });
                        let asked = asked_to_wait(response.headers()).filter(|&seconds| seconds <= MAX_WAIT);
                        asked.map_or_else(|| pause(tries), Duration::from_secs)
                    }
                    _ => return Ok(response),
                },
                Err(error) if passes(&error) && tries < MAX_TRIES => {
                    watch(Event::Waiting {
                        why: &format!("{host}: {error}"),
                        seconds: None,
                    });
                    pause(tries)
                }
                Err(error) => return Err(self.unreachable(host, &error.to_string())),
            };
            sleep(wait);
        }
    }

    /// A response that has what was asked for, or what is wrong.
    fn accept(&self, response: Response<Body>, what: &str) -> Result<Response<Body>> {
        self.check(&response, what)?;
        Ok(response)
    }

    fn check(&self, response: &Response<Body>, what: &str) -> Result<()> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let (name, host) = (
            self.name.with(None, self.name.revision()).to_string(),
            self.settings.host().to_owned(),
        );
        let token = self.settings.token.is_some();
        let code = text(response.headers(), "x-error-code");
        let message = text(response.headers(), "x-error-message").unwrap_or_default();
        Err(match (status.as_u16(), code) {
            (_, Some("GatedRepo")) => Error::Gated {
                page: format!("{}/{}", self.settings.endpoint, self.name.repo()),
                name,
                token,
            },
            (_, Some("RevisionNotFound")) => Error::NoRevision {
                name: self.name.repo().to_owned(),
                revision: self.name.revision().to_owned(),
            },
            (401, _) if token && message.starts_with("Invalid credentials") => Error::Token { name, host },
            // The hub does not tell apart what is not there and what is private.
            (401, _) | (404, Some("RepoNotFound")) => Error::NoModel { name, host, token },
            (404, None) if what == "the list of files" => Error::NoModel { name, host, token },
            (status, _) => Error::Status {
                name,
                host,
                status,
                what: what.to_owned(),
            },
        })
    }

    fn nonsense(&self, why: String) -> Error {
        Error::Answer {
            name: self.name.to_string(),
            host: self.settings.host().to_owned(),
            why,
        }
    }

    fn unreachable(&self, host: &str, why: &str) -> Error {
        Error::Unreachable {
            name: self.name.to_string(),
            host: host.to_owned(),
            why: why.strip_prefix("io: ").unwrap_or(why).to_owned(),
        }
    }
}

/// How long to wait after that many attempts: half a second, doubled each time.
pub(crate) fn pause(tries: u32) -> Duration {
    Duration::from_millis(250) * 2u32.pow(tries.min(6))
}

/// Whether a connection that failed so may come about a moment later.
fn passes(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut, UnexpectedEof};
    match error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => {
            matches!(
                error.kind(),
                ConnectionReset | ConnectionAborted | Interrupted | TimedOut | UnexpectedEof
            )
        }
        _ => false,
    }
}

/// The seconds of `Retry-After`, or of the hub's own `RateLimit: "resolvers";r=0;t=90`.
fn asked_to_wait(headers: &HeaderMap) -> Option<u64> {
    let after = text(headers, "retry-after").and_then(|seconds| seconds.trim().parse().ok());
    let reset = || {
        text(headers, "ratelimit")?
            .split(';')
            .find_map(|part| part.trim().strip_prefix("t=")?.parse().ok())
    };
    after.or_else(reset)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> (Option<String>, Option<String>, Option<u16>) {
    let scheme = uri.scheme_str().map(str::to_ascii_lowercase);
    let port = uri.port_u16().or(match scheme.as_deref() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    });
    (scheme, uri.host().map(str::to_ascii_lowercase), port)
}

/// Where a redirect leads.
fn resolve(from: &Uri, to: &str) -> Option<Uri> {
    if to.starts_with("https://") || to.starts_with("http://") {
        return to.parse().ok();
    }
    let path = to.strip_prefix('/').filter(|path| !path.starts_with('/'))?;
    format!("{}://{}/{path}", from.scheme_str()?, from.authority()?)
        .parse()
        .ok()
}

/// Most bytes of a file with certificates; those of all authorities that browsers trust have some hundred kilobytes.
const MAX_CERTIFICATES: u64 = 32 << 20;

/// The certificates of a PEM file.
fn roots(path: &std::path::Path) -> Result<RootCerts> {
    let pem = bitnet_files::read(path, MAX_CERTIFICATES).map_err(|error| Error::Environment {
        variable: "SSL_CERT_FILE".to_owned(),
        why: format!("names {}: {error}", path.display()),
    })?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::Environment {
            variable: "SSL_CERT_FILE".to_owned(),
            why: format!("names {}, which holds no certificate", path.display()),
        });
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_what_they_are() {
        let from: Uri = "https://Hub.example/a/b?c".parse().unwrap();
        let to = |to| resolve(&from, to).map(|uri| uri.to_string());
        assert_eq!(to("/x/y?z").as_deref(), Some("https://Hub.example/x/y?z"));
        assert_eq!(
            to("https://cdn.example/x").as_deref(),
            Some("https://cdn.example/x")
        );
        for nowhere in ["//cdn.example/x", "file:///etc/passwd", "x", ""] {
            assert_eq!(to(nowhere), None, "{nowhere}");
        }
        let same = |uri: &str| origin(&uri.parse().unwrap()) == origin(&from);
        assert!(same("https://hub.example:443/") && !same("https://hub.example:8443/"));
        assert!(!same("http://hub.example/") && !same("https://hub.example.org/"));
    }

    #[test]
    fn pauses_are_read() {
        let wait = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            asked_to_wait(&headers)
        };
        assert_eq!(wait("retry-after", "7"), Some(7));
        assert_eq!(wait("ratelimit", "\"resolvers\";r=0;t=90"), Some(90));
        assert_eq!(wait("retry-after", "Thu, 01 Jan 2026 00:00:00 GMT"), None);
    }
}
