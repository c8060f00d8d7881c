//! What runs on an engine's thread: commands are taken between steps, and events go to those who asked.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;

use super::shared::{Command, Shared, Sink, ended};
use crate::error::Error;
use crate::schedule::{Event, Id, Scheduler, Stats, StepReport};

/// Is told of every step.
pub(super) type Observer = Box<dyn FnMut(&StepReport, &Stats) + Send>;

/// Serves clients until it is told to stop, or all of them are gone.
pub(super) fn run(
    scheduler: Scheduler<'static>,
    shared: &Shared,
    observer: Observer,
    commands: Receiver<Command>,
) {
    let mut all = Loop {
        scheduler,
        shared,
        observer,
        ids: HashMap::new(),
        requests: HashMap::new(),
        heard: 0,
        is_stopping: false,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| all.run(&commands)));
    shared.end();
    all.end(&commands, outcome.is_err());
    // It talks to a device, which may be what panicked.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(all)));
}

struct Loop<'s> {
    scheduler: Scheduler<'static>,
    shared: &'s Shared,
    observer: Observer,
    ids: HashMap<u64, Id>,
    requests: HashMap<Id, Asked>,
    /// Answers that commands asked for since clients were told.
    heard: usize,
    is_stopping: bool,
}

/// A request that is not over.
struct Asked {
    number: u64,
    sink: Sink,
    /// Answers that have not finished.
    left: usize,
}

/// Hands an event on. A sink that panics wants no more.
fn hand(sink: &mut Sink, event: Event) -> ControlFlow<()> {
    catch_unwind(AssertUnwindSafe(|| sink(event))).unwrap_or(ControlFlow::Break(()))
}

impl Loop<'_> {
    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            // With nothing to compute it waits; else commands are taken between steps.
            let has_nothing = self.scheduler.is_idle() || self.scheduler.is_stalled();
            if has_nothing && !self.is_stopping {
                self.shared.rest();
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            let heard = std::mem::take(&mut self.heard);
            self.shared.beat(self.scheduler.stats(), heard, false);
            let events = self.scheduler.step();
            let (report, stats) = (self.scheduler.last_step(), self.scheduler.stats());
            // Before those who asked are told: whoever has the last event finds its request gone.
            self.shared.beat(stats, 0, report.is_some());
            if let Some(report) = report {
                (self.observer)(&report, &stats);
            }
            for (id, event) in events {
                self.tell(id, event);
            }
            if self.is_stopping {
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(number, request, mut sink) => {
                let left = request.n;
                self.heard += left;
                match self.scheduler.submit(*request) {
                    Ok(id) => {
                        self.ids.insert(number, id);
                        self.requests.insert(id, Asked { number, sink, left });
                    }
                    Err(error) => {
                        let _ = hand(&mut sink, Event::Failed(error));
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
        let flow = hand(&mut asked.sink, event);
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

    /// Tells all who still wait for something that nothing comes.
    fn end(&mut self, commands: &Receiver<Command>, by_panic: bool) {
        let failed = || {
            Event::Failed(if by_panic {
                let message = "the engine has ended by a mistake in its program: start another one";
                Error::Device(message.to_owned())
            } else {
                ended()
            })
        };
        for (_, mut asked) in self.requests.drain() {
            let _ = hand(&mut asked.sink, failed());
        }
        for command in commands.try_iter() {
            if let Command::Submit(_, _, mut sink) = command {
                let _ = hand(&mut sink, failed());
            }
        }
    }
}
