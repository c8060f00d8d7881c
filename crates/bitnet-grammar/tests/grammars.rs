//! Every kind of grammar takes what it says and nothing else, with the vocabularies of every kind of model.

mod subject;

use bitnet_grammar::{CALL_BEGIN, CALL_END, Calls, Grammar, Tool, ToolUse};
use serde_json::json;
use subject::{Chance, all, demo, has};

/// For each text, whether an answer may be it.
fn check(grammar: &Grammar, texts: &[(&str, bool)]) {
    let subject = demo();
    for (text, expected) in texts {
        assert_eq!(subject.accepts(grammar, text), *expected, "{grammar:?}: {text:?}");
    }
}

#[test]
fn any_object() {
    check(
        &Grammar::JsonObject,
        &[
            ("{}", true),
            (r#"{"a":[1,2.5e3,null,true,"x\n"],"b":{"c":{}}}"#, true),
            ("{ \"a\": 1 }", true),
            ("{\n  \"a\": 1\n}", true),
            ("[]", false),
            ("1", false),
            ("{", false),
            ("", false),
            ("{}x", false),
            (r#"{"a":01}"#, false),
            ("{\n\n\n}", false),
        ],
    );
}

#[test]
fn schemas() {
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["city", "days"], "additionalProperties": false});
    check(
        &Grammar::JsonSchema(city),
        &[
            (r#"{"city":"Rome","days":7}"#, true),
            (r#"{"city": "Oslo", "days": 1}"#, true),
            (r#"{"city":"Paris","days":7}"#, false),
            (r#"{"city":"Rome","days":8}"#, false),
            (r#"{"city":"Rome"}"#, false),
            (r#"{"city":"Rome","days":7,"x":1}"#, false),
        ],
    );
    let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["v"], "additionalProperties": false,
        "properties": {"v": {"oneOf": [{"type": "null"}, {"const": 5}]}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}}}});
    check(
        &Grammar::JsonSchema(tree),
        &[
            (r#"{"v":null}"#, true),
            (r#"{"v":5,"kids":[{"v":5,"kids":[]},{"v":null}]}"#, true),
            (r#"{"v":6}"#, false),
            (r#"{"v":5,"kids":[{"v":5},{"v":5},{"v":5}]}"#, false),
        ],
    );
    check(
        &Grammar::JsonSchema(json!(true)),
        &[("[1,{}]", true), ("nul", false), ("null", true)],
    );
    check(
        &Grammar::JsonSchema(json!({"type": "string", "pattern": "^[a-c]{2,4}$"})),
        &[
            ("\"abc\"", true),
            ("\"abca\"", true),
            ("\"abcab\"", false),
            ("\"a\"", false),
            ("\"xyz\"", false),
        ],
    );
}

#[test]
fn patterns() {
    let grammar = |text: &str| Grammar::Regex(text.to_owned());
    check(
        &grammar("[0-9]{3}-[a-f]{2}"),
        &[("123-ab", true), ("123-a", false), ("123-ab1", false)],
    );
    check(
        &grammar("^(yes|no)$"),
        &[("yes", true), ("no", true), ("maybe", false)],
    );
    check(&grammar("a/b"), &[("a/b", true), ("a\\/b", false)]);
    check(&grammar(r"\d+\\"), &[("12\\", true), ("12", false)]);
    check(
        &grammar("(?s:.)*"),
        &[("anything\nat all", true), ("", true), ("ä", true)],
    );
    check(&grammar(""), &[("", true), ("x", false)]);
}

#[test]
fn choices() {
    let grammar = Grammar::Choice(
        ["a", "ab", "abc d", "\"x\"\\y", "é\n"]
            .map(str::to_owned)
            .to_vec(),
    );
    check(
        &grammar,
        &[
            ("a", true),
            ("ab", true),
            ("abc", false),
            ("abc d", true),
            ("\"x\"\\y", true),
            ("é\n", true),
            ("b", false),
            ("", false),
        ],
    );
    let subject = demo();
    assert!(subject.error(&Grammar::Choice(Vec::new())).contains("empty"));
    // What can go on does not end by itself.
    let mut mask = subject.mask(&grammar);
    assert_eq!(subject.take(mask.as_mut(), "a"), Some(false));
    assert_eq!(subject.take(mask.as_mut(), "bc d"), Some(true));
}

#[test]
fn lark() {
    let grammar = Grammar::from_text("start: \"(\" start? \")\"\n");
    assert!(matches!(grammar, Grammar::Lark(_)));
    check(
        &grammar,
        &[("()", true), ("((()))", true), ("(()", false), ("", false)],
    );
    // A rule that begins with itself.
    check(
        &Grammar::from_text("start: start \"+\" NUMBER | NUMBER\nNUMBER: /[0-9]/\n"),
        &[("1", true), ("1+2+3", true), ("1+", false)],
    );
}

/// llama.cpp's grammar of JSON.
const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn grammars_of_llama_cpp() {
    check(
        &Grammar::from_text(JSON),
        &[
            ("{}", true),
            (
                "{ \"a\": [1, -2.5e7, \"x\\u00e9\", {\"b\": null} ], \"c\":\n\ttrue}",
                true,
            ),
            ("{\"a\": }", false),
            ("[]", false),
            ("{\"a\": 1,}", false),
        ],
    );
    let chess = "root ::= \"1. \" move \" \" move \"\\n\" ([1-9] [0-9]? \". \" move \" \" move \"\\n\")+\n\
                 move ::= (pawn | nonpawn | castle) [+#]?\n\
                 nonpawn ::= [NBKQR] [a-h]? [1-8]? \"x\"? [a-h] [1-8]\n\
                 pawn ::= ([a-h] \"x\")? [a-h] [1-8] (\"=\" [NBKQR])?\ncastle ::= \"O-O\" \"-O\"?\n";
    check(
        &Grammar::from_text(chess),
        &[
            ("1. e4 e5\n2. Nf3 Nc6\n", true),
            ("1. e4 e5\n", false),
            ("1. e9 e5\n2. Nf3 Nc6\n", false),
        ],
    );
    let plus =
        "root ::= expr\nexpr ::= term (\"+\" term)*\nterm ::= [a-z]{1,3} | \"(\" expr \")\" | .{0}\"é\"\n";
    check(
        &Grammar::from_text(plus),
        &[("a+(bc+é)", true), ("a+", false), ("abcd", false), ("é", true)],
    );
    check(
        &Grammar::from_text("root ::= \"a\"\n  | \"b\" root # more\n\n"),
        &[("a", true), ("bba", true), ("bb", false)],
    );
    check(
        &Grammar::from_text("root ::= [^a]* \"a\""),
        &[("xyz\na", true), ("a", true), ("aa", false)],
    );
}

fn weather() -> Vec<Tool> {
    let tool = |name: &str, parameters| Tool {
        name: name.to_owned(),
        parameters,
    };
    vec![
        tool(
            "get_weather",
            Some(
                json!({"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
                "additionalProperties": false, "$defs": {"city": {"enum": ["Rome", "Oslo"]}}}),
            ),
        ),
        tool("now", None),
    ]
}

fn calls(choice: ToolUse, parallel: bool) -> Grammar {
    Grammar::Calls(Calls {
        tools: weather(),
        choice,
        parallel,
    })
}

const ROME: &str = r#"<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>"#;
const TIME: &str = r#"<tool_call>{"name":"now","arguments":{}}</tool_call>"#;

#[test]
fn required_calls() {
    assert!(ROME.starts_with(CALL_BEGIN) && ROME.ends_with(CALL_END));
    let lines = ROME
        .replace(CALL_BEGIN, "<tool_call>\n")
        .replace(CALL_END, "\n</tool_call>");
    let one = [
        (ROME, true),
        (TIME, true),
        (lines.as_str(), true),
        ("Hello", false),
        ("", false),
        (
            r#"<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>"#,
            false,
        ),
        (
            r#"<tool_call>{"name": "other", "arguments": {}}</tool_call>"#,
            false,
        ),
        (
            r#"<tool_call>{"name": "now", "arguments": {"city": "Rome"}}</tool_call>"#,
            false,
        ),
        (r#"<tool_call>{"name": "now"}</tool_call>"#, false),
    ];
    let two = format!("{ROME}\n{TIME}");
    check(&calls(ToolUse::Required, false), &one);
    check(&calls(ToolUse::Required, false), &[(&two, false)]);
    check(&calls(ToolUse::Required, true), &one);
    check(
        &calls(ToolUse::Required, true),
        &[(&two, true), (&format!("{ROME}{TIME}{TIME}"), true)],
    );
    // A call is the end of it.
    let subject = demo();
    let mut mask = subject.mask(&calls(ToolUse::Required, false));
    assert_eq!(subject.take(mask.as_mut(), ROME), Some(true));
    let none = Calls {
        tools: Vec::new(),
        choice: ToolUse::Required,
        parallel: false,
    };
    assert!(subject.error(&Grammar::Calls(none)).contains("no tools"));
    let bad = Calls {
        tools: vec![Tool {
            name: "f".to_owned(),
            parameters: Some(json!({"type": "nosuch"})),
        }],
        choice: ToolUse::Auto,
        parallel: false,
    };
    assert!(subject.error(&Grammar::Calls(bad)).contains("nosuch"));
}

#[test]
fn calls_or_json() {
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false});
    let both = |parallel| {
        let calls = Calls {
            tools: weather(),
            choice: ToolUse::Auto,
            parallel,
        };
        Grammar::CallsOrJson(calls, schema.clone())
    };
    let two = format!("{ROME}\n{TIME}");
    let cases = [
        (ROME, true),
        (TIME, true),
        (r#"{"n": 1}"#, true),
        (r#"{"n": 3}"#, false),
        ("", false),
        ("Hello", false),
        (r#"{"n": 1}<tool_call>"#, false),
        ("I look.\n<tool_call>", false),
    ];
    for parallel in [false, true] {
        check(&both(parallel), &cases);
        check(&both(parallel), &[(&two, parallel)]);
    }
}

#[test]
fn calls_as_the_model_likes() {
    let both = [
        ("Hello <b>you</b>, a < b", true),
        ("", true),
        (ROME, true),
        (&format!("I look.\n{ROME}"), true),
        ("<tool_call>", false),
        ("<tool_call", true),
        ("x <tool_call>no", false),
        (
            r#"<tool_call>{"name": "other", "arguments": {}}</tool_call>"#,
            false,
        ),
    ];
    let two = format!("{ROME}\n{TIME}");
    check(&calls(ToolUse::Auto, false), &both);
    check(&calls(ToolUse::Auto, false), &[(&two, false)]);
    check(&calls(ToolUse::Auto, true), &both);
    check(&calls(ToolUse::Auto, true), &[(&two, true)]);
}

#[test]
fn no_calls() {
    check(
        &calls(ToolUse::Forbidden, false),
        &[
            ("Hello <b>", true),
            ("", true),
            (ROME, false),
            ("a <tool_call>", false),
            ("a <tool_call", true),
            ("<tool<tool_call x", true),
        ],
    );
}

#[test]
fn every_kind_of_vocabulary() {
    let schema = Grammar::JsonSchema(
        json!({"type": "object", "properties": {"name": {"enum": ["Zoë", "a b"]}, "n": {"type": "integer"}},
        "required": ["name", "n"], "additionalProperties": false}),
    );
    for subject in all() {
        let name = &subject.name;
        assert!(subject.accepts(&schema, r#"{"name":"Zoë","n":12}"#), "{name}");
        assert!(subject.accepts(&schema, r#"{"name": "a b", "n": -3}"#), "{name}");
        assert!(!subject.accepts(&schema, r#"{"name":"x","n":12}"#), "{name}");
        // Special tokens are no text.
        let mut mask = subject.mask(&Grammar::Regex("(?s:.)*".to_owned()));
        let bits = subject.bits(mask.as_mut());
        for id in 0..subject.vocab as u32 {
            let is_end = subject.eos.contains(&id);
            assert!(
                !has(&bits, id) || is_end || !subject.tokenizer.is_special(id),
                "{name}: {id}"
            );
            assert!(!is_end || has(&bits, id), "{name}: an end token may end any text");
        }
        // The text of the tokens is the text of the answer.
        let mut chance = Chance(7);
        let choice = Grammar::Choice(vec!["x y".to_owned(), "Zoë (zwölf)".to_owned()]);
        for _ in 0..5 {
            let mut mask = subject.mask(&choice);
            let mut ids = Vec::new();
            loop {
                let allowed = subject.allowed(mask.as_mut());
                let id = allowed[chance.below(allowed.len())];
                if subject.eos.contains(&id) {
                    break;
                }
                ids.push(id);
                if mask.accept(id).unwrap() {
                    break;
                }
            }
            let text = subject.tokenizer.decode(&ids).unwrap();
            assert!(
                ["x y", "Zoë (zwölf)"].contains(&text.as_str()),
                "{name}: {text:?}"
            );
        }
    }
}

#[test]
fn what_was_compiled_before_begins_anew() {
    let subject = demo();
    let first = |grammar: &Grammar| {
        let mut mask = subject.mask(grammar);
        let mut bits = vec![0; subject.vocab.div_ceil(32)];
        mask.allowed(&mut bits).unwrap();
        let id = (0..subject.vocab as u32).find(|&id| has(&bits, id)).unwrap();
        mask.accept(id).unwrap();
        bits
    };
    // More than are kept, each in use when it is asked for again.
    let grammars: Vec<Grammar> = (0..20)
        .map(|i| Grammar::Regex(format!("[{}]+b", (b'c' + i) as char)))
        .collect();
    let begun: Vec<Vec<u32>> = grammars.iter().map(first).collect();
    assert!(begun.windows(2).all(|two| two[0] != two[1]));
    for (grammar, begun) in grammars.iter().zip(&begun).rev() {
        assert_eq!((&first(grammar), &first(grammar)), (begun, begun));
    }
}
