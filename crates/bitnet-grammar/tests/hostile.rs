//! Grammars of people who want harm: each is an error or works, in bounded time and memory, and nothing else suffers.

mod subject;

use std::time::{Duration, Instant};

use bitnet_grammar::{Calls, Grammar, Tool, ToolUse};
use bitnet_model::schedule::Mask;
use serde_json::{Map, Value, json};
use subject::{Chance, Subject, demo};

/// Far more than any of them needs here, built without optimization and beside other tests, and far less than a hang.
const LONG: Duration = Duration::from_secs(60);

/// Compiles, and where that works follows it for some tokens.
fn survives(subject: &Subject, name: &str, grammar: &Grammar) -> Result<(), String> {
    let begun = Instant::now();
    let result = subject.compiler.compile(grammar);
    let compiled = begun.elapsed();
    assert!(compiled < LONG, "{name}: compiled for {compiled:?}");
    let mut slowest = Duration::ZERO;
    let result = match result {
        Err(error) => Err(error.to_string()),
        Ok(mut mask) => {
            let mut chance = Chance(1);
            let mut said = Ok(());
            for _ in 0..40 {
                let begun = Instant::now();
                let mut bits = vec![0; subject.vocab.div_ceil(32)];
                let taken = mask.allowed(&mut bits).and_then(|()| {
                    let allowed: Vec<u32> = (0..subject.vocab as u32)
                        .filter(|&id| subject::has(&bits, id))
                        .collect();
                    assert!(!allowed.is_empty(), "{name}");
                    mask.accept(allowed[chance.below(allowed.len())])
                });
                slowest = slowest.max(begun.elapsed());
                match taken {
                    Ok(false) => {}
                    Ok(true) => break,
                    Err(error) => {
                        said = Err(error.to_string());
                        break;
                    }
                }
            }
            assert!(slowest < LONG, "{name}: a mask took {slowest:?}");
            said
        }
    };
    if let Err(message) = &result {
        assert!(!message.is_empty() && message.len() < 1_000, "{name}: {message}");
        assert!(
            !message.contains("backtrace") && !message.contains("non-verbose") && !message.contains(".rs"),
            "{name}: {message}"
        );
    }
    println!("{name}: {compiled:?}, {slowest:?} a mask: {result:?}");
    result
}

fn nested(key: &str, depth: usize) -> Value {
    let mut schema = json!({"type": "null"});
    for _ in 0..depth {
        let mut map = Map::new();
        let inner = if key == "properties" {
            json!({"a": schema})
        } else {
            schema
        };
        map.insert(
            key.to_owned(),
            if key == "anyOf" { json!([inner]) } else { inner },
        );
        schema = Value::Object(map);
    }
    schema
}

