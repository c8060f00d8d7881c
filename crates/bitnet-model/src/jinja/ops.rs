//! Comparisons, items and slices of Python's values.

use std::cmp::Ordering;
use std::rc::Rc;

use super::budget::{Budget, Res, fail};
use super::value::{Key, Range, Value};

/// `a == b`.
pub(super) fn equal(a: &Value, b: &Value, budget: &Budget) -> Res<bool> {
    budget.enter()?;
    let result = equal_inside(a, b, budget);
    budget.leave();
    result
}

fn equal_inside(a: &Value, b: &Value, budget: &Budget) -> Res<bool> {
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            budget.look(a.len().min(b.len()))?;
            a == b
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, budget)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a.entries() {
                match b.get(key)? {
                    Some(other) if equal(value, other, budget)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(a), Value::Range(b)) => {
            a.len() == b.len() && (a.len() == 0 || a.at(0) == b.at(0) && (a.len() == 1 || a.step == b.step))
        }
        (Value::Iter(a), Value::Iter(b)) if a.kind == "dict_keys" && b.kind == "dict_keys" => {
            let keys = |items: &[Value]| {
                items
                    .iter()
                    .map(Key::of)
                    .collect::<Res<std::collections::HashSet<_>>>()
            };
            keys(&a.items)? == keys(&b.items)?
        }
        (Value::Iter(a), Value::Iter(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        (Value::Macro(a, x), Value::Macro(b, y)) => a == b && x == y,
        (Value::Function(a), Value::Function(b)) => a == b,
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (a, b) => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => a == b,
            _ => matches!((a.as_float(), b.as_float()), (Some(a), Some(b)) if a == b),
        },
    })
}

/// The order of two values; `None` for NaN.
pub(super) fn compare(a: &Value, b: &Value, op: &str, budget: &Budget) -> Res<Option<Ordering>> {
    budget.enter()?;
    let result = compare_inside(a, b, op, budget);
    budget.leave();
    result
}

