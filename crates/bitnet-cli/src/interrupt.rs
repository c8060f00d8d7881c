//! Ctrl-C: ends the answer that is being generated; when there is none, or it is pressed again, the program.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::failure::INTERRUPTED;

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Takes over Ctrl-C for the rest of the program.
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let answering = STATE.compare_exchange(ANSWERING, STOPPING, Ordering::Relaxed, Ordering::Relaxed);
        if answering.is_err() {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })?;
    Ok(())
}

/// While it lives, the first Ctrl-C only asks the answer to stop.
pub(crate) struct Answering(());

impl Answering {
    pub(crate) fn begin() -> Self {
        STATE.store(ANSWERING, Ordering::Relaxed);
        Self(())
    }

    /// Whether Ctrl-C was pressed since [`Answering::begin`].
    pub(crate) fn stopped(&self) -> bool {
        STATE.load(Ordering::Relaxed) == STOPPING
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::Relaxed);
    }
}
