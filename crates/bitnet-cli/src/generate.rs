//! `bitnet generate` and `bitnet chat`: continue a prompt, or hold a conversation.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_model::{ChatTemplate, FinishReason, GenerateOptions, Message, Model, Prompt, SpecialTokens};

use crate::answer::{Answerer, Counts};
use crate::args::{self, CacheArgs, DeviceArgs, ModelArgs, PromptArgs, SamplingArgs};
use crate::constraint::{Constraint, ConstraintArgs};
use crate::failure::{hinted, usage};
use crate::report::{self, Facts};
use crate::terminal::Terminal;
use crate::{interrupt, model, repl};

/// For those who gave none at a terminal.
const NO_PROMPT: &str =
    "give one with -p, -f, --prompt-ids or on stdin; --interactive or `bitnet chat` ask for it";

/// Continue a prompt
///
/// The prompt is used exactly as it is, a newline at its end included. Generated text, and nothing else, goes to stdout;
/// statistics go to stderr. Ctrl-C stops the answer; pressed again it leaves.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// Token ids to continue, such as 1,2,3; needs no tokenizer
    #[arg(long, value_name = "IDS", conflicts_with_all = ["prompt", "file", "chat_format", "interactive"])]
    prompt_ids: Option<String>,
    /// Put the prompt into the model's chat template, as a user's message
    #[arg(long)]
    chat_format: bool,
    /// Go on asking for prompts
    #[arg(short, long)]
    interactive: bool,
    /// Print the prompt before the text
    #[arg(long, conflicts_with_all = ["json", "interactive"])]
    echo: bool,
    /// Print one JSON object instead of text: prompt_ids, ids, text, finish_reason, timings
    #[arg(long, conflicts_with = "interactive")]
    json: bool,
}

/// Chat with the model: `generate --chat-format --interactive`
///
/// -p or -f give the first message. /help lists the commands. History is kept in the file that BITNET_HISTORY names, by
/// default bitnet/history in the folder for state; an empty BITNET_HISTORY keeps none.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    text: TextArgs,
}

/// The flags of both.
#[derive(Debug, clap::Args)]
struct TextArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Most tokens to generate; -1 (or -2) goes on until the model stops or the context is full
    /// [default: the model's own max_new_tokens, else -1]
    #[arg(
        short,
        long,
        visible_alias = "max-tokens",
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-2..)
    )]
    n_predict: Option<i64>,
    /// Stop at this text; may be repeated
    #[arg(
        long,
        visible_alias = "reverse-prompt",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    stop: Vec<String>,
    /// Go on past end-of-sequence tokens and show them
    #[arg(long)]
    ignore_eos: bool,
    /// Show special tokens in the text
    #[arg(long)]
    special: bool,
    /// System message of a chat (also -sys)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    chat_template_file: Option<PathBuf>,
    #[command(flatten)]
    constraint: ConstraintArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Plain input and output: no line editing, colors or spinner
    #[arg(long)]
    simple_io: bool,
    /// Most tokens to guess from what the text has said before and to check at once, where that is faster; 0 guesses none.
    /// The text is the same
    #[arg(long, value_name = "N", default_value = "16", help_heading = "Device")]
    draft_max: usize,
    /// Print no statistics
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `bitnet generate`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = &args.text;
    let ids = args.prompt_ids.as_deref().map(args::parse_ids).transpose();
    let ids = ids.map_err(|e| {
        usage(
            format!("--prompt-ids: {e}"),
            "commas or spaces separate the numbers",
        )
    })?;
    if text.system.is_some() && !args.chat_format {
        return Err(hinted(
            "--system has no place in plain text",
            "add --chat-format, or put it into the prompt",
        ));
    }
    if text.chat_template_file.is_some() && !args.chat_format {
        return Err(hinted(
            "--chat-template-file has no place in plain text",
            "add --chat-format, which puts the prompt into the template",
        ));
    }
    if args.interactive {
        return converse(text, args.chat_format);
    }
    // Before the model is loaded: a missing prompt shows at once.
    let prompt = match &ids {
        Some(_) => String::new(),
        None => text.prompt.read(NO_PROMPT)?,
    };
    let constraint = text.constraint.read()?;
    let terminal = Terminal::detect(text.simple_io);
    interrupt::install()?;
    let mut model = text.load(terminal)?;
    let mut messages = Vec::new();
    if args.chat_format {
        text.prepare_chat(&mut model)?;
        messages.extend(text.system.as_deref().map(Message::system));
        messages.push(Message::user(prompt.as_str()));
    }
    let prompt = match &ids {
        Some(ids) => Prompt::Ids(ids),
        None if args.chat_format => Prompt::Chat(&messages),
        None => Prompt::Text(&prompt),
    };

    let mut answerer = text.answerer(&mut model, constraint.as_ref(), terminal)?;
    let generation = if args.json {
        let generation = answerer.collect(prompt)?;
        let object = report::object(&generation, &answerer.facts, answerer.spared());
        report::print(&object)?;
        generation
    } else {
        if args.echo {
            let ids = answerer.generator.prompt_ids(prompt)?;
            let shown = answerer.generator.decode(&ids)?;
            write!(std::io::stdout(), "{}", terminal.printable(&shown))?;
        }
        let generation = answerer.stream(prompt)?;
        // A shell prompt belongs on a new line; a file gets the text alone.
        if std::io::stdout().is_terminal() && !generation.text.ends_with('\n') {
            writeln!(std::io::stdout())?;
        }
        generation
    };
    answerer.report(&generation);
    Ok(match generation.finish_reason {
        FinishReason::Cancelled => interrupt::status(),
        _ => ExitCode::SUCCESS,
    })
}

