//! Python's formatting: `"%s" % value` and `"{}".format(value)`.

use super::args::Args;
use super::budget::{Res, Text, fail};
use super::state::Interpreter;
use super::text::{float, to_str, write_repr};
use super::value::Value;

/// How a value is laid out.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    plus: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

fn repr(value: &Value, vm: &Interpreter<'_>) -> Res<String> {
    let mut out = Text::new(vm.budget);
    write_repr(value, vm, &mut out)?;
    Ok(out.into_string())
}

/// `text % args`.
pub(super) fn percent(text: &str, args: &Value, vm: &Interpreter<'_>) -> Res<Value> {
    let single = [args.clone()];
    let list = match args {
        Value::Tuple(seq) => &seq.items[..],
        _ => &single,
    };
    let mut next = list.iter();
    let mut out = Text::new(vm.budget);
    let mut used_names = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push_char(c)?;
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            let mut depth = 1;
            loop {
                let Some(c) = chars.next() else {
                    return fail("incomplete format key");
                };
                depth += i32::from(c == '(') - i32::from(c == ')');
                if depth == 0 {
                    break;
                }
                name.push(c);
            }
            let Value::Dict(dict) = args else {
                return fail("format requires a mapping");
            };
            let Some(value) = dict.get_str(&name) else {
                return fail(format!("KeyError: '{name}'"));
            };
            used_names = true;
            named = Some(value);
        }
        let mut spec = Spec {
            align: Some('>'),
            ..Spec::default()
        };
        while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.plus = Some('+'),
                ' ' => spec.plus = spec.plus.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => spec.zero = true,
            }
        }
        let mut missing = || {
            next.next()
                .map_or_else(|| fail("not enough arguments for format string"), Ok)
        };
        let star = |value: &Value| match value.as_int() {
            Some(n) => Ok(n),
            None => fail("* wants int"),
        };
        if chars.next_if_eq(&'*').is_some() {
            let n = star(missing()?)?;
            if n < 0 {
                spec.align = Some('<');
            }
            spec.width = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
        } else {
            spec.width = digits(&mut chars)?.unwrap_or(0);
        }
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(if chars.next_if_eq(&'*').is_some() {
                usize::try_from(star(missing()?)?.max(0)).unwrap_or(usize::MAX)
            } else {
                digits(&mut chars)?.unwrap_or(0)
            });
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let Some(kind) = chars.next() else {
            return fail("incomplete format");
        };
        if kind == '%' {
            out.push("%")?;
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => missing()?,
        };
        if spec.align == Some('<') {
            spec.zero = false;
        }
        match kind {
            's' | 'r' | 'a' => {
                spec.zero = false;
                let text = if kind == 's' {
                    to_str(value, vm)?.to_string()
                } else {
                    repr(value, vm)?
                };
                text_field(&text, &spec, &mut out)?;
            }
            'c' => {
                let text = match value {
                    Value::Str(text) if text.chars().count() == 1 => text.to_string(),
                    value => match value
                        .as_int()
                        .and_then(|n| char::from_u32(u32::try_from(n).ok()?))
                    {
                        Some(c) => c.to_string(),
                        None => return fail("%c requires int or char"),
                    },
                };
                spec.zero = false;
                spec.precision = None;
                text_field(&text, &spec, &mut out)?;
            }
            'd' | 'i' | 'u' => {
                let n = match value {
                    Value::Float(x) if x.is_finite() && x.abs() < 1e30 => *x as i128,
                    value => match value.as_int() {
                        Some(n) => n,
                        None => {
                            return fail(format!(
                                "%{kind} format: a real number is required, not {}",
                                value.type_name()
                            ));
                        }
                    },
                };
                whole(n, 'd', spec, &mut out)?;
            }
            'x' | 'X' | 'o' => match value.as_int() {
                Some(n) => whole(n, kind, spec, &mut out)?,
                None => {
                    return fail(format!(
                        "%{kind} format: an integer is required, not {}",
                        value.type_name()
                    ));
                }
            },
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => match value.as_float() {
                Some(x) => real(x, kind, spec, &mut out)?,
                None => return fail(format!("must be real number, not {}", value.type_name())),
            },
            other => return fail(format!("unsupported format character '{other}'")),
        }
    }
    if next.next().is_some()
        && !used_names
        && !matches!(
            args,
            Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_)
        )
    {
        return fail("not all arguments converted during string formatting");
    }
    Ok(out.into_value())
}

fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Res<Option<usize>> {
    let text: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map_or_else(|_| fail("a width is too large"), |n| Ok(Some(n)))
}

