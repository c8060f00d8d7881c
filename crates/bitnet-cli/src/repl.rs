//! The conversation: lines in, answers out, and the commands that begin with a slash.

use std::io::Write;
use std::process::ExitCode;

use bitnet_model::{Error, FinishReason, Message, Prompt};

use crate::answer::Answerer;
use crate::line::{Input, Line};

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

/// Name, argument and explanation of every command.
pub(crate) const COMMANDS: [(&str, &str, &str); 10] = [
    ("/help", "", "show this"),
    ("/exit", "", "leave (also /quit, /bye, Ctrl-D)"),
    ("/clear", "", "forget the conversation"),
    ("/system", "[TEXT]", "set the system message, or show it"),
    ("/retry", "", "answer the last message again"),
    ("/stats", "", "turn the statistics on or off"),
    ("/temp", "T", "temperature; 0 always takes the most likely token"),
    ("/topk", "K", "draw from the K most likely tokens; 0 from all"),
    (
        "/topp",
        "P",
        "draw from the most likely tokens of probability P; 1 from all",
    ),
    ("/seed", "N", "seed of the next answer"),
];

/// Holds a conversation until the person leaves.
pub(crate) fn run(answerer: Answerer<'_>, setup: Setup) -> anyhow::Result<ExitCode> {
    let mut input = Input::open(setup.simple_io, answerer.terminal)?;
    if input.is_person() {
        eprintln!("{}", answerer.terminal.dim(&setup.welcome));
        let help = "/help lists commands, /exit leaves; \"\"\" begins and ends a message of several lines";
        eprintln!("{}", answerer.terminal.dim(help));
    }
    let mut conversation = Conversation {
        answerer,
        chat_format: setup.chat_format,
        system: setup.system,
        messages: Vec::new(),
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
                eprintln!("(Ctrl-C again or /exit leaves)");
                interrupted = true;
                continue;
            }
            Line::Text(text) if text.trim().is_empty() => {}
            Line::Text(text) => match text.trim_start().strip_prefix('/') {
                Some(command) => {
                    if conversation.command(command)? == Next::Leave {
                        break;
                    }
                }
                None => conversation.say(text)?,
            },
        }
        interrupted = false;
    }
    input.save_history();
    Ok(ExitCode::SUCCESS)
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
}

impl Conversation<'_> {
    /// Takes a message and prints the answer to it. A message that cannot be answered is forgotten, with its reason shown.
    fn say(&mut self, text: String) -> anyhow::Result<()> {
        self.messages.push(Message::user(text));
        let ids = match self.prompt_ids() {
            Ok(ids) => ids,
            Err(e) => return self.give_up(e),
        };
        let generation = match self.answerer.stream(Prompt::Ids(&ids)) {
            Ok(generation) => generation,
            Err(e) => match e.downcast::<Error>() {
                Ok(e) => return self.give_up(e),
                Err(e) => return Err(e),
            },
        };
        let mut out = std::io::stdout();
        if !generation.text.ends_with('\n') {
            writeln!(out)?;
        }
        out.flush()?;
        match generation.finish_reason {
            FinishReason::Cancelled => eprintln!("{}", self.answerer.terminal.dim("(stopped)")),
            FinishReason::Context => eprintln!("{}", self.answerer.terminal.dim("(the context is full)")),
            _ => {}
        }
        self.answerer.report(&generation);
        self.messages.push(Message::assistant(generation.text));
        // Another message deserves other draws, the same ones in a run with the same seed.
        let seed = &mut self.answerer.options.sampling.seed;
        *seed = seed.wrapping_add(1);
        Ok(())
    }

    fn give_up(&mut self, reason: Error) -> anyhow::Result<()> {
        self.messages.pop();
        eprintln!("error: {reason}");
        Ok(())
    }

    /// The conversation as token ids. When it leaves no room for an answer, its oldest messages are forgotten.
    fn prompt_ids(&mut self) -> Result<Vec<u32>, Error> {
        let context = self.answerer.generator.context();
        let room = (context / 4).min(256);
        let mut forgotten = 0;
        loop {
            let ids = if self.chat_format {
                let system = self.system.as_deref().map(Message::system);
                let messages: Vec<Message> =
                    system.into_iter().chain(self.messages.iter().cloned()).collect();
                self.answerer.generator.prompt_ids(Prompt::Chat(&messages))?
            } else {
                let text: String = self.messages.iter().map(|m| m.content.as_str()).collect();
                self.answerer.generator.prompt_ids(Prompt::Text(&text))?
            };
            if ids.len() + room <= context || self.messages.len() < 3 {
                if forgotten > 0 {
                    let note = format!("(the context is full: forgot the oldest {forgotten} messages)");
                    eprintln!("{}", self.answerer.terminal.dim(&note));
                }
                return Ok(ids);
            }
            self.messages.drain(..2);
            forgotten += 2;
        }
    }

    /// Carries out a command, given without its slash.
    fn command(&mut self, command: &str) -> anyhow::Result<Next> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let argument = argument.trim();
        let sampling = &mut self.answerer.options.sampling;
        match name {
            "exit" | "quit" | "bye" => return Ok(Next::Leave),
            "help" | "?" => help(),
            "clear" => {
                self.messages.clear();
                eprintln!("(forgotten)");
            }
            "system" if !self.chat_format => {
                eprintln!("error: plain text has no system message; start with --chat-format")
            }
            "system" if argument.is_empty() => match &self.system {
                Some(system) => eprintln!("{system}"),
                None => eprintln!("(none)"),
            },
            "system" => self.system = Some(argument.to_owned()),
            "retry" => {
                if self.messages.last().is_some_and(|m| m.role == "assistant") {
                    self.messages.pop();
                }
                match self.messages.pop() {
                    Some(message) => self.say(message.content)?,
                    None => eprintln!("error: there is no message to answer again"),
                }
            }
            "stats" => {
                self.answerer.statistics = !self.answerer.statistics;
                let now = if self.answerer.statistics { "on" } else { "off" };
                eprintln!("(statistics are {now})");
            }
            "temp" | "temperature" => set(&mut sampling.temperature, argument),
            "topk" => set(&mut sampling.top_k, argument),
            "topp" => set(&mut sampling.top_p, argument),
            "seed" => set(&mut sampling.seed, argument),
            _ => eprintln!("error: there is no command /{name}; /help lists them"),
        }
        Ok(Next::Ask)
    }
}

/// Sets a number; without an argument, shows it. Whether it is in range is checked by the next answer.
fn set<T: std::str::FromStr + std::fmt::Display>(field: &mut T, argument: &str) {
    match argument.parse() {
        Ok(value) => *field = value,
        Err(_) if argument.is_empty() => eprintln!("{field}"),
        Err(_) => eprintln!("error: {argument:?} is not a number of the kind expected"),
    }
}

fn help() {
    for (name, argument, explanation) in COMMANDS {
        let usage = format!("{name} {argument}");
        eprintln!("  {usage:<16} {explanation}");
    }
    eprintln!("  A line that ends with \\ goes on; \"\"\" begins and ends a message of several lines.");
    eprintln!("  Ctrl-C stops an answer; twice without one, it leaves.");
}
