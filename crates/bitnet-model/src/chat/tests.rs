use super::*;

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token".to_owned(), "<s>".to_owned())];
    ChatTemplate::compile(source, "test".to_owned(), tokens.into()).unwrap()
}

fn hello() -> Vec<Message> {
    vec![Message::system("be <brief> & 'kind'"), Message::user(" Hi \n")]
}

fn check(source: &str, expected: &str) {
    assert_eq!(template(source).render(&hello()).unwrap(), expected, "{source}");
}

#[test]
fn the_built_in_template_is_that_of_the_2b_model() {
    let template = template(BITNET_TEMPLATE);
    let text = template.render(&[Message::user("How are you?")]).unwrap();
    assert_eq!(text, "User: How are you?<|eot_id|>Assistant: ");
}

/// Each expectation is what Jinja2 3.1 prints with the settings of transformers (trim_blocks, lstrip_blocks, loopcontrols).
#[test]
fn templates_render_as_jinja2_does() {
    check("{{ bos_token }}{{ messages[1]['role'] | capitalize }}", "<s>User");
    check("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb");
    check(
        "{{ messages[1].content | trim }}|{{ messages[1].content.strip() }}",
        "Hi|Hi",
    );
    check("{{ '\\x1c x \\x1f' | trim }}", "x");
    check("{{ true }} {{ none }} {{ 1.0 }} {{ nothing }}", "True None 1.0 ");
    check(
        "{{ tools is none }} {{ tools is defined }} {{ eos_token is defined }}",
        "True True False",
    );
    check(
        "{{ messages[0] | tojson }}",
        r#"{"role": "system", "content": "be <brief> & 'kind'"}"#,
    );
    check("{{ [1, 'é'] | tojson(indent=2) }}", "[\n  1,\n  \"é\"\n]");
    check(
        "{% for m in messages if m.role == 'user' %}{{ loop.index0 }}{{ m.role.upper() }}{% endfor %}",
        "0USER",
    );
    check(
        "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
        "system",
    );
    check(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "2",
    );
    check(
        "{{ messages[1:] | length }}{{ messages[-1].role[:2] }}{{ 'a b'.split(' ')[-1] }}",
        "1usb",
    );
    check(
        "a{% generation %}b{%- endgeneration -%} c {{ add_generation_prompt }}",
        "abc True",
    );
    check("{%- macro m(x) -%}<{{ x }}>{%- endmacro -%}{{ m('y') }}", "<y>");
}

#[test]
fn a_template_can_refuse() {
    let error = template("{{ raise_exception('roles must alternate') }}").render(&hello());
    assert_eq!(
        error.unwrap_err().to_string(),
        "test: roles must alternate (line 1 of the template)"
    );
}

#[test]
fn the_date_is_formatted_and_a_bad_format_is_an_error() {
    let date = template("{{ strftime_now('%d %b %Y') }}")
        .render(&hello())
        .unwrap();
    let fields: Vec<_> = date.split(' ').collect();
    assert!(
        fields.len() == 3 && fields[0].len() == 2 && fields[1].len() == 3,
        "{date}"
    );
    assert!(template("{{ strftime_now('%') }}").render(&hello()).is_err());
}

#[test]
fn hostile_templates_are_errors() {
    for source in ["{% for", "{{ ''.__class__( }}", "{% generation", "{% nothing %}"] {
        assert!(
            ChatTemplate::compile(source, "test".to_owned(), BTreeMap::new()).is_err(),
            "{source}"
        );
    }
    let endless =
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = b %}{% endfor %}{% endfor %}";
    for source in [
        endless,
        "{{ 'a' * 999999999999 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ] {
        assert!(template(source).render(&hello()).is_err(), "{source}");
    }
}
