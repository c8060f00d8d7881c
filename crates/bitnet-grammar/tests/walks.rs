//! Any walk through a mask gives a text that obeys the grammar, and going back and dividing leave no trace.

mod subject;

use std::sync::LazyLock;

use bitnet_grammar::Grammar;
use bitnet_model::schedule::Mask;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use subject::{Chance, Subject, all, demo, has};

static DEMO: LazyLock<Subject> = LazyLock::new(demo);

/// Schemas of the keywords that [`obeys`] knows.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        (-50..50i64, 0..30i64)
            .prop_map(|(low, n)| json!({"type": "integer", "minimum": low, "maximum": low + n})),
        (0..3usize, 0..5usize)
            .prop_map(|(low, n)| json!({"type": "string", "minLength": low, "maxLength": low + n})),
        prop::collection::vec("[a-zé\"\\\\\n ]{0,6}", 1..4).prop_map(|texts| json!({"enum": texts})),
        any::<i16>().prop_map(|n| json!({"const": n})),
        Just(json!({"type": "number", "minimum": -1, "exclusiveMaximum": 2.5})),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let object = (prop::collection::btree_map("[a-c]{1,2}", inner.clone(), 0..4), any::<u8>()).prop_map(|(map, required)| {
            let properties: Map<String, Value> = map.into_iter().collect();
            let names = properties.keys().enumerate().filter(|(i, _)| required >> i & 1 == 1);
            let names: Vec<&String> = names.map(|(_, name)| name).collect();
            json!({"type": "object", "required": names, "properties": properties.clone(), "additionalProperties": false})
        });
        let array = (inner.clone(), 0..2usize, 0..3usize)
            .prop_map(|(items, low, n)| json!({"type": "array", "items": items, "minItems": low, "maxItems": low + n}));
        prop_oneof![object, array, prop::collection::vec(inner, 1..3).prop_map(|any| json!({"anyOf": any}))]
    })
}

fn obeys(value: &Value, schema: &Value) -> bool {
    let count = |key: &str| schema[key].as_u64().map(|n| n as usize);
    let within = |n: usize, low: &str, high: &str| {
        n >= count(low).unwrap_or(0) && n <= count(high).unwrap_or(usize::MAX)
    };
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| obeys(value, schema));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    if let Some(constant) = schema.get("const") {
        return value == constant;
    }
    match (schema["type"].as_str().unwrap(), value) {
        ("null", Value::Null) | ("boolean", Value::Bool(_)) => true,
        // -0 is an integer, too, though it is read as a float.
        ("integer", Value::Number(n)) => n.as_f64().is_some_and(|n| {
            n.fract() == 0.0
                && n >= schema["minimum"].as_f64().unwrap()
                && n <= schema["maximum"].as_f64().unwrap()
        }),
        ("number", Value::Number(n)) => n.as_f64().is_some_and(|n| (-1.0..2.5).contains(&n)),
        ("string", Value::String(text)) => within(text.chars().count(), "minLength", "maxLength"),
        ("array", Value::Array(values)) => {
            within(values.len(), "minItems", "maxItems")
                && values.iter().all(|value| obeys(value, &schema["items"]))
        }
        ("object", Value::Object(map)) => {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            required
                .iter()
                .all(|name| map.contains_key(name.as_str().unwrap()))
                && map
                    .iter()
                    .all(|(name, value)| properties.get(name).is_some_and(|schema| obeys(value, schema)))
        }
        _ => false,
    }
}

