//! Flags of the programs that people come from: llama.cpp and its wrappers, transformers, ollama, vLLM.
//!
//! A flag that has the same meaning here is taken over; any other one is refused by its own name, with its counterpart. It
//! must be done before the flags are read: clap takes `-ngl` for `-n gl` and `-hf` for `-h -f`.

mod table;

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use crate::failure::usage;
use crate::terminal::say;
use table::{Here, TABLE, VERBS};

/// The command line with flags of other programs in the place of which ours stand. `root` is the command line of the program.
pub(crate) fn translate(root: &Command, args: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let mut command = root;
    let mut out = Vec::with_capacity(args.len());
    let mut rest = args.into_iter().peekable();
    out.extend(rest.next());
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str().map(str::to_owned) else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            out.extend(rest);
            return Ok(out);
        }
        if !text.starts_with('-') || is_number(&text) || text == "-" {
            if let Some(inner) = command.find_subcommand(&text) {
                command = inner;
            } else if command.has_subcommands() {
                refuse_verb(command, &text)?;
            }
            out.push(arg);
            continue;
        }
        // llama-bench measures models, and its flags come right after its name.
        if command.get_name() == "bench"
            && !matches!(text.as_str(), "-h" | "--help" | "--config")
            && let Some(model) = command.find_subcommand("model")
        {
            command = model;
            out.push("model".into());
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text.clone(), None),
        };
        let found = match find(command, &name) {
            Some(found) => found,
            None if command.get_name() == "bitnet" => {
                let hint = "`bitnet chat` talks to a model, `bitnet generate` continues a text; `bitnet --help` lists the commands";
                return Err(usage(format!("{name} comes after a command"), hint));
            }
            None => match foreign(command, &name, value.is_some())? {
                Foreign::Unknown => {
                    out.push(arg);
                    continue;
                }
                Foreign::Anyway { values } => {
                    let next = rest.peek().and_then(|next| next.to_str());
                    if value.is_none() && next.is_some_and(|next| values.contains(&next)) {
                        rest.next();
                    } else if value.is_some_and(|value| !values.contains(&value.as_str())) {
                        return Err(no_flag(&name, "it has no such value"));
                    }
                    continue;
                }
                Foreign::Valued(values, hint) => {
                    let given = match &value {
                        Some(value) => Some(value.clone()),
                        None => rest.peek().and_then(|next| next.to_str()).map(str::to_owned),
                    };
                    match given {
                        Some(given) if values.contains(&given.as_str()) => {
                            if value.is_none() {
                                rest.next();
                            }
                        }
                        // llama.cpp's older programs have it as a switch.
                        given if given.as_ref().is_none_or(|given| given.starts_with('-')) => {}
                        _ => return Err(no_flag(&name, hint)),
                    }
                    continue;
                }
                Foreign::Is(found, spelled) => {
                    // A folder that is named twice is a mistake, whichever names are used.
                    out.push(match &value {
                        Some(value) => format!("{spelled}={value}").into(),
                        None => spelled.into(),
                    });
                    if takes_value(found) && value.is_none() {
                        out.extend(next_value(found, &mut rest));
                    }
                    continue;
                }
            },
        };
        out.push(arg);
        if takes_value(found) && value.is_none() {
            out.extend(next_value(found, &mut rest));
        }
    }
    Ok(out)
}

/// What a flag that is not one of this command turned out to be.
enum Foreign<'c> {
    /// One of ours, as it is spelled here.
    Is(&'c Arg, String),
    Anyway {
        values: &'static [&'static str],
    },
    Valued(&'static [&'static str], &'static str),
    /// Left to clap: a cluster of short flags, a short flag with its value, or a mistake.
    Unknown,
}

