//! A server's life: it listens, loads, answers, drains and ends.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use bitnet_api::Served;
use bitnet_model::Engine;
use bitnet_model::schedule::{Stats, StepReport};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::bound::Bound;
use crate::listen;
use crate::notify;
use crate::options::ServeOptions;
use crate::queue::{Limits, Queue};
use crate::routes;
use crate::signals::{Handle, Order, Orders};
use crate::state::{BLOCKING_THREADS, Loaded, Stage, State};

/// How long the last words of answers that were cut may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A server that listens, and whose requests wait until [`Server::run`].
#[derive(Debug)]
pub struct Server {
    runtime: Runtime,
    bound: Bound,
    state: Arc<State>,
    orders: Orders,
}

/// How a server's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, and every answer was given to its end.
    Drained,
    /// It was told to stop, and answers were cut.
    Cut,
    /// It could not go on, for this reason.
    Lost(String),
}

/// A model that was loaded, to be served.
#[derive(Debug)]
pub struct Serving {
    /// The engine that computes; [`Server::observer`] should have its reports.
    pub engine: Engine,
    /// What requests are read against.
    pub served: Served,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When the place is taken or no place of this machine, the file of keys cannot be read, or the system gives no threads.
    pub fn bind(options: ServeOptions) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("bitnet-http")
            .enable_all()
            .build()?;
        let bound = Bound::new(&options.host, options.port)?;
        let state = State::new(options, bound.is_loopback_port())?;
        let orders = Orders::new();
        Ok(Self {
            runtime,
            bound,
            state,
            orders,
        })
    }

    /// Its address, with the prefix of its paths.
    #[must_use]
    pub fn address(&self) -> String {
        self.bound.name() + &self.state.options.api_prefix
    }

    /// What whoever starts it should know: it is open to more than they may think.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (n, shortest) = self.state.keys.facts();
        if n > 0 && shortest < 16 {
            warnings.push(format!(
                "an API key has {shortest} characters; one of 16 or more cannot be guessed"
            ));
        }
        if n == 0 && !self.bound.is_local() {
            warnings.push(
                "whoever reaches this address can use the server: no --api-key is set, and it listens beyond this machine"
                    .to_owned(),
            );
        }
        warnings
    }

    /// Writes its address and what is to be known of it to the log.
    pub fn announce(&self) {
        tracing::info!(address = self.address(), "listening");
        for warning in self.warnings() {
            tracing::warn!("{warning}");
        }
    }

    /// Takes SIGTERM, SIGINT and SIGHUP for itself from now on; elsewhere than on Unix Ctrl-C.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take_signals(&self) -> io::Result<()> {
        let _context = self.runtime.enter();
        self.orders.take_signals()
    }

    /// What an engine of it is to be observed with: [`Engine::start_observed`].
    pub fn observer(&self) -> impl FnMut(&StepReport, &Stats) + Send + 'static {
        Arc::clone(&self.state.meters).observer()
    }

    /// To stop it from another thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.orders.handle.clone()
    }

    /// Answers until it is told to stop. `load` runs on a thread of its own, and `/health` says that the model is loading until it
    /// returns.
    ///
    /// # Errors
    /// What `load` fails with.
    pub fn run<E: Send + 'static>(
        self,
        load: impl FnOnce() -> Result<Serving, E> + Send + 'static,
    ) -> Result<Ended, E> {
        let Self {
            runtime,
            bound,
            state,
            mut orders,
        } = self;
        let mut engine = None;
        let ended = runtime.block_on(live(&state, bound, &mut orders, &mut engine, load));
        // What reads requests may still be at it; its answer is for nobody.
        runtime.shutdown_timeout(Duration::from_secs(1));
        if let Some(engine) = engine {
            // A device that hangs must not keep the program alive.
            let (tell, done) = channel();
            let waits = std::thread::Builder::new().spawn(move || {
                drop(engine);
                let _ = tell.send(());
            });
            if waits.is_ok() {
                let _ = done.recv_timeout(Duration::from_secs(5));
            }
        }
        ended
    }
}