fn compare_inside(a: &Value, b: &Value, op: &str, budget: &Budget) -> Res<Option<Ordering>> {
    match (a, b) {
        (Value::Undefined(message), _) | (_, Value::Undefined(message)) => fail(&**message),
        (Value::Str(a), Value::Str(b)) => {
            budget.look(a.len().min(b.len()))?;
            Ok(Some(a.cmp(b)))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, budget)? {
                    return compare(a, b, op, budget);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        (a, b) => match (a.as_int(), b.as_int(), a.as_float(), b.as_float()) {
            (Some(a), Some(b), ..) => Ok(Some(a.cmp(&b))),
            (_, _, Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
            _ => fail(format!(
                "'{op}' not supported between instances of '{}' and '{}'",
                a.type_name(),
                b.type_name()
            )),
        },
    }
}

/// `needle in haystack`.
pub(super) fn contains(haystack: &Value, needle: &Value, budget: &Budget) -> Res<bool> {
    match haystack {
        Value::Str(text) => match needle {
            Value::Str(part) => {
                budget.look(text.len())?;
                Ok(text.contains(&**part))
            }
            other => fail(format!(
                "'in <string>' requires string as left operand, not {}",
                other.type_name()
            )),
        },
        Value::Dict(dict) => Ok(dict.get(needle)?.is_some()),
        Value::List(seq) | Value::Tuple(seq) => {
            for item in &seq.items {
                if equal(item, needle, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Range(range) => {
            let Some(n) = needle.as_int() else {
                return Ok(false);
            };
            let (start, stop, step) = (
                i128::from(range.start),
                i128::from(range.stop),
                i128::from(range.step),
            );
            let (low, high) = if step > 0 {
                (start, stop)
            } else {
                (stop + 1, start + 1)
            };
            Ok((low..high).contains(&n) && (n - start) % step == 0)
        }
        Value::Undefined(_) | Value::Iter(_) => {
            for item in haystack.items(budget)? {
                if equal(&item, needle, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => fail(format!(
            "argument of type '{}' is not iterable",
            other.type_name()
        )),
    }
}

/// Where a slice of a sequence of `len` begins and ends, and its step: Python's `slice.indices`.
fn slice_bounds(len: usize, start: &Value, stop: &Value, step: &Value) -> Res<(i128, i128, i128)> {
    let part = |value: &Value| match (value, value.as_int()) {
        (Value::None, _) => Ok(None),
        (_, Some(n)) => Ok(Some(n)),
        _ => fail("slice indices must be integers or None or have an __index__ method"),
    };
    let (start, stop, step) = (part(start)?, part(stop)?, part(step)?.unwrap_or(1));
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |n: i128| {
        if n < 0 {
            n.saturating_add(len).max(low)
        } else {
            n.min(high)
        }
    };
    let start = start.map_or(if step > 0 { 0 } else { len - 1 }, bound);
    let stop = stop.map_or(if step > 0 { len } else { -1 }, bound);
    Ok((start, stop, step))
}

/// The indices of a slice.
fn slice_indices(len: usize, start: &Value, stop: &Value, step: &Value) -> Res<Vec<usize>> {
    let (start, stop, step) = slice_bounds(len, start, stop, step)?;
    let mut indices = Vec::new();
    let mut at = start;
    while if step > 0 { at < stop } else { at > stop } {
        indices.push(at as usize);
        at = at.saturating_add(step);
    }
    Ok(indices)
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, start: &Value, stop: &Value, step: &Value, budget: &Budget) -> Res<Value> {
    let items = |items: &[Value]| {
        let indices = slice_indices(items.len(), start, stop, step)?;
        Ok(indices
            .into_iter()
            .map(|at| items[at].clone())
            .collect::<Vec<_>>())
    };
    match value {
        Value::List(seq) => budget.list(items(&seq.items)?),
        Value::Tuple(seq) => budget.tuple(items(&seq.items)?),
        Value::Str(text) => {
            budget.make(4 * text.len())?;
            if text.is_ascii() {
                let indices = slice_indices(text.len(), start, stop, step)?;
                let bytes = text.as_bytes();
                return budget.text(
                    indices
                        .into_iter()
                        .map(|at| char::from(bytes[at]))
                        .collect::<String>(),
                );
            }
            let chars: Vec<char> = text.chars().collect();
            let indices = slice_indices(chars.len(), start, stop, step)?;
            budget.text(indices.into_iter().map(|at| chars[at]).collect::<String>())
        }
        Value::Range(range) => {
            let (first, last, by) = slice_bounds(range.len(), start, stop, step)?;
            let by = i128::from(range.step).saturating_mul(by);
            match (range.at_place(first), range.at_place(last), i64::try_from(by)) {
                (Ok(start), Ok(stop), Ok(step)) => Ok(Value::Range(Range { start, stop, step })),
                _ => fail("a range becomes too large"),
            }
        }
        Value::Undefined(message) => fail(&**message),
        other => fail(format!("'{}' object is not subscriptable", other.type_name())),
    }
}

/// `sequence[index]` of a sequence; `None` where there is no such item.
pub(super) fn index(value: &Value, index: i128, budget: &Budget) -> Res<Option<Value>> {
    let place = |len: usize| {
        let at = if index < 0 { index + len as i128 } else { index };
        usize::try_from(at).ok().filter(|&at| at < len)
    };
    Ok(match value {
        Value::List(seq) | Value::Tuple(seq) => place(seq.items.len()).map(|at| seq.items[at].clone()),
        Value::Range(range) => place(range.len()).map(|at| Value::Int(range.at(at))),
        Value::Str(text) => {
            budget.look(text.len())?;
            let at = if index < 0 {
                place(text.chars().count())
            } else {
                usize::try_from(index).ok()
            };
            at.and_then(|at| text.chars().nth(at))
                .map(|c| Value::str(c.encode_utf8(&mut [0; 4])))
        }
        _ => None,
    })
}

/// A stable sort by merging, for an order that may fail.
pub(super) fn sort_by<T: Clone>(
    items: &mut Vec<T>,
    key: impl Fn(&T) -> &Value + Copy,
    budget: &Budget,
) -> Res<()> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for pair in items.chunks(2 * width) {
            let (mut left, mut right) = pair.split_at(width.min(pair.len()));
            while let ([a, ..], [b, ..]) = (left, right) {
                budget.step()?;
                // The left one unless the right one is less.
                if compare(key(b), key(a), "<", budget)?.is_some_and(Ordering::is_lt) {
                    merged.push(b.clone());
                    right = &right[1..];
                } else {
                    merged.push(a.clone());
                    left = &left[1..];
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        *items = merged;
        width *= 2;
    }
    // A single item is compared with nothing, as in Python.
    Ok(())
}

/// The items of a dictionary as tuples.
pub(super) fn pairs(value: &Value, budget: &Budget) -> Res<Vec<Value>> {
    let Value::Dict(dict) = value else {
        return Ok(Vec::new());
    };
    let pairs = dict.entries().iter();
    pairs
        .map(|(key, value)| budget.tuple(vec![key.clone(), value.clone()]))
        .collect()
}
