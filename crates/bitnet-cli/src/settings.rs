//! Where the values of flags come from: the command line, else an environment variable, else a file, else the program.
//!
//! Every flag that makes sense from one run to the next has a variable, `BITNET_` and its name, and a key of the file. It
//! knows no flag but those that have none.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use crate::Cli;
use crate::failure::hinted;

/// Flags that belong to one run: what to do it with, where its results go, what it prints.
const OF_ONE_RUN: [&str; 21] = [
    "help",
    "version",
    "config",
    // As a setting it is `device`, which a flag outranks.
    "cpu",
    "prompt",
    "file",
    "prompt-ids",
    "ids",
    "no-bos",
    "chat-format",
    "interactive",
    "echo",
    "json",
    "out",
    "force",
    "dir",
    "tensors",
    "verify",
    "save",
    "plot",
    "commit",
];

/// Flags that mean something else in a command than the setting of the same name in others: a default for those would be an
/// order here.
const OF_ONE_RUN_OF: [(&str, &str); 3] = [
    ("doctor", "device"),
    ("generate", "system"),
    ("perplexity", "ctx-size"),
];

/// The program's command line, with the environment variables.
pub(crate) fn command() -> Command {
    each_setting(Cli::command(), &mut |_, arg, name| {
        let arg = match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            _ => arg,
        };
        arg.env(variable(name))
    })
}

/// Reads flags, environment and file. What is wrong on the command line ends the program with usage and exit status 2.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Cli> {
    let args: Vec<OsString> = args.into_iter().collect();
    // Without the file first: it is named on the command line, and its own mistakes can then be told from others.
    let matches = command().get_matches_from(&args);
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let path = match cli.config.take() {
        // An empty name asks for none.
        Some(path) if path.as_os_str().is_empty() => return Ok(cli),
        Some(path) => path,
        None => match default_file().filter(|path| path.exists()) {
            Some(path) => path,
            None => return Ok(cli),
        },
    };
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let table: Table = text.parse().map_err(|error| syntax(&path, &text, &error))?;
    let command = with_defaults(command(), &table).with_context(|| path.display().to_string())?;
    let mut cli = command
        .try_get_matches_from(&args)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| refused(&path, &error))?;
    cli.config = Some(path);
    Ok(cli)
}

/// What the flag `name` is called in the environment.
fn variable(name: &str) -> String {
    format!("BITNET_{}", name.to_uppercase().replace('-', "_"))
}

/// The file that is read when none is named.
fn default_file() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let settings = if cfg!(windows) {
        folder("APPDATA")?
    } else {
        folder("XDG_CONFIG_HOME").or_else(|| Some(std::env::home_dir()?.join(".config")))?
    };
    Some(settings.join("bitnet").join("config.toml"))
}

/// Changes every flag that is a setting, in all commands; `change` gets the names of the commands, the flag and its name.
fn each_setting(command: Command, change: &mut dyn FnMut(&[String], Arg, &str) -> Arg) -> Command {
    fn go(command: Command, path: &[String], change: &mut dyn FnMut(&[String], Arg, &str) -> Arg) -> Command {
        let command = command.mut_args(|arg| match arg.get_long().map(str::to_owned) {
            Some(name) if is_setting(path, &name) => change(path, arg, &name),
            _ => arg,
        });
        command.mut_subcommands(|inner| {
            let path = [path, &[inner.get_name().to_owned()]].concat();
            go(inner, &path, change)
        })
    }
    go(command, &[], change)
}

fn is_setting(path: &[String], name: &str) -> bool {
    let here = |(command, flag): &(&str, &str)| path.first().is_some_and(|c| c == command) && *flag == name;
    !OF_ONE_RUN.contains(&name) && !OF_ONE_RUN_OF.iter().any(here)
}

/// The command line with what the file says in the place of the program's own defaults. Keys at its top are for every
/// command that has the flag; a table named as a command, as `[chat]` or `[bench.model]`, is for that command.
fn with_defaults(command: Command, file: &Table) -> anyhow::Result<Command> {
    check(&command, &[], file)?;
    let mut failure = None;
    let command = each_setting(command, &mut |path, arg, name| {
        let Some(value) = lookup(file, path, name) else {
            return arg;
        };
        match texts(value) {
            Some(texts) if texts.len() == 1 || matches!(arg.get_action(), ArgAction::Append) => {
                arg.default_values(texts)
            }
            _ => {
                failure.get_or_insert(format!(
                    "`{name}` is of type {}; expected one string, number or boolean",
                    value.type_str()
                ));
                arg
            }
        }
    });
    match failure {
        Some(failure) => Err(anyhow::Error::msg(failure)),
        None => Ok(command),
    }
}

