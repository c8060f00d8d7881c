//! The `bitnet` program: chat with, convert, inspect and measure BitNet b1.58 models.
#![forbid(unsafe_code)]

mod args;
mod convert;
mod failure;
mod inspect;
mod progress;
mod tokenize;

use std::process::ExitCode;

use clap::Parser;

/// Chat with, convert, inspect and measure BitNet b1.58 models.
#[derive(Debug, clap::Parser)]
#[command(name = "bitnet", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One file a subcommand: its `Args`, and `run`.
#[derive(Debug, clap::Subcommand)]
enum Command {
    Convert(convert::Args),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Convert(args) => convert::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
    };
    failure::report(result)
}
