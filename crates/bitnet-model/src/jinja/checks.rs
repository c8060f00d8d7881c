//! Jinja2's tests: `value is name`.

use std::cmp::Ordering;

use super::args::Args;
use super::budget::{Res, fail, failure};
use super::names::{is_filter, is_test};
use super::state::Interpreter;
use super::strings::is_all;
use super::text::to_str;
use super::value::Value;
use super::{operators, ops};

/// Whether `value` passes the test `name`.
pub(super) fn test(value: &Value, name: &str, args: &Args, vm: &Interpreter<'_>) -> Res<bool> {
    let budget = vm.budget;
    let other = || -> Res<Value> {
        let [other] = args.bind(name, ["other"], 1)?;
        other.ok_or_else(|| failure("missing argument"))
    };
    let order = |op: &str, test: fn(Ordering) -> bool| {
        Ok(ops::compare(value, &other()?, op, budget)?.is_some_and(test))
    };
    match name {
        "eq" | "equalto" | "==" => return ops::equal(value, &other()?, budget),
        "ne" | "!=" => return Ok(!ops::equal(value, &other()?, budget)?),
        "lt" | "lessthan" | "<" => return order("<", Ordering::is_lt),
        "le" | "<=" => return order("<=", Ordering::is_le),
        "gt" | "greaterthan" | ">" => return order(">", Ordering::is_gt),
        "ge" | ">=" => return order(">=", Ordering::is_ge),
        "in" => return ops::contains(&other()?, value, budget),
        "sameas" => {
            let other = other()?;
            return match (value, &other) {
                (Value::Undefined(_) | Value::Float(_), b) if value.type_name() == b.type_name() => {
                    fail("sameas of two values of this type is not implemented")
                }
                (a, b) => Ok(a.type_name() == b.type_name() && ops::equal(a, b, budget)?),
            };
        }
        "divisibleby" => {
            let rest = operators::binary(super::ast::Op::Mod, value, &other()?, vm)?;
            return ops::equal(&rest, &Value::Int(0), budget);
        }
        _ => args.none(name)?,
    }
    let is_odd = || {
        let rest = operators::binary(super::ast::Op::Mod, value, &Value::Int(2), vm)?;
        ops::equal(&rest, &Value::Int(1), budget)
    };
    Ok(match name {
        "boolean" => matches!(value, Value::Bool(_)),
        "callable" => matches!(
            value,
            Value::Macro(..)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Joiner(_)
                | Value::Loop(_)
                | Value::Undefined(_)
        ),
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "escaped" => false,
        "even" => {
            let rest = operators::binary(super::ast::Op::Mod, value, &Value::Int(2), vm)?;
            ops::equal(&rest, &Value::Int(0), budget)?
        }
        "odd" => is_odd()?,
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "none" => matches!(value, Value::None),
        "float" => matches!(value, Value::Float(_)),
        "integer" => matches!(value, Value::Int(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "iterable" => value.is_iterable(),
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
        ),
        "lower" => is_all(&to_str(value, vm)?, char::is_lowercase),
        "upper" => is_all(&to_str(value, vm)?, char::is_uppercase),
        "filter" | "test" => {
            if matches!(value, Value::List(_) | Value::Dict(_)) {
                return fail(format!("unhashable type: '{}'", value.type_name()));
            }
            matches!(value, Value::Str(text) if if name == "filter" { is_filter(text) } else { is_test(text) })
        }
        _ => return fail(format!("No test named {name:?} found.")),
    })
}
