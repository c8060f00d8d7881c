//! Sockets: where a server listens, and the connections that it takes.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, Socket as RawSocket, TcpKeepalive, Type};
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use crate::conn::{Conn, HEAD, IDLE, Socket, Verdict, Watched};
use crate::gate::Outside;

/// Connections that the system takes before the program does.
const BACKLOG: i32 = 1024;
/// What the system holds of an answer that is not read.
const SEND_BUFFER: usize = 64 << 10;
/// What is read of a head before it is refused by hyper itself, with 431 and no body.
const HEAD_BUFFER: usize = 64 << 10;

/// Where a server listens, before it runs.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(std::net::TcpListener, SocketAddr),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener, std::path::PathBuf),
}

impl Bound {
    /// Listens at `host`, which is a name, an address or the path of a socket.
    pub(crate) fn new(host: &str, port: u16) -> io::Result<Self> {
        if host.ends_with(".sock") {
            return unix(host);
        }
        let plain = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let named = |e: io::Error| {
            let hint = match e.kind() {
                io::ErrorKind::AddrInUse => {
                    "; another program listens there: --port names another port, 0 a free one"
                }
                io::ErrorKind::PermissionDenied => "; ports below 1024 need rights: --port names another",
                io::ErrorKind::AddrNotAvailable => "; --host must be a name or an address of this machine",
                _ => "",
            };
            io::Error::new(
                e.kind(),
                format!("cannot listen at {host}, port {port}: {e}{hint}"),
            )
        };
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
        for address in (plain, port).to_socket_addrs().map_err(named)? {
            match tcp(address) {
                Ok(listener) => {
                    let address = listener.local_addr()?;
                    return Ok(Self::Tcp(listener, address));
                }
                Err(error) => last = error,
            }
        }
        Err(named(last))
    }

    /// Whether only programs of this machine get here.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(_, address) => address.ip().is_loopback(),
            #[cfg(unix)]
            Self::Unix(..) => true,
        }
    }

    /// Whether it is a port of loopback, which web pages reach too.
    pub(crate) fn is_loopback_port(&self) -> bool {
        matches!(self, Self::Tcp(_, address) if address.ip().is_loopback())
    }

    /// Its address, as clients name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Tcp(_, address) => format!("http://{address}"),
            #[cfg(unix)]
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// For use inside the runtime.
    pub(crate) fn listen(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener, _) => Ok(Listener::Tcp(TcpListener::from_std(listener)?)),
            #[cfg(unix)]
            Self::Unix(listener, path) => Ok(Listener::Unix {
                listener: UnixListener::from_std(listener)?,
                _path: Path(path),
            }),
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `::` is every address, those of IPv4 included, on every system.
        socket.set_only_v6(false)?;
    }
    // A port whose connections are just ending is free. On Windows this would share it with a program that listens.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    // Connections have it from the listener.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(unix)]
fn unix(path: &str) -> io::Result<Bound> {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen at {path}: {e}"));
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|facts| facts.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            let error = io::Error::new(io::ErrorKind::AddrInUse, "another program listens there");
            return Err(named(error));
        }
        // One that ended without removing it.
        std::fs::remove_file(path).map_err(named)?;
    }
    let listener = UnixListener::bind(path).map_err(named)?;
    listener.set_nonblocking(true)?;
    Ok(Bound::Unix(listener, path.into()))
}

#[cfg(not(unix))]
fn unix(path: &str) -> io::Result<Bound> {
    let message =
        format!("cannot listen at {path}: this system's programs listen at ports; --host names an address");
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// The path of a socket, removed when it is dropped.
#[cfg(unix)]
pub(crate) struct Path(std::path::PathBuf);

#[cfg(unix)]
impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where a server listens.
pub(crate) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix {
        listener: UnixListener,
        _path: Path,
    },
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Socket>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Tokens are small, and each is awaited.
                stream.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60));
                socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok(Box::new(stream))
            }
            #[cfg(unix)]
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// The connections that are open, to find the one that is idle for the longest.
#[derive(Debug, Default)]
struct Open {
    conns: BTreeMap<u64, Arc<Conn>>,
    next: u64,
}

