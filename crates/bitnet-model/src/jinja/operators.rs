//! Python's arithmetic.

use super::ast::Op;
use super::budget::{Budget, Res, Text, fail};
use super::format;
use super::state::Interpreter;
use super::value::Value;

/// A binary operator.
pub(super) fn binary(op: Op, a: &Value, b: &Value, vm: &Interpreter<'_>) -> Res<Value> {
    let budget = vm.budget;
    match (op, a, b) {
        (Op::Add, Value::Str(a), Value::Str(b)) => {
            let mut out = Text::new(budget);
            out.push(a)?;
            out.push(b)?;
            return Ok(out.into_value());
        }
        (Op::Add, Value::List(x), Value::List(y)) | (Op::Add, Value::Tuple(x), Value::Tuple(y)) => {
            budget.check_items(x.items.len() + y.items.len())?;
            let items = [&x.items[..], &y.items[..]].concat();
            return if matches!(a, Value::List(_)) {
                budget.list(items)
            } else {
                budget.tuple(items)
            };
        }
        (Op::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), n) if n.as_int().is_some() => {
            return repeat(a, n.as_int().unwrap_or(0), budget);
        }
        (Op::Mul, n, Value::Str(_) | Value::List(_) | Value::Tuple(_)) if n.as_int().is_some() => {
            return repeat(b, n.as_int().unwrap_or(0), budget);
        }
        (Op::Mod, Value::Str(text), args) => return format::percent(text, args, vm),
        _ => {}
    }
    arithmetic(op, a, b)
}

fn unsupported<T>(op: &str, a: &Value, b: &Value) -> Res<T> {
    for value in [a, b] {
        if let Value::Undefined(message) = value {
            return fail(&**message);
        }
    }
    fail(format!(
        "unsupported operand type(s) for {op}: '{}' and '{}'",
        a.type_name(),
        b.type_name()
    ))
}

fn repeat(value: &Value, n: i128, budget: &Budget) -> Res<Value> {
    let n = usize::try_from(n.max(0)).unwrap_or(usize::MAX);
    let items = |items: &[Value]| {
        budget.check_items(items.len().saturating_mul(n))?;
        let len = if items.is_empty() { 0 } else { items.len() * n };
        Ok(items.iter().cycle().take(len).cloned().collect::<Vec<_>>())
    };
    match value {
        Value::List(seq) => budget.list(items(&seq.items)?),
        Value::Tuple(seq) => budget.tuple(items(&seq.items)?),
        Value::Str(text) => {
            let mut out = Text::new(budget);
            out.push_n(text, n)?;
            Ok(out.into_value())
        }
        _ => Ok(Value::None),
    }
}

fn arithmetic(op: Op, a: &Value, b: &Value) -> Res<Value> {
    let name = match op {
        Op::Add => "+",
        Op::Sub => "-",
        Op::Mul => "*",
        Op::Div => "/",
        Op::FloorDiv => "//",
        Op::Mod => "%",
        Op::Pow => "** or pow()",
    };
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        let result = match op {
            Op::Add => x.checked_add(y),
            Op::Sub => x.checked_sub(y),
            Op::Mul => x.checked_mul(y),
            Op::FloorDiv | Op::Mod | Op::Div if y == 0 => {
                let message = if op == Op::Div {
                    "division by zero"
                } else {
                    "integer division or modulo by zero"
                };
                return fail(message);
            }
            Op::Div => return Ok(Value::Float(x as f64 / y as f64)),
            Op::FloorDiv => x.checked_div_euclid(y).and_then(|q| {
                // Euclid's rest is never negative; Python's has the sign of the divisor.
                let rest = x.checked_rem_euclid(y)?;
                if rest != 0 && y < 0 {
                    q.checked_sub(1)
                } else {
                    Some(q)
                }
            }),
            Op::Mod => x
                .checked_rem_euclid(y)
                .map(|r| if r != 0 && y < 0 { r + y } else { r }),
            Op::Pow if y < 0 => return power(x as f64, y as f64),
            Op::Pow => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
        };
        return result.map_or_else(|| fail("a whole number becomes too large"), |n| Ok(Value::Int(n)));
    }
    let (Some(x), Some(y)) = (a.as_float(), b.as_float()) else {
        return unsupported(name, a, b);
    };
    if y == 0.0 && matches!(op, Op::Div | Op::FloorDiv | Op::Mod) {
        return fail(match op {
            Op::Mod => "float modulo",
            Op::FloorDiv => "float floor division by zero",
            _ => "float division by zero",
        });
    }
    // Python's rest has the sign of the divisor.
    let rest = || {
        let rest = x % y;
        if rest == 0.0 {
            0.0f64.copysign(y)
        } else if (rest < 0.0) != (y < 0.0) {
            rest + y
        } else {
            rest
        }
    };
    Ok(Value::Float(match op {
        Op::Add => x + y,
        Op::Sub => x - y,
        Op::Mul => x * y,
        Op::Div => x / y,
        Op::Mod => rest(),
        Op::FloorDiv => {
            let quotient = (x - rest()) / y;
            let floor = quotient.floor();
            if quotient - floor > 0.5 {
                floor + 1.0
            } else {
                floor
            }
        }
        Op::Pow => return power(x, y),
    }))
}

fn power(x: f64, y: f64) -> Res<Value> {
    if x == 0.0 && y < 0.0 {
        return fail("0.0 cannot be raised to a negative power");
    }
    let result = x.powf(y);
    if result.is_nan() && !x.is_nan() && !y.is_nan() {
        return fail("complex numbers are not implemented");
    }
    if result.is_infinite() && x.is_finite() && y.is_finite() {
        return fail("Result too large");
    }
    Ok(Value::Float(result))
}

/// `-value` and `+value`.
pub(super) fn sign(value: &Value, negative: bool) -> Res<Value> {
    match (value, value.as_int()) {
        (Value::Float(x), _) => Ok(Value::Float(if negative { -x } else { *x })),
        (_, Some(n)) => Ok(Value::Int(if negative { n.saturating_neg() } else { n })),
        (Value::Undefined(message), _) => fail(&**message),
        _ => fail(format!(
            "bad operand type for unary {}: '{}'",
            if negative { '-' } else { '+' },
            value.type_name()
        )),
    }
}
