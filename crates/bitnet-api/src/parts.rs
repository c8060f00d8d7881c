//! The parts of answers while they are made: what is known of a prompt and a choice, and the events that gather.

use crate::calls::{CallParser, Piece};
use crate::form::{CallDelta, CallPart, Called, Function, StopReason};
use crate::job::Asked;
use crate::logprobs::{Entry, Namer};
use crate::served::random;

pub(crate) struct PromptState {
    pub(crate) cached: usize,
    /// Log-probabilities of its tokens, where the answer has them.
    pub(crate) entries: Vec<Entry>,
    pub(crate) namer: Option<Namer>,
}

pub(crate) struct Choice {
    pub(crate) n_tokens: usize,
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) calls: Vec<Called>,
    pub(crate) parser: Option<CallParser>,
    pub(crate) namer: Option<Namer>,
    /// Whether what stands before its first token was told.
    pub(crate) is_begun: bool,
    pub(crate) end: Option<Ended>,
    /// The chunk that more can be added to.
    pub(crate) open: Option<usize>,
}

pub(crate) struct Ended {
    pub(crate) reason: Option<&'static str>,
    pub(crate) stop: StopReason,
}

/// An event of a stream that is not written yet.
pub(crate) enum Chunk {
    Role(usize),
    Part(Part),
    End(usize),
    Usage,
}

#[derive(Default)]
pub(crate) struct Part {
    pub(crate) choice: usize,
    pub(crate) text: String,
    pub(crate) calls: Vec<CallDelta>,
    /// Whether log-probabilities of the prompt come first.
    pub(crate) has_prompt: bool,
    pub(crate) entries: Vec<Entry>,
    pub(crate) ids: Vec<u32>,
}

impl PromptState {
    /// The first token of all follows on nothing, and has an entry without a log-probability.
    pub(crate) fn begin(&mut self, asked: &Asked) {
        if let (Some(namer), Some(&id), true) = (&mut self.namer, asked.ids.first(), self.entries.is_empty())
        {
            let shows = std::mem::replace(&mut namer.shows_special, asked.spells_first);
            self.entries.push(namer.entry(id, None));
            namer.shows_special = shows;
        }
    }
}

impl Choice {
    /// Text and calls of what is certain now.
    pub(crate) fn pieces(&mut self, text: String) -> Vec<Piece> {
        match &mut self.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Piece::Text(text)],
        }
    }

    /// Keeps what an answer in one piece is made of.
    pub(crate) fn keep(&mut self, pieces: Vec<Piece>, entry: Option<Entry>, id: Option<u32>) {
        self.entries.extend(entry);
        self.ids.extend(id);
        for piece in pieces {
            match piece {
                Piece::Text(text) => self.text.push_str(&text),
                Piece::Call { name, .. } => self.calls.push(begun(name)),
                Piece::Arguments { index, text } => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
    }
}

impl Part {
    pub(crate) fn push(&mut self, piece: Piece) {
        match piece {
            Piece::Text(text) => self.text.push_str(&text),
            Piece::Call { index, name } => self.calls.push(CallDelta {
                index,
                part: CallPart::Begin(begun(name)),
            }),
            Piece::Arguments { index, text } => match self.calls.last_mut() {
                Some(CallDelta {
                    index: last,
                    part: CallPart::More { function },
                }) if *last == index => function.arguments.push_str(&text),
                _ => self.calls.push(CallDelta {
                    index,
                    part: CallPart::More {
                        function: Function {
                            name: None,
                            arguments: text,
                        },
                    },
                }),
            },
        }
    }

    pub(crate) fn ends_with_beginning(&self) -> bool {
        matches!(
            self.calls.last(),
            Some(CallDelta {
                part: CallPart::Begin(_),
                ..
            })
        )
    }
}

/// A call without arguments yet.
fn begun(name: String) -> Called {
    Called {
        id: call_id(),
        kind: "function",
        function: Function {
            name: Some(name),
            arguments: String::new(),
        },
    }
}

/// `call_` and 24 letters and digits.
fn call_id() -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut id = "call_".to_owned();
    for _ in 0..3 {
        let mut bits = random();
        for _ in 0..8 {
            id.push(char::from(DIGITS[(bits % 62) as usize]));
            bits /= 62;
        }
    }
    id
}
