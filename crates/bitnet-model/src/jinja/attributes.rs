//! Attributes and items, as the immutable sandbox allows them.

use std::rc::Rc;

use super::budget::{Res, fail};
use super::ops;
use super::state::Interpreter;
use super::text::message;
use super::value::{Loop, Value};

/// Names of all methods of str, also of those that are not implemented.
const STR: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

const DICT: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];
const LIST: [&str; 11] = [
    "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort",
];
/// Methods that change a list or a dictionary.
const CHANGING: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "fromkeys",
];

impl Interpreter<'_> {
    /// `value.name`: an attribute, else an item.
    pub(super) fn attribute(&self, value: &Value, name: &str) -> Res<Value> {
        if let Value::Undefined(message) = value {
            return fail(&**message);
        }
        if let Some(found) = self.own(value, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(found) = dict.get_str(name)
        {
            return Ok(found.clone());
        }
        Ok(missing(value, name))
    }

    /// `value | attr(name)`: an attribute and never an item.
    pub(super) fn own_attribute(&self, value: &Value, name: &str) -> Res<Value> {
        if let Value::Undefined(message) = value {
            return fail(&**message);
        }
        Ok(self.own(value, name)?.unwrap_or_else(|| missing(value, name)))
    }

    /// `value[key]`: an item, else an attribute.
    pub(super) fn item(&self, value: &Value, key: &Value) -> Res<Value> {
        let found = match value {
            Value::Undefined(message) => return fail(&**message),
            Value::Dict(dict) => dict.get(key).ok().flatten().cloned(),
            _ => match key.as_int() {
                Some(index) => ops::index(value, index, self.budget)?,
                None => None,
            },
        };
        if let Some(found) = found {
            return Ok(found);
        }
        match key {
            Value::Str(name) => Ok(self.own(value, name)?.unwrap_or_else(|| missing(value, name))),
            key => Ok(missing(value, &message(key, self)?)),
        }
    }

    /// An attribute of Python's type.
    fn own(&self, value: &Value, name: &str) -> Res<Option<Value>> {
        let unsafe_one = || {
            Value::undefined(format!(
                "access to attribute '{name}' of '{}' object is unsafe.",
                value.type_name()
            ))
        };
        if name.starts_with("__")
            && name.ends_with("__")
            && name.len() > 4
            && !matches!(value, Value::Namespace(_))
        {
            return Ok(Some(unsafe_one()));
        }
        let method = |known: &[&str]| {
            if !known.contains(&name) {
                return Ok(None);
            }
            if CHANGING.contains(&name) && !matches!(value, Value::Str(_)) && name != "fromkeys" {
                return Ok(Some(unsafe_one()));
            }
            self.budget.deeper([value].into_iter())?;
            Ok(Some(Value::Method(Rc::new((value.clone(), name.to_owned())))))
        };
        match value {
            Value::Str(_) => method(&STR),
            Value::Dict(_) => method(&DICT),
            Value::List(_) => method(&LIST),
            Value::Tuple(seq) if seq.is_group && (name == "grouper" || name == "list") => {
                Ok(seq.items.get(usize::from(name == "list")).cloned())
            }
            Value::Tuple(_) => method(&["count", "index"]),
            Value::Bool(_) | Value::Int(_) => match name {
                "real" | "numerator" => Ok(value.as_int().map(Value::Int)),
                "imag" => Ok(Some(Value::Int(0))),
                "denominator" => Ok(Some(Value::Int(1))),
                _ => method(&[
                    "bit_length",
                    "as_integer_ratio",
                    "conjugate",
                    "to_bytes",
                    "from_bytes",
                    "is_integer",
                ]),
            },
            Value::Float(x) => match name {
                "real" => Ok(Some(Value::Float(*x))),
                "imag" => Ok(Some(Value::Float(0.0))),
                _ => method(&["is_integer", "as_integer_ratio", "conjugate", "hex", "fromhex"]),
            },
            Value::Range(range) => match name {
                "start" => Ok(Some(Value::Int(range.start.into()))),
                "stop" => Ok(Some(Value::Int(range.stop.into()))),
                "step" => Ok(Some(Value::Int(range.step.into()))),
                _ => method(&["count", "index"]),
            },
            Value::Namespace(index) => Ok(self.namespaces[*index].borrow().get_str(name).cloned()),
            Value::Loop(of) => self.loop_attribute(value, of, name),
            Value::Macro(index, _) => {
                let node = &self.tree.macros[*index];
                Ok(match name {
                    "name" => Some(Value::str(&node.name)),
                    "arguments" => {
                        let names = node
                            .args
                            .iter()
                            .map(|(name, _)| Value::str(&self.tree.names[*name as usize]));
                        Some(self.budget.tuple(names.collect())?)
                    }
                    "caller" => Some(Value::Bool(node.uses.caller)),
                    "catch_kwargs" => Some(Value::Bool(node.uses.kwargs)),
                    "catch_varargs" => Some(Value::Bool(node.uses.varargs)),
                    _ => None,
                })
            }
            Value::Cycler(cycler) => match name {
                "current" => Ok(Some(cycler.items[cycler.at.get()].clone())),
                _ => method(&["next", "reset"]),
            },
            _ => Ok(None),
        }
    }

    fn loop_attribute(&self, value: &Value, of: &Rc<Loop>, name: &str) -> Res<Option<Value>> {
        let (at, len) = (of.index.get(), of.items.len());
        let number = |n: usize| Some(Value::Int(n as i128));
        Ok(match name {
            "index" => number(at + 1),
            "index0" => number(at),
            "revindex" => number(len - at),
            "revindex0" => number(len - at - 1),
            "first" => Some(Value::Bool(at == 0)),
            "last" => Some(Value::Bool(at + 1 == len)),
            "length" => number(len),
            "depth" => number(of.level + 1),
            "depth0" => number(of.level),
            "previtem" => Some(match at.checked_sub(1) {
                Some(before) => of.items[before].clone(),
                None => Value::undefined("there is no previous item"),
            }),
            "nextitem" => {
                let next = of.items.get(at + 1).cloned();
                Some(next.unwrap_or_else(|| Value::undefined("there is no next item")))
            }
            "cycle" | "changed" => Some(Value::Method(Rc::new((value.clone(), name.to_owned())))),
            _ => None,
        })
    }
}

fn missing(value: &Value, name: &str) -> Value {
    let shown: String = name.chars().take(80).collect();
    Value::undefined(match value {
        Value::None => format!("'None' has no attribute '{shown}'"),
        value => format!("'{} object' has no attribute '{shown}'", value.type_name()),
    })
}