async fn live<E: Send + 'static>(
    state: &Arc<State>,
    bound: Bound,
    orders: &mut Orders,
    engine: &mut Option<Engine>,
    load: impl FnOnce() -> Result<Serving, E> + Send + 'static,
) -> Result<Ended, E> {
    let listener = match bound.listen() {
        Ok(listener) => listener,
        Err(error) => return Ok(Ended::Lost(format!("cannot listen: {error}"))),
    };
    let ends = watch::Sender::new(false);
    let options = &state.options;
    let accepting = tokio::spawn(listen::accept(
        listener,
        routes::all(state),
        options.api_prefix.clone(),
        options.max_connections,
        ends.subscribe(),
    ));
    let watching = tokio::spawn(look_after(Arc::clone(state)));
    let (tell, mut loading) = oneshot::channel();
    let loader = std::thread::Builder::new()
        .name("bitnet-load".to_owned())
        .spawn(move || {
            let _ = tell.send(load());
        });
    if let Err(error) = loader {
        return Ok(Ended::Lost(format!("no thread to load the model: {error}")));
    }
    let mut is_loaded = false;
    let lost = loop {
        tokio::select! {
            result = &mut loading, if !is_loaded => match result {
                Ok(serving) => {
                    *engine = Some(begin(state, serving?));
                    is_loaded = true;
                }
                Err(_) => break Some("loading the model panicked".to_owned()),
            },
            order = orders.next() => match order {
                Order::Stop => break None,
                Order::Reload => reload(state),
            },
            why = engine_lost(state), if is_loaded => break Some(why),
        }
    };
    let ended = match lost {
        None => drain(state, orders).await,
        Some(why) => {
            tracing::error!(why, "the engine is lost");
            let _ = state.stage.send_replace(Stage::Cut);
            quiet(state, LAST_WORDS).await;
            Ended::Lost(why)
        }
    };
    // Every answer was handed on; connections may now end, and flush what they hold.
    ends.send_replace(true);
    let deadline = Instant::now() + Duration::from_secs(1);
    while ends.receiver_count() > 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    accepting.abort();
    watching.abort();
    // The listener's socket is removed when its task ends.
    let _ = accepting.await;
    Ok(ended)
}

/// Takes requests from now on.
fn begin(state: &Arc<State>, serving: Serving) -> Engine {
    let Serving { engine, served } = serving;
    let client = engine.client();
    let options = &state.options;
    let spec = client.spec();
    state.meters.describe(spec, options.shares_prompts);
    let queue = Queue::new(Limits {
        slots: options.slots,
        waiting: options.max_queue,
        tokens: options.max_queued_tokens,
        per_key: options.max_per_key,
    });
    let loaded = Loaded {
        client: client.clone(),
        served: Arc::new(served),
        queue,
    };
    // It is set once.
    let _ = state.loaded.set(loaded);
    state.stage.send_if_modified(|stage| {
        let is_loading = *stage == Stage::Loading;
        if is_loading {
            *stage = Stage::Ready;
        }
        is_loading
    });
    tracing::info!(
        model = options.model,
        device = client.device(),
        context = spec.context,
        slots = options.slots,
        pages = spec.n_pages,
        page = spec.page,
        "ready"
    );
    notify::ready();
    engine
}

fn reload(state: &State) {
    match state.keys.reload() {
        Ok(n) => tracing::info!(keys = n, "read the keys again"),
        Err(error) => tracing::error!(%error, "the keys stay as they were"),
    }
}

/// Lets what runs go on to its end, for as long as it may.
async fn drain(state: &Arc<State>, orders: &mut Orders) -> Ended {
    let options = &state.options;
    state.stage.send_replace(Stage::Draining);
    notify::stopping();
    let running = *state.active.borrow();
    tracing::info!(running, "stopping: what runs goes on, nothing begins");
    let again = async {
        while orders.next().await == Order::Reload {
            reload(state);
        }
    };
    let done = async {
        tokio::time::sleep(options.shutdown_delay).await;
        quiet(state, Duration::MAX).await;
    };
    tokio::select! {
        biased;
        () = done => return Ended::Drained,
        () = again => tracing::warn!("told to stop again: what runs ends now"),
        () = tokio::time::sleep(options.shutdown_delay.saturating_add(options.shutdown_timeout)) => {
            tracing::warn!("what runs has not ended in time, and ends now");
        }
    }
    state.stage.send_replace(Stage::Cut);
    quiet(state, LAST_WORDS).await;
    Ended::Cut
}

/// Waits until every answer was given to its end, but no longer than `most`.
async fn quiet(state: &State, most: Duration) {
    let mut active = state.active.subscribe();
    let _ = tokio::time::timeout(most, active.wait_for(|n| *n == 0)).await;
}

/// Waits until the engine no longer answers; why.
async fn engine_lost(state: &State) -> String {
    loop {
        if let Some(why) = state.loaded.get().and_then(Loaded::lost) {
            return why;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Once a second: tidies the metrics, and tells systemd that the engine makes steps.
async fn look_after(state: Arc<State>) {
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    loop {
        clock.tick().await;
        state.meters.tidy();
        let loaded = state.loaded.get();
        if loaded.is_none_or(|loaded| loaded.stalled(state.options.engine_timeout).is_none()) {
            notify::alive();
        }
    }
}
