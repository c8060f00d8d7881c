//! A connection: what it is doing, when it has been silent for too long, and its bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// How long a connection may be silent between requests. Clients are told of it.
pub(crate) const IDLE: Duration = Duration::from_secs(75);
/// How long the head of a request may take from its first byte.
pub(crate) const HEAD: Duration = Duration::from_secs(10);

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Conn {
    began: Instant,
    /// Requests that are not answered to their end.
    active: AtomicUsize,
    /// Milliseconds from the beginning to the end of the last answer.
    idle_since: AtomicU64,
    /// Milliseconds, and one more, from the beginning to the first byte of a request that has not wholly come; 0 for none.
    head_since: AtomicU64,
    /// Whether it speaks HTTP/2, where not every byte belongs to a request.
    is_h2: AtomicBool,
    /// Asks for its end.
    close: Notify,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    /// It was silent for too long.
    End,
    /// The head of a request does not come.
    Cut,
}

impl Conn {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            active: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            is_h2: AtomicBool::new(false),
            close: Notify::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends it at once, whatever it is doing, where it has one request at a time. One of HTTP/2 has others too.
    pub(crate) fn close_for_one(&self) {
        if !self.is_h2.load(Ordering::Relaxed) {
            self.close();
        }
    }

    /// Ends it at once, whatever it is doing.
    pub(crate) fn close(&self) {
        self.close.notify_one();
    }

    /// Waits until somebody ends it.
    pub(crate) async fn closed(&self) {
        self.close.notified().await;
    }

    /// How long nothing has been asked; `None` while something is.
    pub(crate) fn idle(&self) -> Option<Duration> {
        let is_idle = self.active.load(Ordering::Relaxed) == 0;
        let silent = self.now().saturating_sub(self.idle_since.load(Ordering::Relaxed));
        is_idle.then(|| Duration::from_millis(silent))
    }

    /// What to do with it now.
    pub(crate) fn verdict(&self) -> Verdict {
        let Some(idle) = self.idle() else {
            return Verdict::Keep;
        };
        let head = self.head_since.load(Ordering::Relaxed);
        if head > 0 && self.now().saturating_sub(head - 1) > HEAD.as_millis() as u64 {
            Verdict::Cut
        } else if head == 0 && idle > IDLE {
            Verdict::End
        } else {
            Verdict::Keep
        }
    }

    fn came(&self, bytes: &[u8]) {
        if bytes.starts_with(b"PRI * HTTP/2") {
            self.is_h2.store(true, Ordering::Relaxed);
        }
        if self.active.load(Ordering::Relaxed) == 0 && !self.is_h2.load(Ordering::Relaxed) {
            let now = self.now().saturating_add(1);
            let _ = self
                .head_since
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// A request on a connection, from its head to the end of its answer.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Conn>);

impl Turn {
    pub(crate) fn new(conn: Arc<Conn>) -> Self {
        conn.active.fetch_add(1, Ordering::Relaxed);
        conn.head_since.store(0, Ordering::Relaxed);
        Self(conn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bytes of a connection.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A socket that tells its [`Conn`] of what comes.
pub(crate) struct Watched {
    pub(crate) socket: Box<dyn Socket>,
    pub(crate) conn: Arc<Conn>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let poll = Pin::new(&mut self.socket).poll_read(cx, into);
        let new = into.filled().get(before..).unwrap_or_default();
        if !new.is_empty() {
            self.conn.came(new);
        }
        poll
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_between_requests_and_its_heads_are_timed() {
        let conn = Conn::new();
        assert_eq!(conn.verdict(), Verdict::Keep);
        conn.came(b"GET");
        assert!(conn.head_since.load(Ordering::Relaxed) > 0);
        let turn = Turn::new(Arc::clone(&conn));
        assert_eq!((conn.head_since.load(Ordering::Relaxed), conn.idle()), (0, None));
        conn.came(b"{}");
        assert_eq!(conn.head_since.load(Ordering::Relaxed), 0, "a body");
        drop(turn);
        assert!(conn.idle().is_some());
        conn.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        conn.came(b"a ping");
        assert_eq!(conn.head_since.load(Ordering::Relaxed), 0, "HTTP/2");
        let long_ago = Instant::now().checked_sub(Duration::from_secs(200)).unwrap();
        let old = Conn {
            began: long_ago,
            ..Arc::into_inner(Conn::new()).unwrap()
        };
        assert_eq!(old.verdict(), Verdict::End);
        old.head_since.store(1, Ordering::Relaxed);
        assert_eq!(old.verdict(), Verdict::Cut);
        old.active.store(1, Ordering::Relaxed);
        assert_eq!(old.verdict(), Verdict::Keep);
    }
}
