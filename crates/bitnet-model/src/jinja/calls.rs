//! Calls of functions, methods and macros.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::args::{Args, int_or};
use super::budget::{Res, fail};
use super::clock;
use super::state::{Interpreter, check_attribute};
use super::text::{message, to_str};
use super::value::{Cycler, Dict, Function, Range, Value};
use super::{ops, strings};

/// Jinja2's own limit on `range`.
const MAX_RANGE: usize = 100_000;

impl Interpreter<'_> {
    /// Calls a value.
    pub(super) fn call(&mut self, function: &Value, args: Args) -> Res<Value> {
        self.budget.enter()?;
        let result = match function {
            Value::Undefined(message) => fail(&**message),
            Value::Function(function) => self.call_function(*function, &args),
            Value::Method(method) => self.call_method(&method.0, &method.1, &args),
            Value::Macro(index, scope) => self.call_macro(*index, *scope, args),
            Value::Loop(of) => {
                let Some((index, scope)) = of.recursive else {
                    return fail("The loop must have the 'recursive' marker to be called recursively.");
                };
                let [items] = args.bind("loop", ["iterable"], 1)?;
                self.loop_text(index, &items.unwrap_or(Value::None), scope, of.level + 1)
            }
            Value::Joiner(joiner) => {
                args.none("joiner")?;
                Ok(if joiner.1.replace(true) {
                    Value::Str(joiner.0.clone())
                } else {
                    Value::str("")
                })
            }
            other => fail(format!("'{}' object is not callable", other.type_name())),
        }?;
        self.budget.leave();
        Ok(result)
    }

    fn call_function(&mut self, function: Function, args: &Args) -> Res<Value> {
        match function {
            Function::Range => {
                if !args.keywords.is_empty() {
                    return fail("range() takes no keyword arguments");
                }
                let [first, second, step] = args.bind("range", ["start", "stop", "step"], 1)?;
                let step = int_or(step.as_ref(), 1)?;
                let (start, stop) = match &second {
                    None => (0, int_or(first.as_ref(), 0)?),
                    Some(_) => (int_or(first.as_ref(), 0)?, int_or(second.as_ref(), 0)?),
                };
                if step == 0 {
                    return fail("range() arg 3 must not be zero");
                }
                let part = |n: i128| i64::try_from(n).ok();
                let range = match (part(start), part(stop), part(step)) {
                    (Some(start), Some(stop), Some(step)) => Some(Range { start, stop, step }),
                    _ => None,
                };
                let range = range.filter(|range| range.len() <= MAX_RANGE);
                range.map_or_else(
                    || {
                        fail(format!(
                            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
                        ))
                    },
                    |range| Ok(Value::Range(range)),
                )
            }
            Function::Dict => Ok(Value::Dict(Rc::new(self.dict(args)?))),
            Function::Namespace => {
                let dict = self.dict(args)?;
                for (name, _) in dict.entries() {
                    if let Value::Str(name) = name {
                        check_attribute(name)?;
                    }
                }
                self.namespaces.push(RefCell::new(dict));
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
            Function::Cycler => {
                if args.positional.is_empty() {
                    return fail("at least one item has to be provided");
                }
                let depth = self.budget.deeper(args.positional.iter())?;
                Ok(Value::Cycler(Rc::new(Cycler {
                    items: args.positional.clone(),
                    at: Cell::new(0),
                    depth,
                })))
            }
            Function::Joiner => {
                let [separator] = args.bind("joiner", ["sep"], 0)?;
                let separator = separator.map_or_else(|| Ok(", ".into()), |value| to_str(&value, self))?;
                Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
            }
            Function::RaiseException => {
                let [text] = args.bind("raise_exception", ["message"], 1)?;
                fail(message(&text.unwrap_or(Value::None), self)?)
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                self.budget
                    .text(clock::now(&to_str(&format.unwrap_or(Value::None), self)?)?)
            }
            Function::Lipsum => fail("lipsum is not implemented"),
        }
    }

    /// `dict(mapping or pairs, **keywords)`.
    fn dict(&self, args: &Args) -> Res<Dict> {
        let mut dict = Dict::default();
        match &args.positional[..] {
            [] => {}
            [Value::Dict(from)] => {
                for (key, value) in from.entries() {
                    dict.insert(key.clone(), value.clone(), self.budget)?;
                }
            }
            [pairs] => {
                for pair in pairs.items(self.budget)? {
                    match &pair.items(self.budget)?[..] {
                        [key, value] => dict.insert(key.clone(), value.clone(), self.budget)?,
                        _ => return fail("dict: expected pairs of keys and values"),
                    }
                }
            }
            _ => return fail("dict expected at most 1 argument"),
        }
        for (name, value) in &args.keywords {
            dict.insert(Value::str(name), value.clone(), self.budget)?;
        }
        Ok(dict)
    }

    fn call_method(&mut self, of: &Value, name: &str, args: &Args) -> Res<Value> {
        let budget = self.budget;
        match of {
            Value::Str(text) => strings::call(text, name, args, self),
            Value::Dict(dict) => match name {
                "get" => {
                    let [key, default] = args.bind(name, ["key", "default"], 1)?;
                    let found = dict.get(&key.unwrap_or(Value::None))?.cloned();
                    Ok(found.unwrap_or_else(|| default.unwrap_or(Value::None)))
                }
                "keys" | "values" | "items" => {
                    args.none(name)?;
                    let items = match name {
                        "keys" => dict.entries().iter().map(|(key, _)| key.clone()).collect(),
                        "values" => dict.entries().iter().map(|(_, value)| value.clone()).collect(),
                        _ => ops::pairs(of, budget)?,
                    };
                    let kind = match name {
                        "keys" => "dict_keys",
                        "values" => "dict_values",
                        _ => "dict_items",
                    };
                    Value::iter(kind, items, budget)
                }
                "copy" => args.none(name).map(|()| of.clone()),
                _ => fail(format!("the method {name} of dict is not implemented")),
            },
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => match name {
                "count" => {
                    let [wanted] = args.bind(name, ["value"], 1)?;
                    let wanted = wanted.unwrap_or(Value::None);
                    let mut n = 0;
                    for item in of.items(budget)? {
                        n += i128::from(ops::equal(&item, &wanted, budget)?);
                    }
                    Ok(Value::Int(n))
                }
                "index" => {
                    let [wanted] = args.bind(name, ["value"], 1)?;
                    let wanted = wanted.unwrap_or(Value::None);
                    for (at, item) in of.items(budget)?.iter().enumerate() {
                        if ops::equal(item, &wanted, budget)? {
                            return Ok(Value::Int(at as i128));
                        }
                    }
                    fail("the value is not in the list")
                }
                "copy" => args.none(name).map(|()| of.clone()),
                _ => fail(format!(
                    "the method {name} of {} is not implemented",
                    of.type_name()
                )),
            },
            Value::Loop(of) if name == "cycle" => match args.positional.len() {
                0 => fail("no items for cycling given"),
                n => Ok(args.positional[of.index.get() % n].clone()),
            },
            Value::Loop(of) => {
                let now = budget.tuple(args.positional.clone())?;
                if now.depth() > of.depth.max(8) {
                    return fail("loop.changed of values so deep is not implemented");
                }
                let mut last = of.changed.borrow_mut();
                let changed = match &*last {
                    Some(last) => !ops::equal(last, &now, budget)?,
                    None => true,
                };
                *last = Some(now);
                Ok(Value::Bool(changed))
            }
            Value::Cycler(cycler) => {
                args.none(name)?;
                let at = cycler.at.get();
                if name == "reset" {
                    cycler.at.set(0);
                    return Ok(Value::None);
                }
                cycler.at.set((at + 1) % cycler.items.len());
                Ok(cycler.items[at].clone())
            }
            Value::Float(x) if name == "is_integer" => {
                args.none(name)?;
                Ok(Value::Bool(x.fract() == 0.0))
            }
            Value::Int(n) if name == "bit_length" => {
                args.none(name)?;
                Ok(Value::Int((128 - n.unsigned_abs().leading_zeros()).into()))
            }
            other => fail(format!(
                "the method {name} of {} is not implemented",
                other.type_name()
            )),
        }
    }

    fn call_macro(&mut self, index: usize, parent: usize, args: Args) -> Res<Value> {
        let node = &self.tree.macros[index];
        let (name, captures) = (&node.name, self.captures);
        let scope = self.open(parent, 0)?;
        let mut keywords = args.keywords;
        let mut take = |name: &str| {
            let at = keywords.iter().position(|(other, _)| other == name)?;
            Some(keywords.remove(at).1)
        };
        for (i, (argument, default)) in node.args.iter().enumerate() {
            let text = &self.tree.names[*argument as usize];
            let value = match args.positional.get(i) {
                Some(value) => value.clone(),
                None => match (take(text), default) {
                    (Some(value), _) => value,
                    (None, Some(default)) => self.eval(default, scope)?,
                    (None, None) => Value::undefined(format!("parameter '{text}' was not provided")),
                },
            };
            self.set(scope, *argument, value)?;
        }
        if node.uses.caller {
            let caller = take("caller").unwrap_or_else(|| Value::undefined("No caller defined"));
            self.set_named(scope, "caller", caller)?;
        }
        if node.uses.kwargs {
            let rest = Args {
                positional: Vec::new(),
                keywords: std::mem::take(&mut keywords),
            };
            let rest = Value::Dict(Rc::new(self.dict(&rest)?));
            self.set_named(scope, "kwargs", rest)?;
        } else if let Some((other, _)) = keywords.first() {
            return fail(if other == "caller" {
                format!("macro '{name}' was invoked with two values for the special caller argument")
            } else {
                format!("macro '{name}' takes no keyword argument '{other}'")
            });
        }
        let more = args.positional.get(node.args.len()..).unwrap_or_default();
        if node.uses.varargs {
            let more = self.budget.tuple(more.to_vec())?;
            self.set_named(scope, "varargs", more)?;
        } else if !more.is_empty() {
            return fail(format!(
                "macro '{name}' takes not more than {} argument(s)",
                node.args.len()
            ));
        }
        let text = self.macro_text(index, scope)?;
        self.close(scope, captures);
        Ok(text)
    }
}
