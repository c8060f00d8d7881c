//! The methods of Python's str.

use std::rc::Rc;

use super::args::{Args, count_or, flag_or, int_or};
use super::budget::{Budget, Res, Text, fail};
use super::format;
use super::state::Interpreter;
use super::unicode::{is_cased, is_line_end, is_printable, is_space, push_title};
use super::value::Value;

fn str_arg(value: &Value) -> Res<Rc<str>> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        Value::Undefined(_) => fail("a string is needed, and the value is undefined"),
        other => fail(format!("must be str, not {}", other.type_name())),
    }
}

fn optional_str(value: Option<Value>) -> Res<Option<Rc<str>>> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => str_arg(&value).map(Some),
    }
}

/// Calls the method `name` of `text`.
pub(super) fn call(text: &Rc<str>, name: &str, args: &Args, vm: &Interpreter<'_>) -> Res<Value> {
    let budget = vm.budget;
    budget.look(text.len())?;
    let none = || args.none(name);
    let make = |text: String| budget.text(text);
    let all = |test: &dyn Fn(char) -> bool| {
        none()?;
        Ok(Value::Bool(!text.is_empty() && text.chars().all(test)))
    };
    match name {
        "upper" => none().and_then(|()| make(text.to_uppercase())),
        "lower" => none().and_then(|()| make(text.to_lowercase())),
        "casefold" => none().and_then(|()| make(text.to_lowercase().replace('ß', "ss"))),
        "capitalize" => none().and_then(|()| make(capitalize(text))),
        "title" => none().and_then(|()| make(title(text))),
        "swapcase" => {
            none()?;
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                if c.is_uppercase() {
                    out.extend(c.to_lowercase())
                } else {
                    out.extend(c.to_uppercase())
                }
            }
            make(out)
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let chars = optional_str(chars)?;
            let is_stripped = |c: char| {
                chars
                    .as_deref()
                    .map_or_else(|| is_space(c), |chars| chars.contains(c))
            };
            let mut kept = &text[..];
            if name != "rstrip" {
                kept = kept.trim_start_matches(is_stripped);
            }
            if name != "lstrip" {
                kept = kept.trim_end_matches(is_stripped);
            }
            if kept.len() == text.len() {
                Ok(Value::Str(text.clone()))
            } else {
                budget.text(kept)
            }
        }
        "split" | "rsplit" => split(text, name, args, budget),
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            splitlines(text, flag_or(keep.as_ref(), false), budget)
        }
        "join" => {
            let [items] = args.bind(name, ["iterable"], 1)?;
            let mut out = Text::new(budget);
            for (i, item) in items.unwrap_or(Value::None).items(budget)?.iter().enumerate() {
                let Value::Str(item) = item else {
                    return fail(format!(
                        "sequence item {i}: expected str instance, {} found",
                        item.type_name()
                    ));
                };
                if i > 0 {
                    out.push(text)?;
                }
                out.push(item)?;
            }
            Ok(out.into_value())
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (
                str_arg(&old.unwrap_or(Value::None))?,
                str_arg(&new.unwrap_or(Value::None))?,
            );
            let count = int_or(count.as_ref(), -1)?;
            replace(
                text,
                &old,
                &new,
                usize::try_from(count).unwrap_or(usize::MAX),
                budget,
            )
        }
        "startswith" | "endswith" => starts_or_ends(text, name, args, budget),
        "removeprefix" | "removesuffix" => {
            let [part] = args.bind(name, ["part"], 1)?;
            let part = str_arg(&part.unwrap_or(Value::None))?;
            let kept = match name {
                "removeprefix" => text.strip_prefix(&*part),
                _ => text.strip_suffix(&*part),
            };
            make(kept.unwrap_or(text).to_owned())
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"], 1)?;
            let separator = str_arg(&separator.unwrap_or(Value::None))?;
            if separator.is_empty() {
                return fail("empty separator");
            }
            let parts = if name == "partition" {
                text.split_once(&*separator)
                    .map_or([text, "", ""], |(a, b)| [a, &separator, b])
            } else {
                text.rsplit_once(&*separator)
                    .map_or(["", "", text], |(a, b)| [a, &separator, b])
            };
            let parts = parts.map(|part| budget.text(part));
            budget.tuple(parts.into_iter().collect::<Res<_>>()?)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, args, budget),
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"], 1)?;
            let fill = optional_str(fill)?.unwrap_or_else(|| " ".into());
            if fill.chars().count() != 1 {
                return fail("The fill character must be exactly one character long");
            }
            pad(text, name, count_or(width.as_ref(), 0)?, &fill, budget)
        }
        "zfill" => {
            let [width] = args.bind(name, ["width"], 1)?;
            let missing = count_or(width.as_ref(), 0)?.saturating_sub(text.chars().count());
            let sign = usize::from(text.starts_with(['+', '-']));
            let mut out = Text::new(budget);
            out.push(&text[..sign])?;
            out.push_n("0", missing)?;
            out.push(&text[sign..])?;
            Ok(out.into_value())
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"], 0)?;
            let (size, mut column) = (count_or(size.as_ref(), 8)?, 0);
            let mut out = Text::new(budget);
            for c in text.chars() {
                if c == '\t' {
                    let n = if size == 0 { 0 } else { size - column % size };
                    out.push_n(" ", n)?;
                    column += n;
                } else {
                    out.push_char(c)?;
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                }
            }
            Ok(out.into_value())
        }
        "format" => format::braces(text, args, vm),
        "isalpha" => all(&char::is_alphabetic),
        "isalnum" => all(&char::is_alphanumeric),
        "isspace" => all(&is_space),
        "isdecimal" | "isdigit" if text.is_ascii() => all(&|c| c.is_ascii_digit()),
        "isnumeric" | "isdigit" | "isdecimal" => all(&char::is_numeric),
        "isascii" => none().map(|()| Value::Bool(text.is_ascii())),
        "isprintable" => none().map(|()| Value::Bool(text.chars().all(is_printable))),
        "isidentifier" => {
            none()?;
            let mut chars = text.chars();
            let first = chars.next().is_some_and(|c| c == '_' || c.is_alphabetic());
            Ok(Value::Bool(
                first && chars.all(|c| c == '_' || c.is_alphanumeric()),
            ))
        }
        "islower" => none().map(|()| Value::Bool(is_all(text, char::is_lowercase))),
        "isupper" => none().map(|()| Value::Bool(is_all(text, char::is_uppercase))),
        "istitle" => none().map(|()| Value::Bool(text.chars().any(is_cased) && title(text) == **text)),
        _ => fail(format!("the method {name} of str is not implemented")),
    }
}

