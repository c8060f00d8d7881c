//! `str()` and `repr()` of Python.

use super::budget::{Res, Text, fail};
use super::state::Interpreter;
use super::unicode::is_printable;
use super::value::Value;

/// `str(value)` as a text that is not copied where there is one.
pub(super) fn to_str(value: &Value, vm: &Interpreter<'_>) -> Res<std::rc::Rc<str>> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        other => {
            let mut out = Text::new(vm.budget);
            write_str(other, vm, &mut out)?;
            Ok(out.into_string().into())
        }
    }
}

/// Writes `str(value)`.
pub(super) fn write_str(value: &Value, vm: &Interpreter<'_>, out: &mut Text<'_>) -> Res<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => out.push(text),
        other => write_repr(other, vm, out),
    }
}

/// Writes `repr(value)`.
pub(super) fn write_repr(value: &Value, vm: &Interpreter<'_>, out: &mut Text<'_>) -> Res<()> {
    vm.budget.enter()?;
    let result = repr(value, vm, out);
    vm.budget.leave();
    result
}

fn repr(value: &Value, vm: &Interpreter<'_>, out: &mut Text<'_>) -> Res<()> {
    let list = |items: &[Value], open: &str, close: &str, out: &mut Text<'_>| {
        out.push(open)?;
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push(", ")?;
            }
            write_repr(item, vm, out)?;
        }
        out.push(close)
    };
    match value {
        Value::Undefined(_) => out.push("Undefined"),
        Value::None => out.push("None"),
        Value::Bool(b) => out.push(if *b { "True" } else { "False" }),
        Value::Int(n) => out.push(&n.to_string()),
        Value::Float(x) => out.push(&float(*x)),
        Value::Str(text) => quoted(text, out),
        Value::List(seq) => list(&seq.items, "[", "]", out),
        Value::Tuple(seq) if seq.items.len() == 1 => list(&seq.items, "(", ",)", out),
        Value::Tuple(seq) => list(&seq.items, "(", ")", out),
        Value::Dict(dict) => entries(dict.entries(), vm, out),
        Value::Range(range) if range.step == 1 => {
            out.push(&format!("range({}, {})", range.start, range.stop))
        }
        Value::Range(range) => out.push(&format!("range({}, {}, {})", range.start, range.stop, range.step)),
        Value::Iter(iter) if iter.kind != "generator" => {
            out.push(iter.kind)?;
            list(&iter.items, "([", "])", out)
        }
        Value::Namespace(index) => {
            out.push("<Namespace ")?;
            entries(vm.namespaces[*index].borrow().entries(), vm, out)?;
            out.push(">")
        }
        Value::Macro(index, _) => out.push(&format!("<Macro '{}'>", vm.tree.macros[*index].name)),
        Value::Loop(of) => out.push(&format!(
            "<LoopContext {}/{}>",
            of.index.get() + 1,
            of.items.len()
        )),
        other => fail(format!(
            "printing a value of type '{}' is not implemented",
            other.type_name()
        )),
    }
}

fn entries(entries: &[(Value, Value)], vm: &Interpreter<'_>, out: &mut Text<'_>) -> Res<()> {
    out.push("{")?;
    for (i, (key, value)) in entries.iter().enumerate() {
        if i > 0 {
            out.push(", ")?;
        }
        write_repr(key, vm, out)?;
        out.push(": ")?;
        write_repr(value, vm, out)?;
    }
    out.push("}")
}

/// `repr` of a str.
fn quoted(text: &str, out: &mut Text<'_>) -> Res<()> {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            c if c == quote => {
                out.push("\\")?;
                out.push_char(c)?;
            }
            c if is_printable(c) => out.push_char(c)?,
            c => {
                let code = u32::from(c);
                out.push(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                })?;
            }
        }
    }
    out.push_char(quote)
}

/// `repr` of a float: the fewest digits that give it back.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = format!("{x}");
        if text.contains('.') { text } else { text + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// `str(value)`, for messages.
pub(super) fn message(value: &Value, vm: &Interpreter<'_>) -> Res<String> {
    Ok(to_str(value, vm)?.to_string())
}
