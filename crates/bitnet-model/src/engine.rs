//! A model on a thread of its own, for many callers: each asks from its own thread or task and gets the events of its requests.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::chat::ChatTemplate;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::generate::Prompt;
use crate::model::Model;
use crate::schedule::{Bounds, Event, GenerateOptions, Id, Request, ScheduleOptions, Scheduler, Stats};
use crate::tokenizer::Tokenizer;

/// A thread that owns a model and computes what its [`Client`]s ask.
///
/// ```
/// use bitnet_model::schedule::{Event, Request};
/// use bitnet_model::{Device, Engine, Message, Model, Prompt};
///
/// # let folder = "../bitnet-cli/demo-model";
/// let engine = Engine::start(Model::load(folder, Device::Cpu)?, Default::default())?;
/// let ask = |question: &'static str| {
///     let client = engine.client();
///     std::thread::spawn(move || -> bitnet_model::Result<String> {
///         let prompt = client.prompt_ids(Prompt::Chat(&[Message::user(question)]))?;
///         let mut answer = String::new();
///         for event in client.stream(Request::new(prompt, client.generate_options()))? {
///             match event {
///                 Event::Token { text, .. } | Event::Finished { text, .. } => answer += &text,
///                 Event::Failed(error) => return Err(error),
///                 _ => {}
///             }
///         }
///         Ok(answer)
///     })
/// };
/// let (sum, word) = (ask("What is 17 + 25?"), ask("Spell \"garden\" backwards."));
/// assert_eq!(sum.join().unwrap()?, "17 + 25 = 42");
/// assert_eq!(word.join().unwrap()?, "nedrag");
/// # Ok::<(), bitnet_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    client: Client,
    thread: Option<JoinHandle<()>>,
}

/// Asks an [`Engine`]; clones ask the same one, from any thread.
#[derive(Clone)]
pub struct Client {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// What clients know without asking.
struct Shared {
    config: Config,
    device: String,
    bounds: Bounds,
    tokenizer: Option<Tokenizer>,
    chat: Option<ChatTemplate>,
    options: GenerateOptions,
    next: AtomicU64,
    stats: Mutex<Stats>,
}

/// Takes the events of a request, on the engine's thread; a break ends the request.
type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

enum Command {
    Submit(u64, Box<Request>, Sink),
    Cancel(u64),
    Pause(u64, bool),
    Stop,
}

impl Engine {
    /// Moves a model to a new thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(model: Model, options: ScheduleOptions) -> Result<Self> {
        let (commands, received) = mpsc::channel();
        let generate_options = model.generate_options();
        let (scheduler, chat) = model.into_parts(options);
        let spec = scheduler.backend().spec();
        let shared = Arc::new(Shared {
            config: spec.config.clone(),
            device: spec.name.clone(),
            bounds: scheduler.bounds(),
            tokenizer: scheduler.tokenizer().cloned(),
            chat,
            options: generate_options,
            next: AtomicU64::new(0),
            stats: Mutex::new(scheduler.stats()),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("bitnet-engine".to_owned())
            .spawn(move || Loop::new(scheduler, of_thread).run(&received))
            .map_err(|e| Error::Device(format!("no thread for the model: {e}")))?;
        Ok(Self {
            client: Client { commands, shared },
            thread: Some(thread),
        })
    }

    /// A client of it.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

impl Drop for Engine {
    /// Cancels what runs, tells those who asked, and waits for the thread to end.
    fn drop(&mut self) {
        let _ = self.client.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported where it happened; whoever waited for an answer has been told.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("device", &self.shared.device)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// What runs the model, for people.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.shared.device
    }

    /// Most tokens of a prompt and its answer together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.shared.bounds.context
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.shared.tokenizer.as_ref()
    }

    /// The model's chat template.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.shared.chat.as_ref()
    }

    /// The model's own settings.
    #[must_use]
    pub fn generate_options(&self) -> GenerateOptions {
        self.shared.options.clone()
    }

    /// The token ids of a prompt.
    ///
    /// # Errors
    /// As for [`Prompt::ids`].
    pub fn prompt_ids(&self, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        prompt.ids(self.tokenizer(), self.chat_template())
    }

    /// The scheduler's counts after its last step.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a request that can never be computed, as [`Client::submit`] would.
    ///
    /// # Errors
    /// As for [`Scheduler::submit`].
    pub fn check(&self, request: &Request) -> Result<()> {
        self.shared.bounds.check(request)
    }