/// Goes some tokens ahead and back, as guesses do, in a fork and in the mask itself: what is allowed is the same as before.
fn wander(subject: &Subject, mask: &mut dyn Mask, chance: &mut Chance) {
    let before = subject.bits(mask);
    let mut fork = mask.fork();
    let mut path = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..chance.below(6) {
        let allowed = subject.allowed(mask);
        let id = allowed[chance.below(allowed.len())];
        path.push(id);
        let is_over = mask.accept(id).unwrap();
        if is_over {
            break;
        }
        seen.push(subject.bits(mask));
    }
    // The fork has seen none of it, and goes the same way.
    assert_eq!(subject.bits(fork.as_mut()), before);
    for (id, bits) in path.iter().zip(&seen) {
        assert!(has(&subject.bits(fork.as_mut()), *id));
        assert!(!fork.accept(*id).unwrap());
        assert_eq!(&subject.bits(fork.as_mut()), bits);
    }
    // Back in two steps.
    let half = path.len() / 2;
    mask.rollback(half).unwrap();
    let left = path.len() - half;
    if left > 0 && left <= seen.len() {
        assert_eq!(subject.bits(mask), seen[left - 1]);
    }
    mask.rollback(left).unwrap();
    assert_eq!(subject.bits(mask), before);
    // What is forced is allowed, token by token, and asking for it changes nothing.
    let forced = mask.forced();
    assert_eq!(subject.bits(mask), before);
    let mut taken = 0;
    for id in forced {
        assert!(has(&subject.bits(mask), id), "{id} is forced and not allowed");
        taken += 1;
        if mask.accept(id).unwrap() {
            break;
        }
    }
    mask.rollback(taken).unwrap();
    assert_eq!(subject.bits(mask), before);
}

/// A walk with wandering on its way.
fn walk(subject: &Subject, grammar: &Grammar, seed: u64) -> Option<String> {
    let mut mask = subject.mask(grammar);
    let mut chance = Chance(seed);
    let mut undisturbed = mask.fork();
    for _ in 0..chance.below(4) {
        wander(subject, mask.as_mut(), &mut chance);
        let allowed = subject.allowed(mask.as_mut());
        let id = allowed[chance.below(allowed.len())];
        wander(subject, mask.as_mut(), &mut chance);
        let is_over = mask.accept(id).unwrap();
        assert_eq!(undisturbed.accept(id).unwrap(), is_over);
        if is_over {
            break;
        }
        assert_eq!(subject.bits(mask.as_mut()), subject.bits(undisturbed.as_mut()));
    }
    let mut fresh = subject.mask(grammar);
    subject.walk(fresh.as_mut(), &mut chance)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_walked_obeys_the_schema(schema in schemas(), seed in any::<u64>()) {
        let grammar = Grammar::JsonSchema(schema.clone());
        if let Some(text) = walk(&DEMO, &grammar, seed) {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            prop_assert!(obeys(&value, &schema), "{text:?}");
        }
    }
}

#[test]
fn walks_end() {
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1,
        "maximum": 7}, "note": {"type": "string", "maxLength": 9}}, "required": ["city", "days"], "additionalProperties": false});
    let grammar = Grammar::JsonSchema(schema);
    let ended = (0..20).filter_map(|seed| walk(&DEMO, &grammar, seed));
    let values: Vec<Value> = ended.map(|text| serde_json::from_str(&text).unwrap()).collect();
    assert_eq!(values.len(), 20);
    assert!(
        values
            .iter()
            .all(|value| ["Rome", "Oslo"].contains(&value["city"].as_str().unwrap()))
    );
}

#[test]
fn in_every_kind_of_vocabulary_and_grammar() {
    let list = Grammar::from_text("root ::= \"(\" (\"ö\" | root | [a-c]{2}) \")\"");
    let text = Grammar::Regex("[ab]{2}( c|_ö){1,3}".to_owned());
    for subject in all() {
        for seed in 0..3 {
            if let Some(found) = walk(&subject, &list, seed) {
                assert!(
                    found.starts_with('(') && found.ends_with(')'),
                    "{}: {found:?}",
                    subject.name
                );
            }
            let found = walk(&subject, &text, seed).unwrap();
            assert!(
                found.chars().all(|c| "ab c_ö".contains(c)) && found.len() < 16,
                "{}: {found:?}",
                subject.name
            );
        }
    }
}