#[test]
fn schemas() {
    let subject = demo();
    let check = |name: &str, schema: Value| survives(&subject, name, &Grammar::JsonSchema(schema));
    let wide = |n: usize, required: bool| {
        let properties: Map<String, Value> = (0..n)
            .map(|i| (format!("property{i}"), json!({"type": "string"})))
            .collect();
        let names: Vec<String> = if required {
            properties.keys().cloned().collect()
        } else {
            Vec::new()
        };
        json!({"type": "object", "properties": properties, "required": names})
    };
    let patterns: Map<String, Value> = (0..500)
        .map(|i| (format!("^property{i}$"), json!({"type": "integer"})))
        .collect();
    let at_least_one = |mut schema: Value| {
        schema["minProperties"] = json!(1);
        schema["additionalProperties"] = json!(false);
        schema
    };
    let one_of_large = |mut schema: Value| {
        schema["anyOf"] = (0..100)
            .map(|i| json!({"required": [format!("property{i}")]}))
            .collect();
        schema
    };
    // What must be refused.
    for (name, schema) in [
        ("4,000 properties", wide(4_000, false)),
        (
            "patterns beside patterns",
            json!({"type": "object", "patternProperties": patterns}),
        ),
        ("at least one of 500", at_least_one(wide(500, false))),
        (
            "a hundred times 1,000 properties",
            one_of_large(wide(1_000, false)),
        ),
        ("itself", json!({"$ref": "#"})),
        (
            "a cycle",
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        ),
        ("all of itself", json!({"allOf": [{"$ref": "#"}]})),
        ("nowhere", json!({"$ref": "#/nowhere"})),
        ("elsewhere", json!({"$ref": "http://127.0.0.1:1/schema.json"})),
        ("a file", json!({"$ref": "file:///etc/passwd"})),
        ("no such type", json!({"type": "nosuch"})),
        ("not a schema", json!(5)),
        ("false", json!(false)),
        ("no choice", json!({"enum": []})),
        (
            "nothing fits",
            json!({"type": "integer", "minimum": 5, "maximum": 1}),
        ),
        ("a broken pattern", json!({"type": "string", "pattern": "(((("})),
        ("nested properties", nested("properties", 500)),
        ("nested items", nested("items", 1_000)),
        ("a megabyte", json!({"enum": ["x".repeat(1 << 20)]})),
        ("a megabyte of names", wide(60_000, false)),
        ("a factor", json!({"type": "integer", "multipleOf": 999_999_937})),
        (
            "factors",
            json!({"allOf": [{"multipleOf": 999_983}, {"multipleOf": 999_979}, {"multipleOf": 0.001}], "type": "number"}),
        ),
        ("unknown keyword", json!({"type": "array", "uniqueItems": true})),
    ] {
        let begun = Instant::now();
        assert!(check(name, schema).is_err(), "{name}");
        // Without bounds of their own some took minutes.
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{name}: {:?}",
            begun.elapsed()
        );
    }
    // What may be either.
    let chain = |n: usize, levels: usize| {
        let deep = |schema: Value| (0..levels).fold(schema, |schema, _| json!({"items": schema}));
        let defs: Map<String, Value> = (0..n)
            .map(|i| {
                (
                    format!("{i:x}"),
                    deep(json!({"$ref": format!("#/$defs/{:x}", i + 1)})),
                )
            })
            .chain([(format!("{n:x}"), json!(true))])
            .collect();
        json!({"$ref": "#/$defs/0", "$defs": defs})
    };
    let doubling: Map<String, Value> = (0..60)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/{}", i + 1)});
            (
                i.to_string(),
                json!({"type": "array", "prefixItems": [next, next], "items": false, "minItems": 2}),
            )
        })
        .chain([("60".to_owned(), json!({"type": "null"}))])
        .collect();
    let intersections: Vec<Value> = (0..200)
        .map(|i| json!({"type": "object", "properties": {format!("p{i}"): {"anyOf": [{"type": "string"}, {"type": "integer"}]}}}))
        .collect();
    let alternatives: Vec<Value> = (0..24)
        .map(|_| json!({"anyOf": [{"minLength": 1}, {"maxLength": 9}]}))
        .collect();
    for (name, schema) in [
        (
            "needs itself",
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        ),
        ("2,000 properties", wide(2_000, false)),
        ("2,000 required properties", wide(2_000, true)),
        ("nested items that are taken", nested("items", 90)),
        ("nested anyOf", nested("anyOf", 40)),
        ("a long chain", chain(7_000, 0)),
        ("a long chain of long chains", chain(230, 90)),
        ("a long string", json!({"enum": ["x".repeat(200_000)]})),
        (
            "many choices",
            json!({"enum": (0..15_000).map(|i| format!("{:x}", i * 7_919)).collect::<Vec<_>>()}),
        ),
        ("doubling", json!({"$ref": "#/$defs/0", "$defs": doubling})),
        ("intersections", json!({"allOf": intersections})),
        ("alternatives of alternatives", json!({"allOf": alternatives})),
        (
            "long repetitions",
            json!({"type": "string", "pattern": "^(a{1,9999}){1,9999}$"}),
        ),
        (
            "catastrophe",
            json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}),
        ),
        (
            "lengths",
            json!({"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000}),
        ),
        (
            "many items",
            json!({"type": "array", "items": {"type": "string"}, "minItems": 100_000, "maxItems": 1_000_000}),
        ),
        (
            "patterns of names",
            json!({"type": "object", "patternProperties": {"^a.*b.*c$": {"type": "integer"}, "^x(a|b)*y$": {}}}),
        ),
        (
            "a format and a pattern",
            json!({"type": "string", "format": "uri", "pattern": "(a|b|ab)*c.*d.*e"}),
        ),
        (
            "its own spaces",
            json!({"type": "object", "x-guidance": {"whitespace_pattern": "(((("}}),
        ),
        (
            "other words",
            json!({"type": "string", "pattern": "é".repeat(3_000)}),
        ),
    ] {
        let _ = check(name, schema);
    }
}