    /// Asks, and has the events handed to `sink`, which runs on the engine's thread: it must not wait, and a break ends the request.
    /// It is dropped after the last event, or when the engine ends. A program with tasks sends them on through a channel of its runtime.
    ///
    /// # Errors
    /// As for [`Scheduler::submit`], and when the engine has ended.
    pub fn submit(
        &self,
        request: Request,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Ticket> {
        self.check(&request)?;
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.commands
            .send(Command::Submit(number, Box::new(request), Box::new(sink)))
            .map_err(|_| ended())?;
        Ok(Ticket {
            number,
            commands: self.commands.clone(),
        })
    }

    /// Asks, and gives the events as they come.
    ///
    /// # Errors
    /// As for [`Client::submit`].
    pub fn stream(&self, request: Request) -> Result<Stream> {
        let (sender, events) = mpsc::channel();
        let left = request.n;
        let ticket = self.submit(request, move |event| match sender.send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })?;
        Ok(Stream { ticket, events, left })
    }
}

/// A request of a [`Client`], to end or hold it from any thread.
#[derive(Clone)]
pub struct Ticket {
    number: u64,
    commands: Sender<Command>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.number).finish()
    }
}

impl Ticket {
    /// Ends the request, where it is not over: its answers finish as [`crate::FinishReason::Cancelled`].
    pub fn cancel(&self) {
        // An engine that has ended has ended its requests.
        let _ = self.commands.send(Command::Cancel(self.number));
    }

    /// Holds the request or lets it go on, as [`Scheduler::pause`] does.
    pub fn pause(&self, is_paused: bool) {
        let _ = self.commands.send(Command::Pause(self.number, is_paused));
    }
}

/// The events of a request, until it is over. Dropping it ends the request.
#[derive(Debug)]
pub struct Stream {
    ticket: Ticket,
    events: Receiver<Event>,
    /// Answers that have not finished.
    left: usize,
}

impl Stream {
    /// To end the request from elsewhere.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket.clone()
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        if self.left == 0 {
            return None;
        }
        match self.events.try_recv() {
            Ok(event) => Some(self.note(event)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(self.note(Event::Failed(ended()))),
        }
    }

    fn note(&mut self, event: Event) -> Event {
        match event {
            Event::Finished { .. } => self.left = self.left.saturating_sub(1),
            Event::Failed(_) => self.left = 0,
            _ => {}
        }
        event
    }
}

impl Iterator for Stream {
    type Item = Event;

    /// Waits for the next event; `None` after the last.
    fn next(&mut self) -> Option<Event> {
        if self.left == 0 {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| Event::Failed(ended()));
        Some(self.note(event))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.left > 0 {
            self.ticket.cancel();
        }
    }
}

fn ended() -> Error {
    Error::Device("the engine has ended: start another one".to_owned())
}

/// What runs on the engine's thread.
struct Loop {
    scheduler: Scheduler<'static>,
    shared: Arc<Shared>,
    ids: HashMap<u64, Id>,
    requests: HashMap<Id, Asked>,
    is_stopping: bool,
}

/// A request that is not over.
struct Asked {
    number: u64,
    sink: Sink,
    /// Answers that have not finished.
    left: usize,
}

impl Loop {
    fn new(scheduler: Scheduler<'static>, shared: Arc<Shared>) -> Self {
        Self {
            scheduler,
            shared,
            ids: HashMap::new(),
            requests: HashMap::new(),
            is_stopping: false,
        }
    }

    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            // With nothing to compute it waits; else commands are taken between steps.
            let has_nothing = self.scheduler.is_idle() || self.scheduler.is_stalled();
            if has_nothing && !self.is_stopping {
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            for (id, event) in self.scheduler.step() {
                self.tell(id, event);
            }
            *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.scheduler.stats();
            if self.is_stopping {
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(number, request, mut sink) => {
                let left = request.n;
                match self.scheduler.submit(*request) {
                    Ok(id) => {
                        self.ids.insert(number, id);
                        self.requests.insert(id, Asked { number, sink, left });
                    }
                    Err(error) => {
                        let _ = sink(Event::Failed(error));
                    }
                }
            }
            Command::Cancel(number) => {
                if let Some(&id) = self.ids.get(&number) {
                    self.scheduler.cancel(id);
                }
            }
            Command::Pause(number, is_paused) => {
                if let Some(&id) = self.ids.get(&number) {
                    self.scheduler.pause(id, is_paused);
                }
            }
            Command::Stop => {
                self.requests.keys().for_each(|&id| self.scheduler.cancel(id));
                self.is_stopping = true;
            }
        }
    }

    fn tell(&mut self, id: Id, event: Event) {
        let Some(asked) = self.requests.get_mut(&id) else {
            return;
        };
        match &event {
            Event::Finished { .. } => asked.left = asked.left.saturating_sub(1),
            Event::Failed(_) => asked.left = 0,
            _ => {}
        }
        let flow = (asked.sink)(event);
        let is_over = asked.left == 0;
        if flow.is_break() && !is_over {
            self.scheduler.cancel(id);
        }
        if (flow.is_break() || is_over)
            && let Some(asked) = self.requests.remove(&id)
        {
            self.ids.remove(&asked.number);
        }
    }
}
