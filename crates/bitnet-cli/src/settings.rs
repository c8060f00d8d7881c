//! Where the values of flags come from: the command line, else an environment variable, else a file, else the program.
//!
//! Every flag that makes sense from one run to the next has a variable, `BITNET_` and its name, and a key of the file. It
//! knows no flag but those that have none.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bitnet_model::read_file;
use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use crate::Cli;
use crate::failure::{also_hinted, usage};
use crate::flags;

/// Flags that belong to one run: what to do it with, where its results go, what it prints.
const OF_ONE_RUN: [&str; 31] = [
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
    "all",
    "yes",
    "to",
    "gguf-type",
    "ternarize",
    "lines",
    "json-schema",
    "grammar",
    "grammar-file",
    "max-time",
];

/// Flags that mean something else in a command than the setting of the same name in others: a default for those would be an
/// order here.
const OF_ONE_RUN_OF: [(&str, &str); 6] = [
    ("batch", "input"),
    ("batch", "output"),
    ("doctor", "device"),
    ("generate", "chat-template-file"),
    ("generate", "system"),
    ("perplexity", "ctx-size"),
];

/// The program's command line, with the environment variables.
pub(crate) fn command() -> Command {
    with_variables(&mut |_| true)
}

/// The command line with those variables that `wanted` takes. One that is empty is as one that is not set.
fn with_variables(wanted: &mut dyn FnMut(&str) -> bool) -> Command {
    each_setting(Cli::command(), &mut |_, arg, name| {
        let arg = match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            // What looks like a number is never a flag: the value is then what is wrong with it.
            _ => arg.allow_negative_numbers(true),
        };
        let name = variable(name);
        let empty = std::env::var_os(&name).is_some_and(|value| value.is_empty());
        match (empty, wanted(&name)) {
            (false, true) => arg.env(name),
            (true, _) => {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                arg.help(format!("{help} [env: {name}=]"))
            }
            (false, false) => arg,
        }
    })
}

/// What the command line asks for.
pub(crate) enum Asked {
    /// To run.
    Run(Box<Cli>, Vec<Origin>),
    /// For something that has been printed, such as the help.
    Done(ExitCode),
}

/// Reads flags, environment and file. What is wrong on the command line is printed with the usage; the exit status is 2.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Asked> {
    let mut root = command();
    root.build();
    let args = flags::translate(&root, args.into_iter().collect())?;
    // Without the file first: it is named on the command line, and its own mistakes can then be told from others.
    let read = |command: Command| -> Result<(Cli, ArgMatches), clap::Error> {
        let matches = command.try_get_matches_from(&args)?;
        Ok((Cli::from_arg_matches(&matches)?, matches))
    };
    let (mut cli, matches) = match read(command()) {
        Ok(read) => read,
        Err(error) if !error.use_stderr() => {
            error.print()?;
            return Ok(Asked::Done(ExitCode::SUCCESS));
        }
        Err(error) => {
            if let Some(name) = guilty_variable(&error, &args) {
                return Err(of_variable(&name, &error));
            }
            // A closed stderr has nobody to tell.
            let _ = error.print();
            return Ok(Asked::Done(ExitCode::from(2)));
        }
    };
    contradictions(&matches)?;
    let path = match cli.config.take() {
        // An empty name asks for none.
        Some(path) if path.as_os_str().is_empty() => None,
        Some(path) => Some(path),
        None => default_file().filter(|path| path.symlink_metadata().is_ok()),
    };
    let Some(path) = path else {
        let origins = origins(&matches, None);
        return Ok(Asked::Run(Box::new(cli), origins));
    };
    let text = String::from_utf8(read_file(&path, MAX_FILE)?).with_context(|| path.display().to_string())?;
    let table: Table = text.parse().map_err(|error| syntax(&path, &text, &error))?;
    let command = with_defaults(command(), &table).with_context(|| path.display().to_string())?;
    let (mut cli, matches) = read(command).map_err(|error| refused(&path, &error))?;
    let origins = origins(&matches, Some((&path, &table)));
    cli.config = Some(path);
    Ok(Asked::Run(Box::new(cli), origins))
}

/// Most bytes of the file.
const MAX_FILE: u64 = 1 << 20;

/// A setting that was not given on the command line.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The setting as it stands there.
    shown: String,
    name: String,
    value: String,
}

/// The settings that come from the environment or the file.
fn origins(matches: &ArgMatches, file: Option<(&Path, &Table)>) -> Vec<Origin> {
    let mut command = Cli::command();
    command.build();
    let (mut command, mut matches, mut path) = (&command, matches, Vec::new());
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else {
            break;
        };
        path.push(name.to_owned());
        (command, matches) = (found, inner);
    }
    let mut origins = Vec::new();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_long().filter(|name| is_setting(&path, name)) else {
            continue;
        };
        let id = arg.get_id().as_str();
        let place = match (matches.value_source(id), file) {
            (Some(ValueSource::EnvVariable), _) => None,
            (Some(ValueSource::DefaultValue), Some((file, table)))
                if lookup(table, &path, name).is_some() =>
            {
                Some(file)
            }
            _ => continue,
        };
        let values = matches.get_raw(id).into_iter().flatten();
        let mut values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        if arg.is_hide_env_values_set() {
            // A key is no text for messages.
            values = vec!["(not shown)".into()];
        }
        let value = values.join(",");
        origins.push(Origin {
            shown: match place {
                Some(file) => format!("{name} = {value} in {}", file.display()),
                None => format!("{}={value}", variable(name)),
            },
            name: name.to_owned(),
            value,
        });
    }
    origins
}

