//! How requests end before their end.

/// Why a request that was begun was not answered to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// The client went away.
    Disconnect,
    /// The client did not read.
    SlowClient,
    /// It took longer than it may.
    Timeout,
    /// The server ended.
    Shutdown,
    /// The engine failed.
    Error,
}

impl Abort {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::Disconnect,
        Self::SlowClient,
        Self::Timeout,
        Self::Shutdown,
        Self::Error,
    ];

    /// Its name in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::SlowClient => "slow_client",
            Self::Timeout => "timeout",
            Self::Shutdown => "shutdown",
            Self::Error => "error",
        }
    }
}