/// Whether a text has letters with a case, all of this one.
pub(super) fn is_all(text: &str, is_case: impl Fn(char) -> bool) -> bool {
    let mut cased = text.chars().filter(|&c| is_cased(c)).peekable();
    cased.peek().is_some() && cased.all(is_case)
}

pub(super) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    if let Some(first) = chars.next() {
        push_title(first, &mut out);
    }
    out + &chars.as_str().to_lowercase()
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            push_title(c, &mut out)
        }
        inside = is_cased(c);
    }
    out
}

fn split(text: &str, name: &str, args: &Args, budget: &Budget) -> Res<Value> {
    let [separator, most] = args.bind(name, ["sep", "maxsplit"], 0)?;
    let most = usize::try_from(int_or(most.as_ref(), -1)?).unwrap_or(usize::MAX);
    let from_right = name == "rsplit";
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    if let Some(separator) = optional_str(separator)? {
        if separator.is_empty() {
            return fail("empty separator");
        }
        budget.check_items(text.matches(&*separator).count() + 1)?;
        while parts.len() < most {
            let found = if from_right {
                rest.rsplit_once(&*separator)
            } else {
                rest.split_once(&*separator)
            };
            let Some((left, right)) = found else { break };
            parts.push(if from_right { right } else { left });
            rest = if from_right { left } else { right };
        }
        parts.push(rest);
    } else {
        loop {
            rest = if from_right {
                rest.trim_end_matches(is_space)
            } else {
                rest.trim_start_matches(is_space)
            };
            if rest.is_empty() {
                break;
            }
            let end = if from_right {
                let at = rest.char_indices().rev().find(|&(_, c)| is_space(c));
                at.map_or(0, |(at, c)| at + c.len_utf8())
            } else {
                rest.find(is_space).unwrap_or(rest.len())
            };
            if parts.len() == most {
                parts.push(rest);
                break;
            }
            let (left, right) = rest.split_at(end);
            parts.push(if from_right { right } else { left });
            rest = if from_right { left } else { right };
        }
    }
    if from_right {
        parts.reverse();
    }
    budget.check_items(parts.len())?;
    let parts = parts.into_iter().map(|part| budget.text(part));
    budget.list(parts.collect::<Res<_>>()?)
}

