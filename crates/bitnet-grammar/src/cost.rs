//! What JSON schemas cost to compile, told from their texts alone: the library takes no budget for that.
//!
//! Its work grows with the square of the optional properties of an object, with the third power of its patterns, and of its
//! properties where they are counted, and all of that for each alternative of what is combined. What is estimated here is meant
//! to be right within a factor of three, for schemas of people and of attackers alike.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::error::GrammarError;

/// Most of it, in units of about 0.1 microseconds: about half a second. An object of 2,000 properties is just below.
const MOST: f64 = 5.5e6;
/// An object.
const OBJECT: f64 = 300.0;
/// A property of an object.
const NAME: f64 = 200.0;
/// A pattern for names, beside two others: each pair is proven to have no name in common.
const PATTERNS: f64 = 4.0;
/// A property beside a pattern.
const MATCH: f64 = 14.0;

/// What is left for the schemas of one grammar.
pub(crate) struct Budget {
    left: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: MOST }
    }
}

impl Budget {
    /// Refuses a schema that would take too long, together with those before it.
    pub(crate) fn spend(&mut self, schema: &Value) -> Result<(), GrammarError> {
        let mut walk = Walk {
            root: schema,
            merged: HashMap::new(),
            alone: HashSet::new(),
            aside: 0.0,
        };
        self.left -= walk.cost(schema) + walk.aside;
        // What overflowed is no number.
        if self.left.is_nan() || self.left < 0.0 {
            return Err(GrammarError::new(
                "the schema would take too long to compile: it has objects of too many properties or patternProperties, or too many \
                 alternatives of them",
            ));
        }
        Ok(())
    }
}

/// Sums over the objects that a schema stands for, one for each of its alternatives.
#[derive(Clone, Copy)]
struct Sums {
    /// How many there are.
    objects: f64,
    /// Of their numbers of properties, of the squares and of the third powers.
    names: [f64; 3],
    /// The same of patterns for names.
    patterns: [f64; 3],
    /// Of the products of both numbers.
    both: f64,
    /// Of what is inside of them.
    inner: f64,
    /// Whether the number of properties is limited.
    is_counted: bool,
}

/// Of the first, second and third powers of all sums of one of `a`, of which there are `m`, and one of `b`, of which there are `n`.
fn powers(a: [f64; 3], m: f64, b: [f64; 3], n: f64) -> [f64; 3] {
    [
        a[0] * n + b[0] * m,
        a[1] * n + 2.0 * a[0] * b[0] + b[1] * m,
        a[2] * n + 3.0 * a[1] * b[0] + 3.0 * a[0] * b[1] + b[2] * m,
    ]
}

impl Sums {
    /// One object.
    fn one(names: f64, patterns: f64) -> Self {
        Self {
            objects: 1.0,
            names: [names, names * names, names.powi(3)],
            patterns: [patterns, patterns * patterns, patterns.powi(3)],
            both: names * patterns,
            inner: 0.0,
            is_counted: false,
        }
    }

    fn none() -> Self {
        Self {
            objects: 0.0,
            ..Self::one(0.0, 0.0)
        }
    }

    /// The alternatives of either.
    fn or(self, other: Self) -> Self {
        let add = |a: [f64; 3], b: [f64; 3]| [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
        Self {
            objects: self.objects + other.objects,
            names: add(self.names, other.names),
            patterns: add(self.patterns, other.patterns),
            both: self.both + other.both,
            inner: self.inner + other.inner,
            is_counted: self.is_counted || other.is_counted,
        }
    }

    /// Each alternative of the one combined with each of the other.
    fn and(self, other: Self) -> Self {
        let (m, n) = (self.objects, other.objects);
        Self {
            objects: m * n,
            names: powers(self.names, m, other.names, n),
            patterns: powers(self.patterns, m, other.patterns, n),
            both: self.both * n
                + self.names[0] * other.patterns[0]
                + other.names[0] * self.patterns[0]
                + other.both * m,
            inner: self.inner * n + other.inner * m,
            is_counted: self.is_counted || other.is_counted,
        }
    }

    fn cost(self) -> f64 {
        OBJECT * self.objects
            + NAME * self.names[0]
            + self.names[if self.is_counted { 2 } else { 1 }]
            + PATTERNS * self.patterns[2]
            + MATCH * self.both
            + self.inner
    }
}

/// One schema and what was found in it.
struct Walk<'s> {
    root: &'s Value,
    /// What references stand for where they are combined with something.
    merged: HashMap<&'s str, Sums>,
    /// Targets of references that stand alone; each is compiled once.
    alone: HashSet<&'s str>,
    /// What those and definitions cost.
    aside: f64,
}