/// The innermost value of `name` for the command at `path`.
fn lookup<'t>(file: &'t Table, path: &[String], name: &str) -> Option<&'t Value> {
    let inner = path
        .split_first()
        .and_then(|(first, rest)| match file.get(first) {
            Some(Value::Table(table)) => lookup(table, rest, name),
            _ => None,
        });
    inner.or_else(|| file.get(name).filter(|value| !value.is_table()))
}

/// As they would be typed.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(choice) => Some(vec![choice.to_string()]),
        Value::Array(values) => {
            let texts: Option<Vec<_>> = values.iter().map(texts).collect();
            Some(texts?.concat())
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

/// Refuses keys that mean nothing; `path` are the tables around `table`.
fn check(command: &Command, path: &[String], table: &Table) -> anyhow::Result<()> {
    for (key, value) in table {
        let full = [path, std::slice::from_ref(key)].concat();
        if let Value::Table(inner) = value
            && let Some(subcommand) = command.find_subcommand(key)
        {
            check(subcommand, &full, inner)?;
        } else if value.is_table() || !knows(command, path, key) {
            let place = if path.is_empty() {
                "a setting of any command, or a table named as a command".to_owned()
            } else {
                format!("a setting of `bitnet {}`", path.join(" "))
            };
            return Err(hinted(
                format!("unknown key `{}`; expected {place}", full.join(".")),
                "settings are the flags with an [env: ...] in `bitnet <command> --help`, without their dashes: temp = 0.5",
            ));
        }
    }
    Ok(())
}

/// Whether `command` or one inside it has the setting.
fn knows(command: &Command, path: &[String], name: &str) -> bool {
    let own = command.get_arguments().any(|arg| arg.get_long() == Some(name)) && is_setting(path, name);
    own || command.get_subcommands().any(|inner| {
        let path = [path, &[inner.get_name().to_owned()]].concat();
        knows(inner, &path, name)
    })
}

/// What is not TOML, with its line.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> anyhow::Error {
    let start = error.span().map_or(0, |span| span.start);
    let line = 1 + text.bytes().take(start).filter(|&byte| byte == b'\n').count();
    anyhow::anyhow!(
        "{} line {line}: {}",
        path.display(),
        error.message().replace('\n', ", ")
    )
}

/// A value of the file that its flag does not take, in one line.
fn refused(path: &Path, error: &clap::Error) -> anyhow::Error {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    anyhow::anyhow!(
        "{}: {}",
        path.display(),
        first.strip_prefix("error: ").unwrap_or(first)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn the_lists_name_flags_that_exist() {
        fn has(command: &Command, name: &str) -> bool {
            command.get_arguments().any(|arg| arg.get_long() == Some(name))
                || command.get_subcommands().any(|inner| has(inner, name))
        }
        let mut command = Cli::command();
        command.build();
        for name in OF_ONE_RUN {
            assert!(has(&command, name), "--{name}");
        }
        for (inner, name) in OF_ONE_RUN_OF {
            assert!(
                has(command.find_subcommand(inner).unwrap(), name),
                "{inner} --{name}"
            );
        }
    }

    #[test]
    fn what_is_nearer_wins() {
        let file: Table =
            "temp = 1\nthreads = 3\n[chat]\ntemp = 2\nstop = ['a', 'b']\n[bench.model]\ndepth = 5"
                .parse()
                .unwrap();
        let command = with_defaults(command(), &file).unwrap();
        let values = |args: &[&str], id: &str| -> Vec<String> {
            let matches = command.clone().get_matches_from([&["bitnet"], args].concat());
            let mut matches = &matches;
            while let Some((_, inner)) = matches.subcommand() {
                matches = inner;
            }
            let raw = matches.get_raw(id).unwrap();
            raw.map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(values(&["chat"], "temp"), ["2"]);
        assert_eq!(values(&["chat", "--temp", "4"], "temp"), ["4"]);
        assert_eq!(values(&["generate"], "temp"), ["1"]);
        assert_eq!(values(&["chat"], "stop"), ["a", "b"]);
        assert_eq!(values(&["chat", "--stop", "c"], "stop"), ["c"]);
        assert_eq!(values(&["bench", "model"], "threads"), ["3"]);
        assert_eq!(values(&["bench", "model"], "depth"), ["5"]);
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for (text, expected) in [
            ("tempp = 1", "unknown key `tempp`"),
            ("prompt = 'a'", "unknown key `prompt`"),
            ("[chat]\nrepetitions = 1", "unknown key `chat.repetitions`"),
            ("[chats]\ntemp = 1", "unknown key `chats`"),
            ("[doctor]\ndevice = 'cpu'", "unknown key `doctor.device`"),
            ("temp = [1, 2]", "`temp` is of type array; expected one"),
            ("temp = 2020-01-01", "`temp` is of type datetime; expected one"),
            ("[chat]\ntemp = { a = 1 }", "unknown key `chat.temp`"),
        ] {
            let error = with_defaults(command(), &text.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }
}
