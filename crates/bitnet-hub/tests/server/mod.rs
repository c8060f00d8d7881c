//! A hub on this machine: the part of the Hugging Face Hub's API that fetching models needs, with faults on demand.
//!
//! Large files are redirected to another port, as the hub redirects to its content delivery network, and small ones to
//! another path of the hub itself.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// Files of that size and more are kept outside the repository.
const LARGE: usize = 4096;

pub(crate) struct Server {
    /// Its address, for `HF_ENDPOINT`.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    hub: String,
    cdn: String,
    repositories: BTreeMap<String, Repository>,
    faults: Vec<(String, Fault)>,
    seen: Vec<Seen>,
    pace: Option<Duration>,
}

#[derive(Default)]
struct Repository {
    /// By commit; the last is `main`.
    commits: Vec<(String, BTreeMap<String, Vec<u8>>)>,
    /// Whose token may read it.
    token: Option<String>,
    gated: bool,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// `hub` or `cdn`, and the path.
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The first byte is another one.
    Wrong,
    /// Nothing comes any more after so many bytes of the body.
    Stall(usize),
    /// This status line and these headers, instead of the answer.
    Status(&'static str, &'static str),
    /// The whole file, whatever range was asked for.
    NoRange,
}

impl Server {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let serve = |kind: &'static str| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    // The client may go away in mid-answer.
                    std::thread::spawn(move || drop(answer(kind, &stream, &state)));
                }
            });
            url
        };
        let (hub, cdn) = (serve("hub"), serve("cdn"));
        let mut locked = state.lock().unwrap();
        locked.hub.clone_from(&hub);
        locked.cdn = cdn;
        drop(locked);
        Self { url: hub, state }
    }

    /// Adds a commit with these files to a repository and returns its name.
    pub(crate) fn commit(&self, repository: &str, files: &[(&str, &[u8])]) -> String {
        let mut state = self.state.lock().unwrap();
        let repository = state.repositories.entry(repository.to_owned()).or_default();
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect();
        let commit = hex(
            &SHA1_FOR_LEGACY_USE_ONLY,
            &[format!("{}{files:?}", repository.commits.len()).as_bytes()],
        );
        repository.commits.push((commit.clone(), files));
        commit
    }

    /// Only this token may read the repository.
    pub(crate) fn protect(&self, repository: &str, token: &str, gated: bool) {
        let mut state = self.state.lock().unwrap();
        let repository = state.repositories.get_mut(repository).unwrap();
        repository.token = Some(token.to_owned());
        repository.gated = gated;
    }

    /// The next request whose method and path contain `part` goes wrong so.
    pub(crate) fn fault(&self, part: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((part.to_owned(), fault));
    }

    /// Waits so long between pieces of 64 KiB.
    pub(crate) fn pace(&self, pause: Duration) {
        self.state.lock().unwrap().pace = Some(pause);
    }

    /// The requests since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

/// What the hub calls the bytes.
pub(crate) fn etag(bytes: &[u8]) -> String {
    if bytes.len() >= LARGE {
        hex(&SHA256, &[bytes])
    } else {
        hex(
            &SHA1_FOR_LEGACY_USE_ONLY,
            &[format!("blob {}\0", bytes.len()).as_bytes(), bytes],
        )
    }
}

fn hex(algorithm: &'static ring::digest::Algorithm, parts: &[&[u8]]) -> String {
    let mut context = Context::new(algorithm);
    parts.iter().for_each(|part| context.update(part));
    context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn answer(kind: &str, stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut locked = state.lock().unwrap();
    let range = headers.get("range").cloned();
    let authorization = headers.get("authorization").cloned();
    locked.seen.push(Seen {
        method: method.to_owned(),
        path: format!("{kind}{path}"),
        authorization: authorization.clone(),
        range: range.clone(),
    });
    let request = format!("{method} {kind}{path}");
    let fault = locked
        .faults
        .iter()
        .position(|(part, _)| request.contains(part.as_str()));
    let fault = fault.map(|at| locked.faults.remove(at).1);
    let mut reply = match &fault {
        Some(Fault::Status(status, headers)) => Reply::status(status, headers),
        _ if kind == "cdn" => locked.cdn(path),
        _ => locked.hub(path, authorization.as_deref()),
    };
    let pace = locked.pace.filter(|_| kind == "cdn");
    drop(locked);

    let from = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    let size = reply.body.len();
    if let Some(from) =
        from.filter(|_| reply.status.starts_with("200") && !matches!(fault, Some(Fault::NoRange)))
    {
        if from < size {
            reply.status = "206 Partial Content".to_owned();
            reply.headers += &format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1);
            reply.body.drain(..from);
        } else {
            reply = Reply::status("416 Range Not Satisfiable", "");
        }
    }
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n",
        reply.status,
        reply.body.len(),
        reply.headers
    )?;
    if method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Cut(after)) => reply.body.truncate(after),
        Some(Fault::Wrong) => reply.body[0] ^= 1,
        Some(Fault::Stall(after)) => {
            out.write_all(&reply.body[..after])?;
            std::thread::sleep(Duration::from_secs(30));
            return Ok(());
        }
        _ => {}
    }
    for piece in reply.body.chunks(1 << 16) {
        out.write_all(piece)?;
        if let Some(pause) = pace {
            std::thread::sleep(pause);
        }
    }
    Ok(())
}

struct Reply {
    status: String,
    headers: String,
    body: Vec<u8>,
}

