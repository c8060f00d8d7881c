//! `bitnet completions` and `bitnet man`: what shells and `man` know of the program, made from its flags.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bitnet_model::replace_file;
use clap_complete::Shell;

use crate::failure::hinted;
use crate::settings;
use crate::terminal::say;

/// Print the completions for a shell
///
/// For bash: bitnet completions bash > ~/.local/share/bash-completion/completions/bitnet
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page of a command, or write all pages to a folder
///
/// To read one: bitnet man chat | man -l -
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// The command, such as chat or bench model [default: the page of the program]
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,
    /// Write every page to this folder
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Runs `bitnet completions`.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut settings::command(), "bitnet", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// The page of a command.
fn page(command: &clap::Command) -> clap_mangen::Man {
    let command = command.clone().mut_args(|arg| {
        let names = arg.get_visible_aliases().unwrap_or_default();
        if names.is_empty() {
            return arg;
        }
        let names: Vec<String> = names.iter().map(|name| format!("--{name}")).collect();
        let help = arg
            .get_long_help()
            .or(arg.get_help())
            .map(ToString::to_string)
            .unwrap_or_default();
        arg.long_help(format!("{help} (also {})", names.join(", ")))
    });
    clap_mangen::Man::new(command).source(concat!("bitnet ", env!("CARGO_PKG_VERSION")))
}

/// The command line without what shows the help of others, which is no page of its own.
fn documented(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|inner| match inner.get_name() {
        "help" => inner.hide(true),
        _ => documented(inner),
    })
}

/// Writes the page of a command and those of the commands inside it.
fn pages(command: &clap::Command, dir: &Path) -> anyhow::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        pages(inner, dir)?;
    }
    let page = page(command);
    let mut text = Vec::new();
    page.render(&mut text)?;
    replace_file(&dir.join(page.get_filename()), &text)?;
    Ok(())
}

/// Runs `bitnet man`.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let mut command = settings::command();
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        command.build();
        pages(&documented(command), dir)?;
        say!("wrote the manual pages to {}", dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    command.build();
    let command = documented(command);
    let mut named = &command;
    for name in &args.command {
        named = named.find_subcommand(name).ok_or_else(|| {
            hinted(
                format!("there is no command `{}`", args.command.join(" ")),
                "bitnet --help lists them",
            )
        })?;
    }
    let mut text = Vec::new();
    page(named).render(&mut text)?;
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}
