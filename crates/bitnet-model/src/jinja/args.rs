//! Arguments of calls, bound to names as Python binds them.

use super::budget::{Res, fail};
use super::value::Value;

/// What a call was given.
#[derive(Clone, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) keywords: Vec<(String, Value)>,
}

impl Args {
    /// One value for each name, `None` where it was not given; the first `required` must be.
    pub(super) fn bind<const N: usize>(
        &self,
        what: &str,
        names: [&str; N],
        required: usize,
    ) -> Res<[Option<Value>; N]> {
        if self.positional.len() > N {
            return fail(format!(
                "{what} takes at most {N} arguments, and {} were given",
                self.positional.len()
            ));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(&self.positional) {
            *slot = Some(value.clone());
        }
        for (name, value) in &self.keywords {
            match names.iter().position(|n| n == name) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value.clone()),
                Some(_) => return fail(format!("{what} got multiple values for argument '{name}'")),
                None => return fail(format!("{what} got an unexpected keyword argument '{name}'")),
            }
        }
        match (0..required).find(|&at| bound[at].is_none()) {
            Some(at) => fail(format!("{what} misses its argument '{}'", names[at])),
            None => Ok(bound),
        }
    }

    /// No arguments at all.
    pub(super) fn none(&self, what: &str) -> Res<()> {
        self.bind::<0>(what, [], 0).map(|_| ())
    }
}

/// A number, or the default where none was given.
pub(super) fn int_or(value: Option<&Value>, default: i128) -> Res<i128> {
    match value {
        None => Ok(default),
        Some(value) => match (value.as_int(), value) {
            (Some(n), _) => Ok(n),
            (None, Value::Undefined(message)) => fail(&**message),
            _ => fail(format!(
                "'{}' object cannot be interpreted as an integer",
                value.type_name()
            )),
        },
    }
}

/// A count: what is negative is 0.
pub(super) fn count_or(value: Option<&Value>, default: usize) -> Res<usize> {
    let n = int_or(value, default as i128)?;
    Ok(usize::try_from(n.max(0)).unwrap_or(usize::MAX))
}

/// Whether a value is true, or the default where none was given.
pub(super) fn flag_or(value: Option<&Value>, default: bool) -> bool {
    value.map_or(default, Value::truth)
}
