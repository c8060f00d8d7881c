//! transformers' filter `tojson`, which is Python's `json.dumps`.

use super::args::{Args, flag_or};
use super::budget::{Res, Text, fail};
use super::state::Interpreter;
use super::text::{float, to_str};
use super::value::Value;

struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`.
pub(super) fn to_json(value: &Value, args: &Args, vm: &Interpreter<'_>) -> Res<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = args.bind("tojson", names, 0)?;
    let indent = match &indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(value) => match value.as_int() {
            Some(n) => {
                let n = usize::try_from(n.max(0)).unwrap_or(usize::MAX);
                vm.budget.check_text(n)?;
                Some(" ".repeat(n))
            }
            None => return fail("tojson: indent is neither a number nor a text"),
        },
    };
    let (mut item, mut key) = (
        if indent.is_some() { "," } else { ", " }.to_owned(),
        ": ".to_owned(),
    );
    if let Some(separators) = separators.filter(|value| !matches!(value, Value::None)) {
        match &separators.items(vm.budget)?[..] {
            [Value::Str(first), Value::Str(second)] => (item, key) = (first.to_string(), second.to_string()),
            _ => return fail("tojson: separators are not two texts"),
        }
    }
    let style = Style {
        ascii: flag_or(ascii.as_ref(), false),
        indent,
        item,
        key,
        sort: flag_or(sort.as_ref(), false),
    };
    let mut out = Text::new(vm.budget);
    write(value, &style, 0, vm, &mut out)?;
    Ok(out.into_value())
}

fn write(value: &Value, style: &Style, level: usize, vm: &Interpreter<'_>, out: &mut Text<'_>) -> Res<()> {
    vm.budget.enter()?;
    let result = write_inside(value, style, level, vm, out);
    vm.budget.leave();
    result
}

fn new_line(style: &Style, level: usize, out: &mut Text<'_>) -> Res<()> {
    if let Some(indent) = &style.indent {
        out.push("\n")?;
        out.push_n(indent, level)?;
    }
    Ok(())
}

fn write_inside(
    value: &Value,
    style: &Style,
    level: usize,
    vm: &Interpreter<'_>,
    out: &mut Text<'_>,
) -> Res<()> {
    match value {
        Value::None => out.push("null"),
        Value::Bool(b) => out.push(if *b { "true" } else { "false" }),
        Value::Int(n) => out.push(&n.to_string()),
        Value::Float(x) => out.push(&json_float(*x)),
        Value::Str(text) => quoted(text, style.ascii, out),
        Value::List(seq) | Value::Tuple(seq) => {
            if seq.items.is_empty() {
                return out.push("[]");
            }
            out.push("[")?;
            for (i, item) in seq.items.iter().enumerate() {
                if i > 0 {
                    out.push(&style.item)?;
                }
                new_line(style, level + 1, out)?;
                write(item, style, level + 1, vm, out)?;
            }
            new_line(style, level, out)?;
            out.push("]")
        }
        Value::Dict(dict) => {
            if dict.len() == 0 {
                return out.push("{}");
            }
            let mut entries: Vec<&(Value, Value)> = dict.entries().iter().collect();
            if style.sort {
                super::ops::sort_by(&mut entries, |entry| &entry.0, vm.budget)?;
            }
            out.push("{")?;
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(&style.item)?;
                }
                new_line(style, level + 1, out)?;
                let key = match key {
                    Value::Str(text) => text.clone(),
                    Value::None => "null".into(),
                    Value::Bool(b) => b.to_string().into(),
                    Value::Float(x) => json_float(*x).into(),
                    Value::Int(_) => to_str(key, vm)?,
                    other => {
                        return fail(format!(
                            "keys must be str, int, float, bool or None, not {}",
                            other.type_name()
                        ));
                    }
                };
                quoted(&key, style.ascii, out)?;
                out.push(&style.key)?;
                write(value, style, level + 1, vm, out)?;
            }
            new_line(style, level, out)?;
            out.push("}")
        }
        other => fail(format!(
            "Object of type {} is not JSON serializable",
            other.type_name()
        )),
    }
}

fn json_float(x: f64) -> String {
    match (x.is_nan(), x.is_infinite()) {
        (true, _) => "NaN".to_owned(),
        (_, true) => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ => float(x),
    }
}

fn quoted(text: &str, ascii: bool, out: &mut Text<'_>) -> Res<()> {
    out.push("\"")?;
    for c in text.chars() {
        match c {
            '"' => out.push("\\\"")?,
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\x08' => out.push("\\b")?,
            '\x0c' => out.push("\\f")?,
            c if c < ' ' || ascii && c > '~' => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push(&format!("\\u{unit:04x}"))?;
                }
            }
            c => out.push_char(c)?,
        }
    }
    out.push("\"")
}
