//! JSON schemas: how large they may be, and how what obeys them is written.

use serde_json::{Map, Value, json};

use crate::cost::Budget;
use crate::error::GrammarError;

/// Most bytes of a schema, as JSON without spaces.
pub(crate) const MAX_SCHEMA: usize = 256 << 10;
/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 96;
/// Spaces between the parts of JSON: none, one, or a new line with an indentation. Models that may write any number write nothing else.
const SPACE: &str = r"\x20|\r?\n[\x20\x09]{0,20}";

/// The schema with what the library must be told beside it; `budget` is what the schemas of one grammar share.
pub(crate) fn prepared(schema: &Value, budget: &mut Budget) -> Result<Value, GrammarError> {
    check(schema)?;
    budget.spend(schema)?;
    let mut map = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err(GrammarError::new("the schema is false, which nothing obeys")),
        other => {
            let kind = match other {
                Value::Null => "null",
                Value::Number(_) => "a number",
                Value::String(_) => "a string",
                _ => "an array",
            };
            return Err(GrammarError::new(format!(
                "a JSON schema is an object, and this is {kind}"
            )));
        }
    };
    // Of the alternatives of `oneOf` the first that fits is written, which is as good as one that excludes the others.
    let options = json!({"whitespace_pattern": SPACE, "coerce_one_of": true});
    map.insert("x-guidance".to_owned(), options);
    Ok(Value::Object(map))
}

/// Refuses what a grammar in Lark's notation must not have as the schemas inside it.
pub(crate) fn check_inside(lark: &str) -> Result<(), GrammarError> {
    let mut budget = Budget::default();
    let mut rest = lark;
    while let Some((_, after)) = rest.split_once("%json") {
        rest = after;
        // In a comment or a string it does no harm; where it should be a schema and is none, the library says so.
        if let Some(Ok(schema)) = serde_json::Deserializer::from_str(after).into_iter().next() {
            check(&schema)?;
            budget.spend(&schema)?;
        }
    }
    Ok(())
}

/// Refuses what is too large or nested too deeply. It keeps a list of its own, so that no depth can overflow the stack.
fn check(schema: &Value) -> Result<(), GrammarError> {
    let mut bytes = 0;
    let mut factors = Factors::default();
    let mut rest = vec![(schema, 1)];
    while let Some((value, depth)) = rest.pop() {
        if depth > MAX_DEPTH {
            return Err(GrammarError::new(format!(
                "the schema is nested more than {MAX_DEPTH} levels deep"
            )));
        }
        bytes += 2;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(values) => rest.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => {
                bytes += map.keys().map(|key| key.len() + 4).sum::<usize>();
                rest.extend(map.values().map(|value| (value, depth + 1)));
                if let Some(Value::Number(factor)) = map.get("multipleOf") {
                    factors.add(&factor.to_string())?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => bytes += 4,
        }
        if bytes > MAX_SCHEMA {
            return Err(GrammarError::new(format!(
                "the schema has more than {MAX_SCHEMA} bytes"
            )));
        }
    }
    Ok(())
}

/// The values of `multipleOf`. The library counts with 32 bits in what all that meet have in common, so that this is bounded for
/// the schema as a whole.
#[derive(Default)]
struct Factors {
    /// The least common multiple so far, in units of a power of ten.
    multiple: Option<u64>,
    decimals: u32,
}

impl Factors {
    /// Most of it.
    const MOST: u64 = 100_000_000;

    fn add(&mut self, factor: &str) -> Result<(), GrammarError> {
        match self.with(factor) {
            Some(multiple) if multiple <= Self::MOST => {
                self.multiple = Some(multiple);
                Ok(())
            }
            _ => Err(GrammarError::new(format!(
                "multipleOf {factor} cannot be obeyed here: no whole number up to {} is a multiple of all of the schema's",
                Self::MOST
            ))),
        }
    }

    /// What the multiple is with another factor; `None` where it does not fit.
    fn with(&mut self, factor: &str) -> Option<u64> {
        let (mantissa, exponent) = factor.split_once(['e', 'E']).unwrap_or((factor, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let fraction = fraction.trim_end_matches('0');
        let exponent = exponent
            .parse::<i32>()
            .ok()?
            .checked_sub(i32::try_from(fraction.len()).ok()?)?;
        let digits: u64 = format!("{whole}{fraction}").parse().ok()?;
        let decimals = exponent.checked_neg()?.max(0).unsigned_abs();
        let scale = |n: u64, power: u32| n.checked_mul(10u64.checked_pow(power)?);
        let mut factor = scale(digits, exponent.max(0).unsigned_abs())?;
        let mut multiple = self.multiple.unwrap_or(1);
        if self.multiple.is_none() {
            self.decimals = decimals;
            return Some(factor);
        }
        if decimals > self.decimals {
            multiple = scale(multiple, decimals - self.decimals)?;
            self.decimals = decimals;
        } else {
            factor = scale(factor, self.decimals - decimals)?;
        }
        let (mut a, mut b) = (multiple, factor);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        (multiple / a.max(1)).checked_mul(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_inside_a_grammar_are_bounded_together() {
        let names: Map<String, Value> = (0..1_500).map(|i| (i.to_string(), json!({}))).collect();
        let large = json!({"properties": names});
        let lark = format!("start: \"%json {{\" a b\na: %json {large}\n");
        assert!(check_inside(&lark).is_ok());
        assert!(check_inside(&format!("{lark}b: %json\n {large}")).is_err());
        assert!(check_inside("start: %json{\"multipleOf\": 999999937}").is_err());
    }

    #[test]
    fn factors_that_cannot_be_counted_are_refused() {
        let fits = |factors: &[&str]| {
            let mut all = Factors::default();
            factors.iter().all(|factor| all.add(factor).is_ok())
        };
        assert!(fits(&["0.01", "5", "0.50", "1e2", "2.5e-3", "100"]));
        assert!(fits(&["100000000"]) && !fits(&["100000001"]) && !fits(&["1e9"]) && !fits(&["-5"]));
        assert!(
            !fits(&["99991", "99989"]) && !fits(&["1e-9", "1"]) && !fits(&["1e400"]) && fits(&["0", "0"])
        );
        let schema = json!({"properties": {"multipleOf": {"multipleOf": 3}, "b": {"items": {"multipleOf": 999_999_937}}}});
        assert!(
            prepared(&schema, &mut Budget::default())
                .unwrap_err()
                .to_string()
                .contains("999999937")
        );
    }
}