/// Runs `bitnet chat`.
pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    converse(&args.text, true)
}

fn converse(text: &TextArgs, chat_format: bool) -> anyhow::Result<ExitCode> {
    let first = text.prompt.given()?;
    let constraint = text.constraint.read()?;
    let terminal = Terminal::detect(text.simple_io);
    interrupt::install()?;
    let mut model = text.load(terminal)?;
    if chat_format {
        text.prepare_chat(&mut model)?;
    }
    let welcome = format!(
        "{} on {}, context {}",
        text.model.title(|| model.files().to_string()),
        model.backend().spec().name,
        model.backend().spec().context
    );
    let answerer = text.answerer(&mut model, constraint.as_ref(), terminal)?;
    repl::run(
        answerer,
        repl::Setup {
            welcome,
            chat_format,
            system: text.system.clone(),
            first,
            simple_io: text.simple_io,
        },
    )
}

impl TextArgs {
    fn load(&self, terminal: Terminal) -> anyhow::Result<Model> {
        if !self.quiet {
            self.model.introduce();
        }
        let mut options = self.device.options(self.cache.ctx_size, self.cache.kv_type);
        options.kv_memory = self.cache.kv_memory.unwrap_or_default();
        let model = model::load(&self.model.files()?, options, terminal)?;
        model::require_text(&model)?;
        Ok(model)
    }

    /// Makes sure that the model has a chat template.
    fn prepare_chat(&self, model: &mut Model) -> anyhow::Result<()> {
        if let Some(path) = &self.chat_template_file {
            let template = ChatTemplate::from_file(path, model.files())?;
            model.set_chat_template(template);
        }
        match model.chat_template() {
            None => Err(hinted(
                format!("{}: the model has no chat template", model.files()),
                "give one with --chat-template-file, or prompt it with plain text: bitnet generate -p",
            )),
            Some(template) => {
                template.check()?;
                model::warn_built_in(template);
                Ok(())
            }
        }
    }

    fn answerer<'m>(
        &self,
        model: &'m mut Model,
        constraint: Option<&Constraint>,
        terminal: Terminal,
    ) -> anyhow::Result<Answerer<'m>> {
        let GenerateOptions {
            sampling,
            mut stop,
            max_tokens,
            ..
        } = model.generate_options();
        stop.extend_from_slice(&self.stop);
        let options = GenerateOptions {
            sampling: self.sampling.apply(sampling),
            max_tokens: match self.n_predict {
                Some(n) => usize::try_from(n).ok(),
                None => max_tokens,
            },
            stop,
            ignore_eos: self.ignore_eos,
            special: if self.special || self.ignore_eos {
                SpecialTokens::Show
            } else {
                SpecialTokens::Hide
            },
            draft_max: self.draft_max,
            ..GenerateOptions::default()
        };
        Ok(Answerer {
            facts: Facts::new(model, options.sampling.seed),
            mask: constraint.map(|constraint| constraint.mask(model)).transpose()?,
            generator: model.generator(),
            options,
            terminal,
            statistics: !self.quiet,
            before: Counts::default(),
        })
    }
}
