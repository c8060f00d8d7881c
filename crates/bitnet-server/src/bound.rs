//! Where a server listens: a port or a Unix socket.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket as RawSocket, TcpKeepalive, Type};
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;

use crate::conn::Socket;

/// Connections that the system takes before the program does.
const BACKLOG: i32 = 1024;
/// What the system holds of an answer that is not read.
pub(crate) const SEND_BUFFER: usize = 64 << 10;
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
    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<Box<dyn Socket>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