/// Takes connections until it is dropped, at most `most` at a time. With all taken the one that has been silent for the longest makes
/// room. When `ends` says so, each ends after its answer.
pub(crate) async fn accept(
    listener: Listener,
    router: Router,
    prefix: String,
    most: usize,
    ends: watch::Receiver<bool>,
) {
    let open: Arc<Mutex<Open>> = Arc::default();
    let places = Arc::new(Semaphore::new(most));
    let prefix: Arc<str> = prefix.into();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Conn` times heads and silence, both by a clock of its own; this one stands behind it.
        .header_read_timeout(IDLE + HEAD)
        .max_buf_size(HEAD_BUFFER)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_header_list_size(HEAD_BUFFER as u32)
        .max_concurrent_streams(256)
        .max_send_buf_size(SEND_BUFFER);
    let builder = Arc::new(builder);
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                // One connection that broke off, or no files left: neither ends the server.
                if !matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) {
                    tracing::warn!(%error, "a connection could not be taken");
                    make_room(&open);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        let place = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                make_room(&open);
                // The semaphore is never closed.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                place
            }
        };
        let conn = Conn::new();
        let number = {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            open.next += 1;
            let number = open.next;
            open.conns.insert(number, Arc::clone(&conn));
            number
        };
        let (router, prefix, builder) = (router.clone(), Arc::clone(&prefix), Arc::clone(&builder));
        let (ends, open) = (ends.clone(), Arc::clone(&open));
        tokio::spawn(async move {
            serve(socket, conn, router, prefix, &builder, ends).await;
            open.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .conns
                .remove(&number);
            drop(place);
        });
    }
}

/// Ends the connection that has been silent for the longest.
fn make_room(open: &Mutex<Open>) {
    let open = open.lock().unwrap_or_else(PoisonError::into_inner);
    let idle = open.conns.values().filter_map(|conn| Some((conn.idle()?, conn)));
    if let Some((_, conn)) = idle.max_by_key(|(time, _)| *time) {
        conn.close();
    }
}

/// Answers the requests of a connection.
async fn serve(
    socket: Box<dyn Socket>,
    conn: Arc<Conn>,
    router: Router,
    prefix: Arc<str>,
    builder: &auto::Builder<TokioExecutor>,
    mut ends: watch::Receiver<bool>,
) {
    let of_requests = Arc::clone(&conn);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&of_requests));
        strip(&prefix, &mut request);
        router.clone().oneshot(request)
    });
    let io = TokioIo::new(Watched {
        socket,
        conn: Arc::clone(&conn),
    });
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    let mut is_ending = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(error, "a connection broke off");
                }
                return;
            }
            () = conn.closed() => return,
            _ = clock.tick() => match conn.verdict() {
                Verdict::Keep => {}
                // It had its time to end by itself.
                Verdict::End if is_ending => return,
                Verdict::End => {
                    connection.as_mut().graceful_shutdown();
                    is_ending = true;
                }
                Verdict::Cut => return,
            },
            changed = ends.wait_for(|ends| *ends), if !is_ending => {
                if changed.is_ok() {
                    connection.as_mut().graceful_shutdown();
                }
                is_ending = true;
            }
        }
    }
}

/// Takes the prefix off a path, and marks what has none.
fn strip(prefix: &str, request: &mut Request) {
    if prefix.is_empty() {
        return;
    }
    let uri = request.uri();
    let rest = uri
        .path_and_query()
        .and_then(|path| path.as_str().strip_prefix(prefix));
    let path = match rest {
        Some(rest) if rest.is_empty() || rest.starts_with('?') => Some(format!("/{rest}")),
        Some(rest) if rest.starts_with('/') => Some(rest.to_owned()),
        _ => None,
    };
    let Some(path) = path.and_then(|path| path.parse::<PathAndQuery>().ok()) else {
        request.extensions_mut().insert(Outside);
        return;
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_taken_off_whole() {
        for (path, inside) in [
            ("/llm/v1/models?x=1", Some("/v1/models?x=1")),
            ("/llm", Some("/")),
            ("/llm?a", Some("/?a")),
            ("/llmx/v1", None),
            ("/v1/models", None),
        ] {
            let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
            strip("/llm", &mut request);
            assert_eq!(
                request.extensions().get::<Outside>().is_none(),
                inside.is_some(),
                "{path}"
            );
            if let Some(inside) = inside {
                assert_eq!(request.uri().to_string(), inside);
            }
        }
    }

    #[test]
    fn a_place_that_is_taken_is_named() {
        let first = Bound::new("127.0.0.1", 0).unwrap();
        let Bound::Tcp(_, address) = &first else {
            panic!("{first:?}");
        };
        assert!(first.is_local());
        let error = Bound::new("127.0.0.1", address.port()).unwrap_err().to_string();
        assert!(
            error.contains("--port") && error.contains(&address.port().to_string()),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_taken_over_from_the_dead_and_not_from_the_living() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.sock");
        let path = path.to_str().unwrap();
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        let bound = Bound::new(path, 0).unwrap();
        assert!(bound.is_local() && bound.name().ends_with("b.sock"));
        let error = Bound::new(path, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        std::fs::write(folder.path().join("file.sock"), "").unwrap();
        let file = folder.path().join("file.sock");
        assert!(Bound::new(file.to_str().unwrap(), 0).is_err(), "a file stays");
        assert!(file.exists());
    }
}
