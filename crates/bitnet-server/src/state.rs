//! What every request finds: the model once it is there, the stage of the server's life, and its limits.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bitnet_api::{ApiError, Served};
use bitnet_model::Client;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::exchange::Exchange;
use crate::keys::Keys;
use crate::metrics::Meters;
use crate::options::ServeOptions;
use crate::queue::Queue;
use crate::refusal::Refusal;

/// A server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The model is not there yet.
    Loading,
    Ready,
    /// It was told to stop: what runs goes on, nothing begins.
    Draining,
    /// What still runs ends now.
    Cut,
}

/// Bytes of bodies that are read or wait to be parsed, all requests together, by pieces of [`PIECE`].
const BODY_PIECES: usize = 4096;
/// What a body takes of them at a time.
pub(crate) const PIECE: usize = 64 << 10;

/// Threads for what takes its time, such as long prompts and grammars; more wait.
pub(crate) const BLOCKING_THREADS: usize = 8;
/// How many of them may do what takes longest, or wait for it: compile grammars, and make tokens of long texts.
const LONG_THREADS: usize = BLOCKING_THREADS / 2;

/// What every request finds.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) options: ServeOptions,
    pub(crate) keys: Keys,
    pub(crate) meters: Arc<Meters>,
    pub(crate) loaded: OnceLock<Loaded>,
    pub(crate) stage: watch::Sender<Stage>,
    /// Requests that are not answered to their end.
    pub(crate) active: watch::Sender<usize>,
    /// Room for bodies.
    pub(crate) bodies: Arc<Semaphore>,
    /// Turns of what takes long.
    pub(crate) turns: Arc<Semaphore>,
    /// Whether only names of this machine may stand in `Host`.
    pub(crate) checks_host: bool,
    running: Mutex<BTreeMap<u64, Weak<Exchange>>>,
    prefix: u64,
    next: AtomicU64,
}

/// The model, as requests need it.
pub(crate) struct Loaded {
    pub(crate) client: Client,
    pub(crate) served: Arc<Served>,
    pub(crate) queue: Arc<Queue>,
}

/// Steps that fail one after the other before the device counts as lost.
const MOST_FAILURES: u64 = 3;

impl Loaded {
    /// Why the engine will not answer any more, where it will not.
    pub(crate) fn lost(&self) -> Option<String> {
        let health = self.client.health();
        if !health.is_alive {
            return Some("the engine has ended".to_owned());
        }
        (health.failures >= MOST_FAILURES)
            .then(|| format!("{} steps of the engine failed in a row", health.failures))
    }

    /// How long the engine has made no step although work waits, where that is longer than `most`.
    pub(crate) fn stalled(&self, most: Duration) -> Option<String> {
        let silent = self.client.health().silent;
        (silent > most).then(|| {
            format!(
                "the engine has made no step for {} s although work waits",
                silent.as_secs()
            )
        })
    }
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Of a server that begins to load its model. `is_local` says that it listens on loopback alone.
    pub(crate) fn new(options: ServeOptions, is_local: bool) -> io::Result<Arc<Self>> {
        let keys = Keys::new(options.keys.clone(), options.key_file.clone())?;
        Ok(Arc::new(Self {
            meters: Arc::new(Meters::new(&options.model)),
            checks_host: is_local && !keys.are_asked_for(),
            keys,
            options,
            loaded: OnceLock::new(),
            stage: watch::Sender::new(Stage::Loading),
            active: watch::Sender::new(0),
            bodies: Arc::new(Semaphore::new(BODY_PIECES)),
            turns: Arc::new(Semaphore::new(LONG_THREADS)),
            running: Mutex::default(),
            prefix: RandomState::new().hash_one(0),
            next: AtomicU64::new(0),
        }))
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// A name for a request that no other has.
    pub(crate) fn name(&self) -> String {
        format!(
            "{:016x}{:08x}",
            self.prefix,
            self.next.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// A number that no other call of this process gets, and that nobody can foretell.
    pub(crate) fn unique(&self) -> u64 {
        self.prefix
            .wrapping_add(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The model, if requests may begin.
    pub(crate) fn ready(&self) -> Result<&Loaded, Refusal> {
        match self.stage() {
            Stage::Loading => Err(Refusal::loading()),
            Stage::Ready => self.loaded.get().ok_or_else(Refusal::loading),
            Stage::Draining | Stage::Cut => Err(Refusal::shutting_down()),
        }
    }

    /// Waits for the turn of what takes long, no longer than a request may wait in the queue.
    pub(crate) async fn turn(&self, loaded: &Loaded) -> Result<OwnedSemaphorePermit, Refusal> {
        let mut stage = self.stage.subscribe();
        tokio::select! {
            biased;
            // The semaphore is never closed.
            Ok(turn) = Arc::clone(&self.turns).acquire_owned() => Ok(turn),
            _ = stage.wait_for(|stage| *stage == Stage::Cut) => Err(Refusal::shutting_down()),
            () = tokio::time::sleep(self.options.max_queue_time) => {
                let waited = self.options.max_queue_time.as_secs();
                Err(Refusal::from(ApiError::queue_timeout(waited)).retry_after(loaded.queue.retry_after()))
            }
        }
    }

    /// Shows a request in `/slots` while it runs.
    pub(crate) fn show(self: &Arc<Self>, exchange: &Arc<Exchange>) -> Shown {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(number, Arc::downgrade(exchange));
        Shown {
            state: Arc::clone(self),
            number,
        }
    }

    /// The requests that run, oldest first.
    pub(crate) fn running(&self) -> Vec<Arc<Exchange>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().filter_map(Weak::upgrade).collect()
    }
}

/// A request in `/slots`, until it is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    state: Arc<State>,
    number: u64,
}

impl Drop for Shown {
    fn drop(&mut self) {
        let mut running = self.state.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.number);
    }
}

/// One of the requests that are not answered to their end, until it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Arc<State>);

impl Active {
    pub(crate) fn new(state: Arc<State>) -> Self {
        state.active.send_modify(|n| *n += 1);
        Self(state)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.send_modify(|n| *n -= 1);
    }
}
