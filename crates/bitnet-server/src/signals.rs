//! Who tells the server to stop: signals, and [`Handle`]s.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Tells a server to stop, from any thread.
#[derive(Clone, Debug)]
pub struct Handle(UnboundedSender<Order>);

impl Handle {
    /// As SIGTERM does: the first time what runs goes on to its end and nothing begins, the second time it ends at once.
    pub fn stop(&self) {
        // A server that has ended needs no telling.
        let _ = self.0.send(Order::Stop);
    }

    /// As SIGHUP does: the file of keys is read again.
    pub fn reload(&self) {
        let _ = self.0.send(Order::Reload);
    }
}

/// What a server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Stop,
    Reload,
}

/// What is told, in order.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) handle: Handle,
    received: UnboundedReceiver<Order>,
}

impl Orders {
    pub(crate) fn new() -> Self {
        let (sender, received) = unbounded_channel();
        Self {
            handle: Handle(sender),
            received,
        }
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Order {
        // `handle` keeps the channel open.
        self.received.recv().await.unwrap_or(Order::Stop)
    }

    /// Hands on the signals of the process from now on.
    #[cfg(unix)]
    pub(crate) fn take_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        for (kind, order) in [
            (SignalKind::terminate(), Order::Stop),
            (SignalKind::interrupt(), Order::Stop),
            (SignalKind::hangup(), Order::Reload),
        ] {
            let mut signals = signal(kind)?;
            let sender = self.handle.0.clone();
            tokio::spawn(
                async move { while signals.recv().await.is_some() && sender.send(order).is_ok() {} },
            );
        }
        Ok(())
    }

    /// Hands on Ctrl-C from now on.
    #[cfg(not(unix))]
    pub(crate) fn take_signals(&self) -> std::io::Result<()> {
        let sender = self.handle.0.clone();
        tokio::spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() && sender.send(Order::Stop).is_ok() {}
        });
        Ok(())
    }
}
