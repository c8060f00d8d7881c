//! Jinja2's filters that look at one value: `value | name`.

use std::rc::Rc;

use super::args::{Args, count_or, flag_or, int_or};
use super::budget::{Res, Text, fail, failure};
use super::names::is_filter;
use super::state::Interpreter;
use super::strings;
use super::text::{to_str, write_repr};
use super::unicode::is_space;
use super::value::Value;
use super::{format, json};

/// The result of the filter `name`, which works on no items.
pub(super) fn filter(value: &Value, name: &str, args: &Args, vm: &Interpreter<'_>) -> Res<Value> {
    let budget = vm.budget;
    let text = || to_str(value, vm);
    let method = |name: &str| strings::call(&text()?, name, args, vm);
    match name {
        "upper" | "lower" | "capitalize" => method(name),
        "trim" => method("strip"),
        "string" => Ok(Value::Str(text()?)),
        "safe" => Ok(Value::Str(text()?)),
        "length" | "count" => {
            args.none(name)?;
            Ok(Value::Int(value.len(budget)? as i128))
        }
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
            let is_missing = value.is_undefined() || flag_or(boolean.as_ref(), false) && !value.truth();
            Ok(if is_missing {
                default.unwrap_or_else(|| Value::str(""))
            } else {
                value.clone()
            })
        }
        "tojson" => json::to_json(value, args, vm),
        "abs" => match value {
            Value::Float(x) => Ok(Value::Float(x.abs())),
            _ => match value.as_int() {
                Some(n) => Ok(Value::Int(n.saturating_abs())),
                None => fail(format!("bad operand type for abs(): '{}'", value.type_name())),
            },
        },
        "attr" => {
            let [name] = args.bind(name, ["name"], 1)?;
            vm.own_attribute(value, &to_str(&name.unwrap_or(Value::None), vm)?)
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            strings::pad(&text()?, "center", count_or(width.as_ref(), 80)?, " ", budget)
        }
        "escape" | "e" | "forceescape" => {
            args.none(name)?;
            let mut out = Text::new(budget);
            for c in text()?.chars() {
                match c {
                    '&' => out.push("&amp;")?,
                    '<' => out.push("&lt;")?,
                    '>' => out.push("&gt;")?,
                    '\'' => out.push("&#39;")?,
                    '"' => out.push("&#34;")?,
                    c => out.push_char(c)?,
                }
            }
            Ok(out.into_value())
        }
        "format" => {
            let pattern = text()?;
            match (args.positional.is_empty(), args.keywords.is_empty()) {
                (false, false) => fail("can't handle positional and keyword arguments at the same time"),
                (_, true) => {
                    let args = budget.tuple(args.positional.clone())?;
                    format::percent(&pattern, &args, vm)
                }
                (true, false) => {
                    let mut dict = super::value::Dict::default();
                    for (name, value) in &args.keywords {
                        dict.insert(Value::str(name), value.clone(), budget)?;
                    }
                    format::percent(&pattern, &Value::Dict(Rc::new(dict)), vm)
                }
            }
        }
        "indent" => match value {
            Value::Str(text) => indent(text, args, vm),
            other => fail(format!("indent of a value of type '{}'", other.type_name())),
        },
        "int" => int(value, args, vm),
        "float" => {
            let [default] = args.bind(name, ["default"], 0)?;
            let parsed = match value {
                Value::Str(text) => parse_float(text),
                Value::Undefined(message) => return fail(&**message),
                other => other.as_float(),
            };
            Ok(parsed.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "pprint" => {
            let mut out = Text::new(budget);
            write_repr(value, vm, &mut out)?;
            let text = out.into_string();
            // It sorts the keys of dictionaries, and breaks long lines.
            if text.len() > 79 || text.contains('{') {
                return fail("pprint of dictionaries and of more than a line is not implemented");
            }
            budget.text(text)
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (
                to_str(&old.unwrap_or(Value::None), vm)?,
                to_str(&new.unwrap_or(Value::None), vm)?,
            );
            let count = match &count {
                None | Some(Value::None) => -1,
                count => int_or(count.as_ref(), -1)?,
            };
            strings::replace(
                &text()?,
                &old,
                &new,
                usize::try_from(count).unwrap_or(usize::MAX),
                budget,
            )
        }
        "round" => round(value, args, vm),
        "title" => {
            args.none(name)?;
            let text = text()?;
            budget.look(text.len())?;
            let mut out = String::with_capacity(text.len());
            let mut begins = true;
            for c in text.chars() {
                if is_space(c) || "-({[<".contains(c) {
                    out.push(c);
                    begins = true;
                } else if begins {
                    out.extend(c.to_uppercase());
                    begins = false;
                } else {
                    out.extend(c.to_lowercase());
                }
            }
            budget.text(out)
        }
        "truncate" => match value {
            Value::Str(text) => truncate(text, args, vm),
            // Python's len() decides, which these have, and short values come back as they are.
            other if other.len(budget)? < 6 => Ok(other.clone()),
            other => fail(format!(
                "truncate of a value of type '{}' is not implemented",
                other.type_name()
            )),
        },
        "urlencode" => url_encode(value, vm),
        "wordcount" => {
            let text = text()?;
            budget.look(text.len())?;
            let words = text.split(|c: char| !(c == '_' || c.is_alphanumeric()));
            Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
        }
        _ if is_filter(name) => fail(format!("the filter {name} is not implemented")),
        _ => fail(format!("No filter named {name:?} found.")),
    }
}

fn indent(text: &str, args: &Args, vm: &Interpreter<'_>) -> Res<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    let mut out = Text::new(vm.budget);
    let unit = match &width {
        Some(Value::Str(text)) => text.to_string(),
        width => {
            let n = count_or(width.as_ref(), 4)?;
            vm.budget.check_text(n)?;
            " ".repeat(n)
        }
    };
    if flag_or(first.as_ref(), false) {
        out.push(&unit)?;
    }
    let text = format!("{text}\n");
    let blank = flag_or(blank.as_ref(), false);
    let lines = strings::call(&text.into(), "splitlines", &Args::default(), vm)?;
    for (i, line) in lines.items(vm.budget)?.iter().enumerate() {
        let line = to_str(line, vm)?;
        if i > 0 {
            out.push("\n")?;
            if blank || !line.is_empty() {
                out.push(&unit)?;
            }
        }
        out.push(&line)?;
    }
    Ok(out.into_value())
}

/// What `float()` makes of a text.
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let is_plain = |c: char| c.is_ascii_digit() || "+-.eE_".contains(c);
    let word = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    if !text.chars().all(is_plain) && !["inf", "infinity", "nan"].contains(&&word[..]) {
        return None;
    }
    digits_joined(text)?.parse().ok()
}

