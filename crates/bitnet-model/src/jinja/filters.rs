//! Jinja2's filters: those that work on the items of a value, and what calls all of them.

use std::cmp::Ordering;
use std::rc::Rc;

use super::args::{Args, count_or, flag_or, int_or};
use super::ast::Op;
use super::budget::{Budget, Res, Text, fail, failure};
use super::names::{is_filter, is_test, works_on_items};
use super::state::Interpreter;
use super::text::{to_str, write_str};
use super::value::{Key, Seq, Value};
use super::{checks, operators, ops, plain};

/// The result of the filter `name`.
pub(super) fn filter(value: &Value, name: &str, args: &Args, vm: &mut Interpreter<'_>) -> Res<Value> {
    if !works_on_items(name) {
        return plain::filter(value, name, args, vm);
    }
    let budget = vm.budget;
    match name {
        "list" => {
            args.none(name)?;
            budget.list(value.items(budget)?)
        }
        "first" => {
            args.none(name)?;
            let first = match value {
                Value::Iter(iter) if iter.kind == "generator" => {
                    let at = iter.at.get();
                    iter.at.set((at + 1).min(iter.items.len()));
                    iter.items.get(at).cloned()
                }
                Value::List(seq) | Value::Tuple(seq) => seq.items.first().cloned(),
                Value::Str(_) | Value::Range(_) => ops::index(value, 0, budget)?,
                other => other.items(budget)?.into_iter().next(),
            };
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        "last" => {
            args.none(name)?;
            if matches!(value, Value::Iter(iter) if iter.kind == "generator") {
                return fail("'generator' object is not reversible");
            }
            let last = match value {
                Value::List(_) | Value::Tuple(_) | Value::Str(_) | Value::Range(_) => {
                    ops::index(value, -1, budget)?
                }
                other => other.items(budget)?.pop(),
            };
            Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
        }
        "join" => {
            let [separator, attribute] = args.bind(name, ["d", "attribute"], 0)?;
            let separator = separator.map_or_else(|| Ok("".into()), |value| to_str(&value, vm))?;
            let mut out = Text::new(budget);
            for (i, item) in value.items(budget)?.into_iter().enumerate() {
                budget.step()?;
                if i > 0 {
                    out.push(&separator)?;
                }
                let item = match &attribute {
                    None | Some(Value::None) => item,
                    Some(attribute) => path(&item, attribute, None, vm)?,
                };
                write_str(&item, vm, &mut out)?;
            }
            Ok(out.into_value())
        }
        "reverse" => {
            args.none(name)?;
            if let Value::Str(text) = value {
                return budget.text(text.chars().rev().collect::<String>());
            }
            let mut items = value.items(budget)?;
            items.reverse();
            Value::generator(items, budget)
        }
        "items" => {
            args.none(name)?;
            match value {
                Value::Undefined(_) => Value::generator(Vec::new(), budget),
                Value::Dict(_) => Value::generator(ops::pairs(value, budget)?, budget),
                _ => fail("Can only get item pairs from a mapping."),
            }
        }
        "dictsort" => {
            let [sensitive, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"], 0)?;
            let at = match by.map(|by| to_str(&by, vm)).transpose()?.as_deref() {
                None | Some("key") => 0,
                Some("value") => 1,
                Some(_) => return fail("You can only sort by either \"key\" or \"value\""),
            };
            let Value::Dict(_) = value else {
                return fail(format!("'{}' object has no attribute 'items'", value.type_name()));
            };
            let sensitive = flag_or(sensitive.as_ref(), false);
            let mut keyed = Vec::new();
            for pair in ops::pairs(value, budget)? {
                let key = ops::index(&pair, at, budget)?.unwrap_or(Value::None);
                keyed.push((folded(key, sensitive, budget)?, pair));
            }
            sorted(keyed, flag_or(reverse.as_ref(), false), budget)
        }
        "sort" => {
            let [reverse, sensitive, attribute] =
                args.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
            let sensitive = flag_or(sensitive.as_ref(), false);
            let mut keyed = Vec::new();
            for item in value.items(budget)? {
                keyed.push((sort_key(&item, attribute.as_ref(), sensitive, vm)?, item));
            }
            sorted(keyed, flag_or(reverse.as_ref(), false), budget)
        }
        "unique" => {
            let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
            let sensitive = flag_or(sensitive.as_ref(), false);
            let (mut seen, mut kept) = (std::collections::HashSet::new(), Vec::new());
            for item in value.items(budget)? {
                budget.step()?;
                let key = one_key(&item, attribute.as_ref(), sensitive, vm)?;
                if seen.insert(Key::of(&key)?) {
                    kept.push(item);
                }
            }
            Value::generator(kept, budget)
        }
        "min" | "max" => {
            let [sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
            let sensitive = flag_or(sensitive.as_ref(), false);
            let mut best: Option<(Value, Value)> = None;
            for item in value.items(budget)? {
                budget.step()?;
                let key = one_key(&item, attribute.as_ref(), sensitive, vm)?;
                let wins = match &best {
                    None => true,
                    Some((other, _)) if name == "min" => less(&key, other, budget)?,
                    Some((other, _)) => less(other, &key, budget)?,
                };
                if wins {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or_else(
                || Value::undefined("No aggregated item, sequence was empty."),
                |(_, item)| item,
            ))
        }
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"], 0)?;
            let mut sum = start.unwrap_or(Value::Int(0));
            if matches!(sum, Value::Str(_)) {
                return fail("sum() can't sum strings [use ''.join(seq) instead]");
            }
            for item in value.items(budget)? {
                budget.step()?;
                let item = match &attribute {
                    None | Some(Value::None) => item,
                    Some(attribute) => path(&item, attribute, None, vm)?,
                };
                sum = operators::binary(Op::Add, &sum, &item, vm)?;
            }
            Ok(sum)
        }
        "batch" => {
            let [count, fill] = args.bind(name, ["linecount", "fill_with"], 1)?;
            let count = int_or(count.as_ref(), 1)?;
            let items = value.items(budget)?;
            if count <= 0 {
                // As Jinja2: the length never is that of a line, except before the first item.
                return fail("batch: a line has at least one item");
            }
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let mut lines = Vec::new();
            for line in items.chunks(count) {
                let mut line = line.to_vec();
                if let Some(fill) = fill.clone().filter(|fill| !matches!(fill, Value::None)) {
                    budget.check_items(count)?;
                    line.resize(count, fill);
                }
                lines.push(budget.list(line)?);
            }
            Value::generator(lines, budget)
        }
        "slice" => {
            let [count, fill] = args.bind(name, ["slices", "fill_with"], 1)?;
            let count = count_or(count.as_ref(), 1)?;
            let items = value.items(budget)?;
            if count == 0 {
                return fail("integer division or modulo by zero");
            }
            budget.check_items(count)?;
            let (each, more) = (items.len() / count, items.len() % count);
            let mut slices = Vec::new();
            let mut at = 0;
            for i in 0..count {
                budget.step()?;
                let end = at + each + usize::from(i < more);
                let mut slice = items[at..end].to_vec();
                if let Some(fill) = &fill
                    && !matches!(fill, Value::None)
                    && i >= more
                {
                    slice.push(fill.clone());
                }
                slices.push(budget.list(slice)?);
                at = end;
            }
            Value::generator(slices, budget)
        }
        "groupby" => group_by(value, args, vm),
        "map" => map(value, args, vm),
        "select" | "reject" | "selectattr" | "rejectattr" => select(value, name, args, vm),
        _ => fail(format!("No filter named {name:?} found.")),
    }
}

/// A text in lower case, unless case counts.
fn folded(value: Value, sensitive: bool, budget: &Budget) -> Res<Value> {
    match &value {
        Value::Str(text) if !sensitive => budget.text(text.to_lowercase()),
        _ => Ok(value),
    }
}

/// An attribute such as `a.b.0` of an item.
fn path(item: &Value, attribute: &Value, default: Option<&Value>, vm: &Interpreter<'_>) -> Res<Value> {
    let mut found = item.clone();
    match attribute {
        Value::Str(names) => {
            for name in names.split('.') {
                let is_index = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
                let key = match name.parse() {
                    Ok(index) if is_index => Value::Int(index),
                    _ => Value::str(name),
                };
                found = vm.item(&found, &key)?;
                if let (Value::Undefined(_), Some(default)) = (&found, default) {
                    found = default.clone();
                }
            }
        }
        other => {
            found = vm.item(&found, other)?;
            if let (Value::Undefined(_), Some(default)) = (&found, default) {
                found = default.clone();
            }
        }
    }
    Ok(found)
}

fn one_key(item: &Value, attribute: Option<&Value>, sensitive: bool, vm: &Interpreter<'_>) -> Res<Value> {
    let key = match attribute {
        None | Some(Value::None) => item.clone(),
        Some(attribute) => path(item, attribute, None, vm)?,
    };
    folded(key, sensitive, vm.budget)
}

/// The key to sort by, of one attribute or of several with commas.
fn sort_key(item: &Value, attribute: Option<&Value>, sensitive: bool, vm: &Interpreter<'_>) -> Res<Value> {
    vm.budget.step()?;
    match attribute {
        Some(Value::Str(names)) => {
            let keys = names
                .split(',')
                .map(|name| one_key(item, Some(&Value::str(name)), sensitive, vm));
            vm.budget.list(keys.collect::<Res<_>>()?)
        }
        attribute => one_key(item, attribute, sensitive, vm),
    }
}

fn sorted(mut keyed: Vec<(Value, Value)>, reverse: bool, budget: &Budget) -> Res<Value> {
    // Equals keep their order, backwards too.
    if reverse {
        keyed.reverse();
    }
    ops::sort_by(&mut keyed, |entry| &entry.0, budget)?;
    if reverse {
        keyed.reverse();
    }
    budget.list(keyed.into_iter().map(|(_, item)| item).collect())
}

fn less(a: &Value, b: &Value, budget: &Budget) -> Res<bool> {
    Ok(ops::compare(a, b, "<", budget)?.is_some_and(Ordering::is_lt))
}

fn group_by(value: &Value, args: &Args, vm: &mut Interpreter<'_>) -> Res<Value> {
    let [attribute, default, sensitive] =
        args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let attribute = attribute.ok_or_else(|| failure("groupby misses its attribute"))?;
    let sensitive = flag_or(sensitive.as_ref(), false);
    let budget = vm.budget;
    let mut keyed = Vec::new();
    for item in value.items(budget)? {
        let own = path(&item, &attribute, default.as_ref(), vm)?;
        keyed.push((folded(own.clone(), sensitive, budget)?, (own, item)));
    }
    ops::sort_by(&mut keyed, |entry| &entry.0, budget)?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (key, (own, item)) in keyed {
        match groups.last_mut() {
            Some((last, _, items)) if ops::equal(last, &key, budget)? => items.push(item),
            _ => groups.push((key, own, vec![item])),
        }
    }
    let mut tuples = Vec::new();
    for (_, own, items) in groups {
        let items = vec![own, budget.list(items)?];
        let depth = budget.deeper(items.iter())?;
        tuples.push(Value::Tuple(Rc::new(Seq {
            items,
            depth,
            is_group: true,
        })));
    }
    budget.list(tuples)
}

fn map(value: &Value, args: &Args, vm: &mut Interpreter<'_>) -> Res<Value> {
    let budget = vm.budget;
    let items = if value.truth() {
        value.items(budget)?
    } else {
        Vec::new()
    };
    let mut mapped = Vec::with_capacity(items.len());
    if args.positional.is_empty() && args.keywords.iter().any(|(name, _)| name == "attribute") {
        let [attribute, default] = args.bind("map", ["attribute", "default"], 0)?;
        let attribute = attribute.unwrap_or(Value::None);
        for item in items {
            budget.step()?;
            mapped.push(path(&item, &attribute, default.as_ref(), vm)?);
        }
    } else {
        let Some((name, rest)) = args.positional.split_first() else {
            return fail("map requires a filter argument");
        };
        let name = to_str(name, vm)?;
        let args = Args {
            positional: rest.to_vec(),
            keywords: args.keywords.clone(),
        };
        if !is_filter(&name) && value.truth() {
            return fail(format!("No filter named {name:?}."));
        }
        for item in items {
            budget.enter()?;
            let result = filter(&item, &name, &args, vm);
            budget.leave();
            mapped.push(result?);
        }
    }
    Value::generator(mapped, budget)
}

fn select(value: &Value, name: &str, args: &Args, vm: &mut Interpreter<'_>) -> Res<Value> {
    let budget = vm.budget;
    let items = if value.truth() {
        value.items(budget)?
    } else {
        Vec::new()
    };
    let mut rest = &args.positional[..];
    let mut attribute = None;
    if name.ends_with("attr") {
        let Some((first, others)) = rest.split_first() else {
            return fail("Missing parameter for attribute name");
        };
        attribute = Some(first);
        rest = others;
    }
    let test = rest.split_first();
    let test_args = Args {
        positional: test.map_or(&[][..], |(_, rest)| rest).to_vec(),
        keywords: args.keywords.clone(),
    };
    let test = test.map(|(name, _)| to_str(name, vm)).transpose()?;
    if let Some(test) = test.as_deref().filter(|test| value.truth() && !is_test(test)) {
        return fail(format!("No test named {test:?}."));
    }
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    for item in items {
        budget.step()?;
        let tested = match attribute {
            Some(attribute) => path(&item, attribute, None, vm)?,
            None => item.clone(),
        };
        let passes = match &test {
            Some(test) => checks::test(&tested, test, &test_args, vm)?,
            None => tested.truth(),
        };
        if passes == wanted {
            kept.push(item);
        }
    }
    Value::generator(kept, budget)
}
