//! Templates that would crash, hang or fill the memory, made on purpose and at random.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use ferrotune_data::{ChatTemplate, Error, Message};
use proptest::prelude::*;

fn render(template: &str) -> Result<String, Error> {
    let tokens =
        [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.into(), token.into()));
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "What is\n2 + 2?"),
        Message::new("assistant", "4"),
        Message::new("user", "{{ eos_token }}é😀"),
    ];
    ChatTemplate::new(template, tokens)?.render(&messages, true)
}

/// Rendered to something of a bearable size, or refused by an error that is ours.
fn is_harmless(outcome: &Result<String, Error>) -> bool {
    match outcome {
        Ok(text) => text.len() < 256 << 20,
        Err(Error::TemplateSyntax { cause, .. } | Error::TemplateRender { cause, .. }) => {
            !cause.contains("panicked") && !cause.contains("no memory")
        }
        Err(Error::TemplateEndless { .. } | Error::TemplateRaised { .. }) => true,
        Err(_) => false,
    }
}

#[test]
fn endless_and_huge_templates_are_stopped() {
    let namespace = "{% set ns = namespace(s='xxxxxxxxxxxxxxxx', x=[1]) %}{% for i in range(60) %}";
    for template in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('ab') }}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 'x' * 99999999999 }}",
        "{{ 'a' * 10**9 }}",
        "{{ [0] * 10**9 }}",
        "{{ 'x'.ljust(99999999999) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x'.center(10**9) }}",
        "{{ 'x' | indent(10**9) }}",
        "{{ '%0999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ [1] | batch(10**9, 0) | list }}",
        "{{ range(10**9) | list | length }}",
        "{{ range(99999) | join('x' * 99999) }}",
        "{{ ('a' * 99999) | replace('a', 'x' * 99999) }}",
        "{{ ('a' * 99999).replace('', 'x' * 99999) }}",
        "{{ range(99999) | list | tojson(indent='x' * 99999) }}",
        "{{ range(99999) | list | tojson(separators=['x' * 99999, ':']) }}",
        "{{ 10 ** 10 ** 9 }}",
        &format!("{namespace}{{% set ns.s = ns.s + ns.s %}}{{% endfor %}}"),
        &format!("{namespace}{{% set ns.s = ns.s | replace('x', 'xx') %}}{{% endfor %}}"),
        // Lists that hold a list twice, and a namespace that holds itself.
        &format!("{namespace}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x }}}}"),
        &format!("{namespace}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x | string }}}}"),
        &format!("{namespace}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x | tojson }}}}"),
        &format!("{namespace}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ raise_exception(ns.x) }}}}"),
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.a = {'b': [ns]} %}{{ ns | tojson }}",
    ] {
        let outcome = render(template);
        assert!(
            outcome.is_err() && is_harmless(&outcome),
            "{template}: {:?}",
            outcome.map(|text| text.len())
        );
    }
}

#[test]
fn what_is_nested_deeply_does_not_end_the_process() {
    let chain = |link: &str, end: &str| format!("{{{{ {}{end} }}}}", link.repeat((120 << 10) / link.len()));
    for template in [
        chain("not ", "1"),
        chain("-", "1"),
        chain("1+", "1"),
        chain("1**", "1"),
        chain("1 and ", "1"),
        chain("1<", "1"),
        chain("1 if 1 else ", "1"),
        chain("(", ""),
        chain("[", ""),
        chain("{1:", ""),
        format!("{{{{ a{} }}}}", ".a".repeat(60_000)),
        format!("{{{{ a{} }}}}", "|e".repeat(60_000)),
        format!("{{{{ a{} }}}}", "()".repeat(60_000)),
        "{% if 1 %}".repeat(12_000),
        format!("{{% if 1 %}}{}", "{% elif 1 %}".repeat(10_000)),
    ] {
        let outcome = render(&template);
        assert!(is_harmless(&outcome), "{}: {outcome:?}", &template[..20]);
    }
    // Built while it runs: as deep as the steps allow, and dropped whether it ends or is stopped.
    for levels in ["range(9999)", "range(99999)"] {
        let deepen = "{% for j in range(20) %}{% set ns.x = [ns.x] %}{% endfor %}";
        let template = format!(
            "{{% set ns = namespace(x=[]) %}}{{% for i in {levels} %}}{deepen}{{% endfor %}}{{{{ ns.x | length }}}}"
        );
        assert!(is_harmless(&render(&template)), "{levels}");
    }
    let long = format!("{{# {} #}}", "x".repeat(128 << 10));
    assert!(
        matches!(render(&long), Err(Error::TemplateSyntax { cause, .. }) if cause.contains("bytes, more than"))
    );
}

/// As many cases as `PROPTEST_CASES` says.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases.unwrap_or(default)) }
}

/// Whole templates to damage.
const TEMPLATES: [&str; 3] = [
    include_str!("fixtures/tokenizer/chatml/chat_template.jinja"),
    "{%- for m in messages -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('no') -}}\
     {%- endif -%}{{- '[INST] ' + (bos_token if loop.first else '') + m['content'].strip() + ' [/INST]' -}}{%- endfor -%}",
    "{% set ns = namespace(n=0, s=[]) %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s + [m.role] %}\
     {{ m | tojson }}{% endfor %}{{ ns.n }}{{ ns.s | join(', ') | upper }}",
];

const PIECES: [&str; 36] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-",
    "+",
    "*",
    "**",
    "//",
    "%",
    "~",
    "|",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ":",
    ",",
    ".",
    "'",
    "\"",
    "\\",
    " 9999999999 ",
    " -1 ",
    " messages ",
    " namespace ",
    "|tojson",
    "|list",
    ".split()",
    "{% for i in range(999) %}",
    "{% endfor %}",
    "\u{0}é\r\n",
];

/// A template with some spans cut, doubled or replaced by a piece.
fn damaged() -> impl Strategy<Value = String> {
    let edits = proptest::collection::vec((any::<[u16; 2]>(), 0usize..3, 0..PIECES.len()), 1..6);
    (0..TEMPLATES.len(), edits).prop_map(|(template, edits)| {
        let mut text: Vec<char> = TEMPLATES[template].chars().collect();
        for ([a, b], action, piece) in edits {
            let start = usize::from(a) % (text.len() + 1);
            let end = (start + usize::from(b) % 12).min(text.len());
            let span: Vec<char> = match action {
                0 => Vec::new(),
                1 => text[start..end].repeat(2),
                _ => PIECES[piece].chars().collect(),
            };
            text.splice(start..end, span);
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn damaged_templates_are_harmless(template in damaged()) {
        prop_assert!(is_harmless(&render(&template)), "{}", template);
    }

    #[test]
    fn random_templates_are_harmless(pieces in proptest::collection::vec(0..PIECES.len(), 0..24)) {
        let template: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        prop_assert!(is_harmless(&render(&template)), "{}", template);
    }
}
