//! A server of the demo model whose steps a test can hold, and a client that sees every byte.

mod client;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bitnet_api::Served;
use bitnet_model::schedule::{ScheduleOptions, Scheduler};
use bitnet_model::{
    Backend, Batch, Checkpoint, Device, Engine, Error, LoadOptions, Model, Spec, Want, open_backend,
};
use bitnet_server::{Ended, Handle, ServeOptions, Server, Serving};
pub(crate) use client::{Answer, Client};
use serde_json::{Value, json};

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// Longest that a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Holds the steps of an engine.
#[derive(Default)]
pub(crate) struct Gate {
    is_held: Mutex<bool>,
    changed: Condvar,
    fails: AtomicBool,
    /// Steps that were begun.
    pub(crate) steps: AtomicU64,
    /// The number of the step that holds itself and those after it; 0 is none.
    holds_at: AtomicU64,
}

impl Gate {
    /// No step ends from now on.
    pub(crate) fn hold(&self) {
        *self.is_held.lock().unwrap() = true;
    }

    /// No step ends after `n` more.
    pub(crate) fn hold_after(&self, n: u64) {
        let begun = self.steps.load(Ordering::SeqCst);
        self.holds_at.store(begun + n + 1, Ordering::SeqCst);
    }

    /// Steps go on.
    pub(crate) fn release(&self) {
        *self.is_held.lock().unwrap() = false;
        self.changed.notify_all();
    }

    /// Every step fails from now on, or none.
    pub(crate) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    fn pass(&self) -> bitnet_model::Result<()> {
        let number = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        let mut is_held = self.is_held.lock().unwrap();
        *is_held |= number == self.holds_at.load(Ordering::SeqCst);
        while *is_held {
            is_held = self.changed.wait(is_held).unwrap();
        }
        match self.fails.load(Ordering::SeqCst) {
            true => Err(Error::Device("unplugged".to_owned())),
            false => Ok(()),
        }
    }
}

/// A back end behind a [`Gate`].
struct Gated(Box<dyn Backend>, Arc<Gate>);

impl Backend for Gated {
    fn spec(&self) -> &Spec {
        self.0.spec()
    }

    fn step(&mut self, batch: &Batch, want: Want<'_>) -> bitnet_model::Result<&[f32]> {
        self.1.pass()?;
        self.0.step(batch, want)
    }
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) gate: Arc<Gate>,
    pub(crate) thread: Option<JoinHandle<Ended>>,
    /// Lets the model be loaded.
    pub(crate) load: std::sync::mpsc::Sender<()>,
}

/// Options of a test: a free port and 4 slots.
pub(crate) fn options() -> ServeOptions {
    ServeOptions {
        port: 0,
        model: "demo".to_owned(),
        ..ServeOptions::default()
    }
}

/// Starts a server and waits until it takes requests.
pub(crate) fn start(options: ServeOptions) -> Running {
    let running = start_unloaded(options);
    running.load.send(()).unwrap();
    running.wait_ready();
    running
}

/// Starts a server whose model is loaded when `load` is sent something.
pub(crate) fn start_unloaded(options: ServeOptions) -> Running {
    let slots = options.slots;
    let server = Server::bind(options).unwrap();
    let address = server.address();
    let address = address.strip_prefix("http://").unwrap();
    let address = address.split('/').next().unwrap().parse().unwrap();
    let (handle, observer) = (server.handle(), server.observer());
    let gate = Arc::new(Gate::default());
    let of_engine = Arc::clone(&gate);
    let (load, loads) = std::sync::mpsc::channel();
    let load_model = move || -> bitnet_model::Result<Serving> {
        loads.recv().map_err(|_| Error::Cancelled)?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bitnet-cli/demo-model");
        let load = LoadOptions {
            threads: Some(1),
            n_seqs: slots,
            ..LoadOptions::from(Device::Cpu)
        };
        let model = Model::load(&*folder, load.clone())?;
        let served = Served::new(&model, vec!["demo".to_owned(), "also/demo".to_owned()])?;
        let backend = Gated(open_backend(&Checkpoint::open(&*folder)?, load)?, of_engine);
        let options = model.generate_options();
        let scheduler = Scheduler::new(Box::new(backend), model.tokenizer(), ScheduleOptions::default());
        let (_, chat) = model.into_parts(ScheduleOptions::default());
        let engine = Engine::start_scheduler(scheduler, chat, options, observer)?;
        Ok(Serving { engine, served })
    };
    let thread = std::thread::spawn(move || server.run(load_model).unwrap());
    Running {
        address,
        handle,
        gate,
        thread: Some(thread),
        load,
    }
}

impl Running {
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// The answer to one request on a connection of its own.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.client().send(method, path, headers, body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.client().post(path, body)
    }

    pub(crate) fn chat(&self, more: &Value) -> Answer {
        self.post(CHAT, &chat(more))
    }

    fn wait_ready(&self) {
        wait("the server is ready", || self.get("/health").status == 200);
    }

    /// The sum over labels of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']) || name.ends_with('}'))
        });
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Nothing runs or waits any more, and no page is held.
    pub(crate) fn wait_idle(&self) {
        for name in [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
        ] {
            wait(name, || self.metric(name) == 0.0);
        }
    }

    /// Stops it, and says how it ended.
    pub(crate) fn stop(mut self) -> Ended {
        self.handle.stop();
        self.join()
    }

    pub(crate) fn join(&mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gate.release();
        let _ = self.load.send(());
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            self.handle.stop();
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

/// Answers that run or wait.
pub(crate) fn under_way(server: &Running) -> f64 {
    server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")
}

/// Waits for what must come true.
pub(crate) fn wait(what: &str, is_true: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < end, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A request for a chat, greedy, with more fields.
pub(crate) fn chat(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A request for an answer that goes on to the end of the context.
pub(crate) fn long(more: &Value) -> Value {
    let mut body = chat(&json!({"max_tokens": 900, "ignore_eos": true}));
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The text of a stream's first choice.
pub(crate) fn streamed(events: &[Option<Value>]) -> String {
    let chunks = events.iter().flatten();
    let deltas = chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    deltas.collect()
}