/// A number without its underscores, which stand between digits only.
fn digits_joined(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_alphanumeric)
    };
    let misplaced = bytes
        .iter()
        .enumerate()
        .any(|(at, &b)| b == b'_' && !(is_digit(at.checked_sub(1)) && is_digit(Some(at + 1))));
    (!misplaced).then(|| text.replace('_', ""))
}

fn int(value: &Value, args: &Args, vm: &Interpreter<'_>) -> Res<Value> {
    let [default, base] = args.bind("int", ["default", "base"], 0)?;
    let default = default.unwrap_or(Value::Int(0));
    let truncated = |x: f64| (x.is_finite() && x.abs() < 1e30).then_some(x.trunc() as i128);
    let parsed = match value {
        Value::Str(text) => {
            vm.budget.look(text.len())?;
            let base = u32::try_from(int_or(base.as_ref(), 10)?).unwrap_or(0);
            if !(2..=36).contains(&base) {
                return fail("int: a base is from 2 to 36");
            }
            let trimmed = text.trim_matches(is_space);
            let (sign, digits) = match trimmed.strip_prefix('-') {
                Some(digits) => (-1, digits),
                None => (1, trimmed.strip_prefix('+').unwrap_or(trimmed)),
            };
            let lower = digits.to_ascii_lowercase();
            let prefix = match base {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
            let digits = digits_joined(digits).filter(|digits| !digits.starts_with(['+', '-']));
            digits
                .and_then(|digits| i128::from_str_radix(&digits, base).ok())
                .map(|n| sign * n)
                .or_else(|| parse_float(text).and_then(truncated))
        }
        Value::Undefined(message) => return fail(&**message),
        Value::Float(x) => truncated(*x),
        other => other.as_int(),
    };
    Ok(parsed.map_or(default, Value::Int))
}

fn round(value: &Value, args: &Args, _: &Interpreter<'_>) -> Res<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"], 0)?;
    let precision = int_or(precision.as_ref(), 0)?.clamp(-400, 400) as i32;
    let method = match &method {
        None => "common",
        Some(Value::Str(text)) => &**text,
        Some(_) => "",
    };
    let Some(x) = value.as_float() else {
        return match value {
            Value::Undefined(message) => fail(&**message),
            other => fail(format!(
                "type {} doesn't define __round__ method",
                other.type_name()
            )),
        };
    };
    if let ("common", Some(n)) = (method, value.as_int()) {
        if precision >= 0 {
            return Ok(Value::Int(n));
        }
        let unit = 10i128
            .checked_pow(precision.unsigned_abs())
            .ok_or_else(|| failure("round: too many digits"))?;
        let (down, rest) = (n.div_euclid(unit), n.rem_euclid(unit));
        let up = match (2 * rest).cmp(&unit) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Greater => 1,
            std::cmp::Ordering::Equal => down.rem_euclid(2),
        };
        return Ok(Value::Int((down + up) * unit));
    }
    let scale = 10f64.powi(precision);
    Ok(Value::Float(match method {
        "common" if !x.is_finite() => x,
        // Formatting rounds the exact value, and halves to even.
        "common" if precision >= 0 => format!("{x:.*}", precision as usize).parse().unwrap_or(x),
        "common" => {
            let unit = 10f64.powi(-precision);
            (x / unit).round_ties_even() * unit
        }
        // Python makes whole numbers of these, which have no negative zero.
        "ceil" => ((x * scale).ceil() + 0.0) / scale,
        "floor" => ((x * scale).floor() + 0.0) / scale,
        _ => return fail("method must be common, ceil or floor"),
    }))
}

