//! What a template may cost: steps, bytes and depth. Everything that makes a text or a list asks here first.

use std::cell::Cell;

/// Steps of the interpreter; a published template takes some hundreds a message.
const STEPS: u64 = 10_000_000;
/// Bytes looked at for the price of a step.
const BYTES_A_STEP: u64 = 64;
/// Bytes of all values made, freed ones included.
const BYTES: u64 = 256 << 20;
/// Bytes of one text, where what came in is small.
const TEXT: usize = 512 << 10;
/// Bytes that an item of a list stands for.
pub(super) const ITEM: usize = 32;
/// Levels of calls, statements and expressions inside each other.
const LEVELS: u32 = 2_500;
/// Levels of lists and dictionaries inside each other; JSON allows 128.
pub(super) const VALUE_DEPTH: u16 = 256;

/// Why a template failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// Line of the template, from 1; 0 where it is not known.
    pub(crate) line: u32,
}

pub(crate) type Res<T> = Result<T, Failure>;

/// A failure of which the caller knows the line.
pub(super) fn failure(message: impl Into<String>) -> Failure {
    Failure {
        message: message.into(),
        line: 0,
    }
}

pub(super) fn fail<T>(message: impl Into<String>) -> Res<T> {
    Err(failure(message))
}

/// What is left.
pub(super) struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    levels: Cell<u32>,
    max_text: usize,
}

impl Budget {
    /// For a template and variables of so many bytes together: whoever sends much may use more.
    pub(super) fn new(given: usize) -> Self {
        let given_64 = given as u64;
        Self {
            steps: Cell::new(STEPS + 16 * given_64),
            bytes: Cell::new(BYTES + 16 * given_64),
            levels: Cell::new(LEVELS),
            max_text: TEXT + 16 * given,
        }
    }

    /// One step.
    pub(super) fn step(&self) -> Res<()> {
        self.steps(1)
    }

    fn steps(&self, n: u64) -> Res<()> {
        let Some(left) = self.steps.get().checked_sub(n) else {
            return fail("the template takes too many steps");
        };
        self.steps.set(left);
        Ok(())
    }

    /// Looks at so many bytes or values.
    pub(super) fn look(&self, n: usize) -> Res<()> {
        self.steps(n as u64 / BYTES_A_STEP + 1)
    }

    /// Makes so many bytes.
    pub(super) fn make(&self, n: usize) -> Res<()> {
        self.look(n)?;
        let Some(left) = self.bytes.get().checked_sub(n as u64) else {
            return fail("the template takes too much memory");
        };
        self.bytes.set(left);
        Ok(())
    }

    /// Checks the length of a text before it is made.
    pub(super) fn check_text(&self, len: usize) -> Res<()> {
        if len > self.max_text {
            return fail(format!(
                "the template makes a text of {len} bytes; at most {} are allowed",
                self.max_text
            ));
        }
        Ok(())
    }

    /// Checks the length of a list before it is made.
    pub(super) fn check_items(&self, len: usize) -> Res<()> {
        let bytes = len.saturating_mul(ITEM);
        if bytes as u64 > self.bytes.get() || len > self.max_text {
            return fail(format!(
                "the template makes a list of {len} items; that is too long"
            ));
        }
        Ok(())
    }

    /// Goes one level deeper for as long as `f` takes.
    pub(super) fn enter(&self) -> Res<()> {
        let Some(left) = self.levels.get().checked_sub(1) else {
            return fail("the template goes too deep: calls, blocks or values inside each other");
        };
        self.levels.set(left);
        self.step()
    }

    pub(super) fn leave(&self) {
        self.levels.set(self.levels.get() + 1);
    }
}

/// A text in the making, never longer than allowed.
pub(super) struct Text<'b> {
    pub(super) budget: &'b Budget,
    text: String,
}

impl<'b> Text<'b> {
    pub(super) fn new(budget: &'b Budget) -> Self {
        let text = String::new();
        Self { budget, text }
    }

    pub(super) fn push(&mut self, text: &str) -> Res<()> {
        self.budget.check_text(self.text.len() + text.len())?;
        self.budget.make(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    pub(super) fn push_char(&mut self, c: char) -> Res<()> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    /// `text` so many times.
    pub(super) fn push_n(&mut self, text: &str, n: usize) -> Res<()> {
        self.budget
            .check_text(text.len().saturating_mul(n).saturating_add(self.text.len()))?;
        for _ in 0..if text.is_empty() { 0 } else { n } {
            self.push(text)?;
        }
        Ok(())
    }

    pub(super) fn into_string(self) -> String {
        self.text
    }
}
