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
    let mut here = Place {
        root,
        command: root,
        path: "bitnet".to_owned(),
    };
    let mut out = Line::default();
    let mut rest = args.into_iter().peekable();
    out.args.extend(rest.next());
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str().map(str::to_owned) else {
            out.args.push(arg);
            continue;
        };
        if text == "--" {
            out.args.push(arg);
            out.args.extend(rest);
            return Ok(out.finish());
        }
        if !text.starts_with('-') || is_number(&text) || text == "-" {
            match here.enter(&text)? {
                Some(name) => out.args.push(name),
                None => out.args.push(arg),
            }
            continue;
        }
        // llama-bench measures models, and its flags come right after its name.
        if here.command.get_name() == "bench" && !matches!(text.as_str(), "-h" | "--help" | "--config") {
            out.args.extend(here.enter("model")?);
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text.clone(), None),
        };
        let (found, spelled, is_theirs) = match find(here.command, &name) {
            Some(found) => (found, name, false),
            None if here.command.get_name() == "bitnet" => {
                let hint = "`bitnet chat` talks to a model, `bitnet generate` continues a text; `bitnet --help` lists the commands";
                return Err(usage(format!("{name} comes after a command"), hint));
            }
            None => match foreign(&here, &name, value.is_some())? {
                Foreign::Unknown => {
                    out.args.push(arg);
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
                Foreign::Is(found, spelled) => (found, spelled, true),
            },
        };
        let attached = value.is_some();
        let value = match value {
            Some(value) => Some(value.into()),
            None if takes_value(found) => next_value(found, &mut rest),
            None => None,
        };
        out.flag(found, spelled, value, attached, is_theirs)?;
    }
    Ok(out.finish())
}

/// The command that flags belong to.
struct Place<'c> {
    root: &'c Command,
    command: &'c Command,
    /// Its names, that of the program first.
    path: String,
}

impl Place<'_> {
    /// Goes on with what is no flag: the command inside that is called so, as it is called here, or `None` where it is none.
    fn enter(&mut self, text: &str) -> anyhow::Result<Option<OsString>> {
        let ours = match text {
            "llama-embedding" => "embed",
            _ => text
                .strip_prefix("llama-")
                .filter(|name| OF_LLAMA_CPP.contains(name))
                .unwrap_or(text),
        };
        if let Some(inner) = self.command.find_subcommand(ours) {
            self.command = inner;
            self.path = format!("{} {}", self.path, inner.get_name());
            return Ok(Some(ours.into()));
        }
        if self.command.has_subcommands() {
            refuse_verb(self.command, text)?;
        } else if self.command.get_positionals().next().is_none() && find(self.command, "--model").is_some() {
            let prompt = match find(self.command, "--prompt") {
                Some(_) => ", -p the text",
                None => "",
            };
            return Err(usage(
                format!("`{}` takes no argument `{text}`", self.path),
                format!("-m names the model{prompt}"),
            ));
        }
        Ok(None)
    }
}

/// Programs of llama.cpp that are called as the commands here that do the same.
const OF_LLAMA_CPP: [&str; 3] = ["bench", "perplexity", "tokenize"];

/// A command line that grows.
#[derive(Default)]
struct Line {
    args: Vec<OsString>,
    /// Where --batch-size stands, and where what llama.cpp calls its physical batch.
    batches: Vec<std::ops::Range<usize>>,
    physical: bool,
    /// The type of keys or of values that was named.
    kv_type: Option<OsString>,
}

impl Line {
    fn flag(
        &mut self,
        found: &Arg,
        spelled: String,
        value: Option<OsString>,
        attached: bool,
        is_theirs: bool,
    ) -> anyhow::Result<()> {
        let id = found.get_id().as_str();
        let mut value = value;
        // As many as there are by default.
        if matches!(id, "threads" | "parallel") && value.as_ref().is_some_and(|value| value == "-1") {
            return Ok(());
        }
        if id == "kv_type" && is_theirs {
            value = value.map(|value| match value.to_str() {
                Some("f16") => "bf16".into(),
                Some("q8_0") => "int8".into(),
                _ => value,
            });
            match (&self.kv_type, &value) {
                (Some(before), Some(now)) if before == now => return Ok(()),
                (Some(_), _) => {
                    let hint = "--kv-type is for both: bf16, f32 or int8";
                    return Err(usage("keys and values are of two types", hint));
                }
                (None, _) => self.kv_type.clone_from(&value),
            }
        }
        let begin = self.args.len();
        match (value, attached) {
            (Some(value), true) => {
                let mut whole = OsString::from(spelled);
                whole.push("=");
                whole.push(value);
                self.args.push(whole);
            }
            (value, _) => {
                self.args.push(spelled.into());
                self.args.extend(value);
            }
        }
        if id == "batch_size" {
            match is_theirs {
                true => self.physical = true,
                false => self.batches.push(begin..self.args.len()),
            }
        }
        Ok(())
    }

