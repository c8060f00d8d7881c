//! Python's values, as far as templates see them. None of them can be changed but namespaces, which an immutable sandbox allows.
//!
//! Values that refer to each other without bound (namespaces, scopes of macros) are numbers into lists of the interpreter, so that
//! dropping a value never recurses deeper than [`VALUE_DEPTH`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::budget::{Budget, ITEM, Res, Text, VALUE_DEPTH, fail};

/// A value.
#[derive(Clone)]
pub(super) enum Value {
    /// Something that is not there, and what to say to whoever needs it.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    Range(Range),
    Iter(Rc<Iter>),
    Namespace(usize),
    /// A macro of the tree, and the scope it was defined in.
    Macro(usize, usize),
    Loop(Rc<Loop>),
    /// A method of a value.
    Method(Rc<(Self, String)>),
    Function(Function),
    Cycler(Rc<Cycler>),
    Joiner(Rc<(Rc<str>, Cell<bool>)>),
}

/// Functions that every template can call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
    /// One that exists in Jinja2 and is refused here.
    Lipsum,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i64,
    pub(super) stop: i64,
    pub(super) step: i64,
}

impl Range {
    pub(super) fn len(&self) -> usize {
        let (start, stop, step) = (
            i128::from(self.start),
            i128::from(self.stop),
            i128::from(self.step),
        );
        let span = if step > 0 { stop - start } else { start - stop };
        if span <= 0 {
            0
        } else {
            ((span - 1) / step.abs() + 1) as usize
        }
    }

    /// The number at a place that may be outside.
    pub(super) fn at_place(&self, place: i128) -> Result<i64, std::num::TryFromIntError> {
        i64::try_from(i128::from(self.start).saturating_add(i128::from(self.step).saturating_mul(place)))
    }

    pub(super) fn at(&self, index: usize) -> i128 {
        i128::from(self.start) + i128::from(self.step) * index as i128
    }
}

/// The items of a list or tuple.
pub(super) struct Seq {
    pub(super) items: Vec<Value>,
    pub(super) depth: u16,
    /// Of `groupby`: a pair whose parts have names.
    pub(super) is_group: bool,
}

/// What is iterated over and no list.
pub(super) struct Iter {
    /// `dict_keys` and the like may be read any number of times, `generator` once.
    pub(super) kind: &'static str,
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
    pub(super) depth: u16,
}

pub(super) struct Cycler {
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
    pub(super) depth: u16,
}

/// The variable `loop`.
pub(super) struct Loop {
    pub(super) items: Vec<Value>,
    pub(super) depth: u16,
    pub(super) index: Cell<usize>,
    /// Loops around it that are it.
    pub(super) level: usize,
    pub(super) changed: RefCell<Option<Value>>,
    /// A recursive loop: which of the tree, and the scope it stands in.
    pub(super) recursive: Option<(usize, usize)>,
}

/// A dictionary, in the order of insertion.
#[derive(Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    depth: u16,
}

/// What makes two keys the same: 1, 1.0 and True are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Vec<Self>),
    Undefined,
}

impl Key {
    pub(super) fn of(value: &Value) -> Res<Self> {
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(b) => Self::Int(i128::from(*b)),
            Value::Int(n) => Self::Int(*n),
            Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e30 => Self::Int(*x as i128),
            Value::Float(x) => Self::Float(x.to_bits()),
            Value::Str(text) => Self::Str(text.clone()),
            Value::Tuple(seq) => Self::Tuple(seq.items.iter().map(Self::of).collect::<Res<_>>()?),
            Value::Undefined(_) => Self::Undefined,
            other => return fail(format!("unhashable type: '{}'", other.type_name())),
        })
    }
}

impl Dict {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(super) fn get(&self, key: &Value) -> Res<Option<&Value>> {
        let at = self.index.get(&Key::of(key)?);
        Ok(at.map(|&at| &self.entries[at].1))
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        let at = self.index.get(&Key::Str(key.into()));
        at.map(|&at| &self.entries[at].1)
    }