fn truncate(text: &Rc<str>, args: &Args, vm: &Interpreter<'_>) -> Res<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, killwords, end, leeway] = args.bind("truncate", names, 0)?;
    let (length, leeway) = (count_or(length.as_ref(), 255)?, count_or(leeway.as_ref(), 5)?);
    let end = to_str(&end.unwrap_or_else(|| Value::str("...")), vm)?;
    let end_len = end.chars().count();
    vm.budget.look(text.len())?;
    if length < end_len {
        return fail(format!("expected length >= {end_len}, got {length}"));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::Str(text.clone()));
    }
    let cut: String = text.chars().take(length - end_len).collect();
    let kept = if flag_or(killwords.as_ref(), false) {
        &cut
    } else {
        cut.rsplit_once(' ').map_or(&cut[..], |(kept, _)| kept)
    };
    let mut out = Text::new(vm.budget);
    out.push(kept)?;
    out.push(&end)?;
    Ok(out.into_value())
}

fn url_encode(value: &Value, vm: &Interpreter<'_>) -> Res<Value> {
    fn quote(text: &str, is_form: bool, out: &mut Text<'_>) -> Res<()> {
        for b in text.bytes() {
            match b {
                b' ' if is_form => out.push("+")?,
                b'/' if !is_form => out.push("/")?,
                b if b.is_ascii_alphanumeric() || b"_.-~".contains(&b) => out.push_char(b.into())?,
                b => out.push(&format!("%{b:02X}"))?,
            }
        }
        Ok(())
    }
    let mut out = Text::new(vm.budget);
    let pairs = match value {
        Value::Dict(dict) => dict.entries().to_vec(),
        Value::List(_) | Value::Tuple(_) | Value::Iter(_) | Value::Range(_) => {
            let pairs = value.items(vm.budget)?;
            let pairs = pairs.iter().map(|pair| match &pair.items(vm.budget)?[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                _ => fail("urlencode: expected pairs"),
            });
            pairs.collect::<Res<_>>()?
        }
        other => {
            quote(&to_str(other, vm)?, false, &mut out)?;
            return Ok(out.into_value());
        }
    };
    for (i, (key, value)) in pairs.iter().enumerate() {
        if i > 0 {
            out.push("&")?;
        }
        quote(&to_str(key, vm)?, true, &mut out)?;
        out.push("=")?;
        quote(&to_str(value, vm)?, true, &mut out)?;
    }
    Ok(out.into_value())
}

/// `a` and `b` joined as `~` does.
pub(super) fn concat(parts: &[Value], vm: &Interpreter<'_>) -> Res<Value> {
    let mut out = Text::new(vm.budget);
    for part in parts {
        super::text::write_str(part, vm, &mut out)?;
    }
    Ok(out.into_value())
}
