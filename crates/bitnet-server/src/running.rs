//! A job that the engine works on: its events as they come, held back where nobody takes them, and its end when it is dropped.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bitnet_api::ApiError;
use bitnet_model::schedule::{Event, Request};
use bitnet_model::{Client, Ticket};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Events that may wait to be taken. With as many the job is held: it keeps what it has computed and gets no further tokens.
const MOST: usize = 256;
/// As few must wait before it goes on.
const FEW: usize = 64;

/// What came, of which prompt, and when.
pub(crate) type Came = (usize, Instant, Event);

/// A job on its way. Dropped, it ends, wherever it is: in the queue, in its prompt or in its answers.
#[derive(Debug)]
pub(crate) struct Running {
    events: UnboundedReceiver<Came>,
    flow: Arc<Flow>,
}

/// How much waits to be taken.
#[derive(Debug, Default)]
struct Flow {
    state: Mutex<FlowState>,
}

#[derive(Debug, Default)]
struct FlowState {
    waiting: usize,
    is_held: bool,
    tickets: Vec<Ticket>,
}

impl Flow {
    fn came(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += 1;
        if state.waiting >= MOST && !state.is_held {
            state.is_held = true;
            state.tickets.iter().for_each(|ticket| ticket.pause(true));
        }
    }

    fn taken(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting = state.waiting.saturating_sub(1);
        if state.is_held && state.waiting <= FEW {
            state.is_held = false;
            state.tickets.iter().for_each(|ticket| ticket.pause(false));
        }
    }

    fn add(&self, ticket: Ticket) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_held {
            ticket.pause(true);
        }
        state.tickets.push(ticket);
    }
}

impl Running {
    /// Hands the requests of a job to the engine.
    pub(crate) fn start(client: &Client, requests: Vec<Request>) -> Result<Self, bitnet_model::Error> {
        let (sender, events) = unbounded_channel();
        let running = Self {
            events,
            flow: Arc::default(),
        };
        for (prompt, request) in requests.into_iter().enumerate() {
            let sink = sink(prompt, sender.clone(), Arc::clone(&running.flow));
            let ticket = client.submit(request, sink)?;
            running.flow.add(ticket);
        }
        Ok(running)
    }

    /// The next event; `None` once no more can come.
    pub(crate) async fn next(&mut self) -> Option<Came> {
        let came = self.events.recv().await?;
        self.flow.taken();
        Some(came)
    }

    /// The next event, if it is there.
    pub(crate) fn try_next(&mut self) -> Option<Came> {
        let came = self.events.try_recv().ok()?;
        self.flow.taken();
        Some(came)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let state = self.flow.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The engine forgets those that are over.
        state.tickets.iter().for_each(Ticket::cancel);
    }
}

/// Takes events on the engine's thread, and never waits.
fn sink(
    prompt: usize,
    sender: UnboundedSender<Came>,
    flow: Arc<Flow>,
) -> impl FnMut(Event) -> ControlFlow<()> + Send + 'static {
    move |event| {
        flow.came();
        match sender.send((prompt, Instant::now(), event)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// What a client is told of an error of the engine: what concerns its request, and nothing of the machine.
pub(crate) fn of_engine(error: &bitnet_model::Error, id: &str) -> ApiError {
    let told = ApiError::from(error);
    if told.status < 500 {
        return told;
    }
    tracing::error!(id, %error, "the engine failed on a request");
    ApiError::internal(id)
}

/// What a client is told when the engine has ended.
pub(crate) fn no_engine(id: &str) -> ApiError {
    of_engine(
        &bitnet_model::Error::Device("the engine has ended".to_owned()),
        id,
    )
}