    pub(super) fn insert(&mut self, key: Value, value: Value, budget: &Budget) -> Res<()> {
        budget.make(2 * size_of::<(Value, Value)>())?;
        self.depth = self.depth.max(budget.deeper([&key, &value].into_iter())?);
        match self.index.get(&Key::of(&key)?) {
            Some(&at) => self.entries[at].1 = value,
            None => {
                self.index.insert(Key::of(&key)?, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }
}

impl Value {
    pub(super) fn undefined(message: impl AsRef<str>) -> Self {
        Self::Undefined(message.as_ref().into())
    }

    pub(super) fn str(text: &str) -> Self {
        Self::Str(text.into())
    }

    pub(super) fn generator(items: Vec<Self>, budget: &Budget) -> Res<Self> {
        Self::iter("generator", items, budget)
    }

    pub(super) fn iter(kind: &'static str, items: Vec<Self>, budget: &Budget) -> Res<Self> {
        budget.make(items.len() * ITEM + 48)?;
        let depth = budget.deeper(items.iter())?;
        Ok(Self::Iter(Rc::new(Iter {
            kind,
            items,
            at: Cell::new(0),
            depth,
        })))
    }

    /// JSON, with its size charged.
    pub(super) fn from_json(json: &serde_json::Value, budget: &Budget) -> Res<Self> {
        use serde_json::Value as Json;
        budget.step()?;
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Self::Int(n.into()),
                (None, Some(n)) => Self::Int(n.into()),
                _ => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => budget.text(&text[..])?,
            Json::Array(items) => {
                let items = items.iter().map(|item| Self::from_json(item, budget));
                budget.list(items.collect::<Res<_>>()?)?
            }
            Json::Object(map) => {
                let mut dict = Dict::default();
                for (key, value) in map {
                    dict.insert(budget.text(&key[..])?, Self::from_json(value, budget)?, budget)?;
                }
                Self::Dict(Rc::new(dict))
            }
        })
    }

    /// Levels of values inside it.
    pub(super) fn depth(&self) -> u16 {
        match self {
            Self::List(seq) | Self::Tuple(seq) => seq.depth,
            Self::Dict(dict) => dict.depth,
            Self::Iter(iter) => iter.depth,
            Self::Loop(of) => of.depth,
            Self::Method(method) => method.0.depth() + 1,
            Self::Cycler(cycler) => cycler.depth,
            _ => 0,
        }
    }

    /// Python's name of its type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::Iter(iter) => iter.kind,
            Self::Namespace(_) => "Namespace",
            Self::Macro(..) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Method(_) => "builtin_function_or_method",
            Self::Function(_) => "function",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// `bool(value)`.
    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(x) => *x != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(seq) | Self::Tuple(seq) => !seq.items.is_empty(),
            Self::Dict(dict) => dict.len() > 0,
            Self::Range(range) => range.len() > 0,
            Self::Iter(iter) => iter.kind == "generator" || !iter.items.is_empty(),
            Self::Loop(of) => !of.items.is_empty(),
            _ => true,
        }
    }

    /// `len(value)`.
    pub(super) fn len(&self, budget: &Budget) -> Res<usize> {
        Ok(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) => {
                budget.look(text.len())?;
                text.chars().count()
            }
            Self::List(seq) | Self::Tuple(seq) => seq.items.len(),
            Self::Dict(dict) => dict.len(),
            Self::Range(range) => range.len(),
            Self::Iter(iter) if iter.kind != "generator" => iter.items.len(),
            Self::Loop(of) => of.items.len(),
            other => return fail(format!("object of type '{}' has no len()", other.type_name())),
        })
    }

    /// Whether `iter(value)` works.
    pub(super) fn is_iterable(&self) -> bool {
        matches!(
            self,
            Self::Undefined(_)
                | Self::Str(_)
                | Self::List(_)
                | Self::Tuple(_)
                | Self::Dict(_)
                | Self::Range(_)
                | Self::Iter(_)
                | Self::Loop(_)
        )
    }

    /// `list(value)`: what iterating over it gives. A generator is empty after that.
    pub(super) fn items(&self, budget: &Budget) -> Res<Vec<Self>> {
        let charge = |n: usize| {
            budget.check_items(n)?;
            budget.make(n * ITEM)
        };
        Ok(match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) => {
                // Each character is a text of its own.
                charge(2 * text.len())?;
                text.chars()
                    .map(|c| Self::str(c.encode_utf8(&mut [0; 4])))
                    .collect()
            }
            Self::List(seq) | Self::Tuple(seq) => {
                charge(seq.items.len())?;
                seq.items.clone()
            }
            Self::Dict(dict) => {
                charge(dict.len())?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Self::Range(range) => {
                charge(range.len())?;
                (0..range.len()).map(|i| Self::Int(range.at(i))).collect()
            }
            Self::Iter(iter) => {
                charge(iter.items.len())?;
                if iter.kind == "generator" {
                    let from = iter.at.replace(iter.items.len());
                    iter.items[from..].to_vec()
                } else {
                    iter.items.clone()
                }
            }
            Self::Loop(_) => return fail("iterating over the variable loop is not implemented"),
            other => return fail(format!("'{}' object is not iterable", other.type_name())),
        })
    }

    /// A number that is whole: an int or a bool.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(n) => Some(*n),
            Self::Bool(b) => Some((*b).into()),
            _ => None,
        }
    }

    /// Any number.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            other => other.as_int().map(|n| n as f64),
        }
    }
}

impl Budget {
    /// A text that is there.
    pub(super) fn text(&self, text: impl Into<Rc<str>>) -> Res<Value> {
        let text: Rc<str> = text.into();
        self.check_text(text.len())?;
        self.make(text.len() + 16)?;
        Ok(Value::Str(text))
    }

    /// The items of a list or tuple.
    pub(super) fn seq(&self, items: Vec<Value>) -> Res<Rc<Seq>> {
        self.check_items(items.len())?;
        self.make(items.len() * ITEM + 48)?;
        let depth = self.deeper(items.iter())?;
        Ok(Rc::new(Seq {
            items,
            depth,
            is_group: false,
        }))
    }

    /// The depth of what holds these.
    pub(super) fn deeper<'v>(&self, items: impl Iterator<Item = &'v Value>) -> Res<u16> {
        let depth = 1 + items.map(Value::depth).max().unwrap_or(0);
        if depth > VALUE_DEPTH {
            return fail("the template nests values too deeply");
        }
        Ok(depth)
    }

    pub(super) fn list(&self, items: Vec<Value>) -> Res<Value> {
        Ok(Value::List(self.seq(items)?))
    }

    pub(super) fn tuple(&self, items: Vec<Value>) -> Res<Value> {
        Ok(Value::Tuple(self.seq(items)?))
    }
}

impl Text<'_> {
    pub(super) fn into_value(self) -> Value {
        Value::Str(self.into_string().into())
    }
}

// A list must not cost more than it is charged.
const _: () = assert!(size_of::<Value>() <= ITEM);