/// A text, cut to the precision and padded.
fn text_field(text: &str, spec: &Spec, out: &mut Text<'_>) -> Res<()> {
    let cut = spec
        .precision
        .and_then(|n| text.char_indices().nth(n))
        .map_or(text, |(at, _)| &text[..at]);
    padded("", cut, spec, '<', out)
}

/// Pads what stands behind a sign.
fn padded(sign: &str, text: &str, spec: &Spec, default: char, out: &mut Text<'_>) -> Res<()> {
    let len = sign.chars().count() + text.chars().count();
    let missing = spec.width.saturating_sub(len);
    let zero = spec.zero && spec.align.is_none_or(|align| align == '>' && spec.fill.is_none());
    let fill = spec.fill.unwrap_or(if zero { '0' } else { ' ' }).to_string();
    let align = if zero { '=' } else { spec.align.unwrap_or(default) };
    let left = match align {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    if align == '=' {
        out.push(sign)?;
        out.push_n(&fill, left)?;
    } else {
        out.push_n(&fill, left)?;
        out.push(sign)?;
    }
    out.push(text)?;
    out.push_n(&fill, missing - left)
}

fn grouped(digits: &str, separator: Option<char>) -> String {
    let Some(separator) = separator else {
        return digits.to_owned();
    };
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

fn sign_of(negative: bool, spec: &Spec) -> String {
    if negative {
        "-".to_owned()
    } else {
        spec.plus
            .filter(|&c| c != '-')
            .map_or_else(String::new, String::from)
    }
}

fn whole(n: i128, kind: char, spec: Spec, out: &mut Text<'_>) -> Res<()> {
    let size = n.unsigned_abs();
    let (prefix, digits) = match kind {
        'x' => ("0x", format!("{size:x}")),
        'X' => ("0X", format!("{size:X}")),
        'o' => ("0o", format!("{size:o}")),
        'b' => ("0b", format!("{size:b}")),
        _ => ("", size.to_string()),
    };
    let mut sign = sign_of(n < 0, &spec);
    if spec.alternate {
        sign.push_str(prefix);
    }
    let digits = if prefix.is_empty() {
        grouped(&digits, spec.group)
    } else {
        digits
    };
    let digits = match spec.precision {
        Some(n) if n > digits.len() => {
            out.budget.check_text(n)?;
            "0".repeat(n - digits.len()) + &digits
        }
        _ => digits,
    };
    padded(&sign, &digits, &spec, '>', out)
}

fn real(x: f64, kind: char, spec: Spec, out: &mut Text<'_>) -> Res<()> {
    let precision = spec.precision.unwrap_or(6);
    out.budget.check_text(precision)?;
    let size = x.abs();
    let exponent = |digits: usize| {
        let text = format!("{size:.digits$e}");
        let (mantissa, exponent) = text
            .split_once('e')
            .map_or((text.clone(), 0), |(m, e)| (m.to_owned(), e.parse().unwrap_or(0)));
        (mantissa, exponent)
    };
    let written = |mantissa: &str, exponent: i32| {
        format!(
            "{mantissa}e{}{:02}",
            if exponent < 0 { '-' } else { '+' },
            exponent.abs()
        )
    };
    let text = if !x.is_finite() {
        float(size)
    } else {
        match kind {
            'f' | 'F' => format!("{size:.precision$}"),
            '%' => format!("{:.precision$}%", size * 100.0),
            'e' | 'E' => {
                let (mantissa, exponent) = exponent(precision);
                written(&mantissa, exponent)
            }
            _ => {
                let significant = precision.max(1);
                let (mantissa, exponent) = exponent(significant - 1);
                let trimmed = |text: &str| match text.contains('.') && !spec.alternate {
                    true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                    false => text.to_owned(),
                };
                if exponent < -4 || exponent >= significant as i32 {
                    written(&trimmed(&mantissa), exponent)
                } else {
                    let digits = (significant as i32 - 1 - exponent).max(0) as usize;
                    trimmed(&format!("{size:.digits$}"))
                }
            }
        }
    };
    let text = if kind.is_ascii_uppercase() {
        text.to_uppercase()
    } else {
        text
    };
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let text = grouped(&text[..end], spec.group) + &text[end..];
    padded(
        &sign_of(x.is_sign_negative() && !x.is_nan(), &spec),
        &text,
        &spec,
        '>',
        out,
    )
}

/// `text.format(...)`.
pub(super) fn braces(text: &str, args: &Args, vm: &Interpreter<'_>) -> Res<Value> {
    let mut out = Text::new(vm.budget);
    let mut automatic = 0;
    expand(text, args, vm, &mut automatic, 2, &mut out)?;
    Ok(out.into_value())
}

fn expand(
    text: &str,
    args: &Args,
    vm: &Interpreter<'_>,
    automatic: &mut usize,
    levels: u32,
    out: &mut Text<'_>,
) -> Res<()> {
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push(&rest[..at])?;
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push(brace)?;
            rest = after;
            continue;
        }
        if brace == "}" {
            return fail("Single '}' encountered in format string");
        }
        let mut depth = 1;
        let end = rest.char_indices().find(|&(_, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        let Some((end, _)) = end else {
            return fail("expected '}' before end of string");
        };
        let field = &rest[..end];
        rest = &rest[end + 1..];
        if levels == 0 {
            return fail("Max string recursion exceeded");
        }
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = head
            .split_once('!')
            .map_or((head, None), |(name, c)| (name, Some(c)));
        let value = lookup(name, args, vm, automatic)?;
        let mut spec_text = Text::new(vm.budget);
        expand(spec, args, vm, automatic, levels - 1, &mut spec_text)?;
        let value = match conversion {
            None => value,
            Some("s") => Value::Str(to_str(&value, vm)?),
            Some("r" | "a") => vm.budget.text(repr(&value, vm)?)?,
            Some(other) => return fail(format!("Unknown conversion specifier {other:?}")),
        };
        field_value(&value, &spec_text.into_string(), vm, out)?;
    }
    out.push(rest)
}

/// The value of a field such as `0.name[key]`.
fn lookup(name: &str, args: &Args, vm: &Interpreter<'_>, automatic: &mut usize) -> Res<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut rest) = name.split_at(end);
    let index = if first.is_empty() {
        *automatic += 1;
        Some(*automatic - 1)
    } else {
        first.parse().ok()
    };
    let found = match index {
        Some(index) => args.positional.get(index),
        None => args
            .keywords
            .iter()
            .find(|(name, _)| name == first)
            .map(|(_, value)| value),
    };
    let Some(mut value) = found.cloned() else {
        return fail(format!("the format names {first:?}, which was not given"));
    };
    while !rest.is_empty() {
        value = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            rest = &after[end..];
            vm.attribute(&value, &after[..end])?
        } else {
            let Some((key, after)) = rest[1..].split_once(']') else {
                return fail("Missing ']' in format string");
            };
            rest = after;
            let key = key.parse().map_or_else(|_| Value::str(key), Value::Int);
            vm.item(&value, &key)?
        };
        if let Value::Undefined(message) = &value {
            return fail(&**message);
        }
    }
    Ok(value)
}

fn field_value(value: &Value, text: &str, vm: &Interpreter<'_>, out: &mut Text<'_>) -> Res<()> {
    if text.is_empty() {
        return out.push(&to_str(value, vm)?);
    }
    let spec = parse_spec(text)?;
    match (value, spec.kind) {
        (Value::Str(text), None | Some('s')) => text_field(text, &spec, out),
        (Value::Bool(_) | Value::Int(_), None | Some('d' | 'x' | 'X' | 'o' | 'b' | 'n'))
            if spec.precision.is_none() =>
        {
            let kind = spec.kind.unwrap_or('d');
            whole(value.as_int().unwrap_or(0), kind, spec, out)
        }
        (Value::Float(x), None) if spec.precision.is_none() => {
            let text = float(x.abs());
            padded(&sign_of(x.is_sign_negative(), &spec), &text, &spec, '>', out)
        }
        (_, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) if value.as_float().is_some() => {
            let kind = spec.kind.unwrap_or('f');
            real(value.as_float().unwrap_or(0.0), kind, spec, out)
        }
        _ => fail(format!(
            "the format {text:?} of a value of type '{}' is not implemented",
            value.type_name()
        )),
    }
}

fn parse_spec(text: &str) -> Res<Spec> {
    let mut spec = Spec::default();
    let mut chars = text.chars().peekable();
    let mut ahead = text.chars();
    let (first, second) = (ahead.next(), ahead.next());
    if second.is_some_and(|c| "<>=^".contains(c)) {
        (spec.fill, spec.align) = (first, second);
        chars.next();
        chars.next();
    } else if first.is_some_and(|c| "<>=^".contains(c)) {
        spec.align = first;
        chars.next();
    }
    spec.plus = chars.next_if(|c| "+- ".contains(*c));
    spec.alternate = chars.next_if_eq(&'#').is_some();
    spec.zero = chars.next_if_eq(&'0').is_some();
    spec.width = digits(&mut chars)?.unwrap_or(0);
    spec.group = chars.next_if(|c| ",_".contains(*c));
    if chars.next_if_eq(&'.').is_some() {
        spec.precision = Some(match digits(&mut chars)? {
            Some(n) => n,
            None => return fail("Format specifier missing precision"),
        });
    }
    spec.kind = chars.next();
    if chars.next().is_some() {
        return fail("Invalid format specifier");
    }
    Ok(spec)
}
