//! The conversation: lines in, answers out, and the commands that begin with a slash.

use std::io::Write;
use std::process::ExitCode;

use bitnet_model::{Error, FinishReason, Message, Prompt, Sampling};

use crate::answer::Answerer;
use crate::commands::COMMANDS;
use crate::line::{Input, Line};
use crate::terminal::say;

/// What a conversation begins with.
pub(crate) struct Setup {
    /// What is printed first.
    pub(crate) welcome: String,
    /// Messages in the chat template; otherwise plain text that goes on and on.
    pub(crate) chat_format: bool,
    /// System message.
    pub(crate) system: Option<String>,
    /// First message.
    pub(crate) first: Option<String>,
    /// No line editing.
    pub(crate) simple_io: bool,
}

/// Holds a conversation until the person leaves.
pub(crate) fn run(answerer: Answerer<'_>, setup: Setup) -> anyhow::Result<ExitCode> {
    let mut input = Input::open(setup.simple_io, answerer.terminal)?;
    if input.is_person() {
        answerer.terminal.note(&setup.welcome);
        let help = "/help lists commands, /exit leaves; \"\"\" begins and ends a message of several lines";
        answerer.terminal.note(help);
    }
    let mut conversation = Conversation {
        answerer,
        chat_format: setup.chat_format,
        system: setup.system,
        messages: Vec::new(),
        failed: false,
    };
    if let Some(first) = setup.first {
        conversation.say(first)?;
    }
    let mut interrupted = false;
    loop {
        match input.read()? {
            Line::End => break,
            Line::Interrupted if interrupted => break,
            Line::Interrupted => {
                say!("(Ctrl-C again or /exit leaves)");
                interrupted = true;
                continue;
            }
            Line::Unusable(reason) => {
                conversation.failed = true;
                refuse(&reason);
            }
            Line::Message(text) if text.trim().is_empty() => {}
            Line::Message(text) => {
                conversation.say(text)?;
            }
            Line::Command(command) => {
                if conversation.command(&command)? == Next::Leave {
                    break;
                }
            }
        }
        interrupted = false;
    }
    // A person has seen the error; a script must be told.
    Ok(if conversation.failed && !input.is_person() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

#[derive(PartialEq, Eq)]
enum Next {
    Ask,
    Leave,
}

struct Conversation<'m> {
    answerer: Answerer<'m>,
    chat_format: bool,
    system: Option<String>,
    /// User and assistant in turn; in plain text, pieces of the text.
    messages: Vec<Message>,
    /// Whether a message was not answered.
    failed: bool,
}

impl Conversation<'_> {
    /// Takes a message and prints the answer to it. A message that cannot be answered is forgotten, and nothing else is,
    /// with its reason shown. Gives whether it was answered.
    fn say(&mut self, text: String) -> anyhow::Result<bool> {
        self.messages.push(Message::user(text));
        let (ids, n_forgotten) = match self.prompt_ids() {
            Ok(prompt) => prompt,
            Err(e) => return Ok(self.give_up(&e)),
        };
        if n_forgotten > 0 {
            let note = format!("(the context is full: forgot the oldest {n_forgotten} messages)");
            self.answerer.terminal.note(&note);
        }
        let generation = match self.answerer.stream(Prompt::Ids(&ids)) {
            Ok(generation) => generation,
            Err(e) => match e.downcast::<Error>() {
                Ok(e) => return Ok(self.give_up(&e)),
                Err(e) => return Err(e),
            },
        };
        self.messages.drain(..n_forgotten);
        let mut out = std::io::stdout();
        if !generation.text.ends_with('\n') {
            writeln!(out)?;
        }
        out.flush()?;
        match generation.finish_reason {
            FinishReason::Cancelled => self.answerer.terminal.note("(stopped)"),
            FinishReason::Context => self.answerer.terminal.note("(the context is full)"),
            _ => {}
        }
        self.answerer.report(&generation);
        self.messages.push(Message::assistant(generation.text));
        // Another message deserves other draws, the same ones in a run with the same seed.
        let seed = &mut self.answerer.options.sampling.seed;
        *seed = seed.wrapping_add(1);
        Ok(true)
    }

    fn give_up(&mut self, reason: &Error) -> bool {
        self.messages.pop();
        self.failed = true;
        refuse(&reason.to_string());
        false
    }

    /// The conversation as token ids, and how many of its oldest messages are left out because the context has no room for
    /// them beside an answer.
    fn prompt_ids(&self) -> Result<(Vec<u32>, usize), Error> {
        let context = self.answerer.generator.context();
        let fits = |ids: &[u32]| ids.len() + (context / 4).min(256) <= context;
        match self.ids_from(0) {
            Ok(whole) if fits(&whole) || self.messages.len() < 3 => return Ok((whole, 0)),
            Err(error) if self.messages.len() < 3 || !matches!(error, Error::ContextFull { .. }) => {
                return Err(error);
            }
            _ => {}
        }
        // User and assistant take turns, so the last message is at an even place.
        let last = self.messages.len() - 1;
        let alone = self.ids_from(last)?;
        if alone.len() >= context {
            return Err(Error::Request(format!(
                "the message has {} tokens, and the context has room for {context} with the answer; shorten it, or \
                 raise --ctx-size; the conversation goes on without it",
                alone.len()
            )));
        }
        for n_forgotten in (2..last).step_by(2) {
            match self.ids_from(n_forgotten) {
                Ok(ids) if fits(&ids) => return Ok((ids, n_forgotten)),
                Ok(_) | Err(Error::ContextFull { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((alone, last))
    }

    /// The conversation from message `first` on as token ids.
    fn ids_from(&self, first: usize) -> Result<Vec<u32>, Error> {
        let messages = &self.messages[first..];
        if self.chat_format {
            let system = self.system.as_deref().map(Message::system);
            let messages: Vec<Message> = system.into_iter().chain(messages.iter().cloned()).collect();
            self.answerer.generator.prompt_ids(Prompt::Chat(&messages))
        } else {
            let text: String = messages.iter().map(|m| m.content.as_str()).collect();
            self.answerer.generator.prompt_ids(Prompt::Text(&text))
        }
    }

    /// Carries out a command, given without its slash.
    fn command(&mut self, command: &str) -> anyhow::Result<Next> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let argument = argument.trim();
        match name {
            "exit" | "quit" | "bye" => return Ok(Next::Leave),
            "help" | "?" => help(),
            "clear" => {
                self.messages.clear();
                say!("(forgotten)");
            }
            "system" if !self.chat_format => {
                refuse("plain text has no system message; start with --chat-format");
            }
            "system" if argument.is_empty() => match &self.system {
                Some(system) => say!("{system}"),
                None => say!("(none)"),
            },
            "system" => self.system = Some(argument.to_owned()),
            "retry" => {
                let before = self.messages.clone();
                if self.messages.last().is_some_and(|m| m.role == "assistant") {
                    self.messages.pop();
                }
                match self.messages.pop() {
                    Some(message) => {
                        if !self.say(message.content)? {
                            self.messages = before;
                        }
                    }
                    None => refuse("there is no message to answer again"),
                }
            }
            "stats" => {
                self.answerer.statistics = !self.answerer.statistics;
                let now = if self.answerer.statistics { "on" } else { "off" };
                say!("(statistics are {now})");
            }
            "temp" | "temperature" => self.set(|sampling| &mut sampling.temperature, argument),
            "topk" => self.set(|sampling| &mut sampling.top_k, argument),
            "topp" => self.set(|sampling| &mut sampling.top_p, argument),
            "seed" => self.set(|sampling| &mut sampling.seed, argument),
            _ => refuse(&format!(
                "there is no command /{name}; /help lists them, and // begins a message that begins with a slash"
            )),
        }
        Ok(Next::Ask)
    }

    /// Sets a number; without an argument, shows it.
    fn set<T: std::str::FromStr + std::fmt::Display>(
        &mut self,
        field: impl FnOnce(&mut Sampling) -> &mut T,
        argument: &str,
    ) {
        let mut sampling = self.answerer.options.sampling.clone();
        let field = field(&mut sampling);
        match argument.parse() {
            Ok(value) => {
                *field = value;
                match sampling.check() {
                    Ok(()) => self.answerer.options.sampling = sampling,
                    Err(error) => refuse(&error.to_string()),
                }
            }
            Err(_) if argument.is_empty() => say!("{field}"),
            Err(_) => refuse(&format!("{argument:?} is not a number of the kind expected")),
        }
    }
}

/// Says why something was not done.
fn refuse(reason: &str) {
    say!("error: {}", reason.replace('\n', " "));
}

fn help() {
    for (name, argument, explanation) in COMMANDS {
        let usage = format!("{name} {argument}");
        say!("  {usage:<16} {explanation}");
    }
    say!("  A line that ends with \\ goes on; \"\"\" begins and ends a message of several lines.");
    say!("  // begins a message that begins with a slash.");
    say!("  Ctrl-C stops an answer; twice without one, it leaves.");
}