fn foreign<'c>(command: &'c Command, name: &str, has_value: bool) -> anyhow::Result<Foreign<'c>> {
    // Underscores are as good as hyphens, in llama.cpp and in Python.
    let hyphens = match name.starts_with("--") {
        true => format!("--{}", name[2..].replace('_', "-")),
        false => name.to_owned(),
    };
    if let Some(found) = find(command, &hyphens) {
        return Ok(Foreign::Is(found, hyphens));
    }
    if let Some((_, here)) = TABLE
        .iter()
        .find(|(names, _)| names.split_whitespace().any(|name| name == hyphens))
    {
        return match *here {
            Here::Is(ours) => match find(command, ours) {
                Some(found) => {
                    // Not llama.cpp's own spelling: whoever writes it should know the right one.
                    if hyphens.starts_with("-temp") {
                        say!("warning: {name} is taken for {ours}");
                    }
                    Ok(Foreign::Is(found, ours.to_owned()))
                }
                None => Err(no_flag(
                    name,
                    &format!("it is {ours} in other commands, and has no place in this one"),
                )),
            },
            Here::IsOr(ours, hint) => match find(command, ours) {
                Some(found) => Ok(Foreign::Is(found, ours.to_owned())),
                None => Err(no_flag(name, hint)),
            },
            Here::AnywayIn(inner, hint) if command.get_name() != inner => Err(no_flag(name, hint)),
            Here::Anyway | Here::AnywayIn(..) => Ok(Foreign::Anyway { values: &[] }),
            Here::AnywayWith(values, hint) => Ok(Foreign::Valued(values, hint)),
            Here::See(_) if hyphens == "-cnv" && command.get_name() == "chat" => {
                Ok(Foreign::Anyway { values: &[] })
            }
            Here::See(_) if hyphens == "--conversation" && command.get_name() == "chat" => {
                Ok(Foreign::Anyway { values: &[] })
            }
            Here::See(_) if hyphens.ends_with("no-cnv") && command.get_name() == "generate" => {
                Ok(Foreign::Anyway { values: &[] })
            }
            Here::See(hint) => Err(no_flag(name, hint)),
        };
    }
    let word = name.trim_start_matches('-');
    let letters = word
        .chars()
        .all(|c| c.is_ascii_alphabetic() || c == '-' || c == '_');
    if name.starts_with("--") || word.len() < 2 || !letters {
        return Ok(Foreign::Unknown);
    }
    // One dash before a long name.
    let long = format!("--{}", word.replace('_', "-"));
    if let Some(found) = find(command, &long) {
        say!("warning: {name} is taken for {long}");
        return Ok(Foreign::Is(found, long));
    }
    // What clap would take for the short flag that asks for help, or for one that wants a number.
    let first = word.chars().next().map(String::from).unwrap_or_default();
    let number = find(command, &format!("-{first}"))
        .is_some_and(|found| takes_value(found) && wants_number(found) && !has_value);
    if first == "h" || first == "V" || number {
        let hint = format!("`bitnet {} --help` lists the flags", command.get_name());
        return Err(usage(format!("there is no flag {name}"), hint));
    }
    Ok(Foreign::Unknown)
}

fn no_flag(name: &str, hint: &str) -> anyhow::Error {
    usage(format!("{name} is not a flag of bitnet"), hint)
}

fn refuse_verb(command: &Command, verb: &str) -> anyhow::Result<()> {
    let bare = verb.strip_prefix("llama-").unwrap_or(verb);
    match VERBS
        .iter()
        .find(|(names, _)| names.split_whitespace().any(|name| name == bare))
    {
        Some((_, hint)) if command.get_name() == "bitnet" => {
            Err(usage(format!("{verb} is not a command of bitnet"), *hint))
        }
        _ => Ok(()),
    }
}

/// The flag of `command` that is spelled so, its dashes included.
fn find<'c>(command: &'c Command, spelled: &str) -> Option<&'c Arg> {
    let long = spelled.strip_prefix("--");
    let mut letters = spelled.chars().skip(1);
    let short = match (long, letters.next(), letters.next()) {
        (None, Some(letter), None) => Some(letter),
        _ => None,
    };
    command.get_arguments().find(|arg| {
        let is_long = |name: &str| Some(name) == long;
        arg.get_long().is_some_and(is_long)
            || arg.get_all_aliases().unwrap_or_default().into_iter().any(is_long)
            || (short.is_some() && arg.get_short() == short)
    })
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Whether its value is a count.
fn wants_number(arg: &Arg) -> bool {
    arg.get_value_names()
        .is_some_and(|names| names.iter().any(|name| name == "N"))
}

/// The argument that is the value of `arg`: the next one, unless it is a flag and no value of this one can look like that.
fn next_value(arg: &Arg, rest: &mut std::iter::Peekable<impl Iterator<Item = OsString>>) -> Option<OsString> {
    let text = rest.peek()?.to_str().unwrap_or_default();
    let flag = text.starts_with('-') && text.len() > 1 && !is_number(text);
    if flag && !arg.is_allow_hyphen_values_set() {
        return None;
    }
    rest.next()
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests;
