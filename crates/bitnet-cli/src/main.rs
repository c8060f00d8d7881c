//! The `bitnet` program: chat with, convert, inspect and measure BitNet b1.58 models.
#![forbid(unsafe_code)]

mod args;
mod failure;
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
    Tokenize(tokenize::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Tokenize(args) => tokenize::run(&args),
    };
    failure::report(result)
}
