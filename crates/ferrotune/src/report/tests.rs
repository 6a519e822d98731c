//! The whole page.

use super::html::{STYLE, STYLE_SHA256};
use super::*;

fn score(value: f64) -> Option<Scores> {
    let interval = Interval { value, low: value - 1.5, high: value + 1.5 };
    Some(["rouge1", "rougeL"].into_iter().map(|metric| (metric, interval)).collect())
}

/// A report in which every text is `text`.
fn filled_with(text: &str) -> Report {
    let own = || text.to_owned();
    let output = |score: f64| Output {
        prompt: own(),
        reference: own(),
        before: Some(own()),
        after: Some(own()),
        before_rouge_l: Some(10.0),
        after_rouge_l: Some(score),
    };
    let scores: Scores = [(text, Interval { value: 3.0, low: 2.0, high: 4.0 })].into_iter().collect();
    Report {
        model: own(),
        data: own(),
        method: Some(own()),
        metrics: Metrics {
            before: Some(scores.clone()),
            after: Some(scores),
            train: Some(TrainMetrics {
                examples: 2,
                loss: vec![LoggedStep { step: 1, loss: 2.0, ..Default::default() }; 2],
                ..Default::default()
            }),
            cpu_features: Some(vec![own()]),
            ..Metrics::default()
        },
        outputs: (0..20).map(|index| output(f64::from(index))).collect(),
        outputs_file: Some(own()),
        splits: vec![Split { name: own(), file: own(), ..Split::default() }],
        preflight: Some(PreflightFacts {
            marked_example: format!("{text}⟦{text}⟧"),
            marked_source: Some(own()),
            ..PreflightFacts::default()
        }),
        recipe: Some(own()),
        environment: vec![Fact::new(text, text)],
    }
}

/// The tags of a page, without attributes' values: `a`, `/a`.
fn tags(html: &str) -> std::collections::BTreeSet<String> {
    html.split('<')
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || "!/".contains(*c)).collect())
        .collect()
}

#[test]
fn hostile_text_adds_no_tag_and_no_attribute() {
    // Each word of an answer may be marked; all other markup is the same whatever the text.
    let page = |text: &str| render(&filled_with(text)).replace("<mark>", "").replace("</mark>", "");
    let calm = page("calm");
    for hostile in [
        "</script><img src=x onerror=alert(1)>",
        "</style><script>alert(1)</script>",
        "</title><svg/onload=alert(1)>",
        "\"><iframe src=//evil.example>",
        "' onmouseover='alert(1)",
        "\" onfocus=\"alert(1)\" autofocus x=\"",
        "<!-- --><![CDATA[<base href=//evil.example>",
        "&lt;script&gt;",
        "\u{202e}\0\u{feff}</pre></code></body></html><h1>gone",
    ] {
        let html = page(hostile);
        assert_eq!(tags(&html), tags(&calm), "{hostile}");
        // Quotes that are markup are as many as in the calm page.
        for quote in ['"', '\'', '<', '>'] {
            assert_eq!(html.matches(quote).count(), calm.matches(quote).count(), "{quote} of {hostile}");
        }
        assert!(!html.contains('\0') && !html.contains('\u{202e}'));
    }
    // An ampersand is escaped too: the reader sees what the model wrote.
    assert!(render(&filled_with("&lt;")).contains("&amp;lt;"));
}

#[test]
fn the_page_asks_for_nothing() {
    let html = render(&filled_with("calm"));
    for forbidden in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", " style="] {
        assert_eq!(html.find(forbidden), None, "{forbidden}");
    }
    for tag in tags(&html) {
        assert!(
            !["script", "img", "iframe", "object", "embed", "link", "base", "form"].contains(&tag.as_str())
        );
    }
}

#[test]
fn the_policy_allows_this_style_sheet_alone() {
    use sha2::Digest;
    let expected = base64(&sha2::Sha256::digest(STYLE));
    assert_eq!(STYLE_SHA256, expected, "style.css has changed: put this hash into html.rs");
    let html = render(&Report::default());
    let policy = format!(
        "content=\"default-src 'none'; style-src 'sha256-{expected}'; base-uri 'none'; form-action 'none'\""
    );
    assert!(html.contains(&policy), "{html}");
    assert!(html.contains(&format!("<style>{STYLE}</style>")));
    assert!(!STYLE.contains('\r') && !STYLE.contains("</"));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, i| word << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[test]
fn a_part_without_data_has_no_section() {
    let empty = render(&Report::default());
    assert!(!empty.contains("<h2>") && empty.contains("Fine-tuning report"));
    let with = |change: fn(&mut Report)| {
        let mut report = Report::default();
        change(&mut report);
        let html = render(&report);
        let titles: Vec<String> = html
            .split("<h2>")
            .skip(1)
            .map(|rest| rest.split("</h2>").next().unwrap_or_default().to_owned())
            .collect();
        titles.join(", ")
    };
    assert_eq!(with(|report| report.metrics.after = score(30.0)), "Scores");
    assert_eq!(with(|report| report.metrics.train = Some(TrainMetrics::default())), "");
    assert_eq!(with(|report| report.metrics.train = filled_with("x").metrics.train), "Training");
    assert_eq!(with(|report| report.outputs = filled_with("x").outputs), "Outputs");
    assert_eq!(with(|report| report.preflight = filled_with("x").preflight), "Data");
    assert_eq!(with(|report| report.recipe = Some("seed = 1".into())), "Recipe");
    assert_eq!(with(|report| report.metrics.time_to_first_step_s = Some(4.0)), "Environment");
    assert_eq!(render(&filled_with("x")).matches("<h2>").count(), 6, "a whole report has every section");
}

#[test]
fn the_headline_says_the_change_whatever_its_sign() {
    let page = |before: f64, after: f64| {
        render(&Report {
            metrics: Metrics { before: score(before), after: score(after), ..Metrics::default() },
            ..Report::default()
        })
    };
    assert!(page(16.7, 33.4).contains("<b class=\"up\">+16.7 points</b>"));
    assert!(page(33.4, 16.7).contains("<b class=\"down\">−16.7 points</b>"));
    assert!(page(33.4, 33.4).contains("<b class=\"level\">+0.0 points</b>"));
    let only_after = render(&Report {
        metrics: Metrics { after: score(33.4), ..Metrics::default() },
        ..Report::default()
    });
    assert!(!only_after.contains("points") && !only_after.contains(">Before<"));
}

#[test]
fn numbers_that_are_no_numbers_break_nothing() {
    let mut report = filled_with("x");
    report.metrics.before = score(f64::NAN);
    report.metrics.after = score(f64::INFINITY);
    report.outputs[0].after_rouge_l = Some(f64::NAN);
    report.metrics.validation =
        Some(ValidationMetrics { loss: f64::NAN, loss_before: Some(f64::INFINITY), ..Default::default() });
    let html = render(&report);
    for attribute in [" d=\"", " cx=\"", " x=\"", " y=\"", " width=\""] {
        for rest in html.split(attribute).skip(1) {
            let value = rest.split('"').next().unwrap_or_default();
            assert!(!value.contains("NaN") && !value.contains("inf"), "{attribute}{value}");
        }
    }
}

#[test]
fn a_report_is_plain_data() {
    let report = filled_with("x");
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}
