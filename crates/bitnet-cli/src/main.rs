//! The `bitnet` program: chat with, convert, inspect and measure BitNet b1.58 models.
#![forbid(unsafe_code)]
// These panic when their output is closed or full; `terminal::say` and `write!` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod commands;
mod demo;
mod machine;
mod terminal;

mod interrupt;
mod line;
mod progress;
mod report;

mod answer;
mod failure;

mod flags;
mod hub;
mod model;
mod repl;

mod args;
mod constraint;
mod convert;
mod list;
mod pull;
mod settings;

mod batch;
mod bench;
mod doctor;
mod embed;
mod generate;
mod inspect;
mod manual;
mod measure;
mod rm;
#[cfg(feature = "serve")]
mod serve;
mod tokenize;

#[cfg(feature = "serve")]
mod health;

mod logits;
mod perplexity;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};

/// Chat with, serve, convert, inspect and measure BitNet b1.58 models.
#[derive(Debug, clap::Parser)]
#[command(
    name = "bitnet",
    version,
    max_term_width = 100,
    after_help = "New here? `bitnet chat` talks to the demo model inside this program; -m names another one.\n\n\
        Exit status: 0 when the work is done, 1 when it failed (a line that begins with error: says why), 2 when a flag or \
        variable is not understood, 128 + N when signal N ended it (130 for Ctrl-C)."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// TOML file with defaults for flags, such as temp = 0.5; an empty name reads none
    /// [default: bitnet/config.toml in the folder for settings, ~/.config]
    #[arg(
        long,
        value_name = "FILE",
        env = "BITNET_CONFIG",
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        global = true,
        help_heading = "Defaults"
    )]
    config: Option<PathBuf>,
}

/// One file a subcommand: its `Args`, and `run`.
#[derive(Debug, clap::Subcommand)]
enum Command {
    Chat(generate::ChatArgs),
    Generate(generate::Args),
    Batch(batch::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    #[cfg(feature = "serve")]
    Health(health::Args),
    Pull(pull::Args),
    List(list::Args),
    Rm(rm::Args),
    Convert(convert::Args),
    Inspect(inspect::Args),
    Logits(logits::Args),
    Perplexity(perplexity::Args),
    Embed(embed::Args),
    Tokenize(tokenize::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    interrupt::let_large_writes_fail();
    failure::report(|| match settings::parse(std::env::args_os())? {
        settings::Asked::Run(cli, origins) => run(&cli).map_err(|error| settings::explain(error, &origins)),
        settings::Asked::Done(code) => Ok(code),
    })
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Chat(args) => generate::chat(args),
        Command::Generate(args) => generate::run(args),
        Command::Batch(args) => batch::run(args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args),
        #[cfg(feature = "serve")]
        Command::Health(args) => health::run(args),
        Command::Pull(args) => pull::run(args),
        Command::List(args) => list::run(args),
        Command::Rm(args) => rm::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args, cli.config.as_deref()),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
    }
}