#[test]
fn patterns() {
    let subject = demo();
    let check = |name: &str, text: &str| survives(&subject, name, &Grammar::Regex(text.to_owned()));
    for (name, text) in [
        ("open groups", "(((("),
        ("many open groups", &"(".repeat(60_000)),
        (
            "nested groups",
            &format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000)),
        ),
        ("a backslash", "abc\\"),
        ("looking ahead", "(?=a)b"),
        ("references", r"(a)\1"),
        ("too long", &"a".repeat(70_000)),
        ("nothing", "[^\\s\\S]"),
    ] {
        assert!(check(name, text).is_err(), "{name}");
    }
    for (name, text) in [
        ("two long repetitions", "a{1,9999}b{1,9999}".to_owned()),
        ("repeated repetitions", "((a{1,9999}){1,9999}){1,9999}".to_owned()),
        ("twice a repetition", "(?:a{1,9999}){1,9999}".to_owned()),
        ("catastrophe", "(a*)*(a+)+(a|aa)+$".to_owned()),
        ("a far character", format!("(a|b)*a{}", "(a|b)".repeat(400))),
        ("a far character, counted", "(a|b)*a(a|b){5000}".to_owned()),
        ("classes", r"[\p{L}\p{N}]{1,500}(\w|\s){3,900}".to_owned()),
        ("any and any", "(?s:.{0,3000}a.{0,3000}b.{0,3000})*".to_owned()),
        (
            "alternatives",
            (0..8_000).map(|i| format!("{i}x")).collect::<Vec<_>>().join("|"),
        ),
        ("long", "a".repeat(60_000)),
        ("slashes", "/".repeat(5_000)),
    ] {
        let _ = check(name, &text);
    }
}

#[test]
fn grammars() {
    let subject = demo();
    let check = |name: &str, text: &str| survives(&subject, name, &Grammar::from_text(text));
    let rules = |n: usize| {
        (0..n)
            .map(|i| format!("r{i:x}: r{:x}\n", i + 1))
            .collect::<String>()
    };
    let terminals = |n: usize| {
        (0..n)
            .map(|i| format!("T{i}: \"a\" T{} | \"b\"\n", i + 1))
            .collect::<String>()
    };
    for (name, text) in [
        ("empty", String::new()),
        ("no start", "a: \"x\"\n".to_owned()),
        ("itself alone", "start: start\n".to_owned()),
        ("parentheses", format!("start: {}", "(".repeat(60_000))),
        (
            "deep parentheses",
            format!("start: {}\"a\"{}\n", "(".repeat(10_000), ")".repeat(10_000)),
        ),
        ("unknown rule", "start: other\n".to_owned()),
        ("other grammar", "start: @other\n".to_owned()),
        ("unknown token", "start: <|nosuch|>\n".to_owned()),
        ("a token that is not there", "start: <[999999]>\n".to_owned()),
        ("too long", format!("start: \"{}\"\n", "a".repeat(70_000))),
        ("a circle of terminals", "start: A\nA: B\nB: A\n".to_owned()),
        (
            "nested json",
            format!("start: %json {}{}\n", "{\"a\":".repeat(1_000), "}".repeat(1_000)),
        ),
        ("gbnf, itself alone", "root ::= root\n".to_owned()),
        ("gbnf, parentheses", format!("root ::= {}", "(".repeat(60_000))),
        ("gbnf, bad utf-8 escape", "root ::= [\\xff-\\xfe]\n".to_owned()),
    ] {
        assert!(check(name, &text).is_err(), "{name}");
    }
    for (name, text) in [
        (
            "a chain of rules",
            format!("start: r0\n{}r{:x}: \"a\"\n", rules(5_000), 5_000),
        ),
        (
            "a chain of terminals",
            format!("start: T0\n{}T2500: \"c\"\n", terminals(2_500)),
        ),
        (
            "left recursion",
            "start: start start | \"a\" | start\n".to_owned(),
        ),
        (
            "ambiguity",
            "start: s s s s\ns: s s | s s s | \"a\" | \"\"\n".to_owned(),
        ),
        (
            "empty loops",
            "start: (a*)* (a?)+\na: \"x\"? | a a | \"\"\n".to_owned(),
        ),
        (
            "repeated rules",
            "start: (((\"a\"{1,9999}){1,9999}){1,9999}){1,9999}\n".to_owned(),
        ),
        (
            "many rules",
            format!(
                "start: {}\n{}",
                (0..2_000)
                    .map(|i| format!("r{i}"))
                    .collect::<Vec<_>>()
                    .join(" | "),
                (0..2_000)
                    .map(|i| format!("r{i}: \"{i}\" start\n"))
                    .collect::<String>()
            ),
        ),
        (
            "doubled terminals",
            format!(
                "start: T0\n{}T60: \"ab\"\n",
                (0..60)
                    .map(|i| format!("T{i}: T{n} T{n}\n", n = i + 1))
                    .collect::<String>()
            ),
        ),
        (
            "negated terminals",
            "start: A\nA: ~(~(/a*b/ & ~/(ab)*/) & ~(~/[a-z]{9,99}/))\n".to_owned(),
        ),
        ("any token", "start: <[*]>{1,100}\n".to_owned()),
        (
            "invalid utf-8",
            "%llguidance {\"allow_invalid_utf8\": true}\nstart: /(?s-u:.)*/\n".to_owned(),
        ),
        ("lazy", "start: a b\na[lazy]: /(?s:.)*x/\nb: /x*/\n".to_owned()),
        ("no tokens at all", "start: a\na[max_tokens=0]: /a+/\n".to_owned()),
        (
            "words",
            format!(
                "start: %regex {{\"substring_words\": \"{}\"}}\n",
                "ab ba ".repeat(5_000)
            ),
        ),
        (
            "gbnf, doubled",
            format!(
                "root ::= r0 root?\n{}r60 ::= \"ab\"\n",
                (0..60)
                    .map(|i| format!("r{i} ::= r{n} r{n}\n", n = i + 1))
                    .collect::<String>()
            ),
        ),
        (
            "gbnf, a chain",
            format!(
                "root ::= r0\n{}r2500 ::= \"ab\"\n",
                (0..2_500)
                    .map(|i| format!("r{i} ::= r{}\n", i + 1))
                    .collect::<String>()
            ),
        ),
        (
            "gbnf, counts",
            "root ::= (\"a\"{9999} [a-z]{9999,}){99999}\n".to_owned(),
        ),
        (
            "gbnf, nested counts",
            "root ::= \"(\" (((root?){999}){999}){999} \")\"\n".to_owned(),
        ),
    ] {
        let _ = check(name, &text);
    }
}

