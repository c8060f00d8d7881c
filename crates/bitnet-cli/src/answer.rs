//! One answer: generated, streamed to stdout, measured on stderr.

use std::io::Write;
use std::ops::ControlFlow;

use bitnet_model::schedule::Mask;
use bitnet_model::schedule::Stats;
use bitnet_model::{Event, GenerateOptions, Generation, Generator, Prompt, ZeroCounts};

use crate::interrupt::Guard;
use crate::report::{self, Facts, Spared};
use crate::terminal::{Terminal, width};

/// What all the answers of a run of the program share.
pub(crate) struct Answerer<'m> {
    pub(crate) generator: Generator<'m>,
    pub(crate) options: GenerateOptions,
    /// What each answer must obey, at its beginning.
    pub(crate) mask: Option<Box<dyn Mask>>,
    pub(crate) facts: Facts,
    pub(crate) terminal: Terminal,
    /// Whether statistics follow each answer.
    pub(crate) statistics: bool,
    /// What was counted when the last answer began.
    pub(crate) before: Counts,
}

/// What the computing of answers counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    stats: Stats,
    zeros: ZeroCounts,
}

impl Answerer<'_> {
    /// Generates without printing.
    pub(crate) fn collect(&mut self, prompt: Prompt<'_>) -> anyhow::Result<Generation> {
        let answering = Guard::answering();
        let mask = self.mask();
        self.before = self.counts();
        let generation = self
            .generator
            .generate_masked(prompt, &self.options, mask, |_| answering.flow())?;
        Ok(generation)
    }

    /// Generates and prints the text as it comes.
    pub(crate) fn stream(&mut self, prompt: Prompt<'_>) -> anyhow::Result<Generation> {
        let (answering, terminal) = (Guard::answering(), self.terminal);
        let spinner = terminal.spinner("reading the prompt".to_owned());
        let mut out = std::io::stdout().lock();
        let mut written = Ok(());
        let mask = self.mask();
        self.before = self.counts();
        let generation = self
            .generator
            .generate_masked(prompt, &self.options, mask, |event| {
                if let Event::Prefill { done, total } = event {
                    spinner.set_message(format!("reading the prompt {done}/{total}"));
                } else if !spinner.is_finished() {
                    spinner.finish_and_clear();
                }
                if !event.text().is_empty() {
                    written = out
                        .write_all(terminal.printable(event.text()).as_bytes())
                        .and_then(|()| out.flush());
                }
                if written.is_err() {
                    ControlFlow::Break(())
                } else {
                    answering.flow()
                }
            });
        spinner.finish_and_clear();
        // A reader that is gone outranks what it no longer waits for.
        written?;
        Ok(generation?)
    }

    fn mask(&self) -> Option<Box<dyn Mask>> {
        self.mask.as_ref().map(|mask| mask.fork())
    }

    fn counts(&self) -> Counts {
        Counts {
            stats: self.generator.stats(),
            zeros: self.generator.zeros(),
        }
    }

    /// What the last answer was spared.
    pub(crate) fn spared(&self) -> Spared {
        let (now, before) = (self.counts(), self.before);
        let rows = now.stats.certified - before.stats.certified;
        let logits = now.stats.candidates - before.stats.candidates;
        Spared {
            weights_read: self.generator.share_read(now.zeros.since(before.zeros)),
            logits: (rows > 0).then(|| logits as f64 / rows as f64),
        }
    }

    /// The statistics of an answer, if they are wanted.
    pub(crate) fn report(&self, generation: &Generation) {
        if self.statistics {
            self.terminal
                .note(&report::line(generation, &self.facts, self.spared(), width()));
        }
    }
}
