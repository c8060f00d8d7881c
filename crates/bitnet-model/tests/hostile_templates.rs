//! Templates that mean harm: each is one error within seconds and a bounded amount of memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bitnet_model::{ChatTemplate, Message, Result};

fn render(source: &str) -> Result<String> {
    ChatTemplate::from_source(source, BTreeMap::new())?.render(&[Message::user("hi")])
}

/// The most memory that this process has held so far, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().trim_end_matches(" kB").parse::<u64>().ok()?)
}

fn refuse(sources: &[&str]) {
    for source in sources {
        let shown: String = source.chars().take(200).collect();
        let start = Instant::now();
        let result = render(source);
        let error = result.map(|text| text.len()).expect_err(&shown).to_string();
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{shown}: {:?}",
            start.elapsed()
        );
        assert!(error.len() < 1000 && !error.contains('\n'), "{shown}: {error}");
        if let Some(peak) = peak() {
            assert!(peak < 900 << 20, "{shown}: {} MB", peak >> 20);
        }
    }
}

#[test]
fn texts_that_grow() {
    refuse(&[
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(40) %}{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(40) %}{% set ns.x = ns.x.replace('', 'aa') %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}",
        "{% set ns = namespace(x='\\'') %}{% for i in range(40) %}{% set ns.x = [ns.x]|string %}{% endfor %}{% for i in range(40) %}{% set ns.x = ns.x|tojson %}{% endfor %}",
        "{% set x='a'*1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
        "{% set x='a'*1000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
        "{% set x = 'a'*100000 %}{{ range(100000)|join(x)|length }}",
        "{{ ('a'*1000000).count('') }}",
        "{{ 'a' * 999999999999 }}",
        "{{ 999999999999 * 'ab' }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%.9999999999f' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%99999999999999999999999999d' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:.999999999f}'.format(1.5) }}",
        "{{ '{:{w}}'.format(1, w=999999999) }}",
        "{{ 'a'.center(999999999) }}",
        "{{ 'a'.ljust(999999999, 'é') }}",
        "{{ 'a'.zfill(999999999) }}",
        "{{ '\t'.expandtabs(999999999) }}",
        "{{ 'a'|center(999999999) }}",
        "{{ 'a\nb'|indent(999999999) }}",
        "{{ [1]|tojson(indent=999999999) }}",
        "{% set x = 'a'*100000 %}{{ [[1, 2], [3, 4]]|tojson(indent=x) }}",
        "{{ ('a'*500000)|urlencode|urlencode|urlencode }}{{ ('é'*250000)|urlencode }}",
        "{{ ('&'*200000)|e|e|e }}",
        "{% filter replace('a', 'b'*500000) %}{{ 'a'*500000 }}{% endfilter %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}x{% endif %}{% endmacro %}{{ m(60) }}",
    ]);
}

#[test]
fn lists_that_grow() {
    refuse(&[
        "{{ [1]|slice(4000000000)|list|length }}",
        "{{ [1]|batch(4000000000, 1)|list|length }}",
        "{{ ([1] * 400000000)|list|length }}",
        "{{ ((1,) * 400000000)|length }}",
        "{{ range(99999999999)|list }}",
        "{{ range(-9223372036854775808, 9223372036854775807)|list }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = ns.x|map('string')|list + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set ns.x = ns.x + [b] %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x=none) %}{% for a in range(99999) %}{% for b in range(999) %}{% set ns.x = range(99999)|list %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = ('a'*400000).split('a') %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(999) %}{% set x = ('a'*400000)|list %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(999) %}{% set x = dict.fromkeys(range(9)) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(999) %}{% set x = namespace(a=1, b=2) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(999) %}{% macro m() %}{{ b }}{% endmacro %}{% endfor %}{% endfor %}",
    ]);
}

#[test]
fn loops_that_do_not_end() {
    refuse(&[
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = b %}{% endfor %}{% endfor %}",
        "{% set x = ('a'*400000) %}{% for a in range(99999) %}{% for b in range(99999) %}{% if x == x ~ '' %}{% endif %}{% endfor %}{% endfor %}",
        "{% set x = ('a'*400000) %}{% for a in range(99999) %}{% for b in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}{% endfor %}",
        "{% set x = ('a'*400000) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set y = x.find('b') + x.count('a') + (x|length) %}{% endfor %}{% endfor %}",
        "{% set x = range(99999) %}{% for a in x %}{% if [a] in x %}{% endif %}{% for b in x %}{% if -1 in x|list %}{% endif %}{% endfor %}{% endfor %}",
        "{% set x = range(99999)|list %}{% for a in x %}{% set y = x|sort|sum %}{% endfor %}",
        "{% set x = range(99999)|list %}{% for a in x %}{% set y = x|map('string')|unique|list %}{% endfor %}",
        "{% set x = (range(300)|list) %}{% for a in range(99999) %}{% for b in range(99999) %}{% if x == x %}{% endif %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro m() %}{% call m() %}{% endcall %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall %}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}",
    ]);
}

