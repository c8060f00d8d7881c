//! What an engine's thread and its clients have in common.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SendError;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::schedule::{Bounds, Event, GenerateOptions, Request, Scheduler, Stats};
use crate::tokenizer::Tokenizer;
use crate::transformer::Spec;

/// Takes the events of a request, on the engine's thread; a break ends the request.
pub(super) type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

/// What clients tell the thread.
pub(super) enum Command {
    Submit(u64, Box<Request>, Sink),
    Cancel(u64),
    Pause(u64, bool),
    Stop,
}

/// How an engine's thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Whether the thread runs: false when the engine was dropped, and after a panic.
    pub is_alive: bool,
    /// Whether there is something to compute, or being computed.
    pub has_work: bool,
    /// How long ago the thread last began or ended a step, while there is work; zero where there is none.
    pub silent: Duration,
    /// When the last step ended that computed something.
    pub last_step: Option<Instant>,
    /// Steps that failed, in a row.
    pub failures: u64,
}

/// What clients know without asking.
pub(super) struct Shared {
    pub(super) spec: Spec,
    pub(super) bounds: Bounds,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) chat: Option<ChatTemplate>,
    pub(super) options: GenerateOptions,
    next: AtomicU64,
    /// Held for as long as it takes to copy it.
    pulse: Mutex<Pulse>,
}

/// What the thread says of itself between steps.
struct Pulse {
    is_alive: bool,
    /// Whether it waits for commands, having nothing to compute.
    is_idle: bool,
    at: Instant,
    last_step: Option<Instant>,
    stats: Stats,
    /// Answers asked for that the thread has not heard of.
    unheard: usize,
}

impl Shared {
    pub(super) fn new(
        scheduler: &Scheduler<'_>,
        chat: Option<ChatTemplate>,
        options: GenerateOptions,
    ) -> Self {
        Self {
            spec: scheduler.backend().spec().clone(),
            bounds: scheduler.bounds(),
            tokenizer: scheduler.tokenizer().cloned(),
            chat,
            options,
            next: AtomicU64::new(0),
            pulse: Mutex::new(Pulse {
                is_alive: true,
                is_idle: true,
                at: Instant::now(),
                last_step: None,
                stats: scheduler.stats(),
                unheard: 0,
            }),
        }
    }

    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        // Whoever held it only copied numbers.
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the thread of a request for `n` answers, whose number it gives. Either the thread hears of it or it has ended before.
    pub(super) fn ask(
        &self,
        n: usize,
        tell: impl FnOnce(u64) -> Result<(), SendError<Command>>,
    ) -> Result<u64> {
        let mut pulse = self.pulse();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if !pulse.is_alive || tell(number).is_err() {
            return Err(ended());
        }
        pulse.unheard += n;
        Ok(number)
    }

    /// The thread begins or ends a step, having heard of `heard` more answers; `is_step` is whether something was computed.
    pub(super) fn beat(&self, stats: Stats, heard: usize, is_step: bool) {
        let now = Instant::now();
        let mut pulse = self.pulse();
        pulse.unheard = pulse.unheard.saturating_sub(heard);
        pulse.stats = stats;
        pulse.at = now;
        pulse.is_idle = false;
        if is_step {
            pulse.last_step = Some(now);
        }
    }

    /// The thread waits for commands.
    pub(super) fn rest(&self) {
        self.pulse().is_idle = true;
    }

    /// The thread has ended, and what waited with it.
    pub(super) fn end(&self) {
        let mut pulse = self.pulse();
        pulse.is_alive = false;
        pulse.unheard = 0;
        let stats = &mut pulse.stats;
        (stats.waiting, stats.running, stats.pages_held) = (0, 0, 0);
    }

    pub(super) fn stats(&self) -> Stats {
        let pulse = self.pulse();
        Stats {
            waiting: pulse.stats.waiting + pulse.unheard,
            ..pulse.stats
        }
    }

    pub(super) fn health(&self) -> Health {
        let pulse = self.pulse();
        let has_work = pulse.is_alive && (!pulse.is_idle || pulse.unheard > 0);
        Health {
            is_alive: pulse.is_alive,
            has_work,
            silent: if has_work && !pulse.is_idle {
                pulse.at.elapsed()
            } else {
                Duration::ZERO
            },
            last_step: pulse.last_step,
            failures: pulse.stats.failures,
        }
    }
}

pub(super) fn ended() -> Error {
    Error::Device("the engine has ended: start another one".to_owned())
}
