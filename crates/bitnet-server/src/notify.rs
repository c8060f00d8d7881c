//! What systemd is told of a service of `Type=notify`; nothing happens where it did not start the program.

#[cfg(target_os = "linux")]
use sd_notify::NotifyState;

/// The server takes requests.
pub(crate) fn ready() {
    #[cfg(target_os = "linux")]
    tell(&[NotifyState::Ready]);
}

/// It was told to stop.
pub(crate) fn stopping() {
    #[cfg(target_os = "linux")]
    tell(&[NotifyState::Stopping]);
}

/// It lives.
pub(crate) fn alive() {
    #[cfg(target_os = "linux")]
    tell(&[NotifyState::Watchdog]);
}

#[cfg(target_os = "linux")]
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