/// Says of an error that quotes a setting, by its name or its value, where that is set.
pub(crate) fn explain(error: anyhow::Error, origins: &[Origin]) -> anyhow::Error {
    let text: Vec<String> = error.chain().map(ToString::to_string).collect();
    // The system's words for a full disk mean another device.
    let text = text.join(": ").replace("left on device", "");
    let quoted = |origin: &&Origin| {
        text.contains(&origin.name)
            || text.contains(&origin.name.replace('-', " "))
            || (origin.value.len() > 2 && text.contains(&origin.value))
            || (origin.name == "device" && text.contains("NVIDIA"))
    };
    let places: Vec<String> = origins
        .iter()
        .filter(quoted)
        .map(|origin| origin.shown.clone())
        .collect();
    match places.is_empty() {
        true => error,
        false => also_hinted(error, format!("that is a setting: {}", places.join(", "))),
    }
}

/// Flags that say two things at once. clap would count variables and the file as well, which are outranked instead.
const CONTRADICTIONS: [(&str, &str, &str); 1] = [("inspect", "folder", "model")];

fn contradictions(matches: &ArgMatches) -> anyhow::Result<()> {
    let Some((name, inner)) = matches.subcommand() else {
        return Ok(());
    };
    let given = |id| inner.value_source(id) == Some(ValueSource::CommandLine);
    for (command, a, b) in CONTRADICTIONS {
        if command == name && given(a) && given(b) {
            return Err(usage(
                format!("{} and --{b} are both given", a.to_uppercase()),
                "leave one of them out",
            ));
        }
    }
    Ok(())
}

/// The variable whose value is what clap refuses, if it is one: without it, the error is another or none.
fn guilty_variable(error: &clap::Error, args: &[OsString]) -> Option<String> {
    // What is missing is missing with every variable; the usage that is printed beside it differs without one.
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return None;
    }
    let mut names = Vec::new();
    drop(with_variables(&mut |name| {
        if std::env::var_os(name).is_some_and(|value| !value.is_empty()) && !names.contains(&name.to_owned())
        {
            names.push(name.to_owned());
        }
        false
    }));
    names.into_iter().find(|name| {
        let command = with_variables(&mut |other| other != name);
        let without = command.try_get_matches_from(args);
        without.map_or_else(|other| other.to_string() != error.to_string(), |_| true)
    })
}

/// What clap says of a value, told of the variable that holds it.
fn of_variable(name: &str, error: &clap::Error) -> anyhow::Error {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    usage(
        format!("{name}: {}", first.strip_prefix("error: ").unwrap_or(first)),
        "change it in the environment, or unset it",
    )
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
        let (texts, expected) = match (arg.get_action(), value) {
            (ArgAction::SetTrue, Value::Boolean(_) | Value::String(_)) => {
                (text(value).map(|text| vec![text]), "")
            }
            (ArgAction::SetTrue, _) => (None, "true or false"),
            (_, Value::Boolean(_)) => (None, "a string or number"),
            (ArgAction::Append, Value::Array(values)) => {
                let texts = values.iter().filter(|value| !value.is_bool()).map(text);
                let all: Option<Vec<_>> = texts.collect();
                (
                    all.filter(|all| all.len() == values.len()),
                    "a list of strings or numbers",
                )
            }
            _ => (text(value).map(|text| vec![text]), "one string or number"),
        };
        match texts {
            Some(texts) => arg.default_values(texts),
            None => {
                failure.get_or_insert(format!(
                    "`{name}` is of type {}; expected {expected}",
                    value.type_str()
                ));
                arg
            }
        }
    });
    match failure {
        Some(failure) => Err(usage(
            failure,
            "as in temp = 0.5, quiet = true, stop = ['a', 'b']",
        )),
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

/// As it would be typed.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(choice) => Some(choice.to_string()),
        Value::Array(_) | Value::Datetime(_) | Value::Table(_) => None,
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
            return Err(usage(
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
    usage(
        format!(
            "{} line {line}: {}",
            path.display(),
            error.message().replace('\n', ", ")
        ),
        "settings are TOML, as in temp = 0.5",
    )
}

/// A value of the file that its flag does not take, in one line.
fn refused(path: &Path, error: &clap::Error) -> anyhow::Error {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    usage(
        format!(
            "{}: {}",
            path.display(),
            first.strip_prefix("error: ").unwrap_or(first)
        ),
        "change it there; the flag itself outranks it",
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
            ("temp = [1]", "`temp` is of type array; expected one"),
            (
                "temp = true",
                "`temp` is of type boolean; expected a string or number",
            ),
            ("quiet = 1", "`quiet` is of type integer; expected true or false"),
            (
                "quiet = [true]",
                "`quiet` is of type array; expected true or false",
            ),
            (
                "stop = ['a', ['b']]",
                "`stop` is of type array; expected a list of",
            ),
            ("stop = [true]", "`stop` is of type array; expected a list of"),
            ("temp = 2020-01-01", "`temp` is of type datetime; expected one"),
            ("[chat]\ntemp = { a = 1 }", "unknown key `chat.temp`"),
        ] {
            let error = with_defaults(command(), &text.parse().unwrap()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