fn splitlines(text: &str, keep: bool, budget: &Budget) -> Res<Value> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_line_end).unwrap_or(rest.len());
        let after = &rest[end..];
        let mark = if after.starts_with("\r\n") {
            2
        } else {
            after.chars().next().map_or(0, char::len_utf8)
        };
        budget.check_items(lines.len() + 1)?;
        lines.push(budget.text(&rest[..if keep { end + mark } else { end }])?);
        rest = &after[mark..];
    }
    budget.list(lines)
}

/// Replaces up to `count` occurrences; the empty text stands before each character and at the end.
pub(super) fn replace(text: &str, old: &str, new: &str, count: usize, budget: &Budget) -> Res<Value> {
    budget.look(text.len())?;
    let mut out = Text::new(budget);
    if old.is_empty() {
        let mut left = count;
        for c in text.chars() {
            if left > 0 {
                out.push(new)?;
                left -= 1;
            }
            out.push_char(c)?;
        }
        if left > 0 {
            out.push(new)?;
        }
        return Ok(out.into_value());
    }
    let mut rest = text;
    for _ in 0..count {
        let Some((before, after)) = rest.split_once(old) else {
            break;
        };
        out.push(before)?;
        out.push(new)?;
        rest = after;
    }
    out.push(rest)?;
    Ok(out.into_value())
}

/// The part of `text` between two indices of characters, and the index that it begins at.
fn window<'t>(text: &'t str, start: Option<&Value>, end: Option<&Value>) -> Res<Option<(&'t str, usize)>> {
    let given = |value: Option<&Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => int_or(Some(value), 0).map(Some),
    };
    let (start, end) = (given(start)?, given(end)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((text, 0)));
    }
    let len = text.chars().count() as i128;
    let place = |n: i128| if n < 0 { (n + len).max(0) } else { n };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(len)).min(len));
    if start > end {
        return Ok(None);
    }
    let byte = |n: i128| {
        text.char_indices()
            .nth(n as usize)
            .map_or(text.len(), |(at, _)| at)
    };
    Ok(Some((&text[byte(start)..byte(end)], start as usize)))
}

fn starts_or_ends(text: &str, name: &str, args: &Args, budget: &Budget) -> Res<Value> {
    let [parts, start, end] = args.bind(name, ["part", "start", "end"], 1)?;
    let Some((window, _)) = window(text, start.as_ref(), end.as_ref())? else {
        return Ok(Value::Bool(false));
    };
    let test = |part: &Value| match part {
        Value::Str(part) if name == "startswith" => Ok(window.starts_with(&**part)),
        Value::Str(part) => Ok(window.ends_with(&**part)),
        other => fail(format!(
            "{name} first arg must be str or a tuple of str, not {}",
            other.type_name()
        )),
    };
    match parts.unwrap_or(Value::None) {
        Value::Tuple(seq) => {
            for part in &seq.items {
                budget.step()?;
                if test(part)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        part => test(&part).map(Value::Bool),
    }
}

fn search(text: &str, name: &str, args: &Args, budget: &Budget) -> Res<Value> {
    let [part, start, end] = args.bind(name, ["sub", "start", "end"], 1)?;
    let part = str_arg(&part.unwrap_or(Value::None))?;
    let window = window(text, start.as_ref(), end.as_ref())?;
    budget.look(text.len())?;
    let Some((window, offset)) = window else {
        return match name {
            "count" => Ok(Value::Int(0)),
            "index" | "rindex" => fail("substring not found"),
            _ => Ok(Value::Int(-1)),
        };
    };
    if name == "count" {
        let n = if part.is_empty() {
            window.chars().count() + 1
        } else {
            window.matches(&*part).count()
        };
        return Ok(Value::Int(n as i128));
    }
    let found = if name.starts_with('r') {
        window.rfind(&*part)
    } else {
        window.find(&*part)
    };
    match found {
        Some(at) => Ok(Value::Int((window[..at].chars().count() + offset) as i128)),
        None if name.ends_with("index") => fail("substring not found"),
        None => Ok(Value::Int(-1)),
    }
}

/// `center`, `ljust` and `rjust`.
pub(super) fn pad(text: &str, name: &str, width: usize, fill: &str, budget: &Budget) -> Res<Value> {
    let len = text.chars().count();
    let missing = width.saturating_sub(len);
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // The odd one stands on the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let mut out = Text::new(budget);
    out.push_n(fill, left)?;
    out.push(text)?;
    out.push_n(fill, missing - left)?;
    Ok(out.into_value())
}