    /// llama.cpp has two sizes of batches, of which the physical one is ours.
    fn finish(mut self) -> Vec<OsString> {
        if self.physical {
            for range in self.batches.into_iter().rev() {
                self.args.drain(range);
            }
        }
        self.args
    }
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

fn foreign<'c>(here: &Place<'c>, name: &str, has_value: bool) -> anyhow::Result<Foreign<'c>> {
    let command = here.command;
    // Underscores are as good as hyphens, in llama.cpp and in Python.
    let hyphens = match name.starts_with("--") {
        true => format!("--{}", name[2..].replace('_', "-")),
        false => name.to_owned(),
    };
    if let Some(found) = find(command, &hyphens) {
        return Ok(Foreign::Is(found, hyphens));
    }
    if let Some(row) = row(&hyphens) {
        return by_row(command, name, &hyphens, row);
    }
    if name.starts_with("--") {
        return match elsewhere(here.root, &hyphens) {
            Some(hint) if command.get_name() == "serve" && is_sampling(here.root, &hyphens) => {
                Err(no_flag_of(here, name, &format!("{SAMPLING}; {hint}")))
            }
            Some(hint) => Err(no_flag_of(here, name, &hint)),
            None => Ok(Foreign::Unknown),
        };
    }
    one_dash(here, name, has_value)
}

/// A flag with one dash that is none of this command's and none of the table's by this spelling.
fn one_dash<'c>(here: &Place<'c>, name: &str, has_value: bool) -> anyhow::Result<Foreign<'c>> {
    let command = here.command;
    let word = name.trim_start_matches('-');
    let looks_like_a_flag = word
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let Some(first) = word
        .chars()
        .next()
        .filter(|_| word.len() > 1 && looks_like_a_flag)
    else {
        return Ok(Foreign::Unknown);
    };
    // One dash before a long name, of ours or of theirs.
    let long = format!("--{}", word.replace('_', "-"));
    if let Some(found) = find(command, &long) {
        say!("warning: {name} is taken for {long}");
        return Ok(Foreign::Is(found, long));
    }
    if let Some(row) = row(&long) {
        return by_row(command, name, &long, row);
    }
    // One with its number attached is refused as without, and otherwise for the number.
    let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
    if letters.len() > 1
        && let spelled = format!("-{letters}")
        && let Some(row) = row(&spelled)
    {
        by_row(command, name, &spelled, row)?;
    }
    let rest = &word[1..];
    let own = find(command, &format!("-{first}"));
    let is_switch = |c: char| {
        !matches!(c, 'h' | 'V') && find(command, &format!("-{c}")).is_some_and(|found| !takes_value(found))
    };
    let count = rest.trim_end_matches(['k', 'K']);
    let is_count = own.is_some_and(wants_number) && is_number(count);
    if word.chars().all(is_switch) || (is_count && !has_value) {
        return Ok(Foreign::Unknown);
    }
    // clap would take the rest for the value of the short flag, or print the help.
    let hint = match own {
        Some(own) if takes_value(own) => format!(
            "for -{first} with the value `{rest}` write -{first} '{rest}'; `{} --help` lists the flags",
            here.path
        ),
        _ => format!("`{} --help` lists the flags", here.path),
    };
    Err(usage(format!("there is no flag {name}"), hint))
}

/// What the table says of a flag, which is spelled as there.
fn row(spelled: &str) -> Option<Here> {
    let found = TABLE
        .iter()
        .find(|(names, _)| names.split_whitespace().any(|name| name == spelled));
    found.map(|(_, here)| *here)
}

/// What becomes of the flag `name`, which stands in the table as `spelled`.
fn by_row<'c>(command: &'c Command, name: &str, spelled: &str, row: Here) -> anyhow::Result<Foreign<'c>> {
    match row {
        Here::Is(ours) => match find(command, ours) {
            Some(found) => {
                // Not llama.cpp's own spelling: whoever writes it should know the right one.
                if spelled.starts_with("-temp") {
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
        Here::See(_) if spelled == "-cnv" && command.get_name() == "chat" => {
            Ok(Foreign::Anyway { values: &[] })
        }
        Here::See(_) if spelled == "--conversation" && command.get_name() == "chat" => {
            Ok(Foreign::Anyway { values: &[] })
        }
        Here::See(_) if spelled.ends_with("no-cnv") && command.get_name() == "generate" => {
            Ok(Foreign::Anyway { values: &[] })
        }
        Here::See(hint) => Err(no_flag(name, hint)),
    }
}

/// Which commands have a flag that this one has not.
fn elsewhere(root: &Command, spelled: &str) -> Option<String> {
    let has = |command: &&Command| find(command, spelled).is_some();
    let names: Vec<String> = root
        .get_subcommands()
        .filter(has)
        .map(|command| format!("`bitnet {}`", command.get_name()))
        .take(3)
        .collect();
    (!names.is_empty()).then(|| format!("it is a flag of {}", names.join(", ")))
}

/// Whether a flag chooses tokens.
fn is_sampling(root: &Command, spelled: &str) -> bool {
    let found = root
        .find_subcommand("generate")
        .and_then(|generate| find(generate, spelled));
    found.is_some_and(|arg| arg.get_help_heading() == Some("Sampling"))
}

const SAMPLING: &str =
    "each request says how its tokens are chosen, and the model's generation_config.json what it leaves open";

fn no_flag_of(here: &Place<'_>, name: &str, hint: &str) -> anyhow::Error {
    usage(format!("{name} is not a flag of `{}`", here.path), hint)
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
        _ if command.get_name() == "bench" => Err(usage(
            format!("there is no `bitnet bench {verb}`"),
            "`bitnet bench model -m MODEL` times a model; `bitnet bench --help` lists the others",
        )),
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
