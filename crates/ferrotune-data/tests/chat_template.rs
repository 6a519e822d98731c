//! Small templates against what transformers renders, and templates that must not be rendered.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use ferrotune_data::{ChatTemplate, Error, Message};
use std::time::{Duration, UNIX_EPOCH};

fn tokens() -> [(String, String); 2] {
    [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.to_string(), token.to_string()))
}

fn render(template: &str, messages: &[Message]) -> Result<String, Error> {
    ChatTemplate::new(template, tokens())?.render(messages, true)
}

/// Jinja has these and this crate does not: no chat template is known to use them. They must be errors, not other text.
const UNSUPPORTED: [&str; 7] =
    [" % (", "wordcount", "truncate", "dict([", "urlencode", "striptags", "wordwrap"];

#[test]
fn renders_what_transformers_renders() {
    let text = include_str!("fixtures/chat_template/cases.json");
    let fixture: serde_json::Value = serde_json::from_str(text).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_string();
    let messages: Vec<Message> = fixture["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| Message::new(text(&message["role"]), text(&message["content"])))
        .collect();
    let mut wrong = Vec::new();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 200);
    for case in cases {
        let template = case["template"].as_str().unwrap();
        let rendered = render(template, &messages);
        let right = match (&rendered, case["text"].as_str()) {
            (Ok(_), _) if UNSUPPORTED.iter().any(|part| template.contains(part)) => false,
            (Err(_), _) if UNSUPPORTED.iter().any(|part| template.contains(part)) => true,
            (Ok(text), Some(expected)) => text == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if !right {
            wrong.push(format!("{template}\n  expected {case}\n  rendered {rendered:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_exception_of_the_template_is_told_apart_from_a_fault() {
    let template =
        "\n{% if messages[0].role != 'user' %}{{ raise_exception('start with the user') }}{% endif %}";
    match render(template, &[Message::new("assistant", "x")]) {
        Err(Error::TemplateRaised { message }) => assert_eq!(message, "start with the user"),
        other => panic!("{other:?}"),
    }
    assert_eq!(render(template, &[Message::new("user", "x")]).unwrap(), "\n");
    match render("\n{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", &[]) {
        Err(Error::TemplateEndless { line: 2, .. }) => {}
        other => panic!("{other:?}"),
    }
    match render("\n\n{{ messages[7].content }}", &[]) {
        Err(Error::TemplateRender { line: 3, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exception_within_a_macro_is_still_the_template_s_own() {
    let template = "{% macro f(m) %}{{ raise_exception('no ' ~ m.role) }}{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}";
    match render(template, &[Message::new("tool", "x")]) {
        Err(Error::TemplateRaised { message }) => assert_eq!(message, "no tool"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_template_that_is_not_valid_names_its_line() {
    match ChatTemplate::new("a\nb {% for %}", tokens()) {
        Err(Error::TemplateSyntax { line: 2, cause }) => assert!(!cause.is_empty()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_clock_can_be_stopped() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", []).unwrap();
    let day = UNIX_EPOCH + Duration::from_secs(1_721_952_000);
    assert_eq!(template.at_time(day).render(&[], false).unwrap(), "26 Jul 2024");
}

#[test]
fn messages_are_data_not_template() {
    let messages = [Message::new("user", "{{ eos_token }}{% raw %}")];
    assert_eq!(render("{{ messages[0].content }}", &messages).unwrap(), "{{ eos_token }}{% raw %}");
}