#[test]
fn tools() {
    let subject = demo();
    let tool = |i: usize, parameters| Tool {
        name: format!("tool{i}\"}}\n\\u0000é"),
        parameters: Some(parameters),
    };
    let grammar = |tools| {
        Grammar::Calls(Calls {
            tools,
            choice: ToolUse::Auto,
            parallel: true,
        })
    };
    let many = (0..500).map(|i| tool(i, json!({"type": "object"}))).collect();
    let _ = survives(&subject, "500 tools", &grammar(many));
    let large = (0..100)
        .map(|i| tool(i, json!({"enum": [format!("{i}").repeat(2_000)]})))
        .collect();
    let _ = survives(&subject, "large tools", &grammar(large));
    let _ = survives(&subject, "a cycle", &grammar(vec![tool(0, json!({"$ref": "#"}))]));
    assert!(survives(&subject, "no schema", &grammar(vec![tool(0, json!([]))])).is_err());
}

/// Grammars that work, of each kind.
const GOOD: [&str; 9] = [
    r##"{"type":"object","properties":{"city":{"enum":["Rome","Oslo"]},"x":{"$ref":"#/$defs/t"}},"required":["city"],"$defs":{"t":{"anyOf":[{"type":"null"},{"type":"array","items":{"$ref":"#/$defs/t"},"maxItems":2}]}}}"##,
    r##"{"type":"object","patternProperties":{"^a":{"type":"string","pattern":"^[a-c]{2,4}$","format":"date"}},"additionalProperties":{"type":"number","multipleOf":0.5}}"##,
    r##"{"allOf":[{"type":["string","integer"]},{"oneOf":[{"const":1},{"minLength":2,"maxLength":9}]}],"minimum":-3,"exclusiveMaximum":1e3}"##,
    r##"{"type":"array","prefixItems":[{"const":{"a":[1]}},{"type":"string","format":"ipv4"}],"minItems":1,"items":false,"x-guidance":{}}"##,
    r"(a|b)*[^\d]{2,30}\p{L}+(?i:x|yz)?$",
    "root ::= \"(\" ws (root | [a-c]{2} | \"\\x41\") \")\"\nws ::= [ \\t\\n]* # space\n",
    "root ::= item{1,3} | [^a-z\\u00e9]+ .\nitem ::= \"- \" root? (\"\\n\" | item)\n",
    "start: expr (\"+\" expr)*\nexpr: NUM | \"(\" start \")\" | %json {\"type\":\"integer\"}\nNUM: /[0-9]+/ & ~/0+/\n%ignore /[ ]/\n",
    "%llguidance {\"no_forcing\": true}\nstart: a[stop=\"x\"] <[1-9]>\na[capture, max_tokens=3]: /[a-z]*/\nB: \"q\"i..\"z\"\n",
];