impl<'s> Walk<'s> {
    fn cost(&mut self, schema: &'s Value) -> f64 {
        self.sums(schema, false).cost()
    }

    /// What a schema stands for, where it is combined with something and where it is not.
    fn sums(&mut self, schema: &'s Value, is_merged: bool) -> Sums {
        let Value::Object(map) = schema else {
            return Sums::one(0.0, 0.0);
        };
        let lists = ["allOf", "anyOf", "oneOf"].map(|key| map.get(key).and_then(Value::as_array));
        let reference = map.get("$ref").and_then(Value::as_str);
        let parts = usize::from(reference.is_some())
            + lists[0].map_or(0, Vec::len)
            + lists[1..].iter().flatten().count()
            + usize::from(map.keys().any(|key| !is_apart(key)));
        let is_merged = is_merged || parts > 1;
        let mut sums = self.own(map);
        if let Some(reference) = reference {
            sums = sums.and(self.referred(reference, is_merged));
        }
        for part in lists[0].into_iter().flatten() {
            sums = sums.and(self.sums(part, is_merged));
        }
        for list in lists[1..].iter().flatten() {
            let alternatives = list
                .iter()
                .fold(Sums::none(), |all, part| all.or(self.sums(part, is_merged)));
            sums = sums.and(alternatives);
        }
        sums
    }

    /// What the keywords of an object say without those that combine schemas.
    fn own(&mut self, map: &'s Map<String, Value>) -> Sums {
        let count = |key: &str| map.get(key).and_then(Value::as_object).map_or(0, Map::len) as f64;
        let (named, patterns) = (count("properties"), count("patternProperties"));
        let required = map
            .get("required")
            .and_then(Value::as_array)
            .map_or(0.0, |names| names.len() as f64);
        // What is required can be absent from no alternative, and costs less.
        let names = (named - required).max(0.0) + required / 2.0;
        let mut sums = Sums::one(names, patterns);
        sums.is_counted = map.contains_key("minProperties") || map.contains_key("maxProperties");
        for (key, value) in map {
            match key.as_str() {
                "$ref" | "allOf" | "anyOf" | "oneOf" | "default" | "examples" => {}
                "const" | "enum" => sums.inner += literal(value),
                "$defs" | "definitions" => {
                    for schema in value.as_object().into_iter().flat_map(Map::values) {
                        self.aside += self.cost(schema);
                    }
                }
                "properties" | "patternProperties" => {
                    for schema in value.as_object().into_iter().flat_map(Map::values) {
                        sums.inner += self.inside(schema);
                    }
                }
                _ => match value {
                    Value::Object(_) => sums.inner += self.inside(value),
                    Value::Array(values) => {
                        for value in values {
                            sums.inner += self.inside(value);
                        }
                    }
                    _ => {}
                },
            }
        }
        sums
    }

    /// What a schema inside another one costs.
    fn inside(&mut self, schema: &'s Value) -> f64 {
        match schema {
            Value::Object(_) => self.cost(schema),
            _ => 0.0,
        }
    }

    fn referred(&mut self, reference: &'s str, is_merged: bool) -> Sums {
        let target = reference
            .strip_prefix('#')
            .and_then(|pointer| self.root.pointer(pointer));
        let nothing = Sums::one(0.0, 0.0);
        if !is_merged {
            if self.alone.insert(reference)
                && let Some(target) = target
            {
                self.aside += self.cost(target);
            }
            return nothing;
        }
        if let Some(known) = self.merged.get(reference) {
            return *known;
        }
        // Until it is known: one that leads back to itself is refused by the library.
        self.merged.insert(reference, nothing);
        let sums = match target {
            Some(target) => self.sums(target, true),
            // It is named in some other way, and can be anything in the schema.
            None => anything(self.root),
        };
        self.merged.insert(reference, sums);
        sums
    }
}