impl Reply {
    fn status(status: &str, headers: &str) -> Self {
        Self {
            status: status.to_owned(),
            headers: headers.to_owned(),
            body: Vec::new(),
        }
    }

    fn json(body: String) -> Self {
        Self {
            status: "200 OK".to_owned(),
            headers: "Content-Type: application/json\r\n".to_owned(),
            body: body.into_bytes(),
        }
    }
}

impl State {
    fn cdn(&self, path: &str) -> Reply {
        let files = self
            .repositories
            .values()
            .flat_map(|repository| &repository.commits);
        let mut files = files.flat_map(|(_, files)| files.values());
        match files.find(|bytes| path == format!("/{}", etag(bytes))) {
            Some(bytes) => Reply {
                status: "200 OK".to_owned(),
                headers: String::new(),
                body: bytes.clone(),
            },
            None => Reply::status("403 Forbidden", ""),
        }
    }

    fn hub(&self, path: &str, authorization: Option<&str>) -> Reply {
        let (path, _) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match parts[..] {
            [
                "api",
                "models",
                owner,
                name,
                what @ ("revision" | "tree"),
                revision,
            ] => {
                let (commit, files) =
                    match self.revision(&format!("{owner}/{name}"), revision, authorization, false) {
                        Ok(found) => found,
                        Err(reply) => return reply,
                    };
                let files = files.iter().map(|(name, bytes)| {
                    let (size, etag) = (bytes.len(), etag(bytes));
                    let large = size >= LARGE;
                    let git = if large {
                        "0123456789abcdef0123456789abcdef01234567"
                    } else {
                        &etag
                    };
                    let lfs = if what == "tree" { "oid" } else { "sha256" };
                    let lfs = if large {
                        format!(r#","lfs":{{"{lfs}":"{etag}","size":{size},"pointerSize":130}}"#)
                    } else {
                        String::new()
                    };
                    if what == "tree" {
                        format!(r#"{{"type":"file","path":"{name}","size":{size},"oid":"{git}"{lfs}}}"#)
                    } else {
                        format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"{git}"{lfs}}}"#)
                    }
                });
                let files: Vec<String> = files.collect();
                let files = files.join(",");
                if what == "tree" {
                    return Reply::json(format!("[{files}]"));
                }
                Reply::json(format!(
                    r#"{{"id":"{owner}/{name}","sha":"{commit}","private":false,"downloads":0,"tags":[],"siblings":[{files}]}}"#
                ))
            }
            [owner, name, "resolve", revision, ..] => {
                let repository = format!("{owner}/{name}");
                let (commit, files) = match self.revision(&repository, revision, authorization, true) {
                    Ok(found) => found,
                    Err(reply) => return reply,
                };
                let file = parts[4..].join("/");
                let Some(bytes) = files.get(&file) else {
                    return Reply::status("404 Not Found", "X-Error-Code: EntryNotFound\r\n");
                };
                let etag = etag(bytes);
                if bytes.len() < LARGE {
                    let location =
                        format!("Location: /api/resolve-cache/models/{owner}/{name}/{commit}/{file}\r\n");
                    return Reply::status("307 Temporary Redirect", &location);
                }
                let size = bytes.len();
                let headers = format!(
                    "X-Repo-Commit: {commit}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\n\
                     ETag: \"of-the-redirect\"\r\nLocation: {}/{etag}\r\n",
                    self.cdn
                );
                Reply::status("302 Found", &headers)
            }
            ["api", "resolve-cache", "models", owner, name, commit, ..] => {
                let (commit, files) =
                    match self.revision(&format!("{owner}/{name}"), commit, authorization, true) {
                        Ok(found) => found,
                        Err(reply) => return reply,
                    };
                let bytes = &files[&parts[6..].join("/")];
                Reply {
                    status: "200 OK".to_owned(),
                    headers: format!("X-Repo-Commit: {commit}\r\nETag: W/\"{}\"\r\n", etag(bytes)),
                    body: bytes.clone(),
                }
            }
            _ => Reply::status("404 Not Found", ""),
        }
    }

    /// The commit that a revision is at, and its files, for whom they are.
    fn revision(
        &self,
        repository: &str,
        revision: &str,
        authorization: Option<&str>,
        content: bool,
    ) -> Result<(&str, &BTreeMap<String, Vec<u8>>), Reply> {
        let not_found = "X-Error-Code: RepoNotFound\r\nX-Error-Message: Repository not found\r\n";
        let Some(found) = self.repositories.get(repository) else {
            return Err(Reply::status("401 Unauthorized", not_found));
        };
        let is_owner = found
            .token
            .as_ref()
            .is_none_or(|token| authorization == Some(&format!("Bearer {token}")));
        // The list of a gated model is public.
        if !is_owner && found.gated && content {
            return Err(Reply::status("403 Forbidden", "X-Error-Code: GatedRepo\r\n"));
        }
        if !is_owner && !found.gated {
            return Err(Reply::status("401 Unauthorized", not_found));
        }
        let mut commits = found.commits.iter();
        let commit = match revision {
            "main" => commits.next_back(),
            revision => commits.find(|(commit, _)| commit == revision),
        };
        match commit {
            Some((commit, files)) => Ok((commit, files)),
            None => Err(Reply::status(
                "404 Not Found",
                "X-Error-Code: RevisionNotFound\r\n",
            )),
        }
    }
}