#[test]
fn values_too_deep() {
    refuse(&[
        "{% set ns=namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x=[ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns=namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x=[ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns=namespace(x=()) %}{% for i in range(100000) %}{% set ns.x=(ns.x,) %}{% endfor %}{{ ns.x == ns.x }}",
        "{% set ns=namespace(x={}) %}{% for i in range(100000) %}{% set ns.x={'a': ns.x} %}{% endfor %}",
        "{% set ns=namespace(x={}) %}{% for i in range(100000) %}{% set ns.x=dict(a=ns.x) %}{% endfor %}",
        "{% set ns=namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x=[ns.x]|map('string') %}{% set ns.x=[ns.x] %}{% endfor %}",
        "{% set ns=namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x=cycler(ns.x) %}{% endfor %}",
        "{% set ns=namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x=[ns.x].index %}{% endfor %}",
        "{% set ns=namespace(x=[]) %}{% for i in range(100000) %}{% for j in [ns.x] %}{% set ns.x=loop %}{% endfor %}{% endfor %}",
        "{% set ns=namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
        "{% set a=namespace() %}{% set b=namespace(a=a) %}{% set a.b=b %}{{ [a] }}",
    ]);
    // Namespaces and macros may refer to each other as long as they like; nothing of that is followed.
    let chains = [
        "{% set ns=namespace(x=none) %}{% for i in range(90000) %}{% set ns.x=namespace(x=ns.x) %}{% endfor %}end",
        "{% set ns=namespace(x=none) %}{% for i in range(9000) %}{% set prev = ns.x %}{% macro m() %}{{ prev }}{% endmacro %}{% set ns.x = m %}{% endfor %}end",
    ];
    for source in chains {
        assert_eq!(render(source).unwrap(), "end");
    }
}

#[test]
fn sources_too_deep_or_too_long() {
    let many = |text: &str| text.repeat(100_000);
    let around = |open: &str, close: &str| format!("{{{{ {}1{} }}}}", many(open), many(close));
    let sources = [
        format!("{{{{ 1{} }}}}", many(" + 1")),
        format!("{{{{ 1{} }}}}", many("~1")),
        format!("{{{{ 1{} }}}}", many(" - 1")),
        format!("{{{{ 1{} }}}}", many(" * 1")),
        format!("{{{{ 1{} }}}}", many(" ** 1")),
        format!("{{{{ 1{} }}}}", many(" and 1")),
        format!("{{{{ 1{} }}}}", many(" or 1")),
        format!("{{{{ 'a'{} }}}}", many("|upper")),
        format!("{{{{ a{} }}}}", many(".b")),
        format!("{{{{ a{} }}}}", many("[0]")),
        format!("{{{{ a{} }}}}", many("()")),
        format!("{{{{ 1{} }}}}", many(" is none")),
        format!("{{{{ 1{} }}}}", many(" if 1 else 1")),
        format!("{{{{ 1{} }}}}", many(" if 1")),
        format!("{{{{ {}1 }}}}", many("not ")),
        format!("{{{{ {}1 }}}}", many("-")),
        around("(", ")"),
        around("[", "]"),
        around("{1:", "}"),
        around("f(", ")"),
        format!("{{{{ {}", many("(1 if ")),
        format!("{{% set {}", many("(")),
        many("{% if 1 %}"),
        format!("{}{}", many("{% if 1 %}"), many("{% endif %}")),
        format!("{}{}", many("{% for a in b %}"), many("{% endfor %}")),
        format!("{}{}", many("{% macro m() %}"), many("{% endmacro %}")),
        format!("{}{}", many("{% filter upper %}"), many("{% endfilter %}")),
        format!("{}{}", many("{% set x %}"), many("{% endset %}")),
        "x".repeat(2 << 20),
        format!("{{{{ {} }}}}", "9".repeat(1000)),
        "{% set x = 'abc".to_owned(),
        format!(
            "{{% if 0 %}}{}{{{{ raise_exception('far') }}}}{{% endif %}}",
            many("{% elif 0 %}") + "{% else %}"
        ),
    ];
    refuse(&sources.iter().map(|source| &source[..]).collect::<Vec<_>>());
}

#[test]
fn what_is_large_and_harmless_renders() {
    let long = "word ".repeat(200_000);
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{% endfor %}";
    let template = ChatTemplate::from_source(template, BTreeMap::new()).unwrap();
    let text = template
        .render(&[Message::user(long.as_str()), Message::user("b")])
        .unwrap();
    assert_eq!(text.len(), "user: ".len() + long.len() - 1 + "user: b".len());

    let messages: Vec<Message> = (0..20_000)
        .map(|n| Message::user(format!("message {n}")))
        .collect();
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}<{{ loop.index }}>{{ m.content }}{% endfor %}{{ ns.n }}";
    let template = ChatTemplate::from_source(source, BTreeMap::new()).unwrap();
    assert!(
        template
            .render(&messages)
            .unwrap()
            .ends_with("message 1999920000")
    );
}