/// Whether a keyword says nothing of its own about a value: it combines schemas, or is for readers.
fn is_apart(key: &str) -> bool {
    matches!(
        key,
        "$ref"
            | "allOf"
            | "anyOf"
            | "oneOf"
            | "$defs"
            | "definitions"
            | "$schema"
            | "$id"
            | "$comment"
            | "title"
            | "description"
            | "default"
            | "examples"
    )
}

/// A value that must be met as it is.
fn literal(value: &Value) -> f64 {
    let (mut cost, mut rest) = (0.0, vec![value]);
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(map) => {
                cost += Sums::one(map.len() as f64 / 2.0, 0.0).cost();
                rest.extend(map.values());
            }
            Value::Array(values) => {
                cost += values.len() as f64;
                rest.extend(values);
            }
            _ => {}
        }
    }
    cost
}

/// More than any part of a schema stands for.
fn anything(root: &Value) -> Sums {
    let (mut names, mut patterns, mut inner) = (0.0, 0.0, 0.0);
    let mut rest = vec![root];
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(map) => {
                let n = map.len() as f64;
                inner += n * n;
                names += n;
                patterns += map
                    .get("patternProperties")
                    .and_then(Value::as_object)
                    .map_or(0.0, |map| map.len() as f64);
                rest.extend(map.values());
            }
            Value::Array(values) => rest.extend(values),
            _ => {}
        }
    }
    Sums {
        inner,
        ..Sums::one(names, patterns)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_taken(schema: &Value) -> bool {
        Budget::default().spend(schema).is_ok()
    }

    fn names(n: usize, what: &str) -> Map<String, Value> {
        (0..n)
            .map(|i| (format!("{what}{i}"), json!({"type": "string"})))
            .collect()
    }

    #[test]
    fn what_grows_faster_than_the_schema_is_bounded() {
        for (n, makes) in [
            (
                2_000,
                (|n| json!({"properties": names(n, "p")})) as fn(usize) -> Value,
            ),
            (100, |n| json!({"patternProperties": names(n, "^p")})),
            (
                150,
                |n| json!({"properties": names(n, "p"), "minProperties": 1, "additionalProperties": false}),
            ),
            (
                8,
                |n| json!({"properties": names(500, "p"), "anyOf": (0..n).map(|i| json!({"required": [format!("p{i}")]})).collect::<Vec<_>>()}),
            ),
            (
                7,
                |n| json!({"allOf": (0..n).map(|i| json!({"anyOf": [{"required": [format!("a{i}")]}, {"required": [format!("b{i}")]}]})).collect::<Vec<_>>()}),
            ),
            (9, |n| {
                json!({"$defs": {"large": {"properties": names(500, "p")}},
                "prefixItems": (0..n).map(|i| json!({"$ref": "#/$defs/large", "required": [format!("x{i}")]})).collect::<Vec<_>>()})
            }),
            (3, |n| {
                json!({"$defs": {"large": {"$anchor": "it", "properties": names(450, "p")}},
                "prefixItems": (0..n).map(|i| json!({"$ref": "#it", "required": [format!("x{i}")]})).collect::<Vec<_>>()})
            }),
        ] {
            assert!(is_taken(&makes(n)), "{n}: {}", makes(n).to_string().len());
            assert!(!is_taken(&makes(4 * n)), "{n}");
        }
    }

    #[test]
    fn what_does_not_is_not() {
        let large = json!({"properties": names(900, "p")});
        // A reference that stands alone is one definition, wherever it stands.
        let items: Vec<Value> = (0..500)
            .map(|_| json!({"$ref": "#/$defs/large", "title": "it"}))
            .collect();
        assert!(is_taken(
            &json!({"$defs": {"large": large}, "prefixItems": items})
        ));
        let tree = json!({"$defs": {"node": {"properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}}}},
            "allOf": [{"$ref": "#/$defs/node"}, {"required": ["left"]}]});
        assert!(is_taken(&tree));
        let tools: Vec<Value> = (0..100)
            .map(|i| json!({"properties": names(20, &format!("p{i}"))}))
            .collect();
        assert!(is_taken(&json!({"anyOf": tools})));
        assert!(is_taken(&json!({"enum": (0..9_000).collect::<Vec<_>>()})));
    }

    #[test]
    fn schemas_of_one_grammar_share_what_there_is() {
        let large = json!({"properties": names(1_500, "p")});
        let mut budget = Budget::default();
        assert!(budget.spend(&large).is_ok() && budget.spend(&large).is_err());
    }
}