/// What mutations put in.
const PIECES: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "*",
    "+",
    "?",
    "|",
    "\"",
    "\\",
    "\n",
    ":",
    "::=",
    "$ref",
    "#",
    "é",
    "{9,99}",
    "~",
    "/",
    "%json",
    "999999999",
    "null",
];

/// Mutations of good grammars. `MUTATIONS` says how many.
#[test]
fn mutations() {
    let subject = demo();
    let n = std::env::var("MUTATIONS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(600);
    let mut chance = Chance(
        std::env::var("MUTATIONS_SEED")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1),
    );
    let (mut taken, mut refused) = (0, 0);
    for i in 0..n {
        let mut text: Vec<char> = GOOD[chance.below(GOOD.len())].chars().collect();
        for _ in 0..chance.below(5) {
            let at = chance.below(text.len() + 1);
            let end = (at + 1 + chance.below(12)).min(text.len());
            match chance.below(4) {
                0 => drop(text.drain(at..end)),
                1 => drop(text.splice(at..at, PIECES[chance.below(PIECES.len())].chars())),
                2 => {
                    let copy: Vec<char> = text[at..end].to_vec();
                    let to = chance.below(text.len() + 1);
                    drop(text.splice(to..to, copy));
                }
                _ => {
                    let other: Vec<char> = GOOD[chance.below(GOOD.len())].chars().collect();
                    let from = chance.below(other.len());
                    let piece = &other[from..(from + 20).min(other.len())];
                    drop(text.splice(at..end, piece.iter().copied()));
                }
            }
            if text.is_empty() {
                text.push('x');
            }
        }
        let text: String = text.into_iter().collect();
        let mut grammars = vec![Grammar::from_text(&*text), Grammar::Regex(text.clone())];
        if let Ok(schema) = serde_json::from_str::<Value>(&text) {
            grammars.push(Grammar::JsonSchema(schema));
        }
        for grammar in grammars {
            match follow(&subject, &grammar, &mut chance) {
                Ok(()) => taken += 1,
                Err(message) => {
                    refused += 1;
                    assert!(
                        !message.is_empty() && message.len() < 1_000 && !message.contains("panic"),
                        "{i}: {text:?}: {message}"
                    );
                }
            }
        }
    }
    assert!(
        n < 100 || taken > 10 && refused > 10,
        "{taken} taken, {refused} refused"
    );
}

/// Compiles, and walks through it with each token taken, taken back and taken again.
fn follow(subject: &Subject, grammar: &Grammar, chance: &mut Chance) -> Result<(), String> {
    let begun = Instant::now();
    let mut mask = subject
        .compiler
        .compile(grammar)
        .map_err(|error| error.to_string())?;
    for _ in 0..16 {
        let step = |mask: &mut dyn Mask| {
            let mut bits = vec![0; subject.vocab.div_ceil(32)];
            mask.allowed(&mut bits)
                .map(|()| bits)
                .map_err(|error| error.to_string())
        };
        let bits = step(mask.as_mut())?;
        let allowed: Vec<u32> = (0..subject.vocab as u32)
            .filter(|&id| subject::has(&bits, id))
            .collect();
        let id = allowed[chance.below(allowed.len())];
        let accept = |mask: &mut dyn Mask| mask.accept(id).map_err(|error| error.to_string());
        accept(mask.as_mut())?;
        mask.rollback(1).map_err(|error| error.to_string())?;
        assert_eq!(step(mask.as_mut())?, bits, "{grammar:?}");
        if accept(mask.as_mut())? {
            break;
        }
    }
    assert!(begun.elapsed() < LONG, "{grammar:?}");
    Ok(())
}
