//! A model on a thread of its own, for many callers: each asks from its own thread or task and gets the events of its requests.

mod shared;

mod run;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;

pub use shared::Health;
use shared::{Command, Shared, ended};

use crate::chat::ChatTemplate;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::generate::Prompt;
use crate::model::Model;
use crate::schedule::{Event, GenerateOptions, Request, ScheduleOptions, Scheduler, Stats, StepReport};
use crate::tokenizer::Tokenizer;
use crate::transformer::Spec;

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

impl Engine {
    /// Moves a model to a new thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(model: Model, options: ScheduleOptions) -> Result<Self> {
        Self::start_observed(model, options, |_, _| ())
    }

    /// As [`Engine::start`], and tells `observer` of every step that computed something, on the engine's thread: it must not wait.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start_observed(
        model: Model,
        options: ScheduleOptions,
        observer: impl FnMut(&StepReport, &Stats) + Send + 'static,
    ) -> Result<Self> {
        let generate_options = model.generate_options();
        let (scheduler, chat) = model.into_parts(options);
        Self::start_scheduler(scheduler, chat, generate_options, observer)
    }

    /// As [`Engine::start_observed`], for a scheduler with a back end of one's own; `options` are what requests begin with that
    /// ask for nothing else.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start_scheduler(
        scheduler: Scheduler<'static>,
        chat: Option<ChatTemplate>,
        options: GenerateOptions,
        observer: impl FnMut(&StepReport, &Stats) + Send + 'static,
    ) -> Result<Self> {
        let (commands, received) = mpsc::channel();
        let shared = Arc::new(Shared::new(&scheduler, chat, options));
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("bitnet-engine".to_owned())
            .spawn(move || run::run(scheduler, &of_thread, Box::new(observer), received))
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
            .field("device", &self.shared.spec.name)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.spec.config
    }

    /// What runs the model, and what it holds and can take.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.shared.spec
    }

    /// What runs the model, for people.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.shared.spec.name
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

    /// The scheduler's counts after its last step, and the answers that have been asked for since. It waits for no step.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether the engine's thread lives and makes steps. It waits for no step.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Refuses a request that can never be computed, as [`Client::submit`] would.
    ///
    /// # Errors
    /// As for [`Scheduler::submit`].
    pub fn check(&self, request: &Request) -> Result<()> {
        self.shared.bounds.check(request)
    }

    /// Asks, and has the events handed to `sink`, which runs on the engine's thread: it must not wait, and a break ends the request.
    /// It is dropped after the last event, which is [`Event::Failed`] where the engine ends before, even by a panic. A panic of the
    /// sink ends its request alone. A program with tasks sends them on through a channel of its runtime.
    ///
    /// # Errors
    /// As for [`Scheduler::submit`], and when the engine has ended.
    pub fn submit(
        &self,
        request: Request,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Ticket> {
        self.check(&request)?;
        let number = self.shared.ask(request.n, |number| {
            let command = Command::Submit(number, Box::new(request), Box::new(sink));
            self.commands.send(command)
        })?;
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
